/* agent/net: parsing and checks, and the real thing in a network namespace of the test's own. */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/if.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>
#include <netlink/cache.h>
#include <netlink/netlink.h>
#include <netlink/route/addr.h>
#include <netlink/route/link.h>
#include <netlink/route/neighbour.h>
#include <netlink/route/route.h>
#include <netlink/socket.h>

#include "agent/net.h"
#include "agent/net_check.h"
#include "base/cleanup.h"
#include "base/limits.h"

typedef Aspis__Agent__V1__ConfigurePodRequest request;
typedef Aspis__Agent__V1__Interface interface;
typedef Aspis__Agent__V1__Route route;
typedef Aspis__Agent__V1__Neighbour neighbour;

/* --- a request in static memory ---------------------------------------------------------- */

static request req;
static interface ifaces[LIMIT_POD_INTERFACES + 1], *iface_list[LIMIT_POD_INTERFACES + 1];
static route routes[16], *route_list[16];
static neighbour neighbours[4], *neighbour_list[4];
static char *addresses[4][4];

static char *s(const char *text) /* the generated structs have no const */
{
    return (char *)(uintptr_t)text;
}

static void reset(void)
{
    aspis__agent__v1__configure_pod_request__init(&req);
    req.interfaces = iface_list;
    req.routes = route_list;
    req.neighbours = neighbour_list;
}

static interface *add_iface(const char *name, const char *mac, const char *guest_mac)
{
    size_t n = req.n_interfaces++;
    interface *f = iface_list[n] = &ifaces[n];
    aspis__agent__v1__interface__init(f);
    f->name = s(name);
    f->mac = s(mac);
    f->guest_mac = s(guest_mac);
    if (n < ARRAY_LEN(addresses))
        f->addresses = addresses[n];
    return f;
}

static void add_addr(interface *f, const char *text)
{
    f->addresses[f->n_addresses++] = s(text);
}

static route *add_route(const char *dst, const char *gateway, const char *dev)
{
    size_t n = req.n_routes++;
    route *r = route_list[n] = &routes[n];
    aspis__agent__v1__route__init(r);
    r->dst = s(dst);
    r->gateway = s(gateway);
    r->dev = s(dev);
    return r;
}

static void add_neighbour(const char *ip, const char *mac, const char *dev)
{
    size_t n = req.n_neighbours++;
    neighbour *x = neighbour_list[n] = &neighbours[n];
    aspis__agent__v1__neighbour__init(x);
    x->ip = s(ip);
    x->mac = s(mac);
    x->dev = s(dev);
    x->state = NUD_PERMANENT;
}

#define MAC0 "02:00:00:00:a5:00" /* what the devices of the test have */
#define MAC1 "02:00:00:00:a5:01"
#define POD0 "0a:58:0a:f4:00:02" /* what the pod's interfaces shall have */
#define POD1 "0a:58:0a:f4:01:02"

/* --- parsing and checks -------------------------------------------------------------------- */

