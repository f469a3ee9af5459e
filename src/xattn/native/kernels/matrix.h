// Products of a few rows with a weight matrix, read once from memory whatever the number of rows.
//
// Wide weights are [out, in] float32, as the checkpoint has them. Narrow weights are int8 with one
// scale per output, laid out [out / 16, in / 4, 16, 4] as VNNI's dot products read them; rows are
// then quantised to 8 bits on the way in, with one scale per row. A matrix that is `careful` has
// its rows quantised twice, the second time what the first left, which is 15 bits: outliers in a
// row then cost its other numbers nothing.
#pragma once

#include <algorithm>

#include "lanes.h"

#if defined(__AVX512VNNI__)
#include <immintrin.h>
#endif

constexpr int PANEL = 16;   // outputs that stand together in narrow weights
constexpr int64_t QUAD = 4;  // inputs that stand together in them

struct Matrix {
    const void *weights;
    const float *scales;   // [out] of narrow weights; null for wide ones
    const int32_t *sums;   // [out]: 128 times the sum of an output's narrow weights
    const float *bias;     // [out] or null
    int64_t in, out;
    int64_t careful;
};

static inline int64_t whole(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }
static inline int64_t padded(int64_t in) { return whole(in, QUAD) * QUAD; }

// Rows on their way into a product.
struct Rows {
    const float *x;         // [count, stride]
    int64_t stride, count;
    uint8_t *bytes;         // [count, padded(in)]: 128 + x / scale; then the rest, if careful
    float *scales;          // [count]
    int64_t width;          // padded(in)

    const uint8_t *plane(int64_t which, int64_t row) const {
        return bytes + (which * count + row) * width;
    }
};

constexpr float REST = 254.0f;  // steps of the second quantisation in one of the first

// Quantise rows `first` to `last`; what does not fill a quad is zero.
static inline void quantise(Rows &rows, int64_t in, bool careful, int64_t first, int64_t last) {
    for (int64_t r = first; r < last; r++) {
        const float *x = rows.x + r * rows.stride;
        float most = 0.0f;
        int64_t i = 0;
        Lanes tops{};
        for (; i + LANES <= in; i += LANES) {
            const Lanes v = load(x + i);
            tops = larger(tops, v > 0 ? v : -v);
        }
        most = largest(tops);
        for (; i < in; i++) most = std::max(most, std::fabs(x[i]));
        const float step = most / 127.0f, inverse = most > 0 ? 127.0f / most : 0.0f;
        uint8_t *bytes = rows.bytes + r * rows.width;
        uint8_t *rest = rows.bytes + (rows.count + r) * rows.width;
        const float shift = 12582912.0f;  // rounds to the nearest, as the vector code does
        for (i = 0; i < in; i++) {
            const float steps = x[i] * inverse;
            const float near = (steps + shift) - shift;
            bytes[i] = static_cast<uint8_t>(static_cast<int>(near) + 128);
            if (careful) {
                const float fine = ((steps - near) * REST + shift) - shift;
                rest[i] = static_cast<uint8_t>(static_cast<int>(fine) + 128);
            }
        }
        for (; i < rows.width; i++) {
            bytes[i] = 128;
            if (careful) rest[i] = 128;
        }
        // A row that holds no number says so in its scale: none of its products is one.
        float check = 0.0f;
        for (i = 0; i < in; i++) check += x[i] * 0.0f;
        rows.scales[r] = step + check;
    }
}

