/* Rows of frames of the calibrated kind: the twin of codec/levels/calibrated.py behind its entropy
 * coder, for one frame or for many in one call.
 *
 * A row's values are the same whatever rows share the call: every sum adds in the order of its
 * terms, and no product is fused with a sum (-ffp-contract=off). So all instruction sets give the
 * same bits too. Included by kernel.c.
 */

#define TOGETHER 4         /* rows that share one reading of the matrix */
#define TERMS 4            /* rows of the matrix that are read side by side */
#define MOST_FRAME_ROWS 32 /* codec.rows.ROWWISE_UP_TO */
#define WITH_OUTLIERS 15
#define LEAST_OFFSET (-7)

#if defined(__GNUC__) || defined(__clang__)
#define INLINE static inline __attribute__((always_inline))
typedef float eight __attribute__((vector_size(32)));

typedef float unaligned_eight __attribute__((vector_size(32), aligned(4), may_alias));
#define LOAD(at) (*(const unaligned_eight *)(at))
#define STORE(at, value) (*(unaligned_eight *)(at) = (value))

/* Adds `terms` terms to the first 16 n columns of the product, for `count` rows, and returns 16 n.
 * Both numbers are constants where it is called. The matrix is read from its begin to its end. */
INLINE int64_t add_wide(const float *x, int64_t stride, const float *matrix, int64_t size, float *out,
                        const int count, const int terms) {
    int64_t j = 0;
    for (; j + 16 <= size; j += 16) {
        eight part[TERMS][2];
        for (int k = 0; k < terms; k++) {
            part[k][0] = LOAD(matrix + k * size + j);
            part[k][1] = LOAD(matrix + k * size + j + 8);
        }
        for (int r = 0; r < count; r++) {
            float *to = out + r * stride + j;
            eight low = LOAD(to), high = LOAD(to + 8);
            for (int k = 0; k < terms; k++) {
                float f = x[r * stride + k];
                eight factor = {f, f, f, f, f, f, f, f};
                low += factor * part[k][0];
                high += factor * part[k][1];
            }
            STORE(to, low);
            STORE(to + 8, high);
        }
    }
    return j;
}
#else
#define INLINE static inline
#define add_wide(x, stride, matrix, size, out, count, terms) 0
#endif

INLINE void add_terms(const float *x, int64_t stride, const float *matrix, int64_t size, float *out,
                      const int count, const int terms) {
    for (int64_t j = add_wide(x, stride, matrix, size, out, count, terms); j < size; j++)
        for (int r = 0; r < count; r++)
            for (int k = 0; k < terms; k++)
                out[r * stride + j] += x[r * stride + k] * matrix[k * size + j];
}

/* out[r, j] = sum over k of x[r, k] matrix[k, j] for `count` rows, a constant. x, out: rows `stride`
 * apart. matrix: [size, size]. */
INLINE void multiply(const float *x, int64_t stride, const float *matrix, int64_t size, float *out,
                     const int count) {
    int64_t k = 0;
    for (int r = 0; r < count; r++) memset(out + r * stride, 0, (size_t)size * sizeof(float));
    for (; k + TERMS <= size; k += TERMS)
        add_terms(x + k, stride, matrix + k * size, size, out, count, TERMS);
    for (; k < size; k++) add_terms(x + k, stride, matrix + k * size, size, out, count, 1);
}

/* The inverse rotation and the mean. order: [width], the channel of each rotated place, or null for
 * one block. scratch: [TOGETHER, width]. */
INLINE void rotate(const float *components, int64_t rows, int64_t width, const float *inverse,
                   int64_t blocks, const int32_t *order, const float *mean, float *scratch,
                   float *out) {
    int64_t size = width / blocks;
    for (int64_t first = 0; first < rows;) {
        int count = rows - first >= TOGETHER ? TOGETHER : rows - first >= 2 ? 2 : 1;
        for (int64_t b = 0; b < blocks; b++) {
            const float *x = components + first * width + b * size, *m = inverse + b * size * size;
            float *to = scratch + b * size;
            if (count == TOGETHER) multiply(x, width, m, size, to, TOGETHER);
            else if (count == 2) multiply(x, width, m, size, to, 2);
            else multiply(x, width, m, size, to, 1);
        }
        for (int r = 0; r < count; r++, first++)
            for (int64_t j = 0; j < width; j++) {
                int64_t channel = order ? order[j] : j;
                out[first * width + channel] = scratch[r * width + j] + mean[channel];
            }
    }
}

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#include <cpuid.h>
/* Asked of the processor itself: __builtin_cpu_supports gives 0 under some cross compilers. Intel's
 * manual, volume 2, CPUID and XGETBV. */
static int has_avx2(void) {
    static int known; /* 1: no, 2: yes */
    int answer = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (!answer) {
        uint32_t a, b, c, d, low = 0, high = 0;
        if (__get_cpuid(1, &a, &b, &c, &d) && c & 1u << 27 && c & 1u << 28)
            __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        answer = (low & 6) == 6 && __get_cpuid_count(7, 0, &a, &b, &c, &d) && b & 1u << 5 ? 2 : 1;
        __atomic_store_n(&known, answer, __ATOMIC_RELAXED);
    }
    return answer == 2;
}

