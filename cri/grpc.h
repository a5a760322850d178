/*
 * grpc - gRPC over a unix socket: the server that kubelet talks to, and the client of aspisctl.
 *
 * The only file pair that knows gRPC C core, which is an unstable interface.
 *
 * Server: one thread waits for gRPC's events; every call runs its handler on a worker
 * (cri/workers.h). Requests are checked on the wire (cri/message.h) before they are unpacked into
 * the call's arena. The socket appears under its name with mode 0600 only when it is listening.
 *
 * Client: blocking, one call at a time per client.
 */
#ifndef ASPIS_CRI_GRPC_H
#define ASPIS_CRI_GRPC_H

#include <protobuf-c/protobuf-c.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "cri/dispatch.h"
#include "proto/arena.h"

struct gserver;

struct gserver_opts {
    const char *socket_path; /* absolute; its lock (cri/socket.h) is held by the caller */
    const struct method *methods;
    size_t n_methods;
    void *daemon;            /* becomes call->daemon */
    size_t max_calls;        /* 0: LIMIT_CALLS_AT_ONCE */
    size_t arena_bytes;      /* 0: LIMIT_CALL_ARENA */
    int64_t stream_stall_ns; /* 0: LIMIT_STREAM_STALL_NS */
};

/* Serves from now on. The strings and the table must outlive the server. */
struct gserver *gserver_start(const struct gserver_opts *opts, struct err *err);
/* Takes no new calls, cancels the running ones, waits for their handlers, removes the socket,
 * frees. NULL is fine. */
void gserver_stop(struct gserver *s);

DEFINE_AUTO(struct gserver *, gserver_stop);
#define auto_gserver __attribute__((cleanup(gserver_stopp)))

struct gclient;

/* Connects to be sure that somebody answers; UNAVAILABLE or DENIED saying what to do if not. */
struct gclient *gclient_open(const char *socket_path, struct err *err);
void gclient_close(struct gclient *c);

/* One unary call: path "/runtime.v1.RuntimeService/Version". The reply is unpacked into arena.
 * timeout_ns
 * <= 0: none. NULL with the server's code and text in *err. */
ProtobufCMessage *gclient_call(struct gclient *c, const char *path, const ProtobufCMessage *req,
                               const ProtobufCMessageDescriptor *reply, struct arena *arena,
                               int64_t timeout_ns, struct err *err);

/* One server stream: each message goes to on_message, which lives until that returns; a negative
 * return cancels the call and is returned. 0 when the server ended the stream with OK. */
typedef int (*gclient_message_fn)(void *arg, const ProtobufCMessage *message, struct err *err);
int gclient_stream(struct gclient *c, const char *path, const ProtobufCMessage *req,
                   const ProtobufCMessageDescriptor *reply, gclient_message_fn on_message,
                   void *arg, int64_t timeout_ns, struct err *err);

/* Ends the call in progress, from any thread. */
void gclient_cancel(struct gclient *c);

DEFINE_AUTO(struct gclient *, gclient_close);
#define auto_gclient __attribute__((cleanup(gclient_closep)))

#endif
