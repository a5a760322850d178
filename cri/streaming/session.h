/*
 * session - one exec or attach, or one client's port-forwards, on an upgraded connection: from its
 * first stream to its last byte. Blocks until it is over; see README.md for the rules of an end.
 *
 * Threads: the caller's, plus one for stdin and one for the terminal's size, or one per forwarded
 * connection.
 */
#ifndef ASPIS_CRI_STREAMING_SESSION_H
#define ASPIS_CRI_STREAMING_SESSION_H

#include "cri/model.h"
#include "cri/streaming/conn.h"
#include "cri/streaming/mux.h"

void session_run(struct conn *conn, struct container *c, const struct stream_request *r,
                 const struct protocol *p, struct cancel *stop);
void portforward_run(struct conn *conn, struct sandbox *s, const char *owner, struct cancel *stop);

#endif
