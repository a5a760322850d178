/*
 * oom_score - a container's oom_score_adj while it runs.
 *
 * It is each process's own: those that still have what the container was made with get the new one,
 * those that gave themselves another keep that; and commands executed from now on begin with it.
 * (runc and those above it leave the processes alone for fear of the latter, though kubelet asks
 * for the change when a memory request is resized.) No state; does not wait.
 */
#ifndef ASPIS_AGENT_OOM_SCORE_H
#define ASPIS_AGENT_OOM_SCORE_H

#include <stdint.h>

#include "base/err.h"

/* id: the container's; config: its config.json, which is rewritten. */
int oom_score_set(const char *id, const char *config, int32_t adj, struct err *err);

#endif
