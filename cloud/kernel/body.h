/* The loops of kernel.c, which includes this file once for each instruction set, so it has no include
 * guard. NAME(x) names the functions, VNNI and SDOT are 0 or 1 (both 0: AVX2).
 *
 * A row that is not finite stays so: quantize and norm_row make NaN of all its outputs. No step turns
 * such a row into numbers, and none carries it to another row. Integers never come from NaN or
 * infinity, because that conversion is undefined. */

typedef float NAME(vf) __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t NAME(vi) __attribute__((vector_size(64), aligned(4), may_alias));
typedef uint32_t NAME(vu) __attribute__((vector_size(64), aligned(4), may_alias));
#define VF NAME(vf)
#define VI NAME(vi)
#define VU NAME(vu)
#define LOAD(p) (*(const VF *)(p))

static inline float NAME(hsum)(VF v) {
#if VNNI
    return _mm512_reduce_add_ps((__m512)v);
#elif SDOT
    const float *lanes = (const float *)&v;
    float32x4_t a = vaddq_f32(vld1q_f32(lanes), vld1q_f32(lanes + 8));
    a = vaddq_f32(a, vaddq_f32(vld1q_f32(lanes + 4), vld1q_f32(lanes + 12)));
    return vaddvq_f32(a);
#else
    const float *lanes = (const float *)&v;
    __m256 a = _mm256_add_ps(_mm256_loadu_ps(lanes), _mm256_loadu_ps(lanes + 8));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
#endif
}

static inline VF NAME(fill)(float value) {
    VF zero = {0};
    return zero + value;
}

/* The larger of each lane; b where a is NaN. */
static inline VF NAME(vmax)(VF a, VF b) {
    VI larger = a > b;
    return (VF)((larger & (VI)a) | (~larger & (VI)b));
}

static inline float NAME(hmax)(VF v) {
    float most = v[0];
    for (int i = 1; i < 16; i++) most = v[i] > most ? v[i] : most;
    return most;
}

/* exp(x) by x = n ln 2 + r, a polynomial of degree 6 in r, |error| < 2 ulp in [-87, 88]. NaN gives
 * NaN. */
static inline VF NAME(vexp)(VF x) {
    VI low = x < -87.0f, high = x > 88.0f;
    VF bounds = (VF)((low & (VI)(NAME(fill)(-87.0f))) | (high & (VI)(NAME(fill)(88.0f))));
    x = (VF)((~(low | high) & (VI)x) | (VI)bounds);
    VF scaled = x * 1.44269504088896341f;
    VF magic = NAME(fill)(12582912.0f); /* 1.5 2^23: adding it rounds to an integer */
    VF rounded = scaled + magic, n = rounded - magic;
    VF r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    VF p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    /* The lowest bits of `rounded` are n. The shift drops those of `magic`, and it is defined where n
     * is NaN. */
    return p * (VF)(((VU)rounded + 127) << 23);
}

/* One row as two int8 digits with a scale of its own: int8_linear.quantize_rows. A row that is not
 * finite has digits of 0 and the scale NaN. */
