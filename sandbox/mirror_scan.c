#include "sandbox/mirror_scan.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/str.h"

#define DATA "..data"

struct scan {
    struct arena *a;
    Aspis__Agent__V1__SyncVolumeRequest *req;
    size_t bytes, max;
};

static int odd(struct err *err, const char *name)
{
    return err_set(err, ERR_PRECONDITION, "%.255s is not what kubelet's atomic writer makes", name);
}

/* Below dir, no link followed, no other file system entered, nothing waited for. */
static int open_below(int dir, const char *name, int flags, struct err *err)
{
    struct open_how how = {
        .flags = (uint64_t)(flags | O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY),
        .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV};
    int fd = (int)syscall(SYS_openat2, dir, name, &how, sizeof(how));
    if (fd >= 0)
        return fd;
    if (errno == ENOENT)
        return err_sys(err, errno, "%s", name);
    return odd(err, name);
}

static Aspis__Agent__V1__TreeEntry *entry_new(struct scan *s, const char *path,
                                              const struct stat *st, struct err *err)
{
    Aspis__Agent__V1__TreeEntry *e = arena_alloc(s->a, sizeof(*e));
    if (e == NULL) {
        (void)err_sys(err, ENOMEM, "copy of a volume");
        return NULL;
    }
    aspis__agent__v1__tree_entry__init(e);
    e->path = arena_strdup(s->a, path);
    e->mode = st->st_mode;
    e->uid = st->st_uid;
    e->gid = st->st_gid;
    e->mtime_ns =
        (uint64_t)st->st_mtim.tv_sec * UINT64_C(1000000000) + (uint64_t)st->st_mtim.tv_nsec;
    return e;
}

static Aspis__Agent__V1__TreeEntry *add(struct scan *s, const char *path, const struct stat *st,
                                        struct err *err)
{
    if (s->req->n_entries >= LIMIT_MIRROR_ENTRIES) {
        (void)err_set(err, ERR_EXHAUSTED, "more than %d files", LIMIT_MIRROR_ENTRIES);
        return NULL;
    }
    Aspis__Agent__V1__TreeEntry *e = entry_new(s, path, st, err);
    if (e != NULL)
        s->req->entries[s->req->n_entries++] = e;
    return e;
}

static int read_file(struct scan *s, int fd, const struct stat *st, Aspis__Agent__V1__TreeEntry *e,
                     struct err *err)
{
    /* one byte more than it said: a file that is being written to is read as it was */
    size_t room = (size_t)st->st_size;
    if (st->st_size < 0 || (uint64_t)st->st_size > s->max - s->bytes)
        return err_set(err, ERR_EXHAUSTED, "more than %zu bytes", s->max);
    e->content.data = arena_alloc(s->a, room + 1);
    if (e->content.data == NULL)
        return err_sys(err, ENOMEM, "copy of a volume");
    while (e->content.len < room) {
        ssize_t n = read(fd, e->content.data + e->content.len, room - e->content.len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_sys(err, errno, "read %s", e->path);
        if (n == 0)
            break;
        e->content.len += (size_t)n;
    }
    s->bytes += e->content.len;
    return 0;
}

static int scan_dir(struct scan *s, int fd, const char *path, unsigned depth, struct err *err);

static int scan_one(struct scan *s, int dir, const char *parent, const char *name, unsigned depth,
                    struct err *err)
{
    struct stat st;
    auto_close int fd = open_below(dir, name, 0, err);
    if (fd < 0)
        return -1;
    if (fstat(fd, &st) < 0)
        return err_sys(err, errno, "%s", name);
    if ((!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode)) || !str_is_utf8(name, strlen(name)))
        return odd(err, name);
    auto_arena struct arena *scratch = arena_new(LIMIT_PATH * 2);
    const char *path = *parent == '\0' ? name : arena_printf(scratch, "%s/%s", parent, name);
    if (path == NULL || strlen(path) >= LIMIT_PATH)
        return odd(err, name);
    if (S_ISDIR(st.st_mode))
        return scan_dir(s, take_fd(&fd), path, depth + 1, err);
    Aspis__Agent__V1__TreeEntry *e = add(s, path, &st, err);
    return e != NULL ? read_file(s, fd, &st, e, err) : -1;
}

