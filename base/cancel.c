#include "base/cancel.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <time.h>

#include "base/str.h"

/* The epoll fd is what callers wait on; it holds the eventfd of cancel_fire(), the timerfd of the
 * deadline, and the parent's epoll fd. Nothing is ever read from them, so it stays readable. */
struct cancel {
    atomic_uint refs;
    atomic_bool fired;
    int64_t deadline_ns;
    int epoll;
    int event;
    int timer;
    struct cancel *parent;
};

static int64_t clock_ns(clockid_t clock)
{
    struct timespec ts;
    (void)clock_gettime(clock, &ts);
    return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

int64_t mono_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

int64_t wall_ns(void)
{
    return clock_ns(CLOCK_REALTIME);
}

static int watch(struct cancel *c, int fd)
{
    struct epoll_event ev = {.events = EPOLLIN};
    return epoll_ctl(c->epoll, EPOLL_CTL_ADD, fd, &ev);
}

static int arm(struct cancel *c)
{
    c->epoll = epoll_create1(EPOLL_CLOEXEC);
    c->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (c->epoll < 0 || c->event < 0 || watch(c, c->event) < 0)
        return -1;
    if (c->parent != NULL && watch(c, c->parent->epoll) < 0)
        return -1;
    if (c->deadline_ns == 0)
        return 0;
    c->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    struct itimerspec when = {.it_value = {.tv_sec = c->deadline_ns / 1000000000,
                                           .tv_nsec = c->deadline_ns % 1000000000}};
    if (c->timer < 0 || timerfd_settime(c->timer, TFD_TIMER_ABSTIME, &when, NULL) < 0)
        return -1;
    return watch(c, c->timer);
}

struct cancel *cancel_child(struct cancel *parent, int64_t deadline_ns, struct err *err)
{
    struct cancel *c = xcalloc(1, sizeof(*c));
    atomic_init(&c->refs, 1);
    c->epoll = c->event = c->timer = -1;
    c->deadline_ns = deadline_ns;
    if (parent != NULL) {
        c->parent = cancel_ref(parent);
        if (parent->deadline_ns != 0 && (deadline_ns == 0 || parent->deadline_ns < deadline_ns))
            c->deadline_ns = parent->deadline_ns;
    }
    if (arm(c) < 0) {
        (void)err_sys(err, errno, "make cancellation token");
        cancel_unref(c);
        return NULL;
    }
    return c;
}

struct cancel *cancel_new(int64_t deadline_ns, struct err *err)
{
    return cancel_child(NULL, deadline_ns, err);
}

struct cancel *cancel_ref(struct cancel *c)
{
    if (c != NULL)
        atomic_fetch_add(&c->refs, 1);
    return c;
}

void cancel_unref(struct cancel *c)
{
    if (c == NULL || atomic_fetch_sub(&c->refs, 1) != 1)
        return;
    cleanup_closep(&c->timer);
    cleanup_closep(&c->event);
    cleanup_closep(&c->epoll);
    cancel_unref(c->parent);
    free(c);
}

void cancel_fire(struct cancel *c)
{
    if (c == NULL || atomic_exchange(&c->fired, true))
        return;
    (void)eventfd_write(c->event, 1);
}

static bool past_deadline(const struct cancel *c)
{
    return c->deadline_ns != 0 && mono_ns() >= c->deadline_ns;
}

static bool fired_by_hand(struct cancel *c)
{
    for (; c != NULL; c = c->parent) {
        if (atomic_load(&c->fired))
            return true;
    }
    return false;
}

bool cancel_fired(struct cancel *c)
{
    return c != NULL && (fired_by_hand(c) || past_deadline(c));
}

int cancel_fd(struct cancel *c)
{
    return c == NULL ? -1 : c->epoll;
}

int64_t cancel_deadline(const struct cancel *c)
{
    return c == NULL ? 0 : c->deadline_ns;
}

int cancel_check(struct cancel *c, struct err *err)
{
    if (c == NULL)
        return 0;
    if (past_deadline(c))
        return err_set(err, ERR_DEADLINE, "deadline exceeded");
    if (fired_by_hand(c))
        return err_set(err, ERR_CANCELLED, "cancelled");
    return 0;
}

int cancel_poll(struct cancel *c, int fd, short events, int timeout_ms, struct err *err)
{
    int64_t end = timeout_ms < 0 ? -1 : mono_ns() + (int64_t)timeout_ms * 1000000;
    for (;;) {
        if (cancel_check(c, err) < 0)
            return -1;
        struct pollfd p[2] = {{.fd = fd, .events = events}, {.fd = cancel_fd(c), .events = POLLIN}};
        int left = -1;
        if (end >= 0) {
            int64_t ns = end - mono_ns();
            left = ns <= 0 ? 0 : (int)((ns + 999999) / 1000000);
        }
        int n = poll(p, 2, left);
        if (n < 0 && errno != EINTR)
            return err_sys(err, errno, "poll");
        if (n > 0 && p[0].revents != 0)
            return p[0].revents;
        if (n == 0 && left >= 0 && mono_ns() >= end)
            return 0;
    }
}
