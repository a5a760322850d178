/*
 * checkpoint - a machine's VM as files: its RAM and device state, and its scratch disk; and a new
 * machine that goes on from there.
 *
 * The VM stands still while it is copied and goes on afterwards. What a copy must be made alike is
 * in struct machine_image, for the caller to keep; who reads one back from outside checks it with
 * machine_image_check() before anything else. Kernel and agent are in the RAM: only the daemon's
 * QEMU must be the same.
 *
 * A copy has its original's entropy, clock, MAC and names until the agent has been told otherwise
 * (BecomePod, ConfigurePod): its processes must have been frozen before the original was saved.
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
};

/* The pod cannot be saved as it is (PRECONDITION), whatever runs in it. */
int machine_checkpoint_check(struct machine *m, struct err *err);
/* Fills the two empty files. `paused` (NULL: none) is called while the VM stands still; an error of
 * its own fails the whole. */
int machine_checkpoint(struct machine *m, int state_fd, int scratch_fd, struct machine_image *out,
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

#endif
