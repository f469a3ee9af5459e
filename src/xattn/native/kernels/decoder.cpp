// One forward pass of a decoder for a few tokens of every row: all layers, one parallel region.
//
// The work is cut into phases, and each phase into chunks: of outputs (products), of heads
// (attention) or of rows (norms). A thread takes the next chunk that nobody has, and goes on to the
// next phase when all chunks are done. A thread that the system has put aside is not waited for
// unless it holds a chunk: on a busy machine, barriers would wait for it a hundred times a step.
// Nothing is allocated: the caller gives the workspace.
//
// Axes: R rows, T tokens of each, M = R * T, D model width, H heads, G key/value heads, K head
// width, S positions of a memory, V vocabulary.
#include <atomic>
#include <chrono>
#include <omp.h>
#include <sched.h>
#include <vector>

#include "lanes.h"
#include "likeliest.h"
#include "matrix.h"
#include "softmax.h"

enum NormKind : int64_t { NO_NORM, LAYER_NORM, RMS_NORM };
enum Activation : int64_t { RELU, GELU, GELU_TANH, SILU, TANH, SIGMOID, QUICK_GELU };

struct Norm {
    int64_t kind;
    const float *weight, *bias;
    float eps;
};

struct Attention {
    Matrix q, k, v, o;
    Norm q_norm, k_norm;
    int64_t heads, groups, width, rotary;
    float scale;
};

struct Layer {
    Norm self_norm, cross_norm, ffn_norm;
    Attention self, cross;
    Matrix up, gate, down;
    int64_t crosses, crosses_first, gated, activation;
    const float *cross_gate;  // tanh of it is how much of what memories give counts; null: all
};

struct Decoder {
    int64_t layers, width, vocabulary, norm_first, goes_on;
    const Layer *layer;
    Matrix embedding, head;
    Norm embedding_norm, final_norm;
    float embedding_scale, head_scale;
    const float *relative;    // [buckets, H]: bias of keys by their bucket; null without
    const int32_t *bucket_of; // [distances]: by how far back a key is; farther ones as the last
    int64_t distances;
};

// The self-attention cache: of layer l, numbers of key or value, row r, group g and place c begin at
// layers[l] + which * kind_stride + r * row_stride + g * group_stride + c * K.
struct Cache {
    float *const *layers;
    int64_t kind_stride, row_stride, group_stride;
    const int32_t *lengths;   // [R] tokens seen before
    const int32_t *places;    // [R, places_stride] the physical row of every token seen; or null
    int64_t places_stride;
    const int32_t *own;       // [R] the physical row that new tokens are written to; or null
};

enum Numbers : int64_t { FLOAT, INT8 };

// A memory as one layer reads it. Positions of a group stand `stride` numbers apart, and groups
// `group` numbers; those of int8 have a scale each, `scale_group` apart from one group to the next.
struct Segment {
    const void *keys, *values;
    const float *key_scales, *value_scales;
    int64_t key_group, key_stride, value_group, value_stride, scale_group;
};

// Absorbed attention: the layer's projections, [heads of keys, K, D], applied on the query side.
struct Absorption {
    const float *keys, *values, *value_bias;
};

struct Reads {
    int64_t memories, numbers, absorbed, layers;
    const Segment *segments;       // [layers that read, memories]
    const Absorption *absorption;  // [layers that read]
    const int64_t *positions;      // [memories]
    const uint8_t *const *masks;   // [memories], [S] each, null where all may be read
    const int64_t *first;          // [memories + 1] into `rows`
    const int64_t *rows;           // the rows that read each memory
    const float *turns;            // [reads, 2, K/2] cosines and sines, over the temperature, that
                                   // what a row asks of a memory is turned by; null: it is asked as
                                   // it is
    const uint8_t *weighed;        // [reads] is it one of those that `scales` is for?
    const float *scales;           // [R] of the log-sum-exp of all weighed; null: none is
};

struct Step {
    const Decoder *decoder;
    const Cache *cache;
    const Reads *reads;
    const int64_t *tokens;     // [R, T]
    int64_t R, T;
    const float *positions;    // [M, D] added to the embeddings, or null
    const float *cosines, *sines;  // [M, K] of a rotary decoder
    float *hidden;             // [M, D]
    float *logits;             // [wanted, V]
    const int64_t *wanted;     // which of the M tokens get logits
    int64_t wanted_count;
    int64_t threads;
    uint8_t *workspace;
    int64_t workspace_bytes;
    int64_t *times;  // nanoseconds of each part are added here; null: nobody counts
};

enum Part { SELF_ATTENTION, CROSS_ATTENTION, FEED_FORWARD, VOCABULARY };

namespace {

// Hands out the workspace; measures it where there is none.
struct Arena {
    uint8_t *base;
    int64_t used = 0;

