/* FUSE requests as a kernel makes them pass; those that would make libfuse read or write beyond a
 * message, or leave the volume, do not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <linux/fuse.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "sandbox/share_check.h"

static char message[LIMIT_FS_MESSAGE + 4096];
static size_t length;

static void begin(uint32_t opcode)
{
    struct fuse_in_header h = {.opcode = opcode, .unique = 2, .nodeid = 1};
    memset(message, 0, sizeof(message));
    memcpy(message, &h, sizeof(h));
    length = sizeof(h);
}

static void add(const void *data, size_t n)
{
    assert_true(length + n <= sizeof(message));
    memcpy(message + length, data, n);
    length += n;
}

static enum share_verdict check(void)
{
    uint32_t n = (uint32_t)length;
    memcpy(message, &n, sizeof(n));
    return share_check(message, length, true);
}

static enum share_verdict check_name(uint32_t opcode, size_t head, const char *name, size_t n)
{
    char zeros[128] = {0};
    begin(opcode);
    add(zeros, head);
    add(name, n);
    return check();
}

static const struct {
    uint32_t opcode;
    size_t head;
} named[] = {
    {FUSE_LOOKUP, 0},
    {FUSE_UNLINK, 0},
    {FUSE_RMDIR, 0},
    {FUSE_MKNOD, sizeof(struct fuse_mknod_in)},
    {FUSE_MKDIR, sizeof(struct fuse_mkdir_in)},
    {FUSE_LINK, sizeof(struct fuse_link_in)},
    {FUSE_CREATE, sizeof(struct fuse_create_in)},
};

static void test_names(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(named); i++) {
        uint32_t op = named[i].opcode;
        size_t head = named[i].head;
        static const char *const bad[] = {"", ".", "..", "/", "../x", "a/b", "/etc", "x/"};
        assert_int_equal(check_name(op, head, "file", 5), SHARE_PASS);
        assert_int_equal(check_name(op, head, "..data", 7), SHARE_PASS);
        assert_int_equal(check_name(op, head, "...", 4), SHARE_PASS);
        for (size_t k = 0; k < ARRAY_LEN(bad); k++)
            assert_int_equal(check_name(op, head, bad[k], strlen(bad[k]) + 1), SHARE_HOSTILE);
        assert_int_equal(check_name(op, head, "file", 4), SHARE_HOSTILE);    /* no NUL */
        assert_int_equal(check_name(op, head, "file\0x", 7), SHARE_HOSTILE); /* more behind */
        if (head > 0)
            assert_int_equal(check_name(op, head - 1, "", 0), SHARE_HOSTILE); /* cut */
    }
}

static void test_two_names(void **state)
{
    (void)state;
    char head[sizeof(struct fuse_rename2_in)] = {0};
    begin(FUSE_RENAME2);
    add(head, sizeof(head));
    add("a\0b", 4);
    assert_int_equal(check(), SHARE_PASS);
    begin(FUSE_RENAME2);
    add(head, sizeof(head));
    add("a\0..", 5);
    assert_int_equal(check(), SHARE_HOSTILE);
    begin(FUSE_RENAME);
    add(head, sizeof(struct fuse_rename_in));
    add("a", 2);
    assert_int_equal(check(), SHARE_HOSTILE);
    begin(FUSE_SYMLINK);
    add("name\0../../target", 18);
    assert_int_equal(check(), SHARE_PASS);
    begin(FUSE_SYMLINK);
    add("../name\0target", 15);
    assert_int_equal(check(), SHARE_HOSTILE);
    begin(FUSE_SYMLINK);
    add("name\0target", 11);
    assert_int_equal(check(), SHARE_HOSTILE);
}

static void test_sizes_of_data(void **state)
{
    (void)state;
    struct fuse_write_in w = {.size = 5};
    begin(FUSE_WRITE);
    add(&w, sizeof(w));
    add("12345", 5);
    assert_int_equal(check(), SHARE_PASS);
    w.size = 1U << 30; /* libfuse would hand out what lies behind the message */
    begin(FUSE_WRITE);
    add(&w, sizeof(w));
    add("12345", 5);
    assert_int_equal(check(), SHARE_HOSTILE);
    w.size = 6;
    begin(FUSE_WRITE);
    add(&w, sizeof(w));
    add("12345", 5);
    assert_int_equal(check(), SHARE_HOSTILE);
    w.size = 4;
    begin(FUSE_WRITE);
    add(&w, sizeof(w));
    add("12345", 5);
    assert_int_equal(check(), SHARE_HOSTILE);
    struct fuse_read_in r = {.size = LIMIT_FS_DATA};
    begin(FUSE_READ);
    add(&r, sizeof(r));
    assert_int_equal(check(), SHARE_PASS);
    r.size++;
    begin(FUSE_READ);
    add(&r, sizeof(r));
    assert_int_equal(check(), SHARE_HOSTILE);
    r = (struct fuse_read_in){.size = 4096, .offset = INT64_MAX};
    begin(FUSE_READ);
    add(&r, sizeof(r));
    assert_int_equal(check(), SHARE_HOSTILE);
    begin(FUSE_READDIR); /* ext4's last cookie */
    add(&r, sizeof(r));
    assert_int_equal(check(), SHARE_PASS);
}