static void test_mac(void **state)
{
    (void)state;
    uint8_t mac[NET_MAC_SIZE];
    assert_int_equal(net_parse_mac("aA:00:ff:10:9b:01", mac), 0);
    assert_memory_equal(mac, "\xaa\x00\xff\x10\x9b\x01", 6);
    static const char *const bad[] = {"",
                                      "aa:00:ff:10:9b",
                                      "aa:00:ff:10:9b:0g",
                                      "aa-00-ff-10-9b-01",
                                      "aa:00:ff:10:9b:01:",
                                      "aa:00:ff:10:9b:001"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_int_equal(net_parse_mac(bad[i], mac), -1);
    assert_int_equal(net_parse_mac(NULL, mac), -1);
}

static void test_addr(void **state)
{
    (void)state;
    struct net_addr a;
    assert_int_equal(net_parse_addr("10.1.2.3/24", true, &a), 0);
    assert_int_equal(a.family, AF_INET);
    assert_int_equal(a.prefix, 24);
    assert_memory_equal(a.bytes, "\x0a\x01\x02\x03", 4);
    assert_int_equal(net_parse_addr("::/0", true, &a), 0);
    assert_int_equal(a.family, AF_INET6);
    assert_int_equal(a.prefix, 0);
    assert_int_equal(net_parse_addr("fd00::1", false, &a), 0);
    assert_int_equal(a.prefix, 128);
    static const char *const bad_prefix[] = {
        "",          "/",           "/24",          "10.0.0.1",
        "10.0.0.1/", "10.0.0.1/33", "10.0.0.1/-1",  "fd00::1/129",
        "10.0.0/24", "localhost/8", "10.0.0.1/24 ", "10.0.0.1/2x"};
    for (size_t i = 0; i < ARRAY_LEN(bad_prefix); i++)
        assert_int_equal(net_parse_addr(bad_prefix[i], true, &a), -1);
    assert_int_equal(net_parse_addr("10.0.0.1/24", false, &a), -1);
    assert_int_equal(net_parse_addr("", false, &a), -1);
    assert_int_equal(net_parse_addr(NULL, true, &a), -1);
    assert_int_equal(
        net_parse_addr("0000:0000:0000:0000:0000:0000:0000:0000:0000:0000:0000:00001", false, &a),
        -1);
}

static void refused(const char *part)
{
    auto_err struct err err = ERR_INIT;
    assert_int_equal(net_check(&req, &err), -1);
    assert_int_equal(err.code, ERR_INVALID);
    if (strstr(err_msg(&err), part) == NULL)
        fail_msg("no \"%s\" in: %s", part, err_msg(&err));
}

static void test_check(void **state)
{
    (void)state;
    reset();
    assert_int_equal(net_check(&req, NULL), 0);
    interface *f = add_iface("eth0", POD0, MAC0);
    add_addr(f, "10.0.0.2/24");
    route *r = add_route("0.0.0.0/0", "10.0.0.1", "eth0");
    add_neighbour("10.0.0.1", MAC1, "eth0");
    assert_int_equal(net_check(&req, NULL), 0);

    static const char *const names[] = {"", "lo", "..", "a/b", "a b", "0123456789abcdef"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        f->name = s(names[i]);
        refused("name");
    }
    f->name = s("eth0");
    f->mac = s("01:00:5e:00:00:01");
    refused("station");
    f->mac = s(POD0);
    f->guest_mac = s("x");
    refused("guest_mac");
    f->guest_mac = s(MAC0);
    f->mtu = 67;
    refused("MTU");
    f->mtu = 1500;
    f->addresses[0] = s("10.0.0.2");
    refused("address");
    f->addresses[0] = s("10.0.0.2/24");
    f->n_addresses = LIMIT_POD_ADDRESSES + 1;
    refused("addresses");
    f->n_addresses = 1;

    r->dev = s("eth1");
    refused("eth1");
    r->dev = s("eth0");
    r->gateway = s("gateway");
    refused("gateway");
    r->gateway = s("fd00::1"); /* IPv4 over IPv6 is possible */
    assert_int_equal(net_check(&req, NULL), 0);
    r->dst = s("::/0");
    r->gateway = s("10.0.0.1");
    refused("gateway");
    r->gateway = s("fd00::1");
    r->src = s("10.0.0.2");
    refused("source");
    r->src = s("");
    r->scope = 256;
    refused("scope");
    r->scope = 0;

    neighbours[0].state = NUD_REACHABLE;
    refused("state");
    neighbours[0].state = NUD_PERMANENT;
    neighbours[0].mac = s("");
    refused("MAC");
    neighbours[0].state = NUD_NOARP;
    assert_int_equal(net_check(&req, NULL), 0);

    (void)add_iface("eth0", POD1, MAC1);
    refused("twice");
    req.n_interfaces = LIMIT_POD_INTERFACES + 1;
    refused("interfaces");
}

/* --- the real thing ------------------------------------------------------------------------ */

static struct nl_sock *sk;

static struct nl_addr *addr_from(const char *text, int family)
{
    struct nl_addr *a = NULL;
    assert_int_equal(nl_addr_parse(text, family, &a), 0);
    return a;
}

/* A veth pair whose end `name` has the MAC; the peer is up so that there is a carrier. */
static void make_nic(const char *name, const char *peer, const char *mac)
{
    struct rtnl_link *link = rtnl_link_alloc();
    assert_int_equal(rtnl_link_set_type(link, "veth"), 0);
    rtnl_link_set_name(link, name);
    struct nl_addr *a = addr_from(mac, AF_LLC);
    rtnl_link_set_addr(link, a);
    nl_addr_put(a);
    struct rtnl_link *other = rtnl_link_alloc();
    assert_int_equal(rtnl_link_add(sk, link, NLM_F_CREATE | NLM_F_EXCL), 0);
    rtnl_link_put(link);
    /* The kernel named the peer itself: the only other veth that is not ours yet. */
    struct nl_cache *links = NULL;
    assert_int_equal(rtnl_link_alloc_cache(sk, AF_UNSPEC, &links), 0);
    struct rtnl_link *ours = rtnl_link_get_by_name(links, name);
    struct rtnl_link *theirs = rtnl_link_get(links, rtnl_link_get_link(ours));
    assert_non_null(theirs);
    rtnl_link_set_name(other, peer);
    rtnl_link_set_flags(other, IFF_UP);
    assert_int_equal(rtnl_link_change(sk, theirs, other, 0), 0);
    rtnl_link_put(ours);
    rtnl_link_put(theirs);
    rtnl_link_put(other);
    nl_cache_free(links);
}

static int enter_netns(void **state)
{
    if (unshare(CLONE_NEWNET) < 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) < 0) {
        *state = NULL;
        return 0;
    }
    sk = nl_socket_alloc();
    assert_int_equal(nl_connect(sk, NETLINK_ROUTE), 0);
    make_nic("nic0", "peer0", MAC0);
    make_nic("nic1", "peer1", MAC1);
    *state = sk;
    return 0;
}

