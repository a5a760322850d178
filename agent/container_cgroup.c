#include "agent/container_cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

#define CGROUP_MOUNT "/sys/fs/cgroup"
/* A container with its own cgroup namespace may build a tree; we follow it this deep. */
#define MAX_DEPTH 16
#define EMPTY_WAIT_NS INT64_C(5000000000)

char *cgroup_spec_path(const char *id)
{
    return fs_format("/pod/%s", id);
}

char *cgroup_file(const char *id, const char *name)
{
    return fs_format(CGROUP_MOUNT "/pod/%s/%s", id, name);
}

char *cgroup_memory_events(const char *id)
{
    return cgroup_file(id, "memory.events");
}

int cgroup_kill(const char *id, struct err *err)
{
    auto_err struct err local = ERR_INIT;
    auto_free char *path = cgroup_file(id, "cgroup.kill");

    if (path == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    if (fs_write_str(path, "1", &local) < 0 && local.sys_errno != ENOENT &&
        local.sys_errno != ENODEV)
        return err_move(err, &local);
    return 0;
}

static void signal_procs(int dirfd, int sig)
{
    auto_free char *text = NULL;
    auto_close int fd = openat(dirfd, "cgroup.procs", O_RDONLY | O_CLOEXEC);
    char *save = NULL;

    if (fd < 0 || (text = fs_read_fd(fd, MiB(1), NULL, NULL)) == NULL)
        return;
    for (char *line = strtok_r(text, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        int64_t pid;
        /* 0: a process of an outer pid namespace */
        if (str_to_i64(line, &pid) == 0 && pid > 1)
            (void)kill((pid_t)pid, sig);
    }
}

/* Calls fn for the directory and those below it, children first. */
static void walk(int dirfd, int depth, int sig, void (*fn)(int dirfd, int sig))
{
    auto_closedir DIR *dir = NULL;
    int copy = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (copy < 0)
        return;
    dir = fdopendir(copy);
    if (dir == NULL) {
        (void)close(copy);
        return;
    }
    for (struct dirent *e = readdir(dir); e != NULL && depth < MAX_DEPTH; e = readdir(dir)) {
        if (e->d_type != DT_DIR || e->d_name[0] == '.')
            continue;
        auto_close int sub = openat(dirfd, e->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (sub < 0)
            continue;
        walk(sub, depth + 1, sig, fn);
        if (sig == 0)
            (void)unlinkat(dirfd, e->d_name, AT_REMOVEDIR);
    }
    if (fn != NULL)
        fn(dirfd, sig);
}

int cgroup_signal(const char *id, int sig, struct err *err)
{
    auto_free char *path = cgroup_file(id, "");

    if (sig == SIGKILL)
        return cgroup_kill(id, err);
    auto_close int fd = path != NULL ? open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    if (fd < 0)
        return err_sys(err, errno, "cgroup of container %s", id);
    walk(fd, 0, sig, signal_procs);
    return 0;
}

/* Until the last process is gone: killed ones need a moment. */
static void wait_empty(int dirfd)
{
    auto_close int fd = openat(dirfd, "cgroup.events", O_RDONLY | O_CLOEXEC);
    int64_t deadline = mono_ns() + EMPTY_WAIT_NS;

    while (fd >= 0) {
        auto_free char *text = fs_read_fd(fd, KiB(1), NULL, NULL);
        int64_t left = deadline - mono_ns();
        struct pollfd p = {.fd = fd, .events = POLLPRI};

        if (text == NULL || strstr(text, "populated 1") == NULL || left <= 0)
            return;
        if (poll(&p, 1, (int)(left / 1000000) + 1) < 0 && errno != EINTR)
            return;
        (void)lseek(fd, 0, SEEK_SET);
    }
}

void cgroup_remove(const char *id)
{
    auto_free char *path = cgroup_file(id, "");
    auto_close int fd = path != NULL ? open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

    if (fd < 0)
        return;
    (void)cgroup_kill(id, NULL);
    wait_empty(fd);
    walk(fd, 0, 0, NULL);
    (void)rmdir(path);
}

uint64_t cgroup_oom_kills(const char *id)
{
    auto_free char *path = cgroup_memory_events(id);
    auto_free char *text = path != NULL ? fs_read(path, KiB(4), NULL, NULL) : NULL;
    char *save = NULL;

    if (text == NULL)
        return 0;
    for (char *line = strtok_r(text, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        uint64_t n;
        if (str_starts(line, "oom_kill ") && str_to_u64(line + strlen("oom_kill "), &n) == 0)
            return n;
    }
    return 0;
}
