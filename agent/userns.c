#include "agent/userns.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fs.h"

#define MAPPINGS 340 /* the kernel's own limit */

int userns_check(Aspis__Agent__V1__IdMapping *const *map, size_t n, const char *what,
                 struct err *err)
{
    uint32_t outside;
    if (n > MAPPINGS)
        return err_set(err, ERR_INVALID, "%s: %zu mappings", what, n);
    for (size_t i = 0; i < n; i++) {
        uint64_t len = map[i]->length;
        if (len == 0 || map[i]->container_id + len > UINT32_MAX ||
            map[i]->host_id + len > UINT32_MAX)
            return err_set(err, ERR_INVALID, "%s: mapping %zu is out of range", what, i);
    }
    if (n > 0 && !userns_id(map, n, 0, &outside))
        return err_set(err, ERR_INVALID, "%s: id 0 is not mapped", what);
    return 0;
}

bool userns_id(Aspis__Agent__V1__IdMapping *const *map, size_t n, uint32_t id, uint32_t *outside)
{
    for (size_t i = 0; i < n; i++) {
        if (id >= map[i]->container_id && id - map[i]->container_id < map[i]->length) {
            *outside = map[i]->host_id + (id - map[i]->container_id);
            return true;
        }
    }
    return false;
}

static int write_map(pid_t pid, const char *file, Aspis__Agent__V1__IdMapping *const *map, size_t n,
                     struct err *err)
{
    auto_buf struct buf text = BUF_INIT(64 * MAPPINGS);
    char path[64];
    for (size_t i = 0; i < n; i++)
        (void)buf_printf(&text, "%" PRIu32 " %" PRIu32 " %" PRIu32 "\n", map[i]->container_id,
                         map[i]->host_id, map[i]->length);
    (void)snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, file);
    return fs_write(path, buf_str(&text), text.len, err);
}

int userns_open(const Aspis__Agent__V1__CreateContainerRequest *req, struct err *err)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return err_sys(err, errno, "user namespace");
    auto_close int ours = ends[0];
    auto_close int theirs = ends[1];
    /* a fork whose child does nothing but hold the namespace until we have it */
    long pid = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, NULL, NULL, NULL, NULL);
    if (pid < 0)
        return err_sys(err, errno, "make a user namespace");
    if (pid == 0) {
        char c;
        (void)close(ours);
        _exit(read(theirs, &c, 1) < 0 ? 1 : 0);
    }
    char path[64];
    int fd = -1;
    if (write_map((pid_t)pid, "uid_map", req->uids, req->n_uids, err) == 0 &&
        write_map((pid_t)pid, "gid_map", req->gids, req->n_gids, err) == 0) {
        (void)snprintf(path, sizeof(path), "/proc/%ld/ns/user", pid);
        fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            (void)err_sys(err, errno, "%s", path);
    }
    cleanup_closep(&ours);
    cleanup_closep(&theirs);
    (void)waitpid((pid_t)pid, NULL, 0);
    return fd;
}

int userns_mount(int userns, const char *from, const char *to, struct err *err)
{
    struct mount_attr attr = {.attr_set = MOUNT_ATTR_IDMAP, .userns_fd = (uint64_t)userns};
    auto_close int fd = (int)syscall(SYS_open_tree, AT_FDCWD, from,
                                     (unsigned)(OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
    if (fd < 0)
        return err_sys(err, errno, "copy the mount %s", from);
    if (syscall(SYS_mount_setattr, fd, "", AT_EMPTY_PATH, &attr, sizeof(attr)) < 0)
        return err_sys(err, errno, "mount %s with other ids", from);
    if (syscall(SYS_move_mount, fd, "", AT_FDCWD, to, MOVE_MOUNT_F_EMPTY_PATH) < 0)
        return err_sys(err, errno, "mount on %s", to);
    return 0;
}
