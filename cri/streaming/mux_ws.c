/* Lanes as WebSocket channels: the first byte of each message says which. */
#include <openssl/evp.h>
#include <string.h>

#include "base/limits.h"
#include "base/str.h"
#include "cri/streaming/mux.h"
#include "cri/streaming/websocket.h"

#define CLOSE_CHANNEL 0xff /* v5: the byte behind it is a channel that ends */
#define BASE64_LINE 3072   /* bytes encoded at a time */

struct mux_ws {
    struct mux mux;
    struct ws_reader *reader;
    struct protocol protocol;
    bool ports; /* two channels per port instead of stdin, stdout, stderr, error, resize */
    uint32_t n_channels;
    enum lane_kind kinds[5];
    uint16_t port_of[LIMIT_STREAM_PORTS];
    /* the message being read */
    bool have_channel;
    unsigned channel;
    size_t pos; /* bytes of it behind the channel */
    uint8_t quad[4];
    size_t n_quad;
    bool padded;
};

static int bad(struct err *err, const char *what)
{
    return err_set(err, ERR_DATA_LOSS, "WebSocket: %s", what);
}

static int base64_value(uint8_t c)
{
    if (c >= 'A' && c <= 'Z')
        return c - 'A';
    if (c >= 'a' && c <= 'z')
        return c - 'a' + 26;
    if (c >= '0' && c <= '9')
        return c - '0' + 52;
    return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* The four characters in m->quad. */
static int decode_quad(struct mux_ws *m, uint8_t **to, struct err *err)
{
    size_t pad = m->quad[3] == '=' ? m->quad[2] == '=' ? 2 : 1 : 0;
    uint32_t v = 0;
    for (size_t i = 0; i < 4; i++) {
        int d = i >= 4 - pad ? 0 : base64_value(m->quad[i]);
        if (d < 0 || m->padded)
            return bad(err, "not base64");
        v = v << 6 | (uint32_t)d;
    }
    m->padded = pad > 0;
    m->n_quad = 0;
    *(*to)++ = (uint8_t)(v >> 16);
    if (pad < 2)
        *(*to)++ = (uint8_t)(v >> 8);
    if (pad < 1)
        *(*to)++ = (uint8_t)v;
    return 0;
}

static int deliver_base64(struct mux_ws *m, struct lane *l, const uint8_t *p, size_t len,
                          struct err *err)
{
    uint8_t bytes[1024];
    uint8_t *to = bytes;
    for (size_t i = 0; i < len; i++) {
        m->quad[m->n_quad++] = p[i];
        if (m->n_quad == 4 && decode_quad(m, &to, err) < 0)
            return -1;
        if (to - bytes > (ptrdiff_t)sizeof(bytes) - 4 || i + 1 == len) {
            if (l != NULL && to > bytes)
                conn_lane_in(l, bytes, (size_t)(to - bytes));
            to = bytes;
        }
    }
    return 0;
}

static int close_channel(struct mux_ws *m, const uint8_t *p, size_t len, bool end, struct err *err)
{
    if (m->pos + len > 1 || (end && m->pos + len != 1))
        return bad(err, "bad close signal");
    if (len == 1) {
        if (p[0] >= 5)
            return bad(err, "close signal for an unknown channel");
        struct lane *l = conn_find_lane(m->mux.conn, p[0]);
        if (l != NULL)
            conn_lane_in_eof(l);
    }
    m->pos += len;
    return 0;
}

static int on_piece(void *arg, const void *data, size_t len, bool start, bool end, struct err *err)
{
    struct mux_ws *m = arg;
    const uint8_t *p = data;
    bool base64 = m->protocol.wire == WIRE_WS_BASE64;
    if (start) {
        m->have_channel = m->padded = false;
        m->pos = m->n_quad = 0;
    }
    if (!m->have_channel) {
        if (len == 0)
            return 0; /* an empty message means nothing */
        m->have_channel = true;
        m->channel = base64 ? (unsigned)(p[0] - '0') : p[0];
        p++;
        len--;
    }
    if (m->protocol.version >= 5 && m->channel == CLOSE_CHANNEL)
        return close_channel(m, p, len, end, err);
    struct lane *l = conn_find_lane(m->mux.conn, m->channel);
    m->pos += len;
    if (base64) {
        if (deliver_base64(m, l, p, len, err) < 0)
            return -1;
        return end && m->n_quad != 0 ? bad(err, "cut base64") : 0;
    }
    if (l != NULL && len > 0)
        conn_lane_in(l, p, len);
    return 0;
}

static int on_control(void *arg, enum ws_opcode op, const void *data, size_t len, struct err *err)
{
    struct mux_ws *m = arg;
    if (op == WS_PING)
        return ws_append(conn_out(m->mux.conn), WS_PONG, NULL, 0, data, len);
    if (op == WS_CLOSE) {
        (void)ws_append_close(conn_out(m->mux.conn), WS_NORMAL_CLOSURE);
        conn_flush(m->mux.conn);
        return err_set(err, ERR_CANCELLED, "the client closed");
    }
    return 0;
}

static void send_message(struct mux_ws *m, uint32_t channel, const void *data, size_t len)
{
    struct buf *out = conn_out(m->mux.conn);
    uint8_t byte = (uint8_t)channel;
    if (m->protocol.wire != WIRE_WS_BASE64) {
        (void)ws_append(out, WS_BINARY, &byte, 1, data, len);
        return;
    }
    const uint8_t *p = len > 0 ? data : &byte; /* nothing has no address to add to */
    byte = (uint8_t)('0' + channel);
    do {
        unsigned char text[BASE64_LINE / 3 * 4 + 1];
        size_t n = len < BASE64_LINE ? len : BASE64_LINE;
        int n_text = n > 0 ? EVP_EncodeBlock(text, p, (int)n) : 0;
        (void)ws_append(out, WS_TEXT, &byte, 1, text, (size_t)n_text);
        p += n;
        len -= n;
    } while (len > 0);
}

/* Clients take the first message for the sign that they are connected. */
static void send_connected(struct mux_ws *m)
{
    static const uint32_t order[] = {1, 2, 3};
    for (size_t i = 0; i < ARRAY_LEN(order); i++) {
        if (conn_find_lane(m->mux.conn, order[i]) != NULL) {
            send_message(m, order[i], NULL, 0);
            return;
        }
    }
}

static void start(struct mux *mux)
{
    struct mux_ws *m = (struct mux_ws *)mux;
    for (uint32_t i = 0; i < m->n_channels; i++) {
        if (m->ports) {
            const uint16_t port = m->port_of[i / 2];
            const uint8_t bytes[2] = {(uint8_t)port, (uint8_t)(port >> 8)};
            if (conn_open_lane(mux->conn, i, i % 2 == 0 ? LANE_DATA : LANE_ERROR, port, i / 2) !=
                NULL)
                send_message(m, i, bytes, sizeof(bytes));
        } else if (m->kinds[i] != LANE_UNKNOWN) {
            (void)conn_open_lane(mux->conn, i, m->kinds[i], 0, -1);
        }
    }
    if (!m->ports)
        send_connected(m);
}

static int feed(struct mux *mux, const void *data, size_t len, struct err *err)
{
    return ws_feed(((struct mux_ws *)mux)->reader, data, len, err);
}

static void frame(struct mux *mux, struct lane *l, const void *data, size_t len)
{
    send_message((struct mux_ws *)mux, l->id, data, len);
}

/* A server cannot end one channel. */
static void end(struct mux *mux, struct lane *l, bool reset)
{
    (void)mux;
    (void)l;
    (void)reset;
}

static void goodbye(struct mux *mux)
{
    (void)ws_append_close(conn_out(mux->conn), WS_NORMAL_CLOSURE);
}

static void farewell(struct mux *mux)
{
    (void)mux;
}

static void mux_free(struct mux *mux)
{
    ws_reader_free(((struct mux_ws *)mux)->reader);
    free(mux);
}

struct mux *mux_ws_new(const struct protocol *p, const struct stream_request *r)
{
    struct mux_ws *m = xcalloc(1, sizeof(*m));
    m->mux = (struct mux){.start = start,
                          .feed = feed,
                          .frame = frame,
                          .end = end,
                          .goodbye = goodbye,
                          .farewell = farewell,
                          .free = mux_free};
    m->protocol = *p;
    const struct ws_callbacks cb = {.piece = on_piece, .control = on_control, .arg = m};
    m->reader = ws_reader_new(&cb);
    m->ports = r->kind == REQUEST_PORT_FORWARD;
    if (m->ports) {
        m->n_channels =
            (uint32_t)(r->n_ports < LIMIT_STREAM_PORTS ? r->n_ports : LIMIT_STREAM_PORTS) * 2;
        for (uint32_t i = 0; i < m->n_channels / 2; i++)
            m->port_of[i] = r->ports[i];
        return &m->mux;
    }
    m->n_channels = 5;
    m->kinds[0] = r->in ? LANE_STDIN : LANE_UNKNOWN;
    m->kinds[1] = r->out ? LANE_STDOUT : LANE_UNKNOWN;
    m->kinds[2] = r->err && !r->tty ? LANE_STDERR : LANE_UNKNOWN;
    m->kinds[3] = LANE_ERROR;
    m->kinds[4] = r->tty && p->version >= 3 ? LANE_RESIZE : LANE_UNKNOWN;
    return &m->mux;
}
