#include "sandbox/host_ns.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/fs.h"
#include "base/idmap.h"
#include "base/limits.h"
#include "base/str.h"
#include "proto/host_agent.h"
#include "sandbox/hypervisor.h"
#include "sandbox/ns_mount.h"

struct job {
    const char *path; /* where to attach, or what to take out with all that is in it */
    int tree;         /* -1: take out */
    bool file;
    bool image; /* one may be there already: the same, or another that had the name */
};

static void take_out(const struct job *j)
{
    auto_closedir DIR *d = opendir(j->path);
    struct dirent *e;
    while (d != NULL && (e = readdir(d)) != NULL) {
        if (e->d_name[0] == '.')
            continue;
        auto_free char *path = fs_format("%s/%s", j->path, e->d_name);
        ns_mount_detach(path);
    }
    (void)rmdir(j->path);
}

/* Nothing in these directories is a container's: they lie outside of every container's root. */
static int run(void *arg, const char **step)
{
    const struct job *j = arg;
    if (j->tree < 0) {
        take_out(j);
        return 0;
    }
    *step = "make a mount point";
    auto_free char *parent = xstrdup(j->path);
    *strrchr(parent, '/') = '\0';
    if (fs_mkdir_p(parent, 0700, NULL) < 0)
        return -1;
    if (j->file) {
        if (ns_mount_make_file(j->path) < 0)
            return -1;
    } else if (mkdir(j->path, 0700) < 0) {
        struct stat now;
        struct stat wanted;
        if (errno != EEXIST || !j->image || stat(j->path, &now) < 0 || fstat(j->tree, &wanted) < 0)
            return -1;
        if (now.st_dev == wanted.st_dev && now.st_ino == wanted.st_ino)
            return 0;
        (void)umount2(j->path, MNT_DETACH | UMOUNT_NOFOLLOW);
    }
    *step = "attach";
    return ns_mount_attach(j->tree, j->path);
}

static int run_in_ns(pid_t pid, uint64_t start_time, struct job *j, struct err *err)
{
    auto_close int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0 || hv_start_time(pid) != start_time)
        return err_set(err, ERR_UNAVAILABLE, "the pod's agent is gone");
    return ns_mount_run(fd, "enter the namespace of the pod's agent", run, j, err);
}

/* --- images --- */

