#include "cri/streaming/spdy.h"

#include <ctype.h>
#include <pthread.h>
#include <string.h>
#include <zlib.h>

#include "base/limits.h"
#include "base/str.h"

#define VERSION 3
#define CONTROL 0x8000U
#define HEADER 8 /* bytes in front of every frame */

enum {
    SYN_STREAM = 1,
    SYN_REPLY = 2,
    RST_STREAM = 3,
    SETTINGS = 4,
    PING = 6,
    GOAWAY = 7,
    HEADERS = 8,
    WINDOW_UPDATE = 9,
};
#define FLAG_FIN 1U

/* --- the dictionary (draft 3, 2.6.10.1): words with their lengths, then a tail --- */

static const char *const words[] = {
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
};
static const char tail[] =
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request"
    "401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented"
    "503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 "
    "Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,"
    "application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age="
    "gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

static struct buf dictionary = BUF_INIT(KiB(4));
static pthread_once_t dictionary_once = PTHREAD_ONCE_INIT;

static int put_u32(struct buf *b, uint32_t v)
{
    const uint8_t bytes[4] = {(uint8_t)(v >> 24), (uint8_t)(v >> 16), (uint8_t)(v >> 8),
                              (uint8_t)v};
    return buf_append(b, bytes, sizeof(bytes));
}

static uint32_t get_u32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void make_dictionary(void)
{
    for (size_t i = 0; i < ARRAY_LEN(words); i++) {
        (void)put_u32(&dictionary, (uint32_t)strlen(words[i]));
        (void)buf_puts(&dictionary, words[i]);
    }
    (void)buf_puts(&dictionary, tail);
}

const void *spdy_dictionary(size_t *len)
{
    (void)pthread_once(&dictionary_once, make_dictionary);
    *len = dictionary.len;
    return dictionary.data;
}

/* --- reading --- */

struct spdy_reader {
    struct spdy_callbacks cb;
    uint8_t head[HEADER];
    size_t n_head;
    struct buf body;    /* of a control frame */
    uint32_t data_left; /* of a DATA frame */
    bool in_data;
    z_stream z;
    bool z_up;
    bool broken;
};

struct spdy_reader *spdy_reader_new(const struct spdy_callbacks *cb)
{
    struct spdy_reader *r = xcalloc(1, sizeof(*r));
    r->cb = *cb;
    r->body = (struct buf)BUF_INIT(LIMIT_SPDY_CONTROL);
    r->z_up = inflateInit(&r->z) == Z_OK;
    return r;
}

void spdy_reader_free(struct spdy_reader *r)
{
    if (r == NULL)
        return;
    if (r->z_up)
        (void)inflateEnd(&r->z);
    buf_clear(&r->body);
    free(r);
}

static int bad(struct err *err, const char *what)
{
    return err_set(err, ERR_DATA_LOSS, "SPDY: %s", what);
}

/* All that the block holds, which may not be more than a bomb is worth. */
static int inflate_block(struct spdy_reader *r, const uint8_t *block, size_t len, struct buf *out,
                         struct err *err)
{
    uint8_t chunk[4096];
    if (!r->z_up)
        return err_set(err, ERR_EXHAUSTED, "SPDY: no memory for headers");
    r->z.next_in = (Bytef *)(uintptr_t)block;
    r->z.avail_in = (uInt)len;
    for (;;) {
        r->z.next_out = chunk;
        r->z.avail_out = sizeof(chunk);
        int rc = inflate(&r->z, Z_SYNC_FLUSH);
        size_t n = sizeof(chunk) - r->z.avail_out;
        if (rc == Z_NEED_DICT) {
            size_t dict_len;
            const void *dict = spdy_dictionary(&dict_len);
            if (inflateSetDictionary(&r->z, dict, (uInt)dict_len) != Z_OK)
                return bad(err, "unknown dictionary");
            continue;
        }
        if (rc != Z_OK && rc != Z_BUF_ERROR)
            return bad(err, "broken header block");
        if (buf_append(out, chunk, n) < 0)
            return bad(err, "header block too long");
        if (r->z.avail_in == 0 && n < sizeof(chunk))
            return 0;
        if (rc == Z_BUF_ERROR && n == 0)
            return bad(err, "broken header block");
    }
}

