/* Needs root: makes real namespaces, links and taps. */
#include "fixture.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_ether.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <netpacket/packet.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "base/cancel.h"
#include "base/spawn.h"
#include "netplugin/netns.h"
#include "netplugin/nsthread.h"

#define VETH "{ ip link add eth0 address 0a:58:0a:63:00:02 type veth peer name peer0; }"

struct ns {
    char name[32];
    char *path;
};

static int setup(void **state)
{
    struct ns *n = calloc(1, sizeof(*n));
    auto_err struct err err = ERR_INIT;
    char hex[13];

    if (geteuid() != 0) {
        free(n);
        *state = NULL;
        return 0;
    }
    fs_random_hex(hex, 12);
    (void)snprintf(n->name, sizeof(n->name), "cni-test-%s", hex);
    if (netns_create(n->name, &n->path, &err) < 0) {
        fprintf(stderr, "%s\n", err_msg(&err));
        free(n);
        return -1;
    }
    *state = n;
    return 0;
}

static int teardown(void **state)
{
    struct ns *n = *state;
    int ret = 0;

    if (n == NULL)
        return 0;
    ret = netns_remove(n->path, NULL);
    if (fs_exists(n->path))
        ret = -1;
    free(n->path);
    free(n);
    return ret;
}

static struct ns *need(void **state)
{
    if (*state == NULL)
        skip();
    return *state;
}

struct script {
    const char *text;
};

/* posix_spawn from a thread inside the namespace: the child inherits it. */
static int run_script(void *arg, struct err *err)
{
    const struct script *s = arg;
    const char *const argv[] = {"/bin/sh", "-ec", s->text, NULL};
    const struct spawn_opts opts = {.path = "/bin/sh", .argv = argv};
    auto_buf struct buf out = BUF_INIT(KiB(64)), eout = BUF_INIT(KiB(64));
    int status;

    if (spawn_run(&opts, NULL, 0, &out, &eout, NULL, &status, err) < 0)
        return -1;
    return status == 0 ? 0 : err_set(err, ERR_UNKNOWN, "%s: %s", s->text, buf_str(&eout));
}

static void in_ns(const struct ns *n, const char *text)
{
    struct script s = {text};
    auto_err struct err err = ERR_INIT;

    if (nsthread_run(n->path, run_script, &s, &err) < 0)
        fail_msg("%s", err_msg(&err));
}

static void lo_is_up_and_the_caller_stays(void **state)
{
    struct ns *n = need(state);
    char before[64] = "", after[64] = "";
    char *path = NULL;
    auto_err struct err err = ERR_INIT;

    assert_true(readlink("/proc/thread-self/ns/net", before, sizeof(before) - 1) > 0);
    in_ns(n, "ip -o link show lo | grep -q ',UP'; ip -o addr show lo | grep -q 127.0.0.1");
    assert_true(readlink("/proc/thread-self/ns/net", after, sizeof(after) - 1) > 0);
    assert_string_equal(before, after);
    assert_int_equal(netns_create(n->name, &path, &err), -1);
    assert_int_equal(err.code, ERR_EXISTS);
    assert_int_equal(netns_create("../x", &path, NULL), -1);
}

static void removal_is_repeatable(void **state)
{
    struct ns *n = need(state);
    auto_free char *plain = fs_format("/run/netns/cni-test-plain-%d", (int)getpid());

    assert_int_equal(netns_remove(n->path, NULL), 0);
    assert_false(fs_exists(n->path));
    assert_int_equal(netns_remove(n->path, NULL), 0);
    fx_write("/run/netns", strrchr(plain, '/') + 1, "");
    assert_int_equal(netns_remove(plain, NULL), 0);
    assert_false(fs_exists(plain));
    assert_int_equal(netns_remove("", NULL), -1);
}

static void a_leftover_file_is_taken_over(void **state)
{
    auto_free char *name = fs_format("cni-test-left-%d", (int)getpid()), *path = NULL;

    (void)need(state);
    fx_write("/run/netns", name, "");
    assert_int_equal(netns_create(name, &path, NULL), 0);
    assert_int_equal(netns_remove(path, NULL), 0);
}