static int leave(void **state)
{
    (void)state;
    if (sk != NULL)
        nl_socket_free(sk);
    sk = NULL;
    return 0;
}

static void apply(void)
{
    auto_err struct err err = ERR_INIT;
    if (net_apply(&req, &err) < 0)
        fail_msg("%s", err_msg(&err));
}

/* Each look at the kernel's state is one text with sorted-by-kernel lines, so that failures can be
 * read. */
static void assert_link(const char *name, const char *mac, unsigned mtu)
{
    struct rtnl_link *l = NULL;
    assert_int_equal(rtnl_link_get_kernel(sk, 0, name, &l), 0);
    char text[64];
    assert_string_equal(nl_addr2str(rtnl_link_get_addr(l), text, sizeof(text)), mac);
    assert_int_equal(rtnl_link_get_mtu(l), mtu);
    assert_true(rtnl_link_get_flags(l) & IFF_UP);
    rtnl_link_put(l);
}

static int ifindex_of(const char *name)
{
    struct rtnl_link *l = NULL;
    assert_int_equal(rtnl_link_get_kernel(sk, 0, name, &l), 0);
    int i = rtnl_link_get_ifindex(l);
    rtnl_link_put(l);
    return i;
}

static bool has_addr(const char *dev, const char *want)
{
    struct nl_cache *list = NULL;
    assert_int_equal(rtnl_addr_alloc_cache(sk, &list), 0);
    bool found = false;
    for (struct nl_object *o = nl_cache_get_first(list); o; o = nl_cache_get_next(o)) {
        struct rtnl_addr *a = (struct rtnl_addr *)o;
        char text[80];
        if (rtnl_addr_get_ifindex(a) == ifindex_of(dev) &&
            strcmp(nl_addr2str(rtnl_addr_get_local(a), text, sizeof(text)), want) == 0) {
            found = true;
            assert_false(rtnl_addr_get_flags(a) & IFA_F_TENTATIVE);
        }
    }
    nl_cache_free(list);
    return found;
}

/* The route to dst with this metric in this table, or NULL; the caller puts it. */
static struct rtnl_route *find_route(const char *dst, int family, uint32_t metric, uint32_t table)
{
    struct nl_cache *list = NULL;
    assert_int_equal(rtnl_route_alloc_cache(sk, family, 0, &list), 0);
    struct rtnl_route *found = NULL;
    for (struct nl_object *o = nl_cache_get_first(list); o && !found; o = nl_cache_get_next(o)) {
        struct rtnl_route *r = (struct rtnl_route *)o;
        char text[80] = "default";
        if (nl_addr_get_prefixlen(rtnl_route_get_dst(r)) > 0)
            (void)nl_addr2str(rtnl_route_get_dst(r), text, sizeof(text));
        if (rtnl_route_get_table(r) == table && rtnl_route_get_priority(r) == metric &&
            rtnl_route_get_type(r) == RTN_UNICAST && strcmp(text, dst) == 0) {
            nl_object_get(o);
            found = r;
        }
    }
    nl_cache_free(list);
    return found;
}

