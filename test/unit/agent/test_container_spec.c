#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <jansson.h>

#include "agent/container_spec.h"
#include "agent/userns.h"
#include "base/cleanup.h"

#define auto_json __attribute__((cleanup(json_decrefp)))

static const char *file_of(void *arg, const char *name, struct err *err)
{
    (void)arg;
    if (strcmp(name, "image:img-1/gone") == 0)
        err_set(err, ERR_NOT_FOUND, "no such directory in the image");
    return strcmp(name, "hosts") == 0 ? "/run/pod/hosts" : NULL;
}

static struct user_ids user = {
    .uid = 1000, .gid = 1001, .groups = {1001, 2000}, .n_groups = 2, .home = "/home/app"};

static struct spec_changes changes(void)
{
    return (struct spec_changes){
        .root_path = "/run/c/rootfs", .user = &user, .cgroups_path = "/pod/c", .pod_file = file_of};
}

static json_t *create(const char *spec, const struct spec_changes *c)
{
    auto_err struct err err = ERR_INIT;
    auto_free char *out = spec_for_create(spec, strlen(spec), c, &err);
    if (out == NULL)
        fail_msg("%s", err_msg(&err));
    json_t *root = json_loads(out, 0, NULL);
    assert_non_null(root);
    return root;
}

static const char *text_at(json_t *root, const char *a, const char *b)
{
    return json_string_value(json_object_get(json_object_get(root, a), b));
}

static bool env_holds(json_t *root, const char *want)
{
    size_t i;
    json_t *v;
    json_array_foreach(json_object_get(json_object_get(root, "process"), "env"), i,
                       v) if (strcmp(json_string_value(v), want) == 0) return true;
    return false;
}

static const char full[] =
    "{\"ociVersion\":\"1.0.2\",\"process\":{\"args\":[\"/bin/sh\",\"-c\",\"true\"],\"cwd\":\"/w\","
    "\"env\":[\"PATH=/bin\",\"A=b\"],\"user\":{\"uid\":5,\"umask\":18,\"username\":\"x\"},"
    "\"noNewPrivileges\":true,\"capabilities\":{\"bounding\":[\"CAP_KILL\"]}},"
    "\"root\":{\"path\":\"elsewhere\"},\"hostname\":\"h\","
    "\"mounts\":[{\"destination\":\"/etc/hosts\",\"source\":\"aspis:hosts\"},"
    "{\"destination\":\"/data\",\"source\":\"/data\"}],"
    "\"annotations\":{\"run.oci.handler\":\"krun\",\"run.oci.seccomp_bpf_data\":\"AAAA\",\"a\":"
    "\"b\"},"
    "\"linux\":{\"cgroupsPath\":\"/"
    "other\",\"namespaces\":[{\"type\":\"mount\"},{\"type\":\"pid\"}],"
    "\"resources\":{\"memory\":{\"limit\":9223372036854771712}}}}";

static void test_create(void **state)
{
    (void)state;
    struct spec_changes c = changes();
    c.readonly_rootfs = true;
    auto_json json_t *root = create(full, &c);
    json_t *process = json_object_get(root, "process");
    json_t *u = json_object_get(process, "user");

    assert_string_equal(text_at(root, "root", "path"), "/run/c/rootfs");
    assert_true(json_is_true(json_object_get(json_object_get(root, "root"), "readonly")));
    assert_string_equal(text_at(root, "linux", "cgroupsPath"), "/pod/c");
    assert_int_equal(json_integer_value(json_object_get(u, "uid")), 1000);
    assert_int_equal(json_integer_value(json_object_get(u, "gid")), 1001);
    assert_int_equal(json_integer_value(json_object_get(u, "umask")), 18);
    assert_null(json_object_get(u, "username"));
    assert_int_equal(json_array_size(json_object_get(u, "additionalGids")), 2);
    assert_true(json_is_false(json_object_get(process, "terminal")));
    assert_true(json_is_true(json_object_get(process, "noNewPrivileges")));
    assert_true(env_holds(root, "HOME=/home/app"));
    assert_true(env_holds(root, "A=b"));
    json_t *mounts = json_object_get(root, "mounts");
    assert_string_equal(json_string_value(json_object_get(json_array_get(mounts, 0), "source")),
                        "/run/pod/hosts");
    assert_string_equal(json_string_value(json_object_get(json_array_get(mounts, 1), "source")),
                        "/data");
    assert_null(text_at(root, "annotations", "run.oci.handler"));
    assert_null(json_object_get(json_object_get(root, "annotations"), "run.oci.seccomp_bpf_data"));
    assert_string_equal(text_at(root, "annotations", "a"), "b");
    json_t *ns = json_array_get(json_object_get(json_object_get(root, "linux"), "namespaces"), 1);
    assert_null(json_object_get(ns, "path"));
    /* 64-bit numbers survive */
    json_t *memory =
        json_object_get(json_object_get(json_object_get(root, "linux"), "resources"), "memory");
    assert_true(json_integer_value(json_object_get(memory, "limit")) ==
                INT64_C(9223372036854771712));
}

