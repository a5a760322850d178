/* agent/uevent: kernel messages as they come, and broken ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "agent/uevent.h"

static int parse(const char *text, size_t len, struct uevent *out)
{
    static char buf[512];
    assert_true(len <= sizeof(buf));
    memcpy(buf, text, len);
    return uevent_parse(buf, len, out);
}

static void test_disk(void **state)
{
    (void)state;
    static const char msg[] = "add@/devices/pci0000:00/virtio3/block/vdb\0ACTION=add\0"
                              "DEVPATH=/devices/pci0000:00/virtio3/block/vdb\0SUBSYSTEM=block\0"
                              "MAJOR=254\0DEVNAME=vdb\0SEQNUM=812";
    struct uevent e;
    assert_int_equal(parse(msg, sizeof(msg), &e), 0);
    assert_string_equal(e.action, "add");
    assert_string_equal(e.subsystem, "block");
    assert_string_equal(e.devpath, "/devices/pci0000:00/virtio3/block/vdb");
}

static void test_broken(void **state)
{
    (void)state;
    static const char udev[] = "libudev\0\xfe\xed\xca\xfe\0ACTION=add";
    static const char partial[] = "add@/x\0ACTION=add\0SUBSYSTEM=block";
    struct uevent e;
    assert_int_equal(parse("", 0, &e), -1);
    assert_int_equal(parse("", 1, &e), -1);
    assert_int_equal(parse("add@/x", 6, &e), -1); /* no end */
    assert_int_equal(parse(udev, sizeof(udev), &e), -1);
    assert_int_equal(parse(partial, sizeof(partial), &e), -1);
    assert_null(e.devpath);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_disk),
        cmocka_unit_test(test_broken),
    };
    return cmocka_run_group_tests_name("uevent", tests, NULL, NULL);
}
