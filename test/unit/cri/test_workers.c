/* cri/workers: jobs run at once up to the maximum, threads are used again and end when idle. */
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "cri/workers.h"

struct job {
    int go, started; /* eventfds */
    atomic_int done;
};

static void block(void *arg)
{
    struct job *j = arg;
    (void)eventfd_write(j->started, 1);
    struct pollfd p = {.fd = j->go, .events = POLLIN};
    (void)poll(&p, 1, 20000);
    atomic_fetch_add(&j->done, 1);
}

static void wait_for(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 20000), 1);
    eventfd_t v;
    assert_int_equal(eventfd_read(fd, &v), 0);
}

static void test_maximum(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    struct workers *w = workers_new(3, 1000000000, &err);
    assert_non_null(w);
    struct job j = {.go = eventfd(0, EFD_CLOEXEC),
                    .started = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE)};
    for (int i = 0; i < 3; i++)
        assert_int_equal(workers_run(w, block, &j), 0);
    for (int i = 0; i < 3; i++)
        wait_for(j.started);
    assert_int_equal(workers_running(w), 3);
    assert_int_equal(workers_run(w, block, &j), -1);
    assert_int_equal(eventfd_write(j.go, 1), 0); /* all may go on: nobody reads it */
    workers_free(w);                             /* waits for them */
    assert_int_equal(j.done, 3);
    (void)close(j.go);
    (void)close(j.started);
}

static void count(void *arg)
{
    atomic_fetch_add((atomic_int *)arg, 1);
}

static void test_reuse(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    struct workers *w = workers_new(2, 1000000000, &err);
    atomic_int n = 0;
    int refused = 0;
    for (int i = 0; i < 20000; i++)
        refused += workers_run(w, count, &n) < 0;
    workers_free(w);
    assert_int_equal(n + refused, 20000);
    assert_true(n > 0);
}

static int threads(void)
{
    auto_free char *text = fs_read("/proc/self/status", KiB(64), NULL, NULL);
    return atoi(strstr(text, "\nThreads:") + strlen("\nThreads:"));
}

static void test_idle_threads_end(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    struct workers *w = workers_new(4, 20000000, &err);
    int before = threads();
    struct job j = {.go = eventfd(0, EFD_CLOEXEC),
                    .started = eventfd(0, EFD_CLOEXEC | EFD_SEMAPHORE)};
    for (int i = 0; i < 4; i++)
        assert_int_equal(workers_run(w, block, &j), 0);
    for (int i = 0; i < 4; i++)
        wait_for(j.started);
    assert_int_equal(threads(), before + 4);
    assert_int_equal(eventfd_write(j.go, 1), 0);
    /* Each try waits a little without anything to wait for. */
    for (int i = 0; i < 1000 && threads() != before; i++)
        (void)poll(NULL, 0, 10);
    assert_int_equal(threads(), before);
    atomic_int n = 0;
    assert_int_equal(workers_run(w, count, &n), 0); /* and new ones are made */
    workers_free(w);
    assert_int_equal(n, 1);
    (void)close(j.go);
    (void)close(j.started);
    workers_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_maximum),
        cmocka_unit_test(test_reuse),
        cmocka_unit_test(test_idle_threads_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
