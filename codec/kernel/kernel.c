/* rANS and trellis loops: the compiled twin of codec/entropy/rans_numpy.py and
 * codec/entropy/trellis_numpy.py, bit for bit. rows.h makes rows of them.
 *
 * State 32 bits, renormalised by 16-bit words, probabilities out of 2^14. Symbol i belongs to lane
 * i % num_lanes; all lanes share one word stream, read in symbol order.
 * Called through ctypes; nothing here allocates, and every read and write is bounds-checked.
 * Source: Duda 2013, arXiv:1311.2540; interleaving: Giesen 2014, arXiv:1402.3392.
 */
#include <stdint.h>
#include <string.h>

#define PRECISION 14
#define LOWER (1u << 16)
#define MAX_LANES 64
#define MAX_CODE ((1 << 24) - 1)
#define FAR (1 << 29)
#define LOUDEST (1 << 22)
#define LARGEST_TARGET (1 << 28)

#ifdef _WIN32
#define API __declspec(dllexport)
#else
#define API __attribute__((visibility("default")))
#endif

/* Raise it when the arguments of a function change, or their meaning (codec/kernel/library.py). */
#define ABI 1

API int64_t codec_abi(int32_t what) { return what == 0 ? ABI : -1; }

/* cdf: [num_models, alphabet + 1]; models, symbols: [n]. Words go to the END of out[capacity].
 * Returns the number of words, or -1 when an index is out of range or out is too small. */
API int64_t rans_encode(const uint16_t *cdf, int32_t num_models, int32_t alphabet,
                        const uint8_t *models, const uint8_t *symbols, int64_t n, int32_t num_lanes,
                        uint32_t *states, uint16_t *out, int64_t capacity) {
    if (num_lanes < 1 || num_lanes > MAX_LANES) return -1;
    int64_t at = capacity;
    for (int32_t l = 0; l < num_lanes; l++) states[l] = LOWER;
    int32_t lane = (int32_t)(n % num_lanes);
    for (int64_t i = n - 1; i >= 0; i--) {
        lane = lane == 0 ? num_lanes - 1 : lane - 1;
        if (models[i] >= num_models || symbols[i] >= alphabet) return -1;
        const uint16_t *row = cdf + (int64_t)models[i] * (alphabet + 1) + symbols[i];
        uint32_t start = row[0], freq = (uint32_t)row[1] - start, x = states[lane];
        if (x >= (uint64_t)freq << (32 - PRECISION)) {
            if (at == 0) return -1;
            out[--at] = (uint16_t)x;
            x >>= 16;
        }
        states[lane] = ((x / freq) << PRECISION) + x % freq + start;
    }
    return capacity - at;
}

/* lut: [num_models, 256], the symbol that holds slot (index << 6). states: [num_lanes], in and out.
 * Returns the number of words read, or -1 when the stream ends too early. */
API int64_t rans_decode(const uint16_t *cdf, const uint8_t *lut, int32_t num_models,
                        int32_t alphabet, const uint8_t *models, uint8_t *symbols, int64_t n,
                        int32_t num_lanes, uint32_t *states, const uint8_t *words,
                        int64_t num_words) {
    if (num_lanes < 1 || num_lanes > MAX_LANES) return -1;
    int64_t at = 0;
    int32_t lane = 0;
    for (int64_t i = 0; i < n; i++) {
        if (models[i] >= num_models) return -1;
        const uint16_t *row = cdf + (int64_t)models[i] * (alphabet + 1);
        uint32_t x = states[lane], slot = x & ((1u << PRECISION) - 1);
        uint32_t s = lut[((uint32_t)models[i] << 8) + (slot >> (PRECISION - 8))];
        while (row[s + 1] <= slot) s++; /* ends: row[alphabet] is 2^14 > slot */
        x = ((uint32_t)row[s + 1] - row[s]) * (x >> PRECISION) + slot - row[s];
        if (x < LOWER) {
            if (at == num_words) return -1;
            x = x << 16 | words[2 * at] | (uint32_t)words[2 * at + 1] << 8;
            at++;
        }
        symbols[i] = (uint8_t)s;
        states[lane] = x;
        lane = lane + 1 == num_lanes ? 0 : lane + 1;
    }
    return at;
}

#define NUM_FAMILIES 56
#define ALPHABET 64
#define REACH 31
#define ESCAPE 63
#define MAX_WIDTH 16384
#define MAX_COST 65535
static const uint8_t SHIFTS[NUM_FAMILIES] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
                                             0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1,
                                             1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5,
                                             5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7, 8, 8, 8};
/* Trellis of codec/entropy/trellis.py: from state s an even or odd code leads to NEXT[s][0] or [1]. */
static const uint8_t NEXT[8][2] = {{0, 2}, {5, 7}, {1, 3}, {6, 4}, {2, 0}, {4, 6}, {3, 1}, {7, 5}};

