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
#include <sys/syscall.h>
#include <unistd.h>
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
        Lanes tops{}, checks{};
        for (int64_t i = 0; i < in; i += LANES) {
            const Lanes v = i + LANES <= in ? load(x + i) : load_some(x + i, in - i);
            tops = larger(tops, v > 0 ? v : -v);
            checks += v * 0.0f;
        }
        const float most = largest(tops);
        const float step = most / 127.0f, inverse = most > 0 ? 127.0f / most : 0.0f;
        uint8_t *bytes = rows.bytes + r * rows.width;
        uint8_t *rest = rows.bytes + (rows.count + r) * rows.width;
        int64_t i = 0;
        for (; i < in; i++) {
            const float steps = x[i] * inverse;
            const float near = std::rint(steps);
            bytes[i] = static_cast<uint8_t>(static_cast<int>(near) + 128);
            if (careful) {
                const float fine = std::rint((steps - near) * REST);
                rest[i] = static_cast<uint8_t>(static_cast<int>(fine) + 128);
            }
        }
        for (; i < rows.width; i++) {
            bytes[i] = 128;
            if (careful) rest[i] = 128;
        }
        // A row that holds no number says so in its scale: none of its products is one.
        rows.scales[r] = step + sum(checks);
    }
}

// The weights that come next, while these are multiplied: rows that share weights take turns at it.
static inline void fetch(const void *weights) { __builtin_prefetch(weights, 0, 2); }

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

// What a panel's outputs are of integers: in floats, with their bias, where they belong.
typedef int32_t Panel __attribute__((vector_size(4 * PANEL)));
typedef float FloatPanel __attribute__((vector_size(4 * PANEL)));

static inline FloatPanel steps_of(const Matrix &m, int64_t panel, Panel found, int64_t count) {
    Panel shift{};
    std::memcpy(&shift, m.sums + panel * PANEL, count * 4);
    return __builtin_convertvector(found - shift, FloatPanel);
}

static inline void put(const Matrix &m, int64_t panel, FloatPanel steps, float scale, float *y,
                       bool add, int64_t count) {
    const int64_t out = panel * PANEL;
    FloatPanel scales{}, bias{}, before{};
    std::memcpy(&scales, m.scales + out, count * 4);
    if (m.bias) std::memcpy(&bias, m.bias + out, count * 4);
    if (add) std::memcpy(&before, y + out, count * 4);
    const FloatPanel total = before + (steps * (scale * scales) + bias);
    std::memcpy(y + out, &total, count * 4);
}

// `found[plane]` are the sums of products of a row's planes with a panel.
static inline void finish_panel(const Matrix &m, int64_t panel, const Panel *found, float scale,
                                float *y, bool add) {
    const int64_t count = std::min<int64_t>(PANEL, m.out - panel * PANEL);
    const auto finish = [&](int64_t outputs) {
        FloatPanel steps = steps_of(m, panel, found[0], outputs);
        if (m.careful) steps += steps_of(m, panel, found[1], outputs) / REST;
        put(m, panel, steps, scale, y, add, outputs);
    };
    count == PANEL ? finish(PANEL) : finish(count);
}

// Sums of products of COUNT rows of one plane with PANELS panels.
template <int PANELS, int COUNT>
static inline void multiply(const Matrix &m, const Rows &rows, int64_t plane, int64_t row,
                            int64_t panel, Panel (&sum_of)[COUNT][PANELS]) {
    const int64_t quads = rows.width / QUAD, length = rows.width * PANEL;
    const int8_t *w = static_cast<const int8_t *>(m.weights) + panel * length;
    const uint8_t *x = rows.plane(plane, row);
    const int64_t fetched = PANELS * row / rows.count;
    const int64_t fetching = PANELS * (row + COUNT) / rows.count;
    for (int r = 0; r < COUNT; r++)
        for (int p = 0; p < PANELS; p++) sum_of[r][p] = Panel{};
    for (int64_t q = 0; q < quads; q++) {
        for (int64_t p = fetched; p < fetching; p++)
            fetch(w + (PANELS + p) * length + q * PANEL * QUAD);
#if defined(__AVX512VNNI__)
        __m512i left[PANELS];
        for (int p = 0; p < PANELS; p++)
            left[p] = _mm512_loadu_si512(w + p * length + q * PANEL * QUAD);
        for (int r = 0; r < COUNT; r++) {
            int32_t four;
            std::memcpy(&four, x + r * rows.width + q * QUAD, 4);
            const __m512i right = _mm512_set1_epi32(four);
            for (int p = 0; p < PANELS; p++)
                sum_of[r][p] = (Panel)_mm512_dpbusd_epi32((__m512i)sum_of[r][p], right, left[p]);
        }
#else
        for (int p = 0; p < PANELS; p++)
            for (int r = 0; r < COUNT; r++)
                for (int o = 0; o < PANEL; o++)
                    for (int i = 0; i < QUAD; i++)
                        sum_of[r][p][o] += int32_t(x[r * rows.width + q * QUAD + i]) *
                                           w[p * length + (q * PANEL + o) * QUAD + i];
#endif
    }
}

