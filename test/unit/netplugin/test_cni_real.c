/*
 * The whole of the folder with real plugins (Debian's containernetworking-plugins): netns, ADD,
 * tap, traffic through the tap, CHECK, DEL, nothing left. Needs root and the plugins; skips
 * without.
 */
#include "fixture.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>

#include "base/cancel.h"
#include "base/spawn.h"
#include "netplugin/cni.h"
#include "netplugin/netns.h"

#define PLUGINS "/usr/lib/cni"

struct world {
    struct fixture *f;
    struct loop *loop;
    struct cni *cni;
    char id[32], bridge[16], netns_name[40];
    char *netns;
    unsigned net; /* second and third part of the test's own subnets */
};

static char *sh(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* Output of a command of the test's own making. */
static char *sh(const char *fmt, ...)
{
    auto_free char *cmd = NULL;
    va_list ap;

    va_start(ap, fmt);
    assert_true(vasprintf(&cmd, fmt, ap) > 0);
    va_end(ap);
    const char *const argv[] = {"/bin/sh", "-c", cmd, NULL};
    const struct spawn_opts opts = {.path = "/bin/sh", .argv = argv};
    auto_buf struct buf out = BUF_INIT(MiB(1));
    int status;

    assert_int_equal(spawn_run(&opts, NULL, 0, &out, NULL, NULL, &status, NULL), 0);
    return xstrdup(buf_str(&out));
}

static int setup(void **state)
{
    static struct world w;
    char hex[9];
    void *fx = NULL;

    w = (struct world){0};
    if (fx_setup(&fx) < 0)
        return -1;
    w.f = fx;
    fs_random_hex(hex, 8);
    (void)snprintf(w.id, sizeof(w.id), "aspistest%s", hex);
    (void)snprintf(w.bridge, sizeof(w.bridge), "at%s", hex);
    (void)snprintf(w.netns_name, sizeof(w.netns_name), "cni-at-%s", hex);
    w.net = (unsigned)strtoul(hex, NULL, 16);
    *state = &w;
    return 0;
}

static struct cni_attachment attachment(struct world *w)
{
    static struct cni_port_mapping ports[1];

    ports[0] = (struct cni_port_mapping){
        .protocol = "tcp", .container_port = 80, .host_port = 20000 + (int)(w->net % 10000)};
    return (struct cni_attachment){.sandbox_id = w->id,
                                   .netns = w->netns,
                                   .ifname = "eth0",
                                   .pod_name = "web",
                                   .pod_namespace = "default",
                                   .pod_uid = "uid-1",
                                   .ports = ports,
                                   .n_ports = 1};
}

static int teardown(void **state)
{
    struct world *w = *state;
    void *fx = w->f;
    struct cni_attachment a = attachment(w);

    /* after a failed test, so that it too leaves nothing */
    if (w->cni != NULL && w->netns != NULL)
        (void)cni_del(w->cni, &a, NULL, NULL);
    cni_free(w->cni);
    loop_free(w->loop);
    if (w->netns != NULL)
        (void)netns_remove(w->netns, NULL);
    free(w->netns);
    free(sh("ip link del %s 2>/dev/null", w->bridge));
    return fx_teardown(&fx);
}

/* As a daemon starts. Programs in the fixture's own directory are found before the real ones. */
static struct cni *plugins(struct world *w, int64_t timeout, struct err *err)
{
    const char *const dirs[] = {w->f->bin, PLUGINS, NULL};
    struct cni_options o = {
        .conf_dir = w->f->conf, .bin_dirs = dirs, .cache_dir = w->f->cache, .timeout_ns = timeout};
    return cni_new(&o, w->loop, err);
}

static void begin_with(struct world *w, const char *conf, int64_t timeout)
{
    auto_err struct err err = ERR_INIT;

    if (geteuid() != 0 || access(PLUGINS "/bridge", X_OK) < 0)
        skip();
    fx_write(w->f->conf, "10-real.conflist", conf);
    w->loop = loop_new(NULL);
    w->cni = plugins(w, timeout, &err);
    if (w->cni == NULL || netns_create(w->netns_name, &w->netns, &err) < 0)
        fail_msg("%s", err_msg(&err));
}

static void begin(struct world *w, const char *conf)
{
    begin_with(w, conf, SEC(30));
}

static void parse_mac(const char *text, unsigned char out[6])
{
    unsigned v[6];

    assert_int_equal(sscanf(text, "%x:%x:%x:%x:%x:%x", &v[0], &v[1], &v[2], &v[3], &v[4], &v[5]),
                     6);
    for (int i = 0; i < 6; i++)
        out[i] = (unsigned char)v[i];
}

/* Reads frames (behind the 10 byte virtio-net header) until one satisfies `is`. */
static bool await(int tap, bool (*is)(const unsigned char *frame, size_t len))
{
    int64_t deadline = mono_ns() + SEC(10);
    struct pollfd p = {.fd = tap, .events = POLLIN};
    unsigned char in[65600];

    while (mono_ns() < deadline && poll(&p, 1, 1000) > 0) {
        ssize_t n = read(tap, in, sizeof(in));

        if (n > 10 && is(in + 10, (size_t)n - 10))
            return true;
    }
    return false;
}

static bool is_arp_reply(const unsigned char *f, size_t len)
{
    return len >= 42 && f[12] == 8 && f[13] == 6 && f[20] == 0 && f[21] == 2;
}

static bool is_advertisement(const unsigned char *f, size_t len)
{
    return len >= 78 && f[12] == 0x86 && f[13] == 0xdd && f[20] == 58 && f[54] == 136;
}

/* The guest's first question, put by hand: who has the gateway? */
static void ask_arp(int tap, const char *mac, const char *own, const char *gateway)
{
    unsigned char out[10 + 60] = {0}, *f = out + 10;
    static const unsigned char fixed[] = {8, 6, 0, 1, 8, 0, 6, 4, 0, 1};

    memset(f, 0xff, 6);
    parse_mac(mac, f + 6);
    memcpy(f + 12, fixed, sizeof(fixed));
    parse_mac(mac, f + 22);
    assert_int_equal(inet_pton(AF_INET, own, f + 28), 1);
    assert_int_equal(inet_pton(AF_INET, gateway, f + 38), 1);
    assert_int_equal(write(tap, out, sizeof(out)), sizeof(out));
    if (!await(tap, is_arp_reply))
        fail_msg("no answer from %s", gateway);
}

static void ask_neighbour(int tap, const char *mac, const char *own, const char *gateway)
{
    unsigned char out[10 + 86] = {0}, *f = out + 10, *ip = f + 14, *icmp = f + 54;
    uint32_t sum = 32 + 58;

    f[0] = f[1] = 0x33;
    f[2] = 0xff;
    parse_mac(mac, f + 6);
    f[12] = 0x86;
    f[13] = 0xdd;
    ip[0] = 0x60;
    ip[5] = 32;
    ip[6] = 58;
    ip[7] = 255;
    assert_int_equal(inet_pton(AF_INET6, own, ip + 8), 1);
    assert_int_equal(inet_pton(AF_INET6, gateway, icmp + 8), 1);
    assert_int_equal(inet_pton(AF_INET6, "ff02::1:ff00:0", ip + 24), 1);
    memcpy(ip + 37, icmp + 21, 3);
    memcpy(f + 3, icmp + 21, 3);
    icmp[0] = 135;
    icmp[24] = 1;
    icmp[25] = 1;
    parse_mac(mac, icmp + 26);
    for (unsigned char *p = ip + 8; p < icmp + 32; p += 2)
        sum += (uint32_t)p[0] << 8 | p[1];
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    icmp[2] = (unsigned char)(~sum >> 8);
    icmp[3] = (unsigned char)~sum;
    /* the host's side may still be checking its address for duplicates */
    for (int i = 0; i < 8; i++) {
        assert_int_equal(write(tap, out, sizeof(out)), sizeof(out));
        if (await(tap, is_advertisement))
            return;
    }
    fail_msg("no answer from %s", gateway);
}

static const char *default_gateway(const struct net_iface *f, const char *dst)
{
    for (size_t i = 0; i < f->n_routes; i++) {
        if (strcmp(f->routes[i].dst, dst) == 0 && f->routes[i].gateway != NULL)
            return f->routes[i].gateway;
    }
    fail_msg("no default route %s", dst);
    return "";
}

static void add_and_talk(struct world *w, struct netinfo *info)
{
    struct cni_attachment a = attachment(w);
    auto_err struct err err = ERR_INIT;
    auto_close int tap = -1;
    const struct net_iface *f;

    if (cni_add(w->cni, &a, info, NULL, &err) < 0)
        fail_msg("%s", err_msg(&err));
    assert_int_equal(info->n_ips, 2);
    assert_non_null(strchr(info->ips[0], '.'));
    assert_non_null(strchr(info->ips[1], ':'));
    tap = netns_attach_tap(w->netns, "eth0", "tap0", info, &err);
    if (tap < 0)
        fail_msg("%s", err_msg(&err));
    f = &info->ifaces[0];
    assert_int_equal(f->n_addresses, 2);
    ask_arp(tap, f->mac, info->ips[0], default_gateway(f, "0.0.0.0/0"));
    ask_neighbour(tap, f->mac, info->ips[1], default_gateway(f, "::/0"));
}

static void del_leaves_nothing(struct world *w, const struct netinfo *info)
{
    struct cni_attachment a = attachment(w);
    auto_err struct err err = ERR_INIT;
    auto_free char *leases = NULL, *rules = NULL, *cache = NULL, *links = NULL;

    for (int i = 0; i < 2; i++) {
        if (cni_del(w->cni, &a, NULL, &err) < 0)
            fail_msg("%s", err_msg(&err));
    }
    assert_int_equal(netns_remove(w->netns, NULL), 0);
    /* and once more without the namespace, or with what a reboot leaves of it */
    fx_write("/run/netns", w->netns_name, "");
    if (cni_del(w->cni, &a, NULL, &err) < 0)
        fail_msg("%s", err_msg(&err));
    assert_int_equal(netns_remove(w->netns, NULL), 0);
    if (cni_del(w->cni, &a, NULL, &err) < 0)
        fail_msg("%s", err_msg(&err));
    leases = sh("grep -rl %s %s/ipam 2>/dev/null", w->id, w->f->root);
    assert_string_equal(leases, "");
    rules = sh("iptables-save | grep -e %s -e '%s/'; ip6tables-save | grep -e %s", w->id,
               info->ips[0], w->id);
    assert_string_equal(rules, "");
    cache = sh("ls -A %s/results", w->f->cache);
    assert_string_equal(cache, "");
    links = sh("ip -o link show | grep 'master %s'", w->bridge);
    assert_string_equal(links, "");
}

static char *ipam(struct world *w)
{
    return fs_format(
        "\"ipam\":{\"type\":\"host-local\",\"dataDir\":\"%s/ipam\",\"ranges\":[[{\"subnet\":"
        "\"10.%u.%u.0/24\"}],[{\"subnet\":\"fd13:%x:%x::/64\"}]],\"routes\":[{\"dst\":\"0.0.0.0/"
        "0\"},"
        "{\"dst\":\"::/0\"}]}",
        w->f->root, 192 + (w->net & 31), (w->net >> 8) & 255, w->net & 0xffff, w->net >> 16);
}

static void bridge_with_portmap(void **state)
{
    struct world *w = *state;
    auto_free char *addresses = ipam(w), *conf = NULL, *rules = NULL;
    auto_netinfo struct netinfo info = {0};
    struct cni_attachment a;
    auto_err struct err err = ERR_INIT;

    conf = fs_format("{\"cniVersion\":\"1.0.0\",\"name\":\"n%s\",\"plugins\":[{\"type\":\"bridge\","
                     "\"bridge\":\"%s\","
                     "\"isGateway\":true,\"ipMasq\":true,\"mtu\":1420,%s},{\"type\":\"portmap\","
                     "\"capabilities\":"
                     "{\"portMappings\":true}}]}",
                     w->bridge, w->bridge, addresses);
    begin(w, conf);
    add_and_talk(w, &info);
    assert_int_equal(info.ifaces[0].mtu, 1420);
    rules = sh("iptables-save -t nat | grep -c %s", w->id);
    assert_true(atoi(rules) > 0);
    a = attachment(w);
    /* portmap 1.1 looks for its IPv4 rules in the IPv6 table as well: that much of a failure is its
     * own */
    if (cni_check(w->cni, &a, NULL, &err) < 0 &&
        strstr(err_msg(&err), "plugin portmap: CHECK: could not check ipv6 dnat") == NULL)
        fail_msg("%s", err_msg(&err));
    del_leaves_nothing(w, &info);
}

static void ptp(void **state)
{
    struct world *w = *state;
    auto_free char *addresses = ipam(w), *conf = NULL;
    auto_netinfo struct netinfo info = {0};
    struct cni_attachment a;
    auto_err struct err err = ERR_INIT;

    conf =
        fs_format("{\"cniVersion\":\"0.4.0\",\"name\":\"n%s\",\"plugins\":[{\"type\":\"ptp\",%s}]}",
                  w->bridge, addresses);
    begin(w, conf);
    add_and_talk(w, &info);
    a = attachment(w);
    if (cni_check(w->cni, &a, NULL, &err) < 0)
        fail_msg("%s", err_msg(&err));
    del_leaves_nothing(w, &info);
}

/* The last plugin of the chain fails: the bridge's and the lease's traces are taken back. */
static void a_failed_chain_leaves_nothing(void **state)
{
    struct world *w = *state;
    auto_free char *addresses = ipam(w), *conf = NULL;
    auto_netinfo struct netinfo info = {0};
    struct cni_attachment a;
    auto_err struct err err = ERR_INIT;
    auto_free char *leases = NULL, *links = NULL;

    conf = fs_format("{\"cniVersion\":\"1.0.0\",\"name\":\"n%s\",\"plugins\":[{\"type\":\"bridge\","
                     "\"bridge\":\"%s\","
                     "\"isGateway\":true,%s},{\"type\":\"vrf\"}]}",
                     w->bridge, w->bridge, addresses);
    begin(w, conf);
    a = attachment(w);
    assert_int_equal(cni_add(w->cni, &a, &info, NULL, &err), -1);
    assert_non_null(strstr(err_msg(&err), "plugin vrf: ADD"));
    leases = sh("grep -rl %s %s/ipam 2>/dev/null", w->id, w->f->root);
    assert_string_equal(leases, "");
    links = sh("ip -o link show | grep 'master %s'", w->bridge);
    assert_string_equal(links, "");
}

/* A program that does what the real one does and then hangs, if its command is ADD. */
static void slow_plugin(struct world *w, const char *type)
{
    auto_free char *path = fs_format("%s/%s", w->f->bin, type);
    auto_free char *text = fs_format("#!/bin/sh\nout=$(" PLUGINS "/%s)\nrc=$?\n"
                                     "[ $CNI_COMMAND = ADD ] && echo made >> %s/made && sleep 60\n"
                                     "echo \"$out\"\nexit $rc\n",
                                     type, w->f->root);
    fx_write(w->f->bin, type, text);
    assert_int_equal(chmod(path, 0755), 0);
}

static char *slow_conf(struct world *w)
{
    auto_free char *addresses = ipam(w);
    return fs_format("{\"cniVersion\":\"1.0.0\",\"name\":\"n%s\",\"plugins\":[{\"type\":\"bridge\","
                     "\"bridge\":\"%s\",\"isGateway\":true,%s},{\"type\":\"portmap\","
                     "\"capabilities\":{\"portMappings\":true}}]}",
                     w->bridge, w->bridge, addresses);
}

static void nothing_is_left(struct world *w)
{
    auto_free char *leases = sh("grep -rl %s %s/ipam 2>/dev/null", w->id, w->f->root);
    auto_free char *empty = sh("find %s/ipam -name '10.*' -empty", w->f->root);
    auto_free char *links = sh("ip -o link show | grep 'master %s'", w->bridge);
    auto_free char *rules = sh("iptables-save | grep -e %s", w->id);
    auto_free char *cache = sh("ls -A %s/results", w->f->cache);
    assert_string_equal(leases, "");
    assert_string_equal(empty, "");
    assert_string_equal(links, "");
    assert_string_equal(rules, "");
    assert_string_equal(cache, "");
}

/* A plugin is killed by its timeout when its work is done but not told: host-local's lease, or
 * portmap's rules behind a bridge that is whole. */
static void slow_chain(struct world *w, const char *slow)
{
    auto_free char *conf = slow_conf(w), *made = NULL;
    auto_netinfo struct netinfo info = {0};
    auto_err struct err err = ERR_INIT;

    begin_with(w, conf, SEC(2));
    slow_plugin(w, slow);
    struct cni_attachment a = attachment(w);
    assert_int_equal(cni_add(w->cni, &a, &info, NULL, &err), -1);
    assert_int_equal(err.code, ERR_DEADLINE);
    assert_null(strstr(err_msg(&err), "undoing it failed"));
    made = fx_read(w->f->root, "made");
    assert_string_equal(made, "made\n");
    nothing_is_left(w);
}

static void a_lease_of_a_killed_plugin_is_given_back(void **state)
{
    slow_chain(*state, "host-local");
}

static void a_plugin_killed_behind_a_bridge_leaves_nothing(void **state)
{
    slow_chain(*state, "portmap");
}

/* The daemon is killed during the ADD, and the network's file is another one when the next daemon
 * comes: its DEL is that of the ADD. */
static void a_lease_of_a_killed_daemon_is_given_back(void **state)
{
    struct world *w = *state;
    auto_free char *conf = slow_conf(w), *made = fs_format("%s/made", w->f->root);
    auto_err struct err err = ERR_INIT;

    begin_with(w, conf, SEC(2));
    slow_plugin(w, "host-local");
    struct cni_attachment a = attachment(w);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        auto_netinfo struct netinfo info = {0};
        (void)cni_add(w->cni, &a, &info, NULL, NULL);
        _exit(0);
    }
    for (int64_t end = mono_ns() + SEC(15); !fs_exists(made);)
        assert_true(mono_ns() < end && poll(NULL, 0, 5) == 0);
    assert_int_equal(kill(child, SIGKILL), 0);
    assert_int_equal(waitpid(child, NULL, 0), child);
    free(sh(
        "for p in $(ls /proc); do grep -qs %s /proc/$p/environ && grep -qs sleep /proc/$p/comm && "
        "kill -9 $p; done",
        w->id));
    cni_free(w->cni);
    fx_write(w->f->conf, "10-real.conflist",
             "{\"cniVersion\":\"1.0.0\",\"name\":\"other\",\"plugins\":[{\"type\":\"loopback\"}]}");
    w->cni = plugins(w, SEC(2), &err);
    assert_non_null(w->cni);
    if (cni_del(w->cni, &a, NULL, &err) < 0)
        fail_msg("%s", err_msg(&err));
    nothing_is_left(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(bridge_with_portmap, setup, teardown),
        cmocka_unit_test_setup_teardown(ptp, setup, teardown),
        cmocka_unit_test_setup_teardown(a_failed_chain_leaves_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(a_lease_of_a_killed_plugin_is_given_back, setup, teardown),
        cmocka_unit_test_setup_teardown(a_plugin_killed_behind_a_bridge_leaves_nothing, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_lease_of_a_killed_daemon_is_given_back, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
