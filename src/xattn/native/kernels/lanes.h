// A vector register of floats, written with the compiler's own vector types so that one source
// serves AVX-512, AVX2 and NEON. Nothing here is specific to attention.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

constexpr float NOTHING = -std::numeric_limits<float>::infinity();

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef int32_t IntLanes __attribute__((vector_size(4 * LANES)));
typedef float LooseLanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline Lanes load(const float *from) { return *reinterpret_cast<const LooseLanes *>(from); }
static inline Lanes load_some(const float *from, int64_t count) {
    Lanes x{};
    std::memcpy(&x, from, count * sizeof(float));
    return x;
}
static inline Lanes widened(const int8_t *from) {
#if defined(__AVX512F__)
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
#elif defined(__AVX2__)
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
#else
    Lanes x;
    for (int i = 0; i < LANES; i++) x[i] = from[i];
    return x;
#endif
}
static inline void store(float *to, Lanes x) { *reinterpret_cast<LooseLanes *>(to) = x; }
// What is needed soon, from memory to the cache next to the core's own.
static inline void fetch(const void *what) { __builtin_prefetch(what, 0, 2); }

static inline Lanes all(float x) { return x - Lanes{}; }

// x and y hold sums of `PART` lanes each, side by side; the result holds sums of half as many.
template <int PART, int... I>
static inline Lanes halve(Lanes x, Lanes y, std::integer_sequence<int, I...>) {
    constexpr int HALF = LANES / 2, PIECE = PART / 2;
    return __builtin_shufflevector(
               x, y, (I % HALF / PIECE * PART + I % HALF % PIECE + (I < HALF ? 0 : LANES))...) +
           __builtin_shufflevector(
               x, y, (I % HALF / PIECE * PART + I % HALF % PIECE + PIECE + (I < HALF ? 0 : LANES))...);
}

// The sums over the lanes of COUNT vectors (a power of two), in order, in the first COUNT lanes.
template <int COUNT, int PART = LANES>
static inline Lanes sums(const Lanes *x) {
    constexpr auto each = std::make_integer_sequence<int, LANES>{};
    if constexpr (PART == 1) {
        return x[0];
    } else if constexpr (COUNT == 1) {
        const Lanes once = halve<PART>(x[0], x[0], each);
        return sums<1, PART / 2>(&once);
    } else {
        Lanes halved[COUNT / 2];
        for (int i = 0; i < COUNT / 2; i++) halved[i] = halve<PART>(x[2 * i], x[2 * i + 1], each);
        return sums<COUNT / 2, PART / 2>(halved);
    }
}

// The sums over the lanes of any number of vectors.
template <int COUNT>
static inline void all_sums(const Lanes *x, float *to) {
    constexpr int TAKEN = COUNT >= LANES ? LANES : COUNT >= 8 ? 8 : COUNT >= 4 ? 4 : COUNT >= 2 ? 2 : 1;
    const Lanes totals = sums<TAKEN>(x);
    std::memcpy(to, &totals, TAKEN * sizeof(float));
    if constexpr (COUNT > TAKEN) all_sums<COUNT - TAKEN>(x + TAKEN, to + TAKEN);
}

static inline float sum(Lanes x) { return sums<1>(&x)[0]; }

// Where x is no number, y.
static inline Lanes larger(Lanes x, Lanes y) { return x > y ? x : y; }
// Where one is no number, that.
static inline float higher(float x, float y) { return x > y || x != x ? x : y; }

static inline float largest(Lanes x) {
    float best = x[0];
    for (int i = 1; i < LANES; i++) best = x[i] > best ? x[i] : best;
    return best;
}

// exp to about 1 ulp: 2^n times a polynomial on [-ln 2 / 2, ln 2 / 2] (Cephes, S. Moshier).
static inline Lanes exponential(Lanes x) {
    const Lanes low = all(-87.3f), high = all(88.0f);
    const Lanes inside = x > high ? high : (x < low ? low : x);
    const Lanes shift = all(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    const Lanes whole = (inside * 1.44269504088896341f + shift) - shift;
    const Lanes rest = (inside - whole * 0.693359375f) - whole * -2.12194440e-4f;
    Lanes y = all(1.9875691500e-4f);
    y = y * rest + 1.3981999507e-3f;
    y = y * rest + 8.3334519073e-3f;
    y = y * rest + 4.1665795894e-2f;
    y = y * rest + 1.6666665459e-1f;
    y = y * rest + 5.0000001201e-1f;
    y = y * rest * rest + rest + 1.0f;
    const IntLanes power = (__builtin_convertvector(whole, IntLanes) + 127) << 23;
    Lanes scale;
    std::memcpy(&scale, &power, sizeof scale);
    const Lanes value = y * scale;
    return x < low ? Lanes{} : value;
}
