#include "agent/limits_v1.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/container_cgroup.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

/* "No limit" reads as the largest multiple of a page. */
#define UNLIMITED (UINT64_C(1) << 62)

static int write_file(const char *hierarchy, const char *id, const char *name, const char *value,
                      struct err *err)
{
    auto_free char *dir = cgroup_v1_dir(hierarchy, id);
    auto_free char *path = fs_format("%s/%s", dir, name);
    return fs_write_str(path, value, err);
}

static char *read_file(const char *hierarchy, const char *id, const char *name)
{
    auto_free char *dir = cgroup_v1_dir(hierarchy, id);
    auto_free char *path = fs_format("%s/%s", dir, name);
    char *text = fs_read(path, KiB(4), NULL, NULL);
    if (text != NULL)
        text[strcspn(text, "\n")] = '\0';
    return text != NULL ? text : xstrdup("");
}

static uint64_t read_bytes(const char *id, const char *name)
{
    auto_free char *text = read_file("memory", id, name);
    uint64_t n = 0;
    return str_to_u64(text, &n) == 0 ? n : UNLIMITED;
}

static char *bytes_or_max(uint64_t n)
{
    return n >= UNLIMITED ? xstrdup("max") : fs_format("%" PRIu64, n);
}

/* Memory may not be more than memory and swap together, which a swap limit that follows sets. */
static int set_memory(const char *id, const char *value, struct err *err)
{
    const char *v1 = strcmp(value, "max") == 0 ? "-1" : value;
    auto_err struct err e = ERR_INIT;
    if (write_file("memory", id, "memory.limit_in_bytes", v1, &e) == 0)
        return 0;
    if (e.sys_errno != EINVAL ||
        write_file("memory", id, "memory.memsw.limit_in_bytes", "-1", NULL) < 0)
        return err_move(err, &e);
    return write_file("memory", id, "memory.limit_in_bytes", v1, err);
}

static int set_swap(const char *id, const char *value, struct err *err)
{
    uint64_t memory = read_bytes(id, "memory.limit_in_bytes");
    uint64_t swap = 0;
    auto_free char *both = NULL;
    if (strcmp(value, "max") == 0 || memory >= UNLIMITED)
        both = xstrdup("-1");
    else if (str_to_u64(value, &swap) < 0 || swap > UNLIMITED)
        return err_set(err, ERR_INVALID, "memory.swap.max: \"%.40s\" is no number", value);
    else
        both = fs_format("%" PRIu64, memory + swap);
    return write_file("memory", id, "memory.memsw.limit_in_bytes", both, err);
}

static int set_cpu_max(const char *id, const char *value, struct err *err)
{
    char quota[24];
    char period[24];
    if (sscanf(value, "%23s %23s", quota, period) != 2)
        return err_set(err, ERR_INVALID, "cpu.max: \"%.40s\" is no quota and period", value);
    if (write_file("cpu", id, "cpu.cfs_period_us", period, err) < 0)
        return -1;
    return write_file("cpu", id, "cpu.cfs_quota_us", strcmp(quota, "max") == 0 ? "-1" : quota, err);
}

/* Weights 1..10000 on shares 2..262144, so that the way back gives the same weight. */
static int set_weight(const char *id, const char *value, struct err *err)
{
    uint64_t weight;
    if (str_to_u64(value, &weight) < 0 || weight < 1 || weight > 10000)
        return err_set(err, ERR_INVALID, "cpu.weight: \"%.40s\" is out of range", value);
    auto_free char *shares = fs_format("%" PRIu64, 2 + ((weight - 1) * 262142 + 9998) / 9999);
    return write_file("cpu", id, "cpu.shares", shares, err);
}

/* "hugetlb.2MB.max" is called "hugetlb.2MB.limit_in_bytes". The caller's. */
static char *hugetlb_name(const char *key)
{
    return fs_format("%.*slimit_in_bytes", (int)(strlen(key) - strlen("max")), key);
}

int limits_v1_set(const char *id, const char *key, const char *value, struct err *err)
{
    if (strcmp(key, "memory.max") == 0)
        return set_memory(id, value, err);
    if (strcmp(key, "memory.swap.max") == 0)
        return set_swap(id, value, err);
    if (strcmp(key, "cpu.max") == 0)
        return set_cpu_max(id, value, err);
    if (strcmp(key, "cpu.weight") == 0)
        return set_weight(id, value, err);
    if (strcmp(key, "pids.max") == 0)
        return write_file("pids", id, "pids.max", value, err);
    if (str_starts(key, "cpuset."))
        return write_file("cpuset", id, key, value, err);
    if (str_starts(key, "hugetlb.") && str_ends(key, ".max")) {
        auto_free char *name = hugetlb_name(key);
        return write_file("hugetlb", id, name, value, err);
    }
    return err_set(err, ERR_INVALID, "a host with cgroup version 1 has no limit %s", key);
}

static char *read_cpu_max(const char *id)
{
    auto_free char *quota = read_file("cpu", id, "cpu.cfs_quota_us");
    auto_free char *period = read_file("cpu", id, "cpu.cfs_period_us");
    return fs_format("%s %s", quota[0] == '-' ? "max" : quota, period);
}

static char *read_weight(const char *id)
{
    auto_free char *text = read_file("cpu", id, "cpu.shares");
    uint64_t shares;
    if (str_to_u64(text, &shares) < 0 || shares < 2)
        return xstrdup("");
    return fs_format("%" PRIu64, 1 + (shares - 2) * 9999 / 262142);
}

char *limits_v1_read(const char *id, const char *key)
{
    uint64_t memory = read_bytes(id, "memory.limit_in_bytes");
    if (strcmp(key, "memory.max") == 0)
        return bytes_or_max(memory);
    if (strcmp(key, "memory.swap.max") == 0) {
        uint64_t both = read_bytes(id, "memory.memsw.limit_in_bytes");
        return bytes_or_max(both >= UNLIMITED ? both : both - (memory < both ? memory : both));
    }
    if (strcmp(key, "cpu.max") == 0)
        return read_cpu_max(id);
    if (strcmp(key, "cpu.weight") == 0)
        return read_weight(id);
    if (strcmp(key, "pids.max") == 0)
        return read_file("pids", id, "pids.max");
    if (str_starts(key, "cpuset."))
        return read_file("cpuset", id, key);
    if (str_starts(key, "hugetlb.") && str_ends(key, ".max")) {
        auto_free char *name = hugetlb_name(key);
        return read_file("hugetlb", id, name);
    }
    return xstrdup("");
}
