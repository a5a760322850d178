/*
 * peer - the daemon, as one channel of the link sees it: finds preambles and frames in what comes
 * from a descriptor and queues what goes to it. Above this file only frames exist; which descriptor
 * it is at the moment is the business of channels.c.
 *
 * A peer is `up` from an answered preamble until the descriptor says that the host is gone or the
 * next preamble comes. Nothing is written while it is down. No call blocks, none can fail for good,
 * and a write error only ends the connection when the loop reports it, so no callback runs from
 * within peer_send() or peer_flush().
 *
 * Memory: owns its descriptor and its output queue (bounded: peer_send() fails at the bound).
 * Threads: the agent's loop.
 */
#ifndef ASPIS_AGENT_PEER_H
#define ASPIS_AGENT_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/loop.h"
#include "proto/frame.h"

struct peer;

struct peer_user {
    void (*up)(void *arg);   /* a new connection; nothing of an older one is valid */
    void (*down)(void *arg); /* the connection is gone; always before the next up */
    void (*frame)(void *arg, const struct frame *f);
    void (*writable)(void *arg); /* after peer_want_writable(): the queue is short again */
    void *arg;
};

/* max_payload: of frames that may come. max_queue: bytes that may wait to be written. */
struct peer *peer_new(struct loop *loop, enum link_channel ch, size_t max_payload, size_t max_queue,
                      const struct peer_user *user);
void peer_free(struct peer *p);

/* Takes fd (a socket, or a virtio-serial port, which outlives its connections) in place of the one
 * it has. */
int peer_attach(struct peer *p, int fd, bool port, struct err *err);
bool peer_attached(const struct peer *p);
bool peer_up(const struct peer *p);
/* Where a lost port is to be announced (channels.c); only for ports. */
void peer_on_lost(struct peer *p, void (*lost)(void *arg), void *arg);

/* Bytes as if they had come from the descriptor: for it and for tests. */
void peer_input(struct peer *p, const void *data, size_t len);

size_t peer_queued(const struct peer *p);
/* Queues one frame; -1 when the peer is down or the queue full (then nothing was queued). */
int peer_send(struct peer *p, uint32_t stream, uint8_t type, uint8_t flags, const void *payload,
              size_t len);
int peer_send_credit(struct peer *p, uint32_t stream, uint64_t offset, uint32_t window);
/* FRAME_IO_DATA whose bytes lie in two pieces. */
int peer_send_io(struct peer *p, uint32_t stream, uint8_t flags, uint64_t offset, const void *a,
                 size_t a_len, const void *b, size_t b_len);
/* Writes what the descriptor takes now; the rest goes when it is writable. */
void peer_flush(struct peer *p);
void peer_want_writable(struct peer *p);

#endif
