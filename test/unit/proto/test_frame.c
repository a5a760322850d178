/* The link's codec: any cut of the byte stream gives the same frames, whatever stands before. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "proto/frame.h"

#define MAX_PAYLOAD 1000

static const uint8_t nonce[PREAMBLE_NONCE] = {1, 2,  3,  4,  5,  6,  7,  8,
                                              9, 10, 11, 12, 13, 14, 15, 16};

/* Everything the parser says, as text: "f<type>:<stream>:<len>:<first byte> ", "P ", "S ", "B ". */
static void drain(struct frame_parser *p, struct buf *log)
{
    struct frame f;

    for (;;) {
        switch (frame_parser_next(p, &f)) {
        case PARSE_MORE:
            return;
        case PARSE_FRAME:
            assert_int_equal(buf_printf(log, "f%u:%u:%zu:%u ", f.type, f.stream, f.len,
                                        f.len > 0 ? f.payload[0] : 0U),
                             0);
            for (size_t i = 1; i < f.len; i++)
                assert_int_equal(f.payload[i], f.payload[0]);
            break;
        case PARSE_PREAMBLE:
            assert_int_equal(buf_puts(log, "P "), 0);
            break;
        case PARSE_SYNCED:
            assert_int_equal(buf_puts(log, "S "), 0);
            break;
        case PARSE_BROKEN:
            assert_int_equal(buf_puts(log, "B "), 0);
            break;
        }
    }
}

static void feed(struct frame_parser *p, const uint8_t *data, size_t len, struct buf *log)
{
    while (len > 0) {
        size_t size;
        uint8_t *room = frame_parser_room(p, &size);

        assert_non_null(room);
        assert_true(size >= 4096);
        if (size > len)
            size = len;
        memcpy(room, data, size);
        frame_parser_fed(p, size);
        drain(p, log);
        data += size;
        len -= size;
    }
}

/* Parses `in` whole, byte by byte, and in every two-part cut, and expects the same each time. */
static void check(bool agent, const uint8_t *answer, const struct buf *in, const char *want)
{
    for (size_t cut = 0; cut <= in->len + 1; cut++) {
        auto_buf struct buf log = BUF_INIT(MiB(1));
        struct frame_parser p;
        const uint8_t *data = (const uint8_t *)in->data;

        frame_parser_init(&p, agent, MAX_PAYLOAD);
        if (!agent)
            frame_parser_resync(&p, answer);
        if (cut <= in->len) {
            feed(&p, data, cut, &log);
            feed(&p, data + cut, in->len - cut, &log);
        } else {
            for (size_t i = 0; i < in->len; i++)
                feed(&p, data + i, 1, &log);
        }
        assert_string_equal(buf_str(&log), want);
        frame_parser_clear(&p);
    }
}

static void put(struct buf *b, uint32_t stream, uint8_t type, size_t len, char fill)
{
    char payload[MAX_PAYLOAD];

    memset(payload, fill, sizeof(payload));
    assert_int_equal(frame_append(b, stream, type, 0, payload, len), 0);
}

static void put_preamble(struct buf *b, bool answer, uint8_t first)
{
    uint8_t n[PREAMBLE_NONCE];
    uint8_t p[PREAMBLE_SIZE];

    memcpy(n, nonce, sizeof(n));
    n[0] = first;
    preamble_make(p, LINK_IO, n);
    if (answer)
        preamble_answer(p, p);
    assert_int_equal(buf_append(b, p, sizeof(p)), 0);
}

static void frames_of_any_cut(void **state)
{
    (void)state;
    auto_buf struct buf in = BUF_INIT(MiB(1));

    put_preamble(&in, false, 1);
    put(&in, 1, FRAME_REQUEST, 0, 'a');
    put(&in, 3, FRAME_CANCEL, 1, 'b');
    put(&in, 0xffffffff, FRAME_IO_RESET, MAX_PAYLOAD, 'c');
    put(&in, 5, FRAME_RESPONSE, 20, 'd');
    check(true, NULL, &in, "P f1:1:0:0 f16:3:1:98 f20:4294967295:1000:99 f2:5:20:100 ");
}

