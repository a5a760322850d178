/*
 * A running QEMU's size: memory by virtio-mem, whose guest takes in what is requested, and vCPUs by
 * ACPI hot-plug. QEMU refuses neither of them because a guest does not look: only the agent knows
 * what arrived.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/fs.h"
#include "base/limits.h"
#include "sandbox/lock.h"
#include "sandbox/qemu_vm.h"

/* A number property of the device that adds memory; NOT_FOUND when the VM has none. */
static int get_property(struct hv *hv, const char *path, const char *name, uint64_t *out,
                        struct cancel *cancel, struct err *err)
{
    json_auto_t *v =
        qmp_call(hv->qmp, "qom-get", json_pack("{s:s,s:s}", "path", path, "property", name), -1,
                 cancel, err);
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

int qemu_add_vcpus(struct hv *hv, uint32_t want, struct cancel *cancel, struct err *err)
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

/* What the machine was made for beyond what it started with. QEMU 7.2 does not tell it, so its
 * command line does; a QEMU that was taken over can only lie about its own room. */
static int get_room(struct hv *hv, uint64_t *out, struct err *err)
{
    char path[64];
    size_t len = 0;
    (void)snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)hv->watch.proc.pid);
    auto_free char *args = fs_read(path, MiB(1), &len, err);
    if (args == NULL)
        return err_wrap(err, "learn the vm's room");
    for (const char *p = args; p < args + len; p += strlen(p) + 1) {
        uint64_t size;
        uint64_t most;
        char end = '\0';
        if (sscanf(p, "size=%" SCNu64 "M,maxmem=%" SCNu64 "M%c", &size, &most, &end) == 2 &&
            most >= size && most < UINT64_MAX / MiB(1)) {
            *out = (most - size) * MiB(1) / HV_MEMORY_STEP * HV_MEMORY_STEP;
            return 0;
        }
    }
    return err_set(err, ERR_INTERNAL, "qemu's arguments do not tell its room for memory");
}

static int plug_second(struct hv *hv, uint64_t bytes, struct cancel *cancel, struct err *err)
{
    char addr[8];
    (void)snprintf(addr, sizeof(addr), "0x%x", QEMU_PLUG_SLOT_MORE2);
    auto_err struct err e = ERR_INIT;
    /* of an attempt that was cut short; in use: kept */
    (void)qmp_run(hv->qmp, "object-del", json_pack("{s:s}", "id", QEMU_MORE2 "-ram"), -1, cancel,
                  &e);
    if (qmp_run(hv->qmp, "object-add",
                json_pack("{s:s,s:s,s:I,s:b,s:b}", "qom-type", "memory-backend-memfd", "id",
                          QEMU_MORE2 "-ram", "size", (json_int_t)bytes, "share", 1, "reserve", 0),
                -1, cancel, err) < 0)
        return -1;
    return qmp_run(hv->qmp, "device_add",
                   json_pack("{s:s,s:s,s:s,s:s,s:s,s:i}", "driver", "virtio-mem-pci", "id",
                             QEMU_MORE2, "bus", QEMU_PLUG_BUS, "addr", addr, "memdev",
                             QEMU_MORE2 "-ram", "requested-size", 0),
                   -1, cancel, err);
}

/* The device's number; 0 when there is no such device, or it has none. */
static int of_device(struct hv *hv, const char *id, const char *name, uint64_t *out,
                     struct cancel *cancel, struct err *err)
{
    char path[64];
    auto_err struct err e = ERR_INIT;
    (void)snprintf(path, sizeof(path), "/machine/peripheral/%s", id);
    *out = 0;
    if (get_property(hv, path, name, out, cancel, &e) == 0 || e.code == ERR_NOT_FOUND ||
        e.code == ERR_INTERNAL)
        return 0;
    return err_move(err, &e);
}

