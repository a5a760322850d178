/*
 * warm - does once in a spare VM what every pod's VM does first, so that it is quick for the pod.
 *
 * A VM that was cloned has executed next to nothing: each piece of code that its guest comes to for
 * the first time is translated (under emulation; the translation is the QEMU process's own, so no
 * template can bring it along) and its memory is copied from the template's. warm_up() lets the
 * guest configure a network, mount its disks, take an image disk in and out, and make, start,
 * execute in, stop and remove a container of a small image of ours. Nothing of it stays: the VM
 * knows the id of its future pod and an empty scratch disk. What must be fresh for a pod (entropy,
 * clock, names) is set by that pod's own ConfigurePod, which comes later.
 *
 * Threads: warm_up() blocks; warm_event() is for the machine's on_event, on the control loop.
 */
#ifndef ASPIS_CRI_SPARE_WARM_H
#define ASPIS_CRI_SPARE_WARM_H

#include <pthread.h>
#include <stdint.h>

#include "base/cancel.h"
#include "base/err.h"
#include "sandbox/machine.h"

/* What the agent said meanwhile. */
struct warm_watch {
    pthread_mutex_t lock;
    uint64_t last_seq;
    unsigned exits;
    int changed_fd; /* eventfd */
};

int warm_watch_init(struct warm_watch *w, struct err *err);
void warm_watch_destroy(struct warm_watch *w);
void warm_event(struct warm_watch *w, const Aspis__Agent__V1__Event *event);

/* The image, in a memory file which is the caller's. */
int warm_image(struct disk_part *part, struct err *err);

/* id: the sandbox's. A machine on which it failed is good for nothing. */
int warm_up(struct machine *m, const char *id, const struct disk_part *image, struct warm_watch *w,
            struct cancel *cancel, struct err *err);

#endif
