/* The thread pool of kernel.c. A job is a sequence of phases, a phase is a number of chunks, and a
 * free thread claims the next chunk. A phase ends when its chunks are done, not when all threads
 * have arrived. On a busy machine the scheduler may take a thread off the processor: it then delays
 * one chunk at most, and if it holds none, the others go on without it.
 *
 * A thread with nothing to claim spins for some tens of microseconds, then sleeps on a futex. Idle
 * threads thus leave the processor to others, also to the thread that everybody waits for. Ours.
 * One word, the ticket, holds the phase and its unclaimed chunks: so a late claim does no harm.
 *
 * We tried a caller that works alone for a while after a chunk was delayed. It was no faster beside
 * two busy processes, and half as fast in a server, whose own threads delay chunks now and then.
 */
#ifndef SPLITPOINT_THREAD_POOL_H
#define SPLITPOINT_THREAD_POOL_H

#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_THREADS 64
#define COUNT_BITS 20 /* of the ticket; the bits above count phases */
#define COUNT_MASK ((1ull << COUNT_BITS) - 1)

/* A counter that every thread may read, how far it gets in 25 to 50 us, and a rest in a busy wait. */
#ifdef __x86_64__
static uint64_t ticks(void) { return __rdtsc(); }
static uint64_t spin_ticks(void) { return 100000; } /* 2 to 4 to the nanosecond */
static void rest(void) { _mm_pause(); }
#else
static uint64_t ticks(void) {
    uint64_t value;
    __asm__ volatile("mrs %0, cntvct_el0" : "=r"(value));
    return value;
}
static uint64_t spin_ticks(void) {
    uint64_t a_second;
    __asm__ volatile("mrs %0, cntfrq_el0" : "=r"(a_second));
    return a_second / 30000;
}
static void rest(void) { __asm__ volatile("yield"); }
#endif

typedef struct Job Job;
struct Job {
    int64_t num_phases;
    int64_t (*count)(const Job *, int64_t phase); /* chunks: from 1 to COUNT_MASK */
    void (*run)(const Job *, int64_t phase, int64_t chunk, int thread);
};

#define LINE __attribute__((aligned(128))) /* a cache line of its own: every thread writes it */
static struct {
    pthread_mutex_t call; /* one job at a time */
    int size;             /* threads that exist, the caller included */
    /* Of the running phase. They change once all its chunks are done, so only a thread that holds a
     * chunk may read them. */
    const Job *job;
    int64_t phase, count;
    LINE atomic_ullong ticket;  /* phases so far << COUNT_BITS | chunks that nobody has claimed */
    LINE atomic_llong left;     /* chunks that are not done */
    LINE atomic_uint published; /* futex: changes with every phase and at a job's end */
    atomic_uint sleepers, caller_sleeps, finished;
    LINE atomic_uint limit; /* futex: how many threads may take part */
} pool = {.call = PTHREAD_MUTEX_INITIALIZER, .size = 1, .limit = 1};

