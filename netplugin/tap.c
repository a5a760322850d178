#include "netplugin/tap.h"

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <netlink/netlink.h>
#include <netlink/route/link.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "netplugin/netaddr.h"
#include "netplugin/rtnl.h"

static int set_name(struct ifreq *r, const char *name, struct err *err)
{
    *r = (struct ifreq){0};
    if (!netaddr_ifname_ok(name))
        return err_set(err, ERR_INVALID, "not an interface name");
    memcpy(r->ifr_name, name, strlen(name) + 1);
    return 0;
}

int tap_link_up(const char *name, struct err *err)
{
    auto_close int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq r;

    if (set_name(&r, name, err) < 0)
        return -1;
    if (s < 0 || ioctl(s, SIOCGIFFLAGS, &r) < 0)
        return err_sys(err, errno, "flags of link %s", name);
    r.ifr_flags = (short)(r.ifr_flags | IFF_UP);
    if (ioctl(s, SIOCSIFFLAGS, &r) < 0)
        return err_sys(err, errno, "bring link %s up", name);
    return 0;
}

int tap_set_mtu(const char *name, uint32_t mtu, struct err *err)
{
    auto_close int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct ifreq r;

    if (set_name(&r, name, err) < 0)
        return -1;
    r.ifr_mtu = (int)mtu;
    if (s < 0 || ioctl(s, SIOCSIFMTU, &r) < 0)
        return err_sys(err, errno, "set MTU of link %s to %u", name, mtu);
    return 0;
}

/* Left over from an earlier try; a QEMU that still holds it loses its carrier. */
static int delete_old(const char *name, struct err *err)
{
    auto_nl_sock struct nl_sock *sk = rtnl_open(err);
    auto_rtnl_link struct rtnl_link *l = NULL;
    int e;

    if (sk == NULL)
        return -1;
    e = rtnl_link_get_kernel(sk, 0, name, &l);
    if (e == -NLE_OBJ_NOTFOUND || e == -NLE_NODEV)
        return 0;
    if (e < 0)
        return rtnl_err(err, e, "look up link %s", name);
    if (rtnl_link_get_type(l) == NULL || strcmp(rtnl_link_get_type(l), "tun") != 0)
        return err_set(err, ERR_EXISTS, "link %s is there and no tap", name);
    e = rtnl_link_delete(sk, l);
    if (e < 0 && e != -NLE_OBJ_NOTFOUND && e != -NLE_NODEV)
        return rtnl_err(err, e, "delete old tap %s", name);
    return 0;
}

int tap_create(const char *name, uint32_t mtu, struct err *err)
{
    auto_close int fd = -1;
    auto_free char *ipv6 = NULL;
    struct ifreq r;

    if (set_name(&r, name, err) < 0 || delete_old(name, err) < 0)
        return -1;
    /* opened on this thread: the device belongs to the namespace of the open */
    fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_sys(err, errno, "open /dev/net/tun");
    r.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    if (ioctl(fd, TUNSETIFF, &r) < 0)
        return err_sys(err, errno, "make tap %s", name);
    if (tap_set_mtu(name, mtu, err) < 0)
        return -1;
    /* The tap is a wire, not a host: no link-local address, no router solicitations into the guest.
     * Where the kernel has no IPv6 or /proc/sys is read-only there is only some noise. */
    ipv6 = fs_format("/proc/sys/net/ipv6/conf/%s/disable_ipv6", name);
    (void)fs_write_str(ipv6, "1", NULL);
    if (tap_link_up(name, err) < 0)
        return -1;
    return take_fd(&fd);
}