    template <typename T>
    T *take(int64_t count) {
        const int64_t at = used;
        used += whole(count * int64_t(sizeof(T)), 64) * 64;
        return base ? reinterpret_cast<T *>(base + at) : nullptr;
    }
};

// A stretch of one memory's positions, read by all rows that share it.
struct Stretch {
    int64_t memory, from, to;
    int64_t part;  // of each row's readings, the one that it gives
};

// One phase: the next chunk to take, and how many are done.
struct alignas(64) Phase {
    std::atomic<int64_t> next, done;
};

// A thread on its way through the phases, which all threads meet in the same order.
struct Worker {
    Phase *phase;
    int64_t me;

    template <typename Work>
    void share(int64_t chunks, Work work) {
        Phase &p = *phase++;
        for (int64_t c; (c = p.next.fetch_add(1, std::memory_order_relaxed)) < chunks;) {
            work(c);
            p.done.fetch_add(1, std::memory_order_release);
        }
        for (int64_t spins = 1; p.done.load(std::memory_order_acquire) < chunks; spins++)
            if (spins % PATIENCE == 0) sched_yield();
    }

    static constexpr int64_t PATIENCE = 2000;  // looks before another thread is let onto the core
};

// Adds what has passed since the last time to a part's nanoseconds, if anyone counts.
struct Stopwatch {
    using Clock = std::chrono::steady_clock;
    int64_t *times;
    Clock::time_point since = times ? Clock::now() : Clock::time_point{};

    void end(Part part) {
        if (!times) return;
        const auto now = Clock::now();
        times[part] += std::chrono::duration_cast<std::chrono::nanoseconds>(now - since).count();
        since = now;
    }
};

constexpr int64_t PHASES = 20;           // at most in a layer
constexpr int64_t CHUNK = 128 << 10;     // bytes of weights that a chunk reads, or more
constexpr int64_t STRETCH = 256;         // positions at least in a stretch
constexpr int64_t LINE = 64;             // bytes that memory hands over at once

// How memories are cut, kept from step to step for its room only.
thread_local std::vector<Stretch> stretches;
thread_local std::vector<int64_t> row_parts;  // [R] readings of each row
thread_local std::vector<uint8_t> weighed_parts;  // [R, parts] of them, those that are weighed

struct Pass {
    const Step &step;
    const Decoder &d;
    const int64_t R, T, M, threads;
    // Widths of the buffers: the largest over the layers.
    int64_t inner = 0, kv_inner = 0, ffn = 0, heads = 0, head_width = 0, read_width = 0;
    int64_t parts = 1, sharing = 1;

    float *x, *normed, *queries, *keys, *values, *mixed, *wide, *gate, *reach;
    uint8_t *input_bytes;       // rows on their way into a product
    float *input_scales;
    Reading *readings;          // [M, heads, parts]
    float *read_values;         // [parts, M, heads, read_width]
    const Stretch *stretch;     // thread-local to the caller, and read by all
    const int64_t *row_part;
    const uint8_t *part_weighed;
    int64_t stretch_count = 0;
    float **thread_pointers;
    float *thread_numbers;
    Reading *thread_readings;
    Phase *phases;
    int64_t pointer_count = 0, number_count = 0, phase_count = 0;

    explicit Pass(const Step &s)
        : step(s), d(*s.decoder), R(s.R), T(s.T), M(s.R * s.T), threads(s.threads) {
        for (int64_t l = 0; l < d.layers; l++) {
            const Layer &layer = d.layer[l];
            widen(layer.self);
            if (layer.crosses) widen(layer.cross);
            ffn = std::max(ffn, layer.up.out);
        }
        read_width = step.reads && step.reads->absorbed ? step.reads->absorbed : head_width;
        if (step.reads) cut();
    }

    void widen(const Attention &a) {
        inner = std::max(inner, a.heads * a.width);
        kv_inner = std::max(kv_inner, a.groups * a.width);
        heads = std::max(heads, a.heads);
        head_width = std::max(head_width, a.width);
    }

    // Cut memories so that every thread has something to read. Rows that share a memory keep what it
    // gives at one place among their readings; a row may leave places empty.
    void cut() {
        const Reads &reads = *step.reads;
        const Attention &a = d.goes_on ? d.layer[0].self : crossing();
        const int64_t groups = reads.absorbed ? 1 : a.groups;
        const int64_t pieces = whole(2 * threads, std::max<int64_t>(1, reads.memories * groups));
        stretches.clear();
        row_parts.assign(R, d.goes_on ? 1 : 0);
        for (int64_t m = 0; m < reads.memories; m++) {
            const int64_t S = reads.positions[m];
            const int64_t *first = reads.rows + reads.first[m];
            const int64_t *last = reads.rows + reads.first[m + 1];
            sharing = std::max<int64_t>(sharing, last - first);
            const int64_t size = whole(std::max(STRETCH, whole(S, pieces)), BLOCK) * BLOCK;
            int64_t part = 0;
            for (auto row = first; row < last; row++) part = std::max(part, row_parts[*row]);
            for (int64_t from = 0; from < S; from += size)
                stretches.push_back({m, from, std::min(S, from + size), part++});
            for (auto row = first; row < last; row++) row_parts[*row] = part;
            parts = std::max(parts, part);
        }
        weighed_parts.assign(reads.scales ? R * parts : 0, 0);
        if (reads.scales)
            for (const Stretch &s : stretches)
                for (int64_t i = reads.first[s.memory]; i < reads.first[s.memory + 1]; i++)
                    weighed_parts[reads.rows[i] * parts + s.part] = reads.weighed[i];
    }