static void stale_bytes_before_preamble(void **state)
{
    (void)state;
    auto_buf struct buf in = BUF_INIT(MiB(1));

    /* the tail of a frame, half a magic, and a preamble of a version we do not speak */
    assert_int_equal(buf_append(&in, "tailASPISLNASPISLNK\0\0\0\2\0\0\0\1", 27), 0);
    put_preamble(&in, false, 1);
    put(&in, 7, FRAME_REQUEST, 3, 'x');
    check(true, NULL, &in, "P f1:7:3:120 ");
}

static void preamble_between_and_inside_frames(void **state)
{
    (void)state;
    auto_buf struct buf in = BUF_INIT(MiB(1));
    uint8_t h[FRAME_HEADER];

    put_preamble(&in, false, 1);
    put(&in, 1, FRAME_REQUEST, 4, 'a');
    put_preamble(&in, false, 2);
    put(&in, 1, FRAME_REQUEST, 5, 'b');
    /* a frame of 900 bytes of which only 50 came before the host died */
    frame_put_header(h, 900, 9, FRAME_IO_DATA, 0);
    assert_int_equal(buf_append(&in, h, sizeof(h)), 0);
    for (int i = 0; i < 50; i++)
        assert_int_equal(buf_putc(&in, 'z'), 0);
    put_preamble(&in, false, 3);
    put(&in, 3, FRAME_REQUEST, 6, 'c');
    check(true, NULL, &in, "P f1:1:4:97 P f1:1:5:98 P f1:3:6:99 ");
}

static void preamble_swallowed_by_a_short_rest(void **state)
{
    (void)state;
    auto_buf struct buf in = BUF_INIT(MiB(1));
    uint8_t h[FRAME_HEADER];

    /* 20 bytes are missing, so the cut frame is complete in the middle of the preamble */
    put_preamble(&in, false, 1);
    frame_put_header(h, 40, 9, FRAME_IO_DATA, 0);
    assert_int_equal(buf_append(&in, h, sizeof(h)), 0);
    for (int i = 0; i < 20; i++)
        assert_int_equal(buf_putc(&in, 'z'), 0);
    put_preamble(&in, false, 2);
    put(&in, 3, FRAME_REQUEST, 6, 'c');
    check(true, NULL, &in, "P P f1:3:6:99 ");
}

static void impossible_headers(void **state)
{
    (void)state;
    auto_buf struct buf in = BUF_INIT(MiB(1));

    put_preamble(&in, false, 1);
    assert_int_equal(buf_append(&in, "\0\0\3\351\0\0\0\1\1\0", 10), 0); /* length 1001 */
    put_preamble(&in, false, 2);
    assert_int_equal(buf_append(&in, "\0\0\0\1\0\0\0\1\0\0x", 11), 0); /* type 0 */
    put_preamble(&in, false, 3);
    assert_int_equal(buf_append(&in, "\377\377\377\377\0\0\0\1\1\0", 10), 0);
    put_preamble(&in, false, 4);
    put(&in, 1, FRAME_DATA, 2, 'q');
    check(true, NULL, &in, "P B P B P B P f3:1:2:113 ");
}

static void host_waits_for_its_answer(void **state)
{
    (void)state;
    auto_buf struct buf in = BUF_INIT(MiB(1));
    uint8_t answer[PREAMBLE_SIZE];

    put(&in, 1, FRAME_RESPONSE, 9, 'o');
    put_preamble(&in, true, 77); /* to another connection */
    put_preamble(&in, true, 1);
    in.len -= 5; /* an answer cut by a second preamble */
    put_preamble(&in, true, 1);
    put_preamble(&in, true, 1); /* answered twice */
    put(&in, 1, FRAME_RESPONSE, 9, 'n');
    put_preamble(&in, true, 1); /* once more, late */
    put(&in, 2, FRAME_RESPONSE, 0, 'n');
    preamble_make(answer, LINK_IO, nonce);
    preamble_answer(answer, answer);
    check(false, answer, &in, "S f2:1:9:110 f2:2:0:0 ");

    /* after that, an answer to somebody else is no frame */
    put_preamble(&in, true, 77);
    check(false, answer, &in, "S f2:1:9:110 f2:2:0:0 B ");
}

