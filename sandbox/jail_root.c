#include "sandbox/jail_root.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"

/* Where the tmpfs is attached until pivot_root: any directory that every system has will do, since
 * the namespace is ours and the sources were taken before. */
#define STAGE "/tmp"

static const char *const standard_devices[] = {"/dev/null", "/dev/zero", "/dev/full",
                                               "/dev/urandom"};

static int take_trees(struct root_plan *plan, struct err *err)
{
    for (size_t i = 0; i < plan->n_binds; i++) {
        struct root_bind *b = &plan->binds[i];
        b->tree = open_tree(AT_FDCWD, b->src, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
        if (b->tree < 0 && !(b->optional && errno == ENOENT))
            return err_sys(err, errno, "bind %s: open", b->src);
        if (b->tree < 0)
            continue;
        struct mount_attr attr = {.attr_set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV};
        if (!b->writable)
            attr.attr_set |= MOUNT_ATTR_RDONLY;
        if (mount_setattr(b->tree, "", AT_EMPTY_PATH, &attr, sizeof(attr)) < 0)
            return err_sys(err, errno, "bind %s: set attributes", b->src);
    }
    return 0;
}

/* Device numbers come from the host's nodes, since some (kvm's) are fixed and some are not. */
static int read_device(const char *path, dev_t *dev, struct err *err)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return err_sys(err, errno, "device %s", path);
    if (!S_ISCHR(st.st_mode))
        return err_set(err, ERR_INVALID, "device %s is no character device", path);
    *dev = st.st_rdev;
    return 0;
}

static int stage_path(char out[PATH_MAX], const char *path, struct err *err)
{
    if (path[0] != '/' || strstr(path, "/..") != NULL)
        return err_set(err, ERR_INVALID, "\"%s\" is no absolute path", path);
    int n = snprintf(out, PATH_MAX, STAGE "%s", path);
    if (n < 0 || n >= PATH_MAX)
        return err_set(err, ERR_INVALID, "path too long");
    return 0;
}

static int make_parents(const char *path, struct err *err)
{
    char dir[PATH_MAX];
    (void)snprintf(dir, sizeof(dir), "%s", path);
    char *slash = strrchr(dir, '/');
    if (slash == NULL || slash == dir)
        return 0;
    *slash = '\0';
    return fs_mkdir_p(dir, 0755, err);
}

static int attach(const struct root_bind *b, struct err *err)
{
    char at[PATH_MAX];
    struct stat st;
    if (stage_path(at, b->dst, err) < 0 || make_parents(at, err) < 0)
        return -1;
    if (fstat(b->tree, &st) < 0)
        return err_sys(err, errno, "bind %s: stat", b->src);
    if (S_ISDIR(st.st_mode)) {
        if (fs_mkdir_p(at, 0755, err) < 0)
            return -1;
    } else {
        auto_close int fd = open(at, O_CREAT | O_WRONLY | O_CLOEXEC | O_NOFOLLOW, 0444);
        if (fd < 0)
            return err_sys(err, errno, "bind %s: make target", b->src);
    }
    if (move_mount(b->tree, "", AT_FDCWD, at, MOVE_MOUNT_F_EMPTY_PATH) < 0)
        return err_sys(err, errno, "bind %s at %s", b->src, b->dst);
    return 0;
}

static int make_device(const char *path, dev_t dev, mode_t mode, uid_t uid, struct err *err)
{
    char at[PATH_MAX];
    if (stage_path(at, path, err) < 0 || make_parents(at, err) < 0)
        return -1;
    if (mknod(at, S_IFCHR | mode, dev) < 0 || chmod(at, mode) < 0 || chown(at, uid, uid) < 0)
        return err_sys(err, errno, "make device %s", path);
    return 0;
}

static int make_devices(const struct root_plan *plan, const dev_t *standard, const dev_t *extra,
                        struct err *err)
{
    if (mkdir(STAGE "/dev", 0755) < 0)
        return err_sys(err, errno, "make /dev");
    if (mount("tmpfs", STAGE "/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "size=64k,mode=755") < 0)
        return err_sys(err, errno, "mount /dev");
    for (size_t i = 0; i < ARRAY_LEN(standard_devices); i++) {
        if (make_device(standard_devices[i], standard[i], 0666, 0, err) < 0)
            return -1;
    }
    for (size_t i = 0; i < plan->n_devices; i++) {
        if (make_device(plan->devices[i], extra[i], 0600, plan->uid, err) < 0)
            return -1;
    }
    if (mount(NULL, STAGE "/dev", NULL, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NOEXEC,
              "size=64k,mode=755") < 0)
        return err_sys(err, errno, "make /dev read-only");
    return 0;
}

static int make_tmp(const struct root_plan *plan, struct err *err)
{
    char opts[128];
    (void)snprintf(opts, sizeof(opts), "size=%llu,mode=700,uid=%u,gid=%u",
                   (unsigned long long)plan->tmp_bytes, plan->uid, plan->uid);
    if (mkdir(STAGE "/tmp", 0700) < 0 ||
        mount("tmpfs", STAGE "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, opts) < 0)
        return err_sys(err, errno, "mount /tmp");
    return 0;
}

/* The old root goes on top of the new one for a moment and is then detached with all below it. */
static int pivot(struct err *err)
{
    if (chdir(STAGE) < 0)
        return err_sys(err, errno, "enter the new root");
    if (syscall(SYS_pivot_root, ".", ".") < 0)
        return err_sys(err, errno, "pivot_root");
    if (umount2(".", MNT_DETACH) < 0)
        return err_sys(err, errno, "detach the old root");
    return chdir("/") == 0 ? 0 : err_sys(err, errno, "enter /");
}

int root_enter(struct root_plan *plan, struct err *err)
{
    dev_t standard[ARRAY_LEN(standard_devices)];
    dev_t extra[16];
    if (plan->n_devices > ARRAY_LEN(extra))
        return err_set(err, ERR_INVALID, "too many devices");
    for (size_t i = 0; i < ARRAY_LEN(standard_devices); i++) {
        if (read_device(standard_devices[i], &standard[i], err) < 0)
            return -1;
    }
    for (size_t i = 0; i < plan->n_devices; i++) {
        if (read_device(plan->devices[i], &extra[i], err) < 0)
            return -1;
    }
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return err_sys(err, errno, "make mounts private");
    if (take_trees(plan, err) < 0)
        return -1;
    if (mount("tmpfs", STAGE, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755") < 0)
        return err_sys(err, errno, "mount the new root");
    for (size_t i = 0; i < plan->n_binds; i++) {
        if (plan->binds[i].tree >= 0 && attach(&plan->binds[i], err) < 0)
            return -1;
        cleanup_closep(&plan->binds[i].tree);
    }
    if (make_devices(plan, standard, extra, err) < 0)
        return -1;
    if (plan->tmp_bytes > 0 && make_tmp(plan, err) < 0)
        return -1;
    if (plan->proc && mkdir(STAGE "/proc", 0555) < 0)
        return err_sys(err, errno, "make /proc");
    return pivot(err);
}

int root_finish(const struct root_plan *plan, struct err *err)
{
    const char *options = plan->proc_self ? "hidepid=invisible,subset=pid" : "hidepid=invisible";
    if (plan->proc && mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, options) < 0)
        return err_sys(err, errno, "mount /proc");
    if (mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, "size=1m,mode=755") <
        0)
        return err_sys(err, errno, "make the root read-only");
    return 0;
}
