/*
 * spec_host - what this daemon may give away to a container on the host.
 *
 * Threads: any; nothing is kept.
 */
#ifndef ASPIS_CRI_SPEC_HOST_H
#define ASPIS_CRI_SPEC_HOST_H

#include <jansson.h>

/* A daemon in a container has not all of root's powers, and cannot give what it has not: takes out
 * of process.capabilities what the kernel would refuse, and lowers rlimits and raises oomScoreAdj
 * to what it may set. */
void spec_host_clamp(json_t *process);

#endif
