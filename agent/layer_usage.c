#include "agent/layer_usage.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent/urgent.h"
#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/str.h"

struct list {
    struct layer *v;
    size_t n;
};

struct layer_usage {
    struct loop *loop;
    void (*done)(void *arg);
    void *arg;
    struct list known, walking;
    size_t got; /* results received */
    int64_t at;
    int pipe;
    struct loop_source *source;
};

/* What the child writes for each layer, in order. */
struct result {
    uint64_t bytes, inodes;
};

struct walk {
    struct layer *layer;
    size_t entries;
    int64_t deadline;
};

static void list_clear(struct list *l)
{
    for (size_t i = 0; i < l->n; i++) {
        free(l->v[i].id);
        free(l->v[i].dir);
    }
    free(l->v);
    *l = (struct list){0};
}

/* --- counting --- */

/* A file with several names is counted in parts, which add up when all names are in here. */
static void add(struct layer *l, const struct stat *st)
{
    uint64_t names = S_ISDIR(st->st_mode) || st->st_nlink == 0 ? 1 : (uint64_t)st->st_nlink;
    l->bytes += (uint64_t)st->st_blocks * 512 / names;
    l->inodes++;
}

static bool too_much(struct walk *w)
{
    w->entries++;
    return w->entries > LAYER_ENTRIES || (w->entries % 1024 == 0 && mono_ns() > w->deadline);
}

static void count_dir(struct walk *w, int fd, int depth)
{
    auto_closedir DIR *d = fdopendir(fd);
    if (d == NULL) {
        (void)close(fd);
        return;
    }
    for (struct dirent *e = readdir(d); e != NULL; e = readdir(d)) {
        struct stat st;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        if (too_much(w))
            return;
        if (fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        add(w->layer, &st);
        if (!S_ISDIR(st.st_mode) || depth >= LAYER_DEPTH)
            continue;
        int sub = openat(dirfd(d), e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (sub >= 0)
            count_dir(w, sub, depth + 1);
    }
}

void layer_usage_count(struct layer *l)
{
    struct walk w = {.layer = l, .deadline = mono_ns() + LAYER_WALK_NS};
    struct stat st;
    l->bytes = l->inodes = 0;
    int fd = open(l->dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return;
    if (fstat(fd, &st) == 0)
        add(l, &st);
    count_dir(&w, fd, 0);
}

__attribute__((noreturn)) static void child(struct list *l, int pipe_fd)
{
    /* no descriptor of the agent may live on in here: others wait for their ends */
    if (dup3(pipe_fd, 0, O_CLOEXEC) < 0 || syscall(SYS_close_range, 1U, ~0U, 0) < 0)
        _exit(1);
    if (nice(19) < 0)
        errno = 0; /* then not */
    /* the agent is protected from the OOM killer; this need not be */
    (void)fs_write_str("/proc/self/oom_score_adj", "0", NULL);
    for (size_t i = 0; i < l->n; i++) {
        layer_usage_count(&l->v[i]);
        struct result r = {l->v[i].bytes, l->v[i].inodes};
        if (write(0, &r, sizeof(r)) != (ssize_t)sizeof(r))
            _exit(1);
    }
    _exit(0);
}

/* --- the agent's side --- */

struct layer_usage *layer_usage_new(struct loop *loop, void (*done)(void *arg), void *arg)
{
    struct layer_usage *u = xcalloc(1, sizeof(*u));
    u->loop = loop;
    u->done = done;
    u->arg = arg;
    u->pipe = -1;
    return u;
}

void layer_usage_free(struct layer_usage *u)
{
    if (u == NULL)
        return;
    loop_remove(u->source);
    cleanup_closep(&u->pipe);
    list_clear(&u->known);
    list_clear(&u->walking);
    free(u);
}

bool layer_usage_walking(const struct layer_usage *u)
{
    return u->pipe >= 0;
}

int64_t layer_usage_at(const struct layer_usage *u)
{
    return u->at;
}

const struct layer *layer_usage_find(const struct layer_usage *u, const char *id)
{
    for (size_t i = 0; i < u->known.n; i++)
        if (strcmp(u->known.v[i].id, id) == 0)
            return &u->known.v[i];
    return NULL;
}

static void finish(struct layer_usage *u)
{
    loop_remove(take(u->source));
    cleanup_closep(&u->pipe);
    /* a child that was cut short has counted the first ones only */
    if (u->got == u->walking.n) {
        list_clear(&u->known);
        u->known = u->walking;
        u->walking = (struct list){0};
    }
    list_clear(&u->walking);
    u->at = mono_ns();
    u->done(u->arg);
}

static void readable(struct loop_source *src, uint32_t events, void *arg)
{
    struct layer_usage *u = arg;
    struct result r;
    (void)src;
    (void)events;
    for (;;) {
        ssize_t n = read(u->pipe, &r, sizeof(r));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n != (ssize_t)sizeof(r) || u->got >= u->walking.n)
            break;
        u->walking.v[u->got].bytes = r.bytes;
        u->walking.v[u->got].inodes = r.inodes;
        u->got++;
    }
    finish(u);
}

int layer_usage_start(struct layer_usage *u, const struct layer *layers, size_t n, struct err *err)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0)
        return err_sys(err, errno, "pipe");
    auto_close int ours = fds[0];
    auto_close int theirs = fds[1];
    if (fcntl(ours, F_SETFL, O_NONBLOCK) < 0)
        return err_sys(err, errno, "pipe");
    struct list l = {.v = xcalloc(n + 1, sizeof(struct layer)), .n = n};
    for (size_t i = 0; i < n; i++) {
        l.v[i].id = xstrdup(layers[i].id);
        l.v[i].dir = xstrdup(layers[i].dir);
    }
    struct loop_source *source = loop_add_fd(u->loop, ours, EPOLLIN, readable, u, err);
    pid_t pid = source != NULL ? fork() : -1;
    if (pid < 0) {
        int why = errno;
        list_clear(&l);
        if (source == NULL)
            return -1;
        loop_remove(source);
        return err_sys(err, why, "fork");
    }
    if (pid == 0) {
        urgent_end();
        child(&l, theirs);
    }
    list_clear(&u->walking);
    u->walking = l;
    u->got = 0;
    u->source = source;
    u->pipe = take_fd(&ours);
    return 0;
}
