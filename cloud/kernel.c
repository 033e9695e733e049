/* Decoder layers with 8-bit weights on a CPU: whole layers in one call, no Python in between.
 *
 * The compiled twin of cloud/int8_linear.py and cloud/fused_layer.py for layers of the Llama shape:
 * the same two int8 digits a row, multiplied exactly in integers, so that a row's numbers depend
 * on nothing but the row and its own session, bit for bit, in any batch and on any number of
 * threads. Keys and values live in the arena of cloud/kv_pool.py and are read where they lie.
 *
 * Weights are packed [N/64][K/4][64][4] as code + 128: a step reads them once, front to back.
 * Built for AVX2 and for AVX-512 VNNI, chosen at run time; on other machines `sp_available` says 0
 * and the torch code runs. Called through ctypes. The arithmetic is ours.
 */
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#include <stdint.h>

#ifdef _WIN32
#define API __declspec(dllexport)
#else
#define API __attribute__((visibility("default")))
#endif

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define BUILT 1
#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#else
#define BUILT 0
#endif

typedef struct {
    const uint8_t *packed; /* [N/64][K/4][64][4], code + 128; N and K rounded up */
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
    int64_t row, stride, count; /* arena rows of layer l: row + l * stride and the next ones */
} Piece;

typedef struct {
    int64_t num_rows, width, inner; /* T, D, inner width of the MLP */
    int64_t heads, kv_heads, head_dim, rotary_dim;
    float *arena;                /* [rows][2 KV][d], keys before values */
    const int64_t *place, *step; /* [T] arena row of layer l: place + l * step */
    const int64_t *first_piece;  /* [T + 1] each row's pieces */
    const Piece *pieces;         /* what each row sees, itself included, in order */
    const float *cos, *sin;      /* [T][rotary_dim], the sine's first half negated */
    float *hidden;               /* [T][D], in and out */
    float *wide;                 /* scratch [T][max(qkv, gate and up)] */
    float *mixed;                /* scratch [T][max(H d, inner)] */
    int8_t *digits;              /* scratch [2 T][K rounded up to 4, largest] */
    float *row_scale;            /* scratch [T] */
    int32_t *row_sum;            /* scratch [2 T] */
    float *scores;               /* scratch [threads][group * longest history] */
    int64_t scores_size;         /* of one thread */
} Step;

#if BUILT

/* A pool of threads that wait asleep between steps and spin within one. */
#define MAX_THREADS 64
typedef void (*Job)(void *, int);
static struct {
    pthread_mutex_t lock, call;
    pthread_cond_t wake;
    int size;              /* threads, the caller included */
    unsigned generation;
    Job job;
    void *argument;
    atomic_int running;
} pool = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 1, 0,
          NULL, NULL, 0};
static atomic_uint generation_seen;

static void relax(int *spins) {
    if (++*spins < 4096) _mm_pause();
    else sched_yield();
}

static void *work(void *number) {
    int index = (int)(intptr_t)number;
    unsigned seen = 0;
    for (;;) {
        for (int i = 0; i < 2000 && atomic_load_explicit(&generation_seen, memory_order_acquire) == seen; i++)
            _mm_pause();
        pthread_mutex_lock(&pool.lock);
        while (pool.generation == seen) pthread_cond_wait(&pool.wake, &pool.lock);
        seen = pool.generation;
        Job job = pool.job;
        void *argument = pool.argument;
        pthread_mutex_unlock(&pool.lock);
        if (job) {
            job(argument, index);
            atomic_fetch_sub_explicit(&pool.running, 1, memory_order_acq_rel);
        }
    }
    return NULL;
}

API int32_t sp_set_threads(int32_t count) {
    if (count < 1) count = 1;
    if (count > MAX_THREADS) count = MAX_THREADS;
    pthread_mutex_lock(&pool.call);
    while (pool.size < count) { /* threads beyond `count` of an earlier call stay and help */
        pthread_t thread;
        if (pthread_create(&thread, NULL, work, (void *)(intptr_t)pool.size)) break;
        pthread_detach(thread);
        pool.size++;
    }
    pthread_mutex_unlock(&pool.call);
    return pool.size;
}

