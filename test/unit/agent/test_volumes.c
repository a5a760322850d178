/* Volumes of the guest between a kernel (a packet socket in its place) and a host that goes away
 * and comes back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent/volumes.h"
#include "base/cleanup.h"
#include "base/limits.h"

#define VOLUME 7

struct world {
    struct loop *loop;
    struct volumes *volumes;
    int kernel;             /* our end of the volume */
    int host;               /* our end of the channel */
    struct frame_parser in; /* what the agent says */
    uint8_t nonce;
};

static void turn(struct world *w)
{
    for (int i = 0; i < 20; i++)
        loop_turn(w->loop, 0);
}

static void setup(struct world *w)
{
    auto_err struct err err = ERR_INIT;
    int pair[2];
    memset(w, 0, sizeof(*w));
    w->loop = loop_new(&err);
    assert_non_null(w->loop);
    w->volumes = volumes_new(w->loop);
    w->host = -1;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair),
                     0);
    w->kernel = pair[0];
    assert_int_equal(volumes_attach(w->volumes, "owner", VOLUME, pair[1], &err), 0);
}

static void teardown(struct world *w)
{
    volumes_free(w->volumes);
    loop_free(w->loop);
    cleanup_closep(&w->kernel);
    cleanup_closep(&w->host);
    frame_parser_clear(&w->in);
}

/* A new host, or the same one again: the agent's answer to its preamble is what is heard first. */
static void connect_host(struct world *w)
{
    auto_err struct err err = ERR_INIT;
    uint8_t nonce[PREAMBLE_NONCE] = {++w->nonce};
    uint8_t preamble[PREAMBLE_SIZE];
    uint8_t answer[PREAMBLE_SIZE];
    int pair[2];
    cleanup_closep(&w->host);
    turn(w);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    w->host = pair[0];
    assert_int_equal(peer_attach(volumes_peer(w->volumes), pair[1], false, &err), 0);
    preamble_make(preamble, LINK_FS, nonce);
    preamble_answer(answer, preamble);
    frame_parser_clear(&w->in);
    frame_parser_init(&w->in, false, LIMIT_FS_FRAME);
    frame_parser_resync(&w->in, answer);
    assert_int_equal(send(w->host, preamble, sizeof(preamble), 0), sizeof(preamble));
    turn(w);
}

static void kernel_says(struct world *w, uint32_t opcode, uint64_t unique, size_t body)
{
    auto_free char *m = calloc(1, sizeof(struct fuse_in_header) + body);
    struct fuse_in_header h = {
        .len = (uint32_t)(sizeof(h) + body), .opcode = opcode, .unique = unique};
    assert_non_null(m);
    memcpy(m, &h, sizeof(h));
    memset(m + sizeof(h), (int)unique, body);
    assert_int_equal(send(w->kernel, m, h.len, 0), h.len);
    turn(w);
}

/* The unique of the reply that the kernel gets, 0 for none. */
static uint64_t kernel_hears(struct world *w)
{
    struct fuse_out_header h;
    turn(w);
    return recv(w->kernel, &h, sizeof(h), 0) == sizeof(h) ? h.unique : 0;
}

/* The next request at the host; unique 0 when there is none. *len is the whole message's. */
static struct fuse_in_header host_hears(struct world *w, size_t *len)
{
    struct fuse_in_header h = {0};
    struct frame f;
    *len = 0;
    for (;;) {
        enum parse_result r = frame_parser_next(&w->in, &f);
        if (r == PARSE_FRAME) {
            assert_int_equal(f.stream, VOLUME);
            if (f.type == FRAME_FS_CLOSE) {
                h.opcode = UINT32_MAX;
                return h;
            }
            assert_int_equal(f.type, FRAME_FS_DATA);
            if (*len == 0) {
                assert_true(f.len >= sizeof(h));
                memcpy(&h, f.payload, sizeof(h));
            }
            *len += f.len;
            if (f.flags & FRAME_FLAG_END)
                return h;
        } else if (r == PARSE_MORE) {
            size_t room;
            void *to = frame_parser_room(&w->in, &room);
            turn(w);
            ssize_t n = recv(w->host, to, room, 0);
            if (n <= 0)
                return h;
            frame_parser_fed(&w->in, (size_t)n);
        } else {
            assert_int_equal(r, PARSE_SYNCED);
        }
    }
}

static void expect(struct world *w, uint32_t opcode, uint64_t unique)
{
    size_t len;
    struct fuse_in_header h = host_hears(w, &len);
    assert_int_equal(h.opcode, opcode);
    assert_int_equal(h.unique, unique);
    assert_int_equal(h.len, len);
}

static void expect_nothing(struct world *w)
{
    size_t len;
    assert_int_equal(host_hears(w, &len).unique, 0);
    assert_int_equal(len, 0);
}

