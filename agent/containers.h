/*
 * containers - containers and their processes: created, started, signalled and removed through
 * libcrun, one forked child per operation, so that nothing libcrun does (exit, waitpid(-1),
 * setrlimit, chdir) can touch PID 1.
 *
 * Single-threaded, on the agent's loop; handlers answer when their child has ended. The table keeps
 * every process until RemoveContainer or RemoveProcess, and every exit event until it is
 * acknowledged.
 */
#ifndef ASPIS_AGENT_CONTAINERS_H
#define ASPIS_AGENT_CONTAINERS_H

#include <sys/types.h>

#include "agent/pod.h"
#include "agent/rpc.h"
#include "agent/stdio.h"
#include "agent/volumes.h"
#include "base/err.h"
#include "base/loop.h"

struct containers;

/* state_dir: on tmpfs ("/run/aspis/containers"). */
struct containers *containers_new(struct loop *loop, struct pod *pod, struct stdio *io,
                                  const char *state_dir, struct err *err);
/* Where volumes come from; borrowed. Without it a container with volumes is refused. */
void containers_use_volumes(struct containers *t, struct volumes *volumes);
/* On the host: the daemon has attached a container's volumes before it asks for the container. */
void containers_use_host(struct containers *t);
/* Where what happens is told; borrowed. */
struct events *containers_events(struct containers *c);
void containers_free(struct containers *c);

/* Every child that main's reaper collected, ours or a stranger's. May come before the pid is known
 * to belong to anything: recent unknown (pid, status) pairs are kept. */
void containers_reaped(struct containers *c, pid_t pid, int status);

/* Rows for main's method table: CreateContainer, StartContainer, SignalContainer, RemoveContainer,
 * Exec, SignalProcess, RemoveProcess, ResizeTty, SetLimits, ListState, Events, AckEvents.
 * Terminated by a NULL name; arg is `c`. Owned by c. */
const struct rpc_method *containers_methods(struct containers *c);

#endif