#define MANY 20

struct maker {
    pthread_t t;
    char name[32];
    char *path;
    int ret;
};

static void *make_one(void *arg)
{
    struct maker *m = arg;

    m->ret = netns_create(m->name, &m->path, NULL);
    return NULL;
}

static void twenty_at_once(void **state)
{
    struct maker m[MANY] = {0};

    (void)need(state);
    for (int i = 0; i < MANY; i++) {
        (void)snprintf(m[i].name, sizeof(m[i].name), "cni-t%d-%d", (int)getpid(), i);
        assert_int_equal(pthread_create(&m[i].t, NULL, make_one, &m[i]), 0);
    }
    for (int i = 0; i < MANY; i++)
        (void)pthread_join(m[i].t, NULL);
    for (int i = 0; i < MANY; i++) {
        struct ns n = {.path = m[i].path};

        assert_int_equal(m[i].ret, 0);
        in_ns(&n, "test $(ip -o link | wc -l) = 1");
        assert_int_equal(netns_remove(m[i].path, NULL), 0);
        assert_false(fs_exists(m[i].path));
        free(m[i].path);
    }
}

static bool has_address(const struct net_iface *f, const char *cidr)
{
    for (size_t i = 0; i < f->n_addresses; i++) {
        if (strcmp(f->addresses[i], cidr) == 0)
            return true;
    }
    return false;
}

static const struct net_route *find_route(const struct net_iface *f, const char *dst,
                                          uint32_t table)
{
    for (size_t i = 0; i < f->n_routes; i++) {
        if (strcmp(f->routes[i].dst, dst) == 0 && f->routes[i].table == table)
            return &f->routes[i];
    }
    return NULL;
}

static struct net_route the_route(const struct net_iface *f, const char *dst)
{
    const struct net_route *r = find_route(f, dst, 0);

    if (r == NULL) {
        fail_msg("no route to %s", dst);
        return (struct net_route){0};
    }
    return *r;
}

/* Calico's and Cilium's habits: a /32, a gateway outside any subnet, route MTUs, static neighbours.
 */