static void NAME(quantize)(const float *x, int64_t k, int8_t *digits, int64_t pitch, float *scale,
                           int32_t *sums) {
    int64_t i = 0;
    /* Of magnitudes, the bits have the order of the values; infinity and NaN come after all others. */
    VI lanes = {0};
    for (; i + 16 <= k; i += 16) {
        VI magnitude = (VI)LOAD(x + i) & INT32_MAX, larger = magnitude > lanes;
        lanes = (larger & magnitude) | (~larger & lanes);
    }
    int32_t bits = 0;
    for (int lane = 0; lane < 16; lane++) bits = lanes[lane] > bits ? lanes[lane] : bits;
    for (; i < k; i++) {
        int32_t magnitude;
        memcpy(&magnitude, x + i, sizeof(magnitude));
        magnitude &= INT32_MAX;
        bits = magnitude > bits ? magnitude : bits;
    }
    float largest;
    memcpy(&largest, &bits, sizeof(largest));
    if (!(largest <= FLT_MAX)) {
        memset(digits, 0, (size_t)(2 * pitch));
        *scale = NAN;
        sums[0] = sums[1] = 0;
        return;
    }
    float s = largest * (1.0f / 127.0f);
    if (!(s >= FLT_MIN)) s = FLT_MIN;
    int32_t high_sum = 0, low_sum = 0;
    int8_t *high = digits, *low = digits + pitch;
    i = 0;
#if VNNI
    __m512i high_sums = _mm512_setzero_si512(), low_sums = high_sums;
    __m512 divisor = _mm512_set1_ps(s), second = _mm512_set1_ps(254.0f);
    for (; i + 16 <= k; i += 16) {
        __m512 ratio = _mm512_div_ps(_mm512_loadu_ps(x + i), divisor);
        __m512 first = _mm512_roundscale_ps(ratio, 8);
        __m512i a = _mm512_cvtps_epi32(first);
        __m512i b = _mm512_cvttps_epi32(_mm512_mul_ps(_mm512_sub_ps(ratio, first), second));
        high_sums = _mm512_add_epi32(high_sums, a);
        low_sums = _mm512_add_epi32(low_sums, b);
        _mm_storeu_si128((__m128i *)(high + i), _mm512_cvtepi32_epi8(a));
        _mm_storeu_si128((__m128i *)(low + i), _mm512_cvtepi32_epi8(b));
    }
    high_sum = _mm512_reduce_add_epi32(high_sums);
    low_sum = _mm512_reduce_add_epi32(low_sums);
#endif
    for (; i < k; i++) {
        float ratio = x[i] / s, first = rintf(ratio);
        int32_t a = (int32_t)first, b = (int32_t)((ratio - first) * 254.0f);
        high[i] = (int8_t)a;
        low[i] = (int8_t)b;
        high_sum += a;
        low_sum += b;
    }
    for (; i & 3; i++) high[i] = low[i] = 0;
    *scale = s;
    sums[0] = high_sum;
    sums[1] = low_sum;
}

/* A row whose squares sum to more than a float holds becomes NaN, not 0. */
static void NAME(norm_row)(const float *x, const float *weight, float eps, int64_t width, float *out) {
    VF sums = {0};
    int64_t i = 0;
    for (; i + 16 <= width; i += 16) sums += LOAD(x + i) * LOAD(x + i);
    float sum = NAME(hsum)(sums);
    for (; i < width; i++) sum += x[i] * x[i];
    float inverse = sum <= FLT_MAX ? 1.0f / sqrtf(sum / (float)width + eps) : NAN;
    for (i = 0; i + 16 <= width; i += 16) *(VF *)(out + i) = LOAD(x + i) * inverse * LOAD(weight + i);
    for (; i < width; i++) out[i] = x[i] * inverse * weight[i];
}

static inline int32_t NAME(quad)(const int8_t *digits) {
    int32_t four;
    memcpy(&four, digits, sizeof(four));
    return four;
}

