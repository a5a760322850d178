/*
 * hypervisor - what machine.c asks of the program that runs a VM, so that QEMU is one driver of
 * several.
 *
 * A driver starts its program in a jail, owns its process and its control connection, and says once
 * when the VM is over. Nothing here knows pods, agents or records.
 *
 * Threads: launch() to quit() block and may be called from any thread but the loops' own, on_dead
 * comes on the control loop. Memory: a struct hv is freed by free(), which does not touch a running
 * VM.
 */
#ifndef ASPIS_SANDBOX_HYPERVISOR_H
#define ASPIS_SANDBOX_HYPERVISOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/cancel.h"
#include "base/err.h"
#include "base/limits.h"
#include "base/loop.h"
#include "sandbox/machine.h"

struct hv; /* a VM */

/* Files a driver keeps in run_dir. */
#define HV_SOCKETS_CHANNEL                                                                         \
    {                                                                                              \
        "rpc", "io", "fs"                                                                          \
    } /* in the order of enum link_channel */
#define HV_SOCKET_CONTROL "ctl"
#define HV_SOCKET_CONSOLE "con"
#define HV_SOCKET_VSOCK "vsock"
#define HV_CONSOLE_FILE "console.log"
#define HV_OUTPUT_FILE "hypervisor.log" /* what the program itself prints */

/* A template: a VM's RAM and device state, kept in memory files (template.h), and its disk. */
struct hv_template {
    int ram_fd;     /* as large as the guest's memory */
    int state_fd;   /* -1: boot with the RAM shared in ram_fd, so that save() can follow; else start
                       from the state, with the RAM copied on write */
    int scratch_fd; /* the scratch disk as it was then, which the guest has mounted; with state_fd
                     */
};

/* What the driver of the host backend needs instead of a VM's devices. */
struct hv_host {
    const char *cgroup;    /* the pod's, one path below each hierarchy */
    const char *state_dir; /* for what containers write */
    const char *netns;     /* NULL: the host's */
    bool host_ipc, host_uts;
};

/* Memory is added in steps of what the guest's kernel takes in at once. */
#define HV_MEMORY_STEP MiB(128)

#define HV_SERIAL_SIZE 21 /* of a disk, with its end */

/* What a VM has beyond what it started with, and all of its vCPUs. */
struct hv_size {
    uint64_t added_bytes;     /* taken in by the guest */
    uint64_t requested_bytes; /* what it was asked to have; it gives memory back as it can */
    uint64_t max_added_bytes;
    uint32_t vcpus;
};

/* What makes a hypervisor need less. */
struct hv_libraries {
    const char *trim;   /* qemu_trim.c */
    const char *absent; /* directory of what absent/ makes */
};

/* A VM that starts from what checkpoint() of another wrote. */
struct hv_disk {
    unsigned slot;
    char serial[21];
    const struct disk_part *parts; /* filled in for a restore only; borrowed */
    size_t n_parts;
};
struct hv_restore {
    int state_fd;
    const char *ram_id; /* hv_shape's */
    uint32_t vcpus;     /* what it had in the end; the spec's is what it began with */
    const struct hv_disk *disks;
    size_t n_disks;
};

/* How a VM that runs was made, as far as its copy must be made alike. */
#define HV_MAX_DISKS 40 /* also the first slot number that no disk has */
struct hv_shape {
    char ram_id[16];
    uint64_t boot_bytes, max_bytes;
    uint32_t boot_vcpus, vcpus, max_vcpus;
    uint64_t added_bytes;
    struct hv_disk disks[HV_MAX_DISKS];
    size_t n_disks;
};

/* All borrowed for the call. */
struct hv_spec {
    const char *name;    /* for people: shows in ps */
    const char *run_dir; /* exists, root's */
    const char *binary, *kernel, *initrd, *jail_helper;
    const char *pages_library;  /* qemu_pages.c; NULL: clones keep the memory that they have used */
    struct hv_libraries thrift; /* NULLs: a clone goes without */
    uint32_t trim_seconds;      /* of idleness, until an emulated VM is trimmed; 0: never */
    const char *const *cgroups; /* directories to join, NULL-terminated */
    uint32_t uid;
    enum accel accel;      /* KVM or TCG */
    uint64_t tsc_khz;      /* of the host; 0: unknown */
    uint64_t memory_bytes; /* multiple of 1 MiB */
    uint64_t max_memory_bytes;
    uint32_t vcpus, max_vcpus;
    int tap_fd; /* -1: no NIC */
    const char *mac;
    int scratch_fd;
    const char *scratch_serial;
    uint32_t cid;                     /* 0: three virtio-serial ports on unix sockets in run_dir */
    const struct hv_template *tpl;    /* NULL: an ordinary boot */
    const struct hv_restore *restore; /* NULL: not from a saved VM */
    const struct hv_host *host; /* the host backend: run_dir, binary (the agent), cgroups (those it
                                   joins itself) and this count */
    /* A virtio socket device of our own at HV_SOCKET_VSOCK in run_dir ("CONNECT <port>\n"). A clone
     * then has a copy of the template's RAM. */
    bool user_vsock;
    const char *vsock_helper;
    /* A VM that others are to be copied from (freeze()), with this library (qemu_fork.c); NULL:
     * none such. */
    const char *fork_library;
    /* Such a VM, frozen, and its scratch disk, of which scratch_fd is a copy: the new VM is a copy
     * of its process instead of anything else. NULL: none. */
    struct hv *fork_of;
    int fork_scratch_fd;
};