static void test_terminal_and_pidns(void **state)
{
    (void)state;
    struct spec_changes c = changes();
    c.tty = true;
    c.rows = 24;
    c.cols = 80;
    c.pidns = "/proc/9/ns/pid";
    auto_json json_t *root = create(full, &c);
    json_t *process = json_object_get(root, "process");
    json_t *size = json_object_get(process, "consoleSize");
    assert_true(json_is_true(json_object_get(process, "terminal")));
    assert_int_equal(json_integer_value(json_object_get(size, "height")), 24);
    assert_int_equal(json_integer_value(json_object_get(size, "width")), 80);
    json_t *list = json_object_get(json_object_get(root, "linux"), "namespaces");
    assert_int_equal(json_array_size(list), 2);
    assert_string_equal(json_string_value(json_object_get(json_array_get(list, 1), "path")),
                        "/proc/9/ns/pid");

    auto_json json_t *bare = create("{\"process\":{\"args\":[\"x\"]}}", &c);
    list = json_object_get(json_object_get(bare, "linux"), "namespaces");
    assert_int_equal(json_array_size(list), 1);
    assert_true(env_holds(bare, "HOME=/home/app"));
    assert_true(
        env_holds(bare, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"));
}

static void test_home_kept(void **state)
{
    (void)state;
    struct spec_changes c = changes();
    auto_json json_t *root =
        create("{\"process\":{\"args\":[\"x\"],\"env\":[\"HOME=/mine\"]}}", &c);
    assert_true(env_holds(root, "HOME=/mine"));
    assert_false(env_holds(root, "HOME=/home/app"));
}

static void test_refused(void **state)
{
    static const char *const bad[] = {
        "",
        "[]",
        "{",
        "{}",
        "{\"process\":1}",
        "{\"process\":{}}",
        "{\"process\":{\"args\":[]}}",
        "{\"process\":{\"args\":[\"\"]}}",
        "{\"process\":{\"args\":[1]}}",
        "{\"process\":{\"args\":\"x\"}}",
        "{\"process\":{\"args\":[\"x\"],\"user\":3}}",
        "{\"process\":{\"args\":[\"x\"],\"env\":{}}}",
        "{\"process\":{\"args\":[\"x\"],\"args\":[\"y\"]}}",
        "{\"process\":{\"args\":[\"x\"]},\"mounts\":{}}",
        "{\"process\":{\"args\":[\"x\"]},\"root\":[]}",
        "{\"process\":{\"args\":[\"x\"]},\"linux\":[]}",
        "{\"process\":{\"args\":[\"x\"]},\"linux\":{\"namespaces\":3}}",
        "{\"process\":{\"args\":[\"x\"]},\"mounts\":[{\"source\":\"aspis:shadow\"}]}",
        "{\"process\":{\"args\":[\"x\"]},\"hooks\":{\"prestart\":[{\"path\":\"/x\"}]}}",
        "{\"process\":{\"args\":[\"x\"]}} trailing",
    };
    (void)state;
    struct spec_changes c = changes();
    c.pidns = "/proc/1/ns/pid";
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        auto_err struct err err = ERR_INIT;
        auto_free char *out = spec_for_create(bad[i], strlen(bad[i]), &c, &err);
        if (out != NULL)
            fail_msg("accepted: %s", bad[i]);
        assert_int_equal(err.code, ERR_INVALID);
    }
}

static void test_deep(void **state)
{
    (void)state;
    size_t n = 200000;
    auto_free char *text = malloc(n + 1);
    memset(text, '[', n);
    text[n] = '\0';
    struct spec_changes c = changes();
    auto_err struct err err = ERR_INIT;
    assert_null(spec_for_create(text, n, &c, &err));
}

static void test_exec(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    struct spec_changes c = changes();
    auto_free char *spec = spec_for_create(full, strlen(full), &c, &err);
    assert_non_null(spec);
    char *args[] = {(char[]){"ls"}, (char[]){"-l"}};
    char *env[] = {(char[]){"X=y"}};
    struct spec_exec x = {.args = args, .n_args = 2, .cwd = ""};

    auto_free char *out = spec_for_exec(spec, strlen(spec), &x, &err);
    auto_json json_t *root = json_loads(out, 0, NULL);
    json_t *process = json_object_get(root, "process");
    assert_int_equal(json_array_size(json_object_get(process, "args")), 2);
    assert_string_equal(json_string_value(json_object_get(process, "cwd")), "/w");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(process, "user"), "uid")),
                     1000);
    assert_true(json_is_true(json_object_get(process, "noNewPrivileges")));
    assert_true(env_holds(root, "A=b"));
    assert_false(env_holds(root, "TERM=xterm"));

    x.env = env;
    x.n_env = 1;
    x.cwd = "/tmp";
    x.tty = true;
    auto_free char *out2 = spec_for_exec(spec, strlen(spec), &x, &err);
    auto_json json_t *root2 = json_loads(out2, 0, NULL);
    assert_true(env_holds(root2, "X=y"));
    assert_true(env_holds(root2, "TERM=xterm"));
    assert_false(env_holds(root2, "A=b"));
    assert_string_equal(text_at(root2, "process", "cwd"), "/tmp");
    assert_true(json_is_true(json_object_get(json_object_get(root2, "process"), "terminal")));

    x.n_args = 0;
    assert_null(spec_for_exec(spec, strlen(spec), &x, &err));
    args[0][0] = (char)0xff;
    x.n_args = 1;
    assert_null(spec_for_exec(spec, strlen(spec), &x, &err));
    assert_int_equal(err.code, ERR_INVALID);
}