/* 16 V of a block's 64 outputs, of R digit rows. packed: [V][quads][16][4]. sums: [R][64]. */
static inline __attribute__((always_inline)) void NAME(dot)(
    const uint8_t *packed, const int8_t *digits, int64_t pitch, int64_t quads, int R, int V,
    int32_t *sums) {
#if VNNI
    __m512i acc[6][4];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) acc[r][v] = _mm512_setzero_si512();
    for (int64_t q = 0; q < quads; q++) {
        __m512i w[4];
        for (int v = 0; v < V; v++) w[v] = _mm512_loadu_si512(packed + 64 * (v * quads + q));
        for (int r = 0; r < R; r++) {
            __m512i x = _mm512_set1_epi32(NAME(quad)(digits + r * pitch + 4 * q));
            for (int v = 0; v < V; v++) acc[r][v] = _mm512_dpbusd_epi32(acc[r][v], w[v], x);
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) _mm512_storeu_si512(sums + 64 * r + 16 * v, acc[r][v]);
#elif SDOT
    const int8x16_t flip = vdupq_n_s8(-128);
    for (int part = 0; part < V; part++) {
        int32x4_t acc[6][4];
        for (int r = 0; r < R; r++)
            for (int v = 0; v < 4; v++) acc[r][v] = vdupq_n_s32(0);
        for (int64_t q = 0; q < quads; q++, packed += 64) {
            __builtin_prefetch((const char *)((uintptr_t)packed + AHEAD));
            int8x16_t w[4];
            for (int v = 0; v < 4; v++)
                w[v] = veorq_s8(vreinterpretq_s8_u8(vld1q_u8(packed + 16 * v)), flip);
            for (int r = 0; r < R; r++) {
                int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(NAME(quad)(digits + r * pitch + 4 * q)));
                for (int v = 0; v < 4; v++) acc[r][v] = vdotq_s32(acc[r][v], w[v], x);
            }
        }
        for (int r = 0; r < R; r++)
            for (int v = 0; v < 4; v++) vst1q_s32(sums + 64 * r + 16 * part + 4 * v, acc[r][v]);
    }
#else
    const __m256i flip = _mm256_set1_epi8((char)0x80), ones = _mm256_set1_epi16(1);
    for (int part = 0; part < V; part++) {
        __m256i acc[6][2];
        for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
        for (int64_t q = 0; q < quads; q++, packed += 64) {
            __builtin_prefetch((const char *)((uintptr_t)packed + AHEAD));
            __m256i w0 = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)packed), flip);
            __m256i w1 = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(packed + 32)), flip);
            __m256i m0 = _mm256_abs_epi8(w0), m1 = _mm256_abs_epi8(w1);
            for (int r = 0; r < R; r++) {
                /* |w| <= 127 and |x| <= 127: a pair's sum fits 16 bits, nothing saturates. */
                __m256i x = _mm256_set1_epi32(NAME(quad)(digits + r * pitch + 4 * q));
                __m256i p0 = _mm256_maddubs_epi16(m0, _mm256_sign_epi8(x, w0));
                __m256i p1 = _mm256_maddubs_epi16(m1, _mm256_sign_epi8(x, w1));
                acc[r][0] = _mm256_add_epi32(acc[r][0], _mm256_madd_epi16(p0, ones));
                acc[r][1] = _mm256_add_epi32(acc[r][1], _mm256_madd_epi16(p1, ones));
            }
        }
        for (int r = 0; r < R; r++)
            for (int v = 0; v < 2; v++)
                _mm256_storeu_si256((__m256i *)(sums + 64 * r + 16 * part + 8 * v), acc[r][v]);
    }
#endif
}

/* The sums of one row's two digits as floats: outputs [at, at + width) of out. There is one copy of
 * this code for every batch, because a compiler may round two copies differently. */
static __attribute__((noinline)) void NAME(scale_sums)(
    const Linear *linear, const Step *step, int64_t row, int64_t at, int64_t width,
    const int32_t *sums, float *out, int add) {
    const int32_t *high = sums, *low = sums + 64;
    const float *scale = linear->scale + at, *bias = linear->bias ? linear->bias + at : NULL;
    float row_scale = step->row_scale[row];
#if VNNI
    int32_t high_shift = 128 * step->row_sum[2 * row], low_shift = 128 * step->row_sum[2 * row + 1];
#else
    int32_t high_shift = 0, low_shift = 0;
#endif
    for (int64_t i = 0; i < width; i += 16) {
        VF first = __builtin_convertvector(*(const VI *)(high + i) - high_shift, VF);
        VF second = __builtin_convertvector(*(const VI *)(low + i) - low_shift, VF);
        VF value = (first + second * (1.0f / 254.0f)) * row_scale * LOAD(scale + i);
        if (bias) value += LOAD(bias + i);
        if (width - i >= 16) {
            if (add) value += LOAD(out + i);
            *(VF *)(out + i) = value;
        } else
            for (int64_t j = i; j < width; j++) out[j] = add ? out[j] + value[j - i] : value[j - i];
    }
}

