/*
 * mirror - in the guest: copies of small volumes in memory, one tmpfs each, that the daemon keeps
 * up to date (SyncVolume, DropVolume). Containers bind them read-only.
 *
 * Single-threaded, on the agent's loop: a tmpfs never makes it wait. At its end they stay, as their
 * guest does.
 */
#ifndef ASPIS_AGENT_MIRROR_H
#define ASPIS_AGENT_MIRROR_H

#include "agent/rpc.h"

struct mirrors;

/* state_dir: as containers_new() got it. */
struct mirrors *mirrors_new(const char *state_dir);
void mirrors_free(struct mirrors *m); /* NULL is fine */
/* Rows for main's method table, terminated by a NULL name; owned by m. */
const struct rpc_method *mirrors_methods(struct mirrors *m);

#endif
