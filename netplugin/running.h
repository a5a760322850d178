/*
 * running - whether plugins that an earlier daemon started still run.
 *
 * A killed daemon's plugins go on: an ADD could allocate an address after the next daemon's DEL
 * gave it back, and nobody would ever again. So every plugin, with what it starts, holds the
 * writing end of a FIFO in the cache directory; before the next daemon takes anything back it waits
 * until nobody does. A plugin that leaves a process behind for good (it should have closed what it
 * does not know) costs each start one plugin timeout.
 *
 * Threads: any.
 */
#ifndef ASPIS_NETPLUGIN_RUNNING_H
#define ASPIS_NETPLUGIN_RUNNING_H

#include <stdint.h>

#include "base/cancel.h"
#include "base/err.h"

struct running;

/* Never fails: without the FIFO (a full disk) nothing is waited for. */
struct running *running_new(const char *cache_dir);
void running_free(struct running *r); /* NULL is fine */

/* Returns at once but for the first time after a daemon's death; -1 when the token fired. */
int running_settle(struct running *r, int64_t timeout_ns, struct cancel *cancel, struct err *err);

/* To be handed to plugins; -1: none (before it is settled, too). */
int running_fd(struct running *r);

#endif
