/* agent/identity: what can be checked without changing the machine that runs the test. */
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/identity.h"
#include "base/cleanup.h"
#include "base/fs.h"

static void test_hostname(void **state)
{
    (void)state;
    static const char *const good[] = {
        "a", "web-0", "Web.example.org",
        "0123456789012345678901234567890123456789012345678901234567890123"};
    static const char *const bad[] = {
        "",    "-a",   ".a",
        "a b", "a\n",  "a/b",
        "a_b", "\xff", "01234567890123456789012345678901234567890123456789012345678901234"};
    for (size_t i = 0; i < ARRAY_LEN(good); i++)
        assert_int_equal(identity_check_hostname(good[i], NULL), 0);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        auto_err struct err err = ERR_INIT;
        assert_int_equal(identity_check_hostname(bad[i], &err), -1);
        assert_int_equal(err.code, ERR_INVALID);
    }
}

static void test_sysctl_path(void **state)
{
    (void)state;
    static const char *const good[][2] = {
        {"net.ipv4.ip_forward", "net/ipv4/ip_forward"},
        {"kernel/shm_rmid_forced", "kernel/shm_rmid_forced"},
        {"net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding"},
        {"net.ipv4.conf.eth0/100.forwarding", "net/ipv4/conf/eth0.100/forwarding"},
        {"fs.mqueue.msg_max", "fs/mqueue/msg_max"},
    };
    static const char *const bad[] = {
        "",          ".",     "..",   "/",      "a..b", "a.",  ".a",      "a//b",        "../etc",
        "a/../../b", "a/./b", "a/..", "a.//.b", "a b",  "a\n", "a\xff.b", "/etc/passwd",
    };
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        auto_free char *path = identity_sysctl_path(good[i][0], NULL);
        assert_non_null(path);
        assert_string_equal(path, good[i][1]);
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        auto_err struct err err = ERR_INIT;
        auto_free char *path = identity_sysctl_path(bad[i], &err);
        if (path != NULL)
            fail_msg("\"%s\" gave %s", bad[i], path);
        assert_int_equal(err.code, ERR_INVALID);
    }
    char longest[1024];
    memset(longest, 'a', sizeof(longest) - 1);
    longest[sizeof(longest) - 1] = '\0';
    auto_free char *path = identity_sysctl_path(longest, NULL);
    assert_null(path);
}

static void test_sysctl_unknown(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    assert_int_equal(identity_set_sysctl("kernel.there_is_no_such_thing", "1", &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_non_null(strstr(err_msg(&err), "kernel.there_is_no_such_thing"));
}

/* In a network namespace of its own. */
static void test_sysctl_value(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    if (unshare(CLONE_NEWNET) < 0)
        skip();
    assert_int_equal(identity_set_sysctl("net.ipv4.ip_forward", "1", &err), 0);
    assert_int_equal(identity_set_sysctl("net/ipv4/ip_forward", "0x0", &err), 0);
    assert_int_equal(identity_set_sysctl("net.ipv4.ping_group_range", "0 7", &err), 0);
    assert_int_equal(identity_set_sysctl("net.ipv4.ip_local_reserved_ports", "8000-8003,9", &err),
                     0);
    static const char *const bad[] = {"1 and more", "1 1", "one", ""};
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(identity_set_sysctl("net.ipv4.ip_forward", bad[i], &err), -1);
        assert_non_null(strstr(err_msg(&err), "net.ipv4.ip_forward"));
    }
}

static void test_entropy_size(void **state)
{
    (void)state;
    uint8_t bytes[IDENTITY_ENTROPY_MAX + 1] = {0};
    assert_int_equal(identity_seed(bytes, IDENTITY_ENTROPY_MIN - 1, NULL), -1);
    assert_int_equal(identity_seed(bytes, sizeof(bytes), NULL), -1);
}

static void test_machine_id(void **state)
{
    (void)state;
    char dir[] = "/tmp/aspis-test-XXXXXX";
    assert_non_null(mkdtemp(dir));
    auto_free char *path = fs_format("%s/machine-id", dir);
    uint8_t id[IDENTITY_MACHINE_ID];
    for (size_t i = 0; i < sizeof(id); i++)
        id[i] = (uint8_t)(0x11 * i);
    assert_int_equal(identity_write_machine_id(path, id, NULL), 0);
    auto_free char *text = fs_read(path, 100, NULL, NULL);
    assert_string_equal(text, "00112233445566778899aabbccddeeff\n");
    assert_int_equal(fs_rm_rf(dir, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hostname),     cmocka_unit_test(test_sysctl_path),
        cmocka_unit_test(test_sysctl_value), cmocka_unit_test(test_sysctl_unknown),
        cmocka_unit_test(test_entropy_size), cmocka_unit_test(test_machine_id),
    };
    return cmocka_run_group_tests_name("identity", tests, NULL, NULL);
}
