/* cri/ctl/follow: the CRI log format on its way to a terminal, growth, rotation, rubbish. */
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/fs.h"
#include "base/limits.h"
#include "cri/ctl/follow.h"

static char dir[64];
static char *path;
static int out = -1, errout = -1; /* files */
static struct follow *f;

static int open_file(const char *name)
{
    auto_free char *p = fs_format("%s/%s", dir, name);
    return open(p, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
}

static int setup(void **state)
{
    (void)state;
    (void)snprintf(dir, sizeof(dir), "/tmp/aspis-follow-XXXXXX");
    assert_non_null(mkdtemp(dir));
    path = fs_format("%s/0.log", dir);
    out = open_file("out");
    errout = open_file("err");
    auto_err struct err err = ERR_INIT;
    f = follow_open(path, out, errout, &err);
    assert_non_null(f);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    follow_close(f);
    (void)close(out);
    (void)close(errout);
    free(path);
    return fs_rm_rf(dir, NULL);
}

static void append(const char *text)
{
    auto_close int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(fs_write_fd(fd, text, strlen(text), NULL), 0);
}

static void expect(const char *stdout_text, const char *stderr_text)
{
    auto_err struct err err = ERR_INIT;
    assert_int_equal(follow_read(f, &err), 0);
    int fds[] = {out, errout};
    const char *want[] = {stdout_text, stderr_text};
    for (int i = 0; i < 2; i++) {
        char text[4096];
        ssize_t n = pread(fds[i], text, sizeof(text) - 1, 0);
        assert_true(n >= 0);
        text[n] = '\0';
        assert_string_equal(text, want[i]);
    }
}

#define T "2026-11-21T03:00:00.123456789Z "

static void test_format(void **state)
{
    (void)state;
    expect("", ""); /* not there yet */
    append(T "stdout F hello\n");
    expect("hello\n", "");
    append(T "stderr F oh\n" T "stdout P par");
    expect("hello\n", "oh\n");
    append("tial \n" T "stdout P ly\n" T "stdout F \n" T "stdout F \n");
    expect("hello\npartial ly\n\n", "oh\n");
    append(T "stdout F:x tagged\n");
    expect("hello\npartial ly\n\ntagged\n", "oh\n");
    append("rubbish\n");
    expect("hello\npartial ly\n\ntagged\nrubbish\n", "oh\n");
    append(T "stdout F\n");
    expect("hello\npartial ly\n\ntagged\nrubbish\n" T "stdout F\n", "oh\n");
}

static void test_rotation(void **state)
{
    (void)state;
    append(T "stdout F 1\n");
    expect("1\n", "");
    append(T "stdout F 2\n");
    auto_free char *old = fs_format("%s.20261121", path);
    assert_int_equal(rename(path, old), 0);
    expect("1\n2\n", "");
    append(T "stdout F 3\n");
    expect("1\n2\n3\n", "");
    append(T "stdout F 4\n");
    expect("1\n2\n3\n4\n", "");
}

static void test_wakes(void **state)
{
    (void)state;
    struct pollfd p = {.fd = follow_fd(f), .events = POLLIN};
    assert_int_equal(poll(&p, 1, 0), 0);
    append(T "stdout F 1\n");
    assert_int_equal(poll(&p, 1, 10000), 1);
    expect("1\n", "");
    while (poll(&p, 1, 0) > 0) /* our own output files are in the same directory */
        expect("1\n", "");
    append(T "stdout F 2\n");
    assert_int_equal(poll(&p, 1, 10000), 1);
    expect("1\n2\n", "");
}

static void test_endless_record(void **state)
{
    (void)state;
    auto_free char *text = malloc(MiB(2) + 1);
    memset(text, 'x', MiB(2));
    text[MiB(2)] = '\0';
    append(text);
    auto_err struct err err = ERR_INIT;
    assert_int_equal(follow_read(f, &err), -1);
    assert_int_equal(err.code, ERR_EXHAUSTED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_format, setup, teardown),
        cmocka_unit_test_setup_teardown(test_rotation, setup, teardown),
        cmocka_unit_test_setup_teardown(test_wakes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_endless_record, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
