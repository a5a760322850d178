/* The guest's streams, spoken to frame by frame: windows, overlaps, gaps, turns. */
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/peer.h"
#include "agent/stdio.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/limits.h"

struct fix {
    struct loop *loop;
    struct stdio *io;
    int host; /* our end of the channel */
    struct frame_parser in;
    uint8_t preamble[PREAMBLE_SIZE];
};

static void turn(struct fix *f)
{
    for (int i = 0; i < 20; i++)
        loop_turn(f->loop, 0);
}

static void connect_host(struct fix *f)
{
    uint8_t answer[PREAMBLE_SIZE];
    int sv[2];

    cleanup_closep(&f->host);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sv), 0);
    assert_int_equal(peer_attach(stdio_peer(f->io), sv[0], false, NULL), 0);
    f->host = sv[1];
    preamble_make(f->preamble, LINK_IO, (const uint8_t *)"0123456789abcdef");
    preamble_answer(answer, f->preamble);
    frame_parser_resync(&f->in, answer);
    assert_int_equal(write(f->host, f->preamble, PREAMBLE_SIZE), PREAMBLE_SIZE);
    turn(f);
}

static int setup(void **state)
{
    struct fix *f = calloc(1, sizeof(*f));

    (void)signal(SIGPIPE, SIG_IGN);
    f->loop = loop_new(NULL);
    f->io = stdio_new(f->loop, NULL);
    f->host = -1;
    frame_parser_init(&f->in, false, LIMIT_IO_FRAME + 8);
    connect_host(f);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fix *f = *state;

    stdio_free(f->io);
    loop_free(f->loop);
    frame_parser_clear(&f->in);
    cleanup_closep(&f->host);
    free(f);
    return 0;
}

/* The next frame from the guest; false when there is none. */
static bool next(struct fix *f, struct frame *fr)
{
    for (;;) {
        enum parse_result r = frame_parser_next(&f->in, fr);

        if (r == PARSE_FRAME)
            return true;
        assert_int_not_equal(r, PARSE_BROKEN);
        if (r != PARSE_MORE)
            continue;
        size_t size;
        void *to = frame_parser_room(&f->in, &size);
        ssize_t n = read(f->host, to, size);

        turn(f);
        if (n <= 0)
            return false;
        frame_parser_fed(&f->in, (size_t)n);
    }
}

static void expect_offset(struct fix *f, uint32_t stream, uint8_t type, uint64_t offset)
{
    struct frame fr;
    uint64_t off = 0;

    assert_true(next(f, &fr));
    assert_int_equal(fr.type, type);
    assert_int_equal(fr.stream, stream);
    assert_int_equal(frame_offset(&fr, &off), 0);
    assert_int_equal(off, offset);
}

static void expect_reset(struct fix *f, uint32_t stream, const char *why)
{
    struct frame fr;

    assert_true(next(f, &fr));
    assert_int_equal(fr.type, FRAME_IO_RESET);
    assert_int_equal(fr.stream, stream);
    assert_int_equal(fr.len, strlen(why));
    assert_memory_equal(fr.payload, why, fr.len);
}

static void expect_nothing(struct fix *f)
{
    struct frame fr;

    assert_false(next(f, &fr));
}

static void send_offset(struct fix *f, uint8_t type, uint32_t stream, uint64_t offset)
{
    auto_buf struct buf b = BUF_INIT(KiB(1));

    assert_int_equal(frame_append_offset(&b, type, stream, offset), 0);
    assert_int_equal(write(f->host, b.data, b.len), b.len);
    turn(f);
}

static void send_data(struct fix *f, uint32_t stream, uint8_t flags, uint64_t offset,
                      const void *data, size_t len)
{
    auto_buf struct buf b = BUF_INIT(KiB(128));

    assert_int_equal(frame_append_io(&b, stream, flags, offset, data, len), 0);
    assert_int_equal(write(f->host, b.data, b.len), b.len);
    turn(f);
}

static uint32_t input(struct fix *f, int *read_end)
{
    int p[2];

    assert_int_equal(pipe(p), 0);
    *read_end = p[0];
    uint32_t id = stdio_add_input(f->io, p[1], false, NULL);
    assert_true(id > 0);
    return id;
}