/* Takes fd. */
static int scan_dir(struct scan *s, int fd, const char *path, unsigned depth, struct err *err)
{
    struct stat st;
    auto_closedir DIR *d = fdopendir(fd);
    if (d == NULL) {
        int e = errno;
        (void)close(fd);
        return err_sys(err, e, "read %s", path);
    }
    if (depth > LIMIT_MIRROR_DEPTH)
        return odd(err, path);
    if (fstat(fd, &st) < 0)
        return err_sys(err, errno, "%s", path);
    if (add(s, path, &st, err) == NULL)
        return -1;
    const struct dirent *e;
    while ((e = readdir(d)) != NULL) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 &&
            scan_one(s, fd, path, e->d_name, depth, err) < 0)
            return -1;
    }
    return 0;
}

/* What a name at the top is; NULL: not of the shape. */
static int scan_name(struct scan *s, int root, const char *name, struct err *err)
{
    char target[LIMIT_PATH];
    if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || strcmp(name, "..data_tmp") == 0)
        return 0;
    ssize_t n = readlinkat(root, name, target, sizeof(target) - 1);
    if (n < 0 && errno == ENOENT)
        return 0; /* just removed */
    if (n < 0 && errno == EINVAL && str_starts(name, ".."))
        return 0; /* a version being made or removed: never looked into */
    if (n < 0)
        return odd(err, name);
    target[n] = '\0';
    if (strcmp(name, DATA) == 0) {
        if (!str_starts(target, "..") || target[2] == '\0' || strchr(target, '/') != NULL ||
            str_starts(target, DATA) || !str_is_utf8(target, (size_t)n))
            return odd(err, name);
        s->req->data = arena_strdup(s->a, target);
        return 0;
    }
    if (!str_starts(target, DATA "/") || strcmp(target + strlen(DATA "/"), name) != 0 ||
        str_starts(name, "..") || !str_is_utf8(name, strlen(name)))
        return odd(err, name);
    if (s->req->n_names >= LIMIT_MIRROR_ENTRIES)
        return err_set(err, ERR_EXHAUSTED, "more than %d names", LIMIT_MIRROR_ENTRIES);
    s->req->names[s->req->n_names++] = arena_strdup(s->a, name);
    return 0;
}

static int scan_root(struct scan *s, int root, const char *path, struct err *err)
{
    struct stat st;
    int copy = fcntl(root, F_DUPFD_CLOEXEC, 0);
    auto_closedir DIR *d = copy >= 0 ? fdopendir(copy) : NULL;
    if (d == NULL || fstat(root, &st) < 0) {
        int e = errno;
        if (d == NULL && copy >= 0)
            (void)close(copy);
        return err_sys(err, e, "read %s", path);
    }
    s->req->root = entry_new(s, "", &st, err);
    if (s->req->root == NULL)
        return -1;
    const struct dirent *e;
    while ((e = readdir(d)) != NULL) {
        if (scan_name(s, root, e->d_name, err) < 0)
            return -1;
    }
    return str_empty(s->req->data) ? odd(err, path) : 0;
}

int mirror_scan(const char *path, size_t max_bytes, struct arena *a,
                Aspis__Agent__V1__SyncVolumeRequest *req, size_t *bytes, struct err *err)
{
    struct scan s = {.a = a, .req = req, .max = max_bytes};
    req->entries = arena_alloc(a, LIMIT_MIRROR_ENTRIES * sizeof(void *));
    req->names = arena_alloc(a, LIMIT_MIRROR_ENTRIES * sizeof(void *));
    if (req->entries == NULL || req->names == NULL)
        return err_sys(err, ENOMEM, "copy of a volume");
    auto_close int root = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK);
    if (root < 0 && errno == ENOENT)
        return err_sys(err, errno, "%s", path);
    if (root < 0)
        return odd(err, path);
    if (scan_root(&s, root, path, err) < 0)
        return -1;
    int data = open_below(root, req->data, O_DIRECTORY, err);
    if (data < 0 || scan_dir(&s, data, "", 0, err) < 0)
        return -1;
    *bytes = s.bytes;
    return arena_exhausted(a) ? err_sys(err, ENOMEM, "copy of a volume") : 0;
}
