#include "base/loop.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/queue.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/str.h"

struct loop_source {
    struct loop *loop;
    int fd;
    bool timer;   /* fd is our timerfd */
    bool removed; /* freed after the current turn */
    loop_fd_fn fd_fn;
    loop_timer_fn timer_fn;
    void *arg;
    TAILQ_ENTRY(loop_source) link;
};

struct work {
    loop_work_fn fn;
    void *arg;
    STAILQ_ENTRY(work) link;
};

struct loop {
    int epoll;
    int wake;
    atomic_bool stop;
    _Atomic pthread_t thread; /* valid while running */
    atomic_bool running;
    pthread_mutex_t lock; /* guards the three lists */
    TAILQ_HEAD(, loop_source) sources;
    TAILQ_HEAD(, loop_source) dead; /* removed, may still be named by an event of this turn */
    STAILQ_HEAD(, work) posted;
};

struct loop *loop_new(struct err *err)
{
    struct loop *l = xcalloc(1, sizeof(*l));
    TAILQ_INIT(&l->sources);
    TAILQ_INIT(&l->dead);
    STAILQ_INIT(&l->posted);
    (void)pthread_mutex_init(&l->lock, NULL);
    l->epoll = epoll_create1(EPOLL_CLOEXEC);
    l->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event ev = {.events = EPOLLIN, .data.ptr = NULL};
    if (l->epoll < 0 || l->wake < 0 || epoll_ctl(l->epoll, EPOLL_CTL_ADD, l->wake, &ev) < 0) {
        (void)err_sys(err, errno, "make event loop");
        loop_free(l);
        return NULL;
    }
    return l;
}

static void free_source(struct loop_source *s)
{
    if (s->timer)
        (void)close(s->fd);
    free(s);
}

static void bury(struct loop *l)
{
    (void)pthread_mutex_lock(&l->lock);
    struct loop_source *s;
    while ((s = TAILQ_FIRST(&l->dead)) != NULL) {
        TAILQ_REMOVE(&l->dead, s, link);
        free_source(s);
    }
    (void)pthread_mutex_unlock(&l->lock);
}

static void run_posted(struct loop *l)
{
    for (;;) {
        (void)pthread_mutex_lock(&l->lock);
        struct work *w = STAILQ_FIRST(&l->posted);
        if (w != NULL)
            STAILQ_REMOVE_HEAD(&l->posted, link);
        (void)pthread_mutex_unlock(&l->lock);
        if (w == NULL)
            return;
        w->fn(w->arg);
        free(w);
    }
}

void loop_free(struct loop *loop)
{
    if (loop == NULL)
        return;
    run_posted(loop);
    bury(loop);
    struct loop_source *s;
    while ((s = TAILQ_FIRST(&loop->sources)) != NULL) {
        TAILQ_REMOVE(&loop->sources, s, link);
        free_source(s);
    }
    cleanup_closep(&loop->wake);
    cleanup_closep(&loop->epoll);
    (void)pthread_mutex_destroy(&loop->lock);
    free(loop);
}

static void dispatch(struct loop *l, const struct epoll_event *ev)
{
    struct loop_source *s = ev->data.ptr;
    if (s == NULL) {
        eventfd_t n;
        (void)eventfd_read(l->wake, &n);
        return;
    }
    if (s->removed)
        return;
    if (!s->timer) {
        s->fd_fn(s, ev->events, s->arg);
        return;
    }
    uint64_t expired;
    if (read(s->fd, &expired, sizeof(expired)) == (ssize_t)sizeof(expired))
        s->timer_fn(s, s->arg);
}

void loop_turn(struct loop *loop, int timeout_ms)
{
    struct epoll_event evs[64];
    atomic_store(&loop->thread, pthread_self());
    atomic_store(&loop->running, true);
    int n = epoll_wait(loop->epoll, evs, (int)ARRAY_LEN(evs), timeout_ms);
    for (int i = 0; i < n; i++)
        dispatch(loop, &evs[i]);
    run_posted(loop);
    bury(loop);
}

void loop_run(struct loop *loop)
{
    while (!atomic_load(&loop->stop))
        loop_turn(loop, -1);
    atomic_store(&loop->stop, false);
    atomic_store(&loop->running, false);
}

void loop_stop(struct loop *loop)
{
    atomic_store(&loop->stop, true);
    (void)eventfd_write(loop->wake, 1);
}

