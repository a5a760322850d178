/*
 * machine_internal - what the parts of machine share. Private to machine*.c and accel.c.
 */
#ifndef ASPIS_SANDBOX_MACHINE_INTERNAL_H
#define ASPIS_SANDBOX_MACHINE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/str.h"
#include "sandbox/checkpoint.h"
#include "sandbox/host_memory.h"
#include "sandbox/hypervisor.h"
#include "sandbox/link.h"
#include "sandbox/machine.h"
#include "sandbox/mirror_watch.h"
#include "sandbox/share.h"

#define SCRATCH_SERIAL "scratch"

struct machine_factory {
    struct machine_config config; /* strings owned */
    struct loop *control, *io;
    const struct hv_ops *hv;
    uint64_t host_memory_bytes;
    uint32_t host_vcpus;
    struct host_memory host_memory;
    char *pages_library;             /* NULL: not installed */
    char *trim_library, *absent_dir; /* the same */
    atomic_bool thrifty;      /* the hypervisor takes those two: found out with each template */
    enum transport transport; /* decided */
    const char *transport_reason;
    int64_t tsc_sample_ns; /* first reading of both clocks */
    uint64_t tsc_sample;

    pthread_mutex_t lock;       /* guards uids and the verdict's fields */
    uint8_t *uids;              /* one byte per uid of the pool: taken or not */
    enum accel accel;           /* AUTO: not decided */
    char *accel_reason;         /* replaced once, when decided; then fixed */
    char *accel_undecided_text; /* what it was before: others may still show it */
    pthread_mutex_t deciding;   /* held by who probes */

    char *fork_library;               /* as pages_library */
    pthread_rwlock_t zygote_lock;     /* read while its process is copied */
    struct machine *zygote;           /* frozen, borrowed; NULL: none */
    atomic_bool zygote_proven;        /* a spare is a copy of it */
    void (*zygote_failed)(void *arg); /* see machine_set_zygote() */
    void *zygote_arg;
    atomic_bool host_userns;         /* works: tried */
    struct template_pool *templates; /* NULL: none are wanted */
    struct mirror_watch *mirror_watch;
    char *spare_cgroup_root; /* of the VMs that have no pod yet */
};

/* One pod's VM size, from what CRI says (units as in machine_spec) and the configuration. */
struct machine_size {
    uint64_t memory_bytes, max_memory_bytes; /* multiples of 1 MiB */
    uint32_t vcpus, max_vcpus;
};
struct machine_size machine_size_for(const struct machine_config *config, uint64_t host_memory,
                                     uint32_t host_vcpus, uint64_t memory_limit, int64_t cpu_quota,
                                     uint64_t cpu_period);

/* The host's TSC frequency in kHz by comparing it with the clock since the factory was made; 0:
 * unknown. */
uint64_t machine_tsc_khz(const struct machine_factory *f);

/* Whether the hypervisor starts with what makes a VM need less; then what that is. */
void machine_try_libraries(struct machine_factory *f, struct cancel *cancel);
struct hv_libraries machine_libraries(const struct machine_factory *f);

/* Uids of the pool. take returns 0 with *err when all are in use. */
uint32_t machine_uid_take(struct machine_factory *f, struct err *err);
void machine_uid_mark(struct machine_factory *f, uint32_t uid);
void machine_uid_release(struct machine_factory *f, uint32_t uid);

/* A vsock context id nobody uses, found by asking the kernel; `seed` spreads the search. 0 with
 * *err: none. */
uint32_t machine_cid_find(struct machine_factory *f, uint32_t seed, struct err *err);

/* Kills the VM of one sandbox, found by its name, and removes its cgroup; none is fine. */
int machine_kill_stray(struct machine_factory *f, const char *id, struct cancel *cancel,
                       struct err *err);

/* The group that holds a pod's, which goes when it is empty. */
const char *machine_cgroup_root(const struct machine_factory *f, const char *cgroup);
char *machine_run_path(const struct machine_factory *f, const char *id);
char *machine_state_path(const struct machine_factory *f, const char *id);
/* Letters, digits and -_. of at most 128 bytes. */
int machine_check_id(const char *id, struct err *err);

struct machine_size machine_spec_size(const struct machine_factory *f,
                                      const struct machine_spec *spec);
/* Of a pod that asks for nothing, which is a template's. */
struct machine_size machine_base_size(const struct machine_factory *f);

