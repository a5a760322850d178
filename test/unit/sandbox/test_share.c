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

#define SECONDS_NS INT64_C(20000000000)

struct guest {
    struct spawn_proc server;
    int fd;
    struct frame_parser in;
    uint32_t volume; /* the server looks for it at /tmp/<volume> */
    char dir[32];
    uint64_t unique;
    char reply[LIMIT_FS_MESSAGE];
    size_t reply_len;
};

static bool more(struct guest *g)
{
    size_t size;
    void *to = frame_parser_room(&g->in, &size);
    auto_cancel struct cancel *c = cancel_new(mono_ns() + SECONDS_NS, NULL);
    assert_true(cancel_poll(c, g->fd, POLLIN, -1, NULL) > 0);
    ssize_t n = recv(g->fd, to, size, 0);
    if (n <= 0)
        return false;
    frame_parser_fed(&g->in, (size_t)n);
    return true;
}

static void start(struct guest *g)
{
    int sockets[2];
    int go[2];
    struct frame f;
    auto_err struct err err = ERR_INIT;
    memset(g, 0, sizeof(*g));
    g->volume = 3000000000U + (uint32_t)getpid();
    (void)snprintf(g->dir, sizeof(g->dir), "/tmp/%u", g->volume);
    assert_int_equal(mkdir(g->dir, 0755), 0);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), 0);
    assert_int_equal(pipe2(go, O_CLOEXEC), 0);
    const char *argv[] = {getenv("ASPIS_SHARE"), "guest=test", NULL};
    assert_non_null(argv[0]);
    struct spawn_fd fds[] = {{2, 2}, {3, sockets[1]}, {4, go[0]}};
    struct spawn_opts o = {.path = argv[0], .argv = argv, .fds = fds, .n_fds = ARRAY_LEN(fds)};
    assert_int_equal(spawn_start(&o, &g->server, &err), 0);
    (void)close(sockets[1]);
    (void)close(go[0]);
    assert_int_equal(write(go[1], "g", 1), 1);
    (void)close(go[1]);
    g->fd = sockets[0];
    frame_parser_init(&g->in, true, LIMIT_FS_FRAME);
    while (frame_parser_next(&g->in, &f) != PARSE_PREAMBLE)
        assert_true(more(g));
    uint8_t answer[PREAMBLE_SIZE];
    preamble_answer(answer, g->in.preamble);
    assert_int_equal(send(g->fd, answer, sizeof(answer), MSG_NOSIGNAL), sizeof(answer));
}

static void stop(struct guest *g)
{
    auto_err struct err err = ERR_INIT;
    (void)close(g->fd);
    spawn_clear(&g->server);
    frame_parser_clear(&g->in);
    assert_int_equal(fs_rm_rf(g->dir, &err), 0);
}

static void ask(struct guest *g, uint32_t opcode, uint64_t node, const void *body, size_t len)
{
    auto_buf struct buf message = BUF_INIT(LIMIT_FS_MESSAGE * 2);
    auto_buf struct buf out = BUF_INIT(LIMIT_FS_MESSAGE * 2);
    struct fuse_in_header h = {.len = (uint32_t)(sizeof(h) + len),
                               .opcode = opcode,
                               .unique = g->unique += 2,
                               .nodeid = node};
    (void)buf_append(&message, &h, sizeof(h));
    (void)buf_append(&message, body, len);
    for (size_t at = 0; at < message.len;) {
        size_t n = message.len - at < LIMIT_FS_FRAME ? message.len - at : LIMIT_FS_FRAME;
        assert_int_equal(frame_append(&out, g->volume, FRAME_FS_DATA,
                                      at + n == message.len ? FRAME_FLAG_END : 0, message.data + at,
                                      n),
                         0);
        at += n;
    }
    assert_int_equal(send(g->fd, out.data, out.len, MSG_NOSIGNAL), out.len);
}

/* The answer's error, 0 for success; 1 when the server hung up. */
static int hear(struct guest *g)
{
    struct frame f;
    g->reply_len = 0;
    for (;;) {
        enum parse_result r = frame_parser_next(&g->in, &f);
        if (r == PARSE_FRAME) {
            assert_int_equal(f.type, FRAME_FS_DATA);
            assert_int_equal(f.stream, g->volume);
            assert_true(g->reply_len + f.len <= sizeof(g->reply));
            memcpy(g->reply + g->reply_len, f.payload, f.len);
            g->reply_len += f.len;
            if (f.flags & FRAME_FLAG_END)
                break;
        } else if (!more(g)) {
            return 1;
        }
    }
    struct fuse_out_header h;
    memcpy(&h, g->reply, sizeof(h));
    assert_int_equal(h.unique, g->unique);
    assert_int_equal(h.len, g->reply_len);
    return h.error;
}

static int call(struct guest *g, uint32_t opcode, uint64_t node, const void *body, size_t len)
{
    ask(g, opcode, node, body, len);
    return hear(g);
}

static void init(struct guest *g)
{
    struct fuse_init_in in = {.major = 7, .minor = 36, .flags = FUSE_ATOMIC_O_TRUNC};
    assert_int_equal(call(g, FUSE_INIT, 0, &in, sizeof(in)), 0);
}

static uint64_t node_of(struct guest *g, const char *name)
{
    struct fuse_entry_out e;
    assert_int_equal(call(g, FUSE_LOOKUP, 1, name, strlen(name) + 1), 0);
    memcpy(&e, g->reply + sizeof(struct fuse_out_header), sizeof(e));
    return e.nodeid;
}

static uint64_t open_node(struct guest *g, uint32_t opcode, uint64_t node, uint32_t flags)
{
    struct fuse_open_in in = {.flags = flags};
    struct fuse_open_out o;
    assert_int_equal(call(g, opcode, node, &in, sizeof(in)), 0);
    memcpy(&o, g->reply + sizeof(struct fuse_out_header), sizeof(o));
    return o.fh;
}

static void make_file(struct guest *g, const char *name, const char *text)
{
    char path[64];
    auto_err struct err err = ERR_INIT;
    (void)snprintf(path, sizeof(path), "%s/%s", g->dir, name);
    assert_int_equal(fs_write_atomic(path, text, strlen(text), 0644, false, &err), 0);
}

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
