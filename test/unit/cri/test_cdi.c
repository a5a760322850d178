/* cri/cdi: names to nodes and environment, precedence of directories, what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "cri/cdi.h"
#include "cri/cdi_yaml.h"

static const char gpu[] =
    "{\"cdiVersion\":\"0.6.0\",\"kind\":\"v.com/gpu\",\"containerEdits\":{\"env\":[\"ALL=1\"]},"
    "\"devices\":[{\"name\":\"0\",\"containerEdits\":{\"env\":[\"ONE=1\"],\"deviceNodes\":["
    "{\"path\":\"/dev/a\"},{\"path\":\"/dev/b\",\"hostPath\":\"/dev/c\",\"permissions\":\"r\"}]}},"
    "{\"name\":\"1\",\"containerEdits\":{}}]}";

static int parse(const char *json, struct cdi_edits *e, struct err *err)
{
    return cdi_parse(json, strlen(json), false, "v.com/gpu", "0", e, err);
}

static void test_edits(void **state)
{
    (void)state;
    auto_cdi_edits struct cdi_edits e = {0};
    auto_err struct err err = ERR_INIT;
    assert_int_equal(parse(gpu, &e, &err), 1);
    assert_int_equal(e.env.n, 2);
    assert_string_equal(e.env.v[0], "ALL=1");
    assert_string_equal(e.env.v[1], "ONE=1");
    assert_int_equal(e.n_nodes, 2);
    assert_string_equal(e.nodes[0].host_path, "/dev/a");
    assert_string_equal(e.nodes[0].permissions, "rwm");
    assert_string_equal(e.nodes[1].path, "/dev/b");
    assert_string_equal(e.nodes[1].host_path, "/dev/c");
    assert_string_equal(e.nodes[1].permissions, "r");
    assert_int_equal(cdi_parse(gpu, strlen(gpu), false, "v.com/gpu", "2", &e, &err), 0);
    assert_int_equal(cdi_parse(gpu, strlen(gpu), false, "w.com/gpu", "0", &e, &err), 0);
}

#define DEVICE(edits)                                                                              \
    "{\"kind\":\"v.com/gpu\",\"devices\":[{\"name\":\"0\",\"containerEdits\":" edits "}]}"

static void test_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "[]",
        "{}",
        "{\"kind\":7}",
        DEVICE("7"),
        DEVICE("{\"hooks\":[{}]}"),
        DEVICE("{\"hooks\":[{\"hookName\":\"createRuntime\",\"path\":\"/bin/true\"}]}"),
        DEVICE("{\"hooks\":[{\"hookName\":\"startContainer\",\"path\":\"true\"}]}"),
        DEVICE("{\"hooks\":[{\"hookName\":\"startContainer\",\"path\":\"/a\",\"args\":[1]}]}"),
        DEVICE("{\"hooks\":{\"path\":\"/a\"}}"),
        DEVICE("{\"mounts\":[{}]}"),
        DEVICE("{\"mounts\":[{\"hostPath\":\"a\",\"containerPath\":\"/b\"}]}"),
        DEVICE("{\"mounts\":[{\"hostPath\":\"/a\",\"containerPath\":\"/b/../c//d\"}]}"),
        DEVICE("{\"mounts\":[{\"hostPath\":\"/a\",\"containerPath\":\"/b\",\"type\":\"tmpfs\"}]}"),
        DEVICE("{\"mounts\":[{\"hostPath\":\"/a\",\"containerPath\":\"/"
               "b\",\"options\":[\"uid=1\"]}]}"),
        DEVICE("{\"additionalGids\":[-1]}"),
        DEVICE("{\"additionalGids\":[4294967295]}"),
        DEVICE("{\"additionalGids\":[\"1\"]}"),
        DEVICE("{\"intelRdt\":{\"a\":1}}"),
        DEVICE("{\"env\":[7]}"),
        DEVICE("{\"env\":[\"=x\"]}"),
        DEVICE("{\"env\":[\"x\"]}"),
        DEVICE("{\"deviceNodes\":[{}]}"),
        DEVICE("{\"deviceNodes\":[{\"path\":\"dev/x\"}]}"),
        DEVICE("{\"deviceNodes\":[{\"path\":\"/dev/x\",\"permissions\":\"x\"}]}"),
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        auto_cdi_edits struct cdi_edits e = {0};
        auto_err struct err err = ERR_INIT;
        if (parse(bad[i], &e, &err) != -1 || err.code == ERR_OK)
            fail_msg("%s was accepted", bad[i]);
    }
    auto_cdi_edits struct cdi_edits e = {0};
    assert_int_equal(parse(DEVICE("{\"hooks\":[],\"mounts\":null}"), &e, NULL), 1);
}

static void test_more_edits(void **state)
{
    (void)state;
    static const char yaml[] =
        "# of a vendor\n"
        "cdiVersion: 0.6.0\n"
        "kind: v.com/gpu\n"
        "devices:\n"
        "- name: \"0\"\n"
        "  containerEdits: &edits\n"
        "    env: [A=1, 'B=yes']\n"
        "    additionalGids: [0, 7, 4294967294]\n"
        "    mounts:\n"
        "    - hostPath: /usr/lib/x.so\n"
        "      containerPath: /lib/x.so\n"
        "      options: [ro, nosuid, nodev, bind]\n"
        "    hooks:\n"
        "    - {hookName: startContainer, path: /sbin/ldconfig, args: [ldconfig, -X],"
        " timeout: 5}\n"
        "- name: \"1\"\n"
        "  containerEdits: *edits\n";
    static const char *const names[] = {"0", "1"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        auto_cdi_edits struct cdi_edits e = {0};
        auto_err struct err err = ERR_INIT;
        if (cdi_parse(yaml, strlen(yaml), true, "v.com/gpu", names[i], &e, &err) != 1)
            fail_msg("%s", err_msg(&err));
        assert_int_equal(e.env.n, 2);
        assert_string_equal(e.env.v[1], "B=yes");
        assert_int_equal(e.n_gids, 2);
        assert_int_equal(e.gids[1], 4294967294U);
        assert_int_equal(e.n_mounts, 1);
        assert_string_equal(e.mounts[0].host_path, "/usr/lib/x.so");
        assert_string_equal(e.mounts[0].container_path, "/lib/x.so");
        assert_int_equal(e.mounts[0].options.n, 4);
        assert_int_equal(e.n_hooks, 1);
        assert_string_equal(e.hooks[0].path, "/sbin/ldconfig");
        assert_string_equal(e.hooks[0].args.v[1], "-X");
        assert_int_equal(e.hooks[0].timeout, 5);
    }
}

static void expect_yaml(const char *yaml, const char *json)
{
    auto_err struct err err = ERR_INIT;
    json_auto_t *v = cdi_yaml_load(yaml, strlen(yaml), &err);
    auto_free char *text = v != NULL ? json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    if (json == NULL ? v != NULL || err.code == ERR_OK : v == NULL || strcmp(text, json) != 0)
        fail_msg("%s: %s %s", yaml, text != NULL ? text : "refused:", err_msg(&err));
}

static void test_yaml(void **state)
{
    (void)state;
    expect_yaml("a: 1\nb: -7\nc: 007\nd: 1.5\ne: 0x10",
                "{\"a\":1,\"b\":-7,\"c\":\"007\",\"d\":\"1.5\",\"e\":\"0x10\"}");
    expect_yaml("[~, null, '', \"null\", true, False, 'true', yes]",
                "[null,null,\"\",\"null\",true,false,\"true\",\"yes\"]");
    expect_yaml("{\"json\": [{}, []]}", "{\"json\":[{},[]]}");
    expect_yaml("x: |\n  a\n  b\n", "{\"x\":\"a\\nb\\n\"}");
    expect_yaml("a: &x [1]\nb: *x", "{\"a\":[1],\"b\":[1]}");
    static const char *const bad[] = {"",           "a: 1\na: 2",   "[1",      "a: *none",
                                      "? [1]\n: 2", "--- 1\n--- 2", "&x [*x]", "a: \"\\0\"",
                                      "\"\\0\": 1", "\xff: 1"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        expect_yaml(bad[i], NULL);
    /* each level ten times the one before */
    expect_yaml("- &a [1,1,1,1,1,1,1,1,1,1]\n- &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
                "- &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n- &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\n"
                "- &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\n- &f [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]\n",
                NULL);
    auto_free char *deep = xcalloc(4001, 1);
    memset(deep, '[', 4000);
    expect_yaml(deep, NULL);
    deep[40] = '\0';
    expect_yaml(deep, NULL);
}