static void the_guest_gets_what_the_kernel_has(void **state)
{
    struct ns *n = need(state);
    auto_netinfo struct netinfo info = {0};
    auto_err struct err err = ERR_INIT;
    auto_close int tap = -1;
    const struct net_iface *f;
    struct net_route r;

    in_ns(n,
          VETH "; ip link set peer0 up; ip link set eth0 mtu 1430 up"
               "; ip addr add 10.99.7.2/32 dev eth0; ip addr add fd99:7::2/128 dev eth0 nodad"
               "; ip addr add fe80::1234/64 dev eth0 nodad"
               "; ip route add 169.254.1.1 dev eth0 scope link"
               "; ip route add default via 169.254.1.1 dev eth0 mtu 1400 advmss 1360"
               "; ip route add 10.77.0.0/16 via 172.31.0.1 dev eth0 onlink src 10.99.7.2 metric 5"
               "; ip route add 10.78.0.0/16 dev eth0 scope link table 100"
               "; ip -6 route add fd99:7::1 dev eth0; ip -6 route add default via fd99:7::1 dev "
               "eth0 mtu 1410"
               "; ip route add 10.80.0.0/16 dev lo; ip route add blackhole 10.81.0.0/16"
               "; ip neigh add 169.254.1.1 lladdr ee:ee:ee:ee:ee:ee dev eth0 nud permanent"
               "; ip neigh add 10.99.7.9 lladdr ee:ee:ee:ee:ee:01 dev eth0 nud stale"
               "; ip -6 neigh add fd99:7::1 lladdr ee:ee:ee:ee:ee:02 dev eth0 nud noarp");
    tap = netns_attach_tap(n->path, "eth0", "tap0", &info, &err);
    if (tap < 0)
        fail_msg("%s", err_msg(&err));
    assert_int_equal(info.n_ifaces, 1);
    f = &info.ifaces[0];
    assert_string_equal(f->name, "eth0");
    assert_string_equal(f->mac, "0a:58:0a:63:00:02");
    assert_int_equal(f->mtu, 1430);
    assert_true(has_address(f, "10.99.7.2/32"));
    assert_true(has_address(f, "fd99:7::2/128"));
    assert_true(has_address(f, "fe80::1234/64"));
    assert_int_equal(f->n_addresses, 3); /* the kernel's own fe80:: stays out */
    r = the_route(f, "169.254.1.1/32");
    assert_int_equal(r.scope, 253);
    assert_null(r.gateway);
    r = the_route(f, "0.0.0.0/0");
    assert_string_equal(r.gateway, "169.254.1.1");
    assert_int_equal(r.mtu, 1400);
    assert_int_equal(r.advmss, 1360);
    assert_int_equal(r.scope, 0);
    r = the_route(f, "10.77.0.0/16");
    assert_true(r.onlink);
    assert_string_equal(r.src, "10.99.7.2");
    assert_int_equal(r.metric, 5);
    assert_non_null(find_route(f, "10.78.0.0/16", 100));
    r = the_route(f, "::/0");
    assert_string_equal(r.gateway, "fd99:7::1");
    assert_int_equal(r.mtu, 1410);
    assert_non_null(find_route(f, "fd99:7::1/128", 0));
    assert_null(find_route(f, "10.80.0.0/16", 0));
    assert_null(find_route(f, "10.81.0.0/16", 0));
    assert_null(find_route(f, "fe80::/64", 0));
    assert_int_equal(f->n_neighbours, 2);
    assert_string_equal(f->neighbours[0].ip, "169.254.1.1");
    assert_string_equal(f->neighbours[0].mac, "ee:ee:ee:ee:ee:ee");
    assert_int_equal(f->neighbours[0].state, 0x80);
    assert_int_equal(f->neighbours[1].state, 0x40);
    assert_true((fcntl(tap, F_GETFD) & FD_CLOEXEC) != 0);
    assert_true((fcntl(tap, F_GETFL) & O_NONBLOCK) != 0);
    in_ns(n, "ip -o link show tap0 | grep -q 'mtu 1430'; ip -o link show tap0 | grep -q ',UP'"
             "; test -z \"$(ip -o -6 addr show dev tap0)\"");
}

/* Sends one frame through `fd` (a tap with virtio-net header) and waits for it on `peer0` in the
 * namespace, or the other way round. */
struct wire {
    int sock;
};

static int open_packet(void *arg, struct err *err)
{
    struct wire *w = arg;
    struct sockaddr_ll sa = {.sll_family = AF_PACKET, .sll_protocol = htons(0x88b5)};

    sa.sll_ifindex = 0;
    w->sock = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(0x88b5));
    if (w->sock < 0)
        return err_sys(err, errno, "packet socket");
    {
        struct ifreq r = {0};

        (void)snprintf(r.ifr_name, sizeof(r.ifr_name), "peer0");
        if (ioctl(w->sock, SIOCGIFINDEX, &r) < 0)
            return err_sys(err, errno, "peer0");
        sa.sll_ifindex = r.ifr_ifindex;
    }
    return bind(w->sock, (struct sockaddr *)&sa, sizeof(sa)) < 0 ? err_sys(err, errno, "bind") : 0;
}

