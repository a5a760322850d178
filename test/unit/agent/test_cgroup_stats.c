/* agent/cgroup_stats: the kernel's files as they are, as they are not, and as they should not be.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/cgroup_stats.h"
#include "base/cleanup.h"
#include "base/fs.h"

static char dir[64];

static void put(const char *name, const char *text)
{
    auto_free char *path = fs_format("%s/%s", dir, name);
    assert_int_equal(fs_write_atomic(path, text, strlen(text), 0644, false, NULL), 0);
}

static int make_dir(void **state)
{
    (void)state;
    (void)strcpy(dir, "/tmp/test_cgroup_stats.XXXXXX");
    return mkdtemp(dir) == NULL ? -1 : 0;
}

static int drop_dir(void **state)
{
    (void)state;
    return fs_rm_rf(dir, NULL);
}

static void test_all_files(void **state)
{
    (void)state;
    struct cgroup_stats s;
    put("cpu.stat", "usage_usec 5000001\nuser_usec 3000000\nsystem_usec 2000001\nnice_usec 0\n"
                    "nr_periods 50\nnr_throttled 7\nthrottled_usec 90\nnr_bursts 0\n");
    put("memory.current", "1048576\n");
    put("memory.peak", "2097152\n");
    put("memory.max", "max\n");
    put("memory.swap.current", "4096\n");
    put("memory.swap.max", "8192\n");
    put("memory.stat",
        "anon 1000\nfile 2000\nkernel 300\nkernel_stack 9\nfile_mapped 40\n"
        "inactive_anon 1\nactive_anon 2\ninactive_file 500\nactive_file 6\nshmem 70\n"
        "pgfault 80\npgmajfault 9\n");
    put("memory.events", "low 0\nhigh 0\nmax 11\noom 3\noom_kill 2\noom_group_kill 1\n");
    put("pids.current", "12\n");
    put("pids.max", "100\n");
    put("cgroup.procs", "10\n11\n");
    put("io.stat", "254:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n"
                   "7:0 \n"
                   "8:1 rbytes=18446744073709551615 wbytes=x\n");
    put("cpu.pressure", "some avg10=1.50 avg60=2.25 avg300=3.00 total=123456\n"
                        "full avg10=0.50 avg60=0.00 avg300=0.00 total=7\n");
    put("memory.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\n");
    auto_free char *sub = fs_format("%s/below/deeper", dir);
    assert_int_equal(fs_mkdir_p(sub, 0755, NULL), 0);
    put("below/cgroup.procs", "20\n");
    put("below/deeper/cgroup.procs", "30\n31\n");

    cgroup_stats_read(&s, dir);
    assert_int_equal(s.msg.cpu_usage_us, 5000001);
    assert_int_equal(s.msg.cpu_user_us, 3000000);
    assert_int_equal(s.msg.cpu_system_us, 2000001);
    assert_int_equal(s.msg.cpu_periods, 50);
    assert_int_equal(s.msg.cpu_throttled_periods, 7);
    assert_int_equal(s.msg.cpu_throttled_us, 90);
    assert_int_equal(s.msg.memory_usage, 1048576);
    assert_int_equal(s.msg.memory_peak, 2097152);
    assert_int_equal(s.msg.memory_max, 0);
    assert_int_equal(s.msg.memory_anon, 1000);
    assert_int_equal(s.msg.memory_file, 2000);
    assert_int_equal(s.msg.memory_kernel, 300);
    assert_int_equal(s.msg.memory_mapped, 40);
    assert_int_equal(s.msg.memory_inactive_file, 500);
    assert_int_equal(s.msg.memory_shmem, 70);
    assert_int_equal(s.msg.page_faults, 80);
    assert_int_equal(s.msg.major_faults, 9);
    assert_int_equal(s.msg.memory_failures, 11);
    assert_int_equal(s.msg.oom_events, 2);
    assert_int_equal(s.msg.swap_usage, 4096);
    assert_int_equal(s.msg.swap_max, 8192);
    assert_int_equal(s.msg.threads, 12);
    assert_int_equal(s.msg.threads_max, 100);
    assert_int_equal(s.msg.processes, 5);
    assert_int_equal(s.msg.n_io, 3);
    assert_int_equal(s.msg.io[0]->major, 254);
    assert_int_equal(s.msg.io[0]->minor, 16);
    assert_int_equal(s.msg.io[0]->read_bytes, 1);
    assert_int_equal(s.msg.io[0]->writes, 4);
    assert_int_equal(s.msg.io[1]->reads, 0);
    assert_true(s.msg.io[2]->read_bytes == UINT64_MAX);
    assert_int_equal(s.msg.io[2]->write_bytes, 0);
    assert_int_equal(s.msg.cpu_pressure->some->total_us, 123456);
    assert_true(s.msg.cpu_pressure->some->avg60 > 2.24 && s.msg.cpu_pressure->some->avg60 < 2.26);
    assert_int_equal(s.msg.cpu_pressure->full->total_us, 7);
    assert_null(s.msg.memory_pressure->full);
    assert_null(s.msg.io_pressure);
    /* and it can be packed */
    assert_true(aspis__agent__v1__group_stats__get_packed_size(&s.msg) > 100);
}

