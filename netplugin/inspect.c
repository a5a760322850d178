#include "netplugin/inspect.h"

#include <linux/if_addr.h>
#include <linux/if_arp.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <netlink/addr.h>
#include <netlink/route/addr.h>
#include <netlink/route/link.h>
#include <netlink/route/neighbour.h>
#include <netlink/route/nexthop.h>
#include <netlink/route/route.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/str.h"
#include "netplugin/netaddr.h"
#include "netplugin/rtnl.h"

struct reader {
    struct net_iface *iface;
    int ifindex;
    int family; /* of the dump: kernels without IPv6 answer such a dump with all families */
    size_t n_addresses, n_routes, n_neighbours; /* at the beginning of the dump */
};

/* An address of `family` in text, without mask; -1 when it is none. */
static int addr_text(struct nl_addr *a, int family, char out[NETADDR_IP_LEN])
{
    char cidr[NETADDR_CIDR_LEN];
    size_t len = family == AF_INET ? 4 : 16;

    if (a == NULL || nl_addr_get_len(a) != len ||
        netaddr_format(family, nl_addr_get_binary_addr(a), 0, cidr) < 0)
        return -1;
    *strchr(cidr, '/') = '\0';
    memcpy(out, cidr, strlen(cidr) + 1);
    return 0;
}

static bool is_link_local(const unsigned char *ip6)
{
    return ip6[0] == 0xfe && (ip6[1] & 0xc0) == 0x80;
}

/* ---- addresses ---- */

static void addresses_begin(void *arg)
{
    struct reader *r = arg;

    while (r->iface->n_addresses > r->n_addresses)
        free(r->iface->addresses[--r->iface->n_addresses]);
}

/* fe80:: made from a MAC has ff:fe in the middle; others were set by somebody who wants them. */
static bool kernel_made(const unsigned char *ip6, unsigned flags)
{
    if (is_link_local(ip6))
        return ip6[11] == 0xff && ip6[12] == 0xfe;
    /* autoconfigured: the guest hears the same advertisements */
    return (flags & IFA_F_PERMANENT) == 0;
}

static int on_address(struct nl_object *obj, void *arg, struct err *err)
{
    struct rtnl_addr *a = (struct rtnl_addr *)(void *)obj;
    struct reader *r = arg;
    struct net_iface *f = r->iface;
    struct nl_addr *local;
    char cidr[NETADDR_CIDR_LEN];

    if (rtnl_addr_get_ifindex(a) != r->ifindex || rtnl_addr_get_family(a) != r->family)
        return 0;
    local = rtnl_addr_get_local(a);
    if (local == NULL)
        local = rtnl_addr_get_peer(a);
    if (local == NULL || nl_addr_get_len(local) != (r->family == AF_INET ? 4 : 16))
        return 0;
    if (r->family == AF_INET6 &&
        kernel_made(nl_addr_get_binary_addr(local), rtnl_addr_get_flags(a)))
        return 0;
    if (netaddr_format(r->family, nl_addr_get_binary_addr(local),
                       (unsigned)rtnl_addr_get_prefixlen(a), cidr) < 0)
        return err_set(err, ERR_INTERNAL, "address with prefix length %d",
                       rtnl_addr_get_prefixlen(a));
    if (f->n_addresses == LIMIT_POD_ADDRESSES)
        return err_set(err, ERR_EXHAUSTED, "more than %d addresses", LIMIT_POD_ADDRESSES);
    f->addresses = xrealloc(f->addresses, f->n_addresses + 1, sizeof(*f->addresses));
    f->addresses[f->n_addresses++] = xstrdup(cidr);
    return 0;
}

/* ---- routes ---- */

static void routes_begin(void *arg)
{
    struct reader *r = arg;

    while (r->iface->n_routes > r->n_routes) {
        struct net_route *route = &r->iface->routes[--r->iface->n_routes];

        free(route->dst);
        free(route->gateway);
        free(route->src);
    }
}

/* The first hop through our link; a pod with several links has a route for each anyway. */
static struct rtnl_nexthop *our_hop(struct rtnl_route *route, int ifindex)
{
    for (int i = 0; i < rtnl_route_get_nnexthops(route); i++) {
        struct rtnl_nexthop *nh = rtnl_route_nexthop_n(route, i);

        if (nh != NULL && rtnl_route_nh_get_ifindex(nh) == ifindex)
            return nh;
    }
    return NULL;
}