static int request(struct hv *hv, const char *id, uint64_t bytes, struct cancel *cancel,
                   struct err *err)
{
    char path[64];
    uint64_t now;
    (void)snprintf(path, sizeof(path), "/machine/peripheral/%s", id);
    if (of_device(hv, id, "requested-size", &now, cancel, err) < 0)
        return -1;
    if (now == bytes)
        return 0;
    return qmp_run(hv->qmp, "qom-set",
                   json_pack("{s:s,s:s,s:I}", "path", path, "property", "requested-size", "value",
                             (json_int_t)bytes),
                   -1, cancel, err);
}

static int first_room(struct hv *hv, uint64_t *out, struct cancel *cancel, struct err *err)
{
    auto_err struct err e = ERR_INIT;
    *out = 0;
    if (get_property(hv, "/objects/" QEMU_MORE "-ram", "size", out, cancel, &e) == 0 ||
        e.code == ERR_NOT_FOUND || e.code == ERR_INTERNAL)
        return 0; /* a VM that was made without one */
    return err_move(err, &e);
}

static int request_memory(struct hv *hv, uint64_t bytes, struct cancel *cancel, struct err *err)
{
    uint64_t first;
    uint64_t room;
    if (first_room(hv, &first, cancel, err) < 0 || get_room(hv, &room, err) < 0)
        return -1;
    if (bytes > (first > 0 ? room : 0))
        return err_set(err, ERR_INVALID, "the vm has room for %" PRIu64 " MiB more",
                       (first > 0 ? room : 0) / MiB(1));
    uint64_t here = bytes < first ? bytes : first;
    uint64_t have = 0;
    if (bytes > here) {
        auto_err struct err e = ERR_INIT;
        if (get_property(hv, "/objects/" QEMU_MORE2 "-ram", "size", &have, cancel, &e) < 0)
            have = 0;
        uint64_t plugged = 0;
        if (have > 0 && get_property(hv, "/machine/peripheral/" QEMU_MORE2, "requested-size",
                                     &plugged, cancel, &e) < 0)
            have = 0;
        if (have == 0 && plug_second(hv, room - first, cancel, err) < 0)
            return -1;
    }
    if (first > 0 && request(hv, QEMU_MORE, here, cancel, err) < 0)
        return -1;
    if (bytes > here)
        return request(hv, QEMU_MORE2, bytes - here, cancel, err);
    uint64_t second;
    if (of_device(hv, QEMU_MORE2, "requested-size", &second, cancel, err) < 0)
        return -1;
    return second > 0 ? request(hv, QEMU_MORE2, 0, cancel, err) : 0;
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
    if (qemu_add_vcpus(hv, vcpus, cancel, err) < 0)
        return err_wrap(err, "add vcpus");
    return 0;
}

int qemu_size(struct hv *hv, struct hv_size *out, struct cancel *cancel, struct err *err)
{
    uint64_t first;
    uint64_t second;
    uint64_t wanted;
    uint64_t room;
    *out = (struct hv_size){0};
    json_auto_t *list = qmp_call(hv->qmp, "query-hotpluggable-cpus", NULL, -1, cancel, err);
    const json_t *missing;
    if (list == NULL)
        return -1;
    out->vcpus = count_vcpus(list, &missing);
    if (first_room(hv, &first, cancel, err) < 0)
        return -1;
    if (first == 0)
        return 0;
    if (get_room(hv, &room, err) < 0 ||
        of_device(hv, QEMU_MORE, "size", &out->added_bytes, cancel, err) < 0 ||
        of_device(hv, QEMU_MORE2, "size", &second, cancel, err) < 0 ||
        of_device(hv, QEMU_MORE, "requested-size", &out->requested_bytes, cancel, err) < 0 ||
        of_device(hv, QEMU_MORE2, "requested-size", &wanted, cancel, err) < 0)
        return -1;
    out->added_bytes += second;
    out->requested_bytes += wanted;
    out->max_added_bytes = room;
    return 0;
}
