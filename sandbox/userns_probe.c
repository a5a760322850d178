#include "sandbox/userns_probe.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mount.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/idmap.h"
#include "sandbox/ns_mount.h"

struct job {
    const char *images, *scratch;
    int userns;
    struct err *err;
    int ret;
};

/* A copy of the mount that `dir` is on gets the ids and is put on `dir`. */
static int try_idmap(const char *dir, const char *what, int userns, struct err *err)
{
    auto_close int tree = open_tree(AT_FDCWD, dir, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (tree < 0)
        return err_sys(err, errno, "copy the mount at %s", dir);
    if (idmap_set(tree, userns, false) != 0) {
        char type[NS_MOUNT_TYPE];
        ns_mount_type(tree, type);
        return err_set(err, ERR_UNIMPLEMENTED,
                       "%s is on a file system (%s) that this kernel cannot mount with the ids "
                       "of a user namespace",
                       what, type);
    }
    return ns_mount_attach(tree, dir) < 0 ? err_sys(err, errno, "mount on %s", dir) : 0;
}

/* Before Linux 5.19 an overlay takes no such layers. */
static int try_overlay(int lower, const char *dir, struct err *err)
{
    char options[128];
    auto_close int other = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (other < 0)
        return err_sys(err, errno, "open %s", dir);
    (void)snprintf(options, sizeof(options), "lowerdir=/proc/self/fd/%d:/proc/self/fd/%d", lower,
                   other);
    if (mount("overlay", dir, "overlay", MS_RDONLY, options) < 0)
        return err_sys(err, errno,
                       "this kernel cannot mount an overlay over a directory with the ids of a "
                       "user namespace");
    return 0;
}

/* The store may lie below `scratch`, so it is opened before that is covered. */
static int try_all(const struct job *j, struct err *err)
{
    if (unshare(CLONE_FS | CLONE_NEWNS) < 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return err_sys(err, errno, "make a mount namespace");
    if (try_idmap(j->images, "the image store", j->userns, err) < 0)
        return -1;
    auto_close int images = open(j->images, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (images < 0)
        return err_sys(err, errno, "open %s", j->images);
    if (mount("tmpfs", j->scratch, "tmpfs", 0, "size=4k") < 0)
        return err_sys(err, errno, "mount a tmpfs");
    if (try_idmap(j->scratch, "what kubelet keeps in memory", j->userns, err) < 0)
        return -1;
    return try_overlay(images, j->scratch, err);
}

static void *run(void *arg)
{
    struct job *j = arg;
    j->ret = try_all(j, j->err);
    return NULL;
}

int userns_probe(const char *images, const char *scratch, struct err *err)
{
    static const struct idmap_range all = {0, 100000, 65536};
    auto_close int userns = idmap_userns(&all, 1, &all, 1, err);
    struct job j = {images, scratch, userns, err, -1};
    pthread_t thread;
    if (userns < 0)
        return -1;
    int e = pthread_create(&thread, NULL, run, &j);
    if (e != 0)
        return err_sys(err, e, "start a thread");
    (void)pthread_join(thread, NULL);
    return j.ret;
}
