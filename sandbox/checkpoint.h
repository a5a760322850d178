/*
 * checkpoint - a machine's VM as files: its RAM and device state, its scratch disk, and what its
 * guest knows of the host's files; and a new machine that goes on from there.
 *
 * The VM stands still while it is copied and goes on afterwards. What a copy must be made alike is
 * in struct machine_image, for the caller to keep; who reads one back from outside checks it with
 * machine_image_check() before anything else. Kernel and agent are in the RAM: only the daemon's
 * QEMU must be the same.
 *
 * A copy has its original's entropy, clock, MAC and names until the agent has been told otherwise
 * (BecomePod, ConfigurePod): its processes must have been frozen before the original was saved.
 *
 * Volumes are not copied. The guest's files in them are those of the same names in the volumes that
 * the new machine is given; what is missing there is stale to the guest, alone.
 *
 * Threads: as machine.h.
 */
#ifndef ASPIS_SANDBOX_CHECKPOINT_H
#define ASPIS_SANDBOX_CHECKPOINT_H

#include "sandbox/hypervisor.h"
#include "sandbox/machine.h"

struct machine_image {
    char qemu[128]; /* its version */
    char cpu[65];   /* under KVM, where the guest sees the host's: a digest of what it is */
    char accel[16]; /* "kvm", "tcg" */
    char transport[16];
    struct hv_shape shape;
    uint64_t scratch_bytes; /* virtual size of the disk */
    /* ids of volumes that the guest may have seen: up to here, and beyond MACHINE_MIRROR_FIRST for
     * those that are copied into it */
    uint32_t last_volume, last_mirror;
};

#define MACHINE_MIRROR_FIRST UINT32_C(0x80000000)

/* The pod cannot be saved as it is (PRECONDITION), whatever runs in it. */
int machine_checkpoint_check(struct machine *m, struct err *err);
/* What the guest calls the n volumes of an owner: fills in id, mirrored and file of each. */
int machine_find_volumes(struct machine *m, const char *owner, struct machine_volume *v, size_t n,
                         struct err *err);
/* Fills the empty files; the last stays empty when there are no volumes. `paused` (NULL: none) is
 * called while the VM stands still; an error of its own fails the whole. */
struct machine_files {
    int state, scratch, volumes;
};
int machine_checkpoint(struct machine *m, const struct machine_files *fd, struct machine_image *out,
                       int (*paused)(void *arg, struct err *err), void *arg, struct cancel *cancel,
                       struct err *err);

/* INVALID: it is none. */
int machine_image_check(const struct machine_image *i, struct err *err);
/* PRECONDITION: this host or daemon cannot run it, and why. */
int machine_restore_check(struct machine_factory *f, const struct machine_image *i,
                          struct err *err);

struct machine_restore {
    const struct machine_image *image;
    int state_fd, scratch_fd;    /* at their beginnings; borrowed */
    const struct hv_disk *disks; /* image->shape's, with parts */
    const char *guest_mac;       /* of the saved guest's NIC */
};
/* As machine_start(). */
struct machine *machine_restore(struct machine_factory *f, const struct machine_spec *spec,
                                const struct machine_restore *r, const struct machine_callbacks *cb,
                                struct cancel *cancel, struct err *err);

/* Can the source take the place of a saved volume that was a copy in the guest? PRECONDITION,
 * NOT_FOUND. */
int machine_check_mirror(const char *source, struct err *err);
/* Into a machine that was restored, before any other volume: ids, mirrored and file are as in the
 * saved one. volumes_fd: what machine_checkpoint() wrote there, at its beginning. On failure the
 * machine is to be ended. */
int machine_restore_volumes(struct machine *m, const struct machine_image *image, int volumes_fd,
                            const struct machine_owned_volume *list, size_t n,
                            struct cancel *cancel, struct err *err);

#endif
