/* base/loop: descriptors, timers, removal from anywhere, work from other threads. */
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>

#include <cmocka.h>

#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/loop.h"

#define MS 1000000LL

struct seen {
    int calls;
    uint32_t events;
    struct loop_source *other;
    bool remove_self;
};

static void on_fd(struct loop_source *src, uint32_t events, void *arg)
{
    struct seen *s = arg;
    s->calls++;
    s->events = events;
    loop_remove(s->other);
    if (s->remove_self) {
        loop_remove(src);
        loop_remove(src);
    }
}

static void on_timer(struct loop_source *src, void *arg)
{
    struct seen *s = arg;
    s->calls++;
    if (s->remove_self)
        loop_remove(src);
}

static void test_descriptors(void **state)
{
    (void)state;
    struct loop *l = loop_new(NULL);
    auto_close int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct seen s = {0};
    struct loop_source *src = loop_add_fd(l, fd, EPOLLIN, on_fd, &s, NULL);
    assert_non_null(src);
    loop_turn(l, 0);
    assert_int_equal(s.calls, 0);
    (void)eventfd_write(fd, 1);
    loop_turn(l, 1000);
    loop_turn(l, 1000); /* level-triggered */
    assert_int_equal(s.calls, 2);
    assert_int_equal(s.events, EPOLLIN);
    assert_int_equal(loop_set_events(src, EPOLLOUT), 0);
    loop_turn(l, 1000);
    assert_int_equal(s.events, EPOLLOUT);
    assert_int_equal(loop_set_events(src, 0), 0);
    loop_turn(l, 0);
    assert_int_equal(s.calls, 3);
    loop_remove(src);
    assert_int_not_equal(fcntl(fd, F_GETFD), -1); /* never closes what it watches */
    loop_free(l);
    loop_free(NULL);
}

static void test_a_descriptor_that_cannot_be_watched(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    struct loop *l = loop_new(NULL);
    assert_null(loop_add_fd(l, 9999, EPOLLIN, on_fd, NULL, &err));
    assert_non_null(strstr(err_msg(&err), "9999"));
    loop_free(l);
}

static void test_removal_is_final(void **state)
{
    (void)state;
    struct loop *l = loop_new(NULL);
    auto_close int a = eventfd(1, EFD_CLOEXEC);
    auto_close int b = eventfd(1, EFD_CLOEXEC);
    /* both are ready in one turn; each removes the other: only one may be called */
    struct seen sa = {0};
    struct seen sb = {0};
    sb.other = loop_add_fd(l, a, EPOLLIN, on_fd, &sa, NULL);
    sa.other = loop_add_fd(l, b, EPOLLIN, on_fd, &sb, NULL);
    loop_turn(l, 1000);
    assert_int_equal(sa.calls + sb.calls, 1);
    struct loop_source *left = sa.calls > 0 ? sb.other : sa.other;
    sa.other = sb.other = NULL;
    loop_remove(left);
    struct seen self = {.remove_self = true};
    assert_non_null(loop_add_fd(l, a, EPOLLIN, on_fd, &self, NULL));
    loop_turn(l, 1000);
    loop_turn(l, 0);
    assert_int_equal(self.calls, 1);
    loop_free(l);
}

static void test_timers(void **state)
{
    (void)state;
    struct loop *l = loop_new(NULL);
    struct seen s = {0};
    int64_t begin = mono_ns();
    struct loop_source *t = loop_add_timer(l, 20 * MS, on_timer, &s, NULL);
    while (s.calls == 0)
        loop_turn(l, 1000);
    assert_true(mono_ns() - begin >= 20 * MS);
    loop_turn(l, 30);
    assert_int_equal(s.calls, 1); /* once */
    assert_int_equal(loop_set_timer(t, 0), 0);
    loop_turn(l, 1000);
    assert_int_equal(s.calls, 2);
    assert_int_equal(loop_set_timer(t, 1 * MS), 0);
    assert_int_equal(loop_set_timer(t, -1), 0);
    loop_turn(l, 30);
    assert_int_equal(s.calls, 2);
    s.remove_self = true;
    (void)loop_set_timer(t, 0);
    loop_turn(l, 1000);
    assert_int_equal(s.calls, 3);
    /* one that is still armed goes with the loop */
    assert_non_null(loop_add_timer(l, 60000 * MS, on_timer, &s, NULL));
    loop_free(l);
}

struct running {
    struct loop *loop;
    pthread_t thread;
    int order[4];
    int n;
    int called, posted; /* changed on the loop's thread only */
    bool was_current;
};

