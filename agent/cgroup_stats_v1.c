/* A group's numbers on a host with cgroup version 1: one hierarchy for each controller. Files and
 * keys as in Linux Documentation/admin-guide/cgroup-v1. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/cgroup_file.h"
#include "agent/cgroup_stats.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

typedef Aspis__Agent__V1__GroupStats group;

/* "No limit" is the largest multiple of a page. */
#define UNLIMITED (UINT64_C(1) << 62)

static uint64_t number(const char *dir, const char *name)
{
    uint64_t n = cgroup_file_number(dir, name);
    return n < UNLIMITED ? n : 0;
}

struct key {
    const char *name;
    uint64_t *to;
};

static void keyed(const char *dir, const char *name, const struct key *keys, size_t n_keys)
{
    auto_free char *text = cgroup_file_text(dir, name);
    char *save = NULL;
    for (char *line = text != NULL ? strtok_r(text, "\n", &save) : NULL; line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        char *value = strchr(line, ' ');
        if (value == NULL)
            continue;
        *value++ = '\0';
        for (size_t i = 0; i < n_keys; i++) {
            if (strcmp(line, keys[i].name) == 0)
                (void)str_to_u64(value, keys[i].to);
        }
    }
}

static void read_cpu(group *g, const char *cpuacct, const char *cpu)
{
    uint64_t user = 0;
    uint64_t sys = 0;
    uint64_t throttled_ns = 0;
    const struct key times[] = {{"user", &user}, {"system", &sys}};
    const struct key stat[] = {{"nr_periods", &g->cpu_periods},
                               {"nr_throttled", &g->cpu_throttled_periods},
                               {"throttled_time", &throttled_ns}};
    long ticks = sysconf(_SC_CLK_TCK);
    keyed(cpuacct, "cpuacct.stat", times, ARRAY_LEN(times));
    keyed(cpu, "cpu.stat", stat, ARRAY_LEN(stat));
    g->cpu_usage_us = number(cpuacct, "cpuacct.usage") / 1000;
    if (ticks > 0) {
        g->cpu_user_us = user * 1000000 / (uint64_t)ticks;
        g->cpu_system_us = sys * 1000000 / (uint64_t)ticks;
    }
    g->cpu_throttled_us = throttled_ns / 1000;
}

static void read_memory(group *g, const char *dir)
{
    const struct key stat[] = {{"total_rss", &g->memory_anon},
                               {"total_cache", &g->memory_file},
                               {"total_inactive_file", &g->memory_inactive_file},
                               {"total_mapped_file", &g->memory_mapped},
                               {"total_shmem", &g->memory_shmem},
                               {"total_pgfault", &g->page_faults},
                               {"total_pgmajfault", &g->major_faults}};
    const struct key oom[] = {{"oom_kill", &g->oom_events}};
    keyed(dir, "memory.stat", stat, ARRAY_LEN(stat));
    keyed(dir, "memory.oom_control", oom, ARRAY_LEN(oom));
    g->memory_usage = number(dir, "memory.usage_in_bytes");
    g->memory_peak = number(dir, "memory.max_usage_in_bytes");
    g->memory_max = number(dir, "memory.limit_in_bytes");
    g->memory_kernel = number(dir, "memory.kmem.usage_in_bytes");
    g->memory_failures = number(dir, "memory.failcnt");
    uint64_t both = number(dir, "memory.memsw.usage_in_bytes");
    uint64_t both_max = number(dir, "memory.memsw.limit_in_bytes");
    g->swap_usage = both > g->memory_usage ? both - g->memory_usage : 0;
    g->swap_max = both_max > g->memory_max ? both_max - g->memory_max : 0;
}

/* "8:0 Read 4096" */
static void read_io(struct cgroup_stats *s, const char *dir, const char *file, bool bytes)
{
    auto_free char *text = cgroup_file_text(dir, file);
    char *save = NULL;
    for (char *line = text != NULL ? strtok_r(text, "\n", &save) : NULL; line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        unsigned major;
        unsigned minor;
        char what[16];
        unsigned long long n;
        if (sscanf(line, "%u:%u %15s %llu", &major, &minor, what, &n) != 4)
            continue;
        size_t i = 0;
        while (i < s->msg.n_io && (s->devices[i].major != major || s->devices[i].minor != minor))
            i++;
        if (i == CGROUP_STATS_DEVICES)
            continue;
        Aspis__Agent__V1__DeviceIo *d = &s->devices[i];
        if (i == s->msg.n_io) {
            aspis__agent__v1__device_io__init(d);
            d->major = major;
            d->minor = minor;
            s->device_list[s->msg.n_io++] = d;
        }
        if (strcmp(what, "Read") == 0)
            *(bytes ? &d->read_bytes : &d->reads) = n;
        else if (strcmp(what, "Write") == 0)
            *(bytes ? &d->write_bytes : &d->writes) = n;
    }
}

void cgroup_stats_read_v1(struct cgroup_stats *s, const char *id,
                          char *(*dir)(const char *hierarchy, const char *id))
{
    auto_free char *cpuacct = dir("cpuacct", id);
    auto_free char *cpu = dir("cpu", id);
    auto_free char *memory = dir("memory", id);
    auto_free char *pids = dir("pids", id);
    auto_free char *blkio = dir("blkio", id);
    memset(s, 0, sizeof(*s));
    aspis__agent__v1__group_stats__init(&s->msg);
    s->msg.io = s->device_list;
    read_cpu(&s->msg, cpuacct, cpu);
    read_memory(&s->msg, memory);
    s->msg.threads = number(pids, "pids.current");
    s->msg.threads_max = number(pids, "pids.max");
    s->msg.processes = cgroup_stats_count(memory);
    read_io(s, blkio, "blkio.throttle.io_service_bytes_recursive", true);
    read_io(s, blkio, "blkio.throttle.io_serviced_recursive", false);
}
