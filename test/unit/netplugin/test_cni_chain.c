#include "fixture.h"

#include <fcntl.h>
#include <sched.h>

#include "base/cancel.h"
#include "netplugin/chain.h"
#include "netplugin/exec.h"
#include "netplugin/json.h"

static const char three[] =
    "{\"cniVersion\":\"1.0.0\",\"name\":\"net\",\"plugins\":["
    "{\"type\":\"one\",\"capabilities\":{\"portMappings\":true,\"mac\":false},\"n\":"
    "9007199254740993},"
    "{\"type\":\"two\",\"ipam\":{\"type\":\"x\",\"odd\":[1,null,\"\\u00e4\"]}},"
    "{\"type\":\"three\",\"capabilities\":{\"bandwidth\":true}}]}";

static void plugins(struct fixture *f)
{
    fx_plugin(f, "one");
    fx_plugin(f, "two");
    fx_plugin(f, "three");
}

static struct cni_conf *conf(const char *text)
{
    auto_err struct err err = ERR_INIT;
    struct cni_conf *c = cni_conf_parse(text, strlen(text), true, NULL, &err);

    if (c == NULL)
        fail_msg("%s", err_msg(&err));
    return c;
}

static struct chain chain(struct fixture *f, const struct cni_conf *c)
{
    return (struct chain){.conf = c,
                          .container_id = "pod1",
                          .netns = "/run/netns/x",
                          .ifname = "eth0",
                          .args = "IgnoreUnknown=1;K8S_POD_NAME=web",
                          .bin_dirs = f->bin_dirs,
                          .timeout_ns = SEC(20)};
}

static json_t *stdin_of(struct fixture *f, const char *name)
{
    auto_free char *file = fs_format("%s.stdin", name);
    auto_free char *text = fx_read(f->fake, file);

    assert_non_null(text);
    return json_loads(text, 0, NULL);
}

static void an_add_hands_results_on(void **state)
{
    struct fixture *f = *state;
    auto_cni_conf struct cni_conf *c = conf(three);
    auto_json json_t *caps = json_loads(
        "{\"portMappings\":[{\"hostPort\":80}],\"mac\":\"x\",\"bandwidth\":{}}", 0, NULL);
    struct chain ch = chain(f, c);
    size_t n_done;
    auto_json json_t *result = NULL, *in1 = NULL, *in2 = NULL, *in3 = NULL;
    auto_err struct err err = ERR_INIT;
    auto_free char *log = NULL, *env = NULL, *fds = NULL;

    plugins(f);
    ch.caps = caps;
    fx_write(f->fake, "one.ADD",
             "echo '{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"10.0.0.2/24\"}],\"own\":7}'");
    fx_write(f->fake, "two.ADD",
             "echo '{\"ips\":[{\"address\":\"10.0.0.3/24\"}]}'; echo noise >&2");
    fx_write(f->fake, "three.ADD", "echo '{\"ips\":[{\"address\":\"10.0.0.4/24\"}]}'");
    (void)setenv("CNI_IFNAME", "not-this", 1);
    (void)setenv("CNI_STRANGE", "not-this", 1);
    if (chain_add(&ch, &result, &n_done, NULL, &err) < 0)
        fail_msg("%s", err_msg(&err));
    (void)unsetenv("CNI_IFNAME");
    (void)unsetenv("CNI_STRANGE");
    log = fx_read(f->fake, "log");
    assert_string_equal(log, "one ADD pod1 eth0 /run/netns/x\ntwo ADD pod1 eth0 /run/netns/x\n"
                             "three ADD pod1 eth0 /run/netns/x\n");
    in1 = stdin_of(f, "one.ADD");
    in2 = stdin_of(f, "two.ADD");
    in3 = stdin_of(f, "three.ADD");
    assert_null(json_object_get(in1, "prevResult"));
    assert_null(json_object_get(in1, "capabilities"));
    assert_string_equal(json_get_string(in1, "name"), "net");
    assert_string_equal(json_get_string(in1, "cniVersion"), "1.0.0");
    assert_true(json_integer_value(json_object_get(in1, "n")) == 9007199254740993LL);
    /* only what was declared true and has a value */
    assert_int_equal(json_object_size(json_object_get(in1, "runtimeConfig")), 1);
    assert_int_equal(
        json_array_size(json_object_get(json_object_get(in1, "runtimeConfig"), "portMappings")), 1);
    assert_null(json_object_get(in2, "runtimeConfig"));
    assert_non_null(json_object_get(json_object_get(in3, "runtimeConfig"), "bandwidth"));
    assert_int_equal(json_array_size(json_object_get(json_object_get(in2, "ipam"), "odd")), 3);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(in2, "prevResult"), "own")),
                     7);
    /* a result without version is of the list's */
    assert_string_equal(json_get_string(json_object_get(in3, "prevResult"), "cniVersion"), "1.0.0");
    assert_string_equal(
        json_get_string(json_array_get(json_object_get(result, "ips"), 0), "address"),
        "10.0.0.4/24");
    env = fx_read(f->fake, "one.ADD.env");
    assert_non_null(strstr(env, "CNI_COMMAND=ADD\n"));
    assert_non_null(strstr(env, "CNI_CONTAINERID=pod1\n"));
    assert_non_null(strstr(env, "CNI_NETNS=/run/netns/x\n"));
    assert_non_null(strstr(env, "CNI_IFNAME=eth0\n"));
    assert_non_null(strstr(env, "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=web\n"));
    assert_non_null(strstr(env, "CNI_PATH=/tmp/aspis-cni-"));
    assert_null(strstr(env, "not-this"));
    /* 0, 1 (the file), 2 and what ls itself opens: 3 */
    fds = fx_read(f->fake, "one.ADD.fds");
    assert_string_equal(fds, "0\n1\n2\n3\n");
}

