#include "netplugin/netns.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/fs.h"
#include "base/idmap.h"
#include "base/limits.h"
#include "base/str.h"
#include "netplugin/conf.h"
#include "netplugin/inspect.h"
#include "netplugin/netaddr.h"
#include "netplugin/nsthread.h"
#include "netplugin/redirect.h"
#include "netplugin/tap.h"

/* The directory of iproute2, which CNI plugins and administrators expect; /var/run is a link to
 * /run. */
#define NETNS_DIR "/run/netns"

/* Mounts stacked on one path that netns_remove() takes off. */
#define MAX_STACKED 16

#define TAP_MTU 1500 /* until it is known whose tap it is */

/* As iproute2 does: a shared mount on itself, so that pods that have the directory from the host
 * see namespaces go as well as come, and a later `ip netns add` does not bury our mounts below its
 * own. Where mounting is not allowed, plain bind mounts still work. */
static int prepare_dir(struct err *err)
{
    auto_close int fd = -1;

    if (fs_mkdir_p(NETNS_DIR, 0755, err) < 0)
        return -1;
    fd = open(NETNS_DIR, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || flock(fd, LOCK_EX) < 0)
        return err_sys(err, errno, "lock %s", NETNS_DIR);
    if (mount("", NETNS_DIR, "none", MS_SHARED | MS_REC, NULL) < 0 && errno == EINVAL &&
        mount(NETNS_DIR, NETNS_DIR, "none", MS_BIND | MS_REC, NULL) == 0)
        (void)mount("", NETNS_DIR, "none", MS_SHARED | MS_REC, NULL);
    return 0;
}

static int pin(void *arg, struct err *err)
{
    const char *path = arg;

    if (tap_link_up("lo", err) < 0)
        return -1;
    if (mount("/proc/thread-self/ns/net", path, "none", MS_BIND, NULL) < 0)
        return err_sys(err, errno, "pin network namespace");
    return 0;
}

static int create(int userns, const char *path, struct err *err)
{
    char source[40];

    if (userns < 0)
        return nsthread_run(NULL, pin, __extension__(void *)(uintptr_t) path, err);
    auto_close int fd = idmap_namespace(userns, CLONE_NEWNET, err);
    if (fd < 0)
        return -1;
    (void)snprintf(source, sizeof(source), "/proc/self/fd/%d", fd);
    return nsthread_run(source, pin, __extension__(void *)(uintptr_t) path, err);
}

int netns_create(const char *name, char **path, struct err *err)
{
    return netns_create_in(name, -1, path, err);
}

int netns_create_in(const char *name, int userns, char **path, struct err *err)
{
    auto_free char *p = NULL;
    auto_close int fd = -1;
    struct statfs fs;

    if (!cni_name_ok(name))
        return err_set(err, ERR_INVALID, "netns: bad name");
    p = fs_format("%s/%s", NETNS_DIR, name);
    if (FAILPOINT("netplugin.netns", err) < 0 || prepare_dir(err) < 0)
        return err_wrap(err, "netns %s", name);
    fd = open(p, O_RDONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0444);
    if (fd < 0 || fstatfs(fd, &fs) < 0)
        return err_sys(err, errno, "netns: make %s", p);
    if (fs.f_type == NSFS_MAGIC)
        return err_set(err, ERR_EXISTS, "netns %s: there is one of that name", name);
    if (create(userns, p, err) < 0) {
        (void)unlink(p);
        return err_wrap(err, "netns %s", name);
    }
    *path = take(p);
    return 0;
}

int netns_remove(const char *path, struct err *err)
{
    if (str_empty(path) || *path != '/')
        return err_set(err, ERR_INVALID, "netns: not an absolute path");
    for (int i = 0; i < MAX_STACKED; i++) {
        if (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) == 0)
            continue;
        if (errno != EINVAL && errno != ENOENT)
            return err_sys(err, errno, "netns: unmount %s", path);
        break;
    }
    if (unlink(path) < 0 && errno != ENOENT)
        return err_sys(err, errno, "netns: remove %s", path);
    return 0;
}

struct attach {
    const char *ifname, *tap_name;
    struct net_iface iface;
    int fd;
};

static int make_tap(void *arg, struct err *err)
{
    struct attach *a = arg;

    a->fd = tap_create(a->tap_name, TAP_MTU, err);
    return a->fd < 0 ? -1 : 0;
}

static int join_tap(void *arg, struct err *err)
{
    struct attach *a = arg;
    int link = inspect_link(a->ifname, &a->iface, err);
    unsigned tap;

    if (link < 0)
        return err_wrap(err, "%s", a->ifname);
    tap = if_nametoindex(a->tap_name);
    if (tap == 0)
        return err_sys(err, errno, "index of %s", a->tap_name);
    if (tap_set_mtu(a->tap_name, a->iface.mtu, err) < 0)
        return -1;
    return FAILPOINT("netplugin.redirect", err) < 0 ? -1 : redirect_join(link, (int)tap, err);
}

int netns_make_tap(const char *path, const char *tap_name, struct err *err)
{
    struct attach a = {.tap_name = tap_name, .fd = -1};
    auto_close int fd = -1;
    int ret;

    if (!netaddr_ifname_ok(tap_name))
        return err_set(err, ERR_INVALID, "netns %s: bad interface name", path);
    ret = FAILPOINT("netplugin.tap", err);
    if (ret == 0)
        ret = nsthread_run(path, make_tap, &a, err);
    fd = a.fd;
    if (ret < 0)
        return err_wrap(err, "netns %s: make %s", path, tap_name);
    return take_fd(&fd);
}

int netns_join_tap(const char *path, const char *ifname, const char *tap_name, struct netinfo *out,
                   struct err *err)
{
    struct attach a = {.ifname = ifname, .tap_name = tap_name, .fd = -1};

    if (!netaddr_ifname_ok(ifname) || !netaddr_ifname_ok(tap_name) || strcmp(ifname, tap_name) == 0)
        return err_set(err, ERR_INVALID, "netns %s: bad interface names", path);
    if (nsthread_run(path, join_tap, &a, err) < 0) {
        net_iface_clear(&a.iface);
        return err_wrap(err, "netns %s: attach %s", path, tap_name);
    }
    netinfo_set_iface(out, &a.iface);
    return 0;
}

int netns_attach_tap(const char *path, const char *ifname, const char *tap_name,
                     struct netinfo *out, struct err *err)
{
    auto_close int fd = netns_make_tap(path, tap_name, err);

    if (fd < 0 || netns_join_tap(path, ifname, tap_name, out, err) < 0)
        return -1;
    return take_fd(&fd);
}
