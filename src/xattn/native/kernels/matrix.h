// Products of a few rows with a weight matrix, read once from memory whatever the number of rows.
#pragma once

#include "nibbles.h"
#include "panels.h"

// Wide: OUT outputs of COUNT rows.
template <int OUT, int COUNT>
static inline void wide_tile(const Matrix &m, const Rows &rows, int64_t row, int64_t out, float *y,
                             int64_t stride, bool add) {
    const float *w = static_cast<const float *>(m.weights) + out * m.in;
    const float *x = rows.x + row * rows.stride;
    const int64_t fetched = OUT * row / rows.count, fetching = OUT * (row + COUNT) / rows.count;
    Lanes sum_of[COUNT * OUT] = {};
    const auto step = [&](int64_t k, auto get) {
        Lanes left[OUT];
        for (int o = 0; o < OUT; o++) left[o] = get(w + o * m.in + k);
        for (int r = 0; r < COUNT; r++) {
            const Lanes right = get(x + r * rows.stride + k);
            for (int o = 0; o < OUT; o++) sum_of[r * OUT + o] += left[o] * right;
        }
    };
    int64_t k = 0;
    for (; k + LANES <= m.in; k += LANES) {
        for (int64_t o = fetched; o < fetching; o++) fetch(w + (OUT + o) * m.in + k);
        step(k, load);
    }
    if (k < m.in) step(k, [&](const float *from) { return load_some(from, m.in - k); });
    float totals[COUNT * OUT];
    all_sums<COUNT * OUT>(sum_of, totals);
    for (int r = 0; r < COUNT; r++) {
        float *place = y + (row + r) * stride + out;
        for (int o = 0; o < OUT; o++) {
            const float total = totals[r * OUT + o] + (m.bias ? m.bias[out + o] : 0.0f);
            place[o] = add ? place[o] + total : total;
        }
    }
}

template <int OUT>
static inline void wide_rows(const Matrix &m, const Rows &rows, int64_t out, float *y,
                             int64_t stride, bool add) {
    int64_t r = 0;
    for (; r + 5 <= rows.count && rows.count != 6 && rows.count != 8; r += 5)
        wide_tile<OUT, 5>(m, rows, r, out, y, stride, add);
    for (; r + 4 <= rows.count; r += 4) wide_tile<OUT, 4>(m, rows, r, out, y, stride, add);
    for (; r + 2 <= rows.count; r += 2) wide_tile<OUT, 2>(m, rows, r, out, y, stride, add);
    for (; r < rows.count; r++) wide_tile<OUT, 1>(m, rows, r, out, y, stride, add);
}

template <int PANELS>
static inline void narrow_rows(const Matrix &m, const Rows &rows, int64_t panel, int64_t first,
                               int64_t last, float *y, int64_t stride, bool add) {
    if (m.bits == INT4_BITS)
        nibble_rows<PANELS>(m, rows, panel, first, last, y, stride, add);
    else
        panel_rows<PANELS>(m, rows, panel, first, last, y, stride, add);
}

// Outputs are shared out among threads in blocks of so many.
static inline int64_t block_of(const Matrix &m) { return is_narrow(m) ? 4 * PANEL : 4; }
static inline int64_t blocks(const Matrix &m) { return whole(m.out, block_of(m)); }

// y[row, out] = x Wᵀ + bias (or += that), for the outputs of blocks `first` to `last`.
static inline void product(const Matrix &m, const Rows &rows, int64_t first, int64_t last, float *y,
                           int64_t stride, bool add) {
    if (is_narrow(m)) {
        const int64_t panels = whole(m.out, PANEL);
        int64_t p = first * 4;
        const int64_t end = std::min(panels, last * 4);
        for (; p + 4 <= end; p += 4) narrow_rows<4>(m, rows, p, 0, rows.count, y, stride, add);
        for (; p < end; p++) narrow_rows<1>(m, rows, p, 0, rows.count, y, stride, add);
        return;
    }
    int64_t out = first * 4;
    const int64_t end = std::min(m.out, last * 4);
    for (; out + 4 <= end; out += 4) wide_rows<4>(m, rows, out, y, stride, add);
    for (; out < end; out++) wide_rows<1>(m, rows, out, y, stride, add);
}
