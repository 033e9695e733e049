/* The thread pool of cloud/kernel under ThreadSanitizer, with a job whose phases need each other.
 * Several callers take turns while others change the number of threads. `sanitize.py` builds it. */
#include <immintrin.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../cloud/kernel/thread_pool.h"

#define CELLS 64
#define PHASES 8
#define ROUNDS 150
#define CALLERS 3

typedef struct {
    Job base;
    long cells[PHASES + 1][CELLS]; /* not atomic: only the pool's order protects them */
    int threads_seen[MAX_THREADS];
} Sum;

/* Phases of many chunks, and of one, which the pool runs without the others. */
static int64_t count(const Job *base, int64_t phase) {
    (void)base;
    return phase % 3 == 2 ? 1 : CELLS;
}

static void run(const Job *base, int64_t phase, int64_t chunk, int thread) {
    Sum *job = (Sum *)base;
    int64_t begin = phase % 3 == 2 ? 0 : chunk, end = phase % 3 == 2 ? CELLS : chunk + 1;
    job->threads_seen[thread]++;
    for (int64_t i = begin; i < end; i++)
        job->cells[phase + 1][i] = job->cells[phase][(i + 1) % CELLS] + job->cells[phase][i];
}

static void *call(void *unused) {
    for (int round = 0; round < ROUNDS; round++) {
        Sum *job = calloc(1, sizeof(Sum)); /* freed at once: a late thread would touch it */
        job->base = (Job){PHASES, count, run};
        for (int i = 0; i < CELLS; i++) job->cells[0][i] = 1;
        execute(&job->base);
        for (int i = 0; i < CELLS; i++)
            if (job->cells[PHASES][i] != 1 << PHASES) {
                fprintf(stderr, "a chunk was lost or ran twice\n");
                exit(1);
            }
        free(job);
    }
    return unused;
}

static void *resize(void *unused) {
    static const int sizes[] = {2, 1, 4, 3, 8, 2, 5};
    for (int round = 0; round < ROUNDS; round++) use_threads(sizes[round % 7]);
    return unused;
}

int main(void) {
    pthread_t threads[CALLERS + 1];
    use_threads(4);
    for (int i = 0; i < CALLERS; i++) pthread_create(&threads[i], NULL, call, NULL);
    pthread_create(&threads[CALLERS], NULL, resize, NULL);
    for (int i = 0; i <= CALLERS; i++) pthread_join(threads[i], NULL);
    return 0;
}
