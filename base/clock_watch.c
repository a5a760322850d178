#include "base/clock_watch.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/str.h"

/* Far in the future, and still a time that the kernel takes: the year 2200. */
#define NEVER_S 7258118400LL

struct clock_watch {
    int fd;
    struct loop_source *src;
    void (*fn)(void *arg);
    void *arg;
};

static void on_timer(struct loop_source *src, uint32_t events, void *arg)
{
    const struct clock_watch *w = arg;
    uint64_t n;

    (void)src;
    (void)events;
    if (read(w->fd, &n, sizeof(n)) < 0 && errno == ECANCELED)
        w->fn(w->arg);
}

struct clock_watch *clock_watch_new(struct loop *loop, void (*fn)(void *arg), void *arg,
                                    struct err *err)
{
    struct clock_watch *w = xcalloc(1, sizeof(*w));
    const struct itimerspec never = {.it_value = {.tv_sec = NEVER_S}};

    w->fn = fn;
    w->arg = arg;
    w->fd = timerfd_create(CLOCK_REALTIME, TFD_CLOEXEC | TFD_NONBLOCK);
    if (w->fd < 0 ||
        timerfd_settime(w->fd, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &never, NULL) < 0)
        (void)err_sys(err, errno, "watch the clock");
    else
        w->src = loop_add_fd(loop, w->fd, EPOLLIN, on_timer, w, err);
    if (w->src == NULL) {
        clock_watch_free(w);
        return NULL;
    }
    return w;
}

void clock_watch_free(struct clock_watch *w)
{
    if (w == NULL)
        return;
    loop_remove(w->src);
    cleanup_closep(&w->fd);
    free(w);
}