bool loop_is_current(const struct loop *loop)
{
    return atomic_load(&loop->running) && pthread_equal(atomic_load(&loop->thread), pthread_self());
}

/* Takes s; everything in it must be set, since its first event can come before this returns. */
static struct loop_source *add_source(struct loop *l, struct loop_source *s, uint32_t events,
                                      struct err *err)
{
    s->loop = l;
    (void)pthread_mutex_lock(&l->lock);
    TAILQ_INSERT_TAIL(&l->sources, s, link);
    (void)pthread_mutex_unlock(&l->lock);
    struct epoll_event ev = {.events = events, .data.ptr = s};
    if (epoll_ctl(l->epoll, EPOLL_CTL_ADD, s->fd, &ev) == 0)
        return s;
    (void)err_sys(err, errno, "watch descriptor %d", s->fd);
    (void)pthread_mutex_lock(&l->lock);
    TAILQ_REMOVE(&l->sources, s, link);
    (void)pthread_mutex_unlock(&l->lock);
    free_source(s);
    return NULL;
}

struct loop_source *loop_add_fd(struct loop *loop, int fd, uint32_t events, loop_fd_fn fn,
                                void *arg, struct err *err)
{
    struct loop_source *s = xcalloc(1, sizeof(*s));
    s->fd = fd;
    s->fd_fn = fn;
    s->arg = arg;
    return add_source(loop, s, events, err);
}

int loop_set_events(struct loop_source *src, uint32_t events)
{
    struct epoll_event ev = {.events = events, .data.ptr = src};
    return epoll_ctl(src->loop->epoll, EPOLL_CTL_MOD, src->fd, &ev);
}

struct loop_source *loop_add_timer(struct loop *loop, int64_t delay_ns, loop_timer_fn fn, void *arg,
                                   struct err *err)
{
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (fd < 0) {
        (void)err_sys(err, errno, "make timer");
        return NULL;
    }
    struct loop_source *s = xcalloc(1, sizeof(*s));
    s->fd = fd;
    s->timer = true;
    s->timer_fn = fn;
    s->arg = arg;
    s = add_source(loop, s, EPOLLIN, err);
    if (s != NULL && loop_set_timer(s, delay_ns) < 0) {
        (void)err_sys(err, errno, "arm timer");
        loop_remove(s);
        return NULL;
    }
    return s;
}

int loop_set_timer(struct loop_source *src, int64_t delay_ns)
{
    struct itimerspec when = {0};
    if (delay_ns == 0)
        delay_ns = 1; /* zero would disarm */
    if (delay_ns > 0) {
        when.it_value.tv_sec = delay_ns / 1000000000;
        when.it_value.tv_nsec = delay_ns % 1000000000;
    }
    return timerfd_settime(src->fd, 0, &when, NULL);
}

void loop_remove(struct loop_source *src)
{
    if (src == NULL || src->removed)
        return;
    struct loop *l = src->loop;
    (void)epoll_ctl(l->epoll, EPOLL_CTL_DEL, src->fd, NULL);
    src->removed = true;
    (void)pthread_mutex_lock(&l->lock);
    TAILQ_REMOVE(&l->sources, src, link);
    TAILQ_INSERT_TAIL(&l->dead, src, link);
    (void)pthread_mutex_unlock(&l->lock);
}

void loop_post(struct loop *loop, loop_work_fn fn, void *arg)
{
    struct work *w = xcalloc(1, sizeof(*w));
    w->fn = fn;
    w->arg = arg;
    (void)pthread_mutex_lock(&loop->lock);
    STAILQ_INSERT_TAIL(&loop->posted, w, link);
    (void)pthread_mutex_unlock(&loop->lock);
    (void)eventfd_write(loop->wake, 1);
}

struct rendezvous {
    loop_work_fn fn;
    void *arg;
    sem_t done;
};

static void meet(void *arg)
{
    struct rendezvous *r = arg;
    r->fn(r->arg);
    (void)sem_post(&r->done);
}

void loop_call(struct loop *loop, loop_work_fn fn, void *arg)
{
    if (loop_is_current(loop)) {
        fn(arg);
        return;
    }
    struct rendezvous r = {.fn = fn, .arg = arg};
    (void)sem_init(&r.done, 0, 0);
    loop_post(loop, meet, &r);
    while (sem_wait(&r.done) < 0 && errno == EINTR)
        ;
    (void)sem_destroy(&r.done);
}