    const Attention &crossing() const {
        const Layer *layer = d.layer;
        while (!layer->crosses) layer++;
        return layer->cross;
    }

    int64_t lay_out(uint8_t *base) {
        Arena arena{base};
        x = step.hidden;
        const int64_t D = d.width;
        normed = arena.take<float>(M * D);
        queries = arena.take<float>(M * inner);
        keys = arena.take<float>(M * kv_inner);
        values = arena.take<float>(M * kv_inner);
        mixed = arena.take<float>(M * inner);
        wide = arena.take<float>(M * ffn);
        gate = arena.take<float>(M * ffn);
        input_bytes = arena.take<uint8_t>(quantised_bytes(M, std::max({D, inner, ffn})));
        input_scales = arena.take<float>(M);
        const bool absorbed = step.reads && step.reads->absorbed;
        reach = arena.take<float>(absorbed ? M * heads * read_width : 0);
        readings = arena.take<Reading>(M * heads * parts);
        const bool apart = step.reads != nullptr;
        read_values = arena.take<float>(apart ? M * heads * parts * read_width : 0);
        const int64_t most_queries = sharing * T * heads;
        const bool narrow = step.reads && step.reads->numbers == INT8;
        pointer_count = most_queries + 2 * BLOCK;
        const bool turned = step.reads && step.reads->turns;
        number_count = most_queries * BLOCK + T * heads * BLOCK + LANES +
                       (narrow ? 2 * BLOCK * read_width : 0) +
                       (turned ? most_queries * head_width : 0);
        thread_pointers = arena.take<float *>(threads * pointer_count);
        thread_numbers = arena.take<float>(threads * number_count);
        thread_readings = arena.take<Reading>(threads * most_queries);
        phase_count = PHASES * (d.layers + 1);
        phases = arena.take<Phase>(phase_count);
        return arena.used;
    }

    void run() {
        stretch = stretches.data();
        row_part = row_parts.data();
        part_weighed = weighed_parts.data();
        stretch_count = step.reads ? stretches.size() : 0;
        for (int64_t i = 0; i < M * heads * parts; i++) readings[i].top = NOTHING;
        for (int64_t i = 0; i < phase_count; i++) phases[i].next = phases[i].done = 0;
#pragma omp parallel num_threads(threads)
        {
            Worker w{phases, omp_get_thread_num()};
            Stopwatch watch{w.me == 0 ? step.times : nullptr};
            w.share(M, [&](int64_t m) { embed(m); });
            watch.end(VOCABULARY);
            for (int64_t l = 0, reading = 0; l < d.layers; l++) {
                const Layer &layer = d.layer[l];
                for (int64_t first : {1, 0}) {
                    if (first != layer.crosses_first) {
                        attend_self(w, layer, l);
                        watch.end(SELF_ATTENTION);
                    } else if (layer.crosses) {
                        attend_memories(w, layer, reading++);
                        watch.end(CROSS_ATTENTION);
                    }
                }
                feed_forward(w, layer);
                watch.end(FEED_FORWARD);
            }
            if (d.final_norm.kind != NO_NORM)
                w.share(M, [&](int64_t m) { norm(d.final_norm, x + m * d.width, x + m * d.width, d.width); });
            if (step.wanted_count) head(w);
            watch.end(VOCABULARY);
        }
    }

    // Everything below runs in all threads at once.

    void embed(int64_t m) {
        const int64_t D = d.width;
        float *to = x + m * D;
        embedding_of(step.tokens[m], to);
        for (int64_t i = 0; i < D; i++) {
            to[i] *= d.embedding_scale;
            if (step.positions) to[i] += step.positions[m * D + i];
        }
        if (d.embedding_norm.kind != NO_NORM) norm(d.embedding_norm, to, to, D);
    }

    void embedding_of(int64_t token, float *to) const {
        const Matrix &table = d.embedding;
        if (!is_narrow(table)) {
            std::memcpy(to, static_cast<const float *>(table.weights) + token * table.in,
                        table.in * sizeof(float));
            return;
        }
        const int64_t width = padded(table.in, table.bits);
        const int8_t *panel = static_cast<const int8_t *>(table.weights) +
                              token / PANEL * PANEL * width + token % PANEL * QUAD;
        for (int64_t i = 0; i < table.in; i++)
            to[i] = panel[i / QUAD * PANEL * QUAD + i % QUAD] * table.scales[token];
    }