struct cursor {
    const uint8_t *p;
    size_t left;
};

static int take_u32(struct cursor *c, uint32_t *v)
{
    if (c->left < 4)
        return -1;
    *v = get_u32(c->p);
    c->p += 4;
    c->left -= 4;
    return 0;
}

/* A NUL-terminated copy; in names upper case becomes lower, a value ends at its first NUL (several
 * values are joined by NUL, and nothing here has more than one). */
static int take_text(struct cursor *c, struct buf *texts, bool name)
{
    uint32_t len;
    if (take_u32(c, &len) < 0 || len > c->left)
        return -1;
    for (uint32_t i = 0; i < len; i++) {
        if (buf_putc(texts, (char)(name ? tolower(c->p[i]) : c->p[i])) < 0)
            return -1;
    }
    c->p += len;
    c->left -= len;
    return buf_putc(texts, '\0');
}

/* Texts first, pointers into them after: the buffer moves while it grows. */
static int parse_headers(const struct buf *plain, struct buf *texts, struct spdy_header *headers,
                         size_t *n, struct err *err)
{
    struct cursor c = {(const uint8_t *)plain->data, plain->len};
    uint32_t count = 0;
    size_t at[LIMIT_SPDY_HEADERS * 2];
    if (take_u32(&c, &count) < 0 || count > LIMIT_SPDY_HEADERS)
        return bad(err, "bad number of headers");
    for (uint32_t i = 0; i < count; i++) {
        at[2 * i] = texts->len;
        if (take_text(&c, texts, true) < 0)
            return bad(err, "bad header name");
        at[2 * i + 1] = texts->len;
        if (take_text(&c, texts, false) < 0)
            return bad(err, "bad header value");
    }
    if (c.left != 0)
        return bad(err, "bytes behind the headers");
    for (uint32_t i = 0; i < count; i++)
        headers[i] = (struct spdy_header){texts->data + at[2 * i], texts->data + at[2 * i + 1]};
    *n = count;
    return 0;
}

static int read_headers(struct spdy_reader *r, const uint8_t *block, size_t len, struct buf *texts,
                        struct spdy_header *headers, size_t *n, struct err *err)
{
    auto_buf struct buf plain = BUF_INIT(LIMIT_SPDY_HEADER_BYTES);
    if (inflate_block(r, block, len, &plain, err) < 0)
        return -1;
    return parse_headers(&plain, texts, headers, n, err);
}

static int with_headers(struct spdy_reader *r, unsigned type, uint8_t flags, const uint8_t *body,
                        size_t len, struct err *err)
{
    size_t fixed = type == SYN_STREAM ? 10 : 4;
    if (len < fixed)
        return bad(err, "short frame");
    uint32_t id = get_u32(body);
    auto_buf struct buf texts = BUF_INIT(LIMIT_SPDY_HEADER_BYTES * 2);
    struct spdy_header headers[LIMIT_SPDY_HEADERS];
    size_t n = 0;
    if ((id & 0x80000000U) != 0 || id == 0)
        return bad(err, "bad stream id");
    /* a server's answers carry none that matter, and its compressor may be ours, which sends none
     */
    if (type == SYN_REPLY)
        return r->cb.syn_reply != NULL
                   ? r->cb.syn_reply(r->cb.arg, id, (flags & FLAG_FIN) != 0, err)
                   : 0;
    if (read_headers(r, body + fixed, len - fixed, &texts, headers, &n, err) < 0)
        return -1;
    if (type == SYN_STREAM && r->cb.syn_stream != NULL)
        return r->cb.syn_stream(r->cb.arg, id, (flags & FLAG_FIN) != 0, headers, n, err);
    return 0;
}