static void a_failing_plugin_stops_the_add(void **state)
{
    struct fixture *f = *state;
    static const char *const names[] = {"one", "two", "three"};
    auto_cni_conf struct cni_conf *c = conf(three);
    struct chain ch = chain(f, c);

    plugins(f);
    for (int i = 0; i < 3; i++) {
        auto_free char *file = fs_format("%s.ADD", names[i]), *path = NULL, *log = NULL;
        auto_json json_t *result = NULL;
        size_t n_done;
        auto_err struct err err = ERR_INIT;
        size_t lines = 0;

        fx_write(
            f->fake, file,
            "printf %s '{\"code\":7,\"msg\":\"bad subnet\",\"details\":\"it is\\nodd\"}'; exit 1");
        assert_int_equal(chain_add(&ch, &result, &n_done, NULL, &err), -1);
        assert_null(result);
        assert_int_equal(n_done, i);
        path = fs_format("plugin %s: ADD: bad subnet: it is odd (code 7)", names[i]);
        assert_string_equal(err_msg(&err), path);
        log = fx_read(f->fake, "log");
        for (const char *p = log; *p != '\0'; p++)
            lines += *p == '\n';
        assert_int_equal(lines, i + 1);
        free(path);
        path = fs_format("%s/%s", f->fake, file);
        (void)unlink(path);
        free(path);
        path = fs_format("%s/log", f->fake);
        (void)unlink(path);
    }
}

static void del_goes_backwards_and_stops(void **state)
{
    struct fixture *f = *state;
    auto_cni_conf struct cni_conf *c = conf(three);
    struct chain ch = chain(f, c);
    auto_json json_t *prev = json_loads("{\"cniVersion\":\"1.0.0\",\"ips\":[]}", 0, NULL),
                     *in = NULL;
    auto_err struct err err = ERR_INIT;
    auto_free char *log = NULL, *again = NULL;

    plugins(f);
    ch.netns = "";
    fx_write(f->fake, "two.DEL", "echo not json; echo deep trouble >&2; exit 3");
    assert_int_equal(chain_del(&ch, prev, NULL, &err), -1);
    assert_string_equal(err_msg(&err), "plugin two: DEL: exit status 3: deep trouble");
    log = fx_read(f->fake, "log");
    assert_string_equal(log, "three DEL pod1 eth0 \ntwo DEL pod1 eth0 \n");
    in = stdin_of(f, "two.DEL");
    assert_true(json_equal(json_object_get(in, "prevResult"), prev));
    /* success with garbage on stdout is success: nobody reads it */
    fx_write(f->fake, "two.DEL", "echo not json");
    assert_int_equal(chain_del(&ch, prev, NULL, NULL), 0);
    again = fx_read(f->fake, "log");
    assert_true(str_ends(again, "three DEL pod1 eth0 \ntwo DEL pod1 eth0 \none DEL pod1 eth0 \n"));
}

