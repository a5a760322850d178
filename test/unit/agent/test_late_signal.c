#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/late_signal.h"
#include "base/cancel.h"

static const char *text(const char *nspid, const char *blocked, const char *ignored,
                        const char *caught)
{
    static char out[512];
    (void)snprintf(out, sizeof(out),
                   "Name:\tx\nNSpid:\t%s\nShdPnd:\t0000000000000000\nSigBlk:\t%s\nSigIgn:\t%s\n"
                   "SigCgt:\t%s\n",
                   nspid, blocked, ignored, caught);
    return out;
}

#define NONE "0000000000000000"
#define TERM "0000000000004000" /* bit 14 */

static void test_which_are_dropped(void **state)
{
    (void)state;
    assert_true(late_signal_dropped(text("4711\t1", NONE, NONE, NONE), SIGTERM));
    assert_false(late_signal_dropped(text("4711\t1", TERM, NONE, NONE), SIGTERM));
    assert_false(late_signal_dropped(text("4711\t1", NONE, TERM, NONE), SIGTERM));
    assert_false(late_signal_dropped(text("4711\t1", NONE, NONE, TERM), SIGTERM));
    assert_true(late_signal_dropped(text("4711\t1", TERM, NONE, TERM), SIGHUP));
    assert_false(late_signal_dropped(text("4711\t1", NONE, NONE, NONE), SIGKILL));
    /* no init: it dies of what it does not catch */
    assert_false(late_signal_dropped(text("4711\t11", NONE, NONE, NONE), SIGTERM));
    assert_false(late_signal_dropped(text("4711", NONE, NONE, NONE), SIGTERM));
    assert_false(late_signal_dropped("", SIGTERM));
}

static void leave(int sig)
{
    (void)sig;
    _exit(42);
}

/* The init of a namespace that catches SIGTERM `ms` after its start; -1: never. */
static pid_t start_init(int ms)
{
    pid_t pid = (pid_t)syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, NULL, NULL, NULL, 0);
    assert_true(pid >= 0);
    if (pid > 0)
        return pid;
    (void)poll(NULL, 0, ms);
    (void)signal(SIGTERM, leave); // NOLINT(cert-err33-c)
    for (;;)
        (void)pause();
}

static void test_handler_that_comes_late(void **state)
{
    (void)state;
    struct loop *loop = loop_new(NULL);
    struct late_signal *late = NULL;
    pid_t pid = start_init(150);
    int status = 0;
    assert_int_equal(late_signal_send(loop, &late, pid, SIGTERM, NULL), 0);
    assert_non_null(late); /* the first one was dropped */
    int64_t end = mono_ns() + LATE_SIGNAL_NS;
    while (late != NULL && mono_ns() < end)
        loop_turn(loop, 100);
    assert_null(late);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 42);
    loop_free(loop);
}

static void test_gives_up_with_its_process(void **state)
{
    (void)state;
    struct loop *loop = loop_new(NULL);
    struct late_signal *late = NULL;
    pid_t pid = start_init(-1);
    assert_int_equal(late_signal_send(loop, &late, pid, SIGTERM, NULL), 0);
    assert_non_null(late);
    assert_int_equal(late_signal_send(loop, &late, pid, SIGKILL, NULL), 0);
    assert_null(late); /* replaced by one that cannot be dropped */
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    late_signal_free(&late);
    loop_free(loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_which_are_dropped),
        cmocka_unit_test(test_handler_that_comes_late),
        cmocka_unit_test(test_gives_up_with_its_process),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
