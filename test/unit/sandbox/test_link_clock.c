/* The guest's clock follows the host's, by what heartbeats carry. */
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/limits.h"
#include "link_fixture.h"
#include "proto/version.h"
#include "sandbox/link_impl.h"

#define MS 1000000LL
#define HOUR (3600 * 1000 * MS)

static void only_what_is_certain_is_corrected(void **state)
{
    (void)state;
    /* the answer was made at some time between these */
    const int64_t asked = HOUR;
    const int64_t answered = HOUR + 4 * MS;
    assert_int_equal(link_clock_behind(asked, answered, HOUR), 0);
    assert_int_equal(link_clock_behind(asked, answered, HOUR + 4 * MS), 0);
    assert_int_equal(link_clock_behind(asked, answered, HOUR - 3 * MS), 3 * MS);
    assert_int_equal(link_clock_behind(asked, answered, HOUR + 9 * MS), -5 * MS);
    /* not worth it */
    assert_int_equal(link_clock_behind(asked, answered, HOUR - MS / 10), 0);
    assert_int_equal(link_clock_behind(asked, answered, HOUR + 4 * MS + MS / 10), 0);
    /* whatever a guest says */
    assert_int_equal(link_clock_behind(asked, answered, 1), HOUR - 1);
    assert_int_equal(link_clock_behind(asked, answered, UINT64_MAX), answered - INT64_MAX);
}

static void up(struct guest *g, struct host *h)
{
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *c = cancel_new(mono_ns() + 20000 * MS, NULL);
    host_start(h, g->dir);
    if (link_wait_up(h->link, c, &err) < 0)
        fail_msg("%s", err_msg(&err));
}

/* The call has been answered when another one has been. */
static void settled(struct host *h)
{
    auto_arena struct arena *a = arena_new(MiB(1));
    auto_err struct err err = ERR_INIT;
    Aspis__Agent__V1__Empty e;
    aspis__agent__v1__empty__init(&e);
    for (int i = 0; i < 8; i++)
        if (link_call(h->link, "Ping", &e.base, &aspis__agent__v1__empty__descriptor, a, NULL,
                      &err) == NULL)
            fail_msg("%s", err_msg(&err));
}

static void near(struct guest *g)
{
    long long off = atomic_load(&g->clock_off);
    if (off > 100 * MS || off < -100 * MS) /* a busy machine */
        fail_msg("off by %lld ns", off);
}

/* Far off: at once. */
static void a_step(void **state)
{
    (void)state;
    struct guest g;
    struct host h;
    guest_start(&g);
    g.minor = PROTOCOL_MINOR;
    atomic_store(&g.clock_off, -HOUR);
    up(&g, &h);
    (void)link_probe(h.link);
    settled(&h);
    near(&g);
    assert_true(atomic_load(&g.clocks) >= 2 && atomic_load(&g.clocks) <= 4);
    /* the host's clock was set: no heartbeat is waited for */
    atomic_store(&g.clock_off, 2 * HOUR);
    link_clock_changed(h.link);
    settled(&h);
    near(&g);
    host_stop(&h);
    guest_stop(&g);
}

/* A little off: with the next heartbeat. */
static void a_slew(void **state)
{
    (void)state;
    struct guest g;
    struct host h;
    guest_start(&g);
    g.minor = PROTOCOL_MINOR;
    up(&g, &h);
    for (int i = 0; i < 20 && atomic_load(&g.adjusted) == 0; i++) {
        atomic_store(&g.clock_off, 8 * MS);
        (void)link_probe(h.link);
        settled(&h);
    }
    long long told = atomic_load(&g.adjusted);
    assert_true(told < 0 && told >= -8 * MS);
    host_stop(&h);
    guest_stop(&g);
}

static void a_liar_is_asked_no_more_than_others(void **state)
{
    (void)state;
    struct guest g;
    struct host h;
    guest_start(&g);
    g.minor = PROTOCOL_MINOR;
    g.liar = true;
    up(&g, &h);
    for (int i = 1; i <= 5; i++) {
        (void)link_probe(h.link);
        settled(&h);
        assert_int_equal(atomic_load(&g.clocks), 4 * i);
    }
    assert_int_equal(atomic_load(&h.broken), 0);
    host_stop(&h);
    guest_stop(&g);
}

/* It gets the Ping that it knows. */
static void an_older_agent(void **state)
{
    (void)state;
    struct guest g;
    struct host h;
    guest_start(&g);
    g.minor = 1;
    atomic_store(&g.clock_off, HOUR);
    up(&g, &h);
    (void)link_probe(h.link);
    link_clock_changed(h.link);
    settled(&h);
    assert_int_equal(atomic_load(&g.clocks), 0);
    assert_int_equal(atomic_load(&g.pings), 9);
    host_stop(&h);
    guest_stop(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_what_is_certain_is_corrected),
        cmocka_unit_test(a_step),
        cmocka_unit_test(a_slew),
        cmocka_unit_test(a_liar_is_asked_no_more_than_others),
        cmocka_unit_test(an_older_agent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