static void undoing_passes_over_what_was_never_done(void **state)
{
    struct fixture *f = *state;
    auto_cni_conf struct cni_conf *c = conf(three);
    struct chain ch = chain(f, c);
    auto_err struct err err = ERR_INIT;
    auto_free char *log = NULL, *again = NULL;

    plugins(f);
    fx_write(f->fake, "three.DEL", "exit 3");
    fx_write(f->fake, "two.DEL", "exit 2");
    assert_int_equal(chain_undo(&ch, 1, NULL, &err), -1);
    assert_string_equal(err_msg(&err), "plugin three: DEL: exit status 3");
    log = fx_read(f->fake, "log");
    assert_non_null(strstr(log, "one DEL"));
    fx_write(f->fake, "log", "");
    /* the second was done: its failure keeps the first's work in place */
    assert_int_equal(chain_undo(&ch, 2, NULL, &err), -1);
    again = fx_read(f->fake, "log");
    assert_non_null(strstr(again, "two DEL"));
    assert_null(strstr(again, "one DEL"));
}

static void an_old_list_gets_no_prev_result_in_del(void **state)
{
    struct fixture *f = *state;
    auto_cni_conf struct cni_conf *c =
        conf("{\"cniVersion\":\"0.3.1\",\"name\":\"net\",\"plugins\":[{\"type\":\"one\"}]}");
    struct chain ch = chain(f, c);
    auto_json json_t *prev = json_object(), *in = NULL;
    auto_err struct err err = ERR_INIT;

    plugins(f);
    assert_int_equal(chain_del(&ch, prev, NULL, NULL), 0);
    in = stdin_of(f, "one.DEL");
    assert_null(json_object_get(in, "prevResult"));
    assert_int_equal(chain_check(&ch, prev, NULL, &err), -1);
    assert_int_equal(err.code, ERR_UNIMPLEMENTED);
}

