#include "agent/net.h"

#include <arpa/inet.h>
#include <linux/if.h>
#include <linux/if_arp.h>
#include <linux/rtnetlink.h>
#include <netlink/addr.h>
#include <netlink/cache.h>
#include <netlink/errno.h>
#include <netlink/netlink.h>
#include <netlink/route/addr.h>
#include <netlink/route/link.h>
#include <netlink/route/neighbour.h>
#include <netlink/route/nexthop.h>
#include <netlink/route/route.h>
#include <netlink/socket.h>
#include <stdio.h>
#include <string.h>

#include "agent/net_check.h"
#include "base/cleanup.h"
#include "base/limits.h"

typedef Aspis__Agent__V1__ConfigurePodRequest request;
typedef Aspis__Agent__V1__Interface interface;
typedef Aspis__Agent__V1__Route route;
typedef Aspis__Agent__V1__Neighbour neighbour;

DEFINE_AUTO(struct nl_sock *, nl_socket_free);
DEFINE_AUTO(struct nl_cache *, nl_cache_free);
DEFINE_AUTO(struct nl_addr *, nl_addr_put);
DEFINE_AUTO(struct rtnl_link *, rtnl_link_put);
DEFINE_AUTO(struct rtnl_addr *, rtnl_addr_put);
DEFINE_AUTO(struct rtnl_route *, rtnl_route_put);
DEFINE_AUTO(struct rtnl_neigh *, rtnl_neigh_put);
#define auto_of(func) __attribute__((cleanup(func##p)))

/* --- libnl helpers ------------------------------------------------------------------------ */

/* Fills *err from a libnl error (negative) and returns -1. The caller wraps it with the object's
 * name. */
static int nl_fail(struct err *err, int nle, const char *step)
{
    return err_set(err, nle == -NLE_NOMEM ? ERR_EXHAUSTED : ERR_INTERNAL, "%s: %s", step,
                   nl_geterror(nle));
}

static struct nl_sock *open_socket(struct err *err)
{
    auto_of(nl_socket_free) struct nl_sock *sk = nl_socket_alloc();
    int r = sk ? nl_connect(sk, NETLINK_ROUTE) : -NLE_NOMEM;
    if (r < 0) {
        nl_fail(err, r, "open a routing socket");
        return NULL;
    }
    return take(sk);
}

static struct nl_addr *to_nl(const struct net_addr *a)
{
    struct nl_addr *addr = nl_addr_build(a->family, a->bytes, a->size);
    if (addr != NULL)
        nl_addr_set_prefixlen(addr, (int)a->prefix);
    return addr;
}

/* For text that has been checked. */
static struct nl_addr *addr_of(const char *text, bool prefix)
{
    struct net_addr a;
    return net_parse_addr(text, prefix, &a) < 0 ? NULL : to_nl(&a);
}

static bool has_mac(struct rtnl_link *link, const char *text)
{
    uint8_t mac[NET_MAC_SIZE];
    struct nl_addr *addr = rtnl_link_get_addr(link);
    return addr != NULL && nl_addr_get_len(addr) == NET_MAC_SIZE && net_parse_mac(text, mac) == 0 &&
           memcmp(nl_addr_get_binary_addr(addr), mac, NET_MAC_SIZE) == 0;
}

/* The device of an interface: the one that an earlier call has made it, else the NIC with
 * guest_mac. Borrowed from the cache; NULL when it is not there. */
static struct rtnl_link *find_link(struct nl_cache *links, const interface *f)
{
    struct rtnl_link *found = NULL;
    for (struct nl_object *o = nl_cache_get_first(links); o != NULL; o = nl_cache_get_next(o)) {
        struct rtnl_link *link = (struct rtnl_link *)o;
        if (rtnl_link_get_arptype(link) != ARPHRD_ETHER)
            continue;
        if (strcmp(rtnl_link_get_name(link), f->name) == 0 && has_mac(link, f->mac))
            return link;
        if (found == NULL && has_mac(link, f->guest_mac))
            found = link;
    }
    return found;
}