static void futex(atomic_uint *word, int operation, unsigned value) {
    syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* Announce a change. A sleeper counts itself before the operating system compares the word, so one
 * of the two sees the other. */
static void publish(void) {
    atomic_fetch_add(&pool.published, 1);
    if (atomic_load(&pool.caller_sleeps) || atomic_load(&pool.sleepers))
        futex(&pool.published, FUTEX_WAKE, INT_MAX);
}

static void wait_for_more(unsigned seen, atomic_uint *sleepers) {
    uint64_t until = ticks() + spin_ticks();
    do {
        rest();
        if (atomic_load_explicit(&pool.published, memory_order_acquire) != seen) return;
    } while (ticks() < until);
    atomic_fetch_add(sleepers, 1);
    futex(&pool.published, FUTEX_WAIT, seen);
    atomic_fetch_sub(sleepers, 1);
}

/* The phase is done: begin the next. A phase of a single chunk runs here, without the others. */
static void advance(int thread) {
    const Job *job = pool.job;
    for (int64_t phase = pool.phase + 1; phase < job->num_phases; phase++) {
        int64_t count = job->count(job, phase);
        if (count <= 1) {
            job->run(job, phase, 0, thread);
            continue;
        }
        uint64_t phases = (atomic_load_explicit(&pool.ticket, memory_order_relaxed) >> COUNT_BITS) + 1;
        pool.phase = phase;
        pool.count = count;
        atomic_store_explicit(&pool.left, count, memory_order_relaxed);
        atomic_store_explicit(&pool.ticket, phases << COUNT_BITS | (uint64_t)count, memory_order_release);
        publish();
        return;
    }
    atomic_store_explicit(&pool.finished, 1, memory_order_release);
    publish();
}

/* Run one chunk, if there is one. Only a thread that holds a claim may touch the job's memory. */
static int help(int thread) {
    unsigned long long ticket = atomic_load_explicit(&pool.ticket, memory_order_acquire);
    do {
        if (!(ticket & COUNT_MASK)) return 0;
    } while (!atomic_compare_exchange_weak_explicit(&pool.ticket, &ticket, ticket - 1,
                                                    memory_order_acq_rel, memory_order_acquire));
    const Job *job = pool.job;
    job->run(job, pool.phase, pool.count - (int64_t)(ticket & COUNT_MASK), thread);
    if (atomic_fetch_sub_explicit(&pool.left, 1, memory_order_acq_rel) == 1) advance(thread);
    return 1;
}

static void *work(void *number) {
    unsigned thread = (unsigned)(uintptr_t)number;
    for (;;) {
        unsigned limit = atomic_load(&pool.limit);
        unsigned seen = atomic_load_explicit(&pool.published, memory_order_acquire);
        if (thread >= limit) futex(&pool.limit, FUTEX_WAIT, limit);
        else if (!help((int)thread)) wait_for_more(seen, &pool.sleepers);
    }
    return NULL;
}

/* Run the job to its end, on the calling thread and on those that are free. */
static void execute(const Job *job) {
    pthread_mutex_lock(&pool.call);
    pool.job = job;
    pool.phase = -1;
    atomic_store_explicit(&pool.finished, 0, memory_order_relaxed);
    advance(0);
    for (;;) {
        unsigned seen = atomic_load_explicit(&pool.published, memory_order_acquire);
        if (atomic_load_explicit(&pool.finished, memory_order_acquire)) break;
        if (!help(0)) wait_for_more(seen, &pool.caller_sleeps);
    }
    pthread_mutex_unlock(&pool.call);
}

/* `count` threads take part from now on; the others sleep. */
static int use_threads(int count) {
    if (count < 1) count = 1;
    if (count > MAX_THREADS) count = MAX_THREADS;
    if (atomic_load(&pool.limit) == (unsigned)count) return count;
    pthread_mutex_lock(&pool.call);
    sigset_t all, before; /* signals are for the process's other threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.size < count) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, work, (void *)(uintptr_t)pool.size)) break;
        pthread_detach(thread);
        pool.size++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (count > pool.size) count = pool.size;
    atomic_store(&pool.limit, (unsigned)count);
    futex(&pool.limit, FUTEX_WAKE, INT_MAX);
    pthread_mutex_unlock(&pool.call);
    return count;
}

/* A forked child has only the caller's thread, and perhaps a pool in the middle of a job. */
static void reset_after_fork(void) {
    pthread_mutex_init(&pool.call, NULL);
    pool.size = 1;
    pool.job = NULL;
    atomic_store(&pool.ticket, 0);
    atomic_store(&pool.left, 0);
    atomic_store(&pool.sleepers, 0);
    atomic_store(&pool.caller_sleeps, 0);
    atomic_store(&pool.limit, 1);
}

__attribute__((constructor)) static void watch_forks(void) {
    pthread_atfork(NULL, NULL, reset_after_fork);
}

#endif
