/*
 * link - the host's end of the connection to one pod's agent: calls, events and stdio streams.
 *
 * A link owns the connections of the `rpc` and `io` channels, dialled by the transport it was
 * given; when one of them breaks while the machine lives it redials and resyncs by itself, and what
 * was open goes on (stdio streams at their acknowledged offset; unanswered calls fail with
 * UNAVAILABLE, since the agent may or may not have run them). Everything the guest sends is
 * hostile: bounded, validated, never trusted as an id.
 *
 * Threads: link_call() and stream_write() block and may be called from any thread but the loops'
 * own; callbacks run on the loop threads given to link_new() and must not block. Memory: reference
 * counted; a stream is freed by stream_close() and calls back no more after that returned.
 *
 * link_close(), the last link_unref() and stream_close() wait for the loops' threads: never call
 * them with a lock held that a callback takes, nor the first two from callbacks of the io loop. A
 * stream's callback may close its own stream. Both loops must be running.
 */
#ifndef ASPIS_SANDBOX_LINK_H
#define ASPIS_SANDBOX_LINK_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cancel.h"
#include "base/err.h"
#include "base/loop.h"
#include "proto/agent.pb-c.h"
#include "proto/arena.h"
#include "proto/frame.h"

struct link;
struct stream;

/* How to reach the agent. */
struct link_transport {
    enum { LINK_UNIX, LINK_VSOCK, LINK_HYBRID } kind;
    char *path[LINK_CHANNELS]; /* LINK_UNIX: sockets served by QEMU (virtio-serial) or by a host
                                  agent; LINK_HYBRID: aspis-vsock's, three times */
    uint32_t cid;              /* LINK_VSOCK */
};

/* One call: connects a non-blocking stream socket for the channel. The agent may not be there yet:
 * a unix socket of QEMU accepts at once; for vsock ECONNREFUSED/ENODEV/ETIMEDOUT are "not yet":
 * UNAVAILABLE. */
int link_dial(const struct link_transport *t, enum link_channel ch, struct err *err);

struct link_callbacks {
    /* An event of the agent, in order, each seq once per link; on the control loop. The message
     * lives until the callback returns. Acknowledge with link_ack_events() once it is durable. */
    void (*on_event)(void *arg, const Aspis__Agent__V1__Event *event);
    /* The link is up (again) after resync and Hello; on the control loop. */
    void (*on_up)(void *arg, const Aspis__Agent__V1__HelloResponse *hello);
    /* The peer broke the protocol for good (garbage, impossible lengths, wrong version): the link
     * is dead. */
    void (*on_broken)(void *arg, const char *reason);
    void *arg;
};

/* control: loop for rpc and events; io: loop for stdio. Copies the transport. Starts dialling at
 * once. */
struct link *link_new(const struct link_transport *t, struct loop *control, struct loop *io,
                      const struct link_callbacks *cb, struct err *err);
struct link *link_ref(struct link *l);
/* Ends the link for all holders: calls fail with UNAVAILABLE and `reason`, no callback follows once
 * this has returned. Idempotent. */
void link_close(struct link *l, const char *reason);
void link_unref(struct link *l);

/* Waits until the agent has answered Hello. A wedged guest never does: pass a token with a
 * deadline. */
int link_wait_up(struct link *l, struct cancel *cancel, struct err *err);

/* One unary call (waits for the link to be up first): method is "CreateContainer" etc.; the reply
 * is unpacked into `arena` (freed with it). A token that fires sends CANCEL and returns
 * CANCELLED/DEADLINE; the agent's error comes back with its code and "agent: <text>". */
const ProtobufCMessage *link_call(struct link *l, const char *method,
                                  const ProtobufCMessage *request,
                                  const ProtobufCMessageDescriptor *reply, struct arena *arena,
                                  struct cancel *cancel, struct err *err);

/* For a heartbeat: has the agent answered anything since the last probe? Sends a Ping that the next
 * probe will want answered, and that keeps the guest's clock on the host's (link_clock.c). Never
 * blocks. */
bool link_probe(struct link *l);
/* The host's clock was set: the guest's is compared now, not with the next probe. Never blocks. */
void link_clock_changed(struct link *l);

/* Guest text made fit for messages: bounded, printable. The caller frees it. */
char *link_guest_text(const void *text, size_t len);

/* How often an agent was connected to again, all links of this process together. */
uint64_t link_reconnects(void);

void link_ack_events(struct link *l, uint64_t seq);

/* --- stdio --- */
struct stream_callbacks {
    /* Bytes [offset, offset+len) of an output stream, in order without gap. Call stream_ack() when
     * they are consumed (now or later, on any thread); the sender stops LIMIT_IO_WINDOW past the
     * last ack. */
    void (*on_data)(void *arg, uint64_t offset, const void *data, size_t len);
    void (*on_eof)(void *arg, uint64_t offset); /* the stream's total length */
    /* The agent does not know the stream, or the link was closed. Nothing follows. */
    void (*on_reset)(void *arg, const char *reason);
    void *arg;
};

/* Opens an output stream from `offset` (what the caller has already consumed). Callbacks run on the
 * io loop and may come before this returns. */
struct stream *stream_open_output(struct link *l, uint32_t id, uint64_t offset,
                                  const struct stream_callbacks *cb, struct err *err);
void stream_ack(struct stream *s, uint64_t offset);

/* Opens an input stream (stdin). */
struct stream *stream_open_input(struct link *l, uint32_t id, struct err *err);
/* Blocks until all is on its way within the credit that the process's reading gives; eof
 * half-closes after the data. One writer at a time. ABORTED when the agent does not know the stream
 * or the process closed its end. */
int stream_write(struct stream *s, const void *data, size_t len, bool eof, struct cancel *cancel,
                 struct err *err);
void stream_close(struct stream *s);

#endif
