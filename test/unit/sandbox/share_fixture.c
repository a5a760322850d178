#include "share_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"

#define SECONDS_NS INT64_C(20000000000)

bool more(struct guest *g)
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

static void connect_server(struct guest *g, const char *failpoints)
{
    int sockets[2];
    int go[2];
    struct frame f;
    auto_err struct err err = ERR_INIT;
    auto_free char *fail = fs_format("ASPIS_FAILPOINTS=%s", failpoints != NULL ? failpoints : "");
    const char *env[] = {fail, NULL};
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets), 0);
    assert_int_equal(pipe2(go, O_CLOEXEC), 0);
    const char *argv[] = {getenv("ASPIS_SHARE"), "guest=test", NULL};
    assert_non_null(argv[0]);
    struct spawn_fd fds[] = {{2, 2}, {3, sockets[1]}, {4, go[0]}, {5, g->state}};
    struct spawn_opts o = {.path = argv[0],
                           .argv = argv,
                           .env = env,
                           .fds = fds,
                           .n_fds = ARRAY_LEN(fds) - (g->state < 0 ? 1 : 0)};
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

void start_with(struct guest *g, int state, const char *failpoints)
{
    memset(g, 0, sizeof(*g));
    g->state = state;
    g->volume = 3000000000U + (uint32_t)getpid();
    (void)snprintf(g->dir, sizeof(g->dir), "/tmp/%u", g->volume);
    assert_int_equal(mkdir(g->dir, 0755), 0);
    connect_server(g, failpoints);
}

void start(struct guest *g)
{
    start_with(g, -1, NULL);
}

static void disconnect(struct guest *g)
{
    (void)close(g->fd);
    spawn_clear(&g->server);
    frame_parser_clear(&g->in);
}

void start_again(struct guest *g, const char *failpoints)
{
    disconnect(g);
    connect_server(g, failpoints);
}

void stop(struct guest *g)
{
    auto_err struct err err = ERR_INIT;
    disconnect(g);
    cleanup_closep(&g->state);
    assert_int_equal(fs_rm_rf(g->dir, &err), 0);
}

void ask_as(struct guest *g, uint64_t unique, uint32_t opcode, uint64_t node, const void *body,
            size_t len)
{
    auto_buf struct buf message = BUF_INIT(LIMIT_FS_MESSAGE * 2);
    auto_buf struct buf out = BUF_INIT(LIMIT_FS_MESSAGE * 2);
    struct fuse_in_header h = {
        .len = (uint32_t)(sizeof(h) + len), .opcode = opcode, .unique = unique, .nodeid = node};
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

void ask(struct guest *g, uint32_t opcode, uint64_t node, const void *body, size_t len)
{
    ask_as(g, g->unique += 2, opcode, node, body, len);
}

int hear(struct guest *g)
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

int call(struct guest *g, uint32_t opcode, uint64_t node, const void *body, size_t len)
{
    ask(g, opcode, node, body, len);
    return hear(g);
}

void init(struct guest *g)
{
    struct fuse_init_in in = {.major = 7, .minor = 36, .flags = FUSE_ATOMIC_O_TRUNC};
    assert_int_equal(call(g, FUSE_INIT, 0, &in, sizeof(in)), 0);
}

uint64_t node_in(struct guest *g, uint64_t dir, const char *name)
{
    struct fuse_entry_out e;
    assert_int_equal(call(g, FUSE_LOOKUP, dir, name, strlen(name) + 1), 0);
    memcpy(&e, g->reply + sizeof(struct fuse_out_header), sizeof(e));
    return e.nodeid;
}

uint64_t node_of(struct guest *g, const char *name)
{
    return node_in(g, 1, name);
}

uint64_t open_node(struct guest *g, uint32_t opcode, uint64_t node, uint32_t flags)
{
    struct fuse_open_in in = {.flags = flags};
    struct fuse_open_out o;
    assert_int_equal(call(g, opcode, node, &in, sizeof(in)), 0);
    memcpy(&o, g->reply + sizeof(struct fuse_out_header), sizeof(o));
    return o.fh;
}

void make_file(struct guest *g, const char *name, const char *text)
{
    char path[64];
    auto_err struct err err = ERR_INIT;
    (void)snprintf(path, sizeof(path), "%s/%s", g->dir, name);
    assert_int_equal(fs_write_atomic(path, text, strlen(text), 0644, false, &err), 0);
}