static struct nl_cache *read_links(struct nl_sock *sk, struct err *err)
{
    struct nl_cache *links = NULL;
    int r = rtnl_link_alloc_cache(sk, AF_UNSPEC, &links);
    if (r < 0) {
        nl_fail(err, r, "list the network devices");
        return NULL;
    }
    return links;
}

int net_ready(const request *req, struct err *err)
{
    if (req->n_interfaces == 0)
        return 1;
    auto_of(nl_socket_free) struct nl_sock *sk = open_socket(err);
    if (sk == NULL)
        return -1;
    auto_of(nl_cache_free) struct nl_cache *links = read_links(sk, err);
    if (links == NULL)
        return -1;
    for (size_t i = 0; i < req->n_interfaces; i++) {
        const interface *f = req->interfaces[i];
        if (find_link(links, f) == NULL) {
            err_set(err, ERR_NOT_FOUND, "interface %s: there is no NIC with MAC %s", f->name,
                    f->guest_mac);
            return 0;
        }
    }
    return 1;
}

/* --- links -------------------------------------------------------------------------------- */

/* Changes one device: name and mac may be NULL, mtu 0, up 0 (leave), 1, -1 (down). */
static int change_link(struct nl_sock *sk, int ifindex, const char *name, const char *mac,
                       uint32_t mtu, int up, struct err *err)
{
    auto_of(rtnl_link_put) struct rtnl_link *which = rtnl_link_alloc();
    auto_of(rtnl_link_put) struct rtnl_link *change = rtnl_link_alloc();
    if (which == NULL || change == NULL)
        return nl_fail(err, -NLE_NOMEM, "change the device");
    rtnl_link_set_ifindex(which, ifindex);
    if (name != NULL)
        rtnl_link_set_name(change, name);
    uint8_t bytes[NET_MAC_SIZE];
    if (mac != NULL && net_parse_mac(mac, bytes) == 0) {
        auto_of(nl_addr_put) struct nl_addr *addr = nl_addr_build(AF_LLC, bytes, sizeof(bytes));
        if (addr == NULL)
            return nl_fail(err, -NLE_NOMEM, "change the device");
        rtnl_link_set_addr(change, addr);
    }
    if (mtu != 0)
        rtnl_link_set_mtu(change, mtu);
    if (up > 0)
        rtnl_link_set_flags(change, IFF_UP);
    else if (up < 0)
        rtnl_link_unset_flags(change, IFF_UP);
    int r = rtnl_link_change(sk, which, change, 0);
    return r < 0 ? nl_fail(err, r, "change the device") : 0;
}

static int loopback_up(struct nl_sock *sk, struct nl_cache *links, struct err *err)
{
    for (struct nl_object *o = nl_cache_get_first(links); o != NULL; o = nl_cache_get_next(o)) {
        struct rtnl_link *link = (struct rtnl_link *)o;
        if (rtnl_link_get_arptype(link) == ARPHRD_LOOPBACK &&
            !(rtnl_link_get_flags(link) & IFF_UP) &&
            change_link(sk, rtnl_link_get_ifindex(link), NULL, NULL, 0, 1, err) < 0)
            return err_wrap(err, "loopback");
    }
    return 0;
}

