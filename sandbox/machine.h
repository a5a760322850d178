/*
 * machine - what a pod runs in, with its agent, from start to nothing left: one QEMU VM, or, for
 * pods that need the host's own namespaces, the agent alone as a supervisor on the host.
 *
 * The only header of `sandbox` that `cri` needs besides link.h. A machine is made by
 * machine_start() (new pod) or machine_adopt() (daemon restarted, VM still running). It owns the
 * QEMU process, the QMP connection, the link, the cgroup, the jail and its directories; the tap fd
 * is handed in. Nobody above knows what QMP is; which accelerator, transport and device model a
 * machine has is decided here.
 *
 * Directories: `run_dir` (<run root>/sandboxes/<id>: sockets, console) and `state_dir` (scratch
 * disk).
 *
 * Threads: all calls may be made from any thread but the loops' own; they block, honour `cancel`,
 * and are serialised per machine where they must be. Callbacks run on loop threads and must not
 * block. Memory: a machine is freed by machine_free() after machine_destroy() or to leave it
 * running (daemon shutdown).
 */
#ifndef ASPIS_SANDBOX_MACHINE_H
#define ASPIS_SANDBOX_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/cancel.h"
#include "base/err.h"
#include "base/loop.h"
#include "base/timeline.h"
#include "proto/agent.pb-c.h"
#include "sandbox/link.h"

struct machine_factory; /* per daemon: configuration, accelerator verdict, uid pool, loops */
struct machine;

/* HOST: no VM. Its machine has no console, disks, NIC, uid or size of its own; the calls below do
 * what fits. */
enum backend { BACKEND_VM, BACKEND_HOST };
enum accel { ACCEL_AUTO, ACCEL_KVM, ACCEL_TCG };
/* VSOCK: the host kernel's; USER_VSOCK: a device of our own (aspis-vsock). */
enum transport {
    TRANSPORT_AUTO,
    TRANSPORT_VIRTIO_SERIAL,
    TRANSPORT_VSOCK,
    TRANSPORT_USER_VSOCK,
};
const char *transport_name(enum transport t);

struct machine_config {
    const char *qemu;   /* "/usr/bin/qemu-system-x86_64" */
    const char *kernel; /* vmlinuz */
    const char *initrd;
    const char *jail_helper;  /* aspis-jail */
    const char *share_helper; /* aspis-share */
    const char *agent;        /* aspis-agent, for pods without a VM; NULL: none can be made */
    const char *vsock_helper; /* aspis-vsock */
    const char *run_root;     /* "/run/aspis" */
    const char *state_root;   /* "/var/lib/aspis" */
    const char *image_root;   /* where image trees of pods without a VM are; NULL: none */
    enum accel accel;
    enum transport transport;
    uint32_t uid_base,
        uid_count; /* each pod's QEMU runs as one of these uids and the gid of the same number */
    uint64_t base_memory_bytes;     /* guest memory of a pod without a limit */
    uint64_t overhead_memory_bytes; /* guest kernel and agent, added to the pod's limit */
    uint64_t max_memory_bytes;      /* 0: the host's memory */
    uint64_t memory_ceiling_bytes;  /* to which a pod without a limit may grow; 0: the same */
    uint64_t host_reserve_bytes;    /* of the host, into which no pod without a limit grows */
    uint32_t max_vcpus;             /* 0: the host's */
    uint64_t scratch_bytes;         /* virtual size of the scratch disk */
    int64_t boot_timeout_ns;        /* QEMU start to agent's Hello */
    int64_t kvm_probe_timeout_ns;
    bool templates;          /* clone a booted VM where one fits, instead of booting */
    uint32_t idle_seconds;   /* after which an emulated clone gives back translations; 0: never */
    bool fork;               /* copy a warmed-up VM's process where that works (machine_fork.c) */
    const char *cgroup_root; /* cgroup of pods without a parent: "/aspis" */
};

struct machine_factory *machine_factory_new(const struct machine_config *config,
                                            struct loop *control, struct loop *io, struct err *err);
void machine_factory_free(struct machine_factory *f);

/* What this host can do; every reason is one English sentence. Used by --check and Status. Does not
 * boot anything; the accelerator is ACCEL_AUTO until decided. */