static int control_frame(struct spdy_reader *r, struct err *err)
{
    const uint8_t *body = (const uint8_t *)buf_str(&r->body);
    size_t len = r->body.len;
    unsigned type = (unsigned)r->head[2] << 8 | r->head[3];
    uint8_t flags = r->head[4];
    switch (type) {
    case SYN_STREAM:
    case SYN_REPLY:
    case HEADERS:
        return with_headers(r, type, flags, body, len, err);
    case RST_STREAM:
        if (len != 8 || get_u32(body + 4) == 0)
            return bad(err, "bad RST_STREAM");
        return r->cb.rst_stream != NULL
                   ? r->cb.rst_stream(r->cb.arg, get_u32(body), get_u32(body + 4), err)
                   : 0;
    case PING:
        if (len != 4)
            return bad(err, "bad PING");
        return r->cb.ping != NULL ? r->cb.ping(r->cb.arg, get_u32(body), err) : 0;
    case GOAWAY:
        if (len != 8)
            return bad(err, "bad GOAWAY");
        return r->cb.goaway != NULL ? r->cb.goaway(r->cb.arg, err) : 0;
    case SETTINGS:
    case WINDOW_UPDATE:
        return 0; /* there is no flow control */
    default:
        return bad(err, "unknown frame type");
    }
}

static uint32_t frame_length(const uint8_t *head)
{
    return (uint32_t)head[5] << 16 | (uint32_t)head[6] << 8 | head[7];
}

static int begin_frame(struct spdy_reader *r, struct err *err)
{
    uint32_t len = frame_length(r->head);
    r->in_data = (r->head[0] & 0x80) == 0;
    if (r->in_data) {
        r->data_left = len;
        return 0;
    }
    if (((unsigned)(r->head[0] & 0x7f) << 8 | r->head[1]) != VERSION)
        return bad(err, "wrong version");
    if (len > LIMIT_SPDY_CONTROL)
        return bad(err, "control frame too long");
    buf_reset(&r->body);
    return 0;
}

static int feed_data(struct spdy_reader *r, const uint8_t **p, size_t *len, struct err *err)
{
    size_t n = *len < r->data_left ? *len : r->data_left;
    r->data_left -= (uint32_t)n;
    bool last = r->data_left == 0;
    bool fin = last && (r->head[4] & FLAG_FIN) != 0;
    uint32_t id = get_u32(r->head);
    const uint8_t *from = *p;
    *p += n;
    *len -= n;
    if (last)
        r->n_head = 0;
    if ((n == 0 && !fin) || r->cb.data == NULL)
        return 0;
    return r->cb.data(r->cb.arg, id, from, n, fin, err);
}

static int feed_control(struct spdy_reader *r, const uint8_t **p, size_t *len, struct err *err)
{
    size_t want = frame_length(r->head) - r->body.len;
    size_t n = *len < want ? *len : want;
    if (buf_append(&r->body, *p, n) < 0)
        return err_set(err, ERR_EXHAUSTED, "SPDY: no memory for a frame");
    *p += n;
    *len -= n;
    if (n < want)
        return 0;
    r->n_head = 0;
    return control_frame(r, err);
}

static int feed(struct spdy_reader *r, const uint8_t *p, size_t len, struct err *err)
{
    /* a frame whose body is empty is complete with its header */
    while (len > 0) {
        if (r->n_head < HEADER) {
            size_t n = HEADER - r->n_head < len ? HEADER - r->n_head : len;
            memcpy(r->head + r->n_head, p, n);
            r->n_head += n;
            p += n;
            len -= n;
            if (r->n_head < HEADER)
                return 0;
            if (begin_frame(r, err) < 0)
                return -1;
            if (frame_length(r->head) > 0)
                continue;
        }
        int rc = r->in_data ? feed_data(r, &p, &len, err) : feed_control(r, &p, &len, err);
        if (rc < 0)
            return -1;
    }
    return 0;
}

int spdy_feed(struct spdy_reader *r, const void *data, size_t len, struct err *err)
{
    if (r->broken)
        return bad(err, "broken before");
    int rc = feed(r, data, len, err);
    r->broken = rc < 0;
    return rc;
}

/* --- writing --- */