static int32_t family_at(const uint8_t *base, int32_t offset, int64_t d) {
    int32_t family = base[d] + offset;
    return family < 0 ? 0 : family >= NUM_FAMILIES ? NUM_FAMILIES - 1 : family;
}

static int32_t symbol_of(int32_t code, int32_t family) {
    int32_t high = code >> SHIFTS[family]; /* arithmetic shift, as numpy's */
    return high < -REACH || high > REACH ? ESCAPE : high + REACH;
}

static int32_t capped(int32_t cost) { return cost > MAX_COST ? MAX_COST : cost; }

static int32_t cost_of(const uint16_t *costs, int32_t family, int32_t code, int32_t distance) {
    return capped(costs[symbol_of(code, family)] + distance * distance);
}

/* Into each state lead two branches; on equal totals the first wins. Totals of the eight states
 * are renewed; bit s of the result says whether state s took its second branch. cost: of an even and
 * an odd code under quantizer 0, then under quantizer 1. */
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define WITH_VECTORS
#endif
#endif
#ifdef WITH_VECTORS
typedef int32_t four __attribute__((vector_size(16)));
#define PICK __builtin_shufflevector

/* Totals here: states 0, 2, 4, 6 and then 1, 3, 5, 7. */
static inline uint8_t add_compare_select(four total[2], const int32_t cost[4]) {
    four low = PICK(total[0], total[0], 0, 1, 0, 1) + (four){cost[0], cost[0], cost[1], cost[1]};
    four low2 = PICK(total[0], total[0], 2, 3, 2, 3) + (four){cost[1], cost[1], cost[0], cost[0]};
    four high = PICK(total[1], total[1], 1, 0, 1, 0) + (four){cost[3], cost[2], cost[2], cost[3]};
    four high2 = PICK(total[1], total[1], 2, 3, 2, 3) + (four){cost[2], cost[3], cost[3], cost[2]};
    four second = low2 < low, second2 = high2 < high;
    low = (low2 & second) | (low & ~second);
    high = (high2 & second2) | (high & ~second2);
    total[0] = PICK(low, high, 0, 2, 4, 6);
    total[1] = PICK(low, high, 1, 3, 5, 7);
    four bits = (second & (four){1, 2, 4, 8}) | (second2 & (four){16, 32, 64, 128});
    return (uint8_t)(bits[0] | bits[1] | bits[2] | bits[3]);
}
#define TOTALS(name) four name[2] = {{0, FAR, FAR, FAR}, {FAR, FAR, FAR, FAR}}
#define TOTAL_OF(name, s) name[(s) & 1][(s) >> 1]
#else
static uint8_t add_compare_select(int32_t total[8], const int32_t cost[4]) {
    int32_t first[8] = {total[0] + cost[0], total[2] + cost[0], total[0] + cost[1],
                        total[2] + cost[1], total[3] + cost[3], total[1] + cost[2],
                        total[3] + cost[2], total[1] + cost[3]};
    int32_t second[8] = {total[4] + cost[1], total[6] + cost[1], total[4] + cost[0],
                         total[6] + cost[0], total[5] + cost[2], total[7] + cost[3],
                         total[5] + cost[3], total[7] + cost[2]};
    uint8_t bits = 0;
    for (int s = 0; s < 8; s++) {
        int later = second[s] < first[s];
        total[s] = later ? second[s] : first[s];
        bits |= (uint8_t)(later << s);
    }
    return bits;
}
#define TOTALS(name) int32_t name[8] = {0, FAR, FAR, FAR, FAR, FAR, FAR, FAR}
#define TOTAL_OF(name, s) name[s]
#endif

/* How loud each row of targets is: sum of |target|, at most LOUDEST, times its weight. */
API void row_loudness(const int32_t *targets, int64_t rows, int64_t width, const int32_t *weights,
                      int64_t *loudness) {
    for (int64_t t = 0; t < rows; t++) {
        int64_t sum = 0;
        for (int64_t d = 0; d < width; d++) {
            int32_t v = targets[t * width + d];
            uint32_t a = v < 0 ? 0u - (uint32_t)v : (uint32_t)v; /* also of -2^31 */
            sum += (int64_t)(a < LOUDEST ? a : LOUDEST) * weights[d];
        }
        loudness[t] = sum;
    }
}

/* targets: [rows, width], 1/32 of a half step; costs: [2 * NUM_FAMILIES, ALPHABET].
 * codes, model_ids: [rows, width] out; escapes: [rows] out. candidates: [width, 4], taken: [width]
 * scratch. Returns 0, -1 for a width beyond MAX_WIDTH, or -2 for a target beyond LARGEST_TARGET. */
