#include "sandbox/qemu_slot.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/failpoint.h"
#include "base/limits.h"
#include "sandbox/qemu_vm.h"

#define EMPTY "empty"
#define SIZE (GiB(1024))
/* One request of 128 KiB is what reading a file ahead takes. */
#define QUEUE_SIZE 64

void qemu_slot_name(int slot, char out[QEMU_SLOT_NAME_SIZE])
{
    (void)snprintf(out, QEMU_SLOT_NAME_SIZE, "slot%d", slot);
}

void qemu_slot_args(struct strv *argv)
{
    strv_add(argv, "-blockdev");
    strv_addf(argv,
              "driver=null-co,node-name=" EMPTY ",size=%" PRIu64 ",read-zeroes=on,read-only=on",
              (uint64_t)SIZE);
    for (int i = 0; i < QEMU_FIXED_N; i++) {
        char name[QEMU_SLOT_NAME_SIZE];
        qemu_slot_name(QEMU_FIXED_FIRST + i, name);
        strv_add(argv, "-device");
        strv_addf(argv,
                  "virtio-blk-pci,id=%s,drive=" EMPTY
                  ",serial=%s,num-queues=1,queue-size=%d,romfile=",
                  name, name, QUEUE_SIZE);
    }
}

int qemu_slot_free(const struct hv *hv, const struct disk_part *parts, size_t n)
{
    uint64_t size = 0;
    for (size_t i = 0; i < n; i++) {
        if (parts[i].size > SIZE - size)
            return 0;
        size += parts[i].size;
    }
    for (int slot = QEMU_FIXED_FIRST; slot <= QEMU_SLOTS; slot++) {
        if (hv->fixed[slot - QEMU_FIXED_FIRST] && hv->slots[slot] == NULL)
            return slot;
    }
    return 0;
}

json_t *qemu_drive_node(struct hv *hv, const char *device, struct cancel *cancel, struct err *err)
{
    char path[96];
    (void)snprintf(path, sizeof(path), "/machine/peripheral/%s", device);
    json_t *node =
        qmp_call(hv->qmp, "qom-get", json_pack("{s:s,s:s}", "path", path, "property", "drive"), -1,
                 cancel, err);
    if (node == NULL || json_is_string(node))
        return node;
    json_decref(node);
    (void)err_set(err, ERR_INTERNAL, "qemu names no node below disk %s", device);
    return NULL;
}

static int put_below(struct hv *hv, const char *device, const char *node, struct cancel *cancel,
                     struct err *err)
{
    char path[96];
    (void)snprintf(path, sizeof(path), "/machine/peripheral/%s", device);
    return qmp_run(hv->qmp, "qom-set",
                   json_pack("{s:s,s:s,s:s}", "path", path, "property", "drive", "value", node), -1,
                   cancel, err);
}

int qemu_drive_set(struct hv *hv, const char *device, const char *node, struct cancel *cancel,
                   struct err *err)
{
    json_auto_t *now = qemu_drive_node(hv, device, cancel, err);
    if (now == NULL)
        return -1;
    /* QEMU 7.2 dies when a node is to replace itself */
    return strcmp(json_string_value(now), node) == 0 ? 0 : put_below(hv, device, node, cancel, err);
}

int qemu_slot_fill(struct hv *hv, int slot, const char *node, struct cancel *cancel,
                   struct err *err)
{
    char name[QEMU_SLOT_NAME_SIZE];
    qemu_slot_name(slot, name);
    return put_below(hv, name, node, cancel, err);
}

int qemu_slot_empty(struct hv *hv, int slot, struct cancel *cancel, struct err *err)
{
    char name[QEMU_SLOT_NAME_SIZE];
    qemu_slot_name(slot, name);
    return qemu_drive_set(hv, name, EMPTY, cancel, err);
}

int qemu_slot_list(struct hv *hv, void (*found)(struct hv *hv, int slot, const char *node),
                   struct cancel *cancel, struct err *err)
{
    for (int slot = QEMU_FIXED_FIRST; slot <= QEMU_SLOTS; slot++) {
        auto_err struct err e = ERR_INIT;
        char device[QEMU_SLOT_NAME_SIZE];
        qemu_slot_name(slot, device);
        json_auto_t *node = qemu_drive_node(hv, device, cancel, &e);
        if (node == NULL && e.code == ERR_NOT_FOUND)
            continue; /* of a release that had none */
        if (node == NULL)
            return err_move(err, &e);
        const char *name = json_string_value(node);
        hv->fixed[slot - QEMU_FIXED_FIRST] = true;
        found(hv, slot, strcmp(name, EMPTY) == 0 ? "" : name);
    }
    return 0;
}
