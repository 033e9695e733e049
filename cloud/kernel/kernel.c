/* Decoder layers with 8-bit weights on a CPU: whole layers in one call, no Python in between.
 *
 * It computes what cloud/engine/int8_linear.py and cloud/engine/fused_layer.py compute, for layers of
 * the Llama shape. A row becomes two int8 digits, which are multiplied exactly in integers. So a
 * row's bits depend only on the row and its own session, in any batch and on any number of threads.
 * Keys and values are in the arena of cloud/kv/pool.py; the kernel reads them there.
 *
 * Weights are packed [N/16][K/4][16][4] as code + 128: a step reads them once, from front to back.
 * There is code for AVX2, for AVX-512 VNNI and for Arm's SDOT, chosen at run time. On other machines
 * `sp_available` gives 0 and torch runs the layers. Python calls it through ctypes. The arithmetic is
 * ours.
 * README.md in this folder has the rest: the files, the threads, the ABI.
 */
#include <stdint.h>

#ifdef _WIN32
#define API __declspec(dllexport)
#else
#define API __attribute__((visibility("default")))
#endif

#if defined(__GNUC__) && defined(__linux__) && (defined(__x86_64__) || defined(__AARCH64EL__))
#define BUILT 1
#include <float.h>
#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>
#else
#include <arm_neon.h>
#include <sys/auxv.h>
#endif
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#else
#define BUILT 0
#endif

/* Count up when a structure below changes, or what a function does with it (README.md, "The ABI"). */
#define LAYOUT_VERSION 4

typedef struct {
    const uint8_t *packed; /* [N/16][K/4][16][4], code + 128; N rounded up to 64, K to 4 */
    const float *scale;    /* [N rounded up to 64] */
    const float *bias;     /* [N rounded up to 64] or NULL */
    int64_t n, k;          /* real sizes */
} Linear;

typedef struct {
    Linear qkv, out, gate_up, down;
    const float *input_norm, *post_norm; /* [D] */
    float eps, scale;                    /* of the norms; of the scores */
} Layer;

typedef struct {
    int64_t row, stride, count; /* `count` arena rows; those of layer l begin at row + l * stride */
} Piece;

/* Clusters of the keys of SEGMENT_TOKENS positions, in all layers (cloud/squeezed/clusters.py). */
#define SEGMENT_TOKENS 512
#define NUM_CLUSTERS 32
typedef struct {
    const uint8_t *labels;   /* [layers][KV][SEGMENT_TOKENS] each key's cluster */
    const float *centroids;  /* [layers][KV][d][NUM_CLUSTERS] */
    const float *counts;     /* [layers][KV][NUM_CLUSTERS] keys of each */
    const float *values;     /* [layers][KV][NUM_CLUSTERS][d] mean value of each */
} Segment;

typedef struct {
    const Segment *segments; /* of positions 0, SEGMENT_TOKENS, .. */
    int64_t num_segments, first_layer; /* index 0 of their arrays is layer `first_layer` */
    float threshold; /* logarithm of the softmax weight above which a cluster is read */
} Squeeze;

typedef struct {
    int64_t num_rows, width, inner; /* T, D, inner width of the MLP */
    int64_t heads, kv_heads, head_dim, rotary_dim;
    float *arena;                /* [rows][2 KV][d], keys before values */
    const int64_t *place, *step; /* [T] arena row of layer l: place + l * step */
    const int64_t *first_piece;  /* [T + 1] each row's pieces */
    const Piece *pieces;         /* what each row sees, itself included, by position */
    const float *cos, *sin;      /* [T][rotary_dim], the sine's first half negated */
    float *hidden;               /* [T][D], in and out */
    float *wide;                 /* scratch [T][max(qkv, gate and up)] */
    float *mixed;                /* scratch [T][max(H d, inner)] */
    int8_t *digits;              /* scratch [2 T][K rounded up to 4, largest] */
    float *row_scale;            /* scratch [T] */
    int32_t *row_sum;            /* scratch [2 T] */
    float *scores;               /* scratch [threads][MAX_GROUP][history] */
    int64_t history;             /* the longest, rounded up to 16 */
    /* For rows that read selected keys; all NULL where no row does. */
    const int64_t *squeezed;     /* [T] index in `squeezes`, -1: the row sees every key */
    const Squeeze *squeezes;
    int64_t *num_read;           /* [T][KV] added to: selected keys of all layers */
    Piece *picked;               /* scratch [threads][most_picked] */
    float *cluster_scores;       /* scratch [threads][most_cluster_scores] */
    int64_t most_picked, most_cluster_scores;
    /* For rows whose rotated queries are kept. */
    const int64_t *kept;         /* [T] place among the kept rows, -1: none; NULL: none of all */
    float *queries;              /* [layers][num_kept][H][d] from layer `kept_layer` on */
    int64_t num_kept, kept_layer;
} Step;

