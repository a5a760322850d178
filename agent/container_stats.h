/*
 * container_stats - the Stats call: what the containers and the guest use.
 *
 * Answered from the kernel's files at once, but for the size of what containers have written
 * (layer_usage.h): that is counted when a call finds it older than 30 s, and a call only waits for
 * it, half a second at most, when there is no older number. Single-threaded, on the agent's loop.
 */
#ifndef ASPIS_AGENT_CONTAINER_STATS_H
#define ASPIS_AGENT_CONTAINER_STATS_H

#include "agent/containers.h"
#include "agent/pod.h"
#include "agent/rpc.h"
#include "base/err.h"
#include "base/loop.h"

struct container_stats;

struct container_stats *container_stats_new(struct loop *loop, struct containers *t,
                                            struct pod *pod, struct err *err);
/* Before the containers; calls went with their server. */
void container_stats_free(struct container_stats *s);
/* Rows for main's method table: Stats. Terminated by a NULL name. Owned by s. */
const struct rpc_method *container_stats_methods(struct container_stats *s);

#endif
