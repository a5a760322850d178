/* Which container gets which vCPUs, and where those run: worked examples, and for random sets that
 * nobody ever runs outside of its own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/str.h"
#include "cri/cpu_map.h"

static void expect(const struct cpu_want *want, size_t n, const char *all, uint32_t need,
                   uint32_t vcpus, const char *const *pins, const char *const *lists)
{
    auto_err struct err err = ERR_INIT;
    auto_cpu_map struct cpu_map m = {0};
    uint32_t got = 99;
    assert_return_code(cpu_map_need(want, n, all, &got, &err), 0);
    assert_int_equal(got, need);
    assert_return_code(cpu_map_make(want, n, all, vcpus, &m, &err), 0);
    assert_int_equal(m.pins != NULL, pins != NULL);
    for (uint32_t i = 0; pins != NULL && i < vcpus; i++)
        assert_string_equal(m.pins[i], pins[i]);
    for (size_t i = 0; i < n; i++)
        assert_string_equal(m.lists[i], lists[i]);
}
#define WANT(...) ((const struct cpu_want[]){__VA_ARGS__})
#define LISTS(...) ((const char *const[]){__VA_ARGS__})

static void nothing_asked_for(void **state)
{
    (void)state;
    expect(WANT({"", 500}, {"", 0}), 2, "0-3", 0, 1, NULL, LISTS("", ""));
    expect(NULL, 0, "0-3", 0, 1, NULL, NULL);
}

/* The VM as a whole is kept to it; the guest may have as many vCPUs as the containers want. */
static void one_set(void **state)
{
    (void)state;
    expect(WANT({"2-3", 2000}), 1, "0-7", 2, 2, NULL, LISTS(""));
    expect(WANT({"2,3", 500}, {"2-3", 600}), 2, "0-7", 2, 2, NULL, LISTS("", ""));
    expect(WANT({"2-3", 9000}), 1, "0-7", 2, 5, NULL, LISTS(""));
}

/* kubelet's static CPU manager. */
static void exclusive_and_shared(void **state)
{
    (void)state;
    expect(WANT({"2-3", 2000}, {"0-1,4-7", 300}, {"0-1,4-7", 300}), 3, "0-7", 3, 3,
           LISTS("0-1,4-7", "2-3", "2-3"), LISTS("1-2", "0", "0"));
    expect(WANT({"2", 1000}, {"3", 1000}, {"0-1", 0}), 3, "0-3", 3, 4,
           LISTS("0-1", "0-1", "2", "3"), LISTS("2", "3", "0-1"));
    /* before kubelet has taken the exclusive CPUs out of the pool */
    expect(WANT({"2-3", 2000}, {"0-7", 1000}), 2, "0-7", 3, 3, LISTS("0-1,4-7", "2-3", "2-3"),
           LISTS("1-2", ""));
    /* one that may run anywhere has a vCPU that is nobody's */
    expect(WANT({"1", 0}, {"", 0}), 2, "0-1", 2, 2, LISTS("0", "1"), LISTS("1", ""));
}

static void more_is_spread(void **state)
{
    (void)state;
    expect(WANT({"0", 0}, {"1-3", 0}), 2, "0-3", 2, 4, LISTS("1-3", "1-3", "1-3", "0"),
           LISTS("3", "0-2"));
    expect(WANT({"0", 0}, {"1", 0}), 2, "0-1", 2, 4, LISTS("0", "0", "1", "1"),
           LISTS("0-1", "2-3"));
}

static void fewer_share(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    auto_cpu_map struct cpu_map m = {0};
    /* the second wants two of its own, and gets one */
    expect(WANT({"0", 0}, {"1-2", 2000}), 2, "0-3", 3, 2, LISTS("1-2", "0"), LISTS("1", "0"));
    /* and where there is only one, those who may share it do */
    expect(WANT({"0", 0}, {"", 0}), 2, "0-3", 2, 1, LISTS("0"), LISTS("", ""));
    assert_int_equal(cpu_map_make(WANT({"0", 0}, {"1", 0}, {"2", 0}), 3, "0-3", 2, &m, &err), -1);
    assert_int_equal(err.code, ERR_PRECONDITION);
    assert_non_null(strstr(err_msg(&err), "take 3 vcpus, the vm can have 2"));
}

static void lists_that_are_none(void **state)
{
    (void)state;
    static const char *const bad[] = {"a",    "1-",         "-1",  "3-1", "1,,2",
                                      "1024", "0-99999999", "1 2", ","};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        auto_err struct err err = ERR_INIT;
        uint32_t n;
        assert_int_equal(cpu_map_need(WANT({bad[i], 0}), 1, "0", &n, &err), -1);
        assert_int_equal(err.code, ERR_INVALID);
    }
    assert_true(cpu_map_same("0,1,2", "0-2") && cpu_map_same("2,1", "1-2"));
    assert_false(cpu_map_same("0", "0-1") || cpu_map_same("x", "x"));
}

#define CPUS 8

static unsigned bits(const char *list, unsigned any)
{
    unsigned out = 0;
    for (unsigned i = 0; i < 32; i++) {
        for (const char *p = list; *p != '\0'; p += strcspn(p, ",") + (strchr(p, ',') != NULL)) {
            unsigned from = (unsigned)strtoul(p, NULL, 10);
            size_t dash = strcspn(p, "-,");
            unsigned to = p[dash] == '-' ? (unsigned)strtoul(p + dash + 1, NULL, 10) : from;
            out |= i >= from && i <= to ? 1U << i : 0;
        }
    }
    return *list == '\0' ? any : out;
}

static void nobody_leaves_his_set(void **state)
{
    (void)state;
    unsigned seed = 4711;
    for (int round = 0; round < 20000; round++) {
        struct cpu_want want[5];
        char text[5][32] = {""};
        size_t n = 1 + (size_t)(rand_r(&seed) % 5);
        for (size_t i = 0; i < n; i++) {
            for (unsigned c = 0; c < CPUS; c++) {
                char one[4];
                (void)snprintf(one, sizeof(one), "%s%u", text[i][0] != '\0' ? "," : "", c);
                if (rand_r(&seed) % 3 == 0)
                    (void)strcat(text[i], one);
            }
            want[i] = (struct cpu_want){text[i], (uint64_t)(rand_r(&seed) % 4) * 900};
        }
        auto_err struct err err = ERR_INIT;
        auto_cpu_map struct cpu_map m = {0};
        uint32_t vcpus = 0;
        assert_return_code(cpu_map_need(want, n, "0-7", &vcpus, &err), 0);
        assert_true(vcpus <= CPUS);
        vcpus += (uint32_t)(rand_r(&seed) % 3) + (vcpus == 0);
        assert_return_code(cpu_map_make(want, n, "0-7", vcpus, &m, &err), 0);
        for (size_t i = 0; i < n; i++) {
            unsigned mine = bits(want[i].cpus, 0xff);
            unsigned guest = bits(m.lists[i], 0xffffffff);
            assert_true((guest & ((1U << vcpus) - 1)) != 0);
            for (uint32_t v = 0; v < vcpus; v++) {
                if (m.pins != NULL && (guest & (1U << v)) != 0)
                    assert_int_equal(bits(m.pins[v], 0) & ~mine, 0);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nothing_asked_for),     cmocka_unit_test(one_set),
        cmocka_unit_test(exclusive_and_shared),  cmocka_unit_test(more_is_spread),
        cmocka_unit_test(fewer_share),           cmocka_unit_test(lists_that_are_none),
        cmocka_unit_test(nobody_leaves_his_set),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