static void run(Job job, void *argument) {
    pthread_mutex_lock(&pool.lock);
    pool.job = job;
    pool.argument = argument;
    atomic_store(&pool.running, pool.size - 1);
    pool.generation++;
    atomic_store_explicit(&generation_seen, pool.generation, memory_order_release);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    job(argument, 0);
    int spins = 0;
    while (atomic_load_explicit(&pool.running, memory_order_acquire) > 0) relax(&spins);
    pthread_mutex_lock(&pool.lock);
    pool.job = NULL; /* a thread that is created later must not find work that is over */
    pthread_mutex_unlock(&pool.lock);
}

/* Everybody waits for everybody; the last to come sets the counter of the next piece of work. */
typedef struct {
    atomic_int arrived;
    atomic_uint phase;
    atomic_llong next;
    int size;
} Barrier;

static void meet(Barrier *barrier) {
    unsigned phase = atomic_load_explicit(&barrier->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) == barrier->size - 1) {
        atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&barrier->next, 0, memory_order_relaxed);
        atomic_fetch_add_explicit(&barrier->phase, 1, memory_order_release);
        return;
    }
    int spins = 0;
    while (atomic_load_explicit(&barrier->phase, memory_order_acquire) == phase) relax(&spins);
}

static int64_t grab(Barrier *barrier) {
    return atomic_fetch_add_explicit(&barrier->next, 1, memory_order_relaxed);
}

typedef struct {
    const Layer *layers;
    int64_t first_layer, num_layers;
    const Step *step;
    Barrier barrier;
} LayersJob;

typedef struct {
    const Linear *linear;
    const float *norm; /* NULL: none */
    float eps;
    const float *x; /* [T][K] */
    float *out;     /* [T][N] */
    const Step *step;
    Barrier barrier;
} LinearJob;

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define NAME(x) x##_avx2
#define VNNI 0
#include "kernel_body.h"
#undef NAME
#undef VNNI
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,prefer-vector-width=512")
#define NAME(x) x##_avx512
#define VNNI 1
#include "kernel_body.h"
#undef NAME
#undef VNNI
#pragma GCC pop_options

/* 0: not here; 1: AVX2; 2: AVX-512 VNNI. */
API int32_t sp_available(void) {
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return 2;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 1 : 0;
}

/* Layers [first_layer, first_layer + num_layers) over all rows of `step`. */
API void sp_layers(const Layer *layers, int64_t first_layer, int64_t num_layers, const Step *step,
                   int32_t kind) {
    LayersJob job = {layers, first_layer, num_layers, step, {0}};
    pthread_mutex_lock(&pool.call);
    job.barrier.size = pool.size;
    run(kind == 2 ? layers_avx512 : layers_avx2, &job);
    pthread_mutex_unlock(&pool.call);
}

/* out = x W^T + b, of RMS-normed rows when `norm` is given. Uses the step's digits and scales. */
API void sp_linear(const Linear *linear, const float *norm, float eps, const float *x, float *out,
                   const Step *step, int32_t kind) {
    LinearJob job = {linear, norm, eps, x, out, step, {0}};
    pthread_mutex_lock(&pool.call);
    job.barrier.size = pool.size;
    run(kind == 2 ? linear_avx512 : linear_avx2, &job);
    pthread_mutex_unlock(&pool.call);
}

#else

API int32_t sp_available(void) { return 0; }
API int32_t sp_set_threads(int32_t count) { return count; }
API void sp_layers(const Layer *layers, int64_t first, int64_t count, const Step *step, int32_t kind) {}
API void sp_linear(const Linear *linear, const float *norm, float eps, const float *x, float *out,
                   const Step *step, int32_t kind) {}

#endif

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernel", NULL, -1, NULL,
                                    NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernel(void) { return PyModule_Create(&module); }
