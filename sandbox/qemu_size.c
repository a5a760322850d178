/*
 * A running QEMU's size: memory by virtio-mem, whose guest takes in what is requested, and vCPUs by
 * ACPI hot-plug. QEMU refuses neither of them because a guest does not look: only the agent knows
 * what arrived.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/failpoint.h"
#include "base/limits.h"
#include "sandbox/lock.h"
#include "sandbox/qemu_vm.h"

#define MORE_PATH "/machine/peripheral/" QEMU_MORE

/* A number property of the device that adds memory; NOT_FOUND when the VM has none. */
static int get_property(struct hv *hv, const char *path, const char *name, uint64_t *out,
                        struct cancel *cancel, struct err *err)
{
    json_auto_t *v = qmp_call(hv->qmp, "qom-get", json_pack("{s:s,s:s}", "path", path, "property", name),
                              -1, cancel, err);
    if (v == NULL)
        return -1;
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return err_set(err, ERR_INTERNAL, "qemu's %s is no size", name);
    *out = (uint64_t)json_integer_value(v);
    return 0;
}

/* Possible vCPUs: how many are there, and the properties of the first that is not (borrowed). */
static uint32_t count_vcpus(const json_t *list, const json_t **missing)
{
    uint32_t n = 0;
    size_t i;
    json_t *cpu;
    *missing = NULL;
    /* QEMU lists the last one first */
    for (i = json_array_size(list); i-- > 0;) {
        cpu = json_array_get(list, i);
        if (json_object_get(cpu, "qom-path") != NULL)
            n++;
        else if (*missing == NULL)
            *missing = cpu;
    }
    return n;
}

static int add_vcpu(struct hv *hv, const json_t *cpu, struct cancel *cancel, struct err *err)
{
    const char *type = json_string_value(json_object_get(cpu, "type"));
    json_t *props = json_object_get(cpu, "props");
    if (type == NULL || !json_is_object(props))
        return err_set(err, ERR_INTERNAL, "qemu's list of vcpus is not understood");
    json_t *args = json_deep_copy(props);
    if (args == NULL || json_object_set_new(args, "driver", json_string(type)) < 0) {
        json_decref(args);
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    }
    return qmp_run(hv->qmp, "device_add", args, -1, cancel, err);
}

static int add_vcpus(struct hv *hv, uint32_t want, struct cancel *cancel, struct err *err)
{
    for (uint32_t before = 0;;) {
        json_auto_t *list = qmp_call(hv->qmp, "query-hotpluggable-cpus", NULL, -1, cancel, err);
        const json_t *missing;
        if (list == NULL)
            return -1;
        uint32_t n = count_vcpus(list, &missing);
        if (n >= want)
            return 0;
        if (missing == NULL || n <= before)
            return err_set(err, ERR_INVALID, "the vm cannot have more than %" PRIu32 " vcpus", n);
        if (add_vcpu(hv, missing, cancel, err) < 0)
            return -1;
        before = n;
    }
}

static int request_memory(struct hv *hv, uint64_t bytes, struct cancel *cancel, struct err *err)
{
    uint64_t now = 0;
    auto_err struct err e = ERR_INIT;
    if (get_property(hv, MORE_PATH, "requested-size", &now, cancel, &e) < 0) {
        if (bytes == 0 && e.code != ERR_CANCELLED && e.code != ERR_DEADLINE)
            return 0;
        return err_move(err, &e);
    }
    if (now == bytes)
        return 0;
    return qmp_run(hv->qmp, "qom-set",
                   json_pack("{s:s,s:s,s:I}", "path", MORE_PATH, "property", "requested-size",
                             "value", (json_int_t)bytes),
                   -1, cancel, err);
}

int qemu_resize(struct hv *hv, uint64_t added_bytes, uint32_t vcpus, struct cancel *cancel,
                struct err *err)
{
    if (FAILPOINT("machine.resize", err) < 0)
        return -1;
    if (added_bytes % HV_MEMORY_STEP != 0 || added_bytes > INT64_MAX)
        return err_set(err, ERR_INVALID, "%" PRIu64 " bytes cannot be added", added_bytes);
    if (request_memory(hv, added_bytes, cancel, err) < 0)
        return err_wrap(err, "add memory");
    if (add_vcpus(hv, vcpus, cancel, err) < 0)
        return err_wrap(err, "add vcpus");
    return 0;
}

int qemu_size(struct hv *hv, struct hv_size *out, struct cancel *cancel, struct err *err)
{
    auto_err struct err e = ERR_INIT;
    *out = (struct hv_size){0};
    json_auto_t *list = qmp_call(hv->qmp, "query-hotpluggable-cpus", NULL, -1, cancel, err);
    const json_t *missing;
    if (list == NULL)
        return -1;
    out->vcpus = count_vcpus(list, &missing);
    if (get_property(hv, MORE_PATH, "size", &out->added_bytes, cancel, &e) == 0 &&
        get_property(hv, "/objects/" QEMU_MORE "-ram", "size", &out->max_added_bytes, cancel, &e) ==
            0)
        return 0;
    out->added_bytes = out->max_added_bytes = 0;
    /* one that was made before there was such a device, or is too small for one */
    return e.code == ERR_CANCELLED || e.code == ERR_DEADLINE || e.code == ERR_UNAVAILABLE
               ? err_move(err, &e)
               : 0;
}
