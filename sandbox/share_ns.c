#include "sandbox/share_ns.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"

struct job {
    int server;
    int tree; /* -1: detach */
    bool file;
    const struct volume_ids *ids;
    char path[24];
    char ids_path[32];
    int error; /* errno of the step that failed */
    const char *step;
};

static void *fail(struct job *j, const char *step)
{
    j->error = errno;
    j->step = step;
    return NULL;
}

static int write_ids(const struct job *j)
{
    auto_close int fd = open(j->ids_path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0644);
    return fd >= 0 && dprintf(fd, "%u %u %u %u\n", j->ids->uid, j->ids->n_uids, j->ids->gid,
                              j->ids->n_gids) > 0
               ? 0
               : -1;
}

/* The server's namespace holds nothing but what we put there, but the server may write to /tmp:
 * nothing there is followed or reused. */
static void *run(void *arg)
{
    struct job *j = arg;
    /* a thread may enter a mount namespace only when it shares its directory with no other */
    if (unshare(CLONE_FS) < 0 || setns(j->server, CLONE_NEWNS) < 0)
        return fail(j, "enter the file server's namespace");
    if (j->tree < 0) {
        (void)umount2(j->path, MNT_DETACH | UMOUNT_NOFOLLOW);
        if (rmdir(j->path) < 0)
            (void)unlink(j->path);
        (void)unlink(j->ids_path);
        return NULL;
    }
    if (j->ids->n_uids > 0 && write_ids(j) < 0)
        return fail(j, "write down its ids");
    if (j->file) {
        auto_close int fd = open(j->path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
        if (fd < 0)
            return fail(j, "make a mount point");
    } else if (mkdir(j->path, 0700) < 0) {
        return fail(j, "make a mount point");
    }
    if (move_mount(j->tree, "", AT_FDCWD, j->path, MOVE_MOUNT_F_EMPTY_PATH) < 0)
        return fail(j, "attach");
    return NULL;
}

static int run_in_ns(struct job *j, struct err *err)
{
    pthread_t thread;
    int e = pthread_create(&thread, NULL, run, j);
    if (e != 0)
        return err_sys(err, e, "start a thread");
    (void)pthread_join(thread, NULL);
    return j->error != 0 ? err_sys(err, j->error, "%s", j->step) : 0;
}

static int set_attributes(int tree, bool readonly, bool recursive, bool slave, struct err *err)
{
    struct mount_attr all = {.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
                             .propagation = slave ? MS_SLAVE : MS_PRIVATE};
    struct mount_attr ro = {.attr_set = MOUNT_ATTR_RDONLY};
    if (mount_setattr(tree, "", AT_EMPTY_PATH | AT_RECURSIVE, &all, sizeof(all)) < 0)
        return err_sys(err, errno, "set mount attributes");
    if (readonly && mount_setattr(tree, "", AT_EMPTY_PATH | (recursive ? AT_RECURSIVE : 0U), &ro,
                                  sizeof(ro)) < 0)
        return err_sys(err, errno, "make the mount read-only");
    return 0;
}

int share_ns_attach(int server, uint32_t id, const char *source, bool readonly, bool recursive,
                    bool slave, const struct volume_ids *ids, bool *file, struct err *err)
{
    struct stat st;
    auto_close int tree =
        open_tree(AT_FDCWD, source, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
    if (tree < 0 || fstat(tree, &st) < 0)
        return err_sys(err, errno, "open %s", source);
    if (S_ISBLK(st.st_mode) || S_ISCHR(st.st_mode))
        return err_set(err, ERR_UNIMPLEMENTED, "%s is a device; devices are not volumes", source);
    *file = !S_ISDIR(st.st_mode);
    struct job j = {.server = server, .tree = tree, .file = *file, .ids = ids};
    (void)snprintf(j.path, sizeof(j.path), "/tmp/%u", id);
    (void)snprintf(j.ids_path, sizeof(j.ids_path), SHARE_IDS_FILE, id);
    if (set_attributes(tree, readonly, recursive, slave, err) < 0 || run_in_ns(&j, err) < 0)
        return err_wrap(err, "%s", source);
    return 0;
}

void share_ns_detach(int server, uint32_t id)
{
    struct job j = {.server = server, .tree = -1};
    (void)snprintf(j.path, sizeof(j.path), "/tmp/%u", id);
    (void)snprintf(j.ids_path, sizeof(j.ids_path), SHARE_IDS_FILE, id);
    (void)run_in_ns(&j, NULL);
}
