#include "sandbox/share_ns.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "sandbox/ns_mount.h"

struct job {
    int tree; /* -1: detach */
    bool file;
    const struct volume_ids *ids;
    char path[24];
    char ids_path[32];
};

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
static int run(void *arg, const char **step)
{
    const struct job *j = arg;
    if (j->tree < 0) {
        ns_mount_detach(j->path);
        (void)unlink(j->ids_path);
        return 0;
    }
    *step = "write down its ids";
    if (j->ids->n_uids > 0 && write_ids(j) < 0)
        return -1;
    *step = "make a mount point";
    if ((j->file ? ns_mount_make_file(j->path) : mkdir(j->path, 0700)) < 0)
        return -1;
    *step = "attach";
    return ns_mount_attach(j->tree, j->path);
}

static int run_in_ns(int server, struct job *j, struct err *err)
{
    return ns_mount_run(server, "enter the file server's namespace", run, j, err);
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
    struct job j = {.tree = tree, .file = *file, .ids = ids};
    (void)snprintf(j.path, sizeof(j.path), SHARE_VOLUME, id);
    (void)snprintf(j.ids_path, sizeof(j.ids_path), SHARE_IDS_FILE, id);
    struct mount_attr all = {.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
                             .propagation = slave ? MS_SLAVE : MS_PRIVATE};
    if (ns_mount_set(tree, &all, readonly, recursive, err) < 0 || run_in_ns(server, &j, err) < 0)
        return err_wrap(err, "%s", source);
    return 0;
}

void share_ns_detach(int server, uint32_t id)
{
    struct job j = {.tree = -1};
    (void)snprintf(j.path, sizeof(j.path), SHARE_VOLUME, id);
    (void)snprintf(j.ids_path, sizeof(j.ids_path), SHARE_IDS_FILE, id);
    (void)run_in_ns(server, &j, NULL);
}