static void check_runs_forward_unless_disabled(void **state)
{
    struct fixture *f = *state;
    auto_cni_conf struct cni_conf *c = conf(three);
    auto_cni_conf struct cni_conf *off =
        conf("{\"cniVersion\":\"1.0.0\",\"name\":\"n\",\"disableCheck\":true,\"plugins\":[{"
             "\"type\":\"one\"}]}");
    struct chain ch = chain(f, c), none = chain(f, off);
    auto_json json_t *prev = json_object();
    auto_err struct err err = ERR_INIT;
    auto_free char *log = NULL;

    plugins(f);
    assert_int_equal(chain_check(&none, prev, NULL, NULL), 0);
    assert_null(fx_read(f->fake, "log"));
    assert_int_equal(chain_check(&ch, NULL, NULL, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    fx_write(f->fake, "three.CHECK", "echo '{\"code\":11,\"msg\":\"later\"}'; exit 1");
    assert_int_equal(chain_check(&ch, prev, NULL, &err), -1);
    assert_int_equal(err.code, ERR_UNAVAILABLE);
    log = fx_read(f->fake, "log");
    assert_string_equal(log, "one CHECK pod1 eth0 /run/netns/x\ntwo CHECK pod1 eth0 /run/netns/x\n"
                             "three CHECK pod1 eth0 /run/netns/x\n");
}

static const char three_new[] =
    "{\"cniVersion\":\"1.1.0\",\"name\":\"net\",\"plugins\":[{\"type\":\"one\"},"
    "{\"type\":\"two\"},{\"type\":\"three\"}]}";

static void gc_goes_on_after_a_failure(void **state)
{
    struct fixture *f = *state;
    auto_cni_conf struct cni_conf *c = conf(three_new);
    auto_cni_conf struct cni_conf *old = conf(three);
    struct chain ch = chain(f, c), ch_old = chain(f, old);
    auto_json json_t *valid =
        json_loads("[{\"containerID\":\"pod1\",\"ifname\":\"eth0\"}]", 0, NULL);
    auto_json json_t *in = NULL;
    auto_err struct err err = ERR_INIT;
    auto_free char *log = NULL, *env = NULL;

    plugins(f);
    ch.container_id = ch.netns = ch.ifname = ch.args = NULL;
    fx_write(f->fake, "one.GC", "echo '{\"code\":100,\"msg\":\"first\"}'; exit 1");
    fx_write(f->fake, "two.GC", "echo '{\"code\":100,\"msg\":\"second\"}'; exit 1");
    assert_int_equal(chain_gc(&ch, valid, NULL, &err), -1);
    assert_non_null(strstr(err_msg(&err), "first (code 100)"));
    log = fx_read(f->fake, "log");
    assert_string_equal(log, "one GC   \ntwo GC   \nthree GC   \n");
    in = stdin_of(f, "three.GC");
    assert_true(json_equal(json_object_get(in, "cni.dev/valid-attachments"), valid));
    assert_true(json_equal(json_object_get(in, "cni.dev/attachments"), valid));
    env = fx_read(f->fake, "one.GC.env");
    assert_null(strstr(env, "CNI_NETNS"));
    /* 1.0.0 has no GC */
    assert_int_equal(chain_gc(&ch_old, valid, NULL, NULL), 0);
}

static void status_and_versions(void **state)
{
    struct fixture *f = *state;
    auto_cni_conf struct cni_conf *c = conf(three_new);
    struct chain ch = {.conf = c, .bin_dirs = f->bin_dirs, .timeout_ns = SEC(20)};
    auto_json json_t *info = NULL;
    auto_err struct err err = ERR_INIT;

    plugins(f);
    assert_int_equal(chain_status(&ch, NULL, NULL), 0);
    fx_write(f->fake, "two.STATUS", "echo '{\"code\":50,\"msg\":\"no daemon\"}'; exit 1");
    assert_int_equal(chain_status(&ch, NULL, &err), -1);
    assert_int_equal(err.code, ERR_UNAVAILABLE);
    assert_int_equal(chain_versions(&ch, &info, NULL, NULL), 0);
    assert_int_equal(json_array_size(info), 3);
    assert_int_equal(json_array_size(json_object_get(json_array_get(info, 0), "versions")), 7);
    json_decref(info);
    info = NULL;
    fx_write(f->fake, "three.VERSION", "echo '{\"supportedVersions\":[\"0.4.0\",\"1.0.0\"]}'");
    assert_int_equal(chain_versions(&ch, &info, NULL, &err), -1);
    assert_non_null(strstr(err_msg(&err), "plugin three does not speak CNI 1.1.0"));
    fx_write(f->fake, "one.VERSION",
             "echo '{\"code\":4,\"msg\":\"unknown CNI_COMMAND: VERSION\"}'; exit 1");
    assert_int_equal(chain_versions(&ch, NULL, NULL, &err), -1);
    assert_non_null(strstr(err_msg(&err), "plugin one does not speak"));
    fx_write(f->fake, "one.VERSION", "echo hello");
    assert_int_equal(chain_versions(&ch, NULL, NULL, &err), -1);
}

static int add_one(struct fixture *f, const char *script, int64_t timeout, struct err *err)
{
    auto_cni_conf struct cni_conf *c =
        conf("{\"cniVersion\":\"1.0.0\",\"name\":\"net\",\"plugins\":[{\"type\":\"one\"}]}");
    struct chain ch = chain(f, c);
    auto_json json_t *result = NULL;
    size_t n_done;

    ch.timeout_ns = timeout;
    fx_write(f->fake, "one.ADD", script);
    return chain_add(&ch, &result, &n_done, NULL, err);
}

static void bad_plugins_end_in_errors(void **state)
{
    struct fixture *f = *state;
    static const char *const scripts[] = {
        "true",
        "echo garbage",
        "echo '[]'",
        "echo '{} {}'",
        "printf '{\"ips\":[{\"address\":\"300.0.0.1/8\"}]}'",
        "kill -9 $$",
        "exit 1",
        "echo '{\"code\":0}'; exit 1",
        "head -c 2097152 /dev/zero | tr '\\0' a",
        "head -c 2097152 /dev/zero | tr '\\0' a; exit 1",
        "head -c 2097152 /dev/zero | tr '\\0' a >&2; exit 1",
        "printf '{\"code\":99,\"msg\":\"\\377\\001\"}'; exit 1",
        "printf '\\377\\376\\001' >&2; exit 1",
    };
    auto_err struct err err = ERR_INIT;

    assert_int_equal(add_one(f, "true", SEC(20), &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    plugins(f);
    for (size_t i = 0; i < ARRAY_LEN(scripts); i++) {
        if (add_one(f, scripts[i], SEC(20), &err) == 0)
            fail_msg("succeeded: %s", scripts[i]);
        assert_true(strlen(err_msg(&err)) < 2 * LIMIT_CNI_ERROR);
        assert_true(str_is_utf8(err_msg(&err), strlen(err_msg(&err))));
        assert_non_null(strstr(err_msg(&err), "plugin one: ADD"));
    }
    assert_int_equal(add_one(f, "echo words of wisdom >&2", SEC(20), &err), -1);
    assert_non_null(strstr(err_msg(&err), "words of wisdom"));
}

/* A FIFO has a reader as long as somebody waits to open it for reading. */
static bool has_reader(const char *fifo)
{
    auto_close int fd = open(fifo, O_WRONLY | O_NONBLOCK | O_CLOEXEC);

    return fd >= 0;
}

static void a_hanging_plugin_is_killed_with_its_children(void **state)
{
    struct fixture *f = *state;
    auto_free char *fifo = fs_format("%s/fifo", f->fake);
    auto_err struct err err = ERR_INIT;
    int64_t before = mono_ns();

    plugins(f);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(
        add_one(f, "cat < \"$FAKE_CNI_DIR/fifo\" & cat < \"$FAKE_CNI_DIR/fifo\" >/dev/null",
                SEC(1) / 2, &err),
        -1);
    assert_int_equal(err.code, ERR_DEADLINE);
    /* a killed process needs a moment to be gone */
    while (has_reader(fifo) && mono_ns() - before < SEC(10))
        (void)sched_yield();
    assert_false(has_reader(fifo));
    assert_true(mono_ns() - before < SEC(10));
}

static void a_cancelled_call_ends(void **state)
{
    struct fixture *f = *state;
    auto_cni_conf struct cni_conf *c = conf(three);
    struct chain ch = chain(f, c);
    auto_cancel struct cancel *token = cancel_new(0, NULL);
    auto_json json_t *result = NULL;
    size_t n_done;
    auto_err struct err err = ERR_INIT;

    plugins(f);
    cancel_fire(token);
    assert_int_equal(chain_add(&ch, &result, &n_done, token, &err), -1);
    assert_int_equal(err.code, ERR_CANCELLED);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, fx_setup, fx_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(an_add_hands_results_on),
        TEST(a_failing_plugin_stops_the_add),
        TEST(del_goes_backwards_and_stops),
        TEST(undoing_passes_over_what_was_never_done),
        TEST(an_old_list_gets_no_prev_result_in_del),
        TEST(check_runs_forward_unless_disabled),
        TEST(gc_goes_on_after_a_failure),
        TEST(status_and_versions),
        TEST(bad_plugins_end_in_errors),
        TEST(a_hanging_plugin_is_killed_with_its_children),
        TEST(a_cancelled_call_ends),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
