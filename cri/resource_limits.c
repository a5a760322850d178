#include "cri/resource_limits.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "cri/cpu_map.h"
#include "cri/huge_pages.h"

typedef Runtime__V1__LinuxContainerResources Resources;

#define PAGE 4096

static ProtobufCMessage *copy_message(const ProtobufCMessage *m)
{
    size_t len = protobuf_c_message_get_packed_size(m);
    auto_free uint8_t *data = xcalloc(1, len + 1);
    (void)protobuf_c_message_pack(m, data);
    return protobuf_c_message_unpack(m->descriptor, NULL, len, data);
}

static Resources *copy(const Resources *r)
{
    return r != NULL ? (Resources *)copy_message(&r->base) : NULL;
}

/* --- merging --- */

static void take_string(char **to, const char *from)
{
    if (str_empty(from))
        return;
    if (*to != protobuf_c_empty_string)
        free(*to);
    *to = xstrdup(from);
}

static void merge_unified(Resources *to, const Resources *by)
{
    for (size_t i = 0; i < by->n_unified; i++) {
        const Runtime__V1__LinuxContainerResources__UnifiedEntry *e = by->unified[i];
        size_t k = 0;
        while (k < to->n_unified && strcmp(to->unified[k]->key, e->key) != 0)
            k++;
        if (k < to->n_unified) {
            take_string(&to->unified[k]->value, e->value);
            continue;
        }
        to->unified = xrealloc(to->unified, to->n_unified + 1, sizeof(void *));
        to->unified[to->n_unified++] =
            (Runtime__V1__LinuxContainerResources__UnifiedEntry *)copy_message(&e->base);
    }
}

Resources *resource_limits_merge(const Resources *old, const Resources *by)
{
    Resources *r = copy(old);
    if (by == NULL)
        return r;
    if (r == NULL)
        return copy(by);
    if (by->cpu_period != 0)
        r->cpu_period = by->cpu_period;
    if (by->cpu_quota != 0)
        r->cpu_quota = by->cpu_quota;
    if (by->cpu_shares != 0)
        r->cpu_shares = by->cpu_shares;
    if (by->memory_limit_in_bytes != 0)
        r->memory_limit_in_bytes = by->memory_limit_in_bytes;
    if (by->memory_swap_limit_in_bytes != 0)
        r->memory_swap_limit_in_bytes = by->memory_swap_limit_in_bytes;
    if (by->oom_score_adj != 0)
        r->oom_score_adj = by->oom_score_adj;
    take_string(&r->cpuset_cpus, by->cpuset_cpus);
    take_string(&r->cpuset_mems, by->cpuset_mems);
    merge_unified(r, by);
    huge_pages_merge(r, by);
    return r;
}

/* --- limits of the guest --- */

static void put(struct strv *keys, struct strv *values, const char *key, char *value)
{
    strv_add(keys, key);
    strv_add(values, value);
    free(value);
}

static char *bytes_or_max(int64_t n)
{
    return n < 0 ? xstrdup("max") : fs_format("%" PRId64, n);
}

void resource_limits_files(const Resources *r, struct strv *keys, struct strv *values)
{
    int64_t period = r->cpu_period > 0 ? r->cpu_period : RESOURCE_LIMITS_PERIOD;
    /* shares 2..262144 on weights 1..10000, as crun does when the container is made */
    if (r->cpu_shares > 0) {
        int64_t shares = r->cpu_shares < 2 ? 2 : r->cpu_shares > 262144 ? 262144 : r->cpu_shares;
        put(keys, values, "cpu.weight", fs_format("%" PRId64, 1 + (shares - 2) * 9999 / 262142));
    }
    if (r->cpu_quota > 0)
        put(keys, values, "cpu.max", fs_format("%" PRId64 " %" PRId64, r->cpu_quota, period));
    else if (r->cpu_quota < 0 || r->cpu_period > 0)
        put(keys, values, "cpu.max", fs_format("max %" PRId64, period));
    if (r->memory_limit_in_bytes != 0)
        put(keys, values, "memory.max", bytes_or_max(r->memory_limit_in_bytes));
    if (r->memory_swap_limit_in_bytes < 0)
        put(keys, values, "memory.swap.max", xstrdup("max"));
    else if (r->memory_swap_limit_in_bytes > 0 && r->memory_limit_in_bytes > 0)
        put(keys, values, "memory.swap.max",
            bytes_or_max(r->memory_swap_limit_in_bytes - r->memory_limit_in_bytes));
    for (size_t i = 0; i < r->n_unified; i++)
        put(keys, values, r->unified[i]->key, xstrdup(r->unified[i]->value));
}

void resource_limits_cpusets(const Resources *r, struct strv *keys, struct strv *values)
{
    if (!str_empty(r->cpuset_cpus))
        put(keys, values, "cpuset.cpus", xstrdup(r->cpuset_cpus));
    if (!str_empty(r->cpuset_mems))
        put(keys, values, "cpuset.mems", xstrdup(r->cpuset_mems));
}

/* Bytes are whole pages to the kernel, and lists have one form; all else reads as it was written.
 */
bool resource_limits_as_written(const char *key, const char *want, const char *have)
{
    uint64_t w;
    uint64_t h;
    if (strcmp(want, have) == 0)
        return true;
    if (str_starts(key, "cpuset."))
        return cpu_map_same(want, have);
    return str_starts(key, "memory.") && str_to_u64(want, &w) == 0 && str_to_u64(have, &h) == 0 &&
           h <= w && w - h < PAGE;
}