    static void norm(const Norm &n, const float *from, float *to, int64_t width) {
        float mean = 0.0f;
        if (n.kind == LAYER_NORM) {
            Lanes total{};
            int64_t i = 0;
            for (; i + LANES <= width; i += LANES) total += load(from + i);
            mean = sum(total);
            for (; i < width; i++) mean += from[i];
            mean /= width;
        }
        Lanes squares{};
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES) {
            const Lanes v = load(from + i) - mean;
            squares += v * v;
        }
        float square = sum(squares);
        for (; i < width; i++) square += (from[i] - mean) * (from[i] - mean);
        const float scale = 1.0f / std::sqrt(square / width + n.eps);
        for (i = 0; i < width; i++) {
            to[i] = (from[i] - mean) * scale * n.weight[i];
            if (n.bias) to[i] += n.bias[i];
        }
    }

    Rows rows_of(const Matrix &m, const float *from, int64_t stride, int64_t count) const {
        return {from, stride, count, input_bytes, input_scales, padded(m.in, m.bits)};
    }

    // The rows that the next products read: normed where the norm stands before, and quantised
    // where their matrix wants them so.
    Rows enter(Worker &w, const Norm &before, const Matrix &m) {
        Rows rows = rows_of(m, d.norm_first ? normed : x, d.width, M);
        if (d.norm_first || is_narrow(m))
            w.share(M, [&](int64_t row) {
                if (d.norm_first) norm(before, x + row * d.width, normed + row * d.width, d.width);
                if (is_narrow(m)) quantise(rows, m, row, row + 1);
            });
        return rows;
    }

    // Products of one input with several matrices, as if they were one; `then` sees to the outputs
    // of a matrix that were just made.
    template <int COUNT, typename Then>
    void products(Worker &w, const Matrix *const (&matrices)[COUNT], const Rows &rows,
                  float *const (&to)[COUNT], bool add, Then then) {
        int64_t total = 0, bytes = 0;
        for (const Matrix *m : matrices) {
            total += blocks(*m);
            bytes += m->in * m->out * m->bits / 8;
        }
        const int64_t chunks = std::min(total, std::max(2 * threads, bytes / CHUNK));
        w.share(chunks, [&](int64_t chunk) {
            const int64_t first = total * chunk / chunks, last = total * (chunk + 1) / chunks;
            int64_t before = 0;
            for (int i = 0; i < COUNT; i++) {
                const Matrix &m = *matrices[i];
                const int64_t from = std::max(first - before, int64_t(0));
                const int64_t end = std::min(last - before, blocks(m));
                if (from < end) {
                    product(m, rows, from, end, to[i], m.out, add);
                    then(from * block_of(m), std::min(m.out, end * block_of(m)));
                }
                before += blocks(m);
            }
        });
    }

    static void nothing(int64_t, int64_t) {}

    // x += x' Wᵀ, then the norm that stands after the residual, if it does.
    void leave(Worker &w, const Matrix &m, const float *from, const Norm &after) {
        Rows rows = rows_of(m, from, m.in, M);
        if (is_narrow(m)) w.share(M, [&](int64_t row) { quantise(rows, m, row, row + 1); });
        products<1>(w, {&m}, rows, {x}, true, nothing);
        if (!d.norm_first)
            w.share(M, [&](int64_t row) {
                norm(after, x + row * d.width, x + row * d.width, d.width);
            });
    }

    void attend_self(Worker &w, const Layer &layer, int64_t l) {
        const Attention &a = layer.self;
        const Rows rows = enter(w, layer.self_norm, a.q);
        products<3>(w, {&a.q, &a.k, &a.v}, rows, {queries, keys, values}, false, nothing);
        w.share(R * a.groups,
                [&](int64_t i) { read_own(a, l, i / a.groups, i % a.groups, w.me); });
        if (d.goes_on && step.reads) {
            read_stretches(w, a, l);
            w.share(M * a.heads, [&](int64_t i) { combine(a, nullptr, i); });
        }
        leave(w, a.o, mixed, layer.self_norm);
    }

    void turn(const Attention &a, const Norm &n, float *head, int64_t m) const {
        if (n.kind != NO_NORM) norm(n, head, head, a.width);
        if (!a.rotary) return;
        const int64_t half = a.width / 2;
        const float *cosine = step.cosines + m * a.width, *sine = step.sines + m * a.width;
        for (int64_t i = 0; i < half; i++) {
            const float first = head[i], second = head[i + half];
            head[i] = first * cosine[i] - second * sine[i];
            head[i + half] = second * cosine[i + half] + first * sine[i + half];
        }
    }

