#include "agent/container_cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <linux/magic.h>

#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

#define CGROUP_MOUNT "/sys/fs/cgroup"
/* A container with its own cgroup namespace may build a tree; we follow it this deep. */
#define MAX_DEPTH 16
#define EMPTY_WAIT_NS INT64_C(5000000000)

/* Where the pod's containers have their groups. */
static struct {
    const char *group; /* below a hierarchy's root */
    const char *tree;  /* root of the hierarchy where their processes are looked for */
    /* version 1, else NULL: */
    const char *memory, *freezer;
} place = {.group = "/pod", .tree = CGROUP_MOUNT};

/* The first of these version 1 hierarchies that is mounted. */
static const char *find_v1(const char *const *names)
{
    for (; *names != NULL; names++) {
        char *dir = fs_format(CGROUP_MOUNT "/%s", *names);
        if (dir == NULL || fs_exists(dir))
            return dir;
        free(dir);
    }
    return CGROUP_MOUNT;
}

void cgroup_use_host(const char *pod_group)
{
    static const char *const any[] = {"pids", "memory", "freezer", "cpu", "devices", NULL};
    static const char *const memory[] = {"memory", NULL};
    static const char *const freezer[] = {"freezer", NULL};
    struct statfs fs;

    place.group = xstrdup(pod_group);
    if (statfs(CGROUP_MOUNT, &fs) == 0 && fs.f_type == CGROUP2_SUPER_MAGIC)
        return;
    place.tree = find_v1(any);
    place.memory = find_v1(memory);
    place.freezer = find_v1(freezer);
}

char *cgroup_spec_path(const char *id)
{
    return fs_format("%s/%s", place.group, id);
}

static char *file_in(const char *tree, const char *id, const char *name)
{
    return fs_format("%s%s/%s/%s", tree, place.group, id, name);
}

char *cgroup_file(const char *id, const char *name)
{
    return file_in(place.tree, id, name);
}

bool cgroup_is_v1(void)
{
    return place.memory != NULL;
}

char *cgroup_v1_dir(const char *hierarchy, const char *id)
{
    return fs_format(CGROUP_MOUNT "/%s%s/%s", hierarchy, place.group, id);
}

char *cgroup_memory_events(const char *id)
{
    return place.memory == NULL ? cgroup_file(id, "memory.events") : NULL;
}

static void signal_procs(int dirfd, int sig);
static void walk(int dirfd, int depth, int sig, void (*fn)(int dirfd, int sig));

/* Version 1: what is frozen cannot fork away from the signal, which it gets when it is thawed; a
 * child born just before is met by the second round. */
static int kill_v1(const char *id)
{
    auto_free char *freezer = file_in(place.freezer, id, "freezer.state");
    auto_free char *path = cgroup_file(id, "");
    auto_close int fd = path != NULL ? open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

    if (fd < 0)
        return 0;
    (void)fs_write_str(freezer, "FROZEN", NULL);
    walk(fd, 0, SIGKILL, signal_procs);
    walk(fd, 0, SIGKILL, signal_procs);
    (void)fs_write_str(freezer, "THAWED", NULL);
    return 0;
}

int cgroup_kill(const char *id, struct err *err)
{
    auto_err struct err local = ERR_INIT;
    if (place.memory != NULL)
        return kill_v1(id);
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

/* Version 1 does not tell when a group becomes empty: each process does. */
static void wait_for_processes(int dirfd, int64_t deadline)
{
    for (;;) {
        auto_close int procs = openat(dirfd, "cgroup.procs", O_RDONLY | O_CLOEXEC);
        auto_free char *text = procs >= 0 ? fs_read_fd(procs, MiB(1), NULL, NULL) : NULL;
        int64_t pid;
        if (text == NULL || *text == '\0')
            return;
        text[strcspn(text, "\n")] = '\0';
        auto_close int fd =
            str_to_i64(text, &pid) == 0 ? (int)syscall(SYS_pidfd_open, (pid_t)pid, 0) : -1;
        int64_t left = deadline - mono_ns();
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (left <= 0)
            return;
        /* one that nobody has reaped yet is over for poll, but still listed */
        if (fd < 0 || poll(&p, 1, (int)(left / 1000000) + 1) > 0) {
            struct pollfd none = {.fd = -1};
            (void)poll(&none, 1, 1);
        }
    }
}

/* Until the last process is gone: killed ones need a moment. */
static void wait_empty(int dirfd)
{
    auto_close int fd = openat(dirfd, "cgroup.events", O_RDONLY | O_CLOEXEC);
    int64_t deadline = mono_ns() + EMPTY_WAIT_NS;

    if (place.memory != NULL)
        wait_for_processes(dirfd, deadline);
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

static void remove_in(const char *tree, const char *id)
{
    auto_free char *path = file_in(tree, id, "");
    auto_close int fd = path != NULL ? open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;

    if (fd < 0)
        return;
    (void)cgroup_kill(id, NULL);
    wait_empty(fd);
    walk(fd, 0, 0, NULL);
    (void)rmdir(path);
}

void cgroup_remove(const char *id)
{
    remove_in(place.tree, id);
    if (place.memory == NULL)
        return;
    auto_closedir DIR *d = opendir(CGROUP_MOUNT);
    const struct dirent *e;
    while (d != NULL && (e = readdir(d)) != NULL) {
        auto_free char *tree = fs_format(CGROUP_MOUNT "/%s", e->d_name);
        if (e->d_name[0] != '.')
            remove_in(tree, id);
    }
}

uint64_t cgroup_oom_kills(const char *id)
{
    auto_free char *path = place.memory == NULL ? cgroup_file(id, "memory.events")
                                                : file_in(place.memory, id, "memory.oom_control");
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
