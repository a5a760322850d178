#include "agent/mirror_apply.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

#define DATA "..data"
#define DATA_NEW "..data_tmp"

typedef Aspis__Agent__V1__SyncVolumeRequest Request;
typedef Aspis__Agent__V1__TreeEntry Entry;

/* --- is it sound? --- */

static bool is_component(const char *name, size_t len)
{
    return len > 0 && len <= NAME_MAX && memchr(name, '/', len) == NULL &&
           !(len == 1 && name[0] == '.') && !(len == 2 && name[0] == '.' && name[1] == '.');
}

/* The directory that holds it was listed before. */
static bool has_parent(const Request *req, size_t i)
{
    const char *path = req->entries[i]->path;
    const char *slash = strrchr(path, '/');
    size_t len = slash != NULL ? (size_t)(slash - path) : 0;
    for (size_t k = 0; k < i; k++) {
        const Entry *e = req->entries[k];
        if (S_ISDIR(e->mode) && strlen(e->path) == len && memcmp(e->path, path, len) == 0)
            return true;
    }
    return false;
}

static bool is_sound(const Request *req, size_t i)
{
    const Entry *e = req->entries[i];
    const char *slash = strrchr(e->path, '/');
    const char *name = slash != NULL ? slash + 1 : e->path;
    if (e->mtime_ns > INT64_MAX || (S_ISDIR(e->mode) && e->content.len > 0))
        return false;
    if (i == 0)
        return *e->path == '\0' && S_ISDIR(e->mode);
    return (S_ISREG(e->mode) || S_ISDIR(e->mode)) && strlen(e->path) < LIMIT_PATH &&
           is_component(name, strlen(name)) && has_parent(req, i);
}

int mirror_check(const Request *req, struct err *err)
{
    size_t bytes = 0;
    if (req->id == 0 || req->root == NULL || !str_starts(req->data, "..") ||
        !is_component(req->data, strlen(req->data)) || str_starts(req->data, DATA) ||
        req->n_entries == 0 || req->n_entries > LIMIT_MIRROR_ENTRIES ||
        req->n_names > LIMIT_MIRROR_ENTRIES)
        return err_set(err, ERR_INVALID, "volume %u is no mirrored one", req->id);
    for (size_t i = 0; i < req->n_entries; i++) {
        if (!is_sound(req, i))
            return err_set(err, ERR_INVALID, "volume %u: entry %zu", req->id, i);
        bytes += req->entries[i]->content.len;
    }
    for (size_t i = 0; i < req->n_names; i++) {
        if (!is_component(req->names[i], strlen(req->names[i])) || str_starts(req->names[i], ".."))
            return err_set(err, ERR_INVALID, "volume %u: name %zu", req->id, i);
    }
    if (bytes > LIMIT_MIRROR_BYTES)
        return err_set(err, ERR_EXHAUSTED, "volume %u: %zu bytes", req->id, bytes);
    return 0;
}

/* --- one entry --- */

/* Below dir, through no link. */
static int open_below(int dir, const char *path, int flags)
{
    struct open_how how = {.flags = (uint64_t)(flags | O_CLOEXEC | O_NOFOLLOW),
                           .mode = (flags & O_CREAT) != 0 ? 0600 : 0,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV};
    return (int)syscall(SYS_openat2, dir, *path == '\0' ? "." : path, &how, sizeof(how));
}

/* Another change of owner or mode would be news to those who watch. */
static int set_attributes(int fd, const Entry *e, bool written, struct err *err)
{
    struct stat st;
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT},
                                {.tv_sec = (time_t)(e->mtime_ns / 1000000000),
                                 .tv_nsec = (long)(e->mtime_ns % 1000000000)}};
    if (fstat(fd, &st) < 0)
        return err_sys(err, errno, "%s", e->path);
    if ((st.st_uid != e->uid || st.st_gid != e->gid) && fchown(fd, e->uid, e->gid) < 0)
        return err_sys(err, errno, "owner of %s", e->path);
    if ((st.st_mode & 07777) != (e->mode & 07777) && fchmod(fd, e->mode & 07777) < 0)
        return err_sys(err, errno, "mode of %s", e->path);
    if ((written || st.st_mtim.tv_sec != times[1].tv_sec ||
         st.st_mtim.tv_nsec != times[1].tv_nsec) &&
        futimens(fd, times) < 0)
        return err_sys(err, errno, "times of %s", e->path);
    return 0;
}

static bool has_content(int fd, const Entry *e)
{
    struct stat st;
    char block[16384];
    size_t at = 0;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || (uint64_t)st.st_size != e->content.len)
        return false;
    while (at < e->content.len) {
        ssize_t n = pread(fd, block, sizeof(block), (off_t)at);
        if (n <= 0 || (size_t)n > e->content.len - at ||
            memcmp(block, e->content.data + at, (size_t)n) != 0)
            return false;
        at += (size_t)n;
    }
    return true;
}

static int put_file(int data, const Entry *e, struct err *err)
{
    bool written = false;
    auto_close int fd = open_below(data, e->path, O_RDWR);
    if (fd < 0 && errno == ENOENT) {
        written = true;
        fd = open_below(data, e->path, O_RDWR | O_CREAT | O_EXCL);
    }
    if (fd < 0)
        return err_sys(err, errno, "%s", e->path);
    if (!written && !has_content(fd, e)) {
        written = true;
        if (ftruncate(fd, 0) < 0)
            return err_sys(err, errno, "%s", e->path);
    }
    if (written && fs_write_fd(fd, e->content.data, e->content.len, err) < 0)
        return err_wrap(err, "%s", e->path);
    return set_attributes(fd, e, written, err);
}

