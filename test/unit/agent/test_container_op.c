#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/container_op.h"
#include "base/cleanup.h"

static struct {
    int calls;
    struct op_result res;
    int fd;
    enum err_code code;
    char text[256];
} got;

static void done(void *arg, const struct op_result *res, int fd, const struct err *err)
{
    assert_ptr_equal(arg, &got);
    got.calls++;
    got.res = *res;
    got.fd = fd;
    got.code = err != NULL ? err->code : ERR_OK;
    (void)snprintf(got.text, sizeof(got.text), "%s", err != NULL ? err_msg(err) : "");
}

static void run(op_fn fn, void *arg, const int stdio_fds[3], int *trace)
{
    auto_err struct err err = ERR_INIT;
    int status = 0;
    int none[3] = {-1, -1, -1};

    memset(&got, 0, sizeof(got));
    got.fd = -1;
    struct op *op =
        op_start(stdio_fds != NULL ? stdio_fds : none, fn, arg, done, &got, trace, &err);
    assert_non_null(op);
    pid_t pid = op_pid(op);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    op_reaped(op, status);
    assert_int_equal(got.calls, 1);
}

static int succeed(void *arg, struct op_result *res, int *fd_out, struct err *err)
{
    (void)err;
    int fds[2];
    if (pipe(fds) < 0)
        return -1;
    if (write(fds[1], arg, strlen(arg)) < 0)
        return -1;
    *fd_out = fds[0];
    res->pid = 42;
    res->n_groups = LIMIT_USER_GROUPS;
    res->groups[LIMIT_USER_GROUPS - 1] = 7;
    return 0;
}

static void test_result(void **state)
{
    (void)state;
    char hello[] = "hello";
    char buf[16] = "";
    run(succeed, hello, NULL, NULL);
    assert_int_equal(got.code, ERR_OK);
    assert_int_equal(got.res.pid, 42);
    assert_int_equal(got.res.groups[LIMIT_USER_GROUPS - 1], 7);
    assert_true(got.fd >= 0);
    assert_int_equal(read(got.fd, buf, sizeof(buf)), 5);
    assert_string_equal(buf, "hello");
    (void)close(got.fd);
}

static int refuse(void *arg, struct op_result *res, int *fd_out, struct err *err)
{
    (void)arg;
    (void)res;
    (void)fd_out;
    (void)fprintf(stderr, "a word");
    return err_set(err, ERR_DENIED, "no way");
}

static int vanish(void *arg, struct op_result *res, int *fd_out, struct err *err)
{
    (void)arg;
    (void)res;
    (void)fd_out;
    (void)err;
    (void)raise(SIGKILL);
    return 0;
}

static void test_failures(void **state)
{
    (void)state;
    char buf[32] = "";
    int trace = -1;

    run(refuse, NULL, NULL, &trace);
    assert_int_equal(got.code, ERR_DENIED);
    assert_string_equal(got.text, "no way");
    assert_int_equal(read(trace, buf, sizeof(buf)), 6);
    assert_string_equal(buf, "a word");
    assert_int_equal(read(trace, buf, sizeof(buf)), 0);
    (void)close(trace);

    run(vanish, NULL, NULL, NULL);
    assert_int_equal(got.code, ERR_INTERNAL);
    assert_non_null(strstr(got.text, "signal 9"));
}

/* The trace pipe tells an exec from a failed one; nothing but 0, 1 and 2 gets through it. */
static int become(void *arg, struct op_result *res, int *fd_out, struct err *err)
{
    (void)res;
    (void)fd_out;
    char *argv[] = {arg, (char[]){"-c"}, (char[]){"echo /proc/$$/fd/*"}, NULL};
    execv(arg, argv);
    (void)fprintf(stderr, "%s: %s", (char *)arg, strerror(errno));
    return err_sys(err, errno, "exec");
}

static void test_exec_trace(void **state)
{
    (void)state;
    char sh[] = "/bin/sh";
    char nope[] = "/nope";
    char buf[512] = "";
    int trace = -1;
    int out[2];

    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    int leak = open("/dev/null", O_RDONLY); /* without close-on-exec, on purpose */
    run(become, sh, (int[]){-1, out[1], -1}, &trace);
    assert_int_equal(read(trace, buf, sizeof(buf)), 0);
    (void)close(trace);
    (void)close(out[1]);
    ssize_t n = read(out[0], buf, sizeof(buf) - 1);
    assert_true(n > 0);
    buf[n] = '\0';
    assert_non_null(strstr(buf, "/fd/0 "));
    assert_non_null(strstr(buf, "/fd/2"));
    assert_null(strstr(buf, "/fd/4"));
    assert_null(strstr(buf, "/fd/5"));
    (void)close(out[0]);
    (void)close(leak);

    run(become, nope, NULL, &trace);
    n = read(trace, buf, sizeof(buf) - 1);
    assert_true(n > 0);
    buf[n] = '\0';
    assert_string_equal(buf, "/nope: No such file or directory");
    assert_int_equal(got.code, ERR_NOT_FOUND);
    (void)close(trace);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_result),
        cmocka_unit_test(test_failures),
        cmocka_unit_test(test_exec_trace),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