static void frames_pass_both_ways(int tap, int sock)
{
    unsigned char out[12 + 64] = {0}, in[2048];
    const unsigned char head[14] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2,
                                    0,    0,    0,    0,    9,    0x88, 0xb5};
    struct pollfd p = {.fd = sock, .events = POLLIN};
    ssize_t n;

    memcpy(out + 10, head, sizeof(head)); /* 10: struct virtio_net_hdr, the default size */
    memcpy(out + 24, "outward", 7);
    assert_int_equal(write(tap, out, 10 + 60), 70);
    assert_int_equal(poll(&p, 1, 5000), 1);
    n = recv(sock, in, sizeof(in), 0);
    assert_true(n >= 60);
    assert_memory_equal(in + 14, "outward", 7);

    memcpy(out, head, sizeof(head));
    memcpy(out + 14, "inward!", 7);
    assert_int_equal(send(sock, out, 60, 0), 60);
    p.fd = tap;
    for (;;) {
        assert_int_equal(poll(&p, 1, 5000), 1);
        n = read(tap, in, sizeof(in));
        if (n >= 70 && in[22] == 0x88 && in[23] == 0xb5)
            break; /* others are the link's own IPv6 chatter */
    }
    assert_memory_equal(in + 24, "inward!", 7);
}

static void the_tap_is_wired_to_the_link(void **state)
{
    struct ns *n = need(state);
    auto_netinfo struct netinfo info = {0};
    auto_err struct err err = ERR_INIT;
    auto_close int tap = -1, again = -1;
    struct wire w = {-1};

    in_ns(n, VETH "; ip link set peer0 up; ip link set eth0 up");
    tap = netns_attach_tap(n->path, "eth0", "tap0", &info, &err);
    if (tap < 0)
        fail_msg("%s", err_msg(&err));
    assert_int_equal(nsthread_run(n->path, open_packet, &w, &err), 0);
    frames_pass_both_ways(tap, w.sock);
    /* the leftover, still held open, is replaced and the redirect follows */
    again = netns_attach_tap(n->path, "eth0", "tap0", &info, &err);
    if (again < 0)
        fail_msg("%s", err_msg(&err));
    frames_pass_both_ways(again, w.sock);
    assert_int_equal(info.n_ifaces, 1);
    (void)close(w.sock);
    /* nothing persists once the descriptor is closed */
    cleanup_closep(&tap);
    cleanup_closep(&again);
    in_ns(n, "! ip link show tap0 2>/dev/null");
}

static void a_plugins_own_qdisc_stays(void **state)
{
    struct ns *n = need(state);
    auto_netinfo struct netinfo info = {0};
    auto_err struct err err = ERR_INIT;
    auto_close int tap = -1;
    struct wire w = {-1};

    in_ns(n,
          VETH "; ip link set peer0 up; ip link set eth0 up; tc qdisc add dev eth0 ingress"
               "; tc filter add dev eth0 ingress protocol ip prio 10 u32 match u32 1 1 flowid :1");
    tap = netns_attach_tap(n->path, "eth0", "tap0", &info, &err);
    if (tap < 0)
        fail_msg("%s", err_msg(&err));
    in_ns(n, "tc filter show dev eth0 ingress | grep -q 'pref 10 '");
    assert_int_equal(nsthread_run(n->path, open_packet, &w, &err), 0);
    frames_pass_both_ways(tap, w.sock);
    (void)close(w.sock);
}

