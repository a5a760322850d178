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
    int fork_fd;             /* of a VM to be copied: to aspis-fork.so in it; else -1 */
    pthread_mutex_t forking; /* held during a request on it */
    atomic_bool frozen;      /* nobody is to be connected to it any more */
    atomic_bool saving;      /* it becomes a template or is being copied, so its vCPUs stop */
    /* checkpoint(): its VM outlives a failure */
    atomic_bool copying;
    atomic_int migration; /* enum qemu_migration */
    int migrated;         /* eventfd: that is final, or QEMU is gone */

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

enum qemu_migration { MIGRATION_RUNS, MIGRATION_DONE, MIGRATION_FAILED, MIGRATION_CANCELLED };

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
/* Until there are so many. */
int qemu_add_vcpus(struct hv *hv, uint32_t want, struct cancel *cancel, struct err *err);
/* qemu_pin.c */
int qemu_pin_vcpus(struct hv *hv, char *const *lists, size_t n, struct cancel *cancel,
                   struct err *err);
int qemu_size(struct hv *hv, struct hv_size *out, struct cancel *cancel, struct err *err);

/* qemu_template.c */
char *qemu_shape(const struct hv_spec *spec, struct err *err);
int qemu_save(struct hv *hv, int state_fd, struct cancel *cancel, struct err *err);
/* A clone waits for its state after launch; returns when QEMU has taken up the work, or done it. A
 * state that cannot be loaded ends the process. */
int qemu_load_state(struct hv *hv, bool to_the_end, struct cancel *cancel, struct err *err);

/* qemu_idle.c */
#define QEMU_PROBE_NS INT64_C(10000000000)
bool qemu_takes(const char *binary, const struct hv_libraries *libraries, struct cancel *cancel);
void qemu_used(struct hv *hv);
/* qemu_checkpoint.c */
int qemu_checkpoint(struct hv *hv, int state_fd, struct hv_shape *out,
                    int (*paused)(void *arg, struct err *err), void *arg, struct cancel *cancel,
                    struct err *err);
/* A VM that was launched to be restored: plugs in its disks, loads the state, lets it run. */
int qemu_restore(struct hv *hv, const struct hv_restore *r, struct cancel *cancel, struct err *err);
/* After adopt: a VM that an earlier daemon was copying goes on. */
int qemu_wake(struct hv *hv, struct cancel *cancel, struct err *err);
/* Loop thread: QEMU told of its migration. */
void qemu_on_migration(struct hv *hv, const char *status);
/* qemu_disk.c: at this place, which is free. */
int qemu_add_disk_at(struct hv *hv, unsigned slot, const char *serial,
                     const struct disk_part *parts, size_t n_parts, struct cancel *cancel,
                     struct err *err);
/* Disks of several parts are VMDKs, whose driver forbids migration: while the VM stands still, null
 * devices of the same size take their places. Under hv->disks. */
#define QEMU_PARKED "parked"
int qemu_park_disks(struct hv *hv, struct cancel *cancel, struct err *err);
int qemu_unpark_disks(struct hv *hv, struct cancel *cancel, struct err *err);
/* qemu_template.c */
int qemu_set_migration(struct hv *hv, bool ignore_shared, struct cancel *cancel, struct err *err);

/* qemu_vsock.c: the memory file that guest and device share; the process, returning QEMU's end of
 * its connection; the device in a clone; the end, once QEMU is gone. */
int qemu_vsock_ram(const struct hv_spec *s, struct err *err);
int qemu_vsock_start(struct hv *hv, const struct hv_spec *s, int listen_fd, int output_fd,
                     struct cancel *cancel, struct err *err);
int qemu_vsock_plug(struct hv *hv, struct cancel *cancel, struct err *err);
void qemu_vsock_end(struct hv *hv);

#endif
