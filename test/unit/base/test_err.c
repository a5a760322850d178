/* base/err: messages read from the outside in, codes follow errno, nothing leaks. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/err.h"

static void test_reads_from_the_outside_in(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    assert_int_equal(err_sys(&err, ENOENT, "open %s", "/x"), -1);
    assert_int_equal(err_wrap(&err, "machine %d", 7), -1);
    assert_int_equal(err_wrap(&err, "sandbox a"), -1);
    assert_int_equal(err_append(&err, " [%s]", "last words"), -1);
    assert_string_equal(err_msg(&err),
                        "sandbox a: machine 7: open /x: No such file or directory [last words]");
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_int_equal(err.sys_errno, ENOENT);
}

static void test_codes_of_errno(void **state)
{
    (void)state;
    static const struct {
        int sys;
        enum err_code code;
    } cases[] = {
        {ENOENT, ERR_NOT_FOUND},    {EEXIST, ERR_EXISTS},      {ENOSPC, ERR_EXHAUSTED},
        {EDQUOT, ERR_EXHAUSTED},    {EMFILE, ERR_EXHAUSTED},   {ENOMEM, ERR_EXHAUSTED},
        {ECANCELED, ERR_CANCELLED}, {ETIMEDOUT, ERR_DEADLINE}, {EACCES, ERR_DENIED},
        {EPERM, ERR_DENIED},        {EIO, ERR_INTERNAL},       {0, ERR_INTERNAL},
        {123456, ERR_INTERNAL},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        auto_err struct err err = ERR_INIT;
        (void)err_sys(&err, cases[i].sys, "x");
        assert_int_equal(err.code, cases[i].code);
    }
}

static void test_replacing_and_moving(void **state)
{
    (void)state;
    auto_err struct err a = ERR_INIT;
    auto_err struct err b = ERR_INIT;
    (void)err_sys(&a, EIO, "first");
    (void)err_set(&a, ERR_INVALID, "second, which was \"%s\"", err_msg(&a));
    assert_string_equal(err_msg(&a), "second, which was \"first: Input/output error\"");
    assert_int_equal(a.sys_errno, 0);
    (void)err_set(&b, ERR_EXISTS, "old");
    assert_int_equal(err_move(&b, &a), -1);
    assert_int_equal(a.code, ERR_OK);
    assert_null(a.msg);
    assert_int_equal(b.code, ERR_INVALID);
    (void)err_move(&b, &b);
    assert_int_equal(b.code, ERR_INVALID);
    assert_int_equal(err_move(NULL, &b), -1);
    assert_int_equal(b.code, ERR_OK);
    assert_string_equal(err_msg(&b), "no error");
}

static void test_nobody_cares(void **state)
{
    (void)state;
    assert_int_equal(err_set(NULL, ERR_INVALID, "x"), -1);
    assert_int_equal(err_sys(NULL, EIO, "x"), -1);
    assert_int_equal(err_wrap(NULL, "x"), -1);
    assert_int_equal(err_append(NULL, "x"), -1);
    err_clear(NULL);
    assert_string_equal(err_msg(NULL), "no error");
    auto_err struct err err = ERR_INIT;
    (void)err_wrap(&err, "step");
    (void)err_append(&err, "tail");
    assert_int_equal(err.code, ERR_OK);
    assert_null(err.msg);
    /* "an error of code OK" is a caller's slip and still an error */
    (void)err_set(&err, ERR_OK, "odd");
    assert_int_equal(err.code, ERR_UNKNOWN);
}

static void test_names_of_codes(void **state)
{
    (void)state;
    assert_string_equal(err_code_name(ERR_OK), "OK");
    assert_string_equal(err_code_name(ERR_NOT_FOUND), "NOT_FOUND");
    assert_string_equal(err_code_name(ERR_UNAUTHENTICATED), "UNAUTHENTICATED");
    assert_string_equal(err_code_name((enum err_code)17), "UNKNOWN");
    assert_string_equal(err_code_name((enum err_code) - 1), "UNKNOWN");
}

static int gives_up(int *closed_fd)
{
    auto_close int fd = dup(0);
    *closed_fd = fd;
    errno = EXDEV;
    return -1;
}

static void test_cleanup_keeps_errno_and_take_empties(void **state)
{
    (void)state;
    int fd = -1;
    (void)gives_up(&fd);
    assert_int_equal(errno, EXDEV);
    assert_int_equal(fcntl(fd, F_GETFD), -1);
    auto_free char *p = strdup("x");
    char *q = take(p);
    assert_null(p);
    assert_string_equal(q, "x");
    free(q);
    int n = 5;
    assert_int_equal(take_fd(&n), 5);
    assert_int_equal(n, -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_from_the_outside_in),
        cmocka_unit_test(test_codes_of_errno),
        cmocka_unit_test(test_replacing_and_moving),
        cmocka_unit_test(test_nobody_cares),
        cmocka_unit_test(test_names_of_codes),
        cmocka_unit_test(test_cleanup_keeps_errno_and_take_empties),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
