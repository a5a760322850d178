/* base/cancel: tokens fire by hand, by deadline and through their parent; waiting ends with them.
 */
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/eventfd.h>

#include <cmocka.h>

#include "base/cancel.h"
#include "base/cleanup.h"

#define MS 1000000LL

static int readable(int fd, int timeout_ms)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, timeout_ms);
}

static void test_fires_by_hand(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *c = cancel_new(0, NULL);
    assert_non_null(c);
    assert_int_equal(cancel_deadline(c), 0);
    assert_int_equal(cancel_check(c, &err), 0);
    assert_false(cancel_fired(c));
    assert_int_equal(readable(cancel_fd(c), 0), 0);
    cancel_fire(c);
    cancel_fire(c);
    assert_true(cancel_fired(c));
    assert_int_equal(readable(cancel_fd(c), 0), 1);
    assert_int_equal(readable(cancel_fd(c), 0), 1); /* and stays so */
    assert_int_equal(cancel_check(c, &err), -1);
    assert_int_equal(err.code, ERR_CANCELLED);
}

static void test_none(void **state)
{
    (void)state;
    assert_int_equal(cancel_fd(NULL), -1);
    assert_int_equal(cancel_check(NULL, NULL), 0);
    assert_false(cancel_fired(NULL));
    assert_int_equal(cancel_deadline(NULL), 0);
    cancel_fire(NULL);
    cancel_unref(NULL);
    assert_null(cancel_ref(NULL));
    auto_close int fd = eventfd(1, EFD_CLOEXEC);
    assert_int_equal(cancel_poll(NULL, fd, POLLIN, -1, NULL), POLLIN);
    assert_int_equal(cancel_poll(NULL, -1, 0, 10, NULL), 0);
}

static void test_fires_at_its_deadline(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    int64_t end = mono_ns() + 50 * MS;
    auto_cancel struct cancel *c = cancel_new(end, NULL);
    assert_int_equal(cancel_deadline(c), end);
    assert_int_equal(cancel_check(c, &err), 0);
    assert_int_equal(cancel_poll(c, -1, 0, -1, &err), -1);
    assert_int_equal(err.code, ERR_DEADLINE);
    assert_true(mono_ns() >= end);
    assert_int_equal(readable(cancel_fd(c), 0), 1);
    auto_cancel struct cancel *past = cancel_new(1, NULL);
    assert_true(cancel_fired(past));
    assert_int_equal(readable(cancel_fd(past), 1000), 1);
}

static void test_child_follows_its_parent(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    struct cancel *parent = cancel_new(0, NULL);
    auto_cancel struct cancel *child = cancel_child(parent, mono_ns() + 60000 * MS, NULL);
    auto_cancel struct cancel *grandchild = cancel_child(child, 0, NULL);
    assert_non_null(grandchild);
    assert_int_equal(cancel_deadline(grandchild), cancel_deadline(child));
    cancel_fire(parent);
    cancel_unref(parent); /* the child holds it */
    assert_true(cancel_fired(child) && cancel_fired(grandchild));
    assert_int_equal(readable(cancel_fd(grandchild), 1000), 1);
    assert_int_equal(cancel_check(grandchild, &err), -1);
    assert_int_equal(err.code, ERR_CANCELLED);
}

static void test_parent_does_not_follow_its_child(void **state)
{
    (void)state;
    auto_cancel struct cancel *parent = cancel_new(0, NULL);
    auto_cancel struct cancel *child = cancel_child(parent, 0, NULL);
    cancel_fire(child);
    assert_true(cancel_fired(child));
    assert_false(cancel_fired(parent));
    assert_int_equal(readable(cancel_fd(parent), 0), 0);
}

static void test_the_earlier_deadline_counts(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    int64_t soon = mono_ns() + 30 * MS;
    auto_cancel struct cancel *parent = cancel_new(soon, NULL);
    auto_cancel struct cancel *child = cancel_child(parent, soon + 60000 * MS, NULL);
    assert_true(cancel_deadline(child) == soon);
    assert_int_equal(cancel_poll(child, -1, 0, 10000, &err), -1);
    assert_int_equal(err.code, ERR_DEADLINE);
}

static void test_poll(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *c = cancel_new(mono_ns() + 60000 * MS, NULL);
    auto_close int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int64_t begin = mono_ns();
    assert_int_equal(cancel_poll(c, fd, POLLIN, 30, &err), 0);
    assert_true(mono_ns() - begin >= 30 * MS);
    assert_int_equal(cancel_poll(c, fd, POLLIN, 0, &err), 0);
    assert_int_equal(cancel_poll(c, fd, POLLIN | POLLOUT, -1, &err), POLLOUT);
    assert_int_equal(eventfd_write(fd, 1), 0);
    assert_int_equal(cancel_poll(c, fd, POLLIN, -1, &err), POLLIN);
    /* the token comes first */
    cancel_fire(c);
    assert_int_equal(cancel_poll(c, fd, POLLIN, -1, &err), -1);
    assert_int_equal(err.code, ERR_CANCELLED);
}

static void *fire_later(void *arg)
{
    (void)poll(NULL, 0, 50);
    cancel_fire(arg);
    cancel_unref(arg);
    return NULL;
}

static void test_poll_is_woken_from_another_thread(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *parent = cancel_new(0, NULL);
    auto_cancel struct cancel *c = cancel_child(parent, 0, NULL);
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, fire_later, cancel_ref(parent)), 0);
    assert_int_equal(cancel_poll(c, -1, 0, 20000, &err), -1);
    assert_int_equal(err.code, ERR_CANCELLED);
    assert_int_equal(pthread_join(t, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fires_by_hand),
        cmocka_unit_test(test_none),
        cmocka_unit_test(test_fires_at_its_deadline),
        cmocka_unit_test(test_child_follows_its_parent),
        cmocka_unit_test(test_parent_does_not_follow_its_child),
        cmocka_unit_test(test_the_earlier_deadline_counts),
        cmocka_unit_test(test_poll),
        cmocka_unit_test(test_poll_is_woken_from_another_thread),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
