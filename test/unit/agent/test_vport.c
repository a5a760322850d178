/* Ports are found by name in a made-up sysfs, whatever their number. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/vport.h"
#include "base/cleanup.h"
#include "base/fs.h"

static char root[] = "/tmp/aspis-vport-XXXXXX";

static int setup(void **state)
{
    (void)state;
    return mkdtemp(root) != NULL ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    return fs_rm_rf(root, NULL);
}

static char *path(const char *rest)
{
    return fs_format("%s/%s", root, rest);
}

static void put(const char *name, const char *text)
{
    auto_free char *p = path(name);

    assert_int_equal(fs_write_atomic(p, text, strlen(text), 0600, false, NULL), 0);
}

static void found_by_name(void **state)
{
    (void)state;
    auto_free char *sys = path("sys");
    auto_free char *dev = path("dev");
    auto_free char *p0 = path("sys/vport0p1");
    auto_free char *p1 = path("sys/vport1p2");
    auto_free char *p2 = path("sys/vport1p3");
    auto_err struct err err = ERR_INIT;
    char b[8] = {0};

    assert_int_equal(vport_open(sys, dev, "org.aspis.io", &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    err_clear(&err);
    assert_int_equal(fs_mkdir_p(p0, 0700, NULL), 0);
    assert_int_equal(fs_mkdir_p(p1, 0700, NULL), 0);
    assert_int_equal(fs_mkdir_p(p2, 0700, NULL), 0); /* has no name yet */
    assert_int_equal(fs_mkdir_p(dev, 0700, NULL), 0);
    put("sys/vport0p1/name", "org.aspis.io2\n");
    put("sys/vport1p2/name", "org.aspis.io\n");
    /* known, but the node is not there or refuses */
    assert_int_equal(vport_open(sys, dev, "org.aspis.io", &err), -1);
    assert_int_equal(err.code, ERR_UNAVAILABLE);
    err_clear(&err);
    put("dev/vport0p1", "wrong");
    put("dev/vport1p2", "right");
    auto_close int fd = vport_open(sys, dev, "org.aspis.io", &err);
    assert_true(fd >= 0);
    assert_int_equal(read(fd, b, sizeof(b)), 5);
    assert_string_equal(b, "right");
}

static void refusing_node_is_tried_again(void **state)
{
    (void)state;
    auto_free char *sys = path("sys");
    auto_free char *dev = path("dev");
    auto_free char *p = path("sys/vport2p1");
    auto_err struct err err = ERR_INIT;
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    auto_close int s = socket(AF_UNIX, SOCK_STREAM, 0);

    /* open() of a socket file gives ENXIO, as a port's node does for a moment */
    assert_int_equal(fs_mkdir_p(p, 0700, NULL), 0);
    put("sys/vport2p1/name", "org.aspis.rpc\n");
    (void)snprintf(a.sun_path, sizeof(a.sun_path), "%s/dev/vport2p1", root);
    assert_int_equal(bind(s, (struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(vport_open(sys, dev, "org.aspis.rpc", &err), -1);
    assert_int_equal(err.code, ERR_UNAVAILABLE);
    assert_int_equal(err.sys_errno, ENXIO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(found_by_name),
        cmocka_unit_test(refusing_node_is_tried_again),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