/* Names, MACs and MTUs of all interfaces, whose indexes go to ifindex[]. */
static int apply_links(struct nl_sock *sk, struct nl_cache *links, const request *req, int *ifindex,
                       struct err *err)
{
    /* Two NICs may each have to take the other's name, so whoever changes steps aside first. */
    for (size_t i = 0; i < req->n_interfaces; i++) {
        const interface *f = req->interfaces[i];
        struct rtnl_link *link = find_link(links, f);
        if (link == NULL)
            return err_set(err, ERR_NOT_FOUND, "interface %s: there is no NIC with MAC %s", f->name,
                           f->guest_mac);
        ifindex[i] = rtnl_link_get_ifindex(link);
        for (size_t k = 0; k < i; k++) {
            if (ifindex[k] == ifindex[i])
                return err_set(err, ERR_INVALID, "interfaces %s and %s: the same NIC %s",
                               req->interfaces[k]->name, f->name, f->guest_mac);
        }
        if (strcmp(rtnl_link_get_name(link), f->name) == 0)
            continue;
        char aside[IFNAMSIZ];
        (void)snprintf(aside, sizeof(aside), "aspis%d", ifindex[i]);
        if (change_link(sk, ifindex[i], NULL, NULL, 0, -1, err) < 0 ||
            change_link(sk, ifindex[i], aside, NULL, 0, 0, err) < 0)
            return err_wrap(err, "interface %s: rename %s", f->name, rtnl_link_get_name(link));
    }
    for (size_t i = 0; i < req->n_interfaces; i++) {
        const interface *f = req->interfaces[i];
        struct rtnl_link *link = find_link(links, f);
        bool rename = strcmp(rtnl_link_get_name(link), f->name) != 0;
        bool mac = !has_mac(link, f->mac);
        /* A MAC is changed while the link is down, so that its IPv6 link-local address is made of
         * the new one. */
        if (mac && !rename && change_link(sk, ifindex[i], NULL, NULL, 0, -1, err) < 0)
            return err_wrap(err, "interface %s: take down", f->name);
        if (rename && change_link(sk, ifindex[i], f->name, NULL, 0, 0, err) < 0)
            return err_wrap(err, "interface %s: rename %s", f->name, rtnl_link_get_name(link));
        if (mac && change_link(sk, ifindex[i], NULL, f->mac, 0, 0, err) < 0)
            return err_wrap(err, "interface %s: set MAC %s", f->name, f->mac);
        if (f->mtu != 0 && f->mtu != rtnl_link_get_mtu(link) &&
            change_link(sk, ifindex[i], NULL, NULL, f->mtu, 0, err) < 0)
            return err_wrap(err, "interface %s: set MTU %u", f->name, f->mtu);
        if (change_link(sk, ifindex[i], NULL, NULL, 0, 1, err) < 0)
            return err_wrap(err, "interface %s: bring up", f->name);
    }
    return 0;
}

/* --- addresses ---------------------------------------------------------------------------- */

static bool same_addr(struct nl_addr *addr, const char *text)
{
    struct net_addr a;
    return net_parse_addr(text, true, &a) == 0 && nl_addr_get_family(addr) == a.family &&
           nl_addr_get_prefixlen(addr) == a.prefix && nl_addr_get_len(addr) == a.size &&
           memcmp(nl_addr_get_binary_addr(addr), a.bytes, a.size) == 0;
}

static bool is_link_local6(struct nl_addr *addr)
{
    const uint8_t *b = nl_addr_get_binary_addr(addr);
    return nl_addr_get_family(addr) == AF_INET6 && b[0] == 0xfe && (b[1] & 0xc0) == 0x80;
}

static int drop_stale_addresses(struct nl_sock *sk, const interface *f, int ifindex,
                                struct err *err)
{
    auto_of(nl_cache_free) struct nl_cache *list = NULL;
    int r = rtnl_addr_alloc_cache(sk, &list);
    if (r < 0)
        return nl_fail(err, r, "list the addresses");
    for (struct nl_object *o = nl_cache_get_first(list); o != NULL; o = nl_cache_get_next(o)) {
        struct rtnl_addr *have = (struct rtnl_addr *)o;
        struct nl_addr *local = rtnl_addr_get_local(have);
        /* The kernel makes fe80:: addresses by itself. */
        if (rtnl_addr_get_ifindex(have) != ifindex || local == NULL || is_link_local6(local))
            continue;
        bool wanted = false;
        for (size_t i = 0; i < f->n_addresses && !wanted; i++)
            wanted = same_addr(local, f->addresses[i]);
        if (wanted)
            continue;
        r = rtnl_addr_delete(sk, have, 0);
        if (r < 0 && r != -NLE_NOADDR)
            return nl_fail(err, r, "remove an old address");
    }
    return 0;
}