static bool wanted(struct rtnl_route *route, int family)
{
    int proto = rtnl_route_get_protocol(route);
    struct nl_addr *dst = rtnl_route_get_dst(route);

    if (rtnl_route_get_family(route) != family || rtnl_route_get_type(route) != RTN_UNICAST ||
        rtnl_route_get_table(route) == RT_TABLE_LOCAL ||
        (rtnl_route_get_flags(route) & RTM_F_CLONED) != 0 || proto == RTPROT_RA ||
        proto == RTPROT_REDIRECT)
        return false;
    return !(family == AF_INET6 && proto == RTPROT_KERNEL && dst != NULL &&
             nl_addr_get_len(dst) == 16 && is_link_local(nl_addr_get_binary_addr(dst)));
}

static uint32_t metric(struct rtnl_route *route, int which)
{
    uint32_t v = 0;

    return rtnl_route_get_metric(route, which, &v) == 0 ? v : 0;
}

/* A gateway may be of the other family ("via inet6"). */
static char *gateway(struct rtnl_nexthop *nh)
{
    struct nl_addr *gw = rtnl_route_nh_get_gateway(nh);
    char ip[NETADDR_IP_LEN];

    if (gw == NULL)
        gw = rtnl_route_nh_get_via(nh);
    if (gw == NULL || addr_text(gw, nl_addr_get_len(gw) == 4 ? AF_INET : AF_INET6, ip) < 0)
        return NULL;
    return xstrdup(ip);
}

static int on_route(struct nl_object *obj, void *arg, struct err *err)
{
    struct rtnl_route *route = (struct rtnl_route *)(void *)obj;
    struct reader *r = arg;
    struct net_iface *f = r->iface;
    struct rtnl_nexthop *nh;
    struct nl_addr *dst;
    struct net_route out = {0};
    unsigned char zero[16] = {0};
    char text[NETADDR_CIDR_LEN], src[NETADDR_IP_LEN];
    size_t len = r->family == AF_INET ? 4 : 16;

    if (!wanted(route, r->family))
        return 0;
    nh = our_hop(route, r->ifindex);
    if (nh == NULL)
        return 0;
    dst = rtnl_route_get_dst(route);
    if (dst == NULL || nl_addr_get_len(dst) == 0) {
        (void)netaddr_format(r->family, zero, 0, text);
    } else if (nl_addr_get_len(dst) != len ||
               netaddr_format(r->family, nl_addr_get_binary_addr(dst), nl_addr_get_prefixlen(dst),
                              text) < 0) {
        return err_set(err, ERR_INTERNAL, "route with an odd destination");
    }
    if (f->n_routes == LIMIT_POD_ROUTES)
        return err_set(err, ERR_EXHAUSTED, "more than %d routes", LIMIT_POD_ROUTES);
    out.dst = xstrdup(text);
    out.gateway = gateway(nh);
    if (addr_text(rtnl_route_get_pref_src(route), r->family, src) == 0)
        out.src = xstrdup(src);
    out.mtu = metric(route, RTAX_MTU);
    out.advmss = metric(route, RTAX_ADVMSS);
    out.metric = rtnl_route_get_priority(route);
    out.scope = rtnl_route_get_scope(route);
    out.table = rtnl_route_get_table(route);
    if (out.table == RT_TABLE_MAIN)
        out.table = 0;
    out.onlink = ((rtnl_route_nh_get_flags(nh) | rtnl_route_get_flags(route)) & RTNH_F_ONLINK) != 0;
    f->routes = xrealloc(f->routes, f->n_routes + 1, sizeof(*f->routes));
    f->routes[f->n_routes++] = out;
    return 0;
}

/* ---- neighbours ---- */

static void neighbours_begin(void *arg)
{
    struct reader *r = arg;

    while (r->iface->n_neighbours > r->n_neighbours) {
        struct net_neighbour *n = &r->iface->neighbours[--r->iface->n_neighbours];

        free(n->ip);
        free(n->mac);
    }
}

