/* base/str and base/buf: strict UTF-8, whole numbers, lists; buffers that keep to their maximum. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/str.h"

static void test_utf8(void **state)
{
    (void)state;
    static const char *const good[] = {"",           "abc",          "\x7f",         "\u00e9",
                                       "\u0800",     "\xed\x9f\xbf", "\xee\x80\x80", "\uffff",
                                       "\U00010000", "\U0010ffff",   "a\u20acb"};
    static const char *const bad[] = {
        "\x80",             /* a lone continuation */
        "\xc3",             /* cut off */
        "\xe2\x82",         /* cut off */
        "\xf0\x90\x80",     /* cut off */
        "\xc3(",            /* no continuation */
        "\xc0\xaf",         /* overlong '/' */
        "\xc1\xbf",         /* overlong */
        "\xe0\x9f\xbf",     /* overlong */
        "\xf0\x8f\xbf\xbf", /* overlong */
        "\xed\xa0\x80",     /* surrogate */
        "\xed\xbf\xbf",     /* surrogate */
        "\xf4\x90\x80\x80", /* beyond U+10FFFF */
        "\xf5\x80\x80\x80",
        "\xff",
        "\xfe",
        "ok\xff",
    };
    for (size_t i = 0; i < ARRAY_LEN(good); i++)
        assert_true(str_is_utf8(good[i], strlen(good[i])));
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        /* exactly so long on the heap: a sanitizer sees a read past the end */
        size_t len = strlen(bad[i]);
        auto_free char *copy = xcalloc(len, 1);
        memcpy(copy, bad[i], len);
        assert_false(str_is_utf8(copy, len));
    }
    assert_true(str_is_utf8("a\0b", 3));
}

static void test_numbers(void **state)
{
    (void)state;
    uint64_t u = 7;
    int64_t i = 7;
    assert_int_equal(str_to_u64("18446744073709551615", &u), 0);
    assert_true(u == UINT64_MAX);
    assert_int_equal(str_to_u64("0", &u), 0);
    assert_int_equal(u, 0);
    static const char *const bad[] = {"",   " 1",  "1 ", "+1",
                                      "-1", "0x1", "1a", "18446744073709551616"};
    for (size_t k = 0; k < ARRAY_LEN(bad); k++)
        assert_int_equal(str_to_u64(bad[k], &u), -1);
    assert_int_equal(str_to_u64(NULL, &u), -1);
    assert_int_equal(u, 0);
    assert_int_equal(str_to_i64("-9223372036854775808", &i), 0);
    assert_true(i == INT64_MIN);
    static const char *const bad_signed[] = {"", "-", "--1", "- 1", "+1", "9223372036854775808"};
    for (size_t k = 0; k < ARRAY_LEN(bad_signed); k++)
        assert_int_equal(str_to_i64(bad_signed[k], &i), -1);
    assert_int_equal(str_to_i64(NULL, &i), -1);
}

static void test_hex_digits(void **state)
{
    (void)state;
    static const char digits[] = "0123456789abcdefABCDEF";
    for (size_t i = 0; i < strlen(digits); i++)
        assert_int_equal(str_hex_digit(digits[i]), i < 16 ? i : i - 6);
    static const int none[] = {'/', ':', '@', 'G', '`', 'g', 0, -1, 0x130};
    for (size_t i = 0; i < ARRAY_LEN(none); i++)
        assert_int_equal(str_hex_digit(none[i]), -1);
}

static void test_prefix_and_suffix(void **state)
{
    (void)state;
    assert_true(str_starts("abc", "ab") && str_starts("abc", "") && str_starts("", ""));
    assert_false(str_starts("ab", "abc"));
    assert_true(str_ends("abc", "bc") && str_ends("abc", ""));
    assert_false(str_ends("bc", "abc"));
    assert_true(str_empty(NULL) && str_empty("") && !str_empty("x"));
    assert_null(xstrdup(NULL));
}

static void test_lists_end_with_null(void **state)
{
    (void)state;
    auto_strv struct strv l = {0};
    for (size_t i = 0; i < 70; i++) {
        if (i % 2 == 0)
            strv_addf(&l, "%zu", i);
        else
            strv_add(&l, "odd");
        assert_int_equal(l.n, i + 1);
        assert_null(l.v[l.n]);
    }
    assert_string_equal(l.v[0], "0");
    assert_string_equal(l.v[69], "odd");
    strv_clear(&l);
    assert_null(l.v);
    assert_int_equal(l.n, 0);
}

static void test_buffer_grows_to_its_maximum(void **state)
{
    (void)state;
    auto_buf struct buf b = BUF_INIT(1000);
    assert_string_equal(buf_str(&b), "");
    for (size_t i = 0; i < 1000; i++) {
        assert_int_equal(buf_putc(&b, 'x'), 0);
        assert_int_equal(strlen(b.data), i + 1);
    }
    assert_true(buf_ok(&b));
    assert_int_equal(buf_putc(&b, 'y'), -1);
    assert_false(buf_ok(&b));
    assert_int_equal(b.len, 1000);
    assert_int_equal(b.data[999], 'x');
    /* one failure is enough to fail everything after it */
    buf_consume(&b, 500);
    assert_int_equal(buf_puts(&b, "z"), -1);
    buf_reset(&b);
    assert_int_equal(buf_puts(&b, "z"), 0);
    assert_string_equal(buf_str(&b), "z");
}

static void test_buffer_refuses_huge_lengths(void **state)
{
    (void)state;
    auto_buf struct buf b = BUF_INIT(100);
    assert_int_equal(buf_puts(&b, "abc"), 0);
    assert_null(buf_reserve(&b, SIZE_MAX));
    assert_null(buf_reserve(&b, SIZE_MAX - 2)); /* would wrap */
    assert_string_equal(buf_str(&b), "abc");
    buf_reset(&b);
    assert_int_equal(buf_printf(&b, "%200s", "x"), -1);
    assert_int_equal(b.len, 0);
    auto_buf struct buf none = BUF_INIT(0);
    assert_int_equal(buf_append(&none, "", 0), 0);
    assert_int_equal(buf_putc(&none, 'x'), -1);
}

static void test_buffer_formats_and_consumes(void **state)
{
    (void)state;
    auto_buf struct buf b = BUF_INIT(1 << 20);
    assert_int_equal(buf_printf(&b, "%s=%d", "a", 5), 0);
    assert_int_equal(buf_append(&b, "\0z", 2), 0);
    assert_int_equal(b.len, 5);
    buf_consume(&b, 2);
    assert_memory_equal(b.data, "5\0z", 4);
    buf_consume(&b, 100);
    assert_int_equal(b.len, 0);
    char *room = buf_reserve(&b, 70000);
    assert_non_null(room);
    memset(room, 'r', 70000);
    buf_commit(&b, 69999);
    assert_int_equal(strlen(buf_str(&b)), 69999);
    auto_free char *given = buf_take(&b);
    assert_int_equal(strlen(given), 69999);
    assert_null(b.data);
    auto_free char *empty = buf_take(&b);
    assert_string_equal(empty, "");
    buf_consume(&b, 1);
    assert_string_equal(buf_str(&b), "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_utf8),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_hex_digits),
        cmocka_unit_test(test_prefix_and_suffix),
        cmocka_unit_test(test_lists_end_with_null),
        cmocka_unit_test(test_buffer_grows_to_its_maximum),
        cmocka_unit_test(test_buffer_refuses_huge_lengths),
        cmocka_unit_test(test_buffer_formats_and_consumes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
