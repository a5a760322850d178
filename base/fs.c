#include "base/fs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/limits.h"

char *fs_format(const char *fmt, ...)
{
    char *s = NULL;
    va_list ap;
    va_start(ap, fmt);
    int n = vasprintf(&s, fmt, ap);
    va_end(ap);
    return n < 0 ? NULL : s;
}

char *fs_read_fd(int fd, size_t max, size_t *len, struct err *err)
{
    auto_buf struct buf b = BUF_INIT(max + 1);
    for (;;) {
        size_t room = max + 1 - b.len;
        if (room > KiB(64))
            room = KiB(64);
        if (room == 0) {
            (void)err_set(err, ERR_EXHAUSTED, "longer than %zu bytes", max);
            return NULL;
        }
        void *to = buf_reserve(&b, room);
        if (to == NULL) {
            (void)err_sys(err, ENOMEM, "read");
            return NULL;
        }
        ssize_t n = read(fd, to, room);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            (void)err_sys(err, errno, "read");
            return NULL;
        }
        if (n == 0)
            break;
        buf_commit(&b, (size_t)n);
    }
    if (len != NULL)
        *len = b.len;
    return buf_take(&b);
}

char *fs_read(const char *path, size_t max, size_t *len, struct err *err)
{
    auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        (void)err_sys(err, errno, "open %s", path);
        return NULL;
    }
    char *text = fs_read_fd(fd, max, len, err);
    if (text == NULL)
        (void)err_wrap(err, "%s", path);
    return text;
}

