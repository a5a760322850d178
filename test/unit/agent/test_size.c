#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "agent/huge_pages.h"
#include "agent/size.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"

/* The server's side, which these tests do not need. */
void rpc_reply(struct rpc_call *call, const ProtobufCMessage *reply)
{
    (void)call;
    (void)reply;
}

void rpc_fail(struct rpc_call *call, const struct err *err)
{
    (void)call;
    (void)err;
}

int rpc_stream_send(struct rpc_call *call, const ProtobufCMessage *message)
{
    (void)call;
    (void)message;
    return 0;
}

void rpc_call_notify(struct rpc_call *call, void (*gone)(void *arg), void (*writable)(void *arg),
                     void *arg)
{
    (void)call;
    (void)gone;
    (void)writable;
    (void)arg;
}

static void meminfo(void **state)
{
    (void)state;
    static const char text[] = "MemTotal:        1009804 kB\nMemFree:          964276 kB\n"
                               "MemAvailable:     957068 kB\nHugePages_Total:       0\n";
    assert_int_equal(size_meminfo(text, "MemTotal"), UINT64_C(1009804) * 1024);
    assert_int_equal(size_meminfo(text, "MemFree"), UINT64_C(964276) * 1024);
    assert_int_equal(size_meminfo(text, "MemAvailable"), UINT64_C(957068) * 1024);
    assert_int_equal(size_meminfo(text, "Mem"), 0);
    assert_int_equal(size_meminfo(text, "Swap"), 0);
    assert_int_equal(size_meminfo("", "MemTotal"), 0);
}

static void put(const char *dir, const char *name, const char *text)
{
    auto_free char *path = fs_format("%s/%s", dir, name);
    assert_return_code(fs_write_atomic(path, text, strlen(text), 0600, false, NULL), 0);
}

/* What was reserved by others stays, and what is only kept by its users is nobody's. */
static void reserving(void **state)
{
    (void)state;
    char dir[] = "/tmp/aspis-huge-XXXXXX";
    assert_non_null(mkdtemp(dir));
    uint64_t ours = 0;
    put(dir, "nr_hugepages", "5\n");
    put(dir, "surplus_hugepages", "2\n");
    assert_int_equal(huge_pages_reserve_in(dir, &ours, MiB(7)),
                     MiB(4)); /* 2 of the 7 are surplus */
    put(dir, "surplus_hugepages", "0\n");
    auto_free char *path = fs_format("%s/nr_hugepages", dir);
    auto_free char *text = fs_read(path, 16, NULL, NULL);
    assert_string_equal(text, "7\n"); /* 3 of others */
    assert_int_equal(ours, MiB(4));
    ours = MiB(8);
    assert_int_equal(huge_pages_reserve_in(dir, &ours, MiB(8)), MiB(8));
    assert_int_equal(huge_pages_reserve_in(dir, &ours, 0), 0);
    auto_free char *after = fs_read(path, 16, NULL, NULL);
    assert_string_equal(after, "3\n");
    assert_int_equal(huge_pages_reserve_in("/nowhere", &ours, MiB(2)), 0);
    assert_return_code(fs_rm_rf(dir, NULL), 0);
}

/* Between the point where containers are slowed down and the end of memory there is room, and when
 * they get there without caches, what is left is below the mark. */
static void marks(void **state)
{
    (void)state;
    for (uint64_t total = MiB(128); total <= GiB(1024); total *= 2) {
        uint64_t kernel = MiB(32);
        uint64_t high = size_high(total, total - kernel, 0);
        assert_true(high < total - kernel);
        assert_true(high > total / 2);
        uint64_t left = total - kernel - high;
        assert_true(left >= MiB(24));
        assert_true(left < size_low_mark(total));
        /* the same whatever part of it is in use already */
        assert_int_equal(size_high(total, total - kernel - MiB(40), MiB(40)), high);
    }
    /* nothing is free: they may go on a little, rather than not at all */
    assert_int_equal(size_high(MiB(128), 0, 0), MiB(16));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(meminfo),
        cmocka_unit_test(marks),
        cmocka_unit_test(reserving),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
