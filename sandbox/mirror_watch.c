#include "sandbox/mirror_watch.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/queue.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/str.h"

#define INTEREST                                                                                   \
    (IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_ATTRIB | IN_CLOSE_WRITE |            \
     IN_ONLYDIR | IN_DONT_FOLLOW)

struct mirror_dir {
    LIST_ENTRY(mirror_dir) link;
    int wd; /* the kernel has one for all who look at the same directory */
    void (*fn)(void *arg);
    void *arg;
};

struct mirror_watch {
    int fd;      /* inotify */
    int stop_fd; /* eventfd */
    pthread_mutex_t lock;
    pthread_t thread;
    bool running;
    LIST_HEAD(, mirror_dir) dirs;
};

static void tell(struct mirror_watch *w, const struct inotify_event *e)
{
    struct mirror_dir *d;
    LIST_FOREACH(d, &w->dirs, link)
    {
        if (d->wd == e->wd || (e->mask & IN_Q_OVERFLOW) != 0)
            d->fn(d->arg);
    }
}

static void read_events(struct mirror_watch *w)
{
    _Alignas(struct inotify_event) char block[16384];
    ssize_t n = read(w->fd, block, sizeof(block));
    (void)pthread_mutex_lock(&w->lock);
    for (ssize_t at = 0; at + (ssize_t)sizeof(struct inotify_event) <= n;) {
        struct inotify_event e;
        memcpy(&e, block + at, sizeof(e));
        tell(w, &e);
        at += (ssize_t)(sizeof(e) + e.len);
    }
    (void)pthread_mutex_unlock(&w->lock);
}

static void *watch(void *arg)
{
    struct mirror_watch *w = arg;
    struct pollfd p[2] = {{.fd = w->stop_fd, .events = POLLIN}, {.fd = w->fd, .events = POLLIN}};
    for (;;) {
        (void)poll(p, 2, -1);
        if (p[0].revents != 0)
            return NULL;
        if (p[1].revents != 0)
            read_events(w);
    }
}

static struct mirror_dir *add_locked(struct mirror_watch *w, const char *path, struct err *err)
{
    if (!w->running) {
        int e = pthread_create(&w->thread, NULL, watch, w);
        if (e != 0) {
            (void)err_sys(err, e, "start a thread");
            return NULL;
        }
        w->running = true;
    }
    int wd = inotify_add_watch(w->fd, path, INTEREST);
    if (wd < 0) {
        (void)err_sys(err, errno, "watch %s", path);
        return NULL;
    }
    struct mirror_dir *d = xcalloc(1, sizeof(*d));
    d->wd = wd;
    LIST_INSERT_HEAD(&w->dirs, d, link);
    return d;
}

struct mirror_dir *mirror_watch_add(struct mirror_watch *w, const char *path, void (*fn)(void *arg),
                                    void *arg, struct err *err)
{
    (void)pthread_mutex_lock(&w->lock);
    struct mirror_dir *d = add_locked(w, path, err);
    if (d != NULL) {
        d->fn = fn;
        d->arg = arg;
    }
    (void)pthread_mutex_unlock(&w->lock);
    return d;
}

void mirror_watch_remove(struct mirror_watch *w, struct mirror_dir *d)
{
    struct mirror_dir *other;
    bool shared = false;
    if (d == NULL)
        return;
    (void)pthread_mutex_lock(&w->lock);
    LIST_REMOVE(d, link);
    LIST_FOREACH(other, &w->dirs, link)
    shared = shared || other->wd == d->wd;
    if (!shared)
        (void)inotify_rm_watch(w->fd, d->wd); /* EINVAL: the directory is gone */
    (void)pthread_mutex_unlock(&w->lock);
    free(d);
}

struct mirror_watch *mirror_watch_new(struct err *err)
{
    struct mirror_watch *w = xcalloc(1, sizeof(*w));
    LIST_INIT(&w->dirs);
    (void)pthread_mutex_init(&w->lock, NULL);
    w->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    w->fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (w->fd < 0 || w->stop_fd < 0) {
        (void)err_sys(err, errno, "make inotify and eventfd");
        mirror_watch_free(w);
        return NULL;
    }
    return w;
}

void mirror_watch_free(struct mirror_watch *w)
{
    if (w == NULL)
        return;
    if (w->running) {
        (void)eventfd_write(w->stop_fd, 1);
        (void)pthread_join(w->thread, NULL);
    }
    cleanup_closep(&w->fd);
    cleanup_closep(&w->stop_fd);
    (void)pthread_mutex_destroy(&w->lock);
    free(w);
}