/* One chunk of a product: out = digits x weights + bias, with `add` also + out. */
static void NAME(product)(const Linear *linear, const Step *step, float *out, int add,
                          const Tiles *tiles, int64_t chunk) {
    Tile tile = tile_of(tiles, chunk);
    int64_t quads = (linear->k + 3) / 4, pitch = 4 * quads, at = 64 * tile.block + 16 * tile.first;
    const uint8_t *packed = linear->packed + (4 * tile.block + tile.first) * quads * 64;
    int64_t begin = tile.panel * PANEL_ROWS, end = begin + PANEL_ROWS;
    if (end > step->num_rows) end = step->num_rows;
    int64_t width = linear->n - at;
    if (width > 16 * tile.vectors) width = 16 * tile.vectors;
    int32_t sums[6 * 64];
    for (int64_t row = begin; row < end; row += 3) {
        int count = end - row < 3 ? (int)(end - row) : 3;
        const int8_t *digits = step->digits + 2 * row * pitch;
#define DOT(R)                                                               \
    if (tile.vectors == 4) NAME(dot)(packed, digits, pitch, quads, R, 4, sums); \
    else NAME(dot)(packed, digits, pitch, quads, R, 2, sums)
        if (count == 3) DOT(6);
        else if (count == 2) DOT(4);
        else DOT(2);
#undef DOT
        for (int r = 0; r < count; r++)
            NAME(scale_sums)(linear, step, row + r, at, width, sums + 128 * r,
                             out + (row + r) * linear->n + at, add);
    }
}

/* Rotary embedding in half layout (arXiv:2104.09864, eq. 34), in place. */
static void NAME(rotate)(float *head, const float *cosine, const float *sine, int64_t width) {
    int64_t half = width / 2;
    for (int64_t i = 0; i < half; i++) {
        float first = head[i], second = head[i + half];
        head[i] = first * cosine[i] + second * sine[i];
        head[i + half] = second * cosine[i + half] + first * sine[i + half];
    }
}

#include "squeeze.h"
#include "attention.h"

static void NAME(gate)(float *wide, int64_t inner, float *out) {
    int64_t i = 0;
    for (; i + 16 <= inner; i += 16) {
        VF g = LOAD(wide + i);
        *(VF *)(out + i) = g / (1.0f + NAME(vexp)(-g)) * LOAD(wide + inner + i);
    }
    for (; i < inner; i++) out[i] = wide[i] / (1.0f + expf(-wide[i])) * wide[inner + i];
}

#define QUANTIZE(x, k, row)                                                                          \
    NAME(quantize)(x, k, step->digits + 2 * (row) * (((k) + 3) / 4 * 4), ((k) + 3) / 4 * 4,          \
                   step->row_scale + (row), step->row_sum + 2 * (row))

static void NAME(norm_and_quantize)(const Step *step, const float *weight, float eps, int64_t row) {
    float *normed = step->mixed + row * step->width;
    NAME(norm_row)(step->hidden + row * step->width, weight, eps, step->width, normed);
    QUANTIZE(normed, step->width, row);
}