static void test_devices(void **state)
{
    (void)state;
    Aspis__Agent__V1__CreateContainerRequest req;
    Aspis__Agent__V1__Device d;
    Aspis__Agent__V1__Device *list[] = {&d};
    char path[] = "/dev/zero";
    char as[] = "/dev/noughts";
    char rw[] = "rw";
    aspis__agent__v1__create_container_request__init(&req);
    aspis__agent__v1__device__init(&d);
    d.path = path;
    d.container_path = as;
    d.permissions = rw;
    req.devices = list;
    req.n_devices = 1;
    struct spec_changes c = changes();
    c.request = &req;
    auto_json json_t *root = create(full, &c);
    json_t *lin = json_object_get(root, "linux");
    json_t *node = json_array_get(json_object_get(lin, "devices"), 0);
    assert_string_equal(json_string_value(json_object_get(node, "path")), "/dev/noughts");
    assert_int_equal(json_integer_value(json_object_get(node, "major")), 1);
    assert_int_equal(json_integer_value(json_object_get(node, "minor")), 5);
    json_t *rule = json_array_get(json_object_get(json_object_get(lin, "resources"), "devices"), 0);
    assert_true(json_is_true(json_object_get(rule, "allow")));
    assert_string_equal(json_string_value(json_object_get(rule, "access")), "rw");

    static const char *const bad[] = {
        "/dev/nothing", "/etc/passwd", "/dev/../etc/passwd", "/dev/", "/dev/pts", "zero", ""};
    auto_err struct err err = ERR_INIT;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        d.path = (char *)(uintptr_t)bad[i];
        assert_null(spec_for_create(full, strlen(full), &c, &err));
        assert_non_null(strstr(err_msg(&err), bad[i]));
    }
    d.path = path;
    char wrong[] = "rx";
    d.permissions = wrong;
    assert_null(spec_for_create(full, strlen(full), &c, &err));
    req.n_devices = 0;
    req.all_devices = true;
    auto_json json_t *all = create(full, &c);
    assert_true(json_is_array(json_object_get(json_object_get(all, "linux"), "devices")));
}

