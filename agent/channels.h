/*
 * channels - finds the link's channels in the guest and keeps them open: virtio-serial ports by
 * name, else AF_VSOCK listeners, else (host backend and tests) given descriptors. Above this file
 * nobody knows which transport it is.
 *
 * A channel survives disconnects: the bytes of a new connection begin with a preamble
 * (proto/README.md). Owned by the agent's main for the life of the process.
 */
#ifndef ASPIS_AGENT_CHANNELS_H
#define ASPIS_AGENT_CHANNELS_H

#include "agent/rpc.h"
#include "agent/stdio.h"
#include "agent/volumes.h"
#include "base/err.h"
#include "base/loop.h"

struct channels;

enum channel_kind {
    CHANNELS_AUTO, /* virtio-serial ports if they exist, and vsock */
    CHANNELS_VIRTIO_SERIAL,
    CHANNELS_VSOCK,
    CHANNELS_UNIX,  /* listens on <dir>/rpc.sock, io.sock and fs.sock: tests */
    CHANNELS_GIVEN, /* listening sockets at HOST_FD_CHANNEL and following: on the host */
};

/* Serves `rpc`, `io` and `volumes` from now on. dir: for CHANNELS_UNIX. Waits for nothing: ports
 * that are not there yet are taken when their uevent comes (or with channels_rescan()). */
struct channels *channels_new(struct loop *loop, enum channel_kind kind, const char *dir,
                              struct rpc_server *rpc, struct stdio *io, struct volumes *volumes,
                              struct err *err);
/* A device appeared or changed (called by the uevent listener; SUBSYSTEM virtio-ports and virtio
 * matter, others do no harm). */
void channels_rescan(struct channels *c);
void channels_free(struct channels *c);

#endif
