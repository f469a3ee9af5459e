// The likeliest entries of rows of logits, and what their probabilities are shares of, in one pass.
//
// A row is cut into pieces by its width alone, so that its numbers depend neither on the threads
// nor on the rows beside it. A piece is read block by block: first for entries above the least of
// the best, then, while the block is in the nearest cache, for the sum of exponentials.
#pragma once

#include <algorithm>
#include <vector>

#include "lanes.h"

// NaN is larger than all numbers, so that it is found.
static inline bool is_larger(float x, float y) { return x > y || (x != x && y == y); }

// The best k of some entries, best first; of equal ones the lower id goes first.
struct Best {
    float *values;
    int64_t *ids;
    int64_t k, count = 0;

    void add(float value, int64_t id) {
        if (count == k && !is_larger(value, values[k - 1])) return;
        int64_t at = count < k ? count++ : k - 1;
        for (; at > 0 && is_larger(value, values[at - 1]); at--) {
            values[at] = values[at - 1];
            ids[at] = ids[at - 1];
        }
        values[at] = value;
        ids[at] = id;
    }
};

// The sum of exp(x - top) over some entries.
struct Mass {
    float top = NOTHING;
    double sum = 0.0;

    void raise(float higher) {
        if (sum != 0.0) sum *= std::exp(double(top) - higher);
        top = higher;
    }
};

constexpr int64_t PIECE = 32768;                // entries at most in a piece
constexpr int64_t FEW_ENTRIES = 2048;           // in a block, which is read twice
constexpr int64_t WORTH_A_THREAD = 64 << 10;    // entries

static inline bool any(IntLanes mask) {
    int64_t halves[LANES / 2], found = 0;
    std::memcpy(halves, &mask, sizeof halves);
    for (int64_t half : halves) found |= half;
    return found;
}

static inline void find(const float *x, int64_t from, int64_t to, Best &best) {
    constexpr int64_t GROUP = 4 * LANES;
    int64_t i = from;
    for (; i < to && best.count < best.k; i++) best.add(x[i], i);
    for (; i + GROUP <= to; i += GROUP) {
        const Lanes least = all(best.values[best.k - 1]);
        IntLanes below[4];
        for (int n = 0; n < 4; n++) below[n] = load(x + i + n * LANES) <= least;
        if (!any(~(below[0] & below[1] & below[2] & below[3]))) continue;
        for (int64_t n = 0; n < 4; n++)
            if (any(~below[n]))
                for (int64_t j = i + n * LANES; j < i + (n + 1) * LANES; j++) best.add(x[j], j);
    }
    for (; i < to; i++) best.add(x[i], i);
}

// exp of what is not above 0, to about 2 ulp: 2^n times a polynomial (Cephes, S. Moshier). What is
// below -87, where float32 ends, counts as that: as nothing, next to the 1 of the largest.
static inline Lanes small_exponential(Lanes x) {
    const Lanes log2e = all(1.44269504088896341f), shift = all(12582912.0f);  // 1.5 * 2^23
    const Lanes held = larger(x, all(-87.0f));
    const Lanes shifted = held * log2e + shift;  // the lowest bits are the power of 2
    const Lanes rest = held * log2e - (shifted - shift);
    Lanes y = all(1.535336188319500e-4f);
    y = y * rest + 1.339887440266574e-3f;
    y = y * rest + 9.618437357674640e-3f;
    y = y * rest + 5.550332471162809e-2f;
    y = y * rest + 2.402264791363012e-1f;
    y = y * rest + 6.931472028550421e-1f;
    y = y * rest + 1.0f;
    IntLanes power, bits;
    std::memcpy(&power, &shifted, sizeof power);
    std::memcpy(&bits, &y, sizeof bits);
    bits += power << 23;
    std::memcpy(&y, &bits, sizeof y);
    return y;
}

static inline void weigh(const float *x, int64_t from, int64_t to, float top, Mass &mass) {
    if (!std::isfinite(top)) return;  // nothing to weigh, or nothing to weigh it against
    if (top > mass.top) mass.raise(top);
    Lanes sums[4] = {};
    int64_t i = from;
    for (; i + 4 * LANES <= to; i += 4 * LANES)
        for (int n = 0; n < 4; n++) sums[n] += small_exponential(load(x + i + n * LANES) - top);
    for (; i < to; i += LANES) {
        Lanes rest = all(NOTHING);  // which adds exp(-87) for each: nothing
        std::memcpy(&rest, x + i, std::min<int64_t>(LANES, to - i) * sizeof(float));
        sums[0] += small_exponential(rest - top);
    }
    mass.sum += sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

static inline Mass read_piece(const float *x, int64_t from, int64_t to, bool weighed, Best &best) {
    Mass mass;
    for (int64_t at = from; at < to; at += FEW_ENTRIES) {
        const int64_t end = std::min(to, at + FEW_ENTRIES);
        find(x, at, end, best);
        if (weighed) weigh(x, at, end, best.values[0], mass);
    }
    return mass;
}

// What the pieces of one row found, kept from call to call for its room only.
thread_local std::vector<float> piece_values;
thread_local std::vector<int64_t> piece_ids;
thread_local std::vector<Mass> piece_masses;

// Values and ids [R, k] of the best entries of logits [R, V], whose rows stand `stride` apart, and
// their log-probabilities, which are left out where `logprobs` is null.
static void likeliest(const float *logits, int64_t stride, int64_t R, int64_t V, int64_t k,
                      float *values, int64_t *ids, float *logprobs, int64_t threads) {
    const int64_t pieces = (V + PIECE - 1) / PIECE, chunks = R * pieces;
    piece_values.resize(chunks * k);
    piece_ids.assign(chunks * k, -1);
    piece_masses.resize(chunks);
    float *const found_values = piece_values.data();
    int64_t *const found_ids = piece_ids.data();
    Mass *const found = piece_masses.data();
    const int64_t useful = std::min({threads, chunks, 1 + R * V / WORTH_A_THREAD});
#pragma omp parallel for num_threads(useful) schedule(dynamic) if (useful > 1)
    for (int64_t c = 0; c < chunks; c++) {
        const int64_t piece = c % pieces;
        Best best{found_values + c * k, found_ids + c * k, k};
        found[c] = read_piece(logits + c / pieces * stride, V * piece / pieces,
                              V * (piece + 1) / pieces, logprobs != nullptr, best);
    }
    for (int64_t r = 0; r < R; r++) {
        Best best{values + r * k, ids + r * k, k};
        for (int64_t i = r * pieces * k; i < (r + 1) * pieces * k; i++)
            if (found_ids[i] >= 0) best.add(found_values[i], found_ids[i]);
        if (!logprobs) continue;
        const float top = best.values[0];
        double sum = 0.0;
        for (int64_t c = r * pieces; c < (r + 1) * pieces; c++)
            if (found[c].sum != 0.0) sum += found[c].sum * std::exp(double(found[c].top) - top);
        const float log = std::isfinite(top) ? std::log(sum) : std::nanf("");
        for (int64_t i = 0; i < k; i++) logprobs[r * k + i] = (best.values[i] - top) - log;
    }
}