static int add_address(struct nl_sock *sk, const char *text, int ifindex, struct err *err)
{
    struct net_addr a;
    auto_of(rtnl_addr_put) struct rtnl_addr *addr = rtnl_addr_alloc();
    auto_of(nl_addr_put) struct nl_addr *local = addr_of(text, true);
    if (addr == NULL || local == NULL || net_parse_addr(text, true, &a) < 0)
        return nl_fail(err, -NLE_NOMEM, "add the address");
    rtnl_addr_set_ifindex(addr, ifindex);
    rtnl_addr_set_local(addr, local);
    if (a.family == AF_INET6) {
        /* Usable at once: whether it is free is the host's business. */
        rtnl_addr_set_flags(addr, IFA_F_NODAD);
    } else if (a.prefix < 31) {
        uint32_t ip = 0;
        memcpy(&ip, a.bytes, sizeof(ip));
        ip |= htonl(UINT32_MAX >> a.prefix);
        auto_of(nl_addr_put) struct nl_addr *all = nl_addr_build(AF_INET, &ip, sizeof(ip));
        if (all == NULL)
            return nl_fail(err, -NLE_NOMEM, "add the address");
        rtnl_addr_set_broadcast(addr, all);
    }
    int r = rtnl_addr_add(sk, addr, NLM_F_REPLACE);
    return r < 0 ? nl_fail(err, r, "add the address") : 0;
}

static int apply_addresses(struct nl_sock *sk, const request *req, const int *ifindex, bool first,
                           struct err *err)
{
    for (size_t i = 0; i < req->n_interfaces; i++) {
        const interface *f = req->interfaces[i];
        if (!first && drop_stale_addresses(sk, f, ifindex[i], err) < 0)
            return err_wrap(err, "interface %s", f->name);
        for (size_t k = 0; k < f->n_addresses; k++) {
            if (add_address(sk, f->addresses[k], ifindex[i], err) < 0)
                return err_wrap(err, "interface %s: %s", f->name, f->addresses[k]);
        }
    }
    return 0;
}

/* --- routes ------------------------------------------------------------------------------- */

static uint32_t route_table(const route *r)
{
    return r->table ? r->table : RT_TABLE_MAIN;
}

/* The device index of a checked route or neighbour. */
static int dev_index(const request *req, const int *ifindex, const char *dev)
{
    for (size_t i = 0; i < req->n_interfaces; i++) {
        if (strcmp(req->interfaces[i]->name, dev) == 0)
            return ifindex[i];
    }
    return 0;
}

/* IPv6 routes without a metric get this one from the kernel (IP6_RT_PRIO_USER). */
#define IPV6_DEFAULT_METRIC 1024

static uint32_t route_metric(const route *r, int family)
{
    return r->metric == 0 && family == AF_INET6 ? IPV6_DEFAULT_METRIC : r->metric;
}

static struct rtnl_route *make_route(const route *r, int ifindex, struct err *err)
{
    struct net_addr dst_addr, gw_addr;
    auto_of(rtnl_route_put) struct rtnl_route *rt = rtnl_route_alloc();
    auto_of(nl_addr_put) struct nl_addr *dst = addr_of(r->dst, true);
    struct rtnl_nexthop *nh = rtnl_route_nh_alloc();
    if (rt == NULL || dst == NULL || nh == NULL || net_parse_addr(r->dst, true, &dst_addr) < 0) {
        if (nh != NULL)
            rtnl_route_nh_free(nh);
        nl_fail(err, -NLE_NOMEM, "make the route");
        return NULL;
    }
    rtnl_route_set_family(rt, (uint8_t)dst_addr.family);
    rtnl_route_set_dst(rt, dst);
    rtnl_route_set_table(rt, route_table(r));
    rtnl_route_set_scope(rt, (uint8_t)r->scope);
    rtnl_route_set_type(rt, RTN_UNICAST);
    rtnl_route_set_protocol(rt, RTPROT_STATIC); /* marks it as ours */
    if (r->metric != 0)
        rtnl_route_set_priority(rt, r->metric);
    if (r->mtu != 0)
        (void)rtnl_route_set_metric(rt, RTAX_MTU, r->mtu);
    if (r->advmss != 0)
        (void)rtnl_route_set_metric(rt, RTAX_ADVMSS, r->advmss);
    if (*r->src) {
        auto_of(nl_addr_put) struct nl_addr *src = addr_of(r->src, false);
        if (src != NULL)
            rtnl_route_set_pref_src(rt, src);
    }
    rtnl_route_nh_set_ifindex(nh, ifindex);
    if (*r->gateway && net_parse_addr(r->gateway, false, &gw_addr) == 0) {
        auto_of(nl_addr_put) struct nl_addr *gateway = to_nl(&gw_addr);
        if (gateway != NULL && gw_addr.family == dst_addr.family)
            rtnl_route_nh_set_gateway(nh, gateway);
        else if (gateway != NULL)
            (void)rtnl_route_nh_set_via(nh, gateway);
    }
    if (r->onlink) {
        rtnl_route_set_flags(rt, RTNH_F_ONLINK);
        rtnl_route_nh_set_flags(nh, RTNH_F_ONLINK);
    }
    rtnl_route_add_nexthop(rt, nh);
    return take(rt);
}

