/* cri/image/login_tokens: who gets which token, until when, and how many are kept. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "cri/image/login_tokens.h"

#define TEXT(s) ((char *)(uintptr_t)(s))

static void assert_token(struct login_tokens *t, const char *key, int64_t now, const char *want)
{
    char *got = login_tokens_get(t, key, now);

    if (want == NULL)
        assert_null(got);
    else
        assert_string_equal(got, want);
    auth_wipe(got);
}

/* Whatever differs in host, repository or credentials makes another key. */
static void test_keys(void **state)
{
    static const struct {
        const char *url, *repository;
        struct auth_credentials creds;
    } who[] = {
        {"https://a/v2", "x/y", {0}},
        {"http://a/v2", "x/y", {0}},
        {"https://a/v2", "x/z", {0}},
        {"https://a/v2x", "/y", {0}},
        {"https://a/v2", "x/y", {.username = TEXT("u"), .password = TEXT("p")}},
        {"https://a/v2", "x/y", {.username = TEXT("u"), .password = TEXT("q")}},
        {"https://a/v2", "x/y", {.username = TEXT("up"), .password = TEXT("")}},
        {"https://a/v2", "x/y", {.username = TEXT(""), .password = TEXT("")}},
        {"https://a/v2", "x/y", {.identity_token = TEXT("p")}},
        {"https://a/v2", "x/y", {.registry_token = TEXT("p")}},
    };
    char keys[ARRAY_LEN(who)][DIGEST_MAX];

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(who); i++) {
        char again[DIGEST_MAX];

        assert_int_equal(
            login_tokens_key(who[i].url, who[i].repository, &who[i].creds, keys[i], NULL), 0);
        assert_int_equal(
            login_tokens_key(who[i].url, who[i].repository, &who[i].creds, again, NULL), 0);
        assert_string_equal(keys[i], again);
        for (size_t k = 0; k < i; k++)
            assert_string_not_equal(keys[i], keys[k]);
    }
}

static void test_time(void **state)
{
    struct login_tokens *t = login_tokens_new();

    (void)state;
    assert_token(t, "k", 0, NULL);
    login_tokens_put(t, "k", "Authorization: Bearer 1", 100);
    assert_token(t, "k", 99, "Authorization: Bearer 1");
    assert_token(t, "l", 99, NULL);
    login_tokens_put(t, "k", "Authorization: Bearer 2", 200);
    assert_token(t, "k", 150, "Authorization: Bearer 2");
    assert_token(t, "k", 200, NULL);
    assert_token(t, "k", 150, NULL); /* forgotten, not hidden */
    login_tokens_put(t, "k", "Authorization: Bearer 3", 300);
    login_tokens_drop(t, "k");
    login_tokens_drop(t, "k");
    assert_token(t, "k", 250, NULL);
    login_tokens_free(t);
    login_tokens_free(NULL);
}

static void test_bound(void **state)
{
    struct login_tokens *t = login_tokens_new();
    char key[32];

    (void)state;
    for (int i = 0; i < LIMIT_TOKENS + 10; i++) {
        (void)snprintf(key, sizeof(key), "k%d", i);
        login_tokens_put(t, key, key, 100);
    }
    assert_token(t, "k9", 1, NULL);
    assert_token(t, "k10", 1, "k10");
    assert_token(t, key, 1, key);
    login_tokens_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_time),
        cmocka_unit_test(test_bound),
    };

    return cmocka_run_group_tests_name("login_tokens", tests, NULL, NULL);
}
