#include "cri/workers.h"

#include <errno.h>
#include <pthread.h>
#include <sys/queue.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/str.h"

/* Mapped, not touched: a thread pays for what it uses. Large enough for jansson's deepest nesting.
 */
#define STACK_BYTES (1024U * 1024U)

struct worker {
    pthread_cond_t wake;
    void (*fn)(void *arg); /* NULL while idle */
    void *arg;
    SLIST_ENTRY(worker) link;
};

struct workers {
    pthread_mutex_t lock;
    pthread_cond_t gone;          /* `threads` reached 0 */
    SLIST_HEAD(, worker) idle;    /* under lock; last in, first out: the rest can end */
    size_t max, threads, running; /* under lock */
    bool stopping;                /* under lock */
    int64_t idle_ns;
};

struct start {
    struct workers *w;
    void (*fn)(void *arg);
    void *arg;
};

static struct timespec deadline_in(int64_t ns)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    int64_t sum = t.tv_nsec + ns;
    t.tv_sec += (time_t)(sum / 1000000000);
    t.tv_nsec = (long)(sum % 1000000000);
    return t;
}

/* Waits for the next job; false when the thread should end. Called and returns with the lock held.
 */
static bool next_job(struct workers *w, struct worker *self)
{
    struct timespec until = deadline_in(w->idle_ns);
    SLIST_INSERT_HEAD(&w->idle, self, link);
    int rc = 0;
    while (self->fn == NULL && !w->stopping && rc != ETIMEDOUT)
        rc = pthread_cond_timedwait(&self->wake, &w->lock, &until);
    if (self->fn != NULL)
        return true; /* who gave the job has taken us off the list */
    SLIST_REMOVE(&w->idle, self, worker, link);
    return false;
}

static void *thread_main(void *p)
{
    struct start *start = p;
    struct workers *w = start->w;
    struct worker self = {.fn = start->fn, .arg = start->arg};
    free(start);
    pthread_condattr_t attr;
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&self.wake, &attr);
    (void)pthread_condattr_destroy(&attr);

    (void)pthread_mutex_lock(&w->lock);
    do {
        (void)pthread_mutex_unlock(&w->lock);
        self.fn(self.arg);
        (void)pthread_mutex_lock(&w->lock);
        self.fn = NULL;
        w->running--;
    } while (next_job(w, &self));
    (void)pthread_cond_destroy(&self.wake);
    if (--w->threads == 0)
        (void)pthread_cond_broadcast(&w->gone);
    (void)pthread_mutex_unlock(&w->lock);
    return NULL;
}

struct workers *workers_new(size_t max, int64_t idle_ns, struct err *err)
{
    struct workers *w = calloc(1, sizeof(*w));
    if (w == NULL) {
        (void)err_set(err, ERR_EXHAUSTED, "out of memory");
        return NULL;
    }
    w->max = max;
    w->idle_ns = idle_ns;
    SLIST_INIT(&w->idle);
    (void)pthread_mutex_init(&w->lock, NULL);
    (void)pthread_cond_init(&w->gone, NULL);
    return w;
}

/* The lock is held. */
static int new_thread(struct workers *w, void (*fn)(void *arg), void *arg)
{
    struct start *start = malloc(sizeof(*start));
    if (start == NULL)
        return -1;
    *start = (struct start){.w = w, .fn = fn, .arg = arg};
    pthread_attr_t attr;
    (void)pthread_attr_init(&attr);
    (void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    (void)pthread_attr_setstacksize(&attr, STACK_BYTES);
    pthread_t thread;
    int rc = pthread_create(&thread, &attr, thread_main, start);
    (void)pthread_attr_destroy(&attr);
    if (rc != 0) {
        free(start);
        return -1;
    }
    w->threads++;
    return 0;
}

int workers_run(struct workers *w, void (*fn)(void *arg), void *arg)
{
    int rc = 0;
    (void)pthread_mutex_lock(&w->lock);
    struct worker *idle = SLIST_FIRST(&w->idle);
    if (w->stopping || w->running >= w->max) {
        rc = -1;
    } else if (idle != NULL) {
        SLIST_REMOVE_HEAD(&w->idle, link);
        idle->fn = fn;
        idle->arg = arg;
        (void)pthread_cond_signal(&idle->wake);
    } else {
        rc = new_thread(w, fn, arg);
    }
    if (rc == 0)
        w->running++;
    (void)pthread_mutex_unlock(&w->lock);
    return rc;
}

size_t workers_running(struct workers *w)
{
    (void)pthread_mutex_lock(&w->lock);
    size_t n = w->running;
    (void)pthread_mutex_unlock(&w->lock);
    return n;
}

void workers_free(struct workers *w)
{
    if (w == NULL)
        return;
    (void)pthread_mutex_lock(&w->lock);
    w->stopping = true;
    struct worker *i;
    SLIST_FOREACH(i, &w->idle, link)
    (void)pthread_cond_signal(&i->wake);
    while (w->threads > 0)
        (void)pthread_cond_wait(&w->gone, &w->lock);
    (void)pthread_mutex_unlock(&w->lock);
    (void)pthread_cond_destroy(&w->gone);
    (void)pthread_mutex_destroy(&w->lock);
    free(w);
}
