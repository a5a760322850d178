#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "netplugin/netaddr.h"
#include "netplugin/netinfo.h"

static void addresses_are_normalised(void **state)
{
    char ip[NETADDR_IP_LEN], cidr[NETADDR_CIDR_LEN], mac[NETADDR_MAC_LEN], hw[NETADDR_HWADDR_LEN];
    int family;

    (void)state;
    assert_int_equal(netaddr_ip("FD00:0:0::1", ip, &family), 0);
    assert_string_equal(ip, "fd00::1");
    assert_int_equal(netaddr_ip("1.2.3", ip, NULL), -1);
    assert_int_equal(netaddr_ip("1.2.3.4/8", ip, NULL), -1);
    assert_int_equal(netaddr_ip("", ip, NULL), -1);
    assert_int_equal(netaddr_ip(NULL, ip, NULL), -1);
    assert_int_equal(netaddr_ip("fe80::1%eth0", ip, NULL), -1);
    assert_int_equal(netaddr_cidr("10.1.2.3/24", false, cidr, NULL), 0);
    assert_string_equal(cidr, "10.1.2.3/24");
    assert_int_equal(netaddr_cidr("10.1.2.3/23", true, cidr, NULL), 0);
    assert_string_equal(cidr, "10.1.2.0/23");
    assert_int_equal(netaddr_cidr("fd00:1::5/0", true, cidr, NULL), 0);
    assert_string_equal(cidr, "::/0");
    static const char *const bad[] = {"10.0.0.1",     "10.0.0.1/33", "10.0.0.1/-1", "fd00::/129",
                                      "10.0.0.1/",    "/24",         "10.0.0.1/+4", "10.0.0.1/8/8",
                                      "10.0.0.1/ 24", NULL};
    for (size_t i = 0; bad[i] != NULL; i++)
        assert_int_equal(netaddr_cidr(bad[i], false, cidr, NULL), -1);
    assert_int_equal(netaddr_mac("0A:1b:2C:3d:4e:5F", mac), 0);
    assert_string_equal(mac, "0a:1b:2c:3d:4e:5f");
    assert_int_equal(netaddr_mac("00:00:00:00:00:00", mac), -1);
    assert_int_equal(netaddr_mac("01:00:5e:00:00:01", mac), -1);
    assert_int_equal(netaddr_mac("0a:1b:2c:3d:4e", mac), -1);
    assert_int_equal(netaddr_mac("0a:1b:2c:3d:4e:5f:60", mac), -1);
    assert_int_equal(netaddr_mac("a:1b:2c:3d:4e:5f:6", mac), -1);
    assert_int_equal(
        netaddr_hwaddr("80:00:02:08:fe:80:00:00:00:00:00:00:e4:1d:2d:03:00:7e:e2:81", hw), 0);
    assert_true(netaddr_ifname_ok("eth0"));
    assert_true(netaddr_ifname_ok("cali1234567890a"));
    static const char *const names[] = {"",   ".", "..", "a/b", "a:b", "a b", "1234567890123456",
                                        "a\n"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        assert_false(netaddr_ifname_ok(names[i]));
    assert_false(netaddr_is_host("224.0.0.1"));
    assert_false(netaddr_is_host("::"));
    assert_true(netaddr_is_host("fd00::1"));
}

static const char full[] =
    "{\"ips\":[\"10.1.0.5\",\"fd00::5\"],\"ifaces\":[{\"name\":\"eth0\",\"mac\":\"0a:58:0a:01:00:"
    "05\","
    "\"mtu\":1450,\"addresses\":[\"10.1.0.5/32\"],\"routes\":[{\"dst\":\"169.254.1.1/"
    "32\",\"scope\":253},"
    "{\"dst\":\"0.0.0.0/"
    "0\",\"gateway\":\"169.254.1.1\",\"src\":\"10.1.0.5\",\"mtu\":1400,\"advmss\":1360,"
    "\"metric\":7,\"table\":100,\"onlink\":true}],\"neighbours\":[{\"ip\":\"169.254.1.1\",\"mac\":"
    "\"ee:ee:ee:ee:ee:ee\",\"state\":128}]}]}";

static void a_record_survives_the_round_trip(void **state)
{
    auto_netinfo struct netinfo n = {0};
    auto_err struct err err = ERR_INIT;
    auto_free char *text = NULL;

    (void)state;
    assert_int_equal(netinfo_decode(full, &n, &err), 0);
    assert_int_equal(n.n_ips, 2);
    assert_int_equal(n.ifaces[0].mtu, 1450);
    assert_int_equal(n.ifaces[0].n_routes, 2);
    assert_true(n.ifaces[0].routes[1].onlink);
    assert_int_equal(n.ifaces[0].routes[1].mtu, 1400);
    assert_int_equal(n.ifaces[0].routes[0].scope, 253);
    assert_null(n.ifaces[0].routes[0].gateway);
    text = netinfo_encode(&n);
    assert_string_equal(text, full);
    /* decoding replaces, leaking nothing */
    assert_int_equal(netinfo_decode("{}", &n, &err), 0);
    assert_int_equal(n.n_ifaces, 0);
}

static void hostile_records_are_refused(void **state)
{
    static const char *const bad[] = {
        "",
        "[]",
        "{\"ips\":3}",
        "{\"ips\":[\"10.0.0.1/8\"]}",
        "{\"ifaces\":[3]}",
        "{\"ifaces\":[{\"name\":\"a/b\",\"mac\":\"0a:58:0a:01:00:05\"}]}",
        "{\"ifaces\":[{\"name\":\"eth0\"}]}",
        "{\"ifaces\":[{\"name\":\"eth0\",\"mac\":\"0a:58:0a:01:00:05\",\"mtu\":-1}]}",
        "{\"ifaces\":[{\"name\":\"eth0\",\"mac\":\"0a:58:0a:01:00:05\",\"mtu\":4294967296}]}",
        "{\"ifaces\":[{\"name\":\"eth0\",\"mac\":\"0a:58:0a:01:00:05\",\"addresses\":[\"x\"]}]}",
        "{\"ifaces\":[{\"name\":\"eth0\",\"mac\":\"0a:58:0a:01:00:05\",\"routes\":[{}]}]}",
        "{\"ifaces\":[{\"name\":\"eth0\",\"mac\":\"0a:58:0a:01:00:05\",\"routes\":[{\"dst\":\"::/"
        "0\","
        "\"gateway\":\"no\"}]}]}",
        "{\"ifaces\":[{\"name\":\"eth0\",\"mac\":\"0a:58:0a:01:00:05\",\"neighbours\":[{\"ip\":"
        "\"10.0.0.1\","
        "\"mac\":\"0a:58:0a:01:00:05\",\"state\":2}]}]}",
    };
    auto_netinfo struct netinfo n = {0};

    (void)state;
    assert_int_equal(netinfo_decode(full, &n, NULL), 0);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        auto_err struct err err = ERR_INIT;

        assert_int_equal(netinfo_decode(bad[i], &n, &err), -1);
        assert_int_not_equal(err.code, ERR_OK);
        assert_int_equal(n.n_ips, 2); /* left alone */
    }
}

static void counts_are_bounded(void **state)
{
    size_t cap = 1 << 20, len = 0;
    auto_free char *text = malloc(cap);
    auto_netinfo struct netinfo n = {0};
    auto_err struct err err = ERR_INIT;

    (void)state;
    len = (size_t)snprintf(text, cap, "{\"ips\":[\"10.0.0.1\"");
    for (int i = 0; i < 64; i++)
        len += (size_t)snprintf(text + len, cap - len, ",\"10.0.0.1\"");
    (void)snprintf(text + len, cap - len, "]}");
    assert_int_equal(netinfo_decode(text, &n, &err), -1);
    assert_int_equal(err.code, ERR_EXHAUSTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(addresses_are_normalised),
        cmocka_unit_test(a_record_survives_the_round_trip),
        cmocka_unit_test(hostile_records_are_refused),
        cmocka_unit_test(counts_are_bounded),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
