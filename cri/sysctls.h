/*
 * sysctls - which sysctls a pod may have.
 *
 * A VM pod's kernel is its own, so more is harmless than kubelet's "safe" set: everything of the
 * network and of System V and POSIX IPC, and what tunes memory, files and processes of that one
 * kernel. Not allowed is what runs programs, loads code, reboots, or takes the agent's ground
 * away. Whether a name exists and a value is good is for the guest to say. Threads: any.
 */
#ifndef ASPIS_CRI_SYSCTLS_H
#define ASPIS_CRI_SYSCTLS_H

#include "base/err.h"
#include "proto/cri/v1/api.pb-c.h"

/* Names with dots or, as sysctl(8) has it, with slashes; errors name the sysctl. */
int sysctls_check(const Runtime__V1__LinuxPodSandboxConfig *pod, struct err *err);

#endif
