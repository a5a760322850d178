#include "fixture.h"

#include "netplugin/conf.h"
#include "netplugin/json.h"

#define LIST(name, type)                                                                           \
    "{\"cniVersion\":\"1.0.0\",\"name\":\"" name "\",\"plugins\":[{\"type\":\"" type "\"}]}"

static struct cni_conf *load(struct fixture *f, char **problem)
{
    auto_err struct err err = ERR_INIT;

    return cni_conf_load(f->conf, problem, &err);
}

static void first_in_byte_order_wins(void **state)
{
    struct fixture *f = *state;
    auto_free char *problem = NULL;
    auto_cni_conf struct cni_conf *c = NULL;

    fx_write(f->conf, "a.conflist", LIST("small", "x"));
    fx_write(f->conf, "10-b.conflist", LIST("number", "x"));
    fx_write(f->conf, "Z.conflist", LIST("big", "x"));
    fx_write(f->conf, "00-other.yaml", LIST("yaml", "x"));
    c = load(f, &problem);
    assert_non_null(c);
    assert_string_equal(c->name, "number");
    assert_string_equal(c->version, "1.0.0");
    assert_null(problem);
    assert_true(str_ends(c->file, "/10-b.conflist"));
}

static void broken_files_are_passed_over_and_told(void **state)
{
    struct fixture *f = *state;
    static const char *const broken[] = {
        "",
        "{",
        "[]",
        "{\"name\":\"n\"}",
        "{\"name\":\"n\",\"plugins\":[]}",
        "{\"name\":\"n\",\"plugins\":[{}]}",
        "{\"name\":\"n\",\"plugins\":[3]}",
        "{\"name\":\"n\",\"plugins\":{\"type\":\"x\"}}",
        "{\"name\":\"n\",\"plugins\":[{\"type\":\"../x\"}]}",
        "{\"name\":\"n\",\"plugins\":[{\"type\":\"/bin/sh\"}]}",
        "{\"name\":\"n\",\"plugins\":[{\"type\":\"..\"}]}",
        "{\"name\":\"../n\",\"plugins\":[{\"type\":\"x\"}]}",
        "{\"plugins\":[{\"type\":\"x\"}]}",
        "{\"name\":\"n\",\"cniVersion\":\"7.0.0\",\"plugins\":[{\"type\":\"x\"}]}",
        "{\"name\":\"n\",\"cniVersion\":1,\"plugins\":[{\"type\":\"x\"}]}",
        "{\"name\":\"n\",\"plugins\":[{\"type\":\"x\",\"capabilities\":[]}]}",
        "{\"name\":\"n\",\"plugins\":[{\"type\":\"x\",\"capabilities\":{\"a\":1}}]}",
        "{\"name\":\"n\",\"disableCheck\":7,\"plugins\":[{\"type\":\"x\"}]}",
    };

    for (size_t i = 0; i < ARRAY_LEN(broken); i++) {
        auto_free char *problem = NULL;
        auto_err struct err err = ERR_INIT;
        auto_cni_conf struct cni_conf *c = NULL;

        fx_write(f->conf, "10-broken.conflist", broken[i]);
        c = cni_conf_load(f->conf, &problem, &err);
        if (c != NULL)
            fail_msg("accepted: %s", broken[i]);
        assert_non_null(problem);
        assert_non_null(strstr(err_msg(&err), "10-broken.conflist"));
    }
    {
        auto_free char *problem = NULL;
        auto_cni_conf struct cni_conf *c = NULL;

        fx_write(f->conf, "20-good.conflist", LIST("good", "x"));
        c = load(f, &problem);
        assert_non_null(c);
        assert_string_equal(c->name, "good");
        assert_non_null(strstr(problem, "10-broken.conflist"));
    }
}