static void assert_route(const char *dst, int family, uint32_t metric, const char *gateway,
                         const char *dev)
{
    struct rtnl_route *r = find_route(dst, family, metric, RT_TABLE_MAIN);
    if (r == NULL)
        fail_msg("no route to %s", dst);
    struct rtnl_nexthop *nh = rtnl_route_nexthop_n(r, 0);
    struct nl_addr *gw = rtnl_route_nh_get_gateway(nh);
    if (gw == NULL)
        gw = rtnl_route_nh_get_via(nh);
    char text[80];
    assert_string_equal(gw ? nl_addr2str(gw, text, sizeof(text)) : "", gateway);
    assert_int_equal(rtnl_route_nh_get_ifindex(nh), ifindex_of(dev));
    rtnl_route_put(r);
}

static void assert_no_route(const char *dst, int family, uint32_t metric)
{
    struct rtnl_route *r = find_route(dst, family, metric, RT_TABLE_MAIN);
    if (r != NULL)
        fail_msg("there is a route to %s", dst);
}

static void assert_metric(const char *dst, int family, uint32_t priority, int what, uint32_t want)
{
    struct rtnl_route *r = find_route(dst, family, priority, RT_TABLE_MAIN);
    assert_non_null(r);
    uint32_t value = 0;
    assert_int_equal(rtnl_route_get_metric(r, what, &value), 0);
    assert_int_equal(value, want);
    rtnl_route_put(r);
}

static void full_request(void)
{
    reset();
    interface *f = add_iface("eth0", POD0, MAC0);
    f->mtu = 1450;
    add_addr(f, "10.244.0.2/24");
    add_addr(f, "fd00:244::2/64");
    f = add_iface("net1", POD1, MAC1);
    add_addr(f, "192.0.2.7/32");
    /* In an order that needs sorting: gateways first. */
    add_route("0.0.0.0/0", "169.254.1.1", "eth0")->onlink = true;
    route *r = add_route("10.96.0.0/12", "10.244.0.1", "eth0");
    r->mtu = 1400;
    r->advmss = 1360;
    r->metric = 77;
    r->src = s("10.244.0.2");
    add_route("::/0", "fd00:244::1", "eth0");
    add_route("203.0.113.0/24", "198.51.100.1", "net1");
    r = add_route("198.51.100.0/24", "", "net1");
    r->scope = RT_SCOPE_LINK;
    add_route("172.20.0.0/16", "fd00:244::1", "eth0");
    r = add_route("100.64.0.0/10", "", "eth0");
    r->table = 100;
    r->scope = RT_SCOPE_LINK;
    add_neighbour("169.254.1.1", "ee:ee:ee:ee:ee:ee", "eth0");
    add_neighbour("fd00:244::1", "ee:ee:ee:ee:ee:ee", "eth0");
}

static void assert_full(void)
{
    assert_link("eth0", POD0, 1450);
    assert_link("net1", POD1, 1500);
    assert_true(has_addr("eth0", "10.244.0.2/24"));
    assert_true(has_addr("eth0", "fd00:244::2/64"));
    assert_true(has_addr("net1", "192.0.2.7"));
    assert_route("default", AF_INET, 0, "169.254.1.1", "eth0");
    assert_route("10.96.0.0/12", AF_INET, 77, "10.244.0.1", "eth0");
    assert_metric("10.96.0.0/12", AF_INET, 77, RTAX_MTU, 1400);
    assert_metric("10.96.0.0/12", AF_INET, 77, RTAX_ADVMSS, 1360);
    assert_route("default", AF_INET6, 1024, "fd00:244::1", "eth0");
    assert_route("203.0.113.0/24", AF_INET, 0, "198.51.100.1", "net1");
    assert_route("198.51.100.0/24", AF_INET, 0, "", "net1");
    assert_route("172.20.0.0/16", AF_INET, 0, "fd00:244::1", "eth0");
    struct rtnl_route *r = find_route("100.64.0.0/10", AF_INET, 0, 100);
    assert_non_null(r);
    rtnl_route_put(r);

    struct nl_cache *list = NULL;
    assert_int_equal(rtnl_neigh_alloc_cache(sk, &list), 0);
    struct nl_addr *ip = addr_from("169.254.1.1", AF_INET);
    struct rtnl_neigh *n = rtnl_neigh_get(list, ifindex_of("eth0"), ip);
    assert_non_null(n);
    assert_int_equal(rtnl_neigh_get_state(n), NUD_PERMANENT);
    rtnl_neigh_put(n);
    nl_addr_put(ip);
    nl_cache_free(list);
}

