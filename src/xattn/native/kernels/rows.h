// Rows on their way into products, and what panels of outputs make of them.
#pragma once

#include <algorithm>

#include "lanes.h"

constexpr int PANEL = 16;    // outputs that stand together in narrow weights
constexpr int64_t QUAD = 4;  // inputs that stand together in int8 ones
constexpr int64_t GROUP = 32;  // inputs that share a step and a least number in int4 ones

enum Bits : int64_t { INT4_BITS = 4, INT8_BITS = 8, FLOAT_BITS = 32 };

// Weights [out, in]: float32 as the checkpoint has them, or narrow: panels.h and nibbles.h say how.
struct Matrix {
    const void *weights;
    const float *scales;   // [out] of int8
    const int32_t *sums;   // [out] of int8: 128 times the sum of an output's weights
    const float *bias;     // [out] or null
    int64_t in, out;
    int64_t bits;
    int64_t careful;       // rows are quantised twice, the second time what the first left
};

static inline int64_t whole(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }
static inline bool is_narrow(const Matrix &m) { return m.bits != FLOAT_BITS; }

// Numbers of a row on its way into narrow weights: filled up with zeros.
static inline int64_t padded(int64_t in, int64_t bits) {
    const int64_t unit = bits == INT4_BITS ? GROUP : QUAD;
    return whole(in, unit) * unit;
}

// Bytes of so many of them, quantised.
static inline int64_t quantised_bytes(int64_t rows, int64_t in) {
    const int64_t width = whole(in, GROUP) * GROUP;
    return rows * (2 * width + width / GROUP * int64_t(sizeof(float)));
}

struct Rows {
    const float *x;         // [count, stride]
    int64_t stride, count;
    uint8_t *bytes;         // [planes, count, width]: x / scale, then the rest, if careful
    float *scales;          // [count]
    int64_t width;          // padded(in)

    const uint8_t *plane(int64_t which, int64_t row) const {
        return bytes + (which * count + row) * width;
    }
    // Of int4: what the numbers of each group add up to, in steps; [count, width / GROUP].
    float *sums(int64_t row) const {
        return reinterpret_cast<float *>(bytes + 2 * count * width) + row * (width / GROUP);
    }
};

constexpr float REST = 254.0f;  // steps of the second quantisation in one of the first
constexpr float NIL = 1e-30f;   // a row of no larger numbers is one of zeros

// Quantise rows `first` to `last` as the matrix wants them; what does not fill a unit is zero. VNNI
// multiplies bytes without a sign with bytes that have one: beside int8 weights it is the rows that
// go without, shifted by 128.
static inline void quantise(Rows &rows, const Matrix &m, int64_t first, int64_t last) {
    const int64_t in = m.in;
    const int shift = m.bits == INT8_BITS ? 128 : 0;
    for (int64_t r = first; r < last; r++) {
        const float *x = rows.x + r * rows.stride;
        Lanes tops{}, checks{};
        for (int64_t i = 0; i < in; i += LANES) {
            const Lanes v = i + LANES <= in ? load(x + i) : load_some(x + i, in - i);
            tops = larger(tops, v > 0 ? v : -v);
            checks += v * 0.0f;
        }
        const float most = largest(tops);
        const float step = most / 127.0f, inverse = most > NIL ? 127.0f / most : 0.0f;
        uint8_t *bytes = rows.bytes + r * rows.width;
        uint8_t *rest = rows.bytes + (rows.count + r) * rows.width;
        int64_t i = 0;
        for (; i < in; i++) {
            const float steps = x[i] * inverse;
            const float near = std::rint(steps);
            bytes[i] = static_cast<uint8_t>(static_cast<int>(near) + shift);
            if (m.careful) {
                const float fine = std::rint((steps - near) * REST);
                rest[i] = static_cast<uint8_t>(static_cast<int>(fine) + shift);
            }
        }
        for (; i < rows.width; i++) {
            bytes[i] = shift;
            if (m.careful) rest[i] = shift;
        }
        if (m.bits == INT4_BITS)
            for (int64_t g = 0; g < rows.width / GROUP; g++) {
                int32_t near = 0, fine = 0;
                for (i = g * GROUP; i < (g + 1) * GROUP; i++) {
                    near += static_cast<int8_t>(bytes[i]);
                    fine += static_cast<int8_t>(rest[i]);
                }
                rows.sums(r)[g] = near + fine / REST;
            }
        // A row that holds no number says so in its scale: none of its products is one.
        rows.scales[r] = step + sum(checks);
    }
}

// The outputs of a panel.
typedef int32_t Panel __attribute__((vector_size(4 * PANEL)));
typedef float FloatPanel __attribute__((vector_size(4 * PANEL)));

// What a panel's outputs are of one row, with their bias, where they belong.
static inline void put(const Matrix &m, int64_t panel, FloatPanel total, float *y, bool add,
                       int64_t count) {
    const int64_t out = panel * PANEL;
    FloatPanel bias{}, before{};
    if (m.bias) std::memcpy(&bias, m.bias + out, count * 4);
    if (add) std::memcpy(&before, y + out, count * 4);
    total = before + (total + bias);
    std::memcpy(y + out, &total, count * 4);
}