__attribute__((target("avx2"))) static void rotate_avx2(
    const float *components, int64_t rows, int64_t width, const float *inverse, int64_t blocks,
    const int32_t *order, const float *mean, float *scratch, float *out) {
    rotate(components, rows, width, inverse, blocks, order, mean, scratch, out);
}
#else
static int has_avx2(void) { return 0; }
#define rotate_avx2 rotate
#endif

/* components, out: [rows, width]; inverse: [blocks, size, size] with blocks * size = width; order:
 * [width], not used for one block; mean: [width]; scratch: [4, width]. Returns 0, or -1 for an order
 * that names a channel which is not there. */
API int32_t rotate_back(const float *components, int64_t rows, int64_t width, const float *inverse,
                        int64_t blocks, const int32_t *order, const float *mean, float *scratch,
                        float *out) {
    if (blocks < 2) order = 0;
    for (int64_t j = 0; order && j < width; j++)
        if (order[j] < 0 || order[j] >= width) return -1;
    if (has_avx2()) rotate_avx2(components, rows, width, inverse, blocks, order, mean, scratch, out);
    else rotate(components, rows, width, inverse, blocks, order, mean, scratch, out);
    return 0;
}

/* One payload into components [rows, width]; 0 where it is not a plain one. */
static int plain_payload(const uint16_t *cdf, const uint8_t *lut, const uint8_t *base,
                         const float *centres, const float *steps, const uint8_t *payload,
                         int64_t size, int64_t rows, int32_t num_lanes, int64_t width,
                         float *components) {
    int8_t offsets[MOST_FRAME_ROWS];
    uint32_t states[MAX_LANES];
    int64_t begin = rows + 4 * (int64_t)num_lanes;
    if (rows < 1 || rows > MOST_FRAME_ROWS || num_lanes < 1 || num_lanes > MAX_LANES) return 0;
    if (size < begin || (size - begin) & 1) return 0;
    for (int64_t t = 0; t < rows; t++) {
        int32_t place = payload[t] & 15;
        if (place == WITH_OUTLIERS) return 0;
        offsets[t] = (int8_t)(place + LEAST_OFFSET);
    }
    for (int32_t l = 0; l < num_lanes; l++) {
        const uint8_t *at = payload + rows + 4 * l;
        states[l] = at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
        if (num_lanes > 1 && states[l] < LOWER) return 0;
    }
    int64_t used = trellis_decode(cdf, lut, base, offsets, centres, components, rows, width,
                                  num_lanes, states, payload + begin, (size - begin) / 2);
    if (2 * used != size - begin) return 0;
    for (int32_t l = 0; l < num_lanes; l++)
        if (states[l] != (num_lanes == 1 ? 1 : LOWER)) return 0;
    for (int64_t t = 0; t < rows; t++) {
        float step = steps[payload[t] >> 4];
        for (int64_t d = 0; d < width; d++) components[t * width + d] *= step;
    }
    return 1;
}

/* Rows of frames at one level. payloads, sizes, num_rows, num_lanes, strange: [num_frames]. All frames
 * together have R rows: listed: [R], each row's place in the token predictions `codes` [V, width] with
 * `scale` [width], or -1; components, out: [R, width]; scratch: [4, width]. steps: [16]. strange: 1
 * where a frame has to be decoded elsewhere, which then says what is wrong with it, if anything is;
 * its rows are zero. Returns 0, or -1 for tables that cannot be. */
API int32_t rows_of_frames(const uint16_t *cdf, const uint8_t *lut, const uint8_t *base,
                           const float *centres, const float *steps, const int8_t *codes,
                           int64_t num_codes, const float *scale, const float *inverse,
                           int64_t blocks, const int32_t *order, const float *mean, int64_t width,
                           int64_t num_frames, const uint8_t *const *payloads, const int64_t *sizes,
                           const int32_t *num_rows, const int32_t *num_lanes, const int64_t *listed,
                           float *components, float *scratch, float *out, uint8_t *strange) {
    int64_t first = 0;
    for (int64_t f = 0; f < num_frames; f++) {
        int64_t rows = num_rows[f];
        float *found = components + first * width;
        strange[f] = !plain_payload(cdf, lut, base, centres, steps, payloads[f], sizes[f], rows,
                                    num_lanes[f], width, found);
        if (strange[f]) memset(found, 0, (size_t)(rows * width) * sizeof(float));
        for (int64_t t = 0; t < rows; t++) {
            int64_t row = listed[first + t];
            if (row >= num_codes) return -1;
            for (int64_t d = 0; d < width; d++)
                found[t * width + d] += row < 0 ? 0.0f : (float)codes[row * width + d] * scale[d];
        }
        first += rows;
    }
    if (rotate_back(components, first, width, inverse, blocks, order, mean, scratch, out)) return -1;
    first = 0;
    for (int64_t f = 0; f < num_frames; f++) {
        int64_t end = (first + num_rows[f]) * width;
        for (int64_t i = first * width; i < end; i++)
            if (!(out[i] - out[i] == 0.0f)) { /* NaN or infinity */
                strange[f] = 1;
                break;
            }
        first += num_rows[f];
    }
    return 0;
}
