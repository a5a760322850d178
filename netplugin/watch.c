#include "netplugin/watch.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>

#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/str.h"

/* Quiet time before a reload, and the longest a stream of changes can put it off. */
#define QUIET_NS (100 * 1000000LL)
#define PATIENCE_NS (1000 * 1000000LL)

#define DIR_EVENTS                                                                                 \
    (IN_CLOSE_WRITE | IN_CREATE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE | IN_DELETE_SELF |       \
     IN_MOVE_SELF | IN_ONLYDIR)
#define PARENT_EVENTS (IN_CREATE | IN_MOVED_TO | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR)

struct watch {
    struct loop *loop;
    char *dir;
    pthread_mutex_t lock;  /* guards fn, and is held while it runs */
    void (*fn)(void *arg); /* NULL once freed by the owner */
    void *arg;
    int fd;           /* inotify */
    int wd;           /* the one watch, -1: none */
    bool on_dir;      /* wd is on dir itself, not on a parent */
    int64_t first_ns; /* of the changes gathered, 0: none */
    struct loop_source *events, *timer;
};

/* The existing directory nearest above path; "/" at the latest. */
static char *nearest_parent(const char *path)
{
    char *p = xstrdup(path);

    for (;;) {
        char *slash = strrchr(p, '/');
        struct stat st;

        if (slash == NULL || slash == p) {
            free(p);
            return xstrdup("/");
        }
        *slash = '\0';
        if (stat(p, &st) == 0 && S_ISDIR(st.st_mode))
            return p;
    }
}

/* Puts the watch on dir, or as near above it as possible. Between finding a directory missing and
 * watching its parent it may have been made, so look again until nothing moved in between. */
static int arm(struct watch *w, struct err *err)
{
    auto_free char *last = NULL;

    if (w->wd >= 0)
        (void)inotify_rm_watch(w->fd, w->wd);
    w->wd = -1;
    for (;;) {
        auto_free char *parent = NULL;
        int wd = inotify_add_watch(w->fd, w->dir, DIR_EVENTS);

        if (wd >= 0) {
            if (w->wd >= 0 && w->wd != wd)
                (void)inotify_rm_watch(w->fd, w->wd);
            w->wd = wd;
            w->on_dir = true;
            return 0;
        }
        if (errno != ENOENT && errno != ENOTDIR)
            return err_sys(err, errno, "watch %s", w->dir);
        w->on_dir = false;
        parent = nearest_parent(w->dir);
        if (last != NULL && strcmp(parent, last) == 0)
            return 0;
        wd = inotify_add_watch(w->fd, parent, PARENT_EVENTS);
        if (wd < 0 && errno != ENOENT && errno != ENOTDIR)
            return err_sys(err, errno, "watch %s", parent);
        if (wd >= 0) {
            if (w->wd >= 0 && w->wd != wd)
                (void)inotify_rm_watch(w->fd, w->wd);
            w->wd = wd;
            free(last);
            last = take(parent);
        }
    }
}

static void changed(struct watch *w)
{
    int64_t now = mono_ns(), left;

    if (w->first_ns == 0)
        w->first_ns = now;
    left = w->first_ns + PATIENCE_NS - now;
    if (left > QUIET_NS)
        left = QUIET_NS;
    (void)loop_set_timer(w->timer, left > 0 ? left : 0);
}

static void on_timer(struct loop_source *src, void *arg)
{
    struct watch *w = arg;

    (void)src;
    w->first_ns = 0;
    (void)pthread_mutex_lock(&w->lock);
    if (w->fn != NULL)
        w->fn(w->arg);
    (void)pthread_mutex_unlock(&w->lock);
}

/* A new name is a finished file only when it is a link: others are still being written and end in a
 * close or a rename. */
static bool is_link(const struct watch *w, const char *name)
{
    auto_free char *path = fs_format("%s/%s", w->dir, name);
    struct stat st;

    return lstat(path, &st) == 0 && (S_ISLNK(st.st_mode) || st.st_nlink > 1);
}

static void on_events(struct loop_source *src, uint32_t events, void *arg)
{
    struct watch *w = arg;
    char buf[4096] __attribute__((aligned(__alignof__(struct inotify_event))));
    bool reload = false, rearm = false;
    ssize_t n;

    (void)src;
    (void)events;
    while ((n = read(w->fd, buf, sizeof(buf))) > 0) {
        for (char *p = buf; p < buf + n;) {
            const struct inotify_event *e = (const struct inotify_event *)(void *)p;

            p += sizeof(*e) + e->len;
            if ((e->mask & IN_Q_OVERFLOW) != 0)
                reload = rearm = true;
            if (e->wd != w->wd)
                continue; /* of a watch that was moved on */
            if ((e->mask & (IN_DELETE_SELF | IN_MOVE_SELF | IN_IGNORED | IN_UNMOUNT)) != 0)
                reload = rearm = true;
            else if (!w->on_dir)
                rearm = true;
            else if ((e->mask & IN_CREATE) == 0 || (e->len > 0 && is_link(w, e->name)))
                reload = true;
        }
    }
    if (rearm) {
        /* only a lack of kernel resources gets here; the next event or daemon start tries again */
        (void)arm(w, NULL);
        reload = reload || w->on_dir;
    }
    if (reload)
        changed(w);
}

struct watch *watch_new(const char *dir, struct loop *loop, void (*fn)(void *arg), void *arg,
                        struct err *err)
{
    struct watch *w = xcalloc(1, sizeof(*w));
    size_t len;

    w->loop = loop;
    (void)pthread_mutex_init(&w->lock, NULL);
    w->dir = xstrdup(dir);
    w->fn = fn;
    w->arg = arg;
    w->wd = -1;
    len = strlen(w->dir);
    while (len > 1 && w->dir[len - 1] == '/')
        w->dir[--len] = '\0';
    w->fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (w->fd < 0) {
        err_sys(err, errno, "inotify");
    } else if (arm(w, err) == 0) {
        /* the timer first: events use it */
        w->timer = loop_add_timer(loop, -1, on_timer, w, err);
        if (w->timer != NULL)
            w->events = loop_add_fd(loop, w->fd, EPOLLIN, on_events, w, err);
        if (w->events != NULL)
            return w;
    }
    watch_free(w);
    return NULL;
}

/* On the loop's thread, or in loop_free(): nothing else knows w any more. */
static void dispose(void *arg)
{
    struct watch *w = arg;

    loop_remove(w->events);
    loop_remove(w->timer);
    if (w->fd >= 0)
        (void)close(w->fd);
    (void)pthread_mutex_destroy(&w->lock);
    free(w->dir);
    free(w);
}

void watch_free(struct watch *w)
{
    if (w == NULL)
        return;
    (void)pthread_mutex_lock(&w->lock);
    w->fn = NULL;
    (void)pthread_mutex_unlock(&w->lock);
    loop_post(w->loop, dispose, w);
}
