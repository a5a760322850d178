/* SPDY and WebSocket frames, tokens: golden bytes, every cut, hostile input. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <zlib.h>

#include "base/limits.h"
#include "cri/streaming/spdy.h"
#include "cri/streaming/tokens.h"
#include "cri/streaming/websocket.h"

/* What a reader said, as text. */
static struct buf said = BUF_INIT(MiB(1));

static int on_syn(void *arg, uint32_t id, bool fin, const struct spdy_header *h, size_t n,
                  struct err *err)
{
    (void)arg;
    (void)err;
    (void)buf_printf(&said, "syn %u%s", id, fin ? " fin" : "");
    for (size_t i = 0; i < n; i++)
        (void)buf_printf(&said, " %s=%s", h[i].name, h[i].value);
    return buf_puts(&said, ";");
}

static int on_reply(void *arg, uint32_t id, bool fin, struct err *err)
{
    (void)arg;
    (void)fin;
    (void)err;
    return buf_printf(&said, "reply %u;", id);
}

static int on_data(void *arg, uint32_t id, const void *data, size_t len, bool fin, struct err *err)
{
    (void)arg;
    (void)err;
    (void)id;
    (void)buf_append(&said, data, len);
    return fin ? buf_puts(&said, "<fin>") : 0;
}

static int on_rst(void *arg, uint32_t id, uint32_t status, struct err *err)
{
    (void)arg;
    (void)err;
    return buf_printf(&said, "rst %u %u;", id, status);
}

static int on_ping(void *arg, uint32_t id, struct err *err)
{
    (void)arg;
    (void)err;
    return buf_printf(&said, "ping %u;", id);
}

static int on_goaway(void *arg, struct err *err)
{
    (void)arg;
    (void)err;
    return buf_puts(&said, "goaway;");
}

static struct spdy_reader *reader(void)
{
    const struct spdy_callbacks cb = {.syn_stream = on_syn,
                                      .syn_reply = on_reply,
                                      .data = on_data,
                                      .rst_stream = on_rst,
                                      .ping = on_ping,
                                      .goaway = on_goaway};
    buf_reset(&said);
    return spdy_reader_new(&cb);
}

static void dictionary_is_the_drafts(void **state)
{
    (void)state;
    size_t len;
    const void *d = spdy_dictionary(&len);
    assert_int_equal(len, 1423);
    assert_int_equal(adler32(1, d, (uInt)len), 0xe3c6a7c2);
}

static void reads_a_go_clients_stream(void **state)
{
    (void)state;
    static const char frame[] = "\x80\3\0\1\0\0\0\x28\0\0\0\1\0\0\0\0\0\0"
                                "\x78\xf9\xe3\xc6\xa7\xc2\x02\xa6\x23\x46\x70\x3a\x2b\x29\x4a\x4d"
                                "\xcc\x85\x16\x25\xac\xa9\xa0\x80\x06\0\0\0\xff\xff";
    auto_spdy_reader struct spdy_reader *r = reader();
    assert_int_equal(spdy_feed(r, frame, sizeof(frame) - 1, NULL), 0);
    assert_string_equal(buf_str(&said), "syn 1 streamtype=error;");
}

static void every_cut_reads_the_same(void **state)
{
    (void)state;
    auto_spdy_writer struct spdy_writer *w = spdy_writer_new();
    auto_buf struct buf out = BUF_INIT(MiB(1));
    const struct spdy_header h[] = {{"streamtype", "data"}, {"port", "80"}, {"requestid", "7"}};
    assert_int_equal(spdy_append_syn(w, &out, 1, false, h, 1), 0);
    assert_int_equal(spdy_append_syn(w, &out, 3, true, h, 3), 0);
    (void)spdy_append_data(&out, 1, "hello", 5, false);
    (void)spdy_append_data(&out, 1, NULL, 0, false);
    (void)spdy_append_data(&out, 1, NULL, 0, true);
    (void)spdy_append_rst(&out, 3, SPDY_CANCEL);
    (void)spdy_append_ping(&out, 9);
    (void)spdy_append_reply(&out, 1, true);
    (void)spdy_append_goaway(&out, 3);
    for (size_t step = 1; step <= out.len; step++) {
        auto_spdy_reader struct spdy_reader *r = reader();
        for (size_t at = 0; at < out.len; at += step)
            assert_int_equal(
                spdy_feed(r, out.data + at, out.len - at < step ? out.len - at : step, NULL), 0);
        assert_string_equal(buf_str(&said),
                            "syn 1 streamtype=data;syn 3 fin streamtype=data port=80 requestid=7;"
                            "hello<fin>rst 3 5;ping 9;reply 1;goaway;");
    }
}

