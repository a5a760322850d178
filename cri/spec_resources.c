#include "cri/spec_internal.h"

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
