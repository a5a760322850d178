/*
 * share_wire - the file server's end of the `fs` channel: preamble, then FUSE messages in pieces
 * (proto/README.md). Blocking; part of the program aspis-share only.
 *
 * Memory: a message that was read is valid until the next read. Threads: one.
 */
#ifndef ASPIS_SANDBOX_SHARE_WIRE_H
#define ASPIS_SANDBOX_SHARE_WIRE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/buf.h"
#include "base/err.h"
#include "proto/frame.h"

struct share_wire {
    int fd;
    struct frame_parser in;
    struct buf message; /* the one being put together, of `volume` */
    uint32_t volume;
    bool unanswered; /* nobody reads what the message is answered with */
    struct buf out, flat;
};

/* fd: a connected stream socket; the caller's. */
void share_wire_init(struct share_wire *w, int fd);
void share_wire_clear(struct share_wire *w);
/* Until the agent has answered. -1: the other side is gone, or is no agent. */
int share_wire_sync(struct share_wire *w, struct err *err);

enum share_event {
    SHARE_MESSAGE, /* w->message is whole */
    SHARE_CLOSED,  /* the volume's mount is gone */
    SHARE_END,     /* the other side hung up */
    SHARE_BROKEN,  /* *err says why */
};
/* The next thing that came; *volume is whose. */
enum share_event share_wire_next(struct share_wire *w, uint32_t *volume, struct err *err);
int share_wire_send(struct share_wire *w, uint32_t volume, const struct iovec *iov, int n);

#endif
