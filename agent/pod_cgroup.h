/*
 * pod_cgroup - the control group above all containers, /sys/fs/cgroup/pod, and figures and files of
 * it and of theirs (/sys/fs/cgroup/pod/<id>, see container_cgroup.h).
 *
 * No state, no waiting. An id "" means the pod's own group.
 */
#ifndef ASPIS_AGENT_POD_CGROUP_H
#define ASPIS_AGENT_POD_CGROUP_H

#include <stdint.h>

/* Makes it, with all controllers that the kernel has. */
void cgroup_make_pod(void);
/* Bytes; 0 when not known. used: without caches that can be dropped. */
uint64_t cgroup_memory_current(const char *id);
uint64_t cgroup_memory_used(const char *id);

#endif
