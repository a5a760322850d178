/*
 * resource_limits - CRI's resources as values: put together, and as files of cgroup v2.
 *
 * Pure. Messages returned are freed with protobuf_c_message_free_unpacked(m, NULL).
 */
#ifndef ASPIS_CRI_RESOURCE_LIMITS_H
#define ASPIS_CRI_RESOURCE_LIMITS_H

#include <stdbool.h>

#include "base/str.h"
#include "proto/cri/v1/api.pb-c.h"

#define RESOURCE_LIMITS_PERIOD 100000 /* the kernel's default of cpu.max, in microseconds */

/* `by` over `old` (either may be NULL): what is not 0 or empty in it, `unified` key by key. */
Runtime__V1__LinuxContainerResources *
resource_limits_merge(const Runtime__V1__LinuxContainerResources *old,
                      const Runtime__V1__LinuxContainerResources *by);
/* Appends a file and its value for each limit, in the order to write them. Shares become a weight
 * as in crun, which sets a container's first limits. */
void resource_limits_files(const Runtime__V1__LinuxContainerResources *r, struct strv *keys,
                           struct strv *values);
/* Those of its cpusets, whose numbers are the host's. */
void resource_limits_cpusets(const Runtime__V1__LinuxContainerResources *r, struct strv *keys,
                             struct strv *values);
/* Whether a file that reads `have` was set to `want`: bytes are whole pages to the kernel. */
bool resource_limits_as_written(const char *key, const char *want, const char *have);

#endif