struct machine_facts {
    enum accel accel;         /* decided so far */
    const char *accel_reason; /* "kvm: guest reached the agent in 812 ms", "tcg: kvm probe: ..." */
    enum transport transport;
    const char *transport_reason;
    char *templates;        /* owned; "ready", "off", "none: ..." */
    char *qemu_version;     /* owned; NULL when QEMU cannot be run */
    char *kernel_release;   /* owned; of the guest kernel image, NULL when unreadable */
    bool ready;             /* pods can be started */
    char *not_ready_reason; /* owned */
};
int machine_facts(struct machine_factory *f, struct machine_facts *facts, struct err *err);
void machine_facts_clear(struct machine_facts *facts);
/* Can pods without a VM have user namespaces of their own here? 0, or -1 with the reason. Tried
 * once (userns_probe.h), and again until it works. */
int machine_host_userns(struct machine_factory *f, struct err *err);
/* Decides ACCEL_AUTO by booting a VM to its agent under KVM within the deadline; remembered.
 * machine_start() does it on first use; the daemon calls it in the background at start. */
int machine_decide_accel(struct machine_factory *f, struct cancel *cancel, struct err *err);

/* Begins to keep a template ready in the background, if the configuration wants any: the first is
 * booted at once, another when an input (QEMU, kernel, initrd, size, ...) has changed or a clone of
 * it failed. Pods never wait for one. Once, after what an earlier daemon left was collected. */
void machine_start_templates(struct machine_factory *f);

struct machine_spec {
    const char *sandbox_id;
    const char *cgroup_parent;    /* from CRI: "/kubepods/..", "x.slice", or "" */
    uint64_t memory_limit_bytes;  /* of the pod, 0: none: then it may grow (memory_ceiling_bytes) */
    uint64_t memory_needed_bytes; /* what its containers may use together where they have limits */
    uint64_t huge_bytes;          /* beyond those: kept by the guest as huge pages of 2 MiB */
    int64_t cpu_quota;            /* of the pod; <= 0: none */
    uint64_t cpu_period;
    uint32_t min_vcpus;        /* for the containers' cpusets */
    bool spare;                /* for a pod that is not known yet: see machine_claim() */
    bool zygote;               /* such a one, which machine_freeze() follows */
    int tap_fd;                /* borrowed (dup'ed); -1: no NIC */
    const char *mac;           /* of the NIC; NULL: any, see machine_guest_mac() */
    struct timeline *timeline; /* NULL, or gets the steps of the start */

    enum backend backend;
    /* BACKEND_HOST: */
    const char *netns;       /* network namespace to live in; NULL: the host's */
    bool host_ipc, host_uts; /* else namespaces of its own */
};

/* What must be recorded so that a restarted daemon can find the machine again. All strings owned.
 */
struct machine_record {
    enum backend backend;
    pid_t pid;               /* QEMU's; the agent's on the host */
    uint64_t pid_start_time; /* /proc/<pid>/stat field 22: guards against pid reuse */
    uint32_t uid;
    uint32_t cid; /* 0: virtio-serial */
    char *accel;  /* "kvm", "tcg" */
    char *transport;
    char *cgroup;          /* path below each hierarchy */
    uint64_t boot_bytes;   /* what QEMU was started with */
    uint64_t memory_bytes; /* what the guest really has */
    uint32_t vcpus;
    bool cloned;         /* started from a template */
    uint64_t left_bytes; /* charged to the group in which it was a spare, not to its own */
};
void machine_record_clear(struct machine_record *r);
/* JSON text for the daemon's records and back. */
char *machine_record_encode(const struct machine_record *r);
int machine_record_decode(const char *text, struct machine_record *r, struct err *err);

struct machine_callbacks {
    void (*on_event)(void *arg, const Aspis__Agent__V1__Event *event);
    /* QEMU is gone or the guest is dead (panic, reset, protocol broken). Once. `reason` names what
     * happened and the console's last words. On the control loop. */
    void (*on_dead)(void *arg, const char *reason);
    void *arg;
};

/* Boots to the agent's Hello. On failure nothing is left behind and *err carries the console's
 * tail. */
