/*
 * cgroup_usage - what a pod's control group on the host has used: the VM with all its helpers.
 *
 * Version 1 and 2; a controller that the group does not have leaves its numbers 0. Threads: any; no
 * state.
 */
#ifndef ASPIS_SANDBOX_CGROUP_USAGE_H
#define ASPIS_SANDBOX_CGROUP_USAGE_H

#include "base/str.h"
#include "sandbox/machine.h"

/* dirs: cgroup_dirs() of the group. */
void cgroup_usage(const struct strv *dirs, struct machine_usage *u);

#endif
