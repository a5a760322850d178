/* Lanes over SPDY/3.1: every stream of the client is a lane. */
#include <string.h>

#include "base/limits.h"
#include "base/str.h"
#include "cri/streaming/mux.h"
#include "cri/streaming/spdy.h"
#include "cri/streaming/websocket.h"

struct mux_spdy {
    struct mux mux;
    struct spdy_reader *reader;
    uint32_t last_id;
    bool replied, goaway;
    struct ws_reader *ws; /* tunnel: NULL otherwise */
    struct buf out;       /* tunnel: frames on their way into a message */
};

/* Where frames go; flush() puts them on the way. */
static struct buf *out(struct mux_spdy *m)
{
    return m->ws != NULL ? &m->out : conn_out(m->mux.conn);
}

static void flush(struct mux_spdy *m)
{
    if (m->ws == NULL || m->out.len == 0)
        return;
    (void)ws_append(conn_out(m->mux.conn), WS_BINARY, NULL, 0, m->out.data, m->out.len);
    buf_reset(&m->out);
}

static const char *header(const struct spdy_header *h, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++) {
        if (strcmp(h[i].name, name) == 0)
            return h[i].value;
    }
    return NULL;
}

static enum lane_kind kind_of(const char *type)
{
    static const struct {
        const char *name;
        enum lane_kind kind;
    } kinds[] = {{"error", LANE_ERROR},   {"stdin", LANE_STDIN},   {"stdout", LANE_STDOUT},
                 {"stderr", LANE_STDERR}, {"resize", LANE_RESIZE}, {"data", LANE_DATA}};
    for (size_t i = 0; type != NULL && i < ARRAY_LEN(kinds); i++) {
        if (strcasecmp(type, kinds[i].name) == 0)
            return kinds[i].kind;
    }
    return LANE_UNKNOWN;
}

static int on_syn(void *arg, uint32_t id, bool fin, const struct spdy_header *h, size_t n,
                  struct err *err)
{
    struct mux_spdy *m = arg;
    (void)err;
    if ((id & 1) == 0 || id <= m->last_id) {
        (void)spdy_append_rst(out(m), id, SPDY_PROTOCOL_ERROR);
        return 0;
    }
    m->last_id = id;
    uint64_t port = 0;
    uint64_t request = 0;
    const char *text = header(h, n, "port");
    if (text == NULL || str_to_u64(text, &port) < 0 || port > UINT16_MAX)
        port = 0;
    text = header(h, n, "requestid");
    bool paired = text != NULL && str_to_u64(text, &request) == 0 && request <= INT64_MAX;
    struct lane *l = conn_open_lane(m->mux.conn, id, kind_of(header(h, n, "streamtype")),
                                    (uint32_t)port, paired ? (int64_t)request : -1);
    if (l == NULL) {
        (void)spdy_append_rst(out(m), id, SPDY_REFUSED_STREAM);
        return 0;
    }
    (void)spdy_append_reply(out(m), id, !m->replied);
    m->replied = true;
    if (fin)
        conn_lane_in_eof(l);
    return 0;
}

static int on_data(void *arg, uint32_t id, const void *data, size_t len, bool fin, struct err *err)
{
    struct mux_spdy *m = arg;
    struct lane *l = conn_find_lane(m->mux.conn, id);
    (void)err;
    if (l == NULL)
        return 0; /* of a stream that has ended here */
    if (len > 0)
        conn_lane_in(l, data, len);
    if (fin)
        conn_lane_in_eof(l);
    return 0;
}

static int on_rst(void *arg, uint32_t id, uint32_t status, struct err *err)
{
    struct mux_spdy *m = arg;
    struct lane *l = conn_find_lane(m->mux.conn, id);
    (void)status;
    (void)err;
    if (l != NULL)
        conn_lane_peer_reset(l);
    return 0;
}

static int on_ping(void *arg, uint32_t id, struct err *err)
{
    struct mux_spdy *m = arg;
    (void)err;
    return (id & 1) != 0 ? spdy_append_ping(out(m), id) : 0;
}

static int on_goaway(void *arg, struct err *err)
{
    struct mux_spdy *m = arg;
    (void)err;
    conn_peer_closing(m->mux.conn);
    return 0;
}

static int ws_piece(void *arg, const void *data, size_t len, bool start, bool end, struct err *err)
{
    struct mux_spdy *m = arg;
    (void)start;
    (void)end;
    return spdy_feed(m->reader, data, len, err);
}

static int ws_control(void *arg, enum ws_opcode op, const void *data, size_t len, struct err *err)
{
    struct mux_spdy *m = arg;
    if (op == WS_PING)
        return ws_append(conn_out(m->mux.conn), WS_PONG, NULL, 0, data, len);
    if (op != WS_CLOSE)
        return 0;
    (void)ws_append_close(conn_out(m->mux.conn), WS_NORMAL_CLOSURE);
    conn_flush(m->mux.conn);
    return err_set(err, ERR_CANCELLED, "the client closed");
}

static void start(struct mux *mux)
{
    (void)mux;
}

static int feed(struct mux *mux, const void *data, size_t len, struct err *err)
{
    struct mux_spdy *m = (struct mux_spdy *)mux;
    int rc = m->ws != NULL ? ws_feed(m->ws, data, len, err) : spdy_feed(m->reader, data, len, err);
    flush(m);
    return rc;
}

static void frame(struct mux *mux, struct lane *l, const void *data, size_t len)
{
    struct mux_spdy *m = (struct mux_spdy *)mux;
    (void)spdy_append_data(out(m), l->id, data, len, false);
    flush(m);
}

static void end(struct mux *mux, struct lane *l, bool reset)
{
    struct mux_spdy *m = (struct mux_spdy *)mux;
    if (l->peer_reset)
        return;
    if (reset)
        (void)spdy_append_rst(out(m), l->id, SPDY_CANCEL);
    else
        (void)spdy_append_data(out(m), l->id, NULL, 0, true);
    flush(m);
}

static void goodbye(struct mux *mux)
{
    struct mux_spdy *m = (struct mux_spdy *)mux;
    if (m->ws != NULL) /* there is no other sign that a tunnel ends */
        (void)ws_append_close(conn_out(mux->conn), WS_NORMAL_CLOSURE);
}

static void farewell(struct mux *mux)
{
    struct mux_spdy *m = (struct mux_spdy *)mux;
    if (m->ws == NULL)
        (void)spdy_append_goaway(out(m), m->last_id);
}

static void mux_free(struct mux *mux)
{
    struct mux_spdy *m = (struct mux_spdy *)mux;
    spdy_reader_free(m->reader);
    ws_reader_free(m->ws);
    buf_clear(&m->out);
    free(m);
}

struct mux *mux_spdy_new(bool tunnelled)
{
    struct mux_spdy *m = xcalloc(1, sizeof(*m));
    m->mux = (struct mux){.start = start,
                          .feed = feed,
                          .frame = frame,
                          .end = end,
                          .goodbye = goodbye,
                          .farewell = farewell,
                          .free = mux_free};
    const struct spdy_callbacks cb = {.syn_stream = on_syn,
                                      .data = on_data,
                                      .rst_stream = on_rst,
                                      .ping = on_ping,
                                      .goaway = on_goaway,
                                      .arg = m};
    const struct ws_callbacks ws = {.piece = ws_piece, .control = ws_control, .arg = m};
    m->reader = spdy_reader_new(&cb);
    m->ws = tunnelled ? ws_reader_new(&ws) : NULL;
    m->out = (struct buf)BUF_INIT(MiB(1));
    return &m->mux;
}