static int put_control(struct buf *out, unsigned type, uint8_t flags, size_t len)
{
    const uint8_t head[HEADER] = {CONTROL >> 8,        VERSION,     (uint8_t)(type >> 8),
                                  (uint8_t)type,       flags,       (uint8_t)(len >> 16),
                                  (uint8_t)(len >> 8), (uint8_t)len};
    return buf_append(out, head, sizeof(head));
}

int spdy_append_data(struct buf *out, uint32_t id, const void *data, size_t len, bool fin)
{
    (void)put_u32(out, id);
    (void)put_u32(out, (fin ? FLAG_FIN << 24 : 0) | (uint32_t)len);
    return buf_append(out, data, len);
}

int spdy_append_rst(struct buf *out, uint32_t id, enum spdy_status status)
{
    (void)put_control(out, RST_STREAM, 0, 8);
    (void)put_u32(out, id);
    return put_u32(out, status);
}

int spdy_append_ping(struct buf *out, uint32_t id)
{
    (void)put_control(out, PING, 0, 4);
    return put_u32(out, id);
}

int spdy_append_goaway(struct buf *out, uint32_t last_good_id)
{
    (void)put_control(out, GOAWAY, 0, 8);
    (void)put_u32(out, last_good_id);
    return put_u32(out, 0);
}

int spdy_append_reply(struct buf *out, uint32_t id, bool first)
{
    /* "no headers" needs no compressor: zlib's header with the dictionary's checksum, a stored
     * block of four zero bytes, and the empty block at which readers look for output */
    static const uint8_t zlib_header[] = {0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2};
    static const uint8_t block[] = {0x00, 0x04, 0x00, 0xfb, 0xff, 0x00, 0x00,
                                    0x00, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff};
    (void)put_control(out, SYN_REPLY, 0, 4 + (first ? sizeof(zlib_header) : 0) + sizeof(block));
    (void)put_u32(out, id);
    if (first)
        (void)buf_append(out, zlib_header, sizeof(zlib_header));
    return buf_append(out, block, sizeof(block));
}

struct spdy_writer {
    z_stream z;
};

struct spdy_writer *spdy_writer_new(void)
{
    struct spdy_writer *w = xcalloc(1, sizeof(*w));
    size_t len;
    const void *dict = spdy_dictionary(&len);
    if (deflateInit(&w->z, Z_BEST_COMPRESSION) != Z_OK) {
        free(w);
        return NULL;
    }
    (void)deflateSetDictionary(&w->z, dict, (uInt)len);
    return w;
}

void spdy_writer_free(struct spdy_writer *w)
{
    if (w == NULL)
        return;
    (void)deflateEnd(&w->z);
    free(w);
}

int spdy_append_syn(struct spdy_writer *w, struct buf *out, uint32_t id, bool fin,
                    const struct spdy_header *headers, size_t n)
{
    auto_buf struct buf plain = BUF_INIT(LIMIT_SPDY_HEADER_BYTES);
    (void)put_u32(&plain, (uint32_t)n);
    for (size_t i = 0; i < n; i++) {
        (void)put_u32(&plain, (uint32_t)strlen(headers[i].name));
        (void)buf_puts(&plain, headers[i].name);
        (void)put_u32(&plain, (uint32_t)strlen(headers[i].value));
        (void)buf_puts(&plain, headers[i].value);
    }
    uint8_t block[KiB(4)];
    w->z.next_in = (Bytef *)plain.data;
    w->z.avail_in = (uInt)plain.len;
    w->z.next_out = block;
    w->z.avail_out = sizeof(block);
    if (!buf_ok(&plain) || deflate(&w->z, Z_SYNC_FLUSH) != Z_OK || w->z.avail_out == 0)
        return -1;
    size_t len = sizeof(block) - w->z.avail_out;
    (void)put_control(out, SYN_STREAM, fin ? FLAG_FIN : 0, 10 + len);
    (void)put_u32(out, id);
    (void)put_u32(out, 0);
    (void)buf_append(out, "\0", 2); /* priority, slot */
    return buf_append(out, block, len);
}
