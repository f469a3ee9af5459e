// Attention of a few queries over a block of positions, folded into what earlier blocks gave.
//
// This is attend and merge in one: a block's scores are weighed against the largest score seen so
// far (Milakov and Gimelshein 2018, arXiv 1805.02867), so that any number of blocks, in any order,
// give the softmax over all their positions.
#pragma once

#include <algorithm>

#include "lanes.h"

constexpr int BLOCK = 64;  // positions that are scored at once

// What one query has read: values weighed by exp(score - top), and the sum of those weights.
struct Reading {
    float top = NOTHING, total = 0.0f;
    float *values = nullptr;
};

// Scores of QUERIES queries at COUNT positions. What lies `ahead` of each key is fetched, if any.
template <int QUERIES, int COUNT>
static inline void score_tile(const float *const *queries, const float *const *keys, int64_t width,
                              float scale, float *scores, int64_t ahead) {
    Lanes sum_of[QUERIES * COUNT] = {};
    const auto step = [&](int64_t k, auto get) {
        Lanes key[COUNT];
        for (int s = 0; s < COUNT; s++) key[s] = get(keys[s] + k);
        for (int q = 0; q < QUERIES; q++) {
            const Lanes query = get(queries[q] + k);
            for (int s = 0; s < COUNT; s++) sum_of[q * COUNT + s] += query * key[s];
        }
    };
    int64_t k = 0;
    if (ahead)
        for (; k + LANES <= width; k += LANES) {
            for (int s = 0; s < COUNT; s++) fetch(keys[s] + ahead + k);
            step(k, load);
        }
    for (; k + LANES <= width; k += LANES) step(k, load);
    if (k < width) step(k, [&](const float *from) { return load_some(from, width - k); });
    float totals[QUERIES * COUNT];
    all_sums<QUERIES * COUNT>(sum_of, totals);
    for (int q = 0; q < QUERIES; q++)
        for (int s = 0; s < COUNT; s++) scores[q * BLOCK + s] = totals[q * COUNT + s] * scale;
}

template <int QUERIES>
static inline void score_block(const float *const *queries, const float *const *keys, int count,
                               int64_t width, float scale, float *scores, int64_t ahead) {
    int s = 0;
    if constexpr (QUERIES == 1)
        for (; s + 8 <= count; s += 8)
            score_tile<1, 8>(queries, keys + s, width, scale, scores + s, ahead);
    for (; s + 4 <= count; s += 4)
        score_tile<QUERIES, 4>(queries, keys + s, width, scale, scores + s, ahead);
    for (; s < count; s++)
        score_tile<QUERIES, 1>(queries, keys + s, width, scale, scores + s, ahead);
}

// values += weights · the block's values, for QUERIES queries and WIDE vectors of their width.
template <int QUERIES, int WIDE>
static inline void weigh_tile(Reading *readings, const float *weights, const float *const *values,
                              int count, int64_t from, int64_t ahead) {
    Lanes sum_of[QUERIES][WIDE];
    for (int q = 0; q < QUERIES; q++)
        for (int i = 0; i < WIDE; i++) sum_of[q][i] = load(readings[q].values + from + i * LANES);
    for (int s = 0; s < count; s++) {
        Lanes value[WIDE];
        if (ahead)
            for (int i = 0; i < WIDE; i++) fetch(values[s] + ahead + from + i * LANES);
        for (int i = 0; i < WIDE; i++) value[i] = load(values[s] + from + i * LANES);
        for (int q = 0; q < QUERIES; q++)
            for (int i = 0; i < WIDE; i++) sum_of[q][i] += value[i] * weights[q * BLOCK + s];
    }
    for (int q = 0; q < QUERIES; q++)
        for (int i = 0; i < WIDE; i++) store(readings[q].values + from + i * LANES, sum_of[q][i]);
}

template <int QUERIES>
static inline void weigh_block(Reading *readings, const float *weights, const float *const *values,
                               int count, int64_t width, int64_t ahead) {
    int64_t from = 0;
    for (; from + 4 * LANES <= width; from += 4 * LANES)
        weigh_tile<QUERIES, 4>(readings, weights, values, count, from, ahead);
    for (; from + LANES <= width; from += LANES)
        weigh_tile<QUERIES, 1>(readings, weights, values, count, from, ahead);
    for (; from < width; from++)
        for (int q = 0; q < QUERIES; q++)
            for (int s = 0; s < count; s++)
                readings[q].values[from] += weights[q * BLOCK + s] * values[s][from];
}

// Turn scores into weights; what was read before is scaled down where a larger score came. A score
// that is no number makes the total none.
static inline void settle(Reading &reading, float *scores, int count, int64_t width) {
    for (int s = count; s % LANES; s++) scores[s] = NOTHING;
    Lanes tops = all(NOTHING);
    for (int s = 0; s < count; s += LANES) tops = larger(load(scores + s), tops);
    float top = higher(largest(tops), reading.top);
    if (top == NOTHING) {
        if (std::none_of(scores, scores + count, [](float score) { return score != score; })) {
            std::fill(scores, scores + count, 0.0f);
            return;
        }
        top = NAN;
    }
    if (top > reading.top && reading.total != 0.0f) {
        const float shrink = std::exp(reading.top - top);
        reading.total *= shrink;
        for (int64_t i = 0; i < width; i++) reading.values[i] *= shrink;
    }
    reading.top = top;
    Lanes total{};
    for (int s = 0; s < count; s += LANES) {
        const Lanes weight = exponential(load(scores + s) - top);
        store(scores + s, weight);
        total += weight;
    }
    reading.total += sum(total);
}

// Fold `count` positions into the readings. `bias` is added to the scores, one row of them per
// query, or one for all where `bias_stride` is 0. `scores` has room for [queries, BLOCK]. The next
// block's keys are `ahead` numbers from these, or 0: while these are multiplied, they are fetched.
static inline void fold(const float *const *queries, Reading *readings, int number,
                        const float *const *keys, const float *const *values, int count,
                        int64_t key_width, int64_t value_width, float scale, const float *bias,
                        int64_t bias_stride, float *scores, int64_t ahead = 0,
                        int64_t values_ahead = 0) {
    int q = 0;
    for (; q + 4 <= number; q += 4, ahead = 0)
        score_block<4>(queries + q, keys, count, key_width, scale, scores + q * BLOCK, ahead);
    for (; q < number; q++, ahead = 0)
        score_block<1>(queries + q, keys, count, key_width, scale, scores + q * BLOCK, ahead);
    for (q = 0; q < number; q++) {
        float *row = scores + q * BLOCK;
        if (bias)
            for (int s = 0; s < count; s++) row[s] += bias[q * bias_stride + s];
        settle(readings[q], row, count, value_width);
    }
    q = 0;
    for (; q + 4 <= number; q += 4, values_ahead = 0)
        weigh_block<4>(readings + q, scores + q * BLOCK, values, count, value_width, values_ahead);
    for (; q < number; q++, values_ahead = 0)
        weigh_block<1>(readings + q, scores + q * BLOCK, values, count, value_width, values_ahead);
}
