/*
 * host_memory - how much of the host's memory VMs without a limit may still grow into.
 *
 * Such a VM is given memory on its word that it needs it, and the guest takes it later: several
 * that grow at once must not each be given the same free memory. So what was granted in the last
 * seconds counts as used, and some of the host is kept back for what is no pod (config
 * host_reserve_mib).
 *
 * Threads: any.
 */
#ifndef ASPIS_SANDBOX_HOST_MEMORY_H
#define ASPIS_SANDBOX_HOST_MEMORY_H

#include <pthread.h>
#include <stdint.h>

struct host_memory {
    pthread_mutex_t lock;
    uint64_t granted;   /* bytes, since: */
    int64_t granted_at; /* mono_ns() */
};

void host_memory_init(struct host_memory *h);
void host_memory_destroy(struct host_memory *h);

/* How many of `want` bytes may be given out, in whole steps of `step` bytes; counted as given. What
 * cannot be told (no /proc/meminfo) does not stand in the way. */
uint64_t host_memory_grant(struct host_memory *h, uint64_t want, uint64_t step, uint64_t reserve);
/* The same for a text of /proc/meminfo and a time. */
uint64_t host_memory_grant_of(struct host_memory *h, const char *meminfo, int64_t now,
                              uint64_t want, uint64_t step, uint64_t reserve);

#endif