static void put(const char *dir, const char *name, const char *text)
{
    auto_free char *path = fs_format("%s/%s", dir, name);
    assert_int_equal(fs_write_atomic(path, text, strlen(text), 0644, false, NULL), 0);
}

static void test_directories(void **state)
{
    (void)state;
    char low[] = "/tmp/test-cdi-XXXXXX";
    char high[] = "/tmp/test-cdi-XXXXXX";
    assert_non_null(mkdtemp(low));
    assert_non_null(mkdtemp(high));
    const char *const dirs[] = {low, high, NULL};
    const char *const names[] = {"v.com/gpu=0", "v.com/gpu=0"};
    auto_err struct err err = ERR_INIT;
    {
        auto_cdi_edits struct cdi_edits e = {0};
        put(low, "a.json", gpu);
        put(low, "b.json", "{");
        put(low, "c.txt", "{");
        assert_int_equal(cdi_resolve(dirs, names, 2, &e, &err), 0);
        assert_int_equal(e.n_nodes, 2); /* of one name once */
    }
    {
        auto_cdi_edits struct cdi_edits e = {0};
        put(high, "z.json", DEVICE("{\"env\":[\"HIGH=1\"]}"));
        assert_int_equal(cdi_resolve(dirs, names, 1, &e, &err), 0);
        assert_int_equal(e.env.n, 1);
        assert_string_equal(e.env.v[0], "HIGH=1");
    }
    static const char *const bad[] = {"",           "v.com/gpu", "v.com=0", "/gpu=0", "v.com/=0",
                                      "v.com/gpu=", "a=b/c",     "=",       "/="};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        auto_cdi_edits struct cdi_edits e = {0};
        assert_int_equal(cdi_resolve(dirs, &bad[i], 1, &e, &err), -1);
        assert_int_equal(err.code, ERR_INVALID);
    }
    const char *const none[] = {"v.com/gpu=9"};
    auto_cdi_edits struct cdi_edits e = {0};
    assert_int_equal(cdi_resolve(dirs, none, 1, &e, &err), -1);
    assert_non_null(strstr(err_msg(&err), "v.com/gpu=9"));
    assert_non_null(strstr(err_msg(&err), "b.json")); /* perhaps it would have been there */
    assert_int_equal(fs_rm_rf(low, NULL), 0);
    assert_int_equal(cdi_resolve(dirs, none, 1, &e, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_int_equal(fs_rm_rf(high, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_edits),       cmocka_unit_test(test_refused),
        cmocka_unit_test(test_more_edits),  cmocka_unit_test(test_yaml),
        cmocka_unit_test(test_directories),
    };
    return cmocka_run_group_tests_name("cdi", tests, NULL, NULL);
}
