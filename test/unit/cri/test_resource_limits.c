#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "cri/huge_pages.h"
#include "cri/resource_limits.h"

typedef Runtime__V1__LinuxContainerResources Resources;
typedef Runtime__V1__LinuxContainerResources__UnifiedEntry Entry;

static char *own(const char *s)
{
    return __extension__(char *)(uintptr_t) s;
}

static Entry entry(const char *key, const char *value)
{
    Entry e;
    runtime__v1__linux_container_resources__unified_entry__init(&e);
    e.key = own(key);
    e.value = own(value);
    return e;
}

static const char *value_of(const struct strv *keys, const struct strv *values, const char *key)
{
    for (size_t i = 0; i < keys->n; i++)
        if (strcmp(keys->v[i], key) == 0)
            return values->v[i];
    return "(none)";
}

static void files(void **state)
{
    (void)state;
    auto_strv struct strv keys = {0};
    auto_strv struct strv values = {0};
    Resources r;
    runtime__v1__linux_container_resources__init(&r);
    resource_limits_files(&r, &keys, &values);
    assert_int_equal(keys.n, 0);
    static const struct {
        int64_t shares;
        const char *weight;
    } weights[] = {{1, "1"}, {2, "1"}, {1024, "39"}, {262144, "10000"}, {INT64_MAX, "10000"}};
    for (size_t i = 0; i < ARRAY_LEN(weights); i++) {
        auto_strv struct strv k = {0};
        auto_strv struct strv v = {0};
        r.cpu_shares = weights[i].shares;
        resource_limits_files(&r, &k, &v);
        assert_string_equal(value_of(&k, &v, "cpu.weight"), weights[i].weight);
    }
    Entry high = entry("memory.high", "77");
    Entry *unified[] = {&high};
    r.cpu_quota = 150000;
    r.memory_limit_in_bytes = MiB(100);
    r.memory_swap_limit_in_bytes = MiB(130);
    r.unified = unified;
    r.n_unified = 1;
    resource_limits_files(&r, &keys, &values);
    assert_string_equal(value_of(&keys, &values, "cpu.max"), "150000 100000");
    assert_string_equal(value_of(&keys, &values, "memory.max"), "104857600");
    assert_string_equal(value_of(&keys, &values, "memory.swap.max"), "31457280");
    assert_string_equal(value_of(&keys, &values, "memory.high"), "77");
    assert_int_equal(keys.n, values.n);
    auto_strv struct strv k = {0};
    auto_strv struct strv v = {0};
    r.cpu_quota = -1;
    r.cpu_period = 50000;
    r.memory_limit_in_bytes = r.memory_swap_limit_in_bytes = -1;
    resource_limits_files(&r, &k, &v);
    assert_string_equal(value_of(&k, &v, "cpu.max"), "max 50000");
    assert_string_equal(value_of(&k, &v, "memory.max"), "max");
    assert_string_equal(value_of(&k, &v, "memory.swap.max"), "max");
}

static void merging(void **state)
{
    (void)state;
    Resources a;
    Resources b;
    runtime__v1__linux_container_resources__init(&a);
    runtime__v1__linux_container_resources__init(&b);
    assert_null(resource_limits_merge(NULL, NULL));
    Entry x = entry("pids.max", "1");
    Entry y = entry("memory.high", "2");
    Entry z = entry("pids.max", "3");
    Entry *in_a[] = {&x};
    Entry *in_b[] = {&y, &z};
    a.cpu_shares = 10;
    a.memory_limit_in_bytes = 11;
    a.cpuset_cpus = own("0");
    a.oom_score_adj = 5;
    a.unified = in_a;
    a.n_unified = 1;
    b.cpu_quota = 20;
    b.memory_limit_in_bytes = 21;
    b.cpuset_mems = own("1");
    b.oom_score_adj = 6;
    b.unified = in_b;
    b.n_unified = 2;
    Resources *m = resource_limits_merge(&a, &b);
    assert_non_null(m);
    assert_int_equal(m->cpu_shares, 10);
    assert_int_equal(m->cpu_quota, 20);
    assert_int_equal(m->memory_limit_in_bytes, 21);
    assert_int_equal(m->oom_score_adj, 6);
    assert_string_equal(m->cpuset_cpus, "0");
    assert_string_equal(m->cpuset_mems, "1");
    assert_int_equal(m->n_unified, 2);
    assert_string_equal(m->unified[0]->value, "3");
    assert_string_equal(m->unified[1]->key, "memory.high");
    protobuf_c_message_free_unpacked(&m->base, NULL);
    m = resource_limits_merge(NULL, &b);
    assert_int_equal(m->cpu_quota, 20);
    protobuf_c_message_free_unpacked(&m->base, NULL);
    m = resource_limits_merge(&a, NULL);
    assert_int_equal(m->cpu_shares, 10);
    protobuf_c_message_free_unpacked(&m->base, NULL);
}

