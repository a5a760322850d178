/*
 * conn - one upgraded connection and the lanes (streams) within it, whatever the protocol.
 *
 * A connection is moved by one thread, in conn_run(): it alone reads and writes the socket and
 * speaks the protocol (mux_spdy.c, mux_ws.c). Others put bytes into a lane and take bytes out of
 * it. Nothing grows without bound: a lane that is full downwards stops the reading of the socket
 * (TCP is the only flow control these protocols have), what goes up is bounded by its producer or
 * refused, and acknowledged to it only once it has its place in the socket's queue.
 *
 * A client that vanishes ends its lanes' input; output is thrown away from then on, and the service
 * decides what becomes of the rest. A connection that is closed in order stays until the client
 * has closed (or LIMIT_STREAM_LINGER_NS): closing earlier makes the kernel throw away what the
 * client has not read yet.
 *
 * Memory: the connection owns its lanes until conn_drop() or conn_free(). Threads: functions marked
 * "any" from any thread, the rest on the connection's own.
 */
#ifndef ASPIS_CRI_STREAMING_CONN_H
#define ASPIS_CRI_STREAMING_CONN_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>

#include "base/buf.h"
#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/err.h"

struct conn;
struct mux;

enum lane_kind {
    LANE_UNKNOWN, /* answered and ignored */
    LANE_ERROR,
    LANE_STDIN,
    LANE_STDOUT,
    LANE_STDERR,
    LANE_RESIZE,
    LANE_DATA, /* of a port-forward */
};

struct lane {
    struct conn *conn;
    uint32_t id; /* SPDY stream, WebSocket channel */
    enum lane_kind kind;
    uint32_t port;   /* of a port-forward; 0: none or a bad one */
    int64_t request; /* what pairs data with error; -1: none */
    void *owner;     /* the service's */

    /* under the connection's lock */
    struct buf in;
    bool in_eof, in_dead; /* dead: nobody takes, bytes are thrown away */
    pthread_cond_t in_cond;
    struct buf out;
    bool out_eof, out_reset;

    /* the connection's thread */
    struct buf turn; /* taken from out, being framed */
    size_t turn_at;
    uint64_t sent;
    bool ended; /* FIN or RST was sent */
    bool peer_reset;
    /* So many bytes of this lane are in the socket's queue (or thrown away). */
    void (*on_sent)(void *arg, uint64_t total);
    void *arg;
    TAILQ_ENTRY(lane) link;
};

/* What a connection is for. All on the connection's thread. */
struct service {
    /* A lane of the client: -1 refuses it. */
    int (*open)(void *arg, struct lane *l);
    /* Looks at what has happened since; returns when it must be called again (monotonic ns), 0
     * when only an event matters. */
    int64_t (*turn)(void *arg);
    int event_fd; /* wakes the connection as well; -1 for none */
    void *arg;
};

/* A protocol, for conn.c; made by mux_*_new(). */
struct mux {
    void (*start)(struct mux *m); /* after 101 */
    int (*feed)(struct mux *m, const void *data, size_t len, struct err *err);
    void (*frame)(struct mux *m, struct lane *l, const void *data, size_t len);
    void (*end)(struct mux *m, struct lane *l, bool reset);
    void (*goodbye)(struct mux *m);  /* everything is said: asks the client to close */
    void (*farewell)(struct mux *m); /* right before the socket is closed */
    void (*free)(struct mux *m);
    struct conn *conn;
};

/* fd stays the caller's; `extra` came behind the HTTP request. Takes the mux. */
struct conn *conn_new(int fd, const void *extra, size_t len, struct mux *mux, int64_t idle_ns,
                      struct cancel *stop, struct err *err);
void conn_free(struct conn *c);
/* Until the service has closed or aborted it, and in the first case the client has too. */
void conn_run(struct conn *c, const struct service *service);
void conn_wake(struct conn *c);  /* any */
void conn_flush(struct conn *c); /* writes what the socket takes now */
/* Sends what there is, ends, waits for the client. */
void conn_close(struct conn *c);
void conn_abort(struct conn *c);
bool conn_gone(const struct conn *c);     /* the client is lost */
bool conn_stopping(const struct conn *c); /* the daemon is */
void conn_drop(struct conn *c, struct lane *l);

/* --- lanes, any thread --- */
/* -1 when it does not fit. */
int lane_put(struct lane *l, const void *data, size_t len);
void lane_end(struct lane *l);   /* end of stream after what was put */
void lane_reset(struct lane *l); /* the same, by RST */
/* Waits. 1: *into (empty before) has bytes; 0: end of input; -1: the lane was discarded. */
int lane_take(struct lane *l, struct buf *into);
/* The same without waiting: 2 when there is nothing yet. */
int lane_poll(struct lane *l, struct buf *into);
void lane_discard(struct lane *l);   /* nobody takes any more */
bool lane_was_reset(struct lane *l); /* the client ended it in both directions, or is gone */

/* --- for muxes --- */
/* A new lane, shown to the service; NULL when refused. */
struct lane *conn_open_lane(struct conn *c, uint32_t id, enum lane_kind kind, uint32_t port,
                            int64_t request);
struct lane *conn_find_lane(struct conn *c, uint32_t id);
void conn_lane_in(struct lane *l, const void *data, size_t len);
void conn_lane_in_eof(struct lane *l);
void conn_lane_peer_reset(struct lane *l);
struct buf *conn_out(struct conn *c);
void conn_peer_closing(struct conn *c); /* said that it will close */

#endif
