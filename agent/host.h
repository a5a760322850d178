/*
 * host - makes this process the supervisor of a pod without a VM (proto/host_agent.h): its cgroups,
 * namespaces and a root of its own, in which everything is where it is in a guest.
 *
 * The mount namespace holds the kernel's file systems, the pod's two directories and what the
 * daemon attaches for the pod; no other mount of the host, so that none is kept busy. It gets
 * mounts from the host and gives it none, but through volumes that are shared on purpose.
 *
 * For the beginning of main(), with one thread.
 */
#ifndef ASPIS_AGENT_HOST_H
#define ASPIS_AGENT_HOST_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

#define HOST_MAX_JOIN 64

struct host_options {
    const char *run_dir; /* "": not on the host */
    const char *state_dir;
    const char *cgroup;
    const char *join[HOST_MAX_JOIN];
    size_t n_join;
    const char *netns; /* NULL: the host's */
    bool host_net, host_ipc, host_uts;
    int userns; /* filled in: the pod's user namespace, to which its network belongs; -1: none */
};

/* From here on nothing of the host's files can be reached by name but /proc, /sys and /dev. */
int host_enter(struct host_options *o, struct err *err);

#endif
