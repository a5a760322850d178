/*
 * heartbeat - notices guests that do not answer any more: a stopped QEMU, a hung kernel.
 *
 * A dead machine is reported by its process or its hypervisor; one that merely stands still is not.
 * So each agent is sent a Ping HEARTBEAT_BEATS times within machine.guest_silence_seconds, by one
 * timer for all pods. When none of them, nor anything else, was answered, the sandbox is shown as
 * not ready with the reason; kubelet then replaces the pod. A guest that answers again before that
 * is shown as ready again: its containers never ended. Missed beats are counted rather than time,
 * so that a daemon that was stopped itself blames nobody.
 *
 * The same Pings keep the guests' wall clocks on the host's: they are sent also when silence is
 * nobody's concern, at least once a minute, and at once when somebody sets the host's clock.
 *
 * Runs on the control loop and never blocks it. Nothing of this is on record.
 */
#ifndef ASPIS_CRI_HEARTBEAT_H
#define ASPIS_CRI_HEARTBEAT_H

#include <stdint.h>

#include "base/err.h"
#include "base/loop.h"

#define HEARTBEAT_BEATS 4

struct heartbeat;
struct runtime;

/* silence_ns 0: guests may be silent for ever. */
struct heartbeat *heartbeat_new(struct runtime *rt, struct loop *control, int64_t silence_ns,
                                struct err *err);
/* Before the sandboxes go. NULL is fine. */
void heartbeat_free(struct heartbeat *h);

#endif
