#include "cri/streaming/websocket.h"

#include <openssl/evp.h>
#include <openssl/sha.h>
#include <string.h>

#include "base/str.h"

#define CONTROL_MAX 125
#define PIECE 4096

struct ws_reader {
    struct ws_callbacks cb;
    uint8_t head[14];
    size_t n_head, head_len; /* head_len: what the bytes so far say it will be */
    uint64_t left, done;
    uint8_t control[CONTROL_MAX];
    bool in_message; /* a fragmented message goes on */
    bool broken;
};

struct ws_reader *ws_reader_new(const struct ws_callbacks *cb)
{
    struct ws_reader *r = xcalloc(1, sizeof(*r));
    r->cb = *cb;
    return r;
}

void ws_reader_free(struct ws_reader *r)
{
    free(r);
}

static int bad(struct err *err, const char *what)
{
    return err_set(err, ERR_DATA_LOSS, "WebSocket: %s", what);
}

static enum ws_opcode opcode(const struct ws_reader *r)
{
    return (enum ws_opcode)(r->head[0] & 0x0f);
}

static bool is_control(const struct ws_reader *r)
{
    return (r->head[0] & 0x08) != 0;
}

static bool is_final(const struct ws_reader *r)
{
    return (r->head[0] & 0x80) != 0;
}

static size_t header_length(const struct ws_reader *r)
{
    unsigned n = r->head[1] & 0x7f;
    return 2 + (n == 126 ? 2U : n == 127 ? 8U : 0U) + 4;
}

static int begin_frame(struct ws_reader *r, struct err *err)
{
    uint64_t n = r->head[1] & 0x7f;
    if (n >= 126) {
        size_t bytes = n == 126 ? 2 : 8;
        n = 0;
        for (size_t i = 0; i < bytes; i++)
            n = n << 8 | r->head[2 + i];
    }
    r->left = n;
    r->done = 0;
    if (n > INT64_MAX)
        return bad(err, "impossible length");
    switch (opcode(r)) {
    case WS_CONTINUATION:
        return r->in_message ? 0 : bad(err, "continuation of nothing");
    case WS_TEXT:
    case WS_BINARY:
        return r->in_message ? bad(err, "message within a message") : 0;
    case WS_CLOSE:
    case WS_PING:
    case WS_PONG:
        return !is_final(r) || n > CONTROL_MAX ? bad(err, "bad control frame") : 0;
    default:
        return bad(err, "unknown opcode");
    }
}

static int head_byte(struct ws_reader *r, uint8_t byte, struct err *err)
{
    r->head[r->n_head++] = byte;
    if (r->n_head != 2)
        return 0;
    if ((r->head[0] & 0x70) != 0)
        return bad(err, "extension bits");
    if ((r->head[1] & 0x80) == 0)
        return bad(err, "frame is not masked");
    r->head_len = header_length(r);
    return 0;
}

/* Passes up to PIECE bytes of the frame on, unmasked. */
static size_t unmask(struct ws_reader *r, const uint8_t *p, size_t len, uint8_t *out)
{
    const uint8_t *mask = r->head + r->head_len - 4;
    size_t n = len < PIECE ? len : PIECE;
    if (n > r->left)
        n = (size_t)r->left;
    for (size_t i = 0; i < n; i++)
        out[i] = p[i] ^ mask[(r->done + i) & 3];
    return n;
}

static int payload(struct ws_reader *r, const uint8_t *data, size_t n, struct err *err)
{
    bool first = r->done == 0;
    if (is_control(r) && n > 0)
        memcpy(r->control + r->done, data, n);
    r->done += n;
    r->left -= n;
    bool last = r->left == 0;
    if (last)
        r->n_head = 0;
    if (is_control(r))
        return last ? r->cb.control(r->cb.arg, opcode(r), r->control, (size_t)r->done, err) : 0;
    bool start = first && opcode(r) != WS_CONTINUATION;
    bool end = last && is_final(r);
    r->in_message = !end;
    return r->cb.piece(r->cb.arg, data, n, start, end, err);
}

static int feed(struct ws_reader *r, const uint8_t *p, size_t len, struct err *err)
{
    uint8_t piece[PIECE];
    while (len > 0) {
        bool fresh = false;
        if (r->n_head < 2 || r->n_head < r->head_len) {
            if (head_byte(r, *p, err) < 0)
                return -1;
            p++;
            len--;
            if (r->n_head < 2 || r->n_head < r->head_len)
                continue;
            if (begin_frame(r, err) < 0)
                return -1;
            fresh = true;
        }
        if (fresh && r->left > 0)
            continue;
        size_t n = unmask(r, p, len, piece);
        p += n;
        len -= n;
        if (payload(r, piece, n, err) < 0)
            return -1;
    }
    return 0;
}

int ws_feed(struct ws_reader *r, const void *data, size_t len, struct err *err)
{
    if (r->broken)
        return bad(err, "broken before");
    int rc = feed(r, data, len, err);
    r->broken = rc < 0;
    return rc;
}

int ws_append(struct buf *out, enum ws_opcode op, const void *prefix, size_t prefix_len,
              const void *data, size_t len)
{
    uint64_t n = prefix_len + len;
    uint8_t head[10] = {(uint8_t)(0x80U | op)};
    size_t head_len = 2;
    if (n < 126) {
        head[1] = (uint8_t)n;
    } else if (n <= UINT16_MAX) {
        head[1] = 126;
        head[2] = (uint8_t)(n >> 8);
        head[3] = (uint8_t)n;
        head_len = 4;
    } else {
        head[1] = 127;
        for (unsigned i = 0; i < 8; i++)
            head[2 + i] = (uint8_t)(n >> (56 - 8 * i));
        head_len = 10;
    }
    (void)buf_append(out, head, head_len);
    if (prefix_len > 0)
        (void)buf_append(out, prefix, prefix_len);
    return len > 0 ? buf_append(out, data, len) : buf_ok(out) ? 0 : -1;
}

int ws_append_close(struct buf *out, unsigned code)
{
    const uint8_t bytes[2] = {(uint8_t)(code >> 8), (uint8_t)code};
    return ws_append(out, WS_CLOSE, bytes, sizeof(bytes), NULL, 0);
}

int ws_accept_key(const char *key, char out[29])
{
    static const char magic[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    uint8_t sum[SHA_DIGEST_LENGTH];
    char text[64 + sizeof(magic)];
    if (key == NULL || strlen(key) != 24)
        return -1;
    int n = snprintf(text, sizeof(text), "%s%s", key, magic);
    if (EVP_Digest(text, (size_t)n, sum, NULL, EVP_sha1(), NULL) != 1)
        return -1;
    (void)EVP_EncodeBlock((unsigned char *)out, sum, sizeof(sum));
    return 0;
}