static void huge_pages(void **state)
{
    (void)state;
    static const struct {
        const char *size;
        uint64_t limit;
        bool ok, in_vm;
    } cases[] = {
        {"2MB", MiB(4), true, true},
        {"2MB", 0, true, true},
        {"2MB", MiB(3), false, true},
        {"1GB", GiB(2), true, false},
        {"1GB", 0, true, true},
        {"64KB", KiB(64), true, false},
        {"2M", MiB(2), false, true},
        {"MB", 0, false, true},
        {"2 MB", 0, false, true},
        {"", 0, false, true},
        {"0MB", 0, false, true},
        {"99999999MB", 0, false, true},
        {"2MB", GiB(1) << 21, false, true},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        Resources r;
        Runtime__V1__HugepageLimit l;
        Runtime__V1__HugepageLimit *list[] = {&l};
        auto_err struct err err = ERR_INIT;
        runtime__v1__linux_container_resources__init(&r);
        runtime__v1__hugepage_limit__init(&l);
        l.page_size = own(cases[i].size);
        l.limit = cases[i].limit;
        r.hugepage_limits = list;
        r.n_hugepage_limits = 1;
        assert_int_equal(huge_pages_check(&r, &err) == 0, cases[i].ok);
        if (!cases[i].ok)
            continue;
        assert_int_equal(huge_pages_check_backend(&r, BACKEND_VM, &err) == 0, cases[i].in_vm);
        assert_int_equal(huge_pages_bytes(&r), strcmp(l.page_size, "2MB") == 0 ? l.limit : 0);
    }
    assert_int_equal(huge_pages_bytes(NULL), 0);
}

static void huge_pages_size_by_size(void **state)
{
    (void)state;
    Resources a;
    Resources b;
    Runtime__V1__HugepageLimit small;
    Runtime__V1__HugepageLimit large;
    runtime__v1__linux_container_resources__init(&a);
    runtime__v1__linux_container_resources__init(&b);
    runtime__v1__hugepage_limit__init(&small);
    runtime__v1__hugepage_limit__init(&large);
    small.page_size = own("2MB");
    small.limit = MiB(2);
    large.page_size = own("1GB");
    Runtime__V1__HugepageLimit *in_a[] = {&small};
    Runtime__V1__HugepageLimit more = small;
    more.limit = MiB(8);
    Runtime__V1__HugepageLimit *in_b[] = {&large, &more};
    a.hugepage_limits = in_a;
    a.n_hugepage_limits = 1;
    Resources *m = resource_limits_merge(&a, &b);
    assert_int_equal(huge_pages_bytes(m), MiB(2));
    protobuf_c_message_free_unpacked(&m->base, NULL);
    b.hugepage_limits = in_b;
    b.n_hugepage_limits = 2;
    m = resource_limits_merge(&a, &b);
    assert_int_equal(m->n_hugepage_limits, 2);
    assert_int_equal(huge_pages_bytes(m), MiB(8));
    auto_strv struct strv keys = {0};
    auto_strv struct strv values = {0};
    huge_pages_files(m, BACKEND_VM, &keys, &values);
    assert_int_equal(keys.n, 1); /* a size that guests do not have is 0 and left out */
    assert_string_equal(keys.v[0], "hugetlb.2MB.max");
    assert_string_equal(values.v[0], "8388608");
    json_auto_t *spec = huge_pages_spec(m, BACKEND_VM);
    assert_int_equal(json_array_size(spec), 1);
    assert_null(huge_pages_spec(NULL, BACKEND_VM));
    protobuf_c_message_free_unpacked(&m->base, NULL);
}

static void reading_back(void **state)
{
    (void)state;
    assert_true(resource_limits_as_written("cpu.max", "max 100000", "max 100000"));
    assert_false(resource_limits_as_written("cpu.max", "1 2", "1 3"));
    assert_true(resource_limits_as_written("memory.max", "1000000", "999424"));
    assert_false(resource_limits_as_written("memory.max", "1000000", "990000"));
    assert_false(resource_limits_as_written("memory.max", "1000000", "1003520"));
    assert_false(resource_limits_as_written("memory.max", "1000000", "max"));
    assert_false(resource_limits_as_written("pids.max", "5000", "4999"));
    assert_false(resource_limits_as_written("pids.max", "5", ""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files),        cmocka_unit_test(merging),
        cmocka_unit_test(huge_pages),   cmocka_unit_test(huge_pages_size_by_size),
        cmocka_unit_test(reading_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
