/* cri/stats_check: what a hostile guest may say of itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <math.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "cri/stats_check.h"

static void test_links(void **state)
{
    (void)state;
    char good[] = "eth0";
    char other[] = "net1@if2";
    char empty[] = "";
    char quote[] = "a\"b";
    char sixteen[] = "0123456789abcdef";
    auto_free char *huge = calloc(1, MiB(1) + 1);
    memset(huge, 'x', MiB(1));
    char *names[] = {empty, good, quote, sixteen, huge, other};
    Aspis__Agent__V1__LinkStats rows[100];
    Aspis__Agent__V1__LinkStats *list[100];
    Aspis__Agent__V1__StatsResponse r = ASPIS__AGENT__V1__STATS_RESPONSE__INIT;
    for (size_t i = 0; i < 100; i++) {
        aspis__agent__v1__link_stats__init(&rows[i]);
        rows[i].name = i < ARRAY_LEN(names) ? names[i] : good;
        list[i] = &rows[i];
    }
    r.links = list;
    r.n_links = ARRAY_LEN(names);
    stats_check(&r);
    assert_int_equal(r.n_links, 2);
    assert_string_equal(r.links[0]->name, "eth0");
    assert_string_equal(r.links[1]->name, "net1@if2");
    for (size_t i = 0; i < 100; i++)
        list[i] = &rows[ARRAY_LEN(names)];
    r.n_links = 100;
    stats_check(&r);
    assert_int_equal(r.n_links, LIMIT_POD_INTERFACES);
}

static void test_groups(void **state)
{
    (void)state;
    Aspis__Agent__V1__StatsResponse r = ASPIS__AGENT__V1__STATS_RESPONSE__INIT;
    Aspis__Agent__V1__GroupStats g = ASPIS__AGENT__V1__GROUP_STATS__INIT;
    Aspis__Agent__V1__Pressure p = ASPIS__AGENT__V1__PRESSURE__INIT;
    Aspis__Agent__V1__PressureLine l = ASPIS__AGENT__V1__PRESSURE_LINE__INIT;
    auto_free Aspis__Agent__V1__GroupStats **many = calloc(1000, sizeof(*many));
    for (size_t i = 0; i < 1000; i++)
        many[i] = &g;
    l.avg10 = NAN;
    l.avg60 = -INFINITY;
    l.avg300 = 99.5;
    l.total_us = UINT64_MAX;
    p.some = &l;
    g.io_pressure = &p;
    g.n_io = 1000000; /* the list is only cut, not looked at */
    r.containers = many;
    r.n_containers = 1000;
    r.at_ns = UINT64_MAX;
    stats_check(&r);
    assert_int_equal(r.n_containers, LIMIT_AGENT_CONTAINERS);
    assert_int_equal(g.n_io, STATS_DEVICES);
    assert_true(l.avg10 == 0 && l.avg60 == 0 && l.avg300 > 99);
    assert_int_equal(r.at_ns, 0);
    /* nothing in it at all */
    Aspis__Agent__V1__StatsResponse none = ASPIS__AGENT__V1__STATS_RESPONSE__INIT;
    stats_check(&none);
    assert_int_equal(none.n_links, 0);
}

static void test_rates(void **state)
{
    (void)state;
    assert_int_equal(stats_rate(0, 500000000, 0, 1000000000), 500000000);
    assert_int_equal(stats_rate(100, 100, 5, 6), 0);
    assert_int_equal(stats_rate(100, 99, 5, 6), 0);
    assert_int_equal(stats_rate(0, 100, 6, 6), 0);
    assert_int_equal(stats_rate(0, 100, 7, 6), 0);
    assert_int_equal(stats_rate(0, UINT64_MAX, 0, 1), 0);
    assert_int_equal(stats_rate(0, 1000, INT64_MIN / 2, INT64_MAX / 2), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_links),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_rates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