static void nothing_there_is_not_found(void **state)
{
    struct fixture *f = *state;
    auto_free char *problem = NULL;
    auto_err struct err err = ERR_INIT;

    assert_null(cni_conf_load(f->conf, &problem, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_null(problem);
    assert_null(cni_conf_load("/nonexistent/net.d", &problem, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
}

static void odd_files_do_not_hang_or_fool(void **state)
{
    struct fixture *f = *state;
    auto_free char *fifo = fs_format("%s/05-fifo.conflist", f->conf);
    auto_free char *dir = fs_format("%s/06-dir.conflist", f->conf);
    auto_free char *big = calloc(1, LIMIT_CNI_CONF + 2), *problem = NULL;
    auto_cni_conf struct cni_conf *c = NULL;

    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(mkdir(dir, 0700), 0);
    memset(big, ' ', LIMIT_CNI_CONF + 1);
    fx_write(f->conf, "07-big.conflist", big);
    fx_write(f->conf, "10-good.conflist", LIST("good", "x"));
    c = load(f, &problem);
    assert_non_null(c);
    assert_string_equal(c->name, "good");
    assert_non_null(strstr(problem, "05-fifo"));
}

static void a_single_plugin_becomes_a_list(void **state)
{
    struct fixture *f = *state;
    auto_free char *problem = NULL;
    auto_cni_conf struct cni_conf *c = NULL, *again = NULL;
    const json_t *p;

    fx_write(f->conf, "10-a.conf",
             "{\"cniVersion\":\"0.3.1\",\"name\":\"one\",\"type\":\"br\",\"big\":9007199254740993,"
             "\"f\":1.5}");
    c = load(f, &problem);
    assert_non_null(c);
    assert_string_equal(c->version, "0.3.1");
    p = json_array_get(c->plugins, 0);
    assert_true(json_integer_value(json_object_get(p, "big")) == 9007199254740993LL);
    /* what the cache will hold is a list */
    again = cni_conf_parse(c->text, strlen(c->text), true, NULL, NULL);
    assert_non_null(again);
    assert_string_equal(again->name, "one");
    assert_int_equal(json_array_size(again->plugins), 1);
}

static void the_highest_known_version_is_used(void **state)
{
    static const struct {
        const char *head, *version;
    } cases[] = {
        {"\"cniVersion\":\"0.4.0\",\"cniVersions\":[\"0.3.1\",\"1.1.0\",\"8.0.0\"]", "1.1.0"},
        {"\"cniVersions\":[\"1.0.0\",\"0.4.0\"]", "1.0.0"},
        {"\"cniVersion\":\"1.0.0\",\"cniVersions\":[\"9.9.9\"]", "1.0.0"},
        {"\"x\":1", "0.1.0"},
        {"\"cniVersion\":\"\"", "0.1.0"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        auto_free char *text =
            fs_format("{%s,\"name\":\"n\",\"plugins\":[{\"type\":\"x\"}]}", cases[i].head);
        auto_cni_conf struct cni_conf *c = cni_conf_parse(text, strlen(text), true, NULL, NULL);

        assert_non_null(c);
        assert_string_equal(c->version, cases[i].version);
    }
}

static void plugin_files_beside_the_list_join_it(void **state)
{
    struct fixture *f = *state;
    auto_free char *dir = fs_format("%s/net", f->conf);
    auto_free char *problem = NULL;
    auto_cni_conf struct cni_conf *c = NULL, *only = NULL, *again = NULL;

    assert_int_equal(mkdir(dir, 0700), 0);
    fx_write(dir, "20-b.conf", "{\"type\":\"third\"}");
    fx_write(dir, "10-a.conf", "{\"type\":\"second\"}");
    fx_write(f->conf, "10-a.conflist", LIST("net", "first"));
    c = load(f, &problem);
    assert_non_null(c);
    assert_int_equal(json_array_size(c->plugins), 3);
    assert_string_equal(json_get_string(json_array_get(c->plugins, 1), "type"), "second");
    again = cni_conf_parse(c->text, strlen(c->text), true, c->file, NULL);
    assert_int_equal(json_array_size(again->plugins), 3);
    fx_write(f->conf, "10-a.conflist",
             "{\"name\":\"net\",\"loadOnlyInlinedPlugins\":true,\"disableCheck\":true,"
             "\"disableGC\":\"true\","
             "\"plugins\":[{\"type\":\"first\"}]}");
    only = load(f, &problem);
    assert_non_null(only);
    assert_int_equal(json_array_size(only->plugins), 1);
    assert_true(only->disable_check);
    assert_true(only->disable_gc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(first_in_byte_order_wins, fx_setup, fx_teardown),
        cmocka_unit_test_setup_teardown(broken_files_are_passed_over_and_told, fx_setup,
                                        fx_teardown),
        cmocka_unit_test_setup_teardown(nothing_there_is_not_found, fx_setup, fx_teardown),
        cmocka_unit_test_setup_teardown(odd_files_do_not_hang_or_fool, fx_setup, fx_teardown),
        cmocka_unit_test_setup_teardown(a_single_plugin_becomes_a_list, fx_setup, fx_teardown),
        cmocka_unit_test(the_highest_known_version_is_used),
        cmocka_unit_test_setup_teardown(plugin_files_beside_the_list_join_it, fx_setup,
                                        fx_teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
