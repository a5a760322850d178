/*
 * container_settle - what became of a StartContainer whose answer nobody heard.
 *
 * The call is cut by its deadline, its client or the end of the daemon, and the guest may have
 * carried it out all the same, or do so later when it gets to read it. Only the agent knows: its
 * ListState comes behind the StartContainer on the same channel, so what it says then is true and
 * stays so. Until it has answered, the container's state is UNKNOWN to clients: kubelet would start
 * another one in place of one that is merely CREATED, beside the process that runs.
 *
 * Threads: any that may block. A record written by an earlier daemon says CREATED, and recovery
 * asks as well (runtime.c).
 */
#ifndef ASPIS_CRI_CONTAINER_SETTLE_H
#define ASPIS_CRI_CONTAINER_SETTLE_H

#include "cri/model.h"

/* Takes over what ListState says of a container that was CREATED or RUNNING when it was asked. */
void container_take_state(struct container *c, const Aspis__Agent__V1__ProcessState *p);
/* After a call that was cut, under the container's op lock: asks, for a few seconds at most. 0: the
 * container is what it shows; -1 with *err: it stays UNKNOWN, and a later call tries again. */
int container_settle(struct container *c, struct err *err);

#endif