// Wide: OUT outputs of COUNT rows.
template <int OUT, int COUNT>
static inline void wide_tile(const Matrix &m, const Rows &rows, int64_t row, int64_t out, float *y,
                             int64_t stride, bool add) {
    const float *w = static_cast<const float *>(m.weights) + out * m.in;
    const float *x = rows.x + row * rows.stride;
    Lanes sum_of[COUNT * OUT] = {};
    int64_t k = 0;
    for (; k + LANES <= m.in; k += LANES) {
        Lanes left[OUT];
        for (int o = 0; o < OUT; o++) left[o] = load(w + o * m.in + k);
        for (int r = 0; r < COUNT; r++) {
            const Lanes right = load(x + r * rows.stride + k);
            for (int o = 0; o < OUT; o++) sum_of[r * OUT + o] += left[o] * right;
        }
    }
    for (int r = 0; r < COUNT; r++) {
        const Lanes totals = sums<OUT>(sum_of + r * OUT);
        for (int o = 0; o < OUT; o++) {
            float total = totals[o];
            for (int64_t i = k; i < m.in; i++) total += w[o * m.in + i] * x[r * rows.stride + i];
            if (m.bias) total += m.bias[out + o];
            float &place = y[(row + r) * stride + out + o];
            place = add ? place + total : total;
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

// Narrow: 16 * PANELS outputs of COUNT rows.
template <int PANELS, int COUNT>
static inline void narrow_tile(const Matrix &m, const Rows &rows, int64_t row, int64_t panel,
                               float *y, int64_t stride, bool add) {
    const int64_t quads = rows.width / QUAD, length = rows.width * PANEL;
    const int8_t *w = static_cast<const int8_t *>(m.weights) + panel * length;
    const int planes = m.careful ? 2 : 1;
    float totals[COUNT][PANELS * PANEL];
    for (int plane = 0; plane < planes; plane++) {
        const uint8_t *x = rows.plane(plane, row);
        alignas(64) int32_t found[COUNT][PANELS][PANEL];
#if defined(__AVX512VNNI__)
        __m512i sum_of[COUNT][PANELS];
        for (int r = 0; r < COUNT; r++)
            for (int p = 0; p < PANELS; p++) sum_of[r][p] = _mm512_setzero_si512();
        for (int64_t q = 0; q < quads; q++) {
            __m512i left[PANELS];
            for (int p = 0; p < PANELS; p++)
                left[p] = _mm512_loadu_si512(w + p * length + q * PANEL * QUAD);
            for (int r = 0; r < COUNT; r++) {
                int32_t four;
                std::memcpy(&four, x + r * rows.width + q * QUAD, 4);
                const __m512i right = _mm512_set1_epi32(four);
                for (int p = 0; p < PANELS; p++)
                    sum_of[r][p] = _mm512_dpbusd_epi32(sum_of[r][p], right, left[p]);
            }
        }
        for (int r = 0; r < COUNT; r++)
            for (int p = 0; p < PANELS; p++) _mm512_store_si512(found[r][p], sum_of[r][p]);
#else
        std::memset(found, 0, sizeof found);
        for (int p = 0; p < PANELS; p++)
            for (int64_t q = 0; q < quads; q++)
                for (int r = 0; r < COUNT; r++) {
                    const int8_t *left = w + p * length + q * PANEL * QUAD;
                    const uint8_t *right = x + r * rows.width + q * QUAD;
                    for (int o = 0; o < PANEL; o++)
                        for (int i = 0; i < QUAD; i++)
                            found[r][p][o] += int32_t(right[i]) * left[o * QUAD + i];
                }
#endif
        for (int r = 0; r < COUNT; r++)
            for (int p = 0; p < PANELS; p++)
                for (int o = 0; o < PANEL; o++) {
                    const int64_t out = (panel + p) * PANEL + o;
                    const float steps = static_cast<float>(found[r][p][o] - m.sums[out]);
                    float &total = totals[r][p * PANEL + o];
                    total = plane == 0 ? steps : total + steps / REST;
                }
    }
    for (int r = 0; r < COUNT; r++) {
        const float scale = rows.scales[row + r];
        const int64_t first = panel * PANEL, last = std::min(m.out, first + PANELS * PANEL);
        for (int64_t out = first; out < last; out++) {
            float total = totals[r][out - first] * (scale * m.scales[out]);
            if (m.bias) total += m.bias[out];
            float &place = y[(row + r) * stride + out];
            place = add ? place + total : total;
        }
    }
}

template <int PANELS>
static inline void narrow_rows(const Matrix &m, const Rows &rows, int64_t panel, int64_t first,
                               int64_t last, float *y, int64_t stride, bool add) {
    int64_t r = first;
    constexpr int MOST = PANELS == 2 ? 12 : 6;
    for (; r + MOST <= last; r += MOST)
        narrow_tile<PANELS, MOST>(m, rows, r, panel, y, stride, add);
    for (; r + 5 <= last; r += 5) narrow_tile<PANELS, 5>(m, rows, r, panel, y, stride, add);
    for (; r + 4 <= last; r += 4) narrow_tile<PANELS, 4>(m, rows, r, panel, y, stride, add);
    for (; r + 2 <= last; r += 2) narrow_tile<PANELS, 2>(m, rows, r, panel, y, stride, add);
    for (; r < last; r++) narrow_tile<PANELS, 1>(m, rows, r, panel, y, stride, add);
}

// Outputs are shared out among threads in blocks of so many.
static inline int64_t block_of(const Matrix &m) { return m.scales ? 4 * PANEL : 4; }
static inline int64_t blocks(const Matrix &m) { return whole(m.out, block_of(m)); }

// y[row, out] = x Wᵀ + bias (or += that), for the outputs of blocks `first` to `last`.
static inline void product(const Matrix &m, const Rows &rows, int64_t first, int64_t last, float *y,
                           int64_t stride, bool add) {
    if (m.scales) {
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
