/*
 * qemu_slot - the disks that a VM has from its start, for the images of its first containers.
 *
 * Plugging a disk in means work for the guest: ACPI, PCI, a driver's probe, 10 ms of it, and three
 * times that in a clone that does it for the first time under emulation. These disks are there
 * already when the template is saved. Without an image they are of zeros and larger than any image;
 * giving one an image is a change of QEMU's block node below the device, of which the guest notices
 * nothing: the agent is told what it will find there (NameDisk). The size stays what it was, and
 * nothing that is mounted looks past its own end.
 *
 * A fixed disk's number is a slot number after those of the bridge; its device and its serial are
 * called "slot<number>"; its image's block node "disk<number>-<serial of the image>".
 *
 * Threads: as qemu_disk.c, under hv->disks.
 */
#ifndef ASPIS_SANDBOX_QEMU_SLOT_H
#define ASPIS_SANDBOX_QEMU_SLOT_H

#include <stdbool.h>
#include <stddef.h>

#include <jansson.h>

#include "base/cancel.h"
#include "base/err.h"
#include "base/str.h"
#include "sandbox/machine.h"
#include "sandbox/qemu_argv.h"

struct hv;

#define QEMU_SLOT_NAME_SIZE 16

static inline bool qemu_slot_is_fixed(int slot)
{
    return slot >= QEMU_FIXED_FIRST;
}

void qemu_slot_name(int slot, char out[QEMU_SLOT_NAME_SIZE]);

/* QEMU's arguments for them. */
void qemu_slot_args(struct strv *argv);

/* An unused fixed disk that these parts fit into, or 0. */
int qemu_slot_free(const struct hv *hv, const struct disk_part *parts, size_t n);

/* Puts a block node below the disk, which has another one. */
int qemu_slot_fill(struct hv *hv, int slot, const char *node, struct cancel *cancel,
                   struct err *err);
/* Empty already: success. */
int qemu_slot_empty(struct hv *hv, int slot, struct cancel *cancel, struct err *err);

/* The name of the block node below a disk of any kind, which has the id `device`. The caller's;
 * NULL with *err (NOT_FOUND: there is no such disk). */
json_t *qemu_drive_node(struct hv *hv, const char *device, struct cancel *cancel, struct err *err);
/* Puts another node there; fine if it is there already. */
int qemu_drive_set(struct hv *hv, const char *device, const char *node, struct cancel *cancel,
                   struct err *err);

/* Of an adopted VM: which fixed disks it has, and the node below each, which `found` is told; "":
 * none. */
int qemu_slot_list(struct hv *hv, void (*found)(struct hv *hv, int slot, const char *node),
                   struct cancel *cancel, struct err *err);

#endif