static void test_user_namespace(void **state)
{
    (void)state;
    Aspis__Agent__V1__CreateContainerRequest req;
    Aspis__Agent__V1__IdMapping map;
    Aspis__Agent__V1__IdMapping *maps[] = {&map};
    aspis__agent__v1__create_container_request__init(&req);
    aspis__agent__v1__id_mapping__init(&map);
    map.host_id = 65536;
    map.length = 1000;
    req.uids = req.gids = maps;
    req.n_uids = req.n_gids = 1;
    static const char with_queues[] =
        "{\"process\":{\"args\":[\"x\"]},\"mounts\":[{\"destination\":\"/dev/mqueue\",\"type\":"
        "\"mqueue\",\"source\":\"mqueue\",\"options\":[\"nosuid\"]}],"
        "\"linux\":{\"namespaces\":[{\"type\":\"mount\"}]}}";
    struct spec_changes c = changes();
    c.request = &req;
    c.mqueue = "/run/c/mqueue";
    auto_json json_t *root = create(with_queues, &c);
    json_t *lin = json_object_get(root, "linux");
    json_t *ns = json_array_get(json_object_get(lin, "namespaces"), 1);
    assert_string_equal(json_string_value(json_object_get(ns, "type")), "user");
    assert_null(json_object_get(ns, "path"));
    json_t *uid = json_array_get(json_object_get(lin, "uidMappings"), 0);
    assert_int_equal(json_integer_value(json_object_get(uid, "hostID")), 65536);
    assert_int_equal(json_integer_value(json_object_get(uid, "size")), 1000);
    json_t *m = json_array_get(json_object_get(root, "mounts"), 0);
    assert_string_equal(json_string_value(json_object_get(m, "source")), "/run/c/mqueue");
    assert_string_equal(json_string_value(json_object_get(m, "type")), "bind");

    /* the pod's, with its ids all the same */
    c.userns = "/proc/1/fd/9";
    auto_json json_t *joined = create(with_queues, &c);
    lin = json_object_get(joined, "linux");
    ns = json_array_get(json_object_get(lin, "namespaces"), 1);
    assert_string_equal(json_string_value(json_object_get(ns, "path")), "/proc/1/fd/9");
    assert_int_equal(json_array_size(json_object_get(lin, "gidMappings")), 1);

    uint32_t outside = 0;
    assert_true(userns_id(maps, 1, 999, &outside));
    assert_int_equal(outside, 66535);
    assert_false(userns_id(maps, 1, 1000, &outside));
    auto_err struct err err = ERR_INIT;
    assert_int_equal(userns_check(maps, 1, "uids", &err), 0);
    map.container_id = 1;
    assert_int_equal(userns_check(maps, 1, "uids", &err), -1);
    map.container_id = 0;
    map.length = 0;
    assert_int_equal(userns_check(maps, 1, "uids", &err), -1);
    map.length = UINT32_MAX;
    assert_int_equal(userns_check(maps, 1, "uids", &err), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_create),    cmocka_unit_test(test_terminal_and_pidns),
        cmocka_unit_test(test_home_kept), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_deep),      cmocka_unit_test(test_exec),
        cmocka_unit_test(test_devices),   cmocka_unit_test(test_user_namespace),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
