/*
 * qemu_vm - what the parts of the QEMU driver share: struct hv. Private to qemu*.c.
 */
#ifndef ASPIS_SANDBOX_QEMU_VM_H
#define ASPIS_SANDBOX_QEMU_VM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/types.h>

#include "base/loop.h"
#include "base/spawn.h"
#include "sandbox/console.h"
#include "sandbox/hv_watch.h"
#include "sandbox/qemu_argv.h"
#include "sandbox/qmp.h"

struct hv {
    struct hv_watch watch;
    struct hv_callbacks cb;
    char *run_dir;
    struct qmp *qmp; /* fixed after launch or adopt */
    struct console *console, *output;
    atomic_bool saving; /* it becomes a template, so its vCPUs stop */

    /* loop thread only */
    struct loop_source *linger; /* timer: control connection closed, process still there */
    bool qmp_closed;
    bool reported;
    char *why; /* first thing that QMP told about the end */

    struct spawn_proc vsock; /* aspis-vsock, if this daemon started it */

    pthread_mutex_t disks;       /* held while a disk is plugged or unplugged */
    char *slots[QEMU_SLOTS + 1]; /* serial of the disk in each slot; 0 unused. Under disks */
    bool fixed[QEMU_FIXED_N];    /* those it has (qemu_slot.c); constant */
};

int qemu_add_disk(struct hv *hv, const char *serial, const struct disk_part *parts, size_t n_parts,
                  char guest_serial[HV_SERIAL_SIZE], struct cancel *cancel, struct err *err);
int qemu_add_device(struct hv *hv, const char *serial, int fd, bool writable, struct cancel *cancel,
                    struct err *err);
int qemu_remove_disk(struct hv *hv, const char *serial, struct cancel *cancel, struct err *err);
/* After adopt: learns which slots are taken. */
int qemu_list_disks(struct hv *hv, struct cancel *cancel, struct err *err);

/* qemu_size.c */
int qemu_resize(struct hv *hv, uint64_t added_bytes, uint32_t vcpus, struct cancel *cancel,
                struct err *err);
int qemu_size(struct hv *hv, struct hv_size *out, struct cancel *cancel, struct err *err);

/* qemu_template.c */
char *qemu_shape(const struct hv_spec *spec, struct err *err);
int qemu_save(struct hv *hv, int state_fd, struct cancel *cancel, struct err *err);
/* A clone waits for its state after launch; returns when QEMU has taken up the work, or done it. A
 * state that cannot be loaded ends the process. */
int qemu_load_state(struct hv *hv, bool to_the_end, struct cancel *cancel, struct err *err);

/* qemu_vsock.c: the memory file that guest and device share; the process, returning QEMU's end of
 * its connection; the device in a clone; the end, once QEMU is gone. */
int qemu_vsock_ram(const struct hv_spec *s, struct err *err);
int qemu_vsock_start(struct hv *hv, const struct hv_spec *s, int listen_fd, int output_fd,
                     struct cancel *cancel, struct err *err);
int qemu_vsock_plug(struct hv *hv, struct cancel *cancel, struct err *err);
void qemu_vsock_end(struct hv *hv);

#endif