static void wrong_links_are_refused(void **state)
{
    struct ns *n = need(state);
    auto_netinfo struct netinfo info = {0};
    auto_err struct err err = ERR_INIT;

    in_ns(n, VETH "; ip link add other type veth peer name other1");
    assert_int_equal(netns_attach_tap(n->path, "eth9", "tap0", &info, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_int_equal(netns_attach_tap(n->path, "lo", "tap0", &info, &err), -1);
    assert_int_equal(err.code, ERR_PRECONDITION);
    assert_int_equal(netns_attach_tap(n->path, "eth0", "eth0", &info, &err), -1);
    assert_int_equal(netns_attach_tap(n->path, "eth0", "other", &info, &err), -1);
    assert_int_equal(err.code, ERR_EXISTS);
    in_ns(n, "ip link show other >/dev/null");
    assert_int_equal(netns_attach_tap("/nonexistent", "eth0", "tap0", &info, &err), -1);
    assert_int_equal(info.n_ifaces, 0);
}

static void too_much_is_refused(void **state)
{
    struct ns *n = need(state);
    auto_netinfo struct netinfo info = {0};
    auto_err struct err err = ERR_INIT;

    in_ns(n, VETH "; ip link set peer0 up; ip link set eth0 up; i=0; while [ $i -lt 70 ]; do"
                  " echo addr add 10.98.0.$i/32 dev eth0; i=$((i+1)); done | ip -batch -");
    assert_int_equal(netns_attach_tap(n->path, "eth0", "tap0", &info, &err), -1);
    assert_int_equal(err.code, ERR_EXHAUSTED);
    in_ns(n, "! ip link show tap0 2>/dev/null");
}

static void fifty_links_do_not_confuse(void **state)
{
    struct ns *n = need(state);
    auto_netinfo struct netinfo info = {0};
    auto_err struct err err = ERR_INIT;
    auto_close int tap = -1;

    in_ns(n, "i=0; while [ $i -lt 25 ]; do echo link add d$i type veth peer name e$i;"
             " echo addr add 10.97.$i.1/24 dev d$i; echo link set d$i up; i=$((i+1)); done | ip "
             "-batch -");
    in_ns(n, VETH "; ip link set eth0 up; ip addr add 10.96.0.1/24 dev eth0");
    tap = netns_attach_tap(n->path, "eth0", "tap0", &info, &err);
    if (tap < 0)
        fail_msg("%s", err_msg(&err));
    assert_int_equal(info.ifaces[0].n_addresses, 1);
    for (size_t i = 0; i < info.ifaces[0].n_routes; i++)
        assert_true(str_starts(info.ifaces[0].routes[i].dst, "10.96."));
}

/* What QEMU asks of a tap handed to it, as an unprivileged process in another namespace. */
static void an_unprivileged_process_elsewhere_can_use_the_tap(void **state)
{
    struct ns *n = need(state);
    auto_netinfo struct netinfo info = {0};
    auto_close int tap = -1;
    pid_t pid;
    int status;

    in_ns(n, VETH "; ip link set peer0 up; ip link set eth0 up");
    tap = netns_attach_tap(n->path, "eth0", "tap0", &info, NULL);
    assert_true(tap >= 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct ifreq r = {0};
        unsigned features = 0;
        int v, bad = 0;

        if (unshare(CLONE_NEWNET) < 0 || setgid(65534) < 0 || setuid(65534) < 0)
            _exit(100);
        bad |= (ioctl(tap, TUNGETFEATURES, &features) < 0) << 0;
        bad |= (ioctl(tap, TUNGETIFF, &r) < 0) << 1;
        bad |= ((r.ifr_flags & (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)) !=
                (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
               << 2;
        v = sizeof(struct virtio_net_hdr_mrg_rxbuf);
        bad |= (ioctl(tap, TUNSETVNETHDRSZ, &v) < 0) << 3;
        bad |= (ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN) < 0)
               << 4;
        v = 0;
        bad |= (ioctl(tap, TUNSETVNETLE, &v) < 0) << 5;
        v = 1 << 20;
        bad |= (ioctl(tap, TUNSETSNDBUF, &v) < 0) << 6;
        _exit(bad);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(lo_is_up_and_the_caller_stays, setup, teardown),
        cmocka_unit_test_setup_teardown(removal_is_repeatable, setup, teardown),
        cmocka_unit_test_setup_teardown(a_leftover_file_is_taken_over, setup, teardown),
        cmocka_unit_test_setup_teardown(twenty_at_once, setup, teardown),
        cmocka_unit_test_setup_teardown(the_guest_gets_what_the_kernel_has, setup, teardown),
        cmocka_unit_test_setup_teardown(the_tap_is_wired_to_the_link, setup, teardown),
        cmocka_unit_test_setup_teardown(a_plugins_own_qdisc_stays, setup, teardown),
        cmocka_unit_test_setup_teardown(wrong_links_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(too_much_is_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(fifty_links_do_not_confuse, setup, teardown),
        cmocka_unit_test_setup_teardown(an_unprivileged_process_elsewhere_can_use_the_tap, setup,
                                        teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