#if BUILT

#include "thread_pool.h"

API int32_t sp_set_threads(int32_t count) { return use_threads(count); }

#define MAX_GROUP 4 /* query heads that attend together (library.py) */
/* The lane of the i-th of 16 vectors that are summed together: bits 0 and 1, 2 and 3 swapped. */
#define SLOT(i) (((i) & 1) << 1 | ((i) & 2) >> 1 | ((i) & 4) << 1 | ((i) & 8) >> 1)

/* How a product is cut: a chunk is 64 outputs of a panel of rows. Where there is one panel, the last
 * blocks are halved if whole ones would leave threads without work. */
#define PANEL_ROWS 96
/* So many bytes ahead of the weights that are multiplied, others are asked for from memory. The
 * processor's own prefetch comes late for a single row. Past the end a prefetch does nothing. */
#define AHEAD 4096
typedef struct {
    int64_t panels, blocks, whole; /* the first `whole` blocks are not halved */
} Tiles;

typedef struct {
    int64_t panel, block;
    int first, vectors; /* of the block's four vectors of 16 outputs */
} Tile;

static Tiles tiles_of(const Linear *linear, int64_t num_rows, int64_t threads) {
    Tiles tiles = {(num_rows + PANEL_ROWS - 1) / PANEL_ROWS, (linear->n + 63) / 64, 0};
    tiles.whole = tiles.panels == 1 ? tiles.blocks - tiles.blocks % threads : tiles.blocks;
    return tiles;
}

static int64_t count_tiles(const Tiles *tiles) {
    return tiles->panels * (2 * tiles->blocks - tiles->whole);
}

static Tile tile_of(const Tiles *tiles, int64_t chunk) {
    int64_t in_panel = 2 * tiles->blocks - tiles->whole, i = chunk % in_panel;
    if (i < tiles->whole) return (Tile){chunk / in_panel, i, 0, 4};
    int64_t half = i - tiles->whole;
    return (Tile){chunk / in_panel, tiles->whole + half / 2, (int)(half % 2) * 2, 2};
}

#define CHUNK_FLOATS 8192
#define ATTEND_COST CHUNK_FLOATS /* a head of a row is a chunk of its own */
/* How many items a chunk has, where an item takes `floats` numbers: a chunk runs a microsecond or
 * more. */
static int64_t items_a_chunk(int64_t floats, int64_t num_items) {
    int64_t size = CHUNK_FLOATS / (floats > 0 ? floats : 1), least = num_items >> (COUNT_BITS - 1);
    if (size < 1) size = 1;
    return size > least ? size : least + 1;
}

static int64_t chunks(int64_t num_items, int64_t size) { return (num_items + size - 1) / size; }

typedef enum {
    NORM_IN, QKV, PLACE, ATTEND, MIXED, OUT, NORM_POST, GATE_UP, GATE, DOWN, NUM_LAYER_PHASES
} LayerPhase;

typedef struct {
    Job base;
    const Layer *layers; /* all of one shape */
    int64_t first_layer;
    const Step *step;
    Tiles tiles[NUM_LAYER_PHASES];  /* of the products */
    int64_t size[NUM_LAYER_PHASES]; /* items a chunk of the others: rows, heads of rows for ATTEND */
    int64_t count[NUM_LAYER_PHASES];
} LayersJob;