/* With some bytes of data, in pieces up to the ones at `cuts`. */
static void host_says(struct world *w, uint64_t unique, const size_t *cuts, size_t n_cuts)
{
    auto_buf struct buf out = BUF_INIT(KiB(4));
    struct fuse_out_header h = {.len = sizeof(h) + 8, .unique = unique};
    char message[sizeof(h) + 8];
    size_t at = 0;
    memcpy(message, &h, sizeof(h));
    memcpy(message + sizeof(h), "contents", 8);
    for (size_t i = 0; i <= n_cuts; i++) {
        size_t end = i < n_cuts ? cuts[i] : sizeof(message);
        (void)frame_append(&out, VOLUME, FRAME_FS_DATA, i < n_cuts ? 0 : FRAME_FLAG_END,
                           message + at, end - at);
        at = end;
    }
    assert_int_equal(send(w->host, out.data, out.len, MSG_NOSIGNAL), out.len);
    turn(w);
}

static void host_answers(struct world *w, uint64_t unique)
{
    auto_buf struct buf out = BUF_INIT(KiB(4));
    struct fuse_out_header h = {.len = sizeof(h), .unique = unique};
    /* in two pieces, as a long one comes */
    (void)frame_append(&out, VOLUME, FRAME_FS_DATA, 0, &h, 5);
    (void)frame_append(&out, VOLUME, FRAME_FS_DATA, FRAME_FLAG_END, (const char *)&h + 5,
                       sizeof(h) - 5);
    assert_int_equal(send(w->host, out.data, out.len, MSG_NOSIGNAL), out.len);
    turn(w);
}

static void test_nothing_overtakes_init(void **state)
{
    struct world w;
    (void)state;
    setup(&w);
    kernel_says(&w, FUSE_INIT, 2, 64);
    kernel_says(&w, FUSE_LOOKUP, 4, 5);
    connect_host(&w);
    expect(&w, FUSE_INIT, 2);
    expect_nothing(&w);
    host_answers(&w, 2);
    assert_int_equal(kernel_hears(&w), 2);
    expect(&w, FUSE_LOOKUP, 4);
    host_answers(&w, 4);
    assert_int_equal(kernel_hears(&w), 4);
    assert_int_equal(kernel_hears(&w), 0);
    teardown(&w);
}

static void test_a_new_server_goes_on(void **state)
{
    struct world w;
    (void)state;
    setup(&w);
    connect_host(&w);
    kernel_says(&w, FUSE_INIT, 2, 64);
    expect(&w, FUSE_INIT, 2);
    host_answers(&w, 2);
    assert_int_equal(kernel_hears(&w), 2);
    kernel_says(&w, FUSE_LOOKUP, 4, 5);
    kernel_says(&w, FUSE_FORGET, 6, 8);
    kernel_says(&w, FUSE_WRITE, 8, 100000);
    kernel_says(&w, FUSE_GETATTR, 10, 16);
    expect(&w, FUSE_LOOKUP, 4);
    expect(&w, FUSE_FORGET, 6);
    expect(&w, FUSE_WRITE, 8);
    expect(&w, FUSE_GETATTR, 10);
    host_answers(&w, 4);
    assert_int_equal(kernel_hears(&w), 4);
    for (int i = 0; i < 3; i++) {
        connect_host(&w);
        expect(&w, FUSE_INIT, 2);
        expect_nothing(&w);
        host_answers(&w, 2);
        expect(&w, FUSE_WRITE,
               8); /* what was answered, and what wants no answer, is not said again */
        expect(&w, FUSE_GETATTR, 10);
        expect_nothing(&w);
        assert_int_equal(kernel_hears(&w), 0); /* it has had its INIT */
    }
    kernel_says(&w, FUSE_LOOKUP, 12, 5);
    expect(&w, FUSE_LOOKUP, 12);
    host_answers(&w, 10);
    host_answers(&w, 8);
    host_answers(&w, 8); /* nobody waits for it any more */
    host_answers(&w, 12);
    assert_int_equal(kernel_hears(&w), 10);
    assert_int_equal(kernel_hears(&w), 8);
    assert_int_equal(kernel_hears(&w), 12);
    assert_int_equal(kernel_hears(&w), 0);
    teardown(&w);
}

static void test_a_slow_host_slows_the_kernel(void **state)
{
    struct world w;
    size_t n = 0;
    size_t len;
    (void)state;
    setup(&w);
    connect_host(&w);
    kernel_says(&w, FUSE_INIT, 2, 64);
    expect(&w, FUSE_INIT, 2);
    host_answers(&w, 2);
    assert_int_equal(kernel_hears(&w), 2);
    int flags = fcntl(w.kernel, F_GETFL);
    assert_int_equal(fcntl(w.kernel, F_SETFL, flags | O_NONBLOCK), 0);
    auto_free char *m = calloc(1, 65536);
    for (uint64_t unique = 4; n < 400; unique += 2, n++) {
        struct fuse_in_header h = {.len = 65536, .opcode = FUSE_WRITE, .unique = unique};
        memcpy(m, &h, sizeof(h));
        if (send(w.kernel, m, h.len, 0) < 0)
            break;
        turn(&w);
    }
    assert_true(n > 4 && n < 400); /* it stopped reading */
    for (uint64_t unique = 4; unique < 4 + 2 * n; unique += 2) {
        struct fuse_in_header h = host_hears(&w, &len);
        assert_int_equal(h.unique, unique);
        assert_int_equal(len, 65536);
    }
    teardown(&w);
}

