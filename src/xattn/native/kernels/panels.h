// Products with int8 weights, which have one scale per output.
//
// They are laid out [out / 16, in / 4, 16, 4], as VNNI's dot products read them. Rows are quantised
// to 8 bits with one scale each; those of a matrix that is `careful` to 15 bits, by two products:
// outliers in a row then cost its other numbers nothing.
#pragma once

#include "rows.h"

#if defined(__AMX_INT8__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

static inline FloatPanel steps_of(const Matrix &m, int64_t panel, Panel found, int64_t count) {
    Panel shift{};
    std::memcpy(&shift, m.sums + panel * PANEL, count * 4);
    return __builtin_convertvector(found - shift, FloatPanel);
}

// `found[plane]` are the sums of products of a row's planes with a panel.
static inline void finish_panel(const Matrix &m, int64_t panel, const Panel *found, float scale,
                                float *y, bool add) {
    const int64_t count = std::min<int64_t>(PANEL, m.out - panel * PANEL);
    const auto finish = [&](int64_t outputs) {
        FloatPanel steps = steps_of(m, panel, found[0], outputs);
        if (m.careful) steps += steps_of(m, panel, found[1], outputs) / REST;
        FloatPanel scales{};
        std::memcpy(&scales, m.scales + panel * PANEL, outputs * 4);
        put(m, panel, steps * (scale * scales), y, add, outputs);
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

// 16 * PANELS outputs of COUNT rows.
template <int PANELS, int COUNT>
static inline void panel_tile(const Matrix &m, const Rows &rows, int64_t row, int64_t panel,
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
static inline void panel_rows(const Matrix &m, const Rows &rows, int64_t panel, int64_t first,
                              int64_t last, float *y, int64_t stride, bool add) {
#if defined(__AMX_INT8__)
    if (PANELS == 4 && last - first >= TILE_ROWS && rows.width % TILE_IN == 0 && may_tile())
        return tile_rows(m, rows, panel, first, last, y, stride, add);
#endif
    int64_t r = first;
    for (; r + 6 <= last; r += 6) panel_tile<PANELS, 6>(m, rows, r, panel, y, stride, add);
    for (; r + 5 <= last; r += 5) panel_tile<PANELS, 5>(m, rows, r, panel, y, stride, add);
    for (; r + 4 <= last; r += 4) panel_tile<PANELS, 4>(m, rows, r, panel, y, stride, add);
    for (; r + 2 <= last; r += 2) panel_tile<PANELS, 2>(m, rows, r, panel, y, stride, add);
    for (; r < last; r++) panel_tile<PANELS, 1>(m, rows, r, panel, y, stride, add);
}