static void test_attributes(void **state)
{
    (void)state;
    uint32_t set[2] = {5, 0};
    begin(FUSE_SETXATTR);
    add(set, sizeof(set));
    add("user.a\0"
        "12345",
        12);
    assert_int_equal(check(), SHARE_PASS);
    set[0] = 6; /* one byte of what lies behind */
    begin(FUSE_SETXATTR);
    add(set, sizeof(set));
    add("user.a\0"
        "12345",
        12);
    assert_int_equal(check(), SHARE_HOSTILE);
    begin(FUSE_SETXATTR);
    add(set, sizeof(set));
    add("user.a", 6);
    assert_int_equal(check(), SHARE_HOSTILE);
    struct fuse_getxattr_in get = {.size = LIMIT_FS_XATTR};
    begin(FUSE_GETXATTR);
    add(&get, sizeof(get));
    add("user.a", 7);
    assert_int_equal(check(), SHARE_PASS);
    begin(FUSE_GETXATTR);
    add(&get, sizeof(get));
    assert_int_equal(check(), SHARE_HOSTILE);
    begin(FUSE_LISTXATTR);
    add(&get, sizeof(get));
    assert_int_equal(check(), SHARE_PASS);
    get.size++;
    begin(FUSE_LISTXATTR);
    add(&get, sizeof(get));
    assert_int_equal(check(), SHARE_HOSTILE);
    begin(FUSE_REMOVEXATTR);
    add("user.a", 7);
    assert_int_equal(check(), SHARE_PASS);
    begin(FUSE_REMOVEXATTR);
    add("user.a\0b", 8);
    assert_int_equal(check(), SHARE_HOSTILE);
}

static void test_counts(void **state)
{
    (void)state;
    struct fuse_batch_forget_in b = {.count = 2};
    struct fuse_forget_one one[2] = {{.nodeid = 5, .nlookup = 1}, {.nodeid = 6, .nlookup = 1}};
    begin(FUSE_BATCH_FORGET);
    add(&b, sizeof(b));
    add(one, sizeof(one));
    assert_int_equal(check(), SHARE_PASS);
    b.count = 3;
    begin(FUSE_BATCH_FORGET);
    add(&b, sizeof(b));
    add(one, sizeof(one));
    assert_int_equal(check(), SHARE_HOSTILE);
    b.count = 0x10000002; /* times 16 it is 2 again in 32 bits */
    begin(FUSE_BATCH_FORGET);
    add(&b, sizeof(b));
    add(one, sizeof(one));
    assert_int_equal(check(), SHARE_HOSTILE);
}

static void test_header(void **state)
{
    (void)state;
    begin(FUSE_STATFS);
    assert_int_equal(check(), SHARE_PASS);
    uint32_t n = (uint32_t)length + 1;
    memcpy(message, &n, sizeof(n));
    assert_int_equal(share_check(message, length, true), SHARE_HOSTILE);
    for (size_t len = 0; len < sizeof(struct fuse_in_header); len++)
        assert_int_equal(share_check(message, len, true), SHARE_HOSTILE);
    begin(FUSE_STATFS);
    message[sizeof(struct fuse_in_header) - 4] = 1; /* an extension */
    assert_int_equal(check(), SHARE_HOSTILE);
    begin(FUSE_STATFS);
    memset(message + 8, 0, 8); /* a notification's number */
    assert_int_equal(check(), SHARE_HOSTILE);
    begin(FUSE_STATFS);
    length = LIMIT_FS_MESSAGE + 1;
    assert_int_equal(check(), SHARE_HOSTILE);
    static const uint32_t unknown[] = {FUSE_BMAP, FUSE_GETLK, FUSE_IOCTL, FUSE_SETLK,
                                       FUSE_POLL, FUSE_FLUSH, 99,         UINT32_MAX};
    for (size_t i = 0; i < ARRAY_LEN(unknown); i++) {
        begin(unknown[i]);
        add("12345678", 8);
        assert_int_equal(check(), SHARE_UNKNOWN);
    }
}

static void test_init(void **state)
{
    (void)state;
    struct fuse_init_in in = {
        .major = FUSE_KERNEL_VERSION, .minor = 36, .flags = FUSE_INIT_EXT | FUSE_ASYNC_READ};
    begin(FUSE_INIT);
    add(&in, sizeof(in));
    assert_int_equal(check(), SHARE_HOSTILE); /* a second one */
    assert_int_equal(share_check(message, length, false), SHARE_PASS);
    begin(FUSE_INIT);
    add(&in, 16); /* says that there is more */
    (void)check();
    assert_int_equal(share_check(message, length, false), SHARE_HOSTILE);
    in.minor = 8;
    begin(FUSE_INIT);
    add(&in, sizeof(in));
    (void)check();
    assert_int_equal(share_check(message, length, false), SHARE_HOSTILE);
    begin(FUSE_STATFS); /* before INIT */
    (void)check();
    assert_int_equal(share_check(message, length, false), SHARE_HOSTILE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),         cmocka_unit_test(test_two_names),
        cmocka_unit_test(test_sizes_of_data), cmocka_unit_test(test_attributes),
        cmocka_unit_test(test_counts),        cmocka_unit_test(test_header),
        cmocka_unit_test(test_init),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
