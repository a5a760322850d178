/*
 * mux - the protocols a connection can speak: SPDY/3.1 (also inside WebSocket), and channels over
 * WebSocket. What they do with lanes is in conn.h.
 *
 * Memory: a mux belongs to its connection. Threads: the connection's.
 */
#ifndef ASPIS_CRI_STREAMING_MUX_H
#define ASPIS_CRI_STREAMING_MUX_H

#include "cri/streaming/conn.h"
#include "cri/streaming/tokens.h"

/* How a connection talks, as negotiated in its HTTP request. */
enum wire {
    WIRE_SPDY,
    WIRE_TUNNEL,    /* SPDY in the messages of a WebSocket */
    WIRE_WS,        /* channel byte and bytes */
    WIRE_WS_BASE64, /* channel digit and base64, as text */
};

struct protocol {
    enum wire wire;
    int version; /* 1..5 of exec and attach: what the error stream says and whether there is resize
                  */
    const char *name; /* as offered; "" for a WebSocket client that offered none */
};

struct mux *mux_spdy_new(bool tunnelled);
/* Lanes are made from the request: there is no opening in this protocol. */
struct mux *mux_ws_new(const struct protocol *p, const struct stream_request *r);

#endif
