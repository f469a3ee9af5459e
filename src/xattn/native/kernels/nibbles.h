// Products with int4 weights: of each output, 32 inputs share a step and a least number.
//
// A group of a panel is 320 bytes. 256 are weights, in four runs of 64: byte 4 * o + i of run k has
// input 4 * k + i of output o in its lower half, and input 16 + 4 * k + i in its upper half. Then come
// 16 steps and 16 least numbers, in float16. Rows have 15 bits, in two planes with signs: next to
// such weights they are as good as floats.
#pragma once

#include "rows.h"

constexpr int64_t RUNS = 4, RUN = PANEL * QUAD;
constexpr int64_t GROUP_BYTES = RUNS * RUN + 2 * PANEL * 2;
constexpr float OF_REST = 1.0f / REST;

// 16 numbers in float16 as floats; there are no infinite ones among them.
static inline FloatPanel halves(const uint8_t *from) {
#if defined(__AVX512F__)
    return (FloatPanel)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
#else
    FloatPanel found;
    for (int o = 0; o < PANEL; o++) {
        uint16_t half;
        std::memcpy(&half, from + 2 * o, 2);
        const uint32_t bits = uint32_t(half & 0x7fff) << 13;
        float value;
        std::memcpy(&value, &bits, 4);
        found[o] = (half & 0x8000 ? -0x1p112f : 0x1p112f) * value;
    }
    return found;
#endif
}

// Sums of products of COUNT rows, both planes of them, with one group of PANELS panels.
template <int PANELS, int COUNT>
static inline void multiply_group(const uint8_t *w, int64_t length, const uint8_t *const *x,
                                  int64_t planes, Panel (&near)[COUNT][PANELS],
                                  Panel (&rest)[COUNT][PANELS]) {
    for (int64_t k = 0; k < RUNS; k++) {
#if defined(__AVX512VNNI__)
        const __m512i mask = _mm512_set1_epi8(15);
        __m512i lower[PANELS], upper[PANELS];
        for (int p = 0; p < PANELS; p++) {
            const __m512i both = _mm512_loadu_si512(w + p * length + k * RUN);
            lower[p] = _mm512_and_si512(both, mask);
            upper[p] = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
        }
        for (int r = 0; r < COUNT; r++) {
            const auto four = [&](int64_t at) {
                int32_t numbers;
                std::memcpy(&numbers, x[r] + at, 4);
                return _mm512_set1_epi32(numbers);
            };
            const int64_t low = k * QUAD, high = GROUP / 2 + low;
            const auto add = [&](Panel &sum, __m512i weights, int64_t at) {
                sum = (Panel)_mm512_dpbusd_epi32((__m512i)sum, weights, four(at));
            };
            for (int p = 0; p < PANELS; p++) {
                add(near[r][p], lower[p], low);
                add(near[r][p], upper[p], high);
                add(rest[r][p], lower[p], planes + low);
                add(rest[r][p], upper[p], planes + high);
            }
        }
#else
        for (int p = 0; p < PANELS; p++)
            for (int r = 0; r < COUNT; r++)
                for (int o = 0; o < PANEL; o++)
                    for (int64_t i = 0; i < QUAD; i++) {
                        const uint8_t both = w[p * length + k * RUN + o * QUAD + i];
                        const int8_t *low = reinterpret_cast<const int8_t *>(x[r]) + k * QUAD + i;
                        const int8_t *high = low + GROUP / 2;
                        near[r][p][o] += (both & 15) * *low + (both >> 4) * *high;
                        rest[r][p][o] += (both & 15) * low[planes] + (both >> 4) * high[planes];
                    }
#endif
    }
}

// 16 * PANELS outputs of COUNT rows.
template <int PANELS, int COUNT>
static inline void nibble_tile(const Matrix &m, const Rows &rows, int64_t row, int64_t panel,
                               float *y, int64_t stride, bool add) {
    const int64_t groups = rows.width / GROUP, length = groups * GROUP_BYTES;
    const uint8_t *w = static_cast<const uint8_t *>(m.weights) + panel * length;
    const int64_t planes = rows.count * rows.width;
    FloatPanel total[COUNT][PANELS] = {};
    for (int64_t g = 0; g < groups; g++, w += GROUP_BYTES) {
        const uint8_t *x[COUNT];
        for (int r = 0; r < COUNT; r++) x[r] = rows.plane(0, row + r) + g * GROUP;
        if (row == 0)
            for (int64_t p = PANELS; p < 2 * PANELS; p++)
                for (int64_t at = 0; at < GROUP_BYTES; at += 64) fetch(w + p * length + at);
        Panel near[COUNT][PANELS] = {}, rest[COUNT][PANELS] = {};
        multiply_group<PANELS, COUNT>(w, length, x, planes, near, rest);
        for (int p = 0; p < PANELS; p++) {
            const uint8_t *numbers = w + p * length + RUNS * RUN;
            const FloatPanel step = halves(numbers), least = halves(numbers + 2 * PANEL);
            for (int r = 0; r < COUNT; r++) {
                const FloatPanel steps = __builtin_convertvector(near[r][p], FloatPanel) +
                                         __builtin_convertvector(rest[r][p], FloatPanel) * OF_REST;
                total[r][p] += step * steps + least * rows.sums(row + r)[g];
            }
        }
    }
    for (int r = 0; r < COUNT; r++)
        for (int p = 0; p < PANELS; p++) {
            const int64_t count = std::min<int64_t>(PANEL, m.out - (panel + p) * PANEL);
            put(m, panel + p, total[r][p] * rows.scales[row + r], y + (row + r) * stride, add, count);
        }
}

template <int PANELS>
static inline void nibble_rows(const Matrix &m, const Rows &rows, int64_t panel, int64_t first,
                               int64_t last, float *y, int64_t stride, bool add) {
    int64_t r = first;
    for (; r + 2 <= last; r += 2) nibble_tile<PANELS, 2>(m, rows, r, panel, y, stride, add);
    for (; r < last; r++) nibble_tile<PANELS, 1>(m, rows, r, panel, y, stride, add);
}
