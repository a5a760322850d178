#include "cri/spec_internal.h"

#include <inttypes.h>
#include <string.h>

#include "base/limits.h"
#include "base/str.h"
#include "cri/huge_pages.h"

#define MIN_MEMORY MiB(4) /* less and the container's init is killed before its command runs */
#define MAX_UNIFIED 64

/* A list of numbers as the kernel takes it: "0-3,8". */
static int check_list(const char *what, const char *list, struct err *err)
{
    if (strlen(list) >= KiB(4) || strspn(list, "0123456789,-") != strlen(list))
        return err_set(err, ERR_INVALID, "%s \"%.64s\" is no list of numbers", what, list);
    return 0;
}

static int check_unified(const char *key, const char *value, struct err *err)
{
    static const char *const controllers[] = {"cpu.",    "cpuset.", "hugetlb.", "io.",
                                              "memory.", "misc.",   "pids."};
    bool known = false;
    for (size_t i = 0; i < ARRAY_LEN(controllers) && !known; i++)
        known = str_starts(key, controllers[i]);
    if (!known || strlen(key) > 128 ||
        strspn(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._") !=
            strlen(key))
        return err_set(err, ERR_INVALID, "unified: \"%.64s\" is no file of a cgroup v2 controller",
                       key);
    if (strlen(value) > KiB(4) || strpbrk(value, "\n") != NULL)
        return err_set(err, ERR_INVALID, "unified: the value of %s is malformed", key);
    return 0;
}

int spec_check_resources(const Resources *r, struct err *err)
{
    if (r->cpu_period < 0 || r->cpu_shares < 0 || r->cpu_quota < -1)
        return err_set(err, ERR_INVALID, "a negative number of cpu shares, quota or period");
    if (r->memory_limit_in_bytes < -1 || r->memory_swap_limit_in_bytes < -1)
        return err_set(err, ERR_INVALID, "a negative memory limit");
    if (r->memory_limit_in_bytes > 0 && r->memory_limit_in_bytes < (int64_t)MIN_MEMORY)
        return err_set(err, ERR_INVALID,
                       "a memory limit of %" PRId64 " bytes is too small: at least %" PRIu64
                       " are needed",
                       r->memory_limit_in_bytes, (uint64_t)MIN_MEMORY);
    if (r->memory_swap_limit_in_bytes > 0 && r->memory_limit_in_bytes > 0 &&
        r->memory_swap_limit_in_bytes < r->memory_limit_in_bytes)
        return err_set(err, ERR_INVALID,
                       "memory_swap_limit_in_bytes counts memory and swap together and is below "
                       "memory_limit_in_bytes");
    if (huge_pages_check(r, err) < 0)
        return -1;
    if (r->n_unified > MAX_UNIFIED)
        return err_set(err, ERR_INVALID, "unified: more than %d keys", MAX_UNIFIED);
    for (size_t i = 0; i < r->n_unified; i++) {
        if (check_unified(r->unified[i]->key, r->unified[i]->value, err) < 0)
            return -1;
    }
    if (check_list("cpuset_cpus", r->cpuset_cpus, err) < 0 ||
        check_list("cpuset_mems", r->cpuset_mems, err) < 0)
        return -1;
    return 0;
}

int spec_check_limits(const Container *c, enum backend backend, struct err *err)
{
    const Resources *r = resources_of(c);
    if (r == NULL)
        return 0;
    return spec_check_resources(r, err) < 0 ? -1 : huge_pages_check_backend(r, backend, err);
}

json_t *spec_resources(const Resources *r)
{
    /* nothing but the usual character devices, which the OCI runtime allows by itself: the guest's
     * disks and link ports are not the container's */
    json_t *res = json_pack("{s:[{s:b, s:s}]}", "devices", "allow", 0, "access", "rwm");
    if (r == NULL)
        return res;
    json_t *memory = json_object();
    if (r->memory_limit_in_bytes > 0)
        (void)json_object_set_new(memory, "limit", json_integer(r->memory_limit_in_bytes));
    if (r->memory_swap_limit_in_bytes > 0)
        (void)json_object_set_new(memory, "swap", json_integer(r->memory_swap_limit_in_bytes));
    json_t *cpu = json_object();
    if (r->cpu_shares > 0)
        (void)json_object_set_new(cpu, "shares", json_integer(r->cpu_shares));
    if (r->cpu_quota != 0)
        (void)json_object_set_new(cpu, "quota", json_integer(r->cpu_quota));
    if (r->cpu_period > 0)
        (void)json_object_set_new(cpu, "period", json_integer(r->cpu_period));
    (void)json_object_set_new(res, "memory", memory);
    (void)json_object_set_new(res, "cpu", cpu);
    if (r->n_unified > 0) {
        json_t *unified = json_object();
        for (size_t i = 0; i < r->n_unified; i++)
            (void)json_object_set_new(unified, r->unified[i]->key,
                                      json_string(r->unified[i]->value));
        (void)json_object_set_new(res, "unified", unified);
    }
    return res;
}