static void input_overlap_and_gap(void **state)
{
    struct fix *f = *state;
    char b[32] = {0};
    int fd;
    uint32_t id = input(f, &fd);

    send_offset(f, FRAME_IO_OPEN, id, 0);
    expect_offset(f, id, FRAME_IO_ACK, 0);
    send_data(f, id, 0, 0, "abcd", 4);
    expect_offset(f, id, FRAME_IO_ACK, 4);
    send_data(f, id, 0, 2, "cdef", 4); /* two known, two new */
    expect_offset(f, id, FRAME_IO_ACK, 6);
    send_data(f, id, 0, 0, "abcdef", 6); /* nothing new */
    expect_nothing(f);
    assert_int_equal(read(fd, b, sizeof(b)), 6);
    assert_string_equal(b, "abcdef");
    send_data(f, id, 0, 7, "x", 1);
    expect_reset(f, id, "bytes are missing");
    assert_int_equal(read(fd, b, sizeof(b)), 0); /* closed */
    send_offset(f, FRAME_IO_OPEN, id, 0);
    expect_reset(f, id, "bytes are missing");
    (void)close(fd);
}

static void input_end(void **state)
{
    struct fix *f = *state;
    char b[32] = {0};
    int fd;
    uint32_t id = input(f, &fd);

    send_data(f, id, FRAME_FLAG_EOF, 0, "end", 3);
    expect_offset(f, id, FRAME_IO_ACK, 3);
    assert_int_equal(read(fd, b, sizeof(b)), 3);
    assert_int_equal(read(fd, b, sizeof(b)), 0);
    send_data(f, id, 0, 3, "more", 4); /* nobody is there to read it */
    expect_nothing(f);
    send_offset(f, FRAME_IO_OPEN, id, 0);
    expect_offset(f, id, FRAME_IO_ACK, 3);
    (void)close(fd);
}

static void input_credit_across_connections(void **state)
{
    struct fix *f = *state;
    static char chunk[LIMIT_IO_FRAME];
    int fd;
    uint32_t id = input(f, &fd);
    struct frame fr;
    uint64_t sent = 0;
    uint64_t acked = 0;

    /* Nobody reads: fill the pipe and the window. */
    (void)fcntl(fd, F_SETPIPE_SZ, 4096);
    for (;;) {
        while (next(f, &fr)) {
            assert_int_equal(frame_offset(&fr, &acked), 0);
            assert_int_equal(frame_window(&fr), LIMIT_IO_INPUT_WINDOW);
        }
        if (sent + sizeof(chunk) > acked + LIMIT_IO_INPUT_WINDOW)
            break;
        send_data(f, id, 0, sent, chunk, sizeof(chunk));
        sent += sizeof(chunk);
    }
    assert_true(sent <= acked + LIMIT_IO_INPUT_WINDOW);
    /* A new host learns what arrived and gets one more window, once. */
    connect_host(f);
    send_offset(f, FRAME_IO_OPEN, id, 0);
    expect_offset(f, id, FRAME_IO_ACK, sent);
    for (uint64_t end = sent + LIMIT_IO_INPUT_WINDOW; sent < end; sent += sizeof(chunk))
        send_data(f, id, 0, sent, chunk, sizeof(chunk));
    expect_nothing(f);
    connect_host(f);
    send_offset(f, FRAME_IO_OPEN, id, 0);
    expect_nothing(f); /* until the process has read half of it */
    while (!next(f, &fr)) {
        char b[4096];

        assert_true(read(fd, b, sizeof(b)) > 0);
        turn(f);
    }
    assert_int_equal(fr.type, FRAME_IO_ACK);
    assert_int_equal(frame_offset(&fr, &acked), 0);
    assert_int_equal(acked, sent);
    /* and past a window it is the host's fault */
    for (uint64_t end = sent + LIMIT_IO_INPUT_WINDOW; sent <= end; sent += sizeof(chunk)) {
        expect_nothing(f);
        send_data(f, id, 0, sent, chunk, sizeof(chunk));
    }
    expect_reset(f, id, "more bytes than were granted");
    (void)close(fd);
}

/* Bulk is acknowledged in steps that leave credit even to a host which knows of no larger window.
 */
static void input_acks_are_few(void **state)
{
    struct fix *f = *state;
    static char chunk[KiB(32)];
    char back[KiB(32)];
    unsigned acks = 0;
    uint64_t acked = 0;
    int fd;
    uint32_t id = input(f, &fd);
    struct frame fr;

    send_offset(f, FRAME_IO_OPEN, id, 0);
    expect_offset(f, id, FRAME_IO_ACK, 0);
    for (size_t i = 0; i < sizeof(chunk); i++)
        chunk[i] = (char)(i * 7);
    for (uint64_t sent = 0; sent < MiB(2);) {
        assert_true(sent + sizeof(chunk) <= acked + LIMIT_IO_WINDOW);
        send_data(f, id, 0, sent, chunk, sizeof(chunk));
        sent += sizeof(chunk);
        for (size_t got = 0; got < sizeof(back);) {
            ssize_t n = read(fd, back + got, sizeof(back) - got);
            assert_true(n > 0);
            got += (size_t)n;
        }
        assert_memory_equal(back, chunk, sizeof(back));
        while (next(f, &fr)) {
            assert_int_equal(fr.type, FRAME_IO_ACK);
            assert_int_equal(frame_offset(&fr, &acked), 0);
            acks++;
        }
    }
    assert_true(acks > 0 && acks <= MiB(2) / KiB(128));
    (void)close(fd);
}

