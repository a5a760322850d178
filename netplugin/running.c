#include "netplugin/running.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"

#define NAME "aspis-plugins"

struct running {
    char *path;
    pthread_mutex_t lock; /* guards the rest; held while the first caller waits */
    int in, out;
    bool settled;
};

/* The reading end; -1 when there can be none. */
static int open_fifo(const char *path)
{
    struct stat st;
    if (mkfifo(path, 0600) < 0 && errno != EEXIST)
        return -1;
    auto_close int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISFIFO(st.st_mode))
        return -1;
    return take_fd(&fd);
}

struct running *running_new(const char *cache_dir)
{
    struct running *r = xcalloc(1, sizeof(*r));
    r->path = fs_format("%s/" NAME, cache_dir);
    (void)pthread_mutex_init(&r->lock, NULL);
    r->in = r->out = -1;
    if (fs_mkdir_p(cache_dir, 0700, NULL) == 0)
        r->in = open_fifo(r->path);
    return r;
}

void running_free(struct running *r)
{
    if (r == NULL)
        return;
    cleanup_closep(&r->in);
    cleanup_closep(&r->out);
    (void)pthread_mutex_destroy(&r->lock);
    free(r->path);
    free(r);
}

/* Under the lock. Nothing is ever written, so the end of the file is the end of the last plugin. */
static int wait_for_end(struct running *r, int64_t timeout_ns, struct cancel *cancel,
                        struct err *err)
{
    char c;
    if (r->in < 0 || read(r->in, &c, 1) == 0)
        return 0;
    log_info("plugins of an earlier daemon still run");
    int ms = timeout_ns > 0 && timeout_ns / 1000000 < INT32_MAX ? (int)(timeout_ns / 1000000) : -1;
    int rc = cancel_poll(cancel, r->in, POLLIN, ms, err);
    if (rc != 0)
        return rc < 0 ? -1 : 0;
    log_warn("plugins of an earlier daemon do not end; not waiting any longer");
    /* theirs is another one from now on */
    cleanup_closep(&r->in);
    (void)unlink(r->path);
    r->in = open_fifo(r->path);
    return 0;
}

int running_settle(struct running *r, int64_t timeout_ns, struct cancel *cancel, struct err *err)
{
    int rc = 0;
    (void)pthread_mutex_lock(&r->lock);
    if (!r->settled)
        rc = wait_for_end(r, timeout_ns, cancel, err);
    if (rc == 0 && !r->settled) {
        r->settled = true;
        if (r->in >= 0)
            r->out = open(r->path, O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW);
    }
    (void)pthread_mutex_unlock(&r->lock);
    return rc < 0 ? err_wrap(err, "wait for plugins of an earlier daemon") : 0;
}

int running_fd(struct running *r)
{
    (void)pthread_mutex_lock(&r->lock);
    int fd = r->out;
    (void)pthread_mutex_unlock(&r->lock);
    return fd;
}
