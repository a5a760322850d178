/*
 * host_ns - puts image trees and volumes into the mount namespace of a pod's agent on the host, and
 * takes them out again.
 *
 * The daemon copies the mount, with what is mounted below it, sets read-only and propagation as
 * asked for, enters the agent's namespace on a thread of its own and attaches the copy there. So
 * the agent's namespace holds nothing of the host's mounts but what its pod has, and a copy that
 * stays shared carries a container's mounts to the host (BIDIRECTIONAL).
 *
 * Threads: any. Needs root.
 */
#ifndef ASPIS_SANDBOX_HOST_NS_H
#define ASPIS_SANDBOX_HOST_NS_H

#include "base/err.h"
#include "sandbox/machine.h"

/* agent: its pid; start_time guards against another's. Already there: success. */
int host_ns_attach_image(pid_t agent, uint64_t start_time, const char *serial, const char *dir,
                         struct err *err);
/* All or none; fills in what machine_add_volumes() fills in. Ids count from 1 for each owner. */
int host_ns_attach_volumes(pid_t agent, uint64_t start_time, const char *owner,
                           struct machine_volume *v, size_t n, struct err *err);
/* Not attached, or the agent is gone: success. */
void host_ns_detach_volumes(pid_t agent, uint64_t start_time, const char *owner);

#endif
