#include "agent/host.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/idmap.h"
#include "base/str.h"
#include "proto/host_agent.h"

/* As boot.c gives a guest's containers; the host's ceiling may be lower. */
#define OPEN_FILES 1048576

static int join_cgroups(const struct host_options *o, struct err *err)
{
    for (size_t i = 0; i < o->n_join; i++) {
        auto_free char *file = fs_format("%s/cgroup.procs", o->join[i]);
        if (fs_write_str(file, "0", err) < 0)
            return err_wrap(err, "join cgroup");
    }
    return 0;
}

/* The network of a pod with a user namespace is that namespace's; so it is found again. */
static int enter_netns(struct host_options *o, struct err *err)
{
    auto_close int fd = open(o->netns, O_RDONLY | O_CLOEXEC);
    auto_err struct err why = ERR_INIT;
    if (fd < 0 || setns(fd, CLONE_NEWNET) < 0)
        return err_sys(err, errno, "enter network namespace %s", o->netns);
    o->userns = idmap_owner(fd, &why);
    return why.code != ERR_OK ? err_move(err, &why) : 0;
}

static int make_namespaces(const struct host_options *o, struct err *err)
{
    int flags = CLONE_NEWNS;
    int of_pod = (o->host_ipc ? 0 : CLONE_NEWIPC) | (o->host_uts ? 0 : CLONE_NEWUTS);
    if (unshare(o->userns < 0 ? flags | of_pod : flags) < 0)
        return err_sys(err, errno, "make namespaces");
    for (int flag = o->userns < 0 ? 0 : of_pod; flag != 0; flag &= flag - 1) {
        auto_close int fd = idmap_namespace(o->userns, flag & -flag, err);
        if (fd < 0 || setns(fd, flag & -flag) < 0)
            return fd < 0 ? -1 : err_sys(err, errno, "enter a namespace of the pod");
    }
    return 0;
}

/* --- the root --- */

static int bind(const char *from, const char *root, const char *at, unsigned long flags,
                struct err *err)
{
    auto_free char *to = fs_format("%s%s", root, at);
    if (fs_mkdir_p(to, 0755, err) < 0)
        return -1;
    if (mount(from, to, NULL, MS_BIND | flags, NULL) < 0)
        return err_sys(err, errno, "bind %s", from);
    return 0;
}

static int fill_root(const struct host_options *o, const char *root, struct err *err)
{
    auto_free char *run = fs_format("%s/host", o->run_dir);
    auto_free char *tmp = fs_format("%s/tmp", root);
    auto_free char *etc = fs_format("%s/etc", root);
    auto_free char *scratch = fs_format("%s/scratch", run);
    if (fs_mkdir_p(run, 0700, err) < 0 || fs_mkdir_p(tmp, 0700, err) < 0 ||
        fs_mkdir_p(etc, 0755, err) < 0 || fs_mkdir_p(scratch, 0700, err) < 0)
        return -1;
    if (bind("/proc", root, "/proc", 0, err) < 0 || bind("/sys", root, "/sys", MS_REC, err) < 0 ||
        bind("/dev", root, "/dev", MS_REC, err) < 0 || bind(run, root, "/run/aspis", 0, err) < 0 ||
        bind(o->state_dir, root, "/run/aspis/scratch", 0, err) < 0)
        return -1;
    return 0;
}

/* One entry of /sys/fs/cgroup: a hierarchy, or a second name for one. */
static int show_hierarchy(const char *from, const char *to, const char *name, struct err *err)
{
    auto_free char *source = fs_format("%s/%s", from, name);
    auto_free char *target = fs_format("%s/%s", to, name);
    char link[256];
    ssize_t n = readlink(source, link, sizeof(link) - 1);
    if (n >= 0) {
        link[n] = '\0';
        return symlink(link, target) < 0 ? err_sys(err, errno, "make %s", target) : 0;
    }
    if (mkdir(target, 0755) < 0 || mount(source, target, NULL, MS_BIND, NULL) < 0)
        return err_sys(err, errno, "bind %s", source);
    return 0;
}