int fs_write_fd(int fd, const void *data, size_t len, struct err *err)
{
    const char *p = data;
    while (len > 0) {
        ssize_t n = write(fd, p, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_sys(err, errno, "write");
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

int fs_write(const char *path, const void *data, size_t len, struct err *err)
{
    auto_close int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return err_sys(err, errno, "open %s", path);
    if (fs_write_fd(fd, data, len, err) < 0)
        return err_wrap(err, "%s", path);
    return 0;
}

int fs_write_str(const char *path, const char *s, struct err *err)
{
    return fs_write(path, s, strlen(s), err);
}

/* fsync of the directory that holds path, so that a rename in it is durable */
static int sync_parent(const char *path, struct err *err)
{
    auto_free char *dir = strdup(path);
    if (dir == NULL)
        return err_sys(err, ENOMEM, "%s", path);
    char *slash = strrchr(dir, '/');
    if (slash == dir)
        slash[1] = '\0';
    else if (slash != NULL)
        *slash = '\0';
    auto_close int fd = open(slash != NULL ? dir : ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        return err_sys(err, errno, "fsync directory of %s", path);
    return 0;
}

int fs_write_atomic(const char *path, const void *data, size_t len, mode_t mode, bool sync,
                    struct err *err)
{
    auto_free char *tmp = fs_format("%s.XXXXXX", path);
    if (tmp == NULL)
        return err_sys(err, ENOMEM, "%s", path);
    auto_close int fd = mkostemp(tmp, O_CLOEXEC);
    if (fd < 0)
        return err_sys(err, errno, "create %s", tmp);
    if (fchmod(fd, mode) < 0)
        (void)err_sys(err, errno, "chmod %s", tmp);
    else if (fs_write_fd(fd, data, len, err) < 0)
        (void)err_wrap(err, "%s", tmp);
    else if (sync && fsync(fd) < 0)
        (void)err_sys(err, errno, "fsync %s", tmp);
    else if (rename(tmp, path) < 0)
        (void)err_sys(err, errno, "rename %s to %s", tmp, path);
    else
        return sync ? sync_parent(path, err) : 0;
    (void)unlink(tmp);
    return -1;
}

int fs_lock(int fd, pid_t *holder, struct err *err)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

    *holder = 0;
    if (fcntl(fd, F_SETLK, &l) == 0)
        return 0;
    if (errno != EACCES && errno != EAGAIN)
        return err_sys(err, errno, "lock");
    if (fcntl(fd, F_GETLK, &l) == 0 && l.l_type != F_UNLCK)
        *holder = l.l_pid;
    return 1;
}

int fs_mkdir_p(const char *path, mode_t mode, struct err *err)
{
    if (path[0] == '\0')
        return err_sys(err, ENOENT, "mkdir without a path");
    auto_free char *p = strdup(path);
    if (p == NULL)
        return err_sys(err, ENOMEM, "mkdir %s", path);
    for (char *s = p + 1;; s++) {
        if (*s != '/' && *s != '\0')
            continue;
        char c = *s;
        *s = '\0';
        if (mkdir(p, mode) < 0 && errno != EEXIST)
            return err_sys(err, errno, "mkdir %s", p);
        *s = c;
        if (c == '\0')
            break;
    }
    struct stat st;
    if (stat(path, &st) < 0)
        return err_sys(err, errno, "mkdir %s", path);
    if (!S_ISDIR(st.st_mode))
        return err_sys(err, ENOTDIR, "mkdir %s", path);
    return 0;
}

/* A bind mount of the same file system has the same device number, so that alone would not tell. */
static bool is_mount(int fd, dev_t parent)
{
    struct statx sx;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_TYPE, &sx) < 0)
        return true;
    if ((sx.stx_attributes_mask & STATX_ATTR_MOUNT_ROOT) != 0)
        return (sx.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0;
    return makedev(sx.stx_dev_major, sx.stx_dev_minor) != parent;
}

/* Removes everything below an open directory, which is on device `dev`. Takes dirfd. Iterative only
 * in breadth: depth is bounded by PATH_MAX-sized trees that we made ourselves, and by max_depth for
 * those that we did not. */
static int rm_below(int dirfd, dev_t dev, int max_depth, struct err *err)
{
    auto_closedir DIR *dir = fdopendir(dirfd);
    if (dir == NULL) {
        (void)close(dirfd);
        return err_sys(err, errno, "open directory");
    }
    struct dirent *e;
    while ((e = readdir(dir)) != NULL) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        if (unlinkat(dirfd, e->d_name, 0) == 0 || errno == ENOENT)
            continue;
        if (errno != EISDIR && errno != EPERM)
            return err_sys(err, errno, "unlink %s", e->d_name);
        int sub = openat(dirfd, e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (sub < 0)
            return err_sys(err, errno, "open %s", e->d_name);
        if (max_depth == 0 || is_mount(sub, dev)) {
            (void)close(sub);
            return err_set(err, ERR_INTERNAL, "%s is %s", e->d_name,
                           max_depth == 0 ? "nested too deep" : "a mount point");
        }
        if (rm_below(sub, dev, max_depth - 1, err) < 0)
            return err_wrap(err, "%s", e->d_name);
        if (unlinkat(dirfd, e->d_name, AT_REMOVEDIR) < 0 && errno != ENOENT)
            return err_sys(err, errno, "rmdir %s", e->d_name);
    }
    return 0;
}

int fs_rm_rf(const char *path, struct err *err)
{
    if (unlink(path) == 0 || errno == ENOENT)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return err_sys(err, errno, "remove %s", path);
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? 0 : err_sys(err, errno, "remove %s", path);
    struct stat st;
    if (fstat(fd, &st) < 0) {
        (void)close(fd);
        return err_sys(err, errno, "remove %s", path);
    }
    if (is_mount(fd, st.st_dev)) {
        (void)close(fd);
        return err_set(err, ERR_INTERNAL, "remove %s: it is a mount point", path);
    }
    if (rm_below(fd, st.st_dev, 256, err) < 0)
        return err_wrap(err, "remove %s", path);
    if (rmdir(path) < 0 && errno != ENOENT)
        return err_sys(err, errno, "remove %s", path);
    return 0;
}

bool fs_exists(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

static int copy_range(int from, int to, off_t start, off_t end, struct err *err)
{
    off_t in = start;
    off_t out = start;
    while (in < end) {
        ssize_t n = copy_file_range(from, &in, to, &out, (size_t)(end - in), 0);
        if (n > 0)
            continue;
        if (n == 0)
            return err_set(err, ERR_INTERNAL, "copy: file shrank");
        if (errno != EXDEV && errno != EINVAL && errno != EOPNOTSUPP && errno != ENOSYS)
            return err_sys(err, errno, "copy");
        /* two file systems that cannot copy between them: by hand */
        char block[32768];
        size_t want = (size_t)(end - in) < sizeof(block) ? (size_t)(end - in) : sizeof(block);
        n = pread(from, block, want, in);
        if (n <= 0)
            return err_sys(err, n < 0 ? errno : EIO, "copy: read");
        ssize_t w = pwrite(to, block, (size_t)n, out);
        if (w != n)
            return err_sys(err, w < 0 ? errno : ENOSPC, "copy: write");
        in += n;
        out += n;
    }
    return 0;
}

int fs_copy_sparse(int from, int to, struct err *err)
{
    struct stat st;
    if (fstat(from, &st) < 0)
        return err_sys(err, errno, "copy: stat");
    if (ftruncate(to, st.st_size) < 0)
        return err_sys(err, errno, "copy: set size");
    for (off_t pos = 0; pos < st.st_size;) {
        off_t data = lseek(from, pos, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            break;
        off_t hole = data < 0 ? -1 : lseek(from, data, SEEK_HOLE);
        if (data < 0 || hole < 0)
            return err_sys(err, errno, "copy: find data");
        if (copy_range(from, to, data, hole, err) < 0)
            return -1;
        pos = hole;
    }
    return 0;
}

int fs_open_in_root(int dirfd, const char *path, int flags, mode_t mode, struct err *err)
{
    struct open_how how = {.flags = (uint64_t)(unsigned)(flags | O_CLOEXEC),
                           .mode = (flags & O_CREAT) != 0 ? mode : 0,
                           .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
    for (;;) {
        long fd = syscall(SYS_openat2, dirfd, path, &how, sizeof(how));
        if (fd >= 0)
            return (int)fd;
        /* EAGAIN: a rename raced with the walk */
        if (errno != EINTR && errno != EAGAIN)
            return err_sys(err, errno, "open %s", path);
    }
}

void fs_random_hex(char *out, size_t n)
{
    static const char digits[] = "0123456789abcdef";
    unsigned char block[64];
    size_t at = 0;
    while (at < n) {
        if (getrandom(block, sizeof(block), 0) != (ssize_t)sizeof(block))
            abort(); /* cannot happen for 64 bytes once the pool is ready */
        for (size_t i = 0; i < sizeof(block) && at < n; i++)
            out[at++] = digits[block[i] & 15];
    }
    out[n] = '\0';
}

char *fs_boot_id(struct err *err)
{
    char *id = fs_read("/proc/sys/kernel/random/boot_id", 64, NULL, err);
    if (id != NULL)
        id[strcspn(id, "\n")] = '\0';
    return id;
}