int host_ns_attach_image(pid_t agent, uint64_t start_time, const char *serial, const char *dir,
                         struct err *err)
{
    struct mount_attr ro = {.attr_set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOSUID,
                            .propagation = MS_PRIVATE};
    auto_free char *path = fs_format(HOST_DIR_IMAGES "/%s", serial);
    auto_close int tree = open_tree(AT_FDCWD, dir, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (tree < 0 || mount_setattr(tree, "", AT_EMPTY_PATH, &ro, sizeof(ro)) < 0)
        return err_sys(err, errno, "open %s", dir);
    struct job j = {.path = path, .tree = tree, .image = true};
    return FAILPOINT("host.image", err) < 0 ? -1 : run_in_ns(agent, start_time, &j, err);
}

/* --- volumes --- */

/* A missing source becomes a directory, as with other runtimes. */
static int open_source(const char *source, struct stat *st, struct err *err)
{
    const unsigned flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE;
    auto_close int tree = open_tree(AT_FDCWD, source, flags);
    if (tree < 0 && errno == ENOENT) {
        if (fs_mkdir_p(source, 0755, err) < 0)
            return -1;
        tree = open_tree(AT_FDCWD, source, flags);
    }
    if (tree < 0 || fstat(tree, st) < 0)
        return err_sys(err, errno, "open %s", source);
    return take_fd(&tree);
}

/* Is the mount that `path` is on shared (proc_pid_mountinfo(5), optional fields)? *point, the
 * caller's, is where it is mounted; NULL when there is none. */
static bool on_shared_mount(const char *path, char **point)
{
    auto_free char *text = fs_read("/proc/self/mountinfo", MiB(16), NULL, NULL);
    char *save = NULL;
    size_t best = 0;
    bool shared = false;
    *point = NULL;
    for (char *line = text != NULL ? strtok_r(text, "\n", &save) : NULL; line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        char *words = NULL;
        char *field = strtok_r(line, " ", &words);
        for (int i = 1; field != NULL && i < 5; i++)
            field = strtok_r(NULL, " ", &words);
        size_t len = field != NULL ? strlen(field) : 0;
        if (len < best || len == 0 || strncmp(path, field, len) != 0 ||
            (len > 1 && path[len] != '/' && path[len] != '\0'))
            continue;
        best = len; /* of mounts at one place the last one counts */
        free(*point);
        *point = xstrdup(field);
        shared = false;
        (void)strtok_r(NULL, " ", &words); /* mount options */
        while ((field = strtok_r(NULL, " ", &words)) != NULL && strcmp(field, "-") != 0)
            shared = shared || str_starts(field, "shared:");
    }
    return shared;
}

/* containerd's words, which kubelet's users know. */
static int check_propagation(const struct machine_volume *v, struct err *err)
{
    if (!v->shared)
        return 0;
    auto_free char *path = realpath(v->source, NULL);
    if (path == NULL)
        return err_sys(err, errno, "%s", v->source);
    auto_free char *point = NULL;
    if (on_shared_mount(path, &point))
        return 0;
    return err_set(err, ERR_INVALID,
                   "path \"%.200s\" is mounted on \"%.200s\" but it is not a shared mount", path,
                   point != NULL ? point : "/");
}

static int set_attributes(int tree, const struct machine_volume *v, struct err *err)
{
    struct mount_attr all = {.propagation = v->slave ? MS_SLAVE : MS_PRIVATE};
    return ns_mount_set(tree, v->shared ? NULL : &all, v->readonly, v->recursive, err);
}

/* What is mounted below gets the ids too, when all of it can have them; else it stays as it is, and
 * its files are nobody's in the container. */
static int set_ids(int tree, const struct volume_ids *ids, struct err *err)
{
    const struct idmap_range uids = {0, ids->uid, ids->n_uids};
    const struct idmap_range gids = {0, ids->gid, ids->n_gids};
    if (ids->n_uids == 0)
        return 0;
    auto_close int userns = idmap_userns(&uids, 1, &gids, 1, err);
    if (userns < 0)
        return -1;
    if (idmap_set(tree, userns, true) == 0)
        return 0;
    int e = idmap_set(tree, userns, false);
    if (e == 0)
        return 0;
    char type[NS_MOUNT_TYPE];
    ns_mount_type(tree, type);
    return err_set(err, ERR_PRECONDITION,
                   "its file system (%s) cannot be mounted with the ids of a user namespace: %s",
                   type, strerror(e));
}

static int attach_volume(pid_t agent, uint64_t start_time, const char *owner,
                         struct machine_volume *v, struct err *err)
{
    struct stat st;
    auto_close int tree = open_source(v->source, &st, err);
    if (tree < 0 || check_propagation(v, err) < 0 || set_attributes(tree, v, err) < 0 ||
        set_ids(tree, &v->ids, err) < 0)
        return -1;
    v->file = !S_ISDIR(st.st_mode);
    v->all_readonly = v->readonly && v->recursive;
    auto_free char *path = fs_format(HOST_DIR_VOLUMES "/%s/%u", owner, v->id);
    struct job j = {.path = path, .tree = tree, .file = v->file};
    return run_in_ns(agent, start_time, &j, err);
}

int host_ns_attach_volumes(pid_t agent, uint64_t start_time, const char *owner,
                           struct machine_volume *v, size_t n, struct err *err)
{
    for (size_t i = 0; i < n; i++) {
        v[i].id = (uint32_t)i + 1;
        if (attach_volume(agent, start_time, owner, &v[i], err) < 0) {
            (void)err_wrap(err, "%s", v[i].source);
            host_ns_detach_volumes(agent, start_time, owner);
            return -1;
        }
    }
    if (FAILPOINT("host.volumes", err) < 0) {
        host_ns_detach_volumes(agent, start_time, owner);
        return -1;
    }
    return 0;
}

void host_ns_detach_volumes(pid_t agent, uint64_t start_time, const char *owner)
{
    auto_free char *path = fs_format(HOST_DIR_VOLUMES "/%s", owner);
    struct job j = {.path = path, .tree = -1};
    (void)run_in_ns(agent, start_time, &j, NULL);
}
