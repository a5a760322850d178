#include "fixture.h"

#include "netplugin/json.h"
#include "netplugin/result.h"

static json_t *tree(const char *text)
{
    json_t *o = json_loads(text, 0, NULL);

    assert_non_null(o);
    return o;
}

static const char v11[] = "{\"cniVersion\":\"1.1.0\",\"interfaces\":[{\"name\":\"cni0\",\"mac\":"
                          "\"02:00:00:00:00:01\"},{\"name\":"
                          "\"eth0\",\"mac\":\"02:00:00:00:00:02\",\"mtu\":1450,\"sandbox\":\"/run/"
                          "netns/x\"}],\"ips\":[{\"interface\":1,"
                          "\"address\":\"fd00::9/64\"},{\"interface\":0,\"address\":\"10.9.0.1/"
                          "24\"},{\"interface\":1,\"address\":"
                          "\"10.9.0.9/24\",\"gateway\":\"10.9.0.1\"},{\"address\":\"10.8.0.9/"
                          "24\"}],\"routes\":[{\"dst\":\"0.0.0.0/0\","
                          "\"gw\":\"10.9.0.1\",\"mtu\":1400,\"advmss\":1360,\"priority\":10,"
                          "\"table\":100,\"scope\":0},{\"dst\":\"::/0\"}],"
                          "\"dns\":{\"nameservers\":[\"10.0.0.10\"]}}";

static void all_of_1_1_is_read(void **state)
{
    auto_json json_t *o = tree(v11);
    auto_cni_result struct cni_result r = {0};
    auto_netinfo struct netinfo n = {0};
    auto_err struct err err = ERR_INIT;

    (void)state;
    assert_int_equal(cni_result_parse(o, "1.1.0", &r, &err), 0);
    assert_int_equal(r.n_ifaces, 2);
    assert_int_equal(r.ifaces[1].mtu, 1450);
    assert_int_equal(r.routes[0].mtu, 1400);
    assert_int_equal(r.routes[0].scope, 0);
    assert_int_equal(r.routes[1].scope, -1);
    /* ours only, IPv4 first, without masks, and the one of no interface counts */
    cni_result_pod_ips(&r, "eth0", &n);
    assert_int_equal(n.n_ips, 3);
    assert_string_equal(n.ips[0], "10.9.0.9");
    assert_string_equal(n.ips[1], "10.8.0.9");
    assert_string_equal(n.ips[2], "fd00::9");
    cni_result_pod_ips(&r, "net1", &n);
    assert_int_equal(n.n_ips, 1);
}

static void every_version_converts_to_every_other(void **state)
{
    static const char *const versions[] = {"0.1.0", "0.2.0", "0.3.0", "0.3.1",
                                           "0.4.0", "1.0.0", "1.1.0"};
    auto_json json_t *o = tree(v11);

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(versions); i++) {
        auto_err struct err err = ERR_INIT;
        auto_json json_t *a = cni_result_convert(o, versions[i], &err);

        assert_non_null(a);
        assert_string_equal(json_get_string(a, "cniVersion"), versions[i]);
        for (size_t j = 0; j < ARRAY_LEN(versions); j++) {
            auto_json json_t *b = cni_result_convert(a, versions[j], &err);
            auto_cni_result struct cni_result r = {0};
            auto_netinfo struct netinfo n = {0};

            assert_non_null(b);
            assert_int_equal(cni_result_parse(b, versions[j], &r, &err), 0);
            cni_result_pod_ips(&r, "eth0", &n);
            assert_true(n.n_ips >= 1);
        }
    }
}

static void versions_differ_as_specified(void **state)
{
    auto_json json_t *o = tree(v11);
    auto_json json_t *v10 = cni_result_convert(o, "1.0.0", NULL);
    auto_json json_t *v04 = cni_result_convert(o, "0.4.0", NULL);
    auto_json json_t *v02 = cni_result_convert(o, "0.2.0", NULL);
    const json_t *e;

    (void)state;
    e = json_array_get(json_object_get(v10, "routes"), 0);
    assert_null(json_object_get(e, "mtu"));
    e = json_array_get(json_object_get(v10, "ips"), 0);
    assert_null(json_object_get(e, "version"));
    e = json_array_get(json_object_get(v04, "ips"), 0);
    assert_string_equal(json_get_string(e, "version"), "6");
    assert_null(json_object_get(v02, "ips"));
    assert_string_equal(json_get_string(json_object_get(v02, "ip6"), "ip"), "fd00::9/64");
    assert_int_equal(json_array_size(json_object_get(json_object_get(v02, "ip4"), "routes")), 1);
}