API int32_t trellis_quantize(const int32_t *targets, int64_t rows, int64_t width,
                             const uint8_t *base, const int8_t *offsets, const uint16_t *costs,
                             int32_t *codes, uint8_t *model_ids, int32_t *escapes, int32_t *candidates,
                             uint8_t *taken) {
    if (width > MAX_WIDTH) return -1;
    for (int64_t t = 0; t < rows; t++) {
        const int32_t *target = targets + t * width;
        /* State 0 begins; the others are out of reach, without overflowing. */
        TOTALS(total);
        for (int64_t d = 0; d < width; d++) {
            int32_t v = target[d], family = family_at(base, offsets[t], d);
            if (v > LARGEST_TARGET || v < -LARGEST_TARGET) return -2;
            int32_t a = v < 0 ? -v : v;
            const uint16_t *even_costs = costs + (int64_t)family * 2 * ALPHABET;
            const uint16_t *odd_costs = even_costs + ALPHABET;
            int32_t *found = candidates + 4 * d;
            int32_t k[4], cost[4], m;
            m = (a + 64) >> 7, k[0] = 2 * m; /* levels 0, 4, 8 .. */
            int32_t e0 = a - 128 * m;
            m = a >> 7, k[1] = 2 * m + 1; /* levels 2, 6, 10 .. */
            int32_t e1 = a - 128 * m - 64;
            m = (a + 96) >> 7, k[2] = 2 * m; /* levels 0, 3, 7 .. */
            int32_t e2 = m ? a - 128 * m + 32 : a;
            m = (a + 32) >> 7, k[3] = 2 * m + 1; /* levels 1, 5, 9 .. */
            int32_t e3 = a - 128 * m - 32;
            int32_t sign = v < 0 ? -1 : 1, shift = SHIFTS[family];
            for (int i = 0; i < 4; i++) k[i] *= sign;
            if (a >> (6 + shift) < REACH - 2) { /* no candidate escapes */
                const uint16_t *even = even_costs + REACH, *odd = odd_costs + REACH;
                cost[0] = capped(even[k[0] >> shift] + e0 * e0);
                cost[1] = capped(even[k[1] >> shift] + e1 * e1);
                cost[2] = capped(odd[k[2] >> shift] + e2 * e2);
                cost[3] = capped(odd[k[3] >> shift] + e3 * e3);
            } else {
                cost[0] = cost_of(even_costs, family, k[0], e0);
                cost[1] = cost_of(even_costs, family, k[1], e1);
                cost[2] = cost_of(odd_costs, family, k[2], e2);
                cost[3] = cost_of(odd_costs, family, k[3], e3);
            }
            if (a < 256) { /* zero may be worth its error */
                int32_t zero = capped(even_costs[REACH] + a * a);
                k[0] = zero < cost[0] ? 0 : k[0];
                cost[0] = zero < cost[0] ? zero : cost[0];
                zero = capped(odd_costs[REACH] + a * a);
                k[2] = zero < cost[2] ? 0 : k[2];
                cost[2] = zero < cost[2] ? zero : cost[2];
            }
            for (int i = 0; i < 4; i++) found[i] = k[i];
            taken[d] = add_compare_select(total, cost);
        }
        int32_t state = 0;
        for (int32_t s = 1; s < 8; s++)
            if (TOTAL_OF(total, s) < TOTAL_OF(total, state)) state = s;
        escapes[t] = 0;
        for (int64_t d = width - 1; d >= 0; d--) {
            /* from[state][later]: where the branch came from, and whether its code is odd */
            static const uint8_t from[8][2] = {{0, 4}, {2, 6}, {0, 4}, {2, 6},
                                               {3, 5}, {1, 7}, {3, 5}, {1, 7}};
            static const uint8_t odd[8][2] = {{0, 1}, {0, 1}, {1, 0}, {1, 0},
                                              {1, 0}, {0, 1}, {0, 1}, {1, 0}};
            int later = taken[d] >> state & 1, parity = odd[state][later];
            state = from[state][later];
            int32_t family = family_at(base, offsets[t], d);
            int32_t code = candidates[4 * d + 2 * (state & 1) + parity];
            codes[t * width + d] = code;
            model_ids[t * width + d] = (uint8_t)(2 * family + (state & 1));
            escapes[t] += symbol_of(code, family) == ESCAPE;
        }
    }
    return 0;
}

static int put(uint32_t *x, uint32_t value, int32_t bits, uint16_t *out, int64_t *at) {
    if (*x >= 1ull << (32 - bits)) {
        if (*at == 0) return 0;
        out[--*at] = (uint16_t)*x;
        *x >>= 16;
    }
    *x = *x << bits | value;
    return 1;
}

/* Row t belongs to lane t % num_lanes; lanes take turns value by value, num_lanes rows at a time.
 * states: [num_lanes], the first states in, the last ones out. Words as in rans_encode. */
