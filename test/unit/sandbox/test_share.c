/* The file server as a hostile guest sees it: numbers it never gave out, names that climb, requests
 * that are too short. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/spawn.h"
#include "proto/frame.h"
#include "share_fixture.h"

static void test_honest(void **state)
{
    static struct guest g;
    (void)state;
    start(&g);
    make_file(&g, "file", "text");
    init(&g);
    uint64_t node = node_of(&g, "file");
    uint64_t fh = open_node(&g, FUSE_OPEN, node, O_RDWR);
    struct fuse_read_in r = {.fh = fh, .size = 4096};
    assert_int_equal(call(&g, FUSE_READ, node, &r, sizeof(r)), 0);
    assert_int_equal(g.reply_len, sizeof(struct fuse_out_header) + 4);
    assert_memory_equal(g.reply + sizeof(struct fuse_out_header), "text", 4);
    struct {
        struct fuse_write_in in;
        char data[LIMIT_FS_DATA];
    } *w = calloc(1, sizeof(*w));
    assert_non_null(w);
    w->in = (struct fuse_write_in){.fh = fh, .size = LIMIT_FS_DATA};
    /* a file that holds a preamble does not upset the guest's parser */
    uint8_t nonce[PREAMBLE_NONCE] = {0};
    for (size_t at = 1; at + PREAMBLE_SIZE < LIMIT_FS_DATA; at += 5000)
        preamble_make((uint8_t *)w->data + at, LINK_FS, nonce);
    assert_int_equal(call(&g, FUSE_WRITE, node, w, sizeof(*w)), 0);
    r.size = LIMIT_FS_DATA;
    assert_int_equal(call(&g, FUSE_READ, node, &r, sizeof(r)), 0);
    assert_int_equal(g.reply_len, sizeof(struct fuse_out_header) + LIMIT_FS_DATA);
    assert_memory_equal(g.reply + sizeof(struct fuse_out_header), w->data, LIMIT_FS_DATA);
    free(w);
    assert_int_equal(call(&g, FUSE_IOCTL, node, "12345678", 8), -ENOSYS);
    stop(&g);
}

static void test_numbers_it_never_gave(void **state)
{
    static struct guest g;
    struct fuse_getattr_in ga = {0};
    (void)state;
    start(&g);
    make_file(&g, "file", "text");
    init(&g);
    uint64_t node = node_of(&g, "file");
    assert_int_equal(call(&g, FUSE_GETATTR, node, &ga, sizeof(ga)), 0);
    const uint64_t nodes[] = {0, 2, 3, node + 1, node ^ UINT64_C(1) << 32, UINT32_MAX, UINT64_MAX};
    for (size_t i = 0; i < ARRAY_LEN(nodes); i++)
        assert_int_equal(call(&g, FUSE_GETATTR, nodes[i], &ga, sizeof(ga)), -ESTALE);
    uint64_t file = open_node(&g, FUSE_OPEN, node, O_RDONLY);
    uint64_t dir = open_node(&g, FUSE_OPENDIR, 1, O_RDONLY);
    struct fuse_read_in r = {.fh = dir, .size = 4096};
    assert_int_equal(call(&g, FUSE_READ, node, &r, sizeof(r)), -EBADF);
    r.fh = file;
    assert_int_equal(call(&g, FUSE_READDIR, 1, &r, sizeof(r)), -EBADF);
    for (uint64_t fh = 0; fh < 8; fh++) {
        r.fh = fh;
        assert_int_equal(call(&g, FUSE_READ, node, &r, sizeof(r)), -EBADF);
    }
    struct fuse_release_in rel = {.fh = file};
    assert_int_equal(call(&g, FUSE_RELEASE, node, &rel, sizeof(rel)), 0);
    assert_int_equal(call(&g, FUSE_RELEASE, node, &rel, sizeof(rel)), -EBADF);
    /* forgotten more often than it was looked up, and the root, which cannot be */
    struct fuse_forget_in f = {.nlookup = UINT64_MAX};
    ask(&g, FUSE_FORGET, node, &f, sizeof(f));
    ask(&g, FUSE_FORGET, node, &f, sizeof(f));
    ask(&g, FUSE_FORGET, 1, &f, sizeof(f));
    assert_int_equal(call(&g, FUSE_GETATTR, node, &ga, sizeof(ga)), -ESTALE);
    assert_int_equal(call(&g, FUSE_GETATTR, 1, &ga, sizeof(ga)), 0);
    stop(&g);
}

static void test_ways_out(void **state)
{
    static struct guest g;
    char path[64];
    (void)state;
    start(&g);
    (void)snprintf(path, sizeof(path), "%s/link", g.dir);
    assert_int_equal(symlink("/etc/passwd", path), 0);
    init(&g);
    uint64_t link = node_of(&g, "link");
    struct fuse_open_in in = {.flags = O_RDONLY};
    assert_int_equal(call(&g, FUSE_OPEN, link, &in, sizeof(in)), -EACCES);
    assert_int_equal(call(&g, FUSE_LOOKUP, link, "x", 2), -ENOTDIR);
    struct {
        struct fuse_mknod_in in;
        char name[4];
    } m = {{.mode = S_IFBLK | 0600, .rdev = 0x800}, "sda"};
    assert_int_equal(call(&g, FUSE_MKNOD, 1, &m, sizeof(m.in) + 4), -EPERM);
    struct {
        struct fuse_create_in in;
        char name[5];
    } c = {{.flags = O_RDWR, .mode = S_IFREG | 0600}, "link"};
    assert_int_not_equal(call(&g, FUSE_CREATE, 1, &c, sizeof(c.in) + 5), 0);
    /* a name that climbs ends the server */
    assert_int_equal(call(&g, FUSE_LOOKUP, 1, "../etc", 7), 1);
    int status = 0;
    assert_int_equal(spawn_wait(&g.server, NULL, &status, NULL), 0);
    assert_int_equal(status, 1 << 8);
    stop(&g);
}

static void test_frames_that_mix(void **state)
{
    static struct guest g;
    (void)state;
    auto_buf struct buf out = BUF_INIT(KiB(4));
    start(&g);
    init(&g);
    assert_int_equal(frame_append(&out, g.volume, FRAME_FS_DATA, 0, "1234", 4), 0);
    assert_int_equal(frame_append(&out, g.volume + 1, FRAME_FS_DATA, 0, "1234", 4), 0);
    assert_int_equal(send(g.fd, out.data, out.len, MSG_NOSIGNAL), out.len);
    assert_false(more(&g));
    stop(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_honest),
        cmocka_unit_test(test_numbers_it_never_gave),
        cmocka_unit_test(test_ways_out),
        cmocka_unit_test(test_frames_that_mix),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