// Narrow: 16 * PANELS outputs of COUNT rows.
template <int PANELS, int COUNT>
static inline void narrow_tile(const Matrix &m, const Rows &rows, int64_t row, int64_t panel,
                               float *y, int64_t stride, bool add) {
    Panel near[COUNT][PANELS], rest[COUNT][PANELS];
    multiply<PANELS, COUNT>(m, rows, 0, row, panel, near);
    if (m.careful) multiply<PANELS, COUNT>(m, rows, 1, row, panel, rest);
    for (int r = 0; r < COUNT; r++)
        for (int p = 0; p < PANELS; p++) {
            const Panel found[] = {near[r][p], m.careful ? rest[r][p] : Panel{}};
            finish_panel(m, panel + p, found, rows.scales[row + r], y + (row + r) * stride, add);
        }
}

#if defined(__AMX_INT8__)
// Tiles of 16 rows and 16 outputs, 64 inputs at a time: a panel lies as AMX wants its right side.
constexpr int64_t TILE_IN = 64, TILE_ROWS = 16;

// Whether the system lets this process use tiles; they are 8 KiB more of every thread's state.
static inline bool may_tile() {
    static const bool granted = syscall(SYS_arch_prctl, 0x1023, 18) == 0;  // ARCH_REQ_XCOMP_PERM
    return granted;
}

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};

    explicit TileConfig(int64_t count) {
        for (int tile = 0; tile < 6; tile++) {
            bytes[tile] = 64;
            rows[tile] = tile == 5 ? 16 : count;
        }
    }
};

// 64 outputs of up to 16 rows: sums in tiles 0 to 3, rows in 4, a panel in 5.
static inline void tiles(const Matrix &m, const Rows &rows, int64_t row, int64_t count,
                         int64_t panel, Panel (&found)[4][TILE_ROWS], int64_t plane) {
    const int64_t length = rows.width * PANEL;
    const int8_t *w = static_cast<const int8_t *>(m.weights) + panel * length;
    const uint8_t *x = rows.plane(plane, row);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t i = 0; i < rows.width; i += TILE_IN) {
        _tile_loadd(4, x + i, rows.width);
        const int8_t *at = w + i * PANEL;
        _tile_loadd(5, at, 64);
        _tile_dpbusd(0, 4, 5);
        _tile_loadd(5, at + length, 64);
        _tile_dpbusd(1, 4, 5);
        _tile_loadd(5, at + 2 * length, 64);
        _tile_dpbusd(2, 4, 5);
        _tile_loadd(5, at + 3 * length, 64);
        _tile_dpbusd(3, 4, 5);
    }
    _tile_stored(0, found[0], 64);
    _tile_stored(1, found[1], 64);
    _tile_stored(2, found[2], 64);
    _tile_stored(3, found[3], 64);
}

static inline void tile_rows(const Matrix &m, const Rows &rows, int64_t panel, int64_t first,
                             int64_t last, float *y, int64_t stride, bool add) {
    Panel near[4][TILE_ROWS], rest[4][TILE_ROWS];
    for (int64_t row = first, configured = 0; row < last; row += TILE_ROWS) {
        const int64_t count = std::min(TILE_ROWS, last - row);
        if (count != configured) {
            const TileConfig config(count);
            _tile_loadconfig(&config);
            configured = count;
        }
        tiles(m, rows, row, count, panel, near, 0);
        if (m.careful) tiles(m, rows, row, count, panel, rest, 1);
        for (int64_t r = 0; r < count; r++)
            for (int64_t p = 0; p < 4; p++) {
                const Panel found[] = {near[p][r], m.careful ? rest[p][r] : Panel{}};
                finish_panel(m, panel + p, found, rows.scales[row + r], y + (row + r) * stride,
                             add);
            }
    }
    _tile_release();
}
#endif

template <int PANELS>
static inline void narrow_rows(const Matrix &m, const Rows &rows, int64_t panel, int64_t first,
                               int64_t last, float *y, int64_t stride, bool add) {
#if defined(__AMX_INT8__)
    if (PANELS == 4 && last - first >= TILE_ROWS && rows.width % TILE_IN == 0 && may_tile())
        return tile_rows(m, rows, panel, first, last, y, stride, add);
#endif
    int64_t r = first;
    for (; r + 6 <= last; r += 6) narrow_tile<PANELS, 6>(m, rows, r, panel, y, stride, add);
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