static int add_route(struct nl_sock *sk, const route *r, int ifindex, struct err *err)
{
    auto_of(rtnl_route_put) struct rtnl_route *rt = make_route(r, ifindex, err);
    if (rt == NULL)
        return -1;
    int nle = rtnl_route_add(sk, rt, NLM_F_EXCL);
    if (nle == -NLE_EXIST) /* from an earlier call, or made by the kernel with the address */
        nle = rtnl_route_add(sk, rt, NLM_F_REPLACE);
    return nle < 0 ? nl_fail(err, nle, "add the route") : 0;
}

/* Whether the kernel's route is one of the request's. */
static bool route_wanted(struct rtnl_route *have, const request *req, const int *ifindex)
{
    struct rtnl_nexthop *nh = rtnl_route_nexthop_n(have, 0);
    struct nl_addr *gateway = nh ? rtnl_route_nh_get_gateway(nh) : NULL;
    if (nh != NULL && gateway == NULL)
        gateway = rtnl_route_nh_get_via(nh);
    struct nl_addr *dst = rtnl_route_get_dst(have);
    int family = rtnl_route_get_family(have);
    for (size_t i = 0; i < req->n_routes; i++) {
        const route *r = req->routes[i];
        struct net_addr a;
        if (net_parse_addr(r->dst, true, &a) < 0 || a.family != family || nh == NULL ||
            rtnl_route_get_table(have) != route_table(r) ||
            rtnl_route_get_priority(have) != route_metric(r, family) ||
            rtnl_route_nh_get_ifindex(nh) != dev_index(req, ifindex, r->dev))
            continue;
        /* A default route's destination comes back empty. */
        unsigned prefix = dst ? nl_addr_get_prefixlen(dst) : 0;
        if (prefix != a.prefix)
            continue;
        auto_of(nl_addr_put) struct nl_addr *want = to_nl(&a);
        if (prefix != 0 && (want == NULL || nl_addr_cmp_prefix(dst, want) != 0))
            continue;
        auto_of(nl_addr_put) struct nl_addr *gw = *r->gateway ? addr_of(r->gateway, false) : NULL;
        if ((gw == NULL) != (gateway == NULL) || (gw != NULL && nl_addr_cmp(gw, gateway) != 0))
            continue;
        return true;
    }
    return false;
}

static int drop_stale_routes(struct nl_sock *sk, const request *req, const int *ifindex,
                             struct err *err)
{
    auto_of(nl_cache_free) struct nl_cache *list = NULL;
    int r = rtnl_route_alloc_cache(sk, AF_UNSPEC, 0, &list);
    if (r < 0)
        return nl_fail(err, r, "list the routes");
    for (struct nl_object *o = nl_cache_get_first(list); o != NULL; o = nl_cache_get_next(o)) {
        struct rtnl_route *have = (struct rtnl_route *)o;
        if (rtnl_route_get_protocol(have) != RTPROT_STATIC || route_wanted(have, req, ifindex))
            continue;
        r = rtnl_route_delete(sk, have, 0);
        if (r < 0 && r != -NLE_OBJ_NOTFOUND)
            return nl_fail(err, r, "remove an old route");
    }
    return 0;
}

