/*
 * remote - streams over one SPDY/3.1 connection to the daemon: the client's side of
 * cri/streaming/conn.h, for one thread that polls.
 *
 * Nothing waits: what is sent is queued, remote_turn() moves bytes. SPDY has no flow control, so a
 * caller that cannot take more does not let it read; and one that has REMOTE_FULL bytes queued
 * brings no more.
 *
 * Memory: the caller's from remote_open() to remote_close(). Threads: one.
 */
#ifndef ASPIS_CRI_CTL_REMOTE_H
#define ASPIS_CRI_CTL_REMOTE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "cri/streaming/spdy.h"

#define REMOTE_FULL (256U * 1024)
/* Nothing said for so long: remote_ping(), so that the daemon does not take the session for idle.
 */
#define REMOTE_PING_MS 60000

struct remote;

struct remote_callbacks {
    /* A piece of a stream; `end` with its last, which may be empty. A stream that was reset ends
     * likewise. -1 breaks the connection off. */
    int (*data)(void *arg, uint32_t id, const void *data, size_t len, bool end, struct err *err);
    void *arg;
};

struct remote *remote_open(const char *url, const char *protocol, const struct remote_callbacks *cb,
                           struct err *err);
/* Says goodbye as far as the socket takes it. NULL is fine. */
void remote_close(struct remote *r);

/* A new stream; its id. fin: we shall send nothing on it. */
uint32_t remote_stream(struct remote *r, bool fin, const struct spdy_header *headers, size_t n);
void remote_send(struct remote *r, uint32_t id, const void *data, size_t len, bool fin);
void remote_ping(struct remote *r);
size_t remote_queued(const struct remote *r);

int remote_fd(const struct remote *r);
/* What to poll for. */
short remote_events(const struct remote *r, bool read);
/* Writes, and reads if it may. 1: there may be more to read, without polling; 0: poll; -1: the
 * connection is over. */
int remote_turn(struct remote *r, bool read, struct err *err);

DEFINE_AUTO(struct remote *, remote_close);
#define auto_remote __attribute__((cleanup(remote_closep)))

#endif