static void test_apply(void **state)
{
    if (*state == NULL)
        skip();
    full_request();
    assert_int_equal(net_ready(&req, NULL), 1);
    apply();
    struct rtnl_link *lo = NULL;
    assert_int_equal(rtnl_link_get_kernel(sk, 0, "lo", &lo), 0);
    assert_true(rtnl_link_get_flags(lo) & IFF_UP);
    rtnl_link_put(lo);
    assert_full();

    /* Again, as the devices are now: same result. */
    assert_int_equal(net_ready(&req, NULL), 1);
    apply();
    assert_full();

    /* What the request no longer has goes away. */
    ifaces[0].n_addresses = 0;
    add_addr(&ifaces[0], "10.244.0.9/24");
    req.n_routes = 0;
    add_route("0.0.0.0/0", "10.244.0.1", "eth0");
    apply();
    assert_true(has_addr("eth0", "10.244.0.9/24"));
    assert_false(has_addr("eth0", "10.244.0.2/24"));
    assert_false(has_addr("eth0", "fd00:244::2/64"));
    assert_true(has_addr("net1", "192.0.2.7"));
    assert_route("default", AF_INET, 0, "10.244.0.1", "eth0");
    assert_route("10.244.0.0/24", AF_INET, 0, "", "eth0"); /* the kernel's own */
    assert_no_route("10.96.0.0/12", AF_INET, 77);
    assert_no_route("default", AF_INET6, 1024);
    assert_no_route("198.51.100.0/24", AF_INET, 0);
}

static void test_swap_names(void **state)
{
    if (*state == NULL)
        skip();
    reset();
    (void)add_iface("nic1", POD0, MAC0);
    (void)add_iface("nic0", POD1, MAC1);
    apply();
    assert_link("nic1", POD0, 1500);
    assert_link("nic0", POD1, 1500);
    apply();
    assert_link("nic1", POD0, 1500);
    assert_link("nic0", POD1, 1500);
}

static void test_missing(void **state)
{
    if (*state == NULL)
        skip();
    reset();
    (void)add_iface("eth0", POD0, MAC0);
    (void)add_iface("eth1", POD1, "02:00:00:00:a5:99");
    auto_err struct err err = ERR_INIT;
    assert_int_equal(net_ready(&req, &err), 0);
    assert_non_null(strstr(err_msg(&err), "eth1"));
    assert_non_null(strstr(err_msg(&err), "02:00:00:00:a5:99"));
    assert_int_equal(net_apply(&req, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    /* The same NIC twice. */
    ifaces[1].guest_mac = s(MAC0);
    assert_int_equal(net_apply(&req, &err), -1);
    assert_int_equal(err.code, ERR_INVALID);
}

static void test_bad_route(void **state)
{
    if (*state == NULL)
        skip();
    reset();
    interface *f = add_iface("eth0", POD0, MAC0);
    add_addr(f, "10.244.0.2/24");
    add_route("0.0.0.0/0", "172.16.0.1", "eth0"); /* nobody can reach that gateway */
    auto_err struct err err = ERR_INIT;
    assert_int_equal(net_apply(&req, &err), -1);
    assert_non_null(strstr(err_msg(&err), "0.0.0.0/0"));
    assert_non_null(strstr(err_msg(&err), "172.16.0.1"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mac),
        cmocka_unit_test(test_addr),
        cmocka_unit_test(test_check),
        cmocka_unit_test_setup_teardown(test_apply, enter_netns, leave),
        cmocka_unit_test_setup_teardown(test_swap_names, enter_netns, leave),
        cmocka_unit_test_setup_teardown(test_missing, enter_netns, leave),
        cmocka_unit_test_setup_teardown(test_bad_route, enter_netns, leave),
    };
    return cmocka_run_group_tests_name("net", tests, NULL, NULL);
}