static int on_neighbour(struct nl_object *obj, void *arg, struct err *err)
{
    struct rtnl_neigh *n = (struct rtnl_neigh *)(void *)obj;
    struct reader *r = arg;
    struct net_iface *f = r->iface;
    struct nl_addr *lladdr;
    char ip[NETADDR_IP_LEN], text[NETADDR_HWADDR_LEN], mac[NETADDR_MAC_LEN];
    int state;

    if (rtnl_neigh_get_ifindex(n) != r->ifindex || rtnl_neigh_get_family(n) != r->family)
        return 0;
    state = rtnl_neigh_get_state(n);
    if (state != NUD_PERMANENT && state != NUD_NOARP)
        return 0;
    lladdr = rtnl_neigh_get_lladdr(n);
    /* multicast entries are the kernel's own */
    if (lladdr == NULL || nl_addr_get_len(lladdr) != 6 ||
        addr_text(rtnl_neigh_get_dst(n), r->family, ip) < 0 || !netaddr_is_host(ip))
        return 0;
    if (netaddr_mac(nl_addr2str(lladdr, text, sizeof(text)), mac) < 0)
        return 0;
    if (f->n_neighbours == LIMIT_POD_NEIGHBOURS)
        return err_set(err, ERR_EXHAUSTED, "more than %d neighbours", LIMIT_POD_NEIGHBOURS);
    f->neighbours = xrealloc(f->neighbours, f->n_neighbours + 1, sizeof(*f->neighbours));
    f->neighbours[f->n_neighbours++] =
        (struct net_neighbour){.ip = xstrdup(ip), .mac = xstrdup(mac), .state = (uint32_t)state};
    return 0;
}

/* ---- the link ---- */

static int read_link(struct nl_sock *sk, const char *ifname, struct reader *r, struct err *err)
{
    auto_rtnl_link struct rtnl_link *l = NULL;
    char text[NETADDR_HWADDR_LEN], mac[NETADDR_MAC_LEN];
    int e = rtnl_link_get_kernel(sk, 0, ifname, &l);

    if (e == -NLE_OBJ_NOTFOUND || e == -NLE_NODEV)
        return err_set(err, ERR_NOT_FOUND, "no such link in the namespace");
    if (e < 0)
        return rtnl_err(err, e, "look up link");
    if (rtnl_link_get_arptype(l) != ARPHRD_ETHER || rtnl_link_get_addr(l) == NULL ||
        nl_addr_get_len(rtnl_link_get_addr(l)) != 6 ||
        netaddr_mac(nl_addr2str(rtnl_link_get_addr(l), text, sizeof(text)), mac) < 0)
        return err_set(err, ERR_PRECONDITION, "not an Ethernet link: cannot be a VM's NIC");
    r->ifindex = rtnl_link_get_ifindex(l);
    r->iface->name = xstrdup(ifname);
    r->iface->mac = xstrdup(mac);
    r->iface->mtu = rtnl_link_get_mtu(l);
    return 0;
}

int inspect_link(const char *ifname, struct net_iface *out, struct err *err)
{
    static const int families[] = {AF_INET, AF_INET6};
    auto_nl_sock struct nl_sock *sk = NULL;
    struct reader r = {.iface = out};

    if (!netaddr_ifname_ok(ifname))
        return err_set(err, ERR_INVALID, "not an interface name");
    sk = rtnl_open(err);
    if (sk == NULL || read_link(sk, ifname, &r, err) < 0)
        return -1;
    for (size_t i = 0; i < ARRAY_LEN(families); i++) {
        const struct rtnl_dump addresses = {addresses_begin, on_address, &r};
        const struct rtnl_dump routes = {routes_begin, on_route, &r};
        const struct rtnl_dump neighbours = {neighbours_begin, on_neighbour, &r};

        r.family = families[i];
        r.n_addresses = out->n_addresses;
        r.n_routes = out->n_routes;
        r.n_neighbours = out->n_neighbours;
        if (rtnl_dump(sk, RTM_GETADDR, r.family, &addresses, err) < 0)
            return err_wrap(err, "addresses");
        if (rtnl_dump(sk, RTM_GETROUTE, r.family, &routes, err) < 0)
            return err_wrap(err, "routes");
        if (rtnl_dump(sk, RTM_GETNEIGH, r.family, &neighbours, err) < 0)
            return err_wrap(err, "neighbours");
    }
    return r.ifindex;
}
