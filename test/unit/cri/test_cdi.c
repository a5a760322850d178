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

static const char gpu[] =
    "{\"cdiVersion\":\"0.6.0\",\"kind\":\"v.com/gpu\",\"containerEdits\":{\"env\":[\"ALL=1\"]},"
    "\"devices\":[{\"name\":\"0\",\"containerEdits\":{\"env\":[\"ONE=1\"],\"deviceNodes\":["
    "{\"path\":\"/dev/a\"},{\"path\":\"/dev/b\",\"hostPath\":\"/dev/c\",\"permissions\":\"r\"}]}},"
    "{\"name\":\"1\",\"containerEdits\":{}}]}";

static int parse(const char *json, struct cdi_edits *e, struct err *err)
{
    return cdi_parse(json, strlen(json), "v.com/gpu", "0", e, err);
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
    assert_int_equal(cdi_parse(gpu, strlen(gpu), "v.com/gpu", "2", &e, &err), 0);
    assert_int_equal(cdi_parse(gpu, strlen(gpu), "w.com/gpu", "0", &e, &err), 0);
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
        DEVICE("{\"mounts\":[{}]}"),
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
        cmocka_unit_test(test_edits),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_directories),
    };
    return cmocka_run_group_tests_name("cdi", tests, NULL, NULL);
}