/* What a VM of this size is to QEMU, but for what is made for one pod (uid, descriptors, names). */
struct hv_spec machine_hv_spec(const struct machine_factory *f, enum accel accel,
                               const struct machine_size *size);

struct machine_how {
    enum accel accel;
    int64_t timeout_ns;
    const struct hv_template *tpl;         /* NULL: an ordinary boot */
    const char *guest_mac;                 /* of tpl's NIC; NULL: the spec's */
    struct machine *fork_of;               /* a frozen machine to copy, or NULL */
    int fork_scratch_fd;                   /* its scratch disk */
    const struct machine_restore *restore; /* NULL: not from a saved VM */
};

/* checkpoint.c: the copy's scratch disk, opened. */
int machine_restore_scratch(const char *path, const struct machine_restore *r, struct err *err);

struct template;

struct machine {
    struct machine_factory *f;
    char *id, *run_dir, *state_dir, *console_path;
    char *guest_mac;             /* fixed once started; NULL: no NIC, or adopted */
    struct machine_callbacks cb; /* from when it has started: the control loop's */
    /* Fixed once started (the cgroup of a spare: once claimed), but for memory_bytes and vcpus,
     * which are under lock. */
    struct machine_record record;
    bool forked;              /* constant once started: a copy of a warmed-up VM */
    struct template *tpl;     /* what it is a clone of, or NULL */
    const struct hv_ops *ops; /* constant */
    struct hv *hv;            /* fixed once started; NULL before */
    struct share *share;      /* the same */
    struct mirror *mirror;    /* the same */

    pthread_mutex_t lock; /* guards the fields below */
    struct link *link;
    struct cancel *boot; /* fired at death while booting */
    bool started;
    bool dead;
    bool silent; /* machine_destroy() has begun: nobody is told of the death any more */
    char *reason;
    bool uid_taken;
    struct strv cgroup_dirs; /* once somebody asked for machine_usage() */

    pthread_mutex_t ending; /* held by machine_destroy() */

    /* machine_grow.c */
    pthread_mutex_t sizing; /* held while the size changes */
    struct cancel *stop;    /* fired when the handle goes */
    pthread_cond_t pressed; /* with lock */
    pthread_t grower;       /* runs from the first time that the guest ran short; under lock: */
    bool grower_runs, grower_ends;
    bool host_short;      /* changed under sizing by the grower: the host had no room for it */
    bool short_of_memory; /* the guest has said so and nothing was done yet */
    bool pinned;          /* the VM has a cpuset of its own, or may have; under sizing */
    bool vcpus_pinned;    /* apart from each other, or may be; under sizing */
    uint64_t huge_bytes;  /* of the guest's memory, to be kept as huge pages; under sizing */
    bool limited;         /* the pod has a memory limit, so its VM does not grow by itself */
};

static inline bool machine_on_host(const struct machine *m)
{
    return m->record.backend == BACKEND_HOST;
}

/* machine_facts.c */
int machine_check_alive(struct machine *m, struct err *err); /* UNAVAILABLE, with the reason */
void machine_copy_record(struct machine_record *to, const struct machine_record *from);

/* machine_end.c: machine_destroy() for who is alone with the handle. */
int machine_take_down(struct machine *m, struct cancel *cancel, struct err *err);

/* Boots, or clones; machine_start(), templates and the probe are this. */
struct machine *machine_boot(struct machine_factory *f, const struct machine_spec *spec,
                             const struct machine_how *how, const struct machine_callbacks *cb,
                             struct cancel *cancel, struct err *err);
/* Of a machine booted to become a template: has the agent do ahead what every clone would, lets its
 * link go and saves the device state. The scratch disk is then as the guest's memory knows it. Only
 * machine_destroy() and machine_free() may follow. */
int machine_save(struct machine *m, int state_fd, struct cancel *cancel, struct err *err);
char *machine_scratch_path(const struct machine *m); /* the caller's */

/* machine_fork.c: a copy of the zygote, or NULL when there is none that fits, or it failed. */
struct machine *machine_fork(struct machine_factory *f, const struct machine_spec *spec,
                             enum accel accel, const struct machine_callbacks *cb,
                             struct cancel *cancel);

/* accel.c: the verdict of an earlier daemon of this boot, for the same QEMU, kernel and initrd. */
void accel_load(struct machine_factory *f);

#endif