static void outputs_take_turns(void **state)
{
    struct fix *f = *state;
    static char big[LIMIT_IO_WINDOW];
    struct frame fr;
    int p[2];
    int q[2];
    unsigned before = 0;
    uint64_t off;

    assert_int_equal(pipe(p), 0);
    assert_int_equal(pipe(q), 0);
    (void)fcntl(p[1], F_SETPIPE_SZ, (int)sizeof(big));
    uint32_t loud = stdio_add_output(f->io, p[0], NULL, NULL, NULL);
    uint32_t quiet = stdio_add_output(f->io, q[0], NULL, NULL, NULL);
    assert_int_equal(write(p[1], big, sizeof(big)), sizeof(big));
    assert_int_equal(write(q[1], "me too", 6), 6);
    turn(f);
    expect_nothing(f); /* not opened */
    send_offset(f, FRAME_IO_OPEN, loud, 0);
    send_offset(f, FRAME_IO_OPEN, quiet, 0);
    do {
        assert_true(next(f, &fr));
        before++;
    } while (fr.stream != quiet);
    assert_int_equal(fr.len, 8 + 6);
    assert_true(before <= 5); /* what was in the socket and the queue, no more */
    while (next(f, &fr))
        assert_int_equal(fr.stream, loud);
    /* one window and not a byte more until it is acknowledged */
    assert_int_equal(write(p[1], "x", 1), 1);
    turn(f);
    expect_nothing(f);
    send_offset(f, FRAME_IO_ACK, loud, LIMIT_IO_WINDOW + 1); /* of what was not sent */
    expect_nothing(f);
    send_offset(f, FRAME_IO_ACK, loud, 1);
    assert_true(next(f, &fr));
    assert_int_equal(frame_offset(&fr, &off), 0);
    assert_int_equal(off, LIMIT_IO_WINDOW);
    assert_int_equal(fr.len, 9);
    /* the host may stop a stream */
    assert_int_equal(write(q[1], "again", 5), 5);
    send_data(f, quiet, 0, 0, "", 0);
    assert_true(next(f, &fr));
    assert_int_equal(fr.stream, quiet);
    {
        auto_buf struct buf b = BUF_INIT(KiB(1));
        assert_int_equal(frame_append(&b, quiet, FRAME_IO_RESET, 0, "stop", 4), 0);
        assert_int_equal(write(f->host, b.data, b.len), b.len);
    }
    assert_int_equal(write(q[1], "nobody", 6), 6);
    turn(f);
    expect_nothing(f);
    send_offset(f, FRAME_IO_OPEN, quiet, 6);
    expect_offset(f, quiet, FRAME_IO_DATA, 6);
    stdio_remove(f->io, quiet);
    send_offset(f, FRAME_IO_OPEN, quiet, 6);
    expect_reset(f, quiet, "no such stream");
    (void)close(p[1]);
    (void)close(q[1]);
}

static void idle_streams_cost_nothing(void **state)
{
    struct fix *f = *state;
    static char big[LIMIT_IO_WINDOW + 1];
    int p[2];
    int fd;

    /* a full ring whose writer is gone, and an input whose reader is gone, must not keep the loop
     * busy */
    assert_int_equal(pipe(p), 0);
    (void)fcntl(p[1], F_SETPIPE_SZ, 1 << 20);
    (void)stdio_add_output(f->io, p[0], NULL, NULL, NULL);
    assert_int_equal(write(p[1], big, sizeof(big)), sizeof(big));
    (void)close(p[1]);
    (void)input(f, &fd);
    (void)close(fd);
    turn(f);
    turn(f);
    loop_turn(f->loop, 50);
    struct timespec a;
    struct timespec b;
    (void)clock_gettime(CLOCK_MONOTONIC, &a);
    loop_turn(f->loop, 100); /* nothing may happen in it */
    (void)clock_gettime(CLOCK_MONOTONIC, &b);
    assert_true((b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000 >= 95);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(input_overlap_and_gap, setup, teardown),
        cmocka_unit_test_setup_teardown(input_end, setup, teardown),
        cmocka_unit_test_setup_teardown(input_credit_across_connections, setup, teardown),
        cmocka_unit_test_setup_teardown(input_acks_are_few, setup, teardown),
        cmocka_unit_test_setup_teardown(outputs_take_turns, setup, teardown),
        cmocka_unit_test_setup_teardown(idle_streams_cost_nothing, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
