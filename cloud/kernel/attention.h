/* Attention of one row, some heads at a time. body.h includes it once for each instruction set, so it
 * has no include guard. */

/* The sums of the lanes of 16 vectors. Each is summed as the tree i + (i + 8), .. + 4, + 2, + 1, so a
 * score is the same wherever in its block the key is. */
static inline __attribute__((always_inline)) VF NAME(hsum16)(const VF *v) {
#if VNNI
    /* Sixteen vectors become eight, four, two, one; a vector's halves, quarters .. belong to
     * different keys. Lane SLOT(i) of the result is of vector i. */
    __m512 a[8], b[4], c[2];
    for (int i = 0; i < 8; i++) {
        __m512 x = (__m512)v[i], y = (__m512)v[i + 8];
        a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x44), _mm512_shuffle_f32x4(x, y, 0xEE));
    } /* x y: in 128-bit parts x0+x2 x1+x3 y0+y2 y1+y3 */
    for (int i = 0; i < 4; i++) {
        __m512 x = a[i], y = a[i + 4];
        b[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xDD));
    } /* parts of vectors i, i + 8, i + 4, i + 12 */
    for (int i = 0; i < 2; i++) {
        __m512 x = b[i], y = b[i + 2];
        c[i] = _mm512_add_ps(_mm512_shuffle_ps(x, y, 0x44), _mm512_shuffle_ps(x, y, 0xEE));
    } /* each part: two of i, two of i + 2 */
    return (VF)_mm512_add_ps(_mm512_shuffle_ps(c[0], c[1], 0x88), _mm512_shuffle_ps(c[0], c[1], 0xDD));
#else
    VF sums;
    for (int i = 0; i < 16; i++) sums[SLOT(i)] = NAME(hsum)(v[i]);
    return sums;
#endif
}

/* Where a query, a key or a value that the row sees is not finite, its output is not either.
 *
 * G query heads of one row over one key-value head; a head has NV vectors of 16. Both are constants,
 * so a key is read once and everything stays in registers. scores: [G][step->history]. estimate: what
 * counts beside the keys of the pieces; its scores begin with those of the first of the G heads. */
static inline __attribute__((always_inline)) void NAME(attend_heads)(
    const Step *step, const Piece *pieces, int64_t num_pieces, int64_t layer, const float *query,
    int64_t key_offset, float scale, float *scores, float *out, const NAME(Estimate) *estimate, int G,
    int NV) {
    int64_t pitch = 2 * step->kv_heads * step->head_dim, d = step->head_dim;
    int64_t value_offset = key_offset + step->kv_heads * d, count = 0, history = step->history;
    VF q[MAX_GROUP][8];
    for (int g = 0; g < G; g++)
        for (int v = 0; v < NV; v++) q[g][v] = LOAD(query + g * d + 16 * v) * scale;
    const float *block[16]; /* the keys of 16 scores, of one piece or several */
    int64_t held = 0;
    for (int64_t p = 0; p <= num_pieces; p++) {
        const float *keys = NULL;
        int64_t left = 0;
        if (p < num_pieces) {
            keys = step->arena + (pieces[p].row + layer * pieces[p].stride) * pitch + key_offset;
            left = pieces[p].count;
        }
        while (left > 0 || (p == num_pieces && held > 0)) {
            while (held < 16 && left > 0) {
                /* The rows are too far apart for the processor to fetch the next by itself. */
                /* The address may be beyond the arena, where a prefetch does nothing. */
                uintptr_t ahead = (uintptr_t)keys + (uintptr_t)(16 * pitch) * sizeof(float);
                for (int v = 0; v < NV; v++) {
                    __builtin_prefetch((const char *)(ahead + 64u * (unsigned)v));
                    __builtin_prefetch((const char *)(keys + value_offset - key_offset + 16 * v));
                }
                block[held++] = keys;
                keys += pitch;
                left--;
            }
            if (held < 16 && p < num_pieces) break;
            for (int64_t i = held; i < 16; i++) block[i] = block[0]; /* the last block's rest */
            for (int g = 0; g < G; g++) {
                VF products[16];
                for (int i = 0; i < 16; i++) {
                    VF sum = q[g][0] * LOAD(block[SLOT(i)]);
                    for (int v = 1; v < NV; v++) sum += q[g][v] * LOAD(block[SLOT(i)] + 16 * v);
                    products[i] = sum;
                }
                *(VF *)(scores + g * history + count) = NAME(hsum16)(products);
            }
            count += held;
            held = 0;
        }
    }
    for (int64_t i = 0; i < estimate->count; i++, count++) {
        int64_t u = estimate->unread[i], at = estimate->head_at * NUM_CLUSTERS + u % NUM_CLUSTERS;
        float keys = logf(estimate->squeeze->segments[u / NUM_CLUSTERS].counts[at]);
        for (int g = 0; g < G; g++)
            scores[g * history + count] = estimate->scores[g * estimate->num_clusters + u] + keys;
    }
    float inverse[MAX_GROUP];
    for (int g = 0; g < G; g++) {
        float *of = scores + g * history;
        if (count == 0) { /* a row that sees nothing, not even itself */
            inverse[g] = NAN;
            continue;
        }
        for (int64_t i = count; i & 15; i++) of[i] = -FLT_MAX;
        /* 0, or NaN where a score is not finite: one of -inf would get no weight and be forgotten. */
        VF largest = LOAD(of), spoiled = largest * 0.0f, sums = {0};
        for (int64_t i = 16; i < count; i += 16) {
            largest = NAME(vmax)(LOAD(of + i), largest);
            spoiled += LOAD(of + i) * 0.0f;
        }
        float most = NAME(hmax)(largest) + NAME(hsum)(spoiled);
        for (int64_t i = 0; i < count; i += 16) *(VF *)(of + i) = NAME(vexp)(LOAD(of + i) - most);
        for (int64_t i = count; i & 15; i++) of[i] = 0;
        for (int64_t i = 0; i < count; i += 16) sums += LOAD(of + i);
        inverse[g] = 1.0f / NAME(hsum)(sums);
    }
    VF total[MAX_GROUP][8];
    for (int g = 0; g < G; g++)
        for (int v = 0; v < NV; v++) total[g][v] = NAME(fill)(0);
    int64_t at = 0;
    for (int64_t p = 0; p < num_pieces; p++) {
        const float *values = step->arena + (pieces[p].row + layer * pieces[p].stride) * pitch + value_offset;
        for (int64_t s = 0; s < pieces[p].count; s++, at++, values += pitch) {
            VF value[8];
            for (int v = 0; v < NV; v++) value[v] = LOAD(values + 16 * v);
            for (int g = 0; g < G; g++)
                for (int v = 0; v < NV; v++) total[g][v] += scores[g * history + at] * value[v];
        }
    }
    for (int64_t i = 0; i < estimate->count; i++, at++) {
        int64_t u = estimate->unread[i], place = estimate->head_at * NUM_CLUSTERS + u % NUM_CLUSTERS;
        const float *values = estimate->squeeze->segments[u / NUM_CLUSTERS].values + place * d;
        for (int v = 0; v < NV; v++) {
            VF value = LOAD(values + 16 * v);
            for (int g = 0; g < G; g++) total[g][v] += scores[g * history + at] * value;
        }
    }
    for (int g = 0; g < G; g++)
        for (int v = 0; v < NV; v++) *(VF *)(out + g * d + 16 * v) = total[g][v] * inverse[g];
}