    // Write the new keys and values of one row and group, and read all of them.
    void read_own(const Attention &a, int64_t l, int64_t r, int64_t g, int64_t me) {
        const Cache &c = *step.cache;
        const int64_t K = a.width, per_group = a.heads / a.groups, before = c.lengths[r];
        float *of_layer = c.layers[l] + g * c.group_stride;
        float *own = of_layer + (c.own ? c.own[r] : r) * c.row_stride;
        for (int64_t t = 0; t < T; t++) {
            const int64_t m = r * T + t;
            float *key = keys + (m * a.groups + g) * K;
            turn(a, a.k_norm, key, m);
            std::memcpy(own + (before + t) * K, key, K * sizeof(float));
            std::memcpy(own + c.kind_stride + (before + t) * K, values + (m * a.groups + g) * K,
                        K * sizeof(float));
        }
        float **pointers = thread_pointers + me * pointer_count;
        float **key_at = pointers, **value_at = pointers + BLOCK, **query_at = pointers + 2 * BLOCK;
        float *scores = thread_numbers + me * number_count;
        float *bias = scores + sharing * T * heads * BLOCK;
        Reading *found = thread_readings + me * sharing * T * heads;
        const int number = static_cast<int>(T * per_group);
        const bool merged_later = d.goes_on && step.reads;
        for (int64_t t = 0, i = 0; t < T; t++)
            for (int64_t h = g * per_group; h < (g + 1) * per_group; h++, i++) {
                const int64_t m = r * T + t;
                query_at[i] = queries + (m * a.heads + h) * K;
                turn(a, a.q_norm, query_at[i], m);
                found[i] = {};
                found[i].values = merged_later ? read_values + (m * a.heads + h) * read_width
                                               : mixed + (m * a.heads + h) * K;
                std::fill_n(found[i].values, K, 0.0f);
            }
        const int64_t end = before + T;
        const bool biased = d.relative || T > 1;
        for (int64_t from = 0; from < end; from += BLOCK) {
            const int count = static_cast<int>(std::min<int64_t>(BLOCK, end - from));
            for (int s = 0; s < count; s++) {
                const int64_t at = from + s;
                const float *row = own;
                if (c.places && at < before)
                    row = of_layer + c.places[r * c.places_stride + at] * c.row_stride;
                key_at[s] = const_cast<float *>(row) + at * K;
                value_at[s] = key_at[s] + c.kind_stride;
            }
            if (biased)
                for (int64_t i = 0; i < number; i++)
                    for (int s = 0; s < count; s++) {
                        const int64_t back = before + i / per_group - (from + s);
                        const int64_t h = g * per_group + i % per_group;
                        const int64_t near = std::min(back, d.distances - 1);
                        bias[i * BLOCK + s] = back < 0 ? NOTHING
                                              : d.relative
                                                  ? d.relative[d.bucket_of[near] * a.heads + h]
                                                  : 0.0f;
                    }
            fold(query_at, found, number, key_at, value_at, count, K, K, a.scale,
                 biased ? bias : nullptr, BLOCK, scores);
        }
        for (int64_t i = 0; i < number; i++) {
            const int64_t m = r * T + i / per_group, h = g * per_group + i % per_group;
            if (merged_later) {
                readings[(m * a.heads + h) * parts] = found[i];
                continue;
            }
            finish(found[i].values, found[i].total, query_at[i], K);
        }
    }

    // Divide by the sum of the weights. A query that is no number shows in what it reads.
    static void finish(float *values, float total, const float *query, int64_t width) {
        const float share = total > 0.0f ? 1.0f / total : (total == 0.0f ? 0.0f : total);
        for (int64_t i = 0; i < width; i++) values[i] = values[i] * share + query[i] * 0.0f;
    }

    void attend_memories(Worker &w, const Layer &layer, int64_t reading) {
        const Attention &a = layer.cross;
        const Rows rows = enter(w, layer.cross_norm, a.q);
        products<1>(w, {&a.q}, rows, {queries}, false, nothing);
        const bool absorbed = step.reads && step.reads->absorbed;
        const Absorption *absorption = absorbed ? step.reads->absorption + reading : nullptr;
        if (a.q_norm.kind != NO_NORM || absorbed)
            w.share(M * a.heads, [&](int64_t i) {
                float *query = queries + i * a.width;
                if (a.q_norm.kind != NO_NORM) norm(a.q_norm, query, query, a.width);
                if (absorbed) reach_out(a, *absorption, i);
            });
        if (step.reads) read_stretches(w, a, reading);
        const float share = layer.cross_gate ? std::tanh(*layer.cross_gate) : 1.0f;
        w.share(M * a.heads, [&](int64_t i) {
            combine(a, absorption, i);
            if (layer.cross_gate)
                for (int64_t k = 0; k < a.width; k++) mixed[i * a.width + k] *= share;
        });
        leave(w, a.o, mixed, layer.cross_norm);
    }

