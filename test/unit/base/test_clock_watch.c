/* The wall clock is set, by a microsecond forth and back, which disturbs nobody. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <sys/timex.h>

#include "base/clock_watch.h"

static int told;

static void on_set(void *arg)
{
    (void)arg;
    told++;
}

static void set_by(long us)
{
    struct timex t = {.modes = ADJ_SETOFFSET,
                      .time = {.tv_sec = us < 0 ? -1 : 0, .tv_usec = us < 0 ? us + 1000000 : us}};
    if (adjtimex(&t) < 0 && errno == EPERM)
        skip();
}

static void tells_of_each_change(void **state)
{
    (void)state;
    struct loop *loop = loop_new(NULL);
    struct clock_watch *w = clock_watch_new(loop, on_set, NULL, NULL);
    assert_non_null(w);
    loop_turn(loop, 0);
    assert_int_equal(told, 0);
    set_by(1);
    loop_turn(loop, 1000);
    assert_int_equal(told, 1);
    loop_turn(loop, 0);
    assert_int_equal(told, 1);
    set_by(-1);
    loop_turn(loop, 1000);
    assert_int_equal(told, 2);
    clock_watch_free(w);
    loop_free(loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(tells_of_each_change)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
