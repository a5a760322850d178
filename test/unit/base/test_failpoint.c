/* base/failpoint, compiled in here whatever the build's option says. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cancel.h"
#include "base/failpoint.h"
#include "base/fs.h"

static void set(const char *spec)
{
    (void)setenv("ASPIS_FAILPOINTS", spec, 1);
}

static void test_names(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    (void)unsetenv("ASPIS_FAILPOINTS");
    assert_int_equal(FAILPOINT("a.b", &err), 0);
    set("a.b=error;c=error");
    assert_int_equal(FAILPOINT("a.b", &err), -1);
    assert_string_equal(err_msg(&err), "failpoint a.b");
    assert_int_equal(err.code, ERR_INTERNAL);
    assert_int_equal(FAILPOINT("c", NULL), -1);
    assert_int_equal(FAILPOINT("a", NULL), 0);
    assert_int_equal(FAILPOINT("a.b.c", NULL), 0);
    set("=;;a;a.b;rubbish=;a.b=nonsense");
    assert_int_equal(FAILPOINT("a.b", NULL), 0);
}

static void test_counts(void **state)
{
    (void)state;
    set("n=2*error");
    assert_int_equal(FAILPOINT("n", NULL), -1);
    assert_int_equal(FAILPOINT("n", NULL), -1);
    assert_int_equal(FAILPOINT("n", NULL), 0);
}

static void test_delay(void **state)
{
    (void)state;
    set("d=delay:50");
    int64_t begin = mono_ns();
    assert_int_equal(FAILPOINT("d", NULL), 0);
    assert_true(mono_ns() - begin >= 50000000);
}

static void test_crash(void **state)
{
    (void)state;
    set("k=crash");
    pid_t pid = fork();
    if (pid == 0)
        _exit(FAILPOINT("k", NULL));
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void test_file_is_read_each_time(void **state)
{
    (void)state;
    char path[] = "/tmp/aspis-failpoint-XXXXXX";
    int fd = mkstemp(path);
    (void)close(fd);
    (void)setenv("ASPIS_FAILPOINTS_FILE", path, 1);
    set("f=error"); /* does not count beside a file */
    assert_int_equal(FAILPOINT("f", NULL), 0);
    assert_int_equal(fs_write_str(path, "f=error\n", NULL), 0);
    assert_int_equal(FAILPOINT("f", NULL), -1);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(FAILPOINT("f", NULL), 0);
    (void)unsetenv("ASPIS_FAILPOINTS_FILE");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_counts),
        cmocka_unit_test(test_delay),
        cmocka_unit_test(test_crash),
        cmocka_unit_test(test_file_is_read_each_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