static void host_does_not_take_preambles(void **state)
{
    (void)state;
    auto_buf struct buf in = BUF_INIT(MiB(1));
    uint8_t answer[PREAMBLE_SIZE];

    preamble_make(answer, LINK_IO, nonce);
    preamble_answer(answer, answer);
    put_preamble(&in, false, 1);
    put_preamble(&in, true, 1);
    put_preamble(&in, false, 1);
    check(false, answer, &in, "S B ");
}

static void a_guest_text_may_hold_an_answer(void **state)
{
    (void)state;
    auto_buf struct buf in = BUF_INIT(MiB(1));
    uint8_t answer[PREAMBLE_SIZE];
    struct frame_parser p;
    struct frame f;
    size_t size;

    preamble_make(answer, LINK_IO, nonce);
    preamble_answer(answer, answer);
    put_preamble(&in, true, 1);
    assert_int_equal(frame_append(&in, 1, FRAME_DATA, 0, answer, sizeof(answer)), 0);
    frame_parser_init(&p, false, MAX_PAYLOAD);
    frame_parser_resync(&p, answer);
    memcpy(frame_parser_room(&p, &size), in.data, in.len);
    frame_parser_fed(&p, in.len);
    assert_int_equal(frame_parser_next(&p, &f), PARSE_SYNCED);
    assert_int_equal(frame_parser_next(&p, &f), PARSE_FRAME);
    assert_int_equal(f.len, PREAMBLE_SIZE);
    assert_int_equal(frame_parser_next(&p, &f), PARSE_MORE);
    frame_parser_clear(&p);
}

static void memory_follows_bytes_not_lengths(void **state)
{
    (void)state;
    auto_buf struct buf in = BUF_INIT(MiB(1));
    auto_buf struct buf log = BUF_INIT(KiB(4));
    struct frame_parser p;
    uint8_t h[FRAME_HEADER];

    frame_parser_init(&p, true, LIMIT_RPC_MESSAGE);
    put_preamble(&in, false, 1);
    frame_put_header(h, (uint32_t)LIMIT_RPC_MESSAGE, 9, FRAME_REQUEST, 0);
    assert_int_equal(buf_append(&in, h, sizeof(h)), 0);
    feed(&p, (const uint8_t *)in.data, in.len, &log);
    assert_true(p.in.cap <= KiB(128));
    /* garbage is not collected while scanning */
    frame_parser_resync(&p, NULL);
    for (int i = 0; i < 100; i++) {
        uint8_t junk[4096];

        memset(junk, 'A', sizeof(junk));
        feed(&p, junk, sizeof(junk), &log);
    }
    assert_true(p.in.cap <= KiB(128));
    assert_string_equal(buf_str(&log), "P ");
    frame_parser_clear(&p);
}

static void large_frame_is_given_back(void **state)
{
    (void)state;
    auto_buf struct buf in = BUF_INIT(MiB(8));
    auto_buf struct buf log = BUF_INIT(KiB(4));
    struct frame_parser p;
    auto_free char *big = malloc(LIMIT_RPC_MESSAGE + 1);
    size_t size;

    memset(big, 'g', LIMIT_RPC_MESSAGE + 1);
    put_preamble(&in, false, 1);
    assert_int_equal(frame_append(&in, 1, FRAME_REQUEST, 0, big, LIMIT_RPC_MESSAGE), 0);
    frame_parser_init(&p, true, LIMIT_RPC_MESSAGE);
    feed(&p, (const uint8_t *)in.data, in.len, &log);
    assert_string_equal(buf_str(&log), "P f1:1:4194304:103 ");
    assert_non_null(frame_parser_room(&p, &size));
    assert_true(p.in.cap <= KiB(256));
    frame_parser_clear(&p);

    /* what no receiver would take is not sent */
    buf_reset(&in);
    assert_int_equal(frame_append(&in, 1, FRAME_REQUEST, 0, big, LIMIT_RPC_MESSAGE + 1), -1);
    buf_reset(&in);
    assert_int_equal(frame_append_io(&in, 1, 0, 0, big, LIMIT_IO_FRAME + 1), -1);
}

