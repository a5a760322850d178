#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/user.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fs.h"

static const char passwd[] = "root:x:0:0:root:/root:/bin/sh\n"
                             "# comment:x:9:9::/:\n"
                             "broken line\n"
                             "app:x:1000:1001:App:/home/app:/bin/sh\n"
                             "negative:x:-1:0::/:\n"
                             "huge:x:4294967296:0::/:\n"
                             "short:x:7:8\n"
                             "odd:x:1002:1002::not/absolute:/bin/sh";
static const char group[] = "root:x:0:\n"
                            "app:x:1001:\n"
                            "extra:x:2000:app\n"
                            "more:x:2001:root,app\n"
                            "broken:x:y:app\n"
                            "application:x:2002:application,xapp,appx\n"
                            "again:x:2000:app";

static struct user_ids ids;

static int lookup(const char *user, struct err *err)
{
    struct user_request req = {.user = user};
    return user_lookup(passwd, sizeof(passwd) - 1, group, sizeof(group) - 1, &req, &ids, err);
}

static void check(const char *user, uint32_t uid, uint32_t gid, const char *home,
                  const uint32_t *groups, size_t n)
{
    auto_err struct err err = ERR_INIT;
    assert_int_equal(lookup(user, &err), 0);
    assert_int_equal(ids.uid, uid);
    assert_int_equal(ids.gid, gid);
    assert_string_equal(ids.home, home);
    assert_int_equal(ids.n_groups, n);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(ids.groups[i], groups[i]);
}

static void test_rules(void **state)
{
    (void)state;
    check("", 0, 0, "/root", (uint32_t[]){0, 2001}, 2);
    check("0", 0, 0, "/root", (uint32_t[]){0, 2001}, 2);
    check("root", 0, 0, "/root", (uint32_t[]){0, 2001}, 2);
    check("app", 1000, 1001, "/home/app", (uint32_t[]){1001, 2000, 2001}, 3);
    check("1000", 1000, 1001, "/home/app", (uint32_t[]){1001, 2000, 2001}, 3);
    check("app:extra", 1000, 2000, "/home/app", (uint32_t[]){2000, 2001}, 2);
    check("app:77", 1000, 77, "/home/app", (uint32_t[]){77, 2000, 2001}, 3);
    check("5555", 5555, 0, "/", (uint32_t[]){0}, 1);
    check("5555:6666", 5555, 6666, "/", (uint32_t[]){6666}, 1);
    check("5555:more", 5555, 2001, "/", (uint32_t[]){2001}, 1);
    check("short", 7, 8, "/", (uint32_t[]){8}, 1);
    check("odd", 1002, 1002, "/", (uint32_t[]){1002}, 1);
    check(":app", 0, 1001, "/root", (uint32_t[]){1001, 2001}, 2);
    check("app:", 1000, 1001, "/home/app", (uint32_t[]){1001, 2000, 2001}, 3);
}

static void test_unknown(void **state)
{
    static const char *const bad[] = {"nosuch",     "app:nosuch",    "4294967295", "negative",
                                      "huge",       "# comment",     "-1",         "app:-1",
                                      "root:x:0:0", "app:4294967295"};
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        auto_err struct err err = ERR_INIT;
        assert_int_equal(lookup(bad[i], &err), -1);
        assert_int_equal(err.code, ERR_INVALID);
    }
    auto_err struct err err = ERR_INIT;
    assert_int_equal(lookup("nosuch", &err), -1);
    assert_non_null(strstr(err_msg(&err), "nosuch"));
}

static void test_groups(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    uint32_t given[] = {3000, 2001, 3000};
    struct user_request req = {.user = "app", .groups = given, .n_groups = 3};
    assert_int_equal(
        user_lookup(passwd, sizeof(passwd) - 1, group, sizeof(group) - 1, &req, &ids, &err), 0);
    assert_int_equal(ids.n_groups, 4); /* 1001 2000 2001 3000 */
    assert_int_equal(ids.groups[3], 3000);

    req.strict = true;
    req.has_group = true;
    req.group = 42;
    assert_int_equal(
        user_lookup(passwd, sizeof(passwd) - 1, group, sizeof(group) - 1, &req, &ids, &err), 0);
    assert_int_equal(ids.gid, 42);
    assert_int_equal(ids.n_groups, 3);
    assert_int_equal(ids.groups[0], 42);
    assert_int_equal(ids.groups[1], 3000);
    assert_int_equal(ids.groups[2], 2001);

    given[1] = UINT32_MAX;
    assert_int_equal(user_lookup(NULL, 0, NULL, 0, &req, &ids, &err), -1);
}

static void test_too_many_groups(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    auto_buf struct buf text = BUF_INIT(MiB(1));
    for (int i = 0; i < LIMIT_USER_GROUPS + 1; i++)
        buf_printf(&text, "g%d:x:%d:root\n", i, 10000 + i);
    struct user_request req = {.user = "root"};
    assert_int_equal(user_lookup(passwd, sizeof(passwd) - 1, text.data, text.len, &req, &ids, &err),
                     -1);
    assert_int_equal(err.code, ERR_EXHAUSTED);
}

static void put(int dir, const char *name, const char *text)
{
    auto_close int fd = openat(dir, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
}

static void test_files(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    char dir[] = "/tmp/test_user.XXXXXX";
    struct user_request req = {.user = "1000"};
    assert_non_null(mkdtemp(dir));
    auto_close int root = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);

    /* nothing there */
    assert_int_equal(user_resolve(root, &req, &ids, &err), 0);
    assert_int_equal(ids.gid, 0);

    assert_int_equal(mkdirat(root, "etc", 0755), 0);
    put(root, "etc/passwd", passwd);
    put(root, "etc/group", group);
    assert_int_equal(user_resolve(root, &req, &ids, &err), 0);
    assert_int_equal(ids.gid, 1001);

    /* a link that leads out of the root is looked up below it */
    assert_int_equal(unlinkat(root, "etc/passwd", 0), 0);
    assert_int_equal(symlinkat("/etc/passwd.real", root, "etc/passwd"), 0);
    put(root, "etc/passwd.real", "app:x:1000:4:::\n");
    assert_int_equal(user_resolve(root, &req, &ids, &err), 0);
    assert_int_equal(ids.gid, 4);
    assert_int_equal(unlinkat(root, "etc/passwd", 0), 0);
    assert_int_equal(symlinkat("../../../../../../etc/passwd", root, "etc/passwd"), 0);
    req.user = "daemon"; /* of this machine */
    assert_int_equal(user_resolve(root, &req, &ids, &err), -1);

    /* a FIFO does not hold us up */
    assert_int_equal(unlinkat(root, "etc/passwd", 0), 0);
    assert_int_equal(mkfifoat(root, "etc/passwd", 0644), 0);
    assert_int_equal(user_resolve(root, &req, &ids, &err), -1);
    assert_int_equal(err.code, ERR_INVALID);
    assert_int_equal(fs_rm_rf(dir, &err), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rules),  cmocka_unit_test(test_unknown),
        cmocka_unit_test(test_groups), cmocka_unit_test(test_too_many_groups),
        cmocka_unit_test(test_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