    // A query as absorbed attention asks it: q Wk, [D].
    void reach_out(const Attention &a, const Absorption &absorption, int64_t item) {
        const int64_t D = read_width, K = a.width, g = item % a.heads / (a.heads / a.groups);
        const float *query = queries + item * K, *key = absorption.keys + g * K * D;
        float *to = reach + item * D;
        std::fill_n(to, D, 0.0f);
        for (int64_t k = 0; k < K; k++)
            for (int64_t i = 0; i < D; i++) to[i] += query[k] * key[k * D + i];
    }

    void read_stretches(Worker &w, const Attention &a, int64_t reading) {
        const int64_t groups = step.reads->absorbed ? 1 : a.groups;
        // Groups lie one behind the other: many memories are read from end to end.
        const int64_t together = stretch_count >= 4 * threads ? groups : 1;
        w.share(stretch_count * groups / together, [&](int64_t i) {
            for (int64_t c = i * together; c < (i + 1) * together; c++)
                read_stretch(a, reading, stretch[c / groups], c % groups, w.me);
        });
    }

    void read_stretch(const Attention &a, int64_t reading, const Stretch &piece, int64_t g,
                      int64_t me) {
        const Reads &reads = *step.reads;
        const Segment &segment = reads.segments[reading * reads.memories + piece.memory];
        const bool absorbed = reads.absorbed;
        const int64_t width = absorbed ? read_width : a.width;
        const int64_t per_group = absorbed ? a.heads : a.heads / a.groups;
        float **pointers = thread_pointers + me * pointer_count;
        float **key_at = pointers, **value_at = pointers + BLOCK, **query_at = pointers + 2 * BLOCK;
        float *scores = thread_numbers + me * number_count;
        float *bias = scores + sharing * T * heads * BLOCK;
        float *unpacked = bias + T * heads * BLOCK + LANES;
        float *turned = unpacked + (reads.numbers == INT8 ? 2 * BLOCK * read_width : 0);
        Reading *found = thread_readings + me * sharing * T * heads;
        int number = 0;
        for (int64_t i = reads.first[piece.memory]; i < reads.first[piece.memory + 1]; i++)
            for (int64_t t = 0; t < T; t++)
                for (int64_t h = g * per_group; h < (g + 1) * per_group; h++, number++) {
                    const int64_t query = (reads.rows[i] * T + t) * a.heads + h;
                    query_at[number] = absorbed ? reach + query * width : queries + query * width;
                    if (reads.turns) {
                        const float *turn = reads.turns + i * width;
                        turn_back(turn, query_at[number], turned + number * width, width / 2);
                        query_at[number] = turned + number * width;
                    }
                    found[number] = {};
                    found[number].values = values_of(a, query, piece.part);
                    std::fill_n(found[number].values, width, 0.0f);
                }
        const uint8_t *mask = reads.masks[piece.memory];
        const int block = width > 2 * BLOCK ? 16 : BLOCK;  // so that a block stays in the cache
        for (int64_t from = piece.from; from < piece.to; from += block) {
            const int count = static_cast<int>(std::min<int64_t>(block, piece.to - from));
            if (reads.numbers == FLOAT) {
                const float *key = static_cast<const float *>(segment.keys) + g * segment.key_group;
                const float *value =
                    static_cast<const float *>(segment.values) + g * segment.value_group;
                for (int s = 0; s < count; s++) {
                    key_at[s] = const_cast<float *>(key) + (from + s) * segment.key_stride;
                    value_at[s] = const_cast<float *>(value) + (from + s) * segment.value_stride;
                }
            } else {
                unpack(static_cast<const int8_t *>(segment.keys) + g * segment.key_group,
                       segment.key_scales + g * segment.scale_group, segment.key_stride, from,
                       count, width, unpacked, key_at, block);
                if (absorbed)
                    std::copy_n(key_at, count, value_at);
                else
                    unpack(static_cast<const int8_t *>(segment.values) + g * segment.value_group,
                           segment.value_scales + g * segment.scale_group, segment.value_stride,
                           from, count, width, unpacked + BLOCK * width, value_at, block);
            }
            if (mask)
                for (int s = 0; s < count; s++) bias[s] = mask[from + s] ? 0.0f : NOTHING;
            const int64_t ahead = reads.numbers == FLOAT ? block : 0;
            fold(query_at, found, number, key_at, value_at, count, width, width, a.scale,
                 mask ? bias : nullptr, 0, scores, ahead * segment.key_stride,
                 absorbed ? 0 : ahead * segment.value_stride);
        }
        int i = 0;
        for (int64_t r = reads.first[piece.memory]; r < reads.first[piece.memory + 1]; r++)
            for (int64_t t = 0; t < T; t++)
                for (int64_t h = g * per_group; h < (g + 1) * per_group; h++, i++)
                    readings[((reads.rows[r] * T + t) * a.heads + h) * parts + piece.part] = found[i];
    }