static void replies_are_golden(void **state)
{
    (void)state;
    static const uint8_t first[] = {0x80, 3,    0,    2,    0,    0,    24, 0,    0,   0,    1,
                                    0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2, 0,  4,    0,   0xfb, 0xff,
                                    0,    0,    0,    0,    0,    0,    0,  0xff, 0xff};
    auto_buf struct buf out = BUF_INIT(KiB(1));
    (void)spdy_append_reply(&out, 1, true);
    assert_int_equal(out.len, 8 + 24);
    assert_memory_equal(out.data, first, 6);
    assert_memory_equal(out.data + 12, first + 11, sizeof(first) - 11);
    (void)spdy_append_reply(&out, 3, false);
    assert_int_equal(out.len, 8 + 24 + 8 + 18);
    /* what a client's inflater makes of both blocks */
    z_stream z = {0};
    uint8_t plain[64];
    size_t len;
    assert_int_equal(inflateInit(&z), Z_OK);
    z.next_in = (Bytef *)out.data + 12;
    z.avail_in = 20;
    z.next_out = plain;
    z.avail_out = sizeof(plain);
    assert_int_equal(inflate(&z, Z_SYNC_FLUSH), Z_NEED_DICT);
    const void *d = spdy_dictionary(&len);
    assert_int_equal(inflateSetDictionary(&z, d, (uInt)len), Z_OK);
    assert_int_equal(inflate(&z, Z_SYNC_FLUSH), Z_OK);
    z.next_in = (Bytef *)out.data + 32 + 12;
    z.avail_in = 14;
    assert_int_equal(inflate(&z, Z_SYNC_FLUSH), Z_OK);
    assert_int_equal(sizeof(plain) - z.avail_out, 8);
    (void)inflateEnd(&z);
}

static void refuse(const void *data, size_t len)
{
    auto_spdy_reader struct spdy_reader *r = reader();
    auto_err struct err err = ERR_INIT;
    assert_int_equal(spdy_feed(r, data, len, &err), -1);
    assert_int_equal(err.code, ERR_DATA_LOSS);
    assert_int_equal(spdy_feed(r, data, len, NULL), -1); /* for good */
}

static void hostile_spdy_ends(void **state)
{
    (void)state;
    refuse("\x80\x02\0\6\0\0\0\4\0\0\0\1", 12);                /* version 2 */
    refuse("\x80\3\0\5\0\0\0\0", 8);                           /* type 5 */
    refuse("\x80\3\0\1\0\xff\xff\xff", 8);                     /* length */
    refuse("\x80\3\0\6\0\0\0\5\0\0\0\1\0", 13);                /* long ping */
    refuse("\x80\3\0\3\0\0\0\10\0\0\0\1\0\0\0\0", 16);         /* status 0 */
    refuse("\x80\3\0\1\0\0\0\3abc", 11);                       /* short */
    refuse("\x80\3\0\1\0\0\0\16\0\0\0\1\0\0\0\0\0\0junk", 22); /* no zlib */
    refuse("\x80\3\0\1\0\0\0\12\0\0\0\0\0\0\0\0\0\0", 18);     /* stream 0 */
}

static void a_bomb_of_headers_ends(void **state)
{
    (void)state;
    size_t len;
    const void *d = spdy_dictionary(&len);
    auto_free uint8_t *zeros = calloc(1, MiB(8));
    uint8_t frame[KiB(60)] = {0x80, 3, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1};
    z_stream z = {0};
    assert_int_equal(deflateInit(&z, 9), Z_OK);
    assert_int_equal(deflateSetDictionary(&z, d, (uInt)len), Z_OK);
    z.next_in = zeros;
    z.avail_in = MiB(8);
    z.next_out = frame + 18;
    z.avail_out = sizeof(frame) - 18;
    assert_int_equal(deflate(&z, Z_SYNC_FLUSH), Z_OK);
    assert_int_equal(z.avail_in, 0);
    size_t n = sizeof(frame) - 8 - z.avail_out;
    (void)deflateEnd(&z);
    frame[5] = (uint8_t)(n >> 16);
    frame[6] = (uint8_t)(n >> 8);
    frame[7] = (uint8_t)n;
    refuse(frame, n + 8);
}

/* --- WebSocket --- */

static int on_piece(void *arg, const void *data, size_t len, bool start, bool end, struct err *err)
{
    (void)arg;
    (void)err;
    if (start)
        (void)buf_puts(&said, "[");
    (void)buf_append(&said, data, len);
    return end ? buf_puts(&said, "]") : 0;
}

static int on_control(void *arg, enum ws_opcode op, const void *data, size_t len, struct err *err)
{
    (void)arg;
    (void)err;
    return buf_printf(&said, "<%d %.*s>", (int)op, (int)len, (const char *)data);
}

static struct ws_reader *ws(void)
{
    const struct ws_callbacks cb = {.piece = on_piece, .control = on_control};
    buf_reset(&said);
    return ws_reader_new(&cb);
}

static void websocket_messages(void **state)
{
    (void)state;
    /* masked with 1,2,3,4: "Hel" + ping "p" + "lo", an empty message, a close */
    static const uint8_t bytes[] = {
        0x02,    0x83, 1,    2, 3, 4, 'H' ^ 1, 'e' ^ 2, 'l' ^ 3, 0x89, 0x81, 1, 2, 3, 4,
        'p' ^ 1, 0x80, 0x82, 1, 2, 3, 4,       'l' ^ 1, 'o' ^ 2, 0x82, 0x80, 1, 2, 3, 4,
        0x82,    0xfe, 0,    1, 9, 9, 9,       9,       'x' ^ 9, 0x88, 0x80, 0, 0, 0, 0};
    for (size_t step = 1; step <= sizeof(bytes); step++) {
        auto_ws_reader struct ws_reader *r = ws();
        for (size_t at = 0; at < sizeof(bytes); at += step) {
            size_t n = sizeof(bytes) - at < step ? sizeof(bytes) - at : step;
            assert_int_equal(ws_feed(r, bytes + at, n, NULL), 0);
        }
        assert_string_equal(buf_str(&said), "[Hel<9 p>lo][][x]<8 >");
    }
}

