/*
 * volumes - in the guest: FUSE file systems whose requests go to the host's file server on
 * the `fs` channel (proto/README.md).
 *
 * Every request stays here until it is answered, so that a new server gets what its predecessor
 * left unanswered. The agent itself never looks into such a file system and never makes its last
 * unmount: both could wait for an answer that only the agent's own loop can bring. Children do.
 *
 * Single-threaded, on the agent's loop.
 */
#ifndef ASPIS_AGENT_VOLUMES_H
#define ASPIS_AGENT_VOLUMES_H

#include <stdbool.h>
#include <stdint.h>

#include "agent/peer.h"
#include "base/err.h"
#include "base/loop.h"

struct volumes;

struct volumes *volumes_new(struct loop *loop);
void volumes_free(struct volumes *s);
struct peer *volumes_peer(struct volumes *s); /* for channels.c */

/* Mounts a volume at path, which is made. INVALID when the id is in use. */
int volumes_mount(struct volumes *s, const char *owner, uint32_t id, bool file, const char *path,
                  struct err *err);
/* Ends the volumes of an owner: what still waits for them gets an error. Unknown: nothing. */
void volumes_release(struct volumes *s, const char *owner);

/* For tests: a volume whose requests come from and whose replies go to fd (taken), with nothing
 * mounted. */
int volumes_attach(struct volumes *s, const char *owner, uint32_t id, int fd, struct err *err);

#endif