static void test_nothing_there(void **state)
{
    (void)state;
    struct cgroup_stats s;
    cgroup_stats_read(&s, "/nonexistent/cgroup");
    assert_int_equal(s.msg.cpu_usage_us, 0);
    assert_int_equal(s.msg.processes, 0);
    assert_int_equal(s.msg.n_io, 0);
    assert_null(s.msg.cpu_pressure);
}

static void test_nonsense(void **state)
{
    (void)state;
    struct cgroup_stats s;
    put("cpu.stat", "usage_usec\nuser_usec -1\nsystem_usec 99999999999999999999999\n\n \n");
    put("memory.current", "");
    put("memory.stat", "anon 12x\nfile  3\n");
    put("cpu.pressure", "some avg10=a\nnothing\n");
    auto_free char *many = strdup("");
    for (int i = 0; i < 40; i++) {
        char *more = fs_format("%s8:%d rbytes=1\n", many, i);
        free(many);
        many = more;
    }
    put("io.stat", many);
    cgroup_stats_read(&s, dir);
    assert_int_equal(s.msg.cpu_usage_us, 0);
    assert_int_equal(s.msg.cpu_user_us, 0);
    assert_int_equal(s.msg.cpu_system_us, 0);
    assert_int_equal(s.msg.memory_usage, 0);
    assert_int_equal(s.msg.memory_anon, 0);
    assert_int_equal(s.msg.n_io, CGROUP_STATS_DEVICES);
    assert_non_null(s.msg.cpu_pressure);
    assert_null(s.msg.cpu_pressure->some);
}

/* This very process stands for a container's. */
static void test_processes(void **state)
{
    (void)state;
    struct cgroup_stats s;
    auto_free char *me = fs_format("%d\n", (int)getpid());
    put("cgroup.procs", me);
    cgroup_stats_read(&s, dir);
    cgroup_stats_add_processes(&s, dir, "/proc", getpid());
    assert_int_equal(s.msg.processes, 1);
    assert_true(s.msg.descriptors >= 3);
    assert_true(s.msg.sockets <= s.msg.descriptors);
    assert_true(s.msg.open_files_soft > 0);
    /* one that is gone */
    put("cgroup.procs", "4194303\n");
    cgroup_stats_read(&s, dir);
    cgroup_stats_add_processes(&s, dir, "/proc", 4194303);
    assert_int_equal(s.msg.descriptors, 0);
    assert_int_equal(s.msg.open_files_soft, 0);
}

static void test_links(void **state)
{
    (void)state;
    char text[] =
        "Inter-|   Receive                                                |  Transmit\n"
        " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs "
        "drop fifo colls carrier compressed\n"
        "    lo:     100       1    0    0    0     0          0         0      100       1    0 "
        "   0    0     0       0          0\n"
        "  eth0: 1234567      89    1    2    3     4          5         6  7654321      98    3 "
        "   4    0     0       0          0\n"
        "  bad0: 1 2 3\n"
        "eth1:5 6 7 8 0 0 0 0 9 10 11 12 0 0 0 0\n";
    Aspis__Agent__V1__LinkStats rows[2];
    assert_int_equal(cgroup_stats_links(text, rows, 2), 2);
    assert_string_equal(rows[0].name, "eth0");
    assert_int_equal(rows[0].rx_bytes, 1234567);
    assert_int_equal(rows[0].rx_packets, 89);
    assert_int_equal(rows[0].rx_errors, 1);
    assert_int_equal(rows[0].rx_dropped, 2);
    assert_int_equal(rows[0].tx_bytes, 7654321);
    assert_int_equal(rows[0].tx_packets, 98);
    assert_int_equal(rows[0].tx_errors, 3);
    assert_int_equal(rows[0].tx_dropped, 4);
    assert_string_equal(rows[1].name, "eth1");
    assert_int_equal(rows[1].tx_bytes, 9);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_all_files, make_dir, drop_dir),
        cmocka_unit_test(test_nothing_there),
        cmocka_unit_test_setup_teardown(test_nonsense, make_dir, drop_dir),
        cmocka_unit_test_setup_teardown(test_processes, make_dir, drop_dir),
        cmocka_unit_test(test_links),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