static void refuse_ws(const char *data, size_t len)
{
    auto_ws_reader struct ws_reader *r = ws();
    assert_int_equal(ws_feed(r, data, len, NULL), -1);
    assert_int_equal(ws_feed(r, "", 1, NULL), -1);
}

static void hostile_websocket_ends(void **state)
{
    (void)state;
    refuse_ws("\x82\x01x", 3);                                         /* not masked */
    refuse_ws("\xc2\x80", 2);                                          /* extension */
    refuse_ws("\x83\x80\0\0\0\0", 6);                                  /* opcode 3 */
    refuse_ws("\x80\x80\0\0\0\0", 6);                                  /* continues nothing */
    refuse_ws("\x09\x80\0\0\0\0", 6);                                  /* ping in pieces */
    refuse_ws("\x89\xfe\0\x7e\0\0\0\0", 8);                            /* long ping */
    refuse_ws("\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", 14); /* 2^64 - 1 */
    refuse_ws("\x02\x80\0\0\0\0\x02\x80\0\0\0\0", 12);                 /* message in a message */
}

static void websocket_writes(void **state)
{
    (void)state;
    auto_buf struct buf out = BUF_INIT(MiB(1));
    static char big[70000];
    (void)ws_append(&out, WS_BINARY, "\1", 1, "ab", 2);
    assert_int_equal(out.len, 5);
    assert_memory_equal(out.data, "\x82\3\1ab", 5);
    buf_reset(&out);
    (void)ws_append(&out, WS_TEXT, NULL, 0, big, 200);
    assert_memory_equal(out.data, "\x81\x7e\0\xc8", 4);
    buf_reset(&out);
    (void)ws_append(&out, WS_BINARY, NULL, 0, big, sizeof(big));
    assert_memory_equal(out.data, "\x82\x7f\0\0\0\0\0\1\x11\x70", 10);
    assert_int_equal(out.len, 10 + sizeof(big));
    char accept[29];
    assert_int_equal(ws_accept_key("dGhlIHNhbXBsZSBub25jZQ==", accept), 0);
    assert_string_equal(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="); /* RFC 6455, 1.3 */
    assert_int_equal(ws_accept_key("short", accept), -1);
    assert_int_equal(ws_accept_key(NULL, accept), -1);
}

/* --- tokens --- */

static int64_t now;

static int64_t clock_now(void)
{
    return now;
}

static struct stream_request *request(void)
{
    struct stream_request *r = calloc(1, sizeof(*r));
    r->kind = REQUEST_ATTACH;
    return r;
}

static void tokens_work_once(void **state)
{
    (void)state;
    char a[TOKEN_LENGTH + 1];
    char b[TOKEN_LENGTH + 1];
    struct tokens *t = tokens_new(clock_now);
    assert_int_equal(tokens_put(t, request(), a, NULL), 0);
    assert_int_equal(tokens_put(t, request(), b, NULL), 0);
    assert_string_not_equal(a, b);
    assert_null(tokens_take(t, REQUEST_EXEC, a));
    assert_null(tokens_take(t, REQUEST_ATTACH, ""));
    struct stream_request *r = tokens_take(t, REQUEST_ATTACH, a);
    assert_non_null(r);
    stream_request_free(r);
    assert_null(tokens_take(t, REQUEST_ATTACH, a));
    now += LIMIT_STREAM_TOKEN_NS;
    assert_null(tokens_take(t, REQUEST_ATTACH, b));
    for (int i = 0; i < LIMIT_STREAM_TOKENS; i++)
        assert_int_equal(tokens_put(t, request(), a, NULL), 0);
    auto_err struct err err = ERR_INIT;
    assert_int_equal(tokens_put(t, request(), b, &err), -1);
    assert_int_equal(err.code, ERR_EXHAUSTED);
    now += LIMIT_STREAM_TOKEN_NS;
    assert_int_equal(tokens_put(t, request(), b, NULL), 0);
    tokens_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(dictionary_is_the_drafts), cmocka_unit_test(reads_a_go_clients_stream),
        cmocka_unit_test(every_cut_reads_the_same), cmocka_unit_test(replies_are_golden),
        cmocka_unit_test(hostile_spdy_ends),        cmocka_unit_test(a_bomb_of_headers_ends),
        cmocka_unit_test(websocket_messages),       cmocka_unit_test(hostile_websocket_ends),
        cmocka_unit_test(websocket_writes),         cmocka_unit_test(tokens_work_once),
    };
    int rc = cmocka_run_group_tests(tests, NULL, NULL);
    buf_clear(&said);
    return rc;
}
