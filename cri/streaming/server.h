/*
 * server - the HTTP server to which Exec, Attach and PortForward send their clients: takes a token,
 * negotiates the protocol, and hands the upgraded socket to a session on a thread of its own.
 *
 * Tokens are the only access control, as in every CRI runtime; a wrong, used or expired one is 404.
 * Threads: any. Memory: owned by main.c; stop ends all sessions.
 */
#ifndef ASPIS_CRI_STREAMING_SERVER_H
#define ASPIS_CRI_STREAMING_SERVER_H

#include <stdint.h>

#include "base/err.h"
#include "cri/streaming/tokens.h"

struct runtime;
struct stream_server;

struct stream_server_options {
    struct runtime *runtime;
    const char *address;           /* to listen on */
    uint16_t port;                 /* 0: any */
    const char *certificate, *key; /* PEM files, "" for plain HTTP */
    int64_t idle_ns;
};

struct stream_server *stream_server_start(const struct stream_server_options *o, struct err *err);
void stream_server_stop(struct stream_server *s); /* NULL is fine */
/* Takes the request; the URL for its client is the caller's. EXHAUSTED when too many wait. */
char *stream_server_offer(struct stream_server *s, struct stream_request *r, struct err *err);

#endif