/* However a reply is cut, the kernel gets it whole. */
static void test_pieces(void **state)
{
    static const size_t cuts[][3] = {{0}, {3}, {16}, {20}, {3, 9}, {3, 16, 18}, {16, 20}, {17, 23}};
    static const size_t n_cuts[] = {0, 1, 1, 1, 2, 3, 2, 2};
    struct world w;
    char got[64];
    (void)state;
    setup(&w);
    connect_host(&w);
    kernel_says(&w, FUSE_INIT, 2, 64);
    expect(&w, FUSE_INIT, 2);
    host_answers(&w, 2);
    assert_int_equal(kernel_hears(&w), 2);
    for (size_t i = 0; i < ARRAY_LEN(n_cuts); i++) {
        kernel_says(&w, FUSE_READ, 4 + 2 * i, 40);
        expect(&w, FUSE_READ, 4 + 2 * i);
        host_says(&w, 4 + 2 * i, cuts[i], n_cuts[i]);
        assert_int_equal(recv(w.kernel, got, sizeof(got), 0), sizeof(struct fuse_out_header) + 8);
        assert_memory_equal(got + sizeof(struct fuse_out_header), "contents", 8);
    }
    teardown(&w);
}

/* The kernel hears at once that a file is closed; the host is told and has nothing to say. */
static void test_release(void **state)
{
    struct world w;
    (void)state;
    setup(&w);
    connect_host(&w);
    kernel_says(&w, FUSE_INIT, 2, 64);
    expect(&w, FUSE_INIT, 2);
    host_answers(&w, 2);
    assert_int_equal(kernel_hears(&w), 2);
    kernel_says(&w, FUSE_RELEASE, 4, 24);
    assert_int_equal(kernel_hears(&w), 4);
    expect(&w, FUSE_RELEASE, 4);
    connect_host(&w);
    expect(&w, FUSE_INIT, 2);
    host_answers(&w, 2);
    expect_nothing(&w);
    teardown(&w);
}

/* No more than a new server is sure to know of its predecessor's changes. */
static void test_many_that_wait(void **state)
{
    struct world w;
    (void)state;
    setup(&w);
    connect_host(&w);
    kernel_says(&w, FUSE_INIT, 2, 64);
    expect(&w, FUSE_INIT, 2);
    host_answers(&w, 2);
    assert_int_equal(kernel_hears(&w), 2);
    for (uint64_t i = 0; i < LIMIT_FS_WAITING + 20; i++)
        kernel_says(&w, FUSE_MKDIR, 4 + 2 * i, 16);
    for (uint64_t i = 0; i < LIMIT_FS_WAITING; i++)
        expect(&w, FUSE_MKDIR, 4 + 2 * i);
    expect_nothing(&w);
    for (uint64_t i = 0; i < 20; i++) {
        host_answers(&w, 4 + 2 * i);
        assert_int_equal(kernel_hears(&w), 4 + 2 * i);
        expect(&w, FUSE_MKDIR, 4 + 2 * (LIMIT_FS_WAITING + i));
        expect_nothing(&w);
    }
    teardown(&w);
}

static void test_end_of_an_owner(void **state)
{
    struct world w;
    size_t len;
    auto_err struct err err = ERR_INIT;
    (void)state;
    setup(&w);
    connect_host(&w);
    kernel_says(&w, FUSE_INIT, 2, 64);
    expect(&w, FUSE_INIT, 2);
    assert_int_equal(volumes_attach(w.volumes, "other", VOLUME, dup(w.host), &err), -1);
    volumes_release(w.volumes, "nobody");
    volumes_release(w.volumes, "owner");
    assert_int_equal(host_hears(&w, &len).opcode, UINT32_MAX);
    char c;
    assert_int_equal(recv(w.kernel, &c, 1, 0), 0); /* closed */
    host_answers(&w, 2);                           /* too late, and no harm */
    teardown(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_nothing_overtakes_init),
        cmocka_unit_test(test_a_new_server_goes_on),
        cmocka_unit_test(test_a_slow_host_slows_the_kernel),
        cmocka_unit_test(test_pieces),
        cmocka_unit_test(test_release),
        cmocka_unit_test(test_many_that_wait),
        cmocka_unit_test(test_end_of_an_owner),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