static int put_dir(int data, const Entry *e, struct err *err)
{
    auto_close int fd = open_below(data, e->path, O_RDONLY | O_DIRECTORY);
    if (fd >= 0)
        return 0;
    const char *slash = strrchr(e->path, '/');
    auto_free char *parent = xstrndup(e->path, slash != NULL ? (size_t)(slash - e->path) : 0);
    auto_close int dir = open_below(data, parent, O_RDONLY | O_DIRECTORY);
    if (dir < 0 || mkdirat(dir, slash != NULL ? slash + 1 : e->path, 0700) < 0)
        return err_sys(err, errno, "make %s", e->path);
    return 0;
}

/* --- what is too much --- */

static bool is_wanted(const Request *req, const char *path, bool dir)
{
    for (size_t i = 0; i < req->n_entries; i++)
        if (strcmp(req->entries[i]->path, path) == 0)
            return S_ISDIR(req->entries[i]->mode) == dir;
    return false;
}

/* Takes fd, a directory of the current version; `path` is it from the outside, `name` from the top
 * of the version. */
static int prune(int fd, const char *path, const char *name, const Request *req, struct err *err)
{
    auto_closedir DIR *d = fdopendir(fd);
    if (d == NULL) {
        int e = errno;
        (void)close(fd);
        return err_sys(err, e, "%s", path);
    }
    const struct dirent *e;
    while ((e = readdir(d)) != NULL) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        auto_free char *sub = fs_format("%s/%s", path, e->d_name);
        auto_free char *rel = fs_format("%s%s%s", name, *name == '\0' ? "" : "/", e->d_name);
        int next = open_below(fd, e->d_name, O_RDONLY | O_DIRECTORY);
        int r = 0;
        if (!is_wanted(req, rel, next >= 0)) {
            cleanup_closep(&next);
            r = fs_rm_rf(sub, err);
        } else if (next >= 0) {
            r = prune(next, sub, rel, req, err);
        }
        if (r < 0)
            return -1;
    }
    return 0;
}

static bool is_name(const Request *req, const char *name)
{
    for (size_t i = 0; i < req->n_names; i++)
        if (strcmp(req->names[i], name) == 0)
            return true;
    return false;
}

/* Either the names that users know, or versions. */
static int prune_top(int root, const char *path, bool versions, const Request *req, struct err *err)
{
    int copy = open_below(root, "", O_RDONLY | O_DIRECTORY);
    auto_closedir DIR *d = copy >= 0 ? fdopendir(copy) : NULL;
    if (d == NULL) {
        int e = errno;
        cleanup_closep(&copy);
        return err_sys(err, e, "%s", path);
    }
    const struct dirent *e;
    while ((e = readdir(d)) != NULL) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 ||
            strcmp(e->d_name, DATA) == 0 || strcmp(e->d_name, req->data) == 0 ||
            is_name(req, e->d_name) || str_starts(e->d_name, "..") != versions)
            continue;
        auto_free char *sub = fs_format("%s/%s", path, e->d_name);
        if (fs_rm_rf(sub, err) < 0)
            return -1;
    }
    return 0;
}

/* --- the whole --- */

static bool points_to(int dir, const char *name, const char *target)
{
    char is[LIMIT_PATH];
    ssize_t n = readlinkat(dir, name, is, sizeof(is));
    return n == (ssize_t)strlen(target) && memcmp(is, target, (size_t)n) == 0;
}

static int put_link(int root, const char *name, const char *target, struct err *err)
{
    if (points_to(root, name, target))
        return 0;
    (void)unlinkat(root, DATA_NEW, 0);
    if (symlinkat(target, root, DATA_NEW) < 0 || renameat(root, DATA_NEW, root, name) < 0)
        return err_sys(err, errno, "link %s", name);
    return 0;
}

static int put_version(int root, const char *path, const Request *req, struct err *err)
{
    if (mkdirat(root, req->data, 0700) < 0 && errno != EEXIST)
        return err_sys(err, errno, "make %s", req->data);
    auto_close int data = open_below(root, req->data, O_RDONLY | O_DIRECTORY);
    int copy = data >= 0 ? open_below(root, req->data, O_RDONLY | O_DIRECTORY) : -1;
    auto_free char *data_path = fs_format("%s/%s", path, req->data);
    if (copy < 0)
        return err_sys(err, errno, "%s", req->data);
    if (prune(copy, data_path, "", req, err) < 0)
        return -1;
    for (size_t i = 1; i < req->n_entries; i++) {
        const Entry *e = req->entries[i];
        if ((S_ISDIR(e->mode) ? put_dir(data, e, err) : put_file(data, e, err)) < 0)
            return -1;
    }
    /* directories last and from the inside: what is made in them changes their times */
    for (size_t i = req->n_entries; i-- > 0;) {
        const Entry *e = req->entries[i];
        auto_close int fd =
            S_ISDIR(e->mode) ? open_below(data, e->path, O_RDONLY | O_DIRECTORY) : -1;
        if (S_ISDIR(e->mode) && (fd < 0 || set_attributes(fd, e, false, err) < 0))
            return fd < 0 ? err_sys(err, errno, "%s", e->path) : -1;
    }
    return 0;
}

int mirror_apply(const char *path, const Request *req, struct err *err)
{
    auto_close int root = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (root < 0)
        return err_sys(err, errno, "open %s", path);
    if (put_version(root, path, req, err) < 0 || put_link(root, DATA, req->data, err) < 0)
        return -1;
    for (size_t i = 0; i < req->n_names; i++) {
        auto_free char *target = fs_format(DATA "/%s", req->names[i]);
        if (put_link(root, req->names[i], target, err) < 0)
            return -1;
    }
    if (prune_top(root, path, false, req, err) < 0 || prune_top(root, path, true, req, err) < 0)
        return -1;
    return set_attributes(root, req->root, false, err);
}
