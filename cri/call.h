/*
 * call - one call of a client, as a handler sees it.
 *
 * A handler runs on a worker thread of its own and may block; it passes call->cancel to whatever it
 * waits for. The request and everything allocated from call->arena live until the handler has
 * returned and its reply is packed; a handler keeps nothing of either. A handler never answers: it
 * returns 0 with *reply (made with call_message() in the arena), or -1 with *err, whose code
 * becomes the gRPC status. A streaming handler sends with call_send() and leaves *reply alone.
 *
 * Requests have been checked before: every string is valid UTF-8 without NUL and at most
 * LIMIT_STRING long. Strings in replies may hold anything: bytes that are no UTF-8 are replaced on
 * the way out.
 */
#ifndef ASPIS_CRI_CALL_H
#define ASPIS_CRI_CALL_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/cancel.h"
#include "base/err.h"
#include "proto/arena.h"

struct method;

struct call {
    const struct method *method;
    struct arena *arena; /* at most LIMIT_CALL_ARENA, request included */
    struct cancel
        *cancel;  /* fires at the deadline, when the client cancels, when the daemon stops */
    void *daemon; /* struct daemon * (cri/daemon.h); a test's own thing in tests */
    /* The transport's: queues one packed message of a stream. */
    int (*send)(struct call *call, const void *data, size_t len, struct err *err);
};

typedef int (*call_handler)(struct call *call, const ProtobufCMessage *req,
                            ProtobufCMessage **reply, struct err *err);

/* A new, initialised message in the call's arena; NULL with EXHAUSTED in *err when it is full. */
void *call_message(struct call *call, const ProtobufCMessageDescriptor *desc, struct err *err);
/* n zeroed elements; for n 0 a valid pointer too. NULL with EXHAUSTED in *err. */
void *call_array(struct call *call, size_t n, size_t size, struct err *err);
/* A copy of s ("" for NULL); NULL with EXHAUSTED in *err. */
char *call_string(struct call *call, const char *s, struct err *err);

/* Sends one message of a server stream. Blocks while the client is slow, for at most
 * LIMIT_STREAM_STALL_NS without progress: then EXHAUSTED. CANCELLED when the call has ended. Only
 * on the handler's thread. `message` is the caller's again afterwards; the arena does not grow for
 * it unless the message holds broken UTF-8. */
int call_send(struct call *call, const ProtobufCMessage *message, struct err *err);

#endif