static int show_hierarchies(const char *from, const char *to, struct err *err)
{
    auto_closedir DIR *d = opendir(from);
    const struct dirent *e;
    if (d == NULL)
        return err_sys(err, errno, "open %s", from);
    while ((e = readdir(d)) != NULL) {
        if (e->d_name[0] != '.' && strcmp(e->d_name, "unified") != 0 &&
            (e->d_type == DT_DIR || e->d_type == DT_LNK) &&
            show_hierarchy(from, to, e->d_name, err) < 0)
            return -1;
    }
    return 0;
}

/* Beside version 1 there may be an empty hierarchy of version 2 (systemd's "hybrid"). libcrun
 * refuses to work where it has any controller, needed or not; without it the host is one of
 * version 1. To unmount it is not enough: in the directory below, which is the host's, libcrun
 * would make directories and files of its own. */
static int hide_hybrid(const char *root, struct err *err)
{
    auto_free char *groups = fs_format("%s/sys/fs/cgroup", root);
    auto_free char *unified = fs_format("%s/unified", groups);
    auto_free char *own = fs_format("%s/cgroup", root);
    struct statfs fs;
    if (statfs(unified, &fs) < 0 || fs.f_type != CGROUP2_SUPER_MAGIC)
        return 0;
    if (fs_mkdir_p(own, 0755, err) < 0)
        return -1;
    if (mount("cgroup", own, "tmpfs", MS_NODEV | MS_NOSUID | MS_NOEXEC, "mode=0755,size=64k") < 0)
        return err_sys(err, errno, "mount %s", own);
    if (show_hierarchies(groups, own, err) < 0)
        return -1;
    if (mount(NULL, own, NULL, MS_REMOUNT | MS_RDONLY, NULL) < 0 ||
        mount(own, groups, NULL, MS_MOVE, NULL) < 0)
        return err_sys(err, errno, "mount %s", groups);
    (void)rmdir(own);
    return 0;
}

static int change_root(const char *root, struct err *err)
{
    if (chdir(root) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 ||
        chdir("/") < 0)
        return err_sys(err, errno, "change the root to %s", root);
    return 0;
}

static int make_root(const struct host_options *o, struct err *err)
{
    auto_free char *root = fs_format("%s/root", o->run_dir);
    if (fs_mkdir_p(root, 0700, err) < 0)
        return -1;
    if (mount(NULL, "/", NULL, MS_REC | MS_SLAVE, NULL) < 0)
        return err_sys(err, errno, "make mounts one-way");
    if (mount("root", root, "tmpfs", MS_NODEV | MS_NOSUID, "mode=0755,size=1m") < 0)
        return err_sys(err, errno, "mount the root");
    if (fill_root(o, root, err) < 0 || hide_hybrid(root, err) < 0)
        return -1;
    return change_root(root, err);
}

int host_enter(struct host_options *o, struct err *err)
{
    /* named after a descriptor until now */
    (void)prctl(PR_SET_NAME, HOST_AGENT_NAME);
    (void)close(HOST_FD_PROGRAM); /* what runs keeps its mount */
    (void)setsid();
    (void)umask(022);
    if (join_cgroups(o, err) < 0 || (o->netns != NULL && enter_netns(o, err) < 0) ||
        make_namespaces(o, err) < 0 || make_root(o, err) < 0)
        return err_wrap(err, "pod on the host");

    /* These pass on to containers. */
    struct rlimit files = {.rlim_cur = OPEN_FILES, .rlim_max = OPEN_FILES};
    if (setrlimit(RLIMIT_NOFILE, &files) < 0 && getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &files);
    }
    struct rlimit core = {.rlim_cur = 0, .rlim_max = RLIM_INFINITY};
    (void)setrlimit(RLIMIT_CORE, &core);
    /* The pod's containers go before their supervisor. Needs CAP_SYS_RESOURCE, which a daemon in a
     * container may lack. */
    (void)fs_write_str("/proc/self/oom_score_adj", "-999", NULL);
    return 0;
}