typedef struct {
    Job base;
    const Linear *linear;
    const float *norm; /* NULL: none */
    float eps;
    const float *x; /* [T][K] */
    float *out;     /* [T][N] */
    const Step *step;
    Tiles tiles;
    int64_t size; /* rows a chunk of the first phase */
} LinearJob;

typedef struct {
    Job base;
    const Step *step;
    int64_t layer;
    float scale;
    int64_t size; /* heads of rows a chunk */
} AttendJob;

static int64_t count_layer_chunks(const Job *base, int64_t phase) {
    return ((const LayersJob *)base)->count[phase % NUM_LAYER_PHASES];
}

static int64_t count_linear_chunks(const Job *base, int64_t phase) {
    const LinearJob *job = (const LinearJob *)base;
    return phase ? count_tiles(&job->tiles) : chunks(job->step->num_rows, job->size);
}

static int64_t count_attend_chunks(const Job *base, int64_t phase) {
    const AttendJob *job = (const AttendJob *)base;
    (void)phase;
    return chunks(job->step->num_rows * job->step->kv_heads, job->size);
}

static void plan_layers(LayersJob *job) {
    const Step *step = job->step;
    const Layer *layer = job->layers;
    int64_t threads = atomic_load(&pool.limit), rows = step->num_rows, d = step->head_dim;
    const Linear *linears[NUM_LAYER_PHASES] = {
        [QKV] = &layer->qkv, [OUT] = &layer->out, [GATE_UP] = &layer->gate_up, [DOWN] = &layer->down};
    /* About what an item costs, in floats of a norm. */
    int64_t cost[NUM_LAYER_PHASES] = {
        [NORM_IN] = step->width, [NORM_POST] = step->width, [MIXED] = step->heads * d,
        [PLACE] = (step->heads + 2 * step->kv_heads) * d, [GATE] = 3 * step->inner, [ATTEND] = ATTEND_COST};
    for (int what = 0; what < NUM_LAYER_PHASES; what++) {
        int64_t items = what == ATTEND ? rows * step->kv_heads : rows;
        if (linears[what]) {
            job->tiles[what] = tiles_of(linears[what], rows, threads);
            job->count[what] = count_tiles(&job->tiles[what]);
        } else {
            job->size[what] = items_a_chunk(cost[what], items);
            job->count[what] = chunks(items, job->size[what]);
        }
    }
}

/* From here on code for more instructions than the compiler's own choice, until TARGET_END. */
#ifdef __clang__
#define PRAGMA(text) _Pragma(#text)
#define TARGET(isa) PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define TARGET_END PRAGMA(clang attribute pop)
#define WIDE "" /* clang takes it from the command line: -mprefer-vector-width=512 */
#else
#define PRAGMA(text) _Pragma(#text)
#define TARGET(isa) PRAGMA(GCC push_options) PRAGMA(GCC target(isa))
#define TARGET_END PRAGMA(GCC pop_options)
#define WIDE ",prefer-vector-width=512"
#endif

#ifdef __x86_64__
#define SDOT 0
TARGET("avx2,fma")
#define NAME(x) x##_avx2
#define VNNI 0
#include "body.h"
#undef NAME
#undef VNNI
TARGET_END

TARGET("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni" WIDE)
#define NAME(x) x##_avx512
#define VNNI 1
#include "body.h"
#undef NAME
#undef VNNI
TARGET_END

#define RUN(what, kind) ((kind) == 2 ? what##_avx512 : what##_avx2)
#else
#define SDOT 1
#ifdef __clang__
TARGET("dotprod")
#else
TARGET("arch=armv8.2-a+dotprod")
#endif
#define NAME(x) x##_sdot
#define VNNI 0
#include "body.h"
#undef NAME
#undef VNNI
TARGET_END

#define RUN(what, kind) ((void)(kind), what##_sdot)
#endif