struct machine *machine_start(struct machine_factory *f, const struct machine_spec *spec,
                              const struct machine_callbacks *cb, struct cancel *cancel,
                              struct err *err);
/* A VM can be started before its pod is known: with spec.spare it is a clone in any case
 * (UNAVAILABLE when there is no template), and modest about processor time. To
 * be told when there is a template: fn comes from a thread of the pool and must not block, and
 * comes no more once another, or NULL, has been set. */
void machine_on_template(struct machine_factory *f, void (*fn)(void *arg), void *arg);
/* Is the spare alive, and a clone of what is the template now? */
bool machine_is_current(struct machine *m);
/* Makes a spare the machine of the spec's pod, whose id it has had from the beginning: its cgroup,
 * its size, and its callbacks from now on; none of the earlier ones runs once this has returned.
 * After a failure it can only be destroyed. */
int machine_claim(struct machine *m, const struct machine_spec *spec,
                  const struct machine_callbacks *cb, struct cancel *cancel, struct err *err);

/* The zygote (machine_fork.c). Whether one is of use here, once the accelerator is known. */
bool machine_can_fork(struct machine_factory *f);
/* A machine of `zygote` that was warmed up: only machine_set_zygote(), destroy and free may
 * follow. */
int machine_freeze(struct machine *m, struct cancel *cancel, struct err *err);
/* From now on VMs are copies of this frozen machine, which stays the caller's, where they can be;
 * NULL: of none. Waits for copies under way. failed(arg) is called, from any thread and under the
 * factory's lock, when a copy came to nothing or the machine is out of date. */
void machine_set_zygote(struct machine_factory *f, struct machine *m, void (*failed)(void *arg),
                        void *arg);
bool machine_is_copy(const struct machine *m);
/* Takes over a VM of an earlier daemon: pidfd, QMP query-status, agent Hello. NOT_FOUND when it is
 * gone. */
struct machine *machine_adopt(struct machine_factory *f, const struct machine_spec *spec,
                              const struct machine_record *record,
                              const struct machine_callbacks *cb, struct cancel *cancel,
                              struct err *err);

/* Makes the VM as large as a pod of these limits needs, as in machine_spec; returns when the agent
 * has it. Memory that is no longer needed is asked back; vCPUs stay. */
int machine_resize(struct machine *m, const struct machine_spec *spec, struct cancel *cancel,
                   struct err *err);
/* Somebody works in the pod: a VM that gives back what it needs no more when it is idle (see
 * idle_seconds) waits for that much longer. One that was never used never does. */
void machine_used(struct machine *m);
/* Host CPUs and memory nodes of the VM ("0-3,8"); "": any. */
int machine_set_cpuset(struct machine *m, const char *cpus, const char *mems, struct err *err);
/* Host CPUs of each vCPU, within those of the VM; NULL: any of them. After each change of the VM's
 * cpuset or number of vCPUs. Nothing on the host. */
int machine_pin_vcpus(struct machine *m, char *const *lists, size_t n, struct cancel *cancel,
                      struct err *err);

void machine_get_record(struct machine *m, struct machine_record *out); /* deep copy */
struct link *machine_link(struct machine *m);                           /* borrowed */
bool machine_alive(struct machine *m);
enum backend machine_backend(const struct machine *m);
const char *machine_console_path(struct machine *m);
const char *machine_run_dir(struct machine *m);
/* Serial of the scratch disk for ConfigurePod. */
const char *machine_scratch_serial(struct machine *m);
/* The MAC that the guest's NIC has until the agent gives it the pod's: a clone's is its template's.
 * NULL: no NIC. Not known of an adopted machine (NULL): its agent has done that. */
const char *machine_guest_mac(struct machine *m);

/* A read-only disk whose contents are the parts one after the other: an erofs image and its layers'
 * data. Plugged in under `serial` (at most 20 bytes, [a-z0-9-]); already plugged: success. The fds
 * are borrowed. */
struct disk_part {
    int fd;
    uint64_t size; /* multiple of 4096 */
};
int machine_attach_image(struct machine *m, const char *serial, const struct disk_part *parts,
                         size_t n_parts, struct cancel *cancel, struct err *err);
