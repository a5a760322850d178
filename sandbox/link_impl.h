/*
 * link_impl - what the files of the link share; nobody else includes it (but its tests and
 * fuzzers).
 *
 *   link.c         life of a link: references, closing, breaking
 *   link_dial.c    sockets
 *   link_chan.c    one channel: dial, resync, frames in, queue out, dial again
 *   link_rpc.c     calls and events, on the rpc channel
 *   link_stream.c  stdio streams, on the io channel
 *
 * Locking: each channel has one mutex, which also guards what link_rpc.c or link_stream.c keep for
 * that channel. It is never held during a callback, and never two at once. What is marked "loop"
 * belongs to the channel's loop thread and needs no lock.
 */
#ifndef ASPIS_SANDBOX_LINK_IMPL_H
#define ASPIS_SANDBOX_LINK_IMPL_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/queue.h>

#define HASH_FUNCTION HASH_FNV /* clang warns of the default one */
#include <uthash.h>

#include "base/buf.h"
#include "sandbox/link.h"

struct link_chan_ops {
    /* On the channel's loop, lock not held. */
    void (*up)(struct link *l); /* in sync: frames may be sent */
    void (*down)(struct link *l);
    int (*frame)(struct link *l, const struct frame *f,
                 struct err *err); /* -1: the guest broke the protocol */
    /* Under the lock, any thread: appends what is to be sent next to chan->out; false when there is
     * nothing. */
    bool (*fill)(struct link *l);
};

struct link_chan {
    struct link *link;
    enum link_channel ch;
    struct loop *loop;
    const struct link_chan_ops *ops;

    pthread_mutex_t lock; /* guards down to the next blank line */
    int fd;
    struct loop_source *src;
    bool synced;
    bool stopped;
    bool watch_out;
    struct buf out; /* what is on its way; more is asked for with fill() when it runs low */
    size_t out_off; /* bytes of it already written */

    struct loop_source *timer;       /* loop: next dial, or next preamble */
    bool connecting;                 /* loop */
    struct frame_parser in;          /* loop */
    uint8_t preamble[PREAMBLE_SIZE]; /* loop */
    int64_t backoff_ns;              /* loop */
    uint64_t stale;                  /* loop: bytes skipped on this connection */
    unsigned junk;                   /* loop: frames nobody asked for, lately */
    int64_t junk_since;              /* loop */
};

/* One call; user calls live on the caller's stack. */
struct call {
    enum { CALL_IDLE, CALL_QUEUED, CALL_SENT, CALL_DONE } state;
    enum { CALL_USER, CALL_WAIT_UP, CALL_HELLO, CALL_EVENTS, CALL_ACK, CALL_PING } kind;
    uint32_t stream;  /* while SENT */
    uint8_t *request; /* packed envelope, owned, while QUEUED */
    size_t request_len;
    int done;          /* eventfd, readable from DONE on (user calls) */
    uint8_t *response; /* packed envelope, owned, when DONE without failure */
    size_t response_len;
    const char *failure;  /* when DONE and there is no response: why, for UNAVAILABLE */
    uint32_t since;       /* the agent's minor version that it needs, 0: any */
    const char *needs;    /* what of it */
    uint32_t agent_minor; /* when it failed since the agent's is lower */
    TAILQ_ENTRY(call) queue;
    UT_hash_handle hh;
};

TAILQ_HEAD(call_queue, call);
TAILQ_HEAD(stream_queue, stream);

struct link {
    struct link_transport transport;
    struct link_callbacks cb;
    atomic_uint users;  /* link_ref() */
    atomic_uint refs;   /* of the memory: one for all users, one per stream and posted work */
    atomic_bool ended;  /* then `reason` is set and does not change */
    atomic_bool closed; /* by a user: no callback any more */
    pthread_mutex_t end_lock;
    char *reason;

    struct link_chan rpc;
    /* under rpc.lock */
    bool up;                 /* Hello was answered on this connection */
    uint32_t minor;          /* of the protocol, in that answer */
    struct call_queue queue; /* not sent yet */
    struct call *sent;       /* by stream */
    unsigned n_calls;        /* user calls queued or sent */
    uint32_t last_stream;
    struct call hello;
    struct call events;
    struct call ack;
    struct call ping;
    bool heard;        /* an answer came since the last link_probe() */
    uint64_t ack_want; /* highest link_ack_events() */
    uint64_t ack_sent; /* in the last AckEvents */
    /* of the heartbeat's Clock: when it was asked last, how often since the heartbeat, and what the
     * next one corrects */
    int64_t clock_wall, clock_mono, clock_adjust_ns;
    unsigned clock_asks;
    uint64_t last_event;       /* delivered */
    uint64_t n_unacked;        /* delivered, not acknowledged */
    char *boot_id;             /* of the last Hello */
    struct loop_source *again; /* loop: time to repeat a refused Hello or an ended Events */

    struct link_chan io;
    /* under io.lock */
    struct stream *streams; /* by id */
    struct stream_queue ready;
    struct stream
        *dispatching; /* loop: the stream whose callback runs; NULL once it was closed there */
};

/* --- link.c --- */
struct link *link_alloc(const struct link_transport *t, struct loop *control, struct loop *io,
                        const struct link_callbacks *cb, struct err *err); /* without dialling */
void link_mem_ref(struct link *l);
void link_mem_unref(struct link *l);
/* The guest broke the protocol: ends the link for good. On a loop of the link. */
void link_broken(struct link *l, const char *reason);

/* --- link_clock.c; under rpc.lock --- */
/* By how much the guest's clock is behind the host's for certain, ahead when negative; 0: nothing
 * is certain. The host asked and was answered at these times. */
int64_t link_clock_behind(int64_t asked, int64_t answered, uint64_t guest);
void link_clock_begin(struct link *l); /* a heartbeat */
void link_clock_ask(struct link *l, Aspis__Agent__V1__ClockRequest *req);
/* True: ask again at once. */
bool link_clock_answered(struct link *l, const struct frame *f);

/* --- link_dial.c --- */
/* Like link_dial(), but a vsock connection may still be in progress (*connecting). */
int link_dial_start(const struct link_transport *t, enum link_channel ch, bool *connecting,
                    struct err *err);

/* --- link_chan.c --- */
void link_chan_init(struct link_chan *c, struct link *l, enum link_channel ch, struct loop *loop,
                    size_t max_payload, size_t max_queue, const struct link_chan_ops *ops);
void link_chan_clear(struct link_chan *c);
void link_chan_start(struct link_chan *c); /* loop */
void link_chan_stop(struct link_chan *c);  /* loop; idempotent */
void link_chan_flush(struct link_chan *c); /* under the lock */
/* A frame that belongs to nothing: ignored, but a flood of them breaks the link. loop. */
int link_chan_junk(struct link_chan *c, struct err *err);
/* Bytes as if they had been read. loop; for the channel itself and for fuzzers. */
void link_chan_input(struct link_chan *c, const void *data, size_t len);

/* --- link_rpc.c, link_stream.c --- */
void link_rpc_init(struct link *l, struct loop *control);
void link_rpc_start(struct link *l); /* loop */
void link_rpc_end(
    struct link *l); /* loop: stops, fails all calls with the link's reason; idempotent */
void link_rpc_clear(struct link *l);
void link_stream_init(struct link *l, struct loop *io);
void link_stream_end(struct link *l); /* loop: stops, resets all streams; idempotent */
void link_stream_clear(struct link *l);

#endif
