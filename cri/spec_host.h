/*
 * spec_host - devices of the host in a container's OCI spec, and what this daemon may give away.
 *
 * Threads: any; nothing is kept. JSON values are the caller's unless said otherwise.
 */
#ifndef ASPIS_CRI_SPEC_HOST_H
#define ASPIS_CRI_SPEC_HOST_H

#include <jansson.h>

#include "base/err.h"
#include "proto/cri/v1/api.pb-c.h"

/* Appends every device node below /dev to linux.devices, as a privileged container has them. */
int spec_host_all_devices(json_t *devices, struct err *err);
/* Appends what CRI's Device names: one node, or all below a directory, to linux.devices, and their
 * rules to linux.resources.devices. */
int spec_host_device(const Runtime__V1__Device *d, json_t *devices, json_t *rules, struct err *err);

/* A daemon in a container has not all of root's powers, and cannot give what it has not: takes out
 * of process.capabilities what the kernel would refuse, and lowers rlimits and raises oomScoreAdj
 * to what it may set. */
void spec_host_clamp(json_t *process);

#endif
