/* Which keys of a fixed context one row reads: cloud/squeezed/clusters.py, log_shares. body.h includes it
 * once for each instruction set, so it has no include guard. */

/* The scores of the clusters of one query head: scores[NUM_CLUSTERS of each segment]. */
static void NAME(score_clusters)(const Squeeze *squeeze, int64_t head_at, const float *query, int64_t d,
                                 float scale, float *scores) {
    for (int64_t s = 0; s < squeeze->num_segments; s++) {
        const float *centroids = squeeze->segments[s].centroids + head_at * d * NUM_CLUSTERS;
        VF first = {0}, second = {0};
        for (int64_t i = 0; i < d; i++) {
            first += query[i] * LOAD(centroids + i * NUM_CLUSTERS);
            second += query[i] * LOAD(centroids + i * NUM_CLUSTERS + 16);
        }
        *(VF *)(scores + s * NUM_CLUSTERS) = first * scale;
        *(VF *)(scores + s * NUM_CLUSTERS + 16) = second * scale;
    }
}

/* The logarithm of sum over clusters of count * exp(score). NaN where a score is. */
static float NAME(log_total)(const Squeeze *squeeze, int64_t head_at, const float *scores) {
    int64_t n = squeeze->num_segments * NUM_CLUSTERS;
    VF largest = LOAD(scores), sums = {0};
    for (int64_t i = 16; i < n; i += 16) largest = NAME(vmax)(LOAD(scores + i), largest);
    float most = NAME(hmax)(largest);
    for (int64_t s = 0; s < squeeze->num_segments; s++) {
        const float *counts = squeeze->segments[s].counts + head_at * NUM_CLUSTERS;
        for (int64_t i = 0; i < NUM_CLUSTERS; i += 16)
            sums += LOAD(counts + i) * NAME(vexp)(LOAD(scores + s * NUM_CLUSTERS + i) - most);
    }
    return most + logf(NAME(hsum)(sums));
}

/* Clusters whose keys a row does not read: each counts as its number of keys, all with its centroid as
 * their key and its mean value as their value. */
typedef struct {
    const Squeeze *squeeze;
    int64_t head_at, num_clusters; /* of all segments */
    int64_t count;                 /* of those in `unread` */
    const int32_t *unread;
    const float *scores;           /* [group][num_clusters] */
} NAME(Estimate);

/* The pieces that the heads of one group read: selected keys of the fixed context, and all keys behind
 * it. scratch: (group + 3) NUM_CLUSTERS num_segments numbers. Returns how many pieces `picked` got. Keys
 * keep their order, so that a row that selects all of them has the bits of exact attention. */
static int64_t NAME(pick)(const Step *step, const Squeeze *squeeze, int64_t layer, float scale, int64_t row,
                          int64_t kv_head, float *scratch, Piece *picked, NAME(Estimate) *estimate) {
    int64_t d = step->head_dim, group = step->heads / step->kv_heads;
    int64_t n = squeeze->num_segments * NUM_CLUSTERS, fixed = squeeze->num_segments * SEGMENT_TOKENS;
    int64_t head_at = (layer - squeeze->first_layer) * step->kv_heads + kv_head;
    const float *query = step->wide + row * (step->heads + 2 * step->kv_heads) * d + kv_head * group * d;
    float *best = scratch + group * n;
    int32_t *unread = (int32_t *)(best + n);
    uint8_t *reads = (uint8_t *)(best + 2 * n);
    for (int64_t g = 0; g < group; g++) {
        float *of = scratch + g * n;
        NAME(score_clusters)(squeeze, head_at, query + g * d, d, scale, of);
        float total = NAME(log_total)(squeeze, head_at, of);
        for (int64_t i = 0; i < n; i += 16) {
            VF share = LOAD(of + i) - total;
            *(VF *)(best + i) = g ? NAME(vmax)(share, LOAD(best + i)) : share;
        }
    }
    *estimate = (NAME(Estimate)){squeeze, head_at, n, 0, unread, scratch};
    for (int64_t i = 0; i < n; i++) {
        reads[i] = best[i] > squeeze->threshold;
        float keys = squeeze->segments[i / NUM_CLUSTERS].counts[head_at * NUM_CLUSTERS + i % NUM_CLUSTERS];
        if (!reads[i] && keys > 0) unread[estimate->count++] = (int32_t)i;
    }
    const Piece *piece = step->pieces + step->first_piece[row];
    const Piece *end = step->pieces + step->first_piece[row + 1];
    int64_t position = 0, count = 0, num_read = 0;
    for (; piece < end; piece++) {
        int64_t i = 0, run = 0; /* the last `run` keys before i are read */
        while (i < piece->count && position < fixed) {
            int64_t at = position % SEGMENT_TOKENS, stop = SEGMENT_TOKENS - at;
            const Segment *segment = squeeze->segments + position / SEGMENT_TOKENS;
            const uint8_t *labels = segment->labels + head_at * SEGMENT_TOKENS + at;
            const uint8_t *of = reads + position / SEGMENT_TOKENS * NUM_CLUSTERS;
            if (stop > piece->count - i) stop = piece->count - i;
            for (int64_t k = 0; k < stop; k++) {
                if (of[labels[k]]) {
                    run++;
                    continue;
                }
                if (run) picked[count++] = (Piece){piece->row + i + k - run, piece->stride, run};
                num_read += run;
                run = 0;
            }
            i += stop;
            position += stop;
        }
        num_read += run;
        run += piece->count - i; /* behind the fixed context */
        position += piece->count - i;
        if (run) picked[count++] = (Piece){piece->row + piece->count - run, piece->stride, run};
    }
    step->num_read[row * step->kv_heads + kv_head] += num_read;
    return count;
}
