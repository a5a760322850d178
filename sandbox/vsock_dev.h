/*
 * vsock_dev - a virtio socket device: the guest's AF_VSOCK listeners, reached from the host through
 * one unix socket.
 *
 * A client of the unix socket says "CONNECT <port>\n"; when the guest accepts, "OK <number>\n"
 * comes back and the rest is the connection ("hybrid vsock", as Firecracker and Cloud Hypervisor
 * have it). Guests cannot reach the host: their requests are answered with a reset.
 *
 * Packets and credit: Virtio 1.1, 5.10. The guest is hostile: what it may make us keep is bounded
 * by LIMIT_VSOCK_*; a connection that breaks the rules is reset, a ring that does is abandoned.
 *
 * Memory: owns its connections; the vhost_user and listener descriptors are the caller's.
 * Threads: the loop's.
 */
#ifndef ASPIS_SANDBOX_VSOCK_DEV_H
#define ASPIS_SANDBOX_VSOCK_DEV_H

#include <stdint.h>

#include "base/loop.h"
#include "sandbox/vqueue.h"

enum { VSOCK_RING_RX = 0, VSOCK_RING_TX = 1 }; /* as the guest sees them */

struct vsock_dev_ring {
    struct vqueue *(*ring)(void *arg, unsigned which);
    const struct vmem *(*memory)(void *arg);
    void *arg;
};

struct vsock_dev;
struct vsock_dev *vsock_dev_new(struct loop *loop, uint64_t cid, const struct vsock_dev_ring *rings,
                                struct err *err);
void vsock_dev_free(struct vsock_dev *d);
/* A client of the unix socket; takes fd, a non-blocking stream socket. */
int vsock_dev_client(struct vsock_dev *d, int fd, struct err *err);
/* The guest put something into a ring. */
void vsock_dev_kicked(struct vsock_dev *d, unsigned ring);
/* The guest's driver went: its connections are gone. */
void vsock_dev_reset(struct vsock_dev *d);

#endif
