/*
 * late_signal - a signal for a container's init that has not installed its handlers yet.
 *
 * The kernel drops a signal that the first process of a process namespace neither catches nor
 * blocks. A container that is asked to end in the moment after its start, before its program has
 * come as far as signal(2), would therefore never hear of it, and be killed after the whole
 * grace period; a slow guest makes that moment long. So a signal that was dropped is sent again, a
 * few times within LATE_SIGNAL_NS: never one that was caught, blocked or is ignored on purpose.
 *
 * Memory: a late_signal ends by itself or with late_signal_free(). Threads: the agent's loop.
 */
#ifndef ASPIS_AGENT_LATE_SIGNAL_H
#define ASPIS_AGENT_LATE_SIGNAL_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/err.h"
#include "base/loop.h"

#define LATE_SIGNAL_NS 6000000000LL

struct late_signal;

/* Would the kernel drop this signal for this process now? `status` is the text of its
 * /proc/<pid>/status. */
bool late_signal_dropped(const char *status, int sig);

/* Sends sig to pid, a child of the caller's that it has not reaped, and goes on as described. *slot
 * (NULL when nothing is under way) is replaced: a later signal takes the place of an earlier one.
 */
int late_signal_send(struct loop *loop, struct late_signal **slot, pid_t pid, int sig,
                     struct err *err);
/* Before the process is reaped. */
void late_signal_free(struct late_signal **slot);

#endif