/* One copy for each width of a head and number of heads together; a model uses one of each. */
#define ATTEND_HEADS(G, NV)                                                                         \
    static __attribute__((noinline)) void NAME(attend_##G##_##NV)(                                  \
        const Step *step, const Piece *pieces, int64_t num_pieces, int64_t layer,                   \
        const float *query, int64_t key_offset, float scale, float *scores, float *out,             \
        const NAME(Estimate) *estimate) {                                                           \
        NAME(attend_heads)(step, pieces, num_pieces, layer, query, key_offset, scale, scores, out,  \
                           estimate, G, NV);                                                        \
    }
ATTEND_HEADS(1, 1) ATTEND_HEADS(1, 2) ATTEND_HEADS(1, 3) ATTEND_HEADS(1, 4)
ATTEND_HEADS(1, 5) ATTEND_HEADS(1, 6) ATTEND_HEADS(1, 7) ATTEND_HEADS(1, 8)
ATTEND_HEADS(2, 4) ATTEND_HEADS(3, 4) ATTEND_HEADS(4, 4) ATTEND_HEADS(2, 8)
#undef ATTEND_HEADS

static void NAME(attend)(const Step *step, int64_t layer, float scale, int64_t row, int64_t kv_head,
                         int thread) {
    float *scores = step->scores + thread * MAX_GROUP * step->history;
    NAME(Estimate) estimate = {0};
    int64_t group = step->heads / step->kv_heads, d = step->head_dim, together = 1;
    int64_t qkv_width = (step->heads + 2 * step->kv_heads) * d;
    const Piece *pieces = step->pieces + step->first_piece[row];
    int64_t num_pieces = step->first_piece[row + 1] - step->first_piece[row];
    if (step->squeezed && step->squeezed[row] >= 0) {
        Piece *picked = step->picked + thread * step->most_picked;
        float *scratch = step->cluster_scores + thread * step->most_cluster_scores;
        num_pieces = NAME(pick)(step, step->squeezes + step->squeezed[row], layer, scale, row, kv_head,
                                scratch, picked, &estimate);
        pieces = picked;
    }
    if (d == 64) together = group % 4 == 0 ? 4 : group % 3 == 0 ? 3 : group % 2 == 0 ? 2 : 1;
    else if (d == 128 && group % 2 == 0) together = 2;
    for (int64_t g = 0; g < group; g += together) {
        int64_t head = kv_head * group + g;
        const float *query = step->wide + row * qkv_width + head * d;
        float *out = step->mixed + row * step->heads * d + head * d;
#define ATTEND(G, NV)                                                                              \
    case 16 * (G) + (NV):                                                                          \
        NAME(attend_##G##_##NV)(step, pieces, num_pieces, layer, query, kv_head *d, scale, scores, \
                                out, &estimate);                                                   \
        break
        switch (16 * together + d / 16) {
            ATTEND(1, 1); ATTEND(1, 2); ATTEND(1, 3); ATTEND(1, 4);
            ATTEND(1, 5); ATTEND(1, 6); ATTEND(1, 7); ATTEND(1, 8);
            ATTEND(2, 4); ATTEND(3, 4); ATTEND(4, 4); ATTEND(2, 8);
        }
#undef ATTEND
        if (estimate.scores) estimate.scores += together * estimate.num_clusters;
    }
}