/* A gateway must be reachable by a route that is there before, unless the route says onlink. */
static bool is_direct(const route *r)
{
    return *r->gateway == '\0' || r->onlink || r->scope >= RT_SCOPE_LINK;
}

static int apply_routes(struct nl_sock *sk, const request *req, const int *ifindex, bool first,
                        struct err *err)
{
    for (int direct = 1; direct >= 0; direct--) {
        for (size_t i = 0; i < req->n_routes; i++) {
            const route *r = req->routes[i];
            if (is_direct(r) == direct &&
                add_route(sk, r, dev_index(req, ifindex, r->dev), err) < 0)
                return err_wrap(err, "route to %s via \"%s\" dev %s", r->dst, r->gateway, r->dev);
        }
    }
    return first ? 0 : drop_stale_routes(sk, req, ifindex, err);
}

/* --- neighbours --------------------------------------------------------------------------- */

static int add_neighbour(struct nl_sock *sk, const neighbour *n, int ifindex, struct err *err)
{
    uint8_t mac[NET_MAC_SIZE];
    auto_of(rtnl_neigh_put) struct rtnl_neigh *neigh = rtnl_neigh_alloc();
    auto_of(nl_addr_put) struct nl_addr *ip = addr_of(n->ip, false);
    if (neigh == NULL || ip == NULL)
        return nl_fail(err, -NLE_NOMEM, "add the neighbour");
    rtnl_neigh_set_ifindex(neigh, ifindex);
    rtnl_neigh_set_state(neigh, (int)n->state);
    (void)rtnl_neigh_set_dst(neigh, ip);
    if (net_parse_mac(n->mac, mac) == 0) {
        auto_of(nl_addr_put) struct nl_addr *lladdr = nl_addr_build(AF_LLC, mac, sizeof(mac));
        if (lladdr == NULL)
            return nl_fail(err, -NLE_NOMEM, "add the neighbour");
        rtnl_neigh_set_lladdr(neigh, lladdr);
    }
    int r = rtnl_neigh_add(sk, neigh, NLM_F_CREATE | NLM_F_REPLACE);
    return r < 0 ? nl_fail(err, r, "add the neighbour") : 0;
}

/* ------------------------------------------------------------------------------------------- */

int net_prepare(struct err *err)
{
    auto_of(nl_socket_free) struct nl_sock *sk = open_socket(err);
    if (sk == NULL)
        return -1;
    auto_of(nl_cache_free) struct nl_cache *links = read_links(sk, err);
    return links == NULL ? -1 : loopback_up(sk, links, err);
}

static int apply(const request *req, bool first, struct err *err)
{
    if (net_check(req, err) < 0)
        return -1;
    auto_of(nl_socket_free) struct nl_sock *sk = open_socket(err);
    if (sk == NULL)
        return -1;
    auto_of(nl_cache_free) struct nl_cache *links = read_links(sk, err);
    if (links == NULL || loopback_up(sk, links, err) < 0)
        return -1;
    int ifindex[LIMIT_POD_INTERFACES] = {0};
    if (apply_links(sk, links, req, ifindex, err) < 0 ||
        apply_addresses(sk, req, ifindex, first, err) < 0 ||
        apply_routes(sk, req, ifindex, first, err) < 0)
        return -1;
    for (size_t i = 0; i < req->n_neighbours; i++) {
        const neighbour *n = req->neighbours[i];
        if (add_neighbour(sk, n, dev_index(req, ifindex, n->dev), err) < 0)
            return err_wrap(err, "neighbour %s dev %s", n->ip, n->dev);
    }
    return 0;
}

int net_apply_first(const request *req, struct err *err)
{
    return apply(req, true, err);
}

int net_apply(const request *req, struct err *err)
{
    return apply(req, false, err);
}
