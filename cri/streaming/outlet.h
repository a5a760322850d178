/*
 * outlet - an output stream of the guest led into a lane: acknowledged only as the client's socket
 * takes it, so a client that does not read stops this stream and nothing else.
 *
 * Memory: the struct lives with its owner, from outlet_open() to outlet_close(). Threads: open and
 * close the owner's, neither a loop's; outlet_ended() any.
 */
#ifndef ASPIS_CRI_STREAMING_OUTLET_H
#define ASPIS_CRI_STREAMING_OUTLET_H

#include <pthread.h>

#include "cri/streaming/conn.h"
#include "sandbox/link.h"

struct outlet {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct conn *conn;
    struct lane *lane; /* NULL: read and thrown away */
    struct stream *stream;
    uint64_t done;
    bool ended, up;
};

/* id 0: a stream that has ended. */
int outlet_open(struct outlet *o, struct conn *conn, struct lane *lane, struct link *link,
                uint32_t id, struct err *err);
bool outlet_ended(struct outlet *o);
/* Waits for its end or outlet_stop(). */
void outlet_wait(struct outlet *o);
void outlet_stop(struct outlet *o); /* as if it had ended; any thread */
void outlet_close(struct outlet *o);

#endif