static void io_payloads(void **state)
{
    (void)state;
    auto_buf struct buf in = BUF_INIT(KiB(4));
    struct frame f = {0};
    uint64_t off = 0;

    assert_int_equal(frame_append_io(&in, 5, FRAME_FLAG_EOF, 0x0102030405060708, "ab", 2), 0);
    assert_memory_equal(in.data, "\0\0\0\12\0\0\0\5\22\1\1\2\3\4\5\6\7\10ab", 20);
    f.payload = (const uint8_t *)in.data + FRAME_HEADER;
    f.len = 10;
    assert_int_equal(frame_offset(&f, &off), 0);
    assert_true(off == 0x0102030405060708);
    f.len = 7;
    assert_int_equal(frame_offset(&f, &off), -1);
    buf_reset(&in);
    assert_int_equal(frame_append_offset(&in, FRAME_IO_ACK, 5, 9), 0);
    assert_memory_equal(in.data, "\0\0\0\10\0\0\0\5\23\0\0\0\0\0\0\0\0\11", 18);
}

static void data_with_a_preamble_is_cut(void **state)
{
    (void)state;
    uint8_t data[100];
    size_t n;

    memset(data, 'A', sizeof(data));
    assert_int_equal(preamble_safe_len(data, sizeof(data)), sizeof(data));
    preamble_make(data + 30, LINK_FS, nonce);
    n = preamble_safe_len(data, sizeof(data));
    assert_true(n > 30 && n < 30 + PREAMBLE_FIXED);
    assert_null(preamble_find(data, n));
    assert_null(preamble_find(data + n, sizeof(data) - n));
    assert_ptr_equal(preamble_find(data, 30 + PREAMBLE_FIXED), data + 30);
    assert_null(preamble_find(data, 30 + PREAMBLE_FIXED - 1));
}

/* Found at any place among bytes that look like it or do not. */
static void preamble_anywhere(void **state)
{
    (void)state;
    static const char *const fill[] = {
        "K", "ASPISLN", "ASPISLNK", "x", "xxxxxxxxxxxxxxxxxxxK", "SPISLNKA"};
    uint8_t data[600];

    for (size_t k = 0; k < ARRAY_LEN(fill); k++) {
        size_t len = strlen(fill[k]);

        for (size_t at = 0; at + PREAMBLE_SIZE <= sizeof(data); at++) {
            for (size_t i = 0; i < sizeof(data); i++)
                data[i] = (uint8_t)fill[k][i % len];
            assert_null(preamble_find(data, sizeof(data)));
            preamble_make(data + at, LINK_IO, nonce);
            assert_ptr_equal(preamble_find(data, sizeof(data)), data + at);
            assert_int_equal(preamble_safe_len(data, sizeof(data)), at + 8);
        }
    }
}

static void credit(void **state)
{
    (void)state;
    auto_buf struct buf b = BUF_INIT(KiB(1));
    struct frame f = {0};
    uint64_t off = 0;

    assert_int_equal(frame_append_credit(&b, 5, 9, 0x80000), 0);
    assert_memory_equal(b.data, "\0\0\0\14\0\0\0\5\23\0\0\0\0\0\0\0\0\11\0\10\0\0", 22);
    f.payload = (const uint8_t *)b.data + FRAME_HEADER;
    f.len = 12;
    assert_int_equal(frame_offset(&f, &off), 0);
    assert_true(off == 9);
    assert_int_equal(frame_window(&f), 0x80000);
    f.len = 8;
    assert_int_equal(frame_window(&f), LIMIT_IO_WINDOW);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_of_any_cut),
        cmocka_unit_test(stale_bytes_before_preamble),
        cmocka_unit_test(preamble_between_and_inside_frames),
        cmocka_unit_test(preamble_swallowed_by_a_short_rest),
        cmocka_unit_test(impossible_headers),
        cmocka_unit_test(host_waits_for_its_answer),
        cmocka_unit_test(host_does_not_take_preambles),
        cmocka_unit_test(a_guest_text_may_hold_an_answer),
        cmocka_unit_test(memory_follows_bytes_not_lengths),
        cmocka_unit_test(large_frame_is_given_back),
        cmocka_unit_test(io_payloads),
        cmocka_unit_test(data_with_a_preamble_is_cut),
        cmocka_unit_test(preamble_anywhere),
        cmocka_unit_test(credit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
