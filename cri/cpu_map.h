/*
 * cpu_map - cpusets of containers, which name CPUs of the host, as vCPUs of the pod's VM.
 *
 * The rule. The sets cut the host's CPUs into parts, each of which belongs to the same containers.
 * A vCPU is pinned to one part, so it never leaves a set that has that part; a container gets the
 * vCPUs whose parts lie in its set. Each part is owned by the smallest set that has it: kubelet's
 * static CPU manager makes exclusive sets, which own what they name, and a shared pool, which owns
 * the rest. A set's owned parts get as many vCPUs as its containers want together, at least one and
 * at most one for each CPU; what the VM has beyond that goes where most CPUs have none. vCPUs of
 * the largest sets come first, since the guest's own work prefers vCPU 0, then those of the first
 * containers, so that a new container leaves the others' alone where it can. Where all containers
 * have the same set nothing is pinned apart: the VM as a whole is.
 *
 * Pure. Threads: any.
 */
#ifndef ASPIS_CRI_CPU_MAP_H
#define ASPIS_CRI_CPU_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct cpu_want {
    const char *cpus; /* of the host, "0-3,8"; "": any */
    uint64_t milli;   /* thousandths of a CPU that it wants; 0: not known */
};

struct cpu_map {
    size_t n_vcpus;
    char **pins; /* for each vCPU the host's CPUs; NULL: none is pinned */
    size_t n;
    char **lists; /* for each container the guest's CPUs; "": all */
};

/* How many vCPUs the containers' sets ask for; 0: any number will do. all: what "" means. INVALID:
 * a list names no CPUs. */
int cpu_map_need(const struct cpu_want *want, size_t n, const char *all, uint32_t *vcpus,
                 struct err *err);
/* For a VM with so many. PRECONDITION: too few to keep the sets, with the number needed. */
int cpu_map_make(const struct cpu_want *want, size_t n, const char *all, uint32_t vcpus,
                 struct cpu_map *out, struct err *err);
void cpu_map_clear(struct cpu_map *m);
#define auto_cpu_map __attribute__((cleanup(cpu_map_clear)))

/* Whether two lists name the same CPUs. */
bool cpu_map_same(const char *a, const char *b);

#endif
