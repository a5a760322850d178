/*
 * limits_v1 - limits as version 2 names and writes them, on a host with cgroup version 1.
 *
 * No state; waits for nothing but the kernel.
 */
#ifndef ASPIS_AGENT_LIMITS_V1_H
#define ASPIS_AGENT_LIMITS_V1_H

#include "base/err.h"

/* "memory.max", "memory.swap.max", "cpu.max", "cpu.weight", "pids.max"; INVALID for others. id: a
 * container's. Errors keep the kernel's errno. */
int limits_v1_set(const char *id, const char *key, const char *value, struct err *err);
/* What it is now, in version 2's words; "" when not known. The caller's to free. */
char *limits_v1_read(const char *id, const char *key);

#endif