API int64_t trellis_encode(const uint16_t *cdf, const uint8_t *model_ids, const int32_t *codes,
                           int64_t rows, int64_t width, int32_t num_lanes, uint32_t *states,
                           uint16_t *out, int64_t capacity) {
    if (num_lanes < 1 || num_lanes > MAX_LANES) return -1;
    int64_t at = capacity;
    for (int64_t first = (rows - 1) / num_lanes * num_lanes; first >= 0; first -= num_lanes) {
        int64_t lanes = rows - first < num_lanes ? rows - first : num_lanes;
        for (int64_t d = width - 1; d >= 0; d--)
            for (int64_t l = lanes - 1; l >= 0; l--) {
                int64_t i = (first + l) * width + d;
                int32_t family = model_ids[i] >> 1, code = codes[i], shift;
                if (family >= NUM_FAMILIES) return -1;
                int32_t symbol = symbol_of(code, family);
                uint32_t x = states[l], whole = (uint32_t)code;
                if (symbol == ESCAPE) {
                    if (!put(&x, whole >> 16, 16, out, &at)) return -1;
                    if (!put(&x, whole & 0xFFFF, 16, out, &at)) return -1;
                } else if ((shift = SHIFTS[family]) != 0)
                    if (!put(&x, whole & ((1u << shift) - 1), shift, out, &at)) return -1;
                const uint16_t *row = cdf + (int64_t)model_ids[i] * (ALPHABET + 1) + symbol;
                uint32_t start = row[0], freq = (uint32_t)row[1] - start;
                if (x >= (uint64_t)freq << (32 - PRECISION)) {
                    if (at == 0) return -1;
                    out[--at] = (uint16_t)x;
                    x >>= 16;
                }
                states[l] = ((x / freq) << PRECISION) + x % freq + start;
            }
    }
    return capacity - at;
}

/* out: [rows, width], values in half steps, centres added. A single lane may run out of words
 * (it began at 1, below LOWER); several must find every one. Returns words read, or -1. */
API int64_t trellis_decode(const uint16_t *cdf, const uint8_t *lut, const uint8_t *base,
                           const int8_t *offsets, const float *centres, float *out, int64_t rows,
                           int64_t width, int32_t num_lanes, uint32_t *states,
                           const uint8_t *words, int64_t num_words) {
    if (num_lanes < 1 || num_lanes > MAX_LANES) return -1;
    int64_t at = 0;
#define REFILL                                                            \
    if (x < LOWER) {                                                      \
        if (at < num_words) {                                             \
            x = x << 16 | words[2 * at] | (uint32_t)words[2 * at + 1] << 8; \
            at++;                                                         \
        } else if (num_lanes > 1)                                         \
            return -1;                                                    \
    }
    for (int64_t first = 0; first < rows; first += num_lanes) {
        int64_t lanes = rows - first < num_lanes ? rows - first : num_lanes;
        uint8_t state[MAX_LANES] = {0};
        for (int64_t d = 0; d < width; d++)
            for (int64_t l = 0; l < lanes; l++) {
                int32_t family = family_at(base, offsets[first + l], d), side = state[l] & 1;
                int32_t model = 2 * family + side, code, shift = SHIFTS[family];
                const uint16_t *row = cdf + (int64_t)model * (ALPHABET + 1);
                uint32_t x = states[l], slot = x & ((1u << PRECISION) - 1);
                uint32_t s = lut[(model << 8) + (slot >> (PRECISION - 8))];
                while (row[s + 1] <= slot) s++;
                x = ((uint32_t)row[s + 1] - row[s]) * (x >> PRECISION) + slot - row[s];
                REFILL
                if (s == ESCAPE) {
                    uint32_t whole = x & 0xFFFF;
                    x >>= 16;
                    REFILL
                    whole |= x << 16;
                    x >>= 16;
                    REFILL
                    code = (int32_t)whole;
                    if (code > MAX_CODE || code < -MAX_CODE) return -1;
                } else {
                    code = (int32_t)s - REACH;
                    if (shift) {
                        code = code * (1 << shift) + (int32_t)(x & ((1u << shift) - 1));
                        x >>= shift;
                        REFILL
                    }
                }
                states[l] = x;
                int32_t size = code < 0 ? -code : code;
                int32_t level = 2 * size - (size ? side : 0);
                float value = (float)level + centres[4 * family + (level < 3 ? level : 3)];
                out[(first + l) * width + d] = code < 0 ? -value : value;
                state[l] = NEXT[state[l]][code & 1];
            }
    }
    return at;
}

#include "rows.h"

/* Some build tools ask every extension for this symbol. Nothing imports the library: ctypes opens it,
 * so it needs none of Python's headers. */
API void *PyInit__kernel(void) { return 0; }
