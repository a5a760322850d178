/* The kernel's notice that a container hit its memory limit: memory.events changes, inotify says
 * so. */
#include <errno.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "agent/container_cgroup.h"
#include "agent/container_table.h"
#include "base/cleanup.h"

uint64_t container_oom_look(struct container *c)
{
    uint64_t kills = cgroup_oom_kills(c->id);

    if (kills > c->oom_seen) {
        c->oom_seen = kills;
        (void)events_oom(c->table->events, c->name);
    }
    return kills;
}

static void changed(struct loop_source *src, uint32_t events, void *arg)
{
    struct containers *t = arg;
    _Alignas(struct inotify_event) char buf[4096];
    struct container *c;

    (void)src;
    (void)events;
    for (;;) {
        ssize_t n = read(t->inotify_fd, buf, sizeof(buf));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        for (ssize_t at = 0; at < n;) {
            const struct inotify_event *ev = (const struct inotify_event *)(void *)(buf + at);
            TAILQ_FOREACH(c, &t->list, link)
            if (c->oom_watch == ev->wd)
                (void)container_oom_look(c);
            at += (ssize_t)(sizeof(*ev) + ev->len);
        }
    }
}

int container_oom_init(struct containers *t, struct err *err)
{
    t->inotify_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (t->inotify_fd < 0)
        return err_sys(err, errno, "inotify");
    t->inotify_source = loop_add_fd(t->loop, t->inotify_fd, EPOLLIN, changed, t, err);
    return t->inotify_source != NULL ? 0 : -1;
}

void container_oom_watch(struct container *c)
{
    auto_free char *path = cgroup_memory_events(c->id);

    if (path != NULL)
        c->oom_watch = inotify_add_watch(c->table->inotify_fd, path, IN_MODIFY);
}

void container_oom_unwatch(struct container *c)
{
    if (c->oom_watch >= 0)
        (void)inotify_rm_watch(c->table->inotify_fd, c->oom_watch);
    c->oom_watch = -1;
}