    // What a query has read in one of its parts. Queries of a part stand side by side: far apart,
    // they would be at the same places of the cache.
    float *values_of(const Attention &a, int64_t query, int64_t part) const {
        return read_values + (part * M * a.heads + query) * read_width;
    }

    static void turn_back(const float *turn, const float *query, float *to, int64_t half) {
        const float *cosine = turn, *sine = turn + half;
        for (int64_t i = 0; i < half; i++) {
            to[i] = query[i] * cosine[i] - query[i + half] * sine[i];
            to[i + half] = query[i + half] * cosine[i] + query[i] * sine[i];
        }
    }

    static void unpack(const int8_t *numbers, const float *scales, int64_t stride, int64_t from,
                       int count, int64_t width, float *to, float **at, int64_t ahead) {
        for (int s = 0; s < count; s++) {
            const int8_t *row = numbers + (from + s) * stride;
            const float scale = scales[from + s];
            for (int64_t i = 0; i < width; i += LINE) fetch(row + ahead * stride + i);
            float *wide = at[s] = to + s * width;
            int64_t i = 0;
            for (; i + LANES <= width; i += LANES) store(wide + i, widened(row + i) * scale);
            for (; i < width; i++) wide[i] = row[i] * scale;
        }
    }

    // The softmax over all that a query has read, from the parts of it.
    void combine(const Attention &a, const Absorption *absorption, int64_t item) {
        const int64_t width = absorption ? read_width : a.width, K = a.width;
        const int64_t count = step.reads ? row_part[item / a.heads / T] : 0;
        const Reading *part = readings + item * parts;
        const float *query = queries + item * K;
        float *to = mixed + item * K;
        const int64_t row = item / a.heads / T;
        const uint8_t *weighed = step.reads && step.reads->scales ? part_weighed + row * parts : nullptr;
        // What is weighed is one softmax of its own, then a part like others with its own mass.
        float tops[2] = {NOTHING, NOTHING}, inside = 0.0f, mass = NOTHING;
        for (int64_t p = 0; p < count; p++) {
            float &of_kind = tops[weighed && weighed[p]];
            of_kind = higher(of_kind, part[p].top);
        }
        if (tops[1] != NOTHING) {
            for (int64_t p = 0; p < count; p++)
                if (weighed[p] && part[p].top != NOTHING)
                    inside += std::exp(part[p].top - tops[1]) * part[p].total;
            mass = step.reads->scales[row] * (tops[1] + std::log(inside));
        }
        const float top = higher(tops[0], mass);
        float total = 0.0f;
        if (top == NOTHING) {
            for (int64_t i = 0; i < K; i++) to[i] = query[i] * 0.0f;
            return;
        }
        float *sum_of = absorption ? reach + item * width : to;
        std::fill_n(sum_of, width, 0.0f);
        for (int64_t p = 0; p < count; p++) {
            if (part[p].top == NOTHING) continue;
            const float share = weighed && weighed[p]
                                    ? std::exp(part[p].top - tops[1]) * std::exp(mass - top) / inside
                                    : std::exp(part[p].top - top);
            total += share * part[p].total;
            const float *read = values_of(a, item, p);
            for (int64_t i = 0; i < width; i++) sum_of[i] += share * read[i];
        }
        if (!absorption) {
            finish(to, total, query, K);
            return;
        }
        const int64_t g = item % a.heads / (a.heads / a.groups);
        const float *value = absorption->values + g * K * width;
        for (int64_t k = 0; k < K; k++) {
            Lanes dot{};
            int64_t i = 0;
            for (; i + LANES <= width; i += LANES)
                dot += load(sum_of + i) * load(value + k * width + i);
            float found = sum(dot);
            for (; i < width; i++) found += sum_of[i] * value[k * width + i];
            to[k] = found / total + query[k] * 0.0f;
            if (absorption->value_bias) to[k] += absorption->value_bias[g * K + k];
        }
    }

    void feed_forward(Worker &w, const Layer &layer) {
        const Rows rows = enter(w, layer.ffn_norm, layer.up);
        const int64_t F = layer.up.out;
        products<1>(w, {&layer.up}, rows, {wide}, false, [&](int64_t from, int64_t end) {
            // The gate's outputs of the same places, by the same thread.
            if (layer.gated) {
                const int64_t unit = block_of(layer.gate);
                product(layer.gate, rows, from / unit, whole(end, unit), gate, F, false);
            }
            for (int64_t m = 0; m < M; m++) {
                float *up = wide + m * F + from, *other = gate + m * F + from;
                activate(layer.activation, layer.gated ? other : up, end - from);
                if (layer.gated)
                    for (int64_t i = 0; i < end - from; i++) up[i] *= other[i];
            }
        });
        leave(w, layer.down, wide, layer.ffn_norm);
    }

