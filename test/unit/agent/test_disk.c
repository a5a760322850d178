/* agent/disk: finding disks in a made-up sysfs, and the rules of the image table that need no
 * mount. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "agent/disk.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/loop.h"

static void test_serials(void **state)
{
    (void)state;
    assert_true(disk_serial_valid("img-0123456789abcdef"));
    assert_true(disk_serial_valid("s"));
    assert_false(disk_serial_valid(NULL));
    assert_false(disk_serial_valid(""));
    assert_false(disk_serial_valid("img-0123456789abcdef0"));
    assert_false(disk_serial_valid(".."));
    assert_false(disk_serial_valid(".hidden"));
    assert_false(disk_serial_valid("a/b"));
    assert_false(disk_serial_valid("a b"));
    assert_false(disk_serial_valid("a\n"));
}

static void put(const char *root, const char *disk, const char *serial)
{
    auto_free char *dir = fs_format("%s/block/%s", root, disk);
    auto_free char *file = fs_format("%s/serial", dir);
    assert_int_equal(fs_mkdir_p(dir, 0755, NULL), 0);
    if (serial != NULL)
        assert_int_equal(fs_write_atomic(file, serial, strlen(serial), 0644, false, NULL), 0);
}

static void test_find(void **state)
{
    (void)state;
    char root[] = "/tmp/aspis-test-XXXXXX";
    assert_non_null(mkdtemp(root));
    auto_free char *none = disk_find(root, "scratch");
    assert_null(none);
    put(root, "loop0", NULL);
    put(root, "vda", "scratch");
    put(root, "vdb", "scratch2\n");
    auto_free char *vda = disk_find(root, "scratch");
    assert_string_equal(vda, "/dev/vda");
    auto_free char *vdb = disk_find(root, "scratch2");
    assert_string_equal(vdb, "/dev/vdb");
    auto_free char *prefix = disk_find(root, "scr");
    assert_null(prefix);
    assert_int_equal(fs_rm_rf(root, NULL), 0);
}

struct result {
    int calls;
    enum err_code code;
};

static void on_image(void *arg, const char *mountpoint, const struct err *err)
{
    struct result *r = arg;
    r->calls++;
    r->code = err->code;
    assert_null(mountpoint);
}

static void test_wait(void **state)
{
    (void)state;
    struct loop *loop = loop_new(NULL);
    struct disks *d = disks_new(loop, "/nonexistent/images");
    struct result bad = {0}, waits = {0};
    disks_acquire(d, "../../etc", on_image, &bad);
    assert_int_equal(bad.calls, 1);
    assert_int_equal(bad.code, ERR_INVALID);

    disks_acquire(d, "aspis-no-such-disk", on_image, &waits);
    loop_turn(loop, 0);
    disks_rescan(d);
    assert_int_equal(waits.calls, 0);
    auto_err struct err err = ERR_INIT;
    assert_int_equal(disks_detach(d, "aspis-no-such-disk", &err), -1);
    assert_int_equal(err.code, ERR_PRECONDITION);
    assert_int_equal(disks_detach(d, "another", NULL), 0);
    assert_int_equal(disks_detach(d, "a/b", NULL), -1);
    assert_null(disks_mounted(d)[0]);
    disks_release(d, "another"); /* a caller's mistake is logged, not fatal */

    struct result tired = {0};
    disks_acquire(d, "aspis-no-such-disk", on_image, &tired);
    disks_give_up(d, &tired);
    assert_int_equal(tired.calls, 1);
    assert_int_equal(tired.code, ERR_ABORTED);
    disks_give_up(d, &tired); /* waits no more */

    disks_free(d);
    assert_int_equal(tired.calls, 1);
    assert_int_equal(waits.calls, 1);
    assert_int_equal(waits.code, ERR_CANCELLED);
    loop_free(loop);
}

/* A disk that has another's name is where it was found first, and is mounted from there. */
static void test_names(void **state)
{
    (void)state;
    char root[] = "/tmp/aspis-test-XXXXXX";
    assert_non_null(mkdtemp(root));
    auto_free char *images = fs_format("%s/images", root);
    put(root, "no-such-device-a", "slot32\n");
    put(root, "no-such-device-b", "slot33\n");
    struct loop *loop = loop_new(NULL);
    struct disks *d = disks_new(loop, images);
    disks_learn(d, root);
    auto_err struct err err = ERR_INIT;
    assert_int_equal(disks_name(d, "a/b", "slot32", NULL), -1);
    assert_int_equal(disks_name(d, "img-1", "", NULL), -1);
    assert_int_equal(disks_name(d, "raw-1", "slot32", NULL), -1);

    struct result first = {0}, second = {0};
    disks_acquire(d, "img-1", on_image, &first);
    assert_int_equal(first.calls, 0);
    assert_int_equal(disks_name(d, "img-1", "slot32", &err), 0); /* there is nothing to mount */
    assert_int_equal(first.calls, 1);
    assert_int_equal(first.code, ERR_NOT_FOUND);
    assert_int_equal(disks_name(d, "img-1", "slot32", &err), 0);
    disks_acquire(d, "img-1", on_image, &second);
    assert_int_equal(second.calls, 1);

    /* the disk gets another image, or none: nothing has the first one's name */
    struct result gone = {0}, detached = {0};
    assert_int_equal(disks_name(d, "img-2", "slot32", &err), 0);
    disks_acquire(d, "img-1", on_image, &gone);
    assert_int_equal(gone.calls, 0);
    disks_give_up(d, &gone);
    assert_int_equal(disks_name(d, "img-2", "slot33", &err), 0);
    assert_int_equal(disks_detach(d, "img-2", &err), 0);
    disks_acquire(d, "img-2", on_image, &detached);
    assert_int_equal(detached.calls, 0);

    disks_free(d);
    loop_free(loop);
    assert_int_equal(detached.code, ERR_CANCELLED);
    assert_int_equal(fs_rm_rf(root, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_serials),
        cmocka_unit_test(test_find),
        cmocka_unit_test(test_wait),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests_name("disk", tests, NULL, NULL);
}
