#include "sandbox/share_host.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/limits.h"

int share_host_flags(int flags)
{
    return (flags & (O_ACCMODE | O_APPEND | O_TRUNC | O_SYNC | O_DSYNC)) | O_CLOEXEC | O_NOCTTY |
           O_NONBLOCK;
}

struct file_id share_host_id(int dir, const char *name)
{
    struct stat st;
    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return (struct file_id){0};
    return (struct file_id){.dev = st.st_dev, .ino = st.st_ino};
}

bool share_host_same(struct file_id a, struct file_id b)
{
    return a.ino == b.ino && a.dev == b.dev;
}

bool share_host_leads_to(int dir, const char *name, const char *target)
{
    char found[LIMIT_PATH + 1];
    ssize_t n = readlinkat(dir, name, found, sizeof(found));
    return n == (ssize_t)strlen(target) && memcmp(found, target, (size_t)n) == 0;
}

size_t share_host_appended(int fd, uint64_t before, const char *bytes, size_t len)
{
    static char found[LIMIT_FS_DATA]; /* there is one thread */
    char path[40];
    struct stat st;
    if (len > sizeof(found) || fstat(fd, &st) < 0 || (uint64_t)st.st_size <= before)
        return 0;
    uint64_t more = (uint64_t)st.st_size - before;
    size_t n = more < len ? (size_t)more : len;
    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    auto_close int again = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (again < 0 || pread(again, found, n, (off_t)before) != (ssize_t)n ||
        memcmp(found, bytes, n) != 0)
        return 0;
    return n;
}
