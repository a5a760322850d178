#include "base/idmap.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <linux/nsfs.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fs.h"

/* --- the child --- */

/* A fork without an exit signal, so that nobody who reaps all children takes it from us. Where
 * there are other threads it may do nothing but system calls. */
static pid_t fork_quietly(unsigned long flags)
{
    return (pid_t)syscall(SYS_clone, flags, NULL, NULL, NULL, NULL);
}

static void reap(pid_t pid)
{
    while (waitpid(pid, NULL, __WALL) < 0 && errno == EINTR) {
    }
}

static void close_between(int from, int to)
{
    if (from <= to)
        (void)syscall(SYS_close_range, (unsigned)from, (unsigned)to, 0);
}

/* Two such children that are made at the same time would each keep the other's end open, and wait
 * for each other. */
static void close_all_but(int a, int b)
{
    int low = b >= 0 && b < a ? b : a;
    int high = b > a ? b : a;
    close_between(0, low - 1);
    close_between(low + 1, high - 1);
    close_between(high + 1, INT_MAX);
}

/* It lives until the other end is closed, by us or by our end, and says with one byte how far it
 * got. */
static _Noreturn void hold(int theirs, int userns, int flag)
{
    unsigned char e = 0;
    char c;
    close_all_but(theirs, userns);
    if (flag != 0 && (setns(userns, CLONE_NEWUSER) < 0 || unshare(flag) < 0))
        e = (unsigned char)errno;
    if (write(theirs, &e, 1) == 1)
        (void)!read(theirs, &c, 1);
    _exit(0);
}

struct holder {
    pid_t pid;
    int socket;
};

static void holder_end(struct holder *h)
{
    cleanup_closep(&h->socket);
    if (h->pid > 0)
        reap(h->pid);
    h->pid = 0;
}
#define auto_holder __attribute__((cleanup(holder_end)))

/* flag 0: in a new user namespace; else in `userns` with a namespace of that kind. */
static int holder_start(struct holder *h, int userns, int flag, struct err *err)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return err_sys(err, errno, "make a namespace");
    h->socket = ends[0];
    auto_close int theirs = ends[1];
    h->pid = fork_quietly(flag == 0 ? CLONE_NEWUSER : 0);
    if (h->pid < 0)
        return err_sys(err, errno, "make a user namespace");
    if (h->pid == 0)
        hold(ends[1], userns, flag);
    cleanup_closep(&theirs);
    unsigned char e = 0;
    ssize_t n;
    while ((n = read(h->socket, &e, 1)) < 0 && errno == EINTR) {
    }
    if (n != 1)
        return err_set(err, ERR_INTERNAL, "make a namespace: its first process died");
    return e != 0 ? err_sys(err, e, "make a namespace in a user namespace") : 0;
}

static int holder_open(const struct holder *h, const char *name, struct err *err)
{
    char path[64];
    (void)snprintf(path, sizeof(path), "/proc/%d/ns/%s", (int)h->pid, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    return fd < 0 ? err_sys(err, errno, "%s", path) : fd;
}

/* --- namespaces --- */

static int write_map(pid_t pid, const char *file, const struct idmap_range *map, size_t n,
                     struct err *err)
{
    auto_buf struct buf text = BUF_INIT(64 * IDMAP_RANGES);
    char path[64];
    for (size_t i = 0; i < n; i++)
        (void)buf_printf(&text, "%" PRIu32 " %" PRIu32 " %" PRIu32 "\n", map[i].inside,
                         map[i].outside, map[i].length);
    (void)snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, file);
    return fs_write(path, buf_str(&text), text.len, err);
}

int idmap_userns(const struct idmap_range *uids, size_t n_uids, const struct idmap_range *gids,
                 size_t n_gids, struct err *err)
{
    auto_holder struct holder h = {0, -1};
    if (n_uids > IDMAP_RANGES || n_gids > IDMAP_RANGES)
        return err_set(err, ERR_INVALID, "a user namespace of more than %d mappings", IDMAP_RANGES);
    if (holder_start(&h, -1, 0, err) < 0 || write_map(h.pid, "uid_map", uids, n_uids, err) < 0 ||
        write_map(h.pid, "gid_map", gids, n_gids, err) < 0)
        return -1;
    return holder_open(&h, "user", err);
}

int idmap_namespace(int userns, int flag, struct err *err)
{
    const char *name = flag == CLONE_NEWNET ? "net" : flag == CLONE_NEWIPC ? "ipc" : "uts";
    auto_holder struct holder h = {0, -1};
    return holder_start(&h, userns, flag, err) < 0 ? -1 : holder_open(&h, name, err);
}

int idmap_owner(int fd, struct err *err)
{
    struct stat own;
    struct stat its;
    auto_close int userns = ioctl(fd, NS_GET_USERNS);
    if (userns < 0 || fstat(userns, &its) < 0 || stat("/proc/self/ns/user", &own) < 0)
        return err_sys(err, errno, "whose the namespace is");
    if (its.st_dev == own.st_dev && its.st_ino == own.st_ino)
        return -1;
    (void)fcntl(userns, F_SETFD, FD_CLOEXEC);
    return take_fd(&userns);
}

int idmap_run(int userns, int (*fn)(void *arg, struct err *err), void *arg, struct err *err)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return err_sys(err, errno, "enter a user namespace");
    auto_close int ours = ends[0];
    auto_close int theirs = ends[1];
    pid_t pid = fork_quietly(0);
    if (pid < 0)
        return err_sys(err, errno, "enter a user namespace");
    if (pid == 0) {
        auto_err struct err why = ERR_INIT;
        if (setns(userns, CLONE_NEWUSER) < 0 || setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)
            (void)err_sys(&why, errno, "enter a user namespace");
        else
            (void)fn(arg, &why);
        const char *text = why.code != ERR_OK ? err_msg(&why) : "";
        (void)!write(theirs, text, strlen(text) + 1);
        _exit(0);
    }
    cleanup_closep(&theirs);
    char text[512] = "";
    ssize_t n;
    while ((n = read(ours, text, sizeof(text) - 1)) < 0 && errno == EINTR) {
    }
    reap(pid);
    if (n <= 0)
        return err_set(err, ERR_INTERNAL, "a process in a user namespace died");
    return text[0] != '\0' ? err_set(err, ERR_INVALID, "%s", text) : 0;
}

/* --- mounts --- */

int idmap_set(int tree, int userns, bool recursive)
{
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_IDMAP, .userns_fd = (uint64_t)userns};
    return syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0),
                   &attr, sizeof(attr)) < 0
               ? errno
               : 0;
}
