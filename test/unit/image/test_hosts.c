/* cri/image/hosts and auth: mirrors, challenges, credentials. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "cri/image/auth.h"
#include "cri/image/hosts.h"
#include "cri/image/http.h"

static void parse_ok(const char *text, const char *registry, struct registry_hosts *h)
{
    auto_err struct err err = ERR_INIT;

    if (hosts_parse(text, strlen(text), "/nowhere", registry, h, &err) < 0)
        fail_msg("%s", err_msg(&err));
}

static void refused(const char *text, const char *needle)
{
    auto_err struct err err = ERR_INIT;
    auto_hosts struct registry_hosts h = {0};

    if (hosts_parse(text, strlen(text), "/nowhere", "r.io", &h, &err) == 0)
        fail_msg("accepted: %s", text);
    assert_int_equal(h.n, 0);
    if (strstr(err_msg(&err), needle) == NULL)
        fail_msg("\"%s\" is not in \"%s\"", needle, err_msg(&err));
}

static void test_order(void **state)
{
    (void)state;
    auto_hosts struct registry_hosts h = {0};

    parse_ok("server = \"https://up.io\"\n"
             "[host.\"https://b.io\"]\n"
             "[host.\"http://a.io:5000/x/\".header]\n"
             "X-A = [\"1\", \"2\"]\n"
             "[host.\"http://a.io:5000/x/\"]\n"
             "capabilities = [\"Pull\"]\n"
             "dial_timeout = \"1m500ms\"\n"
             "skip_verify = true\n"
             "[host.\"c.io/v2\"]\n"
             "override_path = true\n",
             "r.io", &h);
    assert_int_equal(h.n, 4);
    assert_string_equal(h.v[0].url, "https://b.io/v2");
    assert_true(h.v[0].can_pull && h.v[0].can_resolve && h.v[0].add_ns && !h.v[0].upstream);
    assert_string_equal(h.v[1].url, "http://a.io:5000/x/v2");
    assert_string_equal(h.v[1].host, "a.io:5000");
    assert_true(h.v[1].can_pull && !h.v[1].can_resolve && h.v[1].skip_verify);
    assert_int_equal(h.v[1].dial_timeout_ms, 60500);
    assert_int_equal(h.v[1].headers.n, 2);
    assert_string_equal(h.v[1].headers.v[1], "X-A: 2");
    assert_string_equal(h.v[2].url, "https://c.io/v2");
    assert_string_equal(h.v[3].url, "https://up.io/v2");
    assert_true(h.v[3].upstream && h.v[3].add_ns);
}

static void test_defaults(void **state)
{
    (void)state;
    static const struct {
        const char *registry, *url;
        bool ns;
    } want[] = {
        {"docker.io", "https://registry-1.docker.io/v2", false},
        {"r.io", "https://r.io/v2", false},
        {"r.io:5000", "https://r.io:5000/v2", false},
        {"localhost:5000", "http://localhost:5000/v2", false},
        {"127.0.0.1", "http://127.0.0.1/v2", false},
        {"[::1]:5000", "http://[::1]:5000/v2", false},
    };

    for (size_t i = 0; i < ARRAY_LEN(want); i++) {
        auto_hosts struct registry_hosts a = {0}, b = {0};

        parse_ok("", want[i].registry, &a);
        assert_int_equal(hosts_load(NULL, want[i].registry, &b, NULL), 0);
        assert_int_equal(a.n, 1);
        assert_string_equal(a.v[0].url, want[i].url);
        assert_string_equal(b.v[0].url, want[i].url);
        assert_int_equal(a.v[0].add_ns, want[i].ns);
        assert_true(b.v[0].upstream);
    }
}

static void test_client(void **state)
{
    (void)state;
    auto_hosts struct registry_hosts h = {0};

    parse_ok("client = \"/both.pem\"\n[host.\"https://a\"]\nclient = [[\"c.cert\", \"c.key\"]]\n"
             "[host.\"https://b\"]\nclient = [\"x.pem\", \"y.pem\"]\n",
             "r.io", &h);
    assert_int_equal(h.v[0].client.n, 2);
    assert_string_equal(h.v[0].client.v[0], "/nowhere/c.cert");
    assert_string_equal(h.v[0].client.v[1], "/nowhere/c.key");
    assert_int_equal(h.v[1].client.n, 4);
    assert_string_equal(h.v[1].client.v[0], "/nowhere/x.pem");
    assert_string_equal(h.v[1].client.v[1], "/nowhere/x.pem");
    assert_string_equal(h.v[1].client.v[3], "/nowhere/y.pem");
    assert_string_equal(h.v[2].client.v[1], "/both.pem");
}

static void test_refused(void **state)
{
    (void)state;
    refused("server = 5\n", "line 1");
    refused("server = \"ftp://x\"\n", "http and https");
    refused("server = \"https://\"\n", "no host");
    refused("server = \"https://user@x\"\n", "usable URL");
    refused("server = \"https://x?y\"\n", "usable URL");
    refused("ca = \"missing.pem\"\n", "missing.pem");
    refused("client = [[]]\n", "client");
    refused("client = [[\"a\", \"b\", \"c\"]]\n", "client");
    refused("client = 1\n", "client");
    refused("dial_timeout = \"soon\"\n", "dial_timeout");
    refused("dial_timeout = \"\"\n", "dial_timeout");
    refused("dial_timeout = \"0s\"\n", "dial_timeout");
    refused("[host.\"https://a\"]\ncapabilities = [\"fly\"]\n", "fly");
    refused("[host.\"https://a\"]\nskip_verify = \"yes\"\n", "true or false");
    refused("[host.\"https://a\".header]\n\"bad name\" = \"x\"\n", "header");
    refused("[host.\"https://a\".header]\nx = \"a\\nHost: evil\"\n", "header");
    refused("[host", "line 1");
}

static void challenge(const char *header, enum auth_scheme scheme, const char *realm,
                      const char *service, const char *scope)
{
    auto_strv struct strv headers = {0};
    struct auth_challenge c;

    strv_add(&headers, header);
    auth_parse_challenges(&headers, &c);
    assert_int_equal(c.scheme, scheme);
    if (realm != NULL)
        assert_string_equal(c.realm, realm);
    if (service != NULL)
        assert_string_equal(c.service, service);
    if (scope != NULL)
        assert_string_equal(c.scope, scope);
    auth_challenge_clear(&c);
}

static void test_challenges(void **state)
{
    (void)state;
    challenge("Bearer realm=\"https://a/t\",service=\"s\",scope=\"repository:x:pull,push\"",
              AUTH_BEARER, "https://a/t", "s", "repository:x:pull,push");
    challenge("BEARER realm=tok , service = s", AUTH_BEARER, "tok", "s", NULL);
    challenge("Basic realm=\"r\"", AUTH_BASIC, "r", NULL, NULL);
    challenge("Basic", AUTH_BASIC, NULL, NULL, NULL);
    challenge("Basic realm=\"r\", Bearer realm=\"https://a\"", AUTH_BEARER, "https://a", NULL,
              NULL);
    challenge("Bearer realm=\"https://a\", Basic realm=\"r\"", AUTH_BEARER, "https://a", NULL,
              NULL);
    challenge("Negotiate, Digest qop=\"auth, x\", Basic realm=\"r\"", AUTH_BASIC, "r", NULL, NULL);
    challenge("Bearer service=\"no realm\"", AUTH_NONE, NULL, NULL, NULL);
    challenge("Bearer realm=\"a\\\"b\\\\c\"", AUTH_BEARER, "a\"b\\c", NULL, NULL);
    challenge("Bearer realm=\"unterminated", AUTH_BEARER, "unterminated", NULL, NULL);
    challenge("Bearer realm=\"x\\", AUTH_BEARER, "x\\", NULL, NULL);
    challenge("", AUTH_NONE, NULL, NULL, NULL);
    challenge(",,, ;", AUTH_NONE, NULL, NULL, NULL);
    challenge("=\"x\"", AUTH_NONE, NULL, NULL, NULL);
}

static void test_credentials(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    struct auth_credentials c;
    struct image_auth a = {.auth = "bWU6cGE6c3M="};

    assert_int_equal(auth_credentials_set(&c, NULL, "r.io", NULL), 0);
    assert_false(auth_credentials_any(&c));
    assert_int_equal(auth_credentials_set(&c, &a, "r.io", NULL), 0);
    assert_string_equal(c.username, "me");
    assert_string_equal(c.password, "pa:ss");
    auth_credentials_clear(&c);

    a = (struct image_auth){.auth = "bWU6cHcAAAA="}; /* trailing NUL bytes */
    assert_int_equal(auth_credentials_set(&c, &a, "r.io", NULL), 0);
    assert_string_equal(c.password, "pw");
    auth_credentials_clear(&c);

    a = (struct image_auth){.auth = "bm9jb2xvbg=="};
    assert_int_equal(auth_credentials_set(&c, &a, "r.io", &err), -1);
    assert_int_equal(err.code, ERR_INVALID);
    assert_null(strstr(err_msg(&err), "nocolon"));

    a = (struct image_auth){
        .username = "u", .password = "p", .server_address = "https://index.docker.io/v1/"};
    assert_int_equal(auth_credentials_set(&c, &a, "r.io", NULL), 0);
    assert_false(auth_credentials_any(&c));
    assert_int_equal(auth_credentials_set(&c, &a, "docker.io", NULL), 0);
    assert_string_equal(c.username, "u");
    auth_credentials_clear(&c);

    a = (struct image_auth){.identity_token = "i", .auth = "x", .registry_token = "r"};
    assert_int_equal(auth_credentials_set(&c, &a, "r.io", NULL), 0);
    assert_string_equal(c.identity_token, "i");
    assert_null(c.registry_token);
    auth_credentials_clear(&c);
}

static void test_urls(void **state)
{
    (void)state;
    auto_free char *shown = http_shown_url("https://u:p@h:5000/a/b?X-Amz-Signature=s#f");
    auto_free char *junk = http_shown_url("\x01");

    assert_string_equal(shown, "https://h:5000/a/b");
    assert_non_null(junk);
    assert_true(http_same_origin("https://h/a", "https://H:443/b?c"));
    assert_false(http_same_origin("https://h/a", "http://h/a"));
    assert_false(http_same_origin("https://h/a", "https://h:444/a"));
    assert_false(http_same_origin("https://h/a", "https://h.evil/a"));
    assert_false(http_same_origin("https://h/a", "nonsense://"));
    assert_true(http_url_usable("https://h/a"));
    assert_false(http_url_usable("https://u:p@h/a"));
    assert_false(http_url_usable("file:///etc/passwd"));
    assert_false(http_url_usable("h/a"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order),      cmocka_unit_test(test_defaults),
        cmocka_unit_test(test_client),     cmocka_unit_test(test_refused),
        cmocka_unit_test(test_challenges), cmocka_unit_test(test_credentials),
        cmocka_unit_test(test_urls),
    };

    return cmocka_run_group_tests_name("hosts", tests, NULL, NULL);
}