struct hv_callbacks {
    /* The VM is over and its process gone. Once. The reason names what happened, and the last words
     * of the hypervisor and the console. */
    void (*on_dead)(void *arg, const char *reason);
    void *arg;
};

struct hv_process {
    pid_t pid;
    uint64_t start_time; /* /proc/<pid>/stat field 22 */
};

struct hv_ops {
    const char *name;
    /* "7.2.22 (Debian ...)": runs the binary. Owned by the caller. */
    char *(*version)(const char *binary, struct cancel *cancel, struct err *err);
    /* Whether the program starts with these libraries, by trying. May be NULL, here and `used`. */
    bool (*takes)(const char *binary, const struct hv_libraries *libraries, struct cancel *cancel);
    /* Everything that a template's state depends on but the contents of files: two specs that give
     * the same text may start from the same template. The caller's; NULL with *err. */
    char *(*shape)(const struct hv_spec *spec, struct err *err);
    /* Returns when the VM's vCPUs run; of a clone: when QEMU has begun to load its state. */
    struct hv *(*launch)(const struct hv_spec *spec, struct loop *control,
                         const struct hv_callbacks *cb, struct cancel *cancel, struct err *err);
    /* A VM that an earlier daemon launched. NOT_FOUND: its process is gone (or the pid is
     * another's). */
    struct hv *(*adopt)(const struct hv_process *process, const char *run_dir, const char *binary,
                        struct loop *control, const struct hv_callbacks *cb, struct cancel *cancel,
                        struct err *err);
    /* A read-only disk of the parts one after the other. Already there: success. Either a new
     * device appears in the guest under this serial, or a device that was there empty has got the
     * contents: guest_serial is the device's. guest_serial NULL: only a new device will do. */
    int (*add_disk)(struct hv *hv, const char *serial, const struct disk_part *parts,
                    size_t n_parts, char guest_serial[HV_SERIAL_SIZE], struct cancel *cancel,
                    struct err *err);
    /* A block device of the host, open for what the guest may do. */
    int (*add_device)(struct hv *hv, const char *serial, int fd, bool writable,
                      struct cancel *cancel, struct err *err);
    /* Not there: success. */
    int (*remove_disk)(struct hv *hv, const char *serial, struct cancel *cancel, struct err *err);
    /* Asks the guest to take in, or to let go of, so much memory that all of it is added_bytes (a
     * multiple of HV_MEMORY_STEP), and plugs in vCPUs until there are `vcpus` (none are taken
     * away). Returns before the guest has acted. INVALID: more than the VM was made for. */
    int (*resize)(struct hv *hv, uint64_t added_bytes, uint32_t vcpus, struct cancel *cancel,
                  struct err *err);
    /* What there is now. */
    int (*size)(struct hv *hv, struct hv_size *out, struct cancel *cancel, struct err *err);
    /* Stops a VM launched with fork_library for good, so that it can be copied; its link is closed
     * already. May be NULL. */
    int (*freeze)(struct hv *hv, struct cancel *cancel, struct err *err);
    /* Host CPUs of each vCPU's thread ("0-3"; "", or beyond n: any that the VM may use). */
    int (*pin)(struct hv *hv, char *const *lists, size_t n, struct cancel *cancel, struct err *err);
    /* Writes the device state of a VM launched to become a template; it does not run after that and
     * can only be quit. Not for others. */
    int (*save)(struct hv *hv, int state_fd, struct cancel *cancel, struct err *err);
    /* The VM is a pod's, which is being used; when it has not been for a while, it may give back
     * what it can make again. */
    void (*used)(struct hv *hv);
    /* Stops the VM, writes all of its RAM and device state, calls paused() while it stands still,
     * and lets it go on, also after a failure. PRECONDITION: what it has cannot be saved; then it
     * was not stopped. */
    int (*checkpoint)(struct hv *hv, int state_fd, struct hv_shape *out,
                      int (*paused)(void *arg, struct err *err), void *arg, struct cancel *cancel,
                      struct err *err);
    /* 0 while the vCPUs run, else an error that says what they do instead. */
    int (*query)(struct hv *hv, struct cancel *cancel, struct err *err);
    /* Kills the VM; returns when the process is gone and reaped. No on_dead follows.
     * Idempotent. */
    int (*quit)(struct hv *hv, struct cancel *cancel, struct err *err);
    struct hv_process (*process)(struct hv *hv);
    /* The guest's last console lines, printable; the caller's. */
    char *(*console_tail)(struct hv *hv);
    /* Lets go without touching the VM; no callback follows once it has returned. */
    void (*free)(struct hv *hv);
};

extern const struct hv_ops qemu_hv;
extern const struct hv_ops host_hv; /* no VM: host.h */

/* hv_watch.c. Start time of a process, 0 when it is gone. */
uint64_t hv_start_time(pid_t pid);
/* Whether the process runs a program of this file name. */
bool hv_same_program(pid_t pid, const char *binary);

#endif