/* Rotate queries and keys by their position, and copy keys and values into the arena. */
static void NAME(place_row)(const Step *step, int64_t number, int64_t row) {
    int64_t d = step->head_dim, H = step->heads, KV = step->kv_heads;
    float *heads = step->wide + row * (H + 2 * KV) * d;
    for (int64_t h = 0; h < H + KV; h++)
        NAME(rotate)(heads + h * d, step->cos + row * step->rotary_dim,
                     step->sin + row * step->rotary_dim, step->rotary_dim);
    if (step->kept && step->kept[row] >= 0)
        memcpy(step->queries + ((number - step->kept_layer) * step->num_kept + step->kept[row]) * H * d,
               heads, (size_t)(H * d) * sizeof(float));
    memcpy(step->arena + (step->place[row] + number * step->step[row]) * 2 * KV * d, heads + H * d,
           (size_t)(2 * KV * d) * sizeof(float));
}

static void NAME(run_layers)(const Job *base, int64_t phase, int64_t chunk, int thread) {
    const LayersJob *job = (const LayersJob *)base;
    const Step *step = job->step;
    const Layer *layer = job->layers + phase / NUM_LAYER_PHASES;
    int64_t number = job->first_layer + phase / NUM_LAYER_PHASES;
    LayerPhase what = phase % NUM_LAYER_PHASES;
    switch (what) {
    case QKV: NAME(product)(&layer->qkv, step, step->wide, 0, &job->tiles[what], chunk); return;
    case OUT: NAME(product)(&layer->out, step, step->hidden, 1, &job->tiles[what], chunk); return;
    case GATE_UP: NAME(product)(&layer->gate_up, step, step->wide, 0, &job->tiles[what], chunk); return;
    case DOWN: NAME(product)(&layer->down, step, step->hidden, 1, &job->tiles[what], chunk); return;
    default: break;
    }
    int64_t begin = chunk * job->size[what], end = begin + job->size[what];
    int64_t all = what == ATTEND ? step->num_rows * step->kv_heads : step->num_rows;
    if (end > all) end = all;
    for (int64_t i = begin; i < end; i++) switch (what) {
        case NORM_IN: NAME(norm_and_quantize)(step, layer->input_norm, layer->eps, i); break;
        case PLACE: NAME(place_row)(step, number, i); break;
        case ATTEND:
            NAME(attend)(step, number, layer->scale, i / step->kv_heads, i % step->kv_heads, thread);
            break;
        case MIXED: {
            int64_t width = step->heads * step->head_dim;
            QUANTIZE(step->mixed + i * width, width, i);
            break;
        }
        case NORM_POST: NAME(norm_and_quantize)(step, layer->post_norm, layer->eps, i); break;
        default: { /* GATE */
            float *inner = step->mixed + i * step->inner;
            NAME(gate)(step->wide + i * 2 * step->inner, step->inner, inner);
            QUANTIZE(inner, step->inner, i);
        }
        }
}

static void NAME(run_attend)(const Job *base, int64_t phase, int64_t chunk, int thread) {
    const AttendJob *job = (const AttendJob *)base;
    const Step *step = job->step;
    int64_t begin = chunk * job->size, end = begin + job->size, all = step->num_rows * step->kv_heads;
    (void)phase;
    if (end > all) end = all;
    for (int64_t i = begin; i < end; i++)
        NAME(attend)(step, job->layer, job->scale, i / step->kv_heads, i % step->kv_heads, thread);
}

static void NAME(run_linear)(const Job *base, int64_t phase, int64_t chunk, int thread) {
    const LinearJob *job = (const LinearJob *)base;
    const Step *step = job->step;
    (void)thread;
    if (phase == 1) {
        NAME(product)(job->linear, step, job->out, 0, &job->tiles, chunk);
        return;
    }
    int64_t K = job->linear->k, end = (chunk + 1) * job->size;
    if (end > step->num_rows) end = step->num_rows;
    for (int64_t row = chunk * job->size; row < end; row++) {
        const float *x = job->x + row * K;
        if (job->norm) {
            NAME(norm_row)(x, job->norm, job->eps, K, step->mixed + row * K);
            x = step->mixed + row * K;
        }
        QUANTIZE(x, K, row);
    }
}

#undef QUANTIZE
#undef LOAD
#undef VF
#undef VI
#undef VU