static void *run_loop(void *arg)
{
    loop_run(((struct running *)arg)->loop);
    return NULL;
}

static void start(struct running *r)
{
    r->loop = loop_new(NULL);
    assert_int_equal(pthread_create(&r->thread, NULL, run_loop, r), 0);
}

static void stop(struct running *r)
{
    loop_stop(r->loop);
    assert_int_equal(pthread_join(r->thread, NULL), 0);
}

static void count_post(void *arg)
{
    ((struct running *)arg)->posted++;
}

static void count_call(void *arg)
{
    struct running *r = arg;
    r->called++;
    r->was_current = loop_is_current(r->loop);
    loop_call(r->loop, count_post, r); /* on its own thread: at once, no deadlock */
}

static void *caller(void *arg)
{
    struct running *r = arg;
    for (int i = 0; i < 500; i++) {
        loop_post(r->loop, count_post, r);
        loop_call(r->loop, count_call, r);
    }
    return NULL;
}

static void test_work_from_many_threads(void **state)
{
    (void)state;
    struct running r = {0};
    start(&r);
    pthread_t t[4];
    for (size_t i = 0; i < ARRAY_LEN(t); i++)
        assert_int_equal(pthread_create(&t[i], NULL, caller, &r), 0);
    for (size_t i = 0; i < ARRAY_LEN(t); i++)
        assert_int_equal(pthread_join(t[i], NULL), 0);
    assert_false(loop_is_current(r.loop));
    /* every loop_call() has returned, so every call has run */
    assert_int_equal(r.called, 2000);
    assert_int_equal(r.posted, 4000);
    assert_true(r.was_current);
    stop(&r);
    loop_free(r.loop);
}

struct step {
    struct running *r;
    int number;
};

static void note(void *arg)
{
    struct step *s = arg;
    s->r->order[s->r->n++] = s->number;
}

static void test_posts_keep_their_order_and_run_before_the_end(void **state)
{
    (void)state;
    struct running r = {.loop = loop_new(NULL)};
    struct step steps[4] = {{&r, 1}, {&r, 2}, {&r, 3}, {&r, 4}};
    for (size_t i = 0; i < 3; i++)
        loop_post(r.loop, note, &steps[i]);
    loop_turn(r.loop, 0);
    assert_int_equal(r.n, 3);
    loop_post(r.loop, note, &steps[3]);
    loop_free(r.loop);
    assert_int_equal(r.n, 4);
    for (int i = 0; i < 4; i++)
        assert_int_equal(r.order[i], i + 1);
}

struct removal {
    struct loop_source *src;
};

static void remove_it(void *arg)
{
    loop_remove(((struct removal *)arg)->src);
}

/* As owners do: added from one thread, firing on the loop's, removed by loop_call(); afterwards the
 * state that the callback uses is gone. */
static void *add_and_remove(void *arg)
{
    struct running *r = arg;
    for (int i = 0; i < 200; i++) {
        struct seen *s = calloc(1, sizeof(*s));
        int fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
        struct removal a = {loop_add_fd(r->loop, fd, EPOLLIN, on_fd, s, NULL)};
        struct removal b = {loop_add_timer(r->loop, 0, on_timer, s, NULL)};
        loop_call(r->loop, remove_it, &a);
        loop_call(r->loop, remove_it, &b);
        (void)close(fd);
        free(s);
    }
    return NULL;
}

static void test_sources_come_and_go_from_other_threads(void **state)
{
    (void)state;
    struct running r = {0};
    start(&r);
    pthread_t t[3];
    for (size_t i = 0; i < ARRAY_LEN(t); i++)
        assert_int_equal(pthread_create(&t[i], NULL, add_and_remove, &r), 0);
    for (size_t i = 0; i < ARRAY_LEN(t); i++)
        assert_int_equal(pthread_join(t[i], NULL), 0);
    stop(&r);
    /* a stopped loop may run again */
    assert_int_equal(pthread_create(&r.thread, NULL, run_loop, &r), 0);
    loop_call(r.loop, count_call, &r);
    assert_int_equal(r.called, 1);
    stop(&r);
    loop_free(r.loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_descriptors),
        cmocka_unit_test(test_a_descriptor_that_cannot_be_watched),
        cmocka_unit_test(test_removal_is_final),
        cmocka_unit_test(test_timers),
        cmocka_unit_test(test_work_from_many_threads),
        cmocka_unit_test(test_posts_keep_their_order_and_run_before_the_end),
        cmocka_unit_test(test_sources_come_and_go_from_other_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