/* The same on the host: a directory that holds the image's tree. It is not written to. */
int machine_attach_tree(struct machine *m, const char *serial, const char *dir, struct err *err);
/* A block device of the host as a disk; the fd, open for what the guest may do, is borrowed.
 * Serials of such disks begin so: the guest hands them to containers as they are. */
#define MACHINE_RAW_DISK "raw"
int machine_attach_device(struct machine *m, const char *serial, int fd, bool writable,
                          struct cancel *cancel, struct err *err);
/* DetachDisk in the guest, device_del, DEVICE_DELETED, blockdev-del. Unknown serial: success. */
int machine_detach_image(struct machine *m, const char *serial, struct cancel *cancel,
                         struct err *err);

/* Files' ids from 0 on are, in the guest, those from `uid` and `gid` on, and the other way round,
 * as an id-mapped mount does it: what is outside of them is nobody's, and cannot make files. n_uids
 * 0: ids are as they are. */
struct volume_ids {
    uint32_t uid, n_uids;
    uint32_t gid, n_gids;
};

/* A volume of huge pages (an emptyDir of medium HugePages): its pages are the guest's, so it is
 * empty at first and shared with nobody but the pod's containers. */
struct huge_volume {
    char name[32]; /* the same for all mounts of one; "": it is none */
    uint32_t mode, uid, gid;
};

/* A directory or file of the host that containers see live: over the `fs` channel, or as it is on
 * the host; or small ones that kubelet writes as a copy that follows within milliseconds. */
struct machine_volume {
    const char *source; /* absolute; links are followed; missing: a directory is made */
    bool readonly;
    bool recursive; /* read-only with all that is mounted below it */
    bool slave;     /* what the host mounts below it later shows up too */
    bool shared;    /* and what the container mounts shows up there: BACKEND_HOST only */
    struct volume_ids ids;
    /* filled in */
    uint32_t nth;            /* in its owner's list */
    uint32_t id;             /* what the agent calls it */
    bool mirrored;           /* a copy in the guest's memory */
    struct huge_volume huge; /* with a name: a hugetlbfs of the guest's */
    bool file;               /* no directory */
    bool all_readonly;       /* nothing below it can be written to */
};
struct machine_owned_volume {
    const char *owner;
    struct machine_volume v;
};
/* All or none. `owner` names them for machine_remove_volumes(): a container's id. */
int machine_add_volumes(struct machine *m, const char *owner, struct machine_volume *v, size_t n,
                        struct cancel *cancel, struct err *err);
/* Once the guest has unmounted them. Unknown owner: success. */
int machine_remove_volumes(struct machine *m, const char *owner, struct cancel *cancel,
                           struct err *err);

/* What the VM with all its helpers has used of the host: guest and hypervisor together. */
struct machine_usage {
    bool has_cpu, has_memory;                              /* the host accounts for it */
    uint64_t cpu_ns;                                       /* since the VM's start */
    uint64_t memory_usage, memory_working_set, memory_rss; /* bytes */
    uint64_t page_faults, major_faults;
};
int machine_usage(struct machine *m, struct machine_usage *out, struct err *err);
/* "running", "stopped" (SIGSTOP), ...: the state of the hypervisor's process, for people who wonder
 * why a guest is silent. */
const char *machine_process_state(struct machine *m);

/* Kills the VM, which nothing of it outlives; frees cgroup, jail, uid, sockets, scratch disk; keeps
 * nothing. Works on a dead machine.
 */
int machine_destroy(struct machine *m, struct cancel *cancel, struct err *err);
/* The same for a machine known only from its record (VM not adoptable), or, with record NULL, only
 * from the sandbox's id (the daemon died before it could record the machine). */
int machine_destroy_record(struct machine_factory *f, const char *sandbox_id,
                           const struct machine_record *record, struct cancel *cancel,
                           struct err *err);
/* Lets go of the handle without touching the VM. NULL is fine. */
void machine_free(struct machine *m);

/* Collects what no sandbox in `ids` owns: QEMU processes of ours, run and state directories,
 * cgroups. */
int machine_collect(struct machine_factory *f, const char *const *ids, size_t n_ids,
                    struct err *err);

#endif
