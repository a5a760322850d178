/*
 * rpc - the guest's server for calls on the `rpc` channel.
 *
 * Single-threaded: everything runs on the agent's one loop. A handler may answer at once or keep
 * the call and answer later (an operation in a forked child, a disk that has to appear); other
 * calls go on meanwhile. A peer's mistake (unknown method, bad protobuf, too many calls) is
 * answered with an error or dropped, and never ends the agent.
 *
 * Memory: a call is owned by the server until it is answered with rpc_reply() or rpc_fail(); the
 * request lives as long as the call. When the host cancels or reconnects, calls stay valid and
 * their answers are dropped.
 */
#ifndef ASPIS_AGENT_RPC_H
#define ASPIS_AGENT_RPC_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>

#include "base/err.h"
#include "base/loop.h"

struct peer;
struct rpc_server;
struct rpc_call;

typedef void (*rpc_handler)(struct rpc_call *call, const ProtobufCMessage *request, void *arg);

struct rpc_method {
    const char *name; /* "CreateContainer" */
    const ProtobufCMessageDescriptor *request;
    rpc_handler handler;
    void *arg;
};

/* methods ends with a NULL name and must outlive the server. */
struct rpc_server *rpc_server_new(struct loop *loop, const struct rpc_method *methods,
                                  struct err *err);
void rpc_server_free(struct rpc_server *s);
/* The server's end of the `rpc` channel, for channels.c to attach descriptors to. Owned by the
 * server. */
struct peer *rpc_server_peer(struct rpc_server *s);

void rpc_reply(struct rpc_call *call, const ProtobufCMessage *reply);
void rpc_fail(struct rpc_call *call, const struct err *err);

/* For the Events stream: sends one message; -1 when the call's connection is gone or its output is
 * full (then nothing was queued; `writable` is called once there is room again). */
int rpc_stream_send(struct rpc_call *call, const ProtobufCMessage *message);
/* The host cancelled the call or reconnected, or (writable) there is room again. Either may be
 * NULL. */
void rpc_call_notify(struct rpc_call *call, void (*gone)(void *arg), void (*writable)(void *arg),
                     void *arg);

#endif