    template <typename F>
    static void map(float *x, int64_t count, F f) {
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES) store(x + i, f(load(x + i)));
        if (i == count) return;
        Lanes rest{};
        for (int64_t j = i; j < count; j++) rest[j - i] = x[j];
        rest = f(rest);
        for (int64_t j = i; j < count; j++) x[j] = rest[j - i];
    }

    static Lanes sigmoid(Lanes x) { return 1.0f / (1.0f + exponential(-x)); }
    static Lanes tangent(Lanes x) { return 1.0f - 2.0f / (exponential(2.0f * x) + 1.0f); }

    // erf to 1.5e-7 (Abramowitz and Stegun 7.1.26).
    static Lanes error_function(Lanes x) {
        const Lanes size = x < 0 ? -x : x, t = 1.0f / (1.0f + 0.3275911f * size);
        Lanes y = 1.061405429f * t - 1.453152027f;
        y = y * t + 1.421413741f;
        y = y * t - 0.284496736f;
        y = (y * t + 0.254829592f) * t;
        const Lanes value = 1.0f - y * exponential(-size * size);
        return x < 0 ? -value : value;
    }

    static void activate(int64_t kind, float *x, int64_t count) {
        switch (kind) {
            case RELU: return map(x, count, [](Lanes v) { return v < 0 ? Lanes{} : v; });
            case GELU:
                return map(x, count, [](Lanes v) {
                    return 0.5f * v * (1.0f + error_function(v * 0.70710678118654752f));
                });
            case GELU_TANH:
                return map(x, count, [](Lanes v) {
                    const Lanes inner = 0.7978845608028654f * (v + 0.044715f * v * v * v);
                    return 0.5f * v * (1.0f + tangent(inner));
                });
            case SILU: return map(x, count, [](Lanes v) { return v * sigmoid(v); });
            case TANH: return map(x, count, [](Lanes v) { return tangent(v); });
            case SIGMOID: return map(x, count, [](Lanes v) { return sigmoid(v); });
            case QUICK_GELU: return map(x, count, [](Lanes v) { return v * sigmoid(1.702f * v); });
        }
    }

    void head(Worker &w) {
        const int64_t D = d.width;
        Rows rows = rows_of(d.head, normed, D, step.wanted_count);
        w.share(step.wanted_count, [&](int64_t i) {
            for (int64_t k = 0; k < D; k++)
                normed[i * D + k] = x[step.wanted[i] * D + k] * d.head_scale;
            if (is_narrow(d.head)) quantise(rows, d.head, i, i + 1);
        });
        products<1>(w, {&d.head}, rows, {step.logits}, false, nothing);
    }
};

}  // namespace

extern "C" {

// Runs one step. Returns 0, or the bytes that its workspace must have where it has fewer.
int64_t xattn_step(const Step *step) {
    Pass pass(*step);
    const int64_t needed = pass.lay_out(nullptr);
    if (needed > step->workspace_bytes) return needed;
    pass.lay_out(step->workspace);
    pass.run();
    return 0;
}

// y[count, out] = x[count, in] Wᵀ + bias for any number of rows; `bytes` and `scales` are room for
// the quantised rows: quantised_bytes(count, in), and [count].
void xattn_product(const Matrix *m, const float *x, int64_t count, float *y, uint8_t *bytes,
                   float *scales, int64_t threads) {
    Rows rows{x, m->in, count, bytes, scales, padded(m->in, m->bits)};
    constexpr int64_t BAND = 96;  // rows that are quantised and multiplied together
    if (!is_narrow(*m) || count < 2 * BAND) {
#pragma omp parallel num_threads(threads)
        {
            const int64_t me = omp_get_thread_num(), all = omp_get_num_threads();
            if (is_narrow(*m)) quantise(rows, *m, count * me / all, count * (me + 1) / all);
#pragma omp barrier
            const int64_t n = blocks(*m);
            product(*m, rows, n * me / all, n * (me + 1) / all, y, m->out, false);
        }
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t first = 0; first < count; first += BAND) {
        const int64_t last = std::min(count, first + BAND), panels = whole(m->out, PANEL);
        quantise(rows, *m, first, last);
        int64_t p = 0;
        for (; p + 4 <= panels; p += 4) narrow_rows<4>(*m, rows, p, first, last, y, m->out, false);
        for (; p < panels; p++) narrow_rows<1>(*m, rows, p, first, last, y, m->out, false);
    }
}

void xattn_likeliest(const float *logits, int64_t stride, int64_t rows, int64_t vocabulary,
                     int64_t k, float *values, int64_t *ids, float *logprobs, int64_t threads) {
    likeliest(logits, stride, rows, vocabulary, k, values, ids, logprobs, threads);
}

int64_t xattn_lanes() { return LANES; }

}  // extern "C"
