#include "base/limits.h"
#include "sandbox/machine_internal.h"

#define MAX_HOTPLUG_VCPUS 32 /* each possible vCPU costs the guest memory */

static uint64_t round_up_mib(uint64_t n)
{
    return n > UINT64_MAX - MiB(1) ? UINT64_MAX / MiB(1) * MiB(1)
                                   : (n + MiB(1) - 1) / MiB(1) * MiB(1);
}

struct machine_size machine_spec_size(const struct machine_factory *f,
                                      const struct machine_spec *spec)
{
    uint64_t memory = spec->memory_limit_bytes > spec->memory_needed_bytes
                          ? spec->memory_limit_bytes
                          : spec->memory_needed_bytes;
    struct machine_size s = machine_size_for(&f->config, f->host_memory_bytes, f->host_vcpus,
                                             memory, spec->cpu_quota, spec->cpu_period);
    s.memory_bytes += spec->huge_bytes;
    if (s.vcpus < spec->min_vcpus)
        s.vcpus = spec->min_vcpus < s.max_vcpus ? spec->min_vcpus : s.max_vcpus;
    return s;
}

struct machine_size machine_base_size(const struct machine_factory *f)
{
    return machine_size_for(&f->config, f->host_memory_bytes, f->host_vcpus, 0, 0, 0);
}

struct machine_size machine_size_for(const struct machine_config *config, uint64_t host_memory,
                                     uint32_t host_vcpus, uint64_t memory_limit, int64_t cpu_quota,
                                     uint64_t cpu_period)
{
    struct machine_size s = {0};
    uint64_t most = host_memory / MiB(1) * MiB(1);
    if (config->max_memory_bytes != 0 && config->max_memory_bytes < most)
        most = config->max_memory_bytes / MiB(1) * MiB(1);
    uint64_t want = config->base_memory_bytes;
    if (memory_limit != 0) {
        bool huge = memory_limit > UINT64_MAX - config->overhead_memory_bytes;
        uint64_t sum = huge ? UINT64_MAX : memory_limit + config->overhead_memory_bytes;
        want = sum > want ? sum : want;
    }
    s.memory_bytes = round_up_mib(want);
    if (s.memory_bytes > most)
        s.memory_bytes = most;
    /* address space only: room for memory plugged later */
    s.max_memory_bytes = s.memory_bytes + most;

    uint32_t top =
        config->max_vcpus != 0 && config->max_vcpus < host_vcpus ? config->max_vcpus : host_vcpus;
    if (top == 0)
        top = 1;
    uint64_t cpus = 1;
    if (cpu_quota > 0 && cpu_period > 0)
        cpus = ((uint64_t)cpu_quota - 1) / cpu_period + 1;
    s.vcpus = cpus < top ? (uint32_t)cpus : top;
    s.max_vcpus = top < MAX_HOTPLUG_VCPUS ? top : MAX_HOTPLUG_VCPUS;
    if (s.max_vcpus < s.vcpus)
        s.max_vcpus = s.vcpus;
    return s;
}
