/*
 * websocket - frames of RFC 6455 as a server meets them: a reader fed bytes as they come, and
 * functions that append one frame. No I/O, no extensions.
 *
 * What is fed is hostile: frames of a client must be masked, control frames are at most 125 bytes,
 * lengths have no bound since payloads are passed on in pieces. A breach ends the connection.
 * Memory and threads as in spdy.h.
 */
#ifndef ASPIS_CRI_STREAMING_WEBSOCKET_H
#define ASPIS_CRI_STREAMING_WEBSOCKET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/err.h"

enum ws_opcode {
    WS_CONTINUATION = 0,
    WS_TEXT = 1,
    WS_BINARY = 2,
    WS_CLOSE = 8,
    WS_PING = 9,
    WS_PONG = 10,
};

#define WS_NORMAL_CLOSURE 1000
#define WS_PROTOCOL_ERROR 1002

struct ws_callbacks {
    /* A piece of a message: `start` with its first piece, `end` with its last (pieces may be
     * empty). */
    int (*piece)(void *arg, const void *data, size_t len, bool start, bool end, struct err *err);
    /* WS_CLOSE, WS_PING or WS_PONG with its whole payload. */
    int (*control)(void *arg, enum ws_opcode op, const void *data, size_t len, struct err *err);
    void *arg;
};

struct ws_reader;

struct ws_reader *ws_reader_new(const struct ws_callbacks *cb);
void ws_reader_free(struct ws_reader *r);
int ws_feed(struct ws_reader *r, const void *data, size_t len, struct err *err);

DEFINE_AUTO(struct ws_reader *, ws_reader_free);
#define auto_ws_reader __attribute__((cleanup(ws_reader_freep)))

/* One unmasked frame that is a whole message; its payload is `prefix` and `data` together. -1 when
 * the buffer is full. */
int ws_append(struct buf *out, enum ws_opcode op, const void *prefix, size_t prefix_len,
              const void *data, size_t len);
int ws_append_close(struct buf *out, unsigned code);

/* Sec-WebSocket-Accept for a client's Sec-WebSocket-Key; -1 when the key is none. */
int ws_accept_key(const char *key, char out[29]);

#endif