static void old_results_are_read(void **state)
{
    auto_json json_t *o =
        tree("{\"ip4\":{\"ip\":\"10.3.0.2/24\",\"gateway\":\"10.3.0.1\",\"routes\":[{\"dst\":"
             "\"0.0.0.0/0\"}]},\"ip6\":{\"ip\":\"fd03::2/64\"},\"dns\":{}}");
    auto_cni_result struct cni_result r = {0};
    auto_netinfo struct netinfo n = {0};

    (void)state;
    assert_int_equal(cni_result_parse(o, "0.2.0", &r, NULL), 0);
    cni_result_pod_ips(&r, "eth0", &n);
    assert_int_equal(n.n_ips, 2);
    assert_string_equal(n.ips[0], "10.3.0.2");
    assert_string_equal(n.ips[1], "fd03::2");
    assert_string_equal(r.ips[0].gateway, "10.3.0.1");
}

static void hostile_results_are_refused(void **state)
{
    static const char *const bad[] = {
        "{\"cniVersion\":\"9.0.0\"}",
        "{\"cniVersion\":4}",
        "{\"ips\":{}}",
        "{\"ips\":[3]}",
        "{\"ips\":[{\"address\":\"10.0.0.1\"}]}",
        "{\"ips\":[{\"address\":\"10.0.0.1/99\"}]}",
        "{\"ips\":[{\"address\":\"0.0.0.0/0\"}]}",
        "{\"ips\":[{\"address\":\"224.0.0.5/8\"}]}",
        "{\"ips\":[{\"address\":\"10.0.0.1/8\",\"interface\":0}]}",
        "{\"ips\":[{\"address\":\"10.0.0.1/8\",\"interface\":-1}]}",
        "{\"ips\":[{\"address\":\"10.0.0.1/8\",\"gateway\":\"gw\"}]}",
        "{\"interfaces\":[{\"name\":\"../../x\"}]}",
        "{\"interfaces\":[{\"name\":\"eth0\",\"mac\":\"zz\"}]}",
        "{\"routes\":[{\"dst\":\"default\"}]}",
        "{\"routes\":[{\"dst\":\"::/0\",\"mtu\":-4}]}",
        "{\"routes\":[{\"dst\":\"::/0\",\"scope\":256}]}",
        "{\"dns\":[]}",
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        auto_json json_t *o = tree(bad[i]);
        auto_cni_result struct cni_result r = {0};
        auto_err struct err err = ERR_INIT;

        if (cni_result_parse(o, "1.0.0", &r, &err) == 0)
            fail_msg("accepted: %s", bad[i]);
        assert_int_equal(err.code, ERR_INVALID);
    }
}

static void counts_are_bounded(void **state)
{
    auto_json json_t *o = json_object();
    json_t *ips = json_array();
    auto_cni_result struct cni_result r = {0};
    auto_err struct err err = ERR_INIT;

    (void)state;
    for (int i = 0; i <= LIMIT_POD_ADDRESSES; i++)
        json_array_append_new(ips, json_pack("{s:s}", "address", "10.0.0.1/8"));
    json_object_set_new(o, "ips", ips);
    assert_int_equal(cni_result_parse(o, "1.0.0", &r, &err), -1);
    assert_int_equal(err.code, ERR_EXHAUSTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_of_1_1_is_read),
        cmocka_unit_test(every_version_converts_to_every_other),
        cmocka_unit_test(versions_differ_as_specified),
        cmocka_unit_test(old_results_are_read),
        cmocka_unit_test(hostile_results_are_refused),
        cmocka_unit_test(counts_are_bounded),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
