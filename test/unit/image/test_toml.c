/* cri/toml: what is read, what is refused, and on which line. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/limits.h"
#include "cri/toml.h"

static struct toml_doc *parse_ok(const char *text)
{
    auto_err struct err err = ERR_INIT;
    struct toml_doc *doc = NULL;

    if (toml_parse(text, strlen(text), &doc, &err) < 0)
        fail_msg("%s", err_msg(&err));
    assert_non_null(doc);
    return doc;
}

static void refused_n(const char *text, size_t len, int line, const char *needle)
{
    auto_err struct err err = ERR_INIT;
    struct toml_doc *doc = NULL;
    char prefix[32];

    if (toml_parse(text, len, &doc, &err) == 0)
        fail_msg("accepted: %s", text);
    assert_null(doc);
    assert_int_equal(err.code, ERR_INVALID);
    (void)snprintf(prefix, sizeof(prefix), "line %d: ", line);
    if (line > 0 && !str_starts(err_msg(&err), prefix))
        fail_msg("%s: not line %d: %s", text, line, err_msg(&err));
    if (strstr(err_msg(&err), needle) == NULL)
        fail_msg("%s: \"%s\" is not in \"%s\"", text, needle, err_msg(&err));
}

static void refused(const char *text, int line, const char *needle)
{
    refused_n(text, strlen(text), line, needle);
}

static void test_hosts_file(void **state)
{
    (void)state;
    auto_toml struct toml_doc *doc = parse_ok("server = \"https://registry-1.docker.io\"\n"
                                              "\n"
                                              "[host.\"https://mirror.example:5000/v2/x\"]\n"
                                              "  capabilities = [\"pull\", 'resolve',] # both\n"
                                              "  client = [[\"a.cert\", \"a.key\"],\n"
                                              "            [\"b.cert\", \"b.key\"]]\n"
                                              "  skip_verify = true\r\n"
                                              "[host.\"https://mirror.example:5000/v2/x\".header]\n"
                                              "  x-one = \"1\"\n"
                                              "[host.'https://second']\n");
    const char *path[] = {"host", "https://mirror.example:5000/v2/x", "header"};
    auto_strv struct strv caps = {0};
    const struct toml_value *client;
    const char *s = NULL;
    bool b = false;

    assert_int_equal(doc->n_tables, 4);
    assert_int_equal(doc->tables[0].path.n, 0);
    assert_int_equal(toml_get_string(toml_section(doc, NULL), "server", &s, NULL), 1);
    assert_string_equal(s, "https://registry-1.docker.io");
    assert_ptr_equal(toml_find(doc, path, 2), &doc->tables[1]);
    assert_ptr_equal(toml_find(doc, path, 3), &doc->tables[2]);
    assert_string_equal(doc->tables[3].path.v[1], "https://second");
    assert_int_equal(doc->tables[3].line, 10);
    assert_int_equal(toml_get_strings(&doc->tables[1], "capabilities", &caps, NULL), 1);
    assert_int_equal(caps.n, 2);
    assert_string_equal(caps.v[1], "resolve");
    client = toml_get(&doc->tables[1], "client");
    assert_int_equal(client->n_items, 2);
    assert_string_equal(client->items[1].items[0].str, "b.cert");
    assert_int_equal(client->items[1].line, 6);
    assert_int_equal(toml_get_bool(&doc->tables[1], "skip_verify", &b, NULL), 1);
    assert_true(b);
    assert_null(toml_section(doc, "host"));
}

static void test_values(void **state)
{
    (void)state;
    auto_toml struct toml_doc *doc =
        parse_ok("\xef\xbb\xbf"
                 "a = 1_000\nb = -9223372036854775808\nc = 0xff_FF\nd = 0o17\ne = 0b101\n"
                 "f = +0\ng = \"tab\\t quote\\\" \\u00e9 \\U0001F600\"\nh = 'c:\\raw'\n"
                 "i = \"\"\nj = []\nk = false\n\"quoted key\" = 1\n1234 = 2\n"
                 "l.m.n = 3\nl.m.o = 4\n[t]\nx.y = 1");
    const struct toml_table *root = &doc->tables[0];
    int64_t n = 0;
    const char *s = NULL;
    bool b = true;
    const char *lm[] = {"l", "m"};
    auto_strv struct strv none = {0};

    assert_int_equal(toml_get_int(root, "a", &n, NULL), 1);
    assert_int_equal(n, 1000);
    assert_int_equal(toml_get_int(root, "b", &n, NULL), 1);
    assert_true(n == INT64_MIN);
    assert_int_equal(toml_get_int(root, "c", &n, NULL), 1);
    assert_int_equal(n, 0xffff);
    assert_int_equal(toml_get_int(root, "d", &n, NULL), 1);
    assert_int_equal(n, 15);
    assert_int_equal(toml_get_int(root, "e", &n, NULL), 1);
    assert_int_equal(n, 5);
    assert_int_equal(toml_get_int(root, "f", &n, NULL), 1);
    assert_int_equal(n, 0);
    assert_int_equal(toml_get_string(root, "g", &s, NULL), 1);
    assert_string_equal(s, "tab\t quote\" \xc3\xa9 \xf0\x9f\x98\x80");
    assert_int_equal(toml_get_string(root, "h", &s, NULL), 1);
    assert_string_equal(s, "c:\\raw");
    assert_int_equal(toml_get_string(root, "i", &s, NULL), 1);
    assert_string_equal(s, "");
    assert_int_equal(toml_get_strings(root, "j", &none, NULL), 1);
    assert_int_equal(none.n, 0);
    assert_int_equal(toml_get_bool(root, "k", &b, NULL), 1);
    assert_false(b);
    assert_int_equal(toml_get_int(root, "quoted key", &n, NULL), 1);
    assert_int_equal(toml_get_int(root, "1234", &n, NULL), 1);
    assert_int_equal(n, 2);
    assert_int_equal(toml_get_int(toml_find(doc, lm, 2), "o", &n, NULL), 1);
    assert_int_equal(n, 4);
    assert_int_equal(toml_get(root, "g")->line, 7);
    assert_int_equal(toml_get_int(root, "absent", &n, NULL), 0);
    assert_int_equal(toml_get_int(NULL, "absent", &n, NULL), 0);
}

static void test_getter_types(void **state)
{
    (void)state;
    auto_toml struct toml_doc *doc = parse_ok("\nn = 1\ns = \"x\"\nl = [1, 2]\n");
    auto_err struct err err = ERR_INIT;
    auto_strv struct strv out = {0};
    const char *s = NULL;
    int64_t n = 0;
    bool b = false;

    assert_int_equal(toml_get_string(&doc->tables[0], "n", &s, &err), -1);
    assert_string_equal(err_msg(&err), "line 2: key \"n\" must be a string, not an integer");
    assert_int_equal(toml_get_int(&doc->tables[0], "s", &n, &err), -1);
    assert_int_equal(toml_get_bool(&doc->tables[0], "n", &b, &err), -1);
    assert_int_equal(toml_get_strings(&doc->tables[0], "s", &out, &err), -1);
    assert_int_equal(toml_get_strings(&doc->tables[0], "l", &out, &err), -1);
    assert_string_equal(err_msg(&err), "line 4: key \"l\" must be an array of strings");
    assert_int_equal(out.n, 0);
}

static void test_refused(void **state)
{
    (void)state;
    refused("a = 1\na = 2\n", 2, "given twice");
    refused("[a]\n[b]\n[a]\n", 3, "already defined in line 1");
    refused("a = 1\n[a]\n", 2, "already a value");
    refused("a = 1\n[a.b]\n", 2, "already a value");
    refused("[a.b]\n[a.b.c]\n[a.b]\n", 3, "already defined");
}

static void test_refused_forms(void **state)
{
    (void)state;
    refused("[a.b]\nc = 1\n[a]\nb = 2\n", 4, "already a table");
    refused("a.b = 1\n[a]\n", 2, "already defined");
    refused("[a.b]\n[a]\nx = 1\nb.c = 2\n", 4, "dotted key");
    refused("a = 1.5\n", 1, "floating-point");
    refused("a = 1e3\n", 1, "floating-point");
    refused("a = inf\n", 1, "floating-point");
    refused("a = 1979-05-27\n", 1, "dates");
    refused("a = \"\"\"x\"\"\"\n", 1, "multi-line");
    refused("a = '''x'''\n", 1, "multi-line");
    refused("a = {b = 1}\n", 1, "inline tables");
    refused("\n[[a]]\n", 2, "arrays of tables");
    refused("a = [1, \"x\"]\n", 1, "one type");
    refused("a = [1,\n2", 2, "',' or ']'");
    refused("a = [1,\n", 2, "unterminated array");
    refused("a = [,]\n", 1, "value expected");
    refused("a = \"x\ny\"\n", 1, "unterminated string");
    refused("a = \"x", 1, "unterminated string");
    refused("a = \"\\q\"\n", 1, "unknown escape");
    refused("a = \"\\", 1, "unterminated string");
    refused("a = \"\\u12\"\n", 1, "hex digits");
    refused("a = \"\\u0000\"\n", 1, "usable character");
    refused("a = \"\\ud800\"\n", 1, "usable character");
    refused("a = \"\\U00110000\"\n", 1, "usable character");
    refused("a = \"\x01\"\n", 1, "control character");
    refused("a = 1 # \x02\n", 1, "control character");
    refused("a = 'x' y\n", 1, "unexpected text");
    refused("a\n", 1, "'=' expected");
    refused("= 1\n", 1, "name expected");
    refused("a = \n", 1, "value expected");
    refused("a = truely\n", 1, "value expected");
    refused("[a\n", 1, "']' expected");
    refused("[]\n", 1, "name expected");
    refused("[a.]\n", 1, "name expected");
    refused("[a] b = 1\n", 1, "unexpected text");
    refused("a = 01\n", 1, "leading zero");
    refused("a = 1__0\n", 1, "malformed number");
    refused("a = 1_\n", 1, "malformed number");
    refused("a = _1\n", 1, "value expected");
    refused("a = -0x1\n", 1, "malformed number");
    refused("a = 0x\n", 1, "malformed number");
    refused("a = 12abc\n", 1, "malformed number");
    refused("a = 9223372036854775808\n", 1, "out of range");
    refused("a = -9223372036854775809\n", 1, "out of range");
    refused("a = 99999999999999999999999\n", 1, "out of range");
    refused("a = \"\xff\"\n", 0, "UTF-8");
    refused("a = 1\rb = 2\n", 1, "unexpected text");
    refused_n("a = \"x\0y\"\n", 10, 1, "control character");
    refused("a.b.c.d.e.f.g.h.i = 1\n", 1, "parts");
    refused("a = [[[[[[[[[1]]]]]]]]]\n", 1, "nested");
}

static void test_bounds(void **state)
{
    (void)state;
    char *big = malloc(LIMIT_TOML + 2);
    size_t n = 0;

    assert_non_null(big);
    memset(big, '\n', LIMIT_TOML + 1);
    refused_n(big, LIMIT_TOML + 1, 0, "longer than");
    for (int i = 0; i <= LIMIT_TOML_KEYS; i++)
        n += (size_t)sprintf(big + n, "k%d=1\n", i);
    refused_n(big, n, LIMIT_TOML_KEYS + 1, "more than");
    n = 0;
    for (int i = 0; i <= LIMIT_TOML_TABLES; i++)
        n += (size_t)sprintf(big + n, "[k%d]\n", i);
    refused_n(big, n, LIMIT_TOML_TABLES, "more than");
    n = (size_t)sprintf(big, "a=[");
    for (int i = 0; i <= LIMIT_TOML_KEYS; i++)
        n += (size_t)sprintf(big + n, "1,");
    refused_n(big, n, 1, "more than");
    free(big);
}

static void test_empty(void **state)
{
    (void)state;
    auto_toml struct toml_doc *a = parse_ok("");
    auto_toml struct toml_doc *b = parse_ok("# only a comment");

    assert_int_equal(a->n_tables, 1);
    assert_int_equal(b->n_tables, 1);
    assert_int_equal(b->tables[0].n_keys, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hosts_file),    cmocka_unit_test(test_values),
        cmocka_unit_test(test_getter_types),  cmocka_unit_test(test_refused),
        cmocka_unit_test(test_refused_forms), cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_empty),
    };

    return cmocka_run_group_tests_name("toml", tests, NULL, NULL);
}
