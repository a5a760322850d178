/* cri/image/reference: normalisation, validation, id prefixes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "cri/image/digest.h"
#include "cri/image/reference.h"

#define HEX "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
#define SHA "sha256:" HEX

static void normal(const char *in, const char *want)
{
    auto_err struct err err = ERR_INIT;
    auto_reference struct reference r = {0};
    auto_free char *got = NULL;

    if (reference_parse(in, &r, &err) < 0)
        fail_msg("%s: %s", in, err_msg(&err));
    got = reference_string(&r);
    assert_string_equal(got, want);
}

static void bad(const char *in)
{
    auto_err struct err err = ERR_INIT;
    auto_reference struct reference r = {0};

    if (reference_parse(in, &r, &err) == 0)
        fail_msg("accepted: %s", in);
    assert_int_equal(err.code, ERR_INVALID);
    assert_null(r.registry);
}

static void test_normalise(void **state)
{
    (void)state;
    normal("busybox", "docker.io/library/busybox:latest");
    normal("busybox:1.36", "docker.io/library/busybox:1.36");
    normal("user/app", "docker.io/user/app:latest");
    normal("docker.io/busybox", "docker.io/library/busybox:latest");
    normal("index.docker.io/busybox:x", "docker.io/library/busybox:x");
    normal("docker.io/library/busybox", "docker.io/library/busybox:latest");
    normal("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9");
    normal("localhost/x", "localhost/x:latest");
    normal("localhost:5000/x", "localhost:5000/x:latest");
    normal("localhost:5000/x:y", "localhost:5000/x:y");
    normal("127.0.0.1:5000/a/b/c:T_1.2-x", "127.0.0.1:5000/a/b/c:T_1.2-x");
    normal("[::1]:5000/x", "[::1]:5000/x:latest");
    normal("[fd00::1]/x", "[fd00::1]/x:latest");
    normal("Host/x", "Host/x:latest");
    normal("a.b/x", "a.b/x:latest");
    normal("x@" SHA, "docker.io/library/x@" SHA);
    normal("x:tag@" SHA, "docker.io/library/x@" SHA);
    normal("r.io/x@" SHA, "r.io/x@" SHA);
    normal("a__b", "docker.io/library/a__b:latest");
    normal("a---b", "docker.io/library/a---b:latest");
    normal("x/a.b_c-d", "docker.io/x/a.b_c-d:latest");
}

static void test_invalid(void **state)
{
    (void)state;
    char long_name[400], long_tag[200];

    bad("");
    bad(":tag");
    bad("@" SHA);
    bad("x:");
    bad("x@");
    bad("x@sha256:abc");
    bad("x@md5:d41d8cd98f00b204e9800998ecf8427e");
    bad("x@sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855");
    bad("x@" SHA "0");
    bad("x@" SHA "@" SHA);
    bad("X");
    bad("Busybox");
    bad("docker.io/Busybox");
    bad("a//b");
    bad("/a");
    bad("a/");
    bad("a/b/");
    bad("a..b");
    bad("a___b");
    bad("-a");
    bad("a-");
    bad("_a");
    bad("a_");
    bad("a.");
    bad("a b");
    bad("a\nb");
    bad("a;b");
    bad("a:b c");
    bad("a:-x");
    bad("a:.x");
    bad("../../etc/passwd");
    bad("r.io/../x");
    bad("r.io/./x");
    bad("-r.io/x");
    bad("r-.io/x");
    bad("r..io/x");
    bad("r.io:/x");
    bad("r.io:0/x");
    bad("r.io:65536/x");
    bad("r.io:999999999999/x");
    bad("r.io:80a/x");
    bad("user@r.io/x");
    bad("https://r.io/x");
    bad("[::1/x");
    bad("[zz::1]/x");
    bad("[]/x");
    bad("[1]/x");
    bad("a_b.c/x");
    bad("r.io/x?y");
    bad("r.io/x%2f");
    bad("\xff\xfe");
    bad(HEX);
    memset(long_name, 'a', sizeof(long_name) - 1);
    long_name[sizeof(long_name) - 1] = '\0';
    bad(long_name);
    memset(long_tag, 't', sizeof(long_tag));
    (void)memcpy(long_tag, "a:", 2);
    long_tag[2 + 129] = '\0';
    bad(long_tag);
    long_tag[2 + 128] = '\0';
    {
        auto_reference struct reference r = {0};

        assert_int_equal(reference_parse(long_tag, &r, NULL), 0);
    }
    {
        char *huge = calloc(1, 1 << 20);

        assert_non_null(huge);
        memset(huge, 'a', (1 << 20) - 1);
        bad(huge);
        free(huge);
    }
}

static void test_parts(void **state)
{
    (void)state;
    auto_reference struct reference r = {0};
    auto_free char *name = NULL, *with = NULL;

    assert_int_equal(reference_parse("r.io:5000/a/b:t", &r, NULL), 0);
    assert_string_equal(r.registry, "r.io:5000");
    assert_string_equal(r.repository, "a/b");
    assert_string_equal(r.tag, "t");
    assert_null(r.digest);
    name = reference_name(&r);
    assert_string_equal(name, "r.io:5000/a/b");
    with = reference_with_digest(&r, SHA);
    assert_string_equal(with, "r.io:5000/a/b@" SHA);
}

static void test_error_text_is_printable(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    auto_reference struct reference r = {0};

    assert_int_equal(reference_parse("bad\x1b[31m\n\xff", &r, &err), -1);
    for (const char *p = err_msg(&err); *p != '\0'; p++)
        assert_true(*p >= 0x20 && *p < 0x7f);
}

static void test_ids(void **state)
{
    (void)state;
    const char *hex = NULL;
    bool whole = false;

    assert_true(reference_is_id(SHA, &hex, &whole));
    assert_true(whole);
    assert_string_equal(hex, HEX);
    assert_true(reference_is_id(HEX, &hex, &whole));
    assert_true(whole);
    assert_true(reference_is_id("e3b0c44", &hex, &whole));
    assert_false(whole);
    assert_true(reference_is_id("sha256:e3b", &hex, &whole));
    assert_false(reference_is_id("e3b0c4", &hex, &whole));
    assert_false(reference_is_id("sha256:", &hex, &whole));
    assert_false(reference_is_id(HEX "0", &hex, &whole));
    assert_false(reference_is_id("E3B0C44298", &hex, &whole));
    assert_false(reference_is_id("busybox", &hex, &whole));
    assert_false(reference_is_id("", &hex, &whole));
}

static void test_loopback(void **state)
{
    (void)state;
    assert_true(reference_registry_is_loopback("localhost"));
    assert_true(reference_registry_is_loopback("localhost:5000"));
    assert_true(reference_registry_is_loopback("127.0.0.1"));
    assert_true(reference_registry_is_loopback("127.255.1.9:80"));
    assert_true(reference_registry_is_loopback("[::1]:5000"));
    assert_false(reference_registry_is_loopback("localhost.example"));
    assert_false(reference_registry_is_loopback("127.0.0.1.example.com"));
    assert_false(reference_registry_is_loopback("128.0.0.1"));
    assert_false(reference_registry_is_loopback("127"));
    assert_false(reference_registry_is_loopback("[fd00::1]"));
}

static void test_digests(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    char out[DIGEST_MAX];

    assert_true(digest_valid(SHA));
    assert_false(digest_valid("sha256:"));
    assert_false(digest_valid("sha256"));
    assert_false(digest_valid("sha512:" HEX));
    assert_true(digest_valid("sha512:" HEX HEX));
    assert_false(digest_valid("sha256:" HEX "\n"));
    assert_int_equal(digest_of("", 0, "sha256", out, NULL), 0);
    assert_string_equal(out, SHA);
    assert_int_equal(digest_of("", 0, "sha512", out, NULL), 0);
    assert_true(digest_valid(out));
    assert_int_equal(digest_check("", 0, SHA, NULL), 0);
    assert_int_equal(digest_check("x", 1, SHA, &err), -1);
    assert_int_equal(err.code, ERR_DATA_LOSS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_normalise), cmocka_unit_test(test_invalid),
        cmocka_unit_test(test_parts),     cmocka_unit_test(test_error_text_is_printable),
        cmocka_unit_test(test_ids),       cmocka_unit_test(test_loopback),
        cmocka_unit_test(test_digests),
    };

    return cmocka_run_group_tests_name("reference", tests, NULL, NULL);
}