#ifdef __x86_64__
/* Asked of the processor itself: __builtin_cpu_supports gives 0 under some cross compilers. Intel's
 * manual, volume 2, CPUID and XGETBV; XCR0 tells which registers the operating system saves. */
static int32_t best_kind(void) {
    uint32_t a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    const uint32_t needed = 1u << 12 | 1u << 27 | 1u << 28; /* FMA, OSXSAVE, AVX */
    if ((c & needed) != needed) return 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (low & 0x06) != 0x06 || !(b & 1u << 5)) return 0;
    const uint32_t f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    return (low & 0xE6) == 0xE6 && (b & f_dq_bw_vl) == f_dq_bw_vl && c & 1u << 11 ? 2 : 1;
}
#else
static int32_t best_kind(void) {
    return getauxval(AT_HWCAP) & 1ul << 20 ? 3 : 0; /* HWCAP_ASIMDDP */
}
#endif

/* The instruction set: 0 none that we need, 1 AVX2, 2 AVX-512 VNNI, 3 SDOT of Arm. */
API int32_t sp_available(void) { return best_kind(); }

/* Layers [first_layer, first_layer + num_layers) over all rows of `step`. */
API void sp_layers(const Layer *layers, int64_t first_layer, int64_t num_layers, const Step *step,
                   int32_t kind) {
    if (num_layers < 1 || step->num_rows < 1) return;
    LayersJob job = {.layers = layers, .first_layer = first_layer, .step = step};
    job.base = (Job){num_layers * NUM_LAYER_PHASES, count_layer_chunks,
                     RUN(run_layers, kind)};
    plan_layers(&job);
    execute(&job.base);
}

/* out = x W^T + b, of RMS-normed rows when `norm` is given. Uses the step's digits and scales. */
API void sp_linear(const Linear *linear, const float *norm, float eps, const float *x, float *out,
                   const Step *step, int32_t kind) {
    if (step->num_rows < 1) return;
    LinearJob job = {.linear = linear, .norm = norm, .eps = eps, .x = x, .out = out, .step = step,
                     .tiles = tiles_of(linear, step->num_rows, atomic_load(&pool.limit)),
                     .size = items_a_chunk(linear->k, step->num_rows)};
    job.base = (Job){2, count_linear_chunks, RUN(run_linear, kind)};
    execute(&job.base);
}

/* Attention alone: queries are the first H of step->wide [T][H + 2 KV][d], results go to step->mixed
 * [T][H][d]. Keys and values are in the arena already. Fields that attention does not need may be
 * NULL. */
API void sp_attend(const Step *step, int64_t layer, float scale, int32_t kind) {
    if (step->num_rows < 1) return;
    AttendJob job = {.step = step, .layer = layer, .scale = scale,
                     .size = items_a_chunk(ATTEND_COST, step->num_rows * step->kv_heads)};
    job.base = (Job){1, count_attend_chunks, RUN(run_attend, kind)};
    execute(&job.base);
}

#else

API int32_t sp_available(void) { return 0; }
API int32_t sp_set_threads(int32_t count) { return count; }
API void sp_layers(const Layer *layers, int64_t first, int64_t count, const Step *step, int32_t kind) {}
API void sp_linear(const Linear *linear, const float *norm, float eps, const float *x, float *out,
                   const Step *step, int32_t kind) {}
API void sp_attend(const Step *step, int64_t layer, float scale, int32_t kind) {}

#endif

/* The version and the structures' sizes: a library of other sources would read them wrongly. */
API int64_t sp_layout(int32_t what) {
    const int64_t layout[] = {LAYOUT_VERSION, sizeof(Linear), sizeof(Layer), sizeof(Piece), sizeof(Step),
                              sizeof(Segment), sizeof(Squeeze)};
    return what >= 0 && what < (int32_t)(sizeof(layout) / sizeof(*layout)) ? layout[what] : -1;
}

/* Some build tools ask every extension for this symbol. Nothing imports the library: ctypes opens it,
 * so it needs none of Python's headers. */
API void *PyInit__kernel(void) { return 0; }
