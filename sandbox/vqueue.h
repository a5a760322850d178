/*
 * vqueue - the device's side of split virtqueues in a guest's memory.
 *
 * The memory is the guest's and changes while we look at it: whatever a descriptor says is copied
 * once, checked against the memory table and bounded before it is used. A ring that says nonsense
 * is broken and stays so until it is set up again; nothing else suffers.
 *
 * Layout and notification rules: Virtio 1.1, 2.6 (split virtqueues, indirect descriptors, event
 * index). Little-endian hosts only, as the guests are.
 *
 * Memory: the table maps the files it is given and unmaps them in vmem_clear(). Threads: one.
 */
#ifndef ASPIS_SANDBOX_VQUEUE_H
#define ASPIS_SANDBOX_VQUEUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"

#define VMEM_REGIONS 8
#define VQUEUE_MAX 1024    /* descriptors of one queue */
#define VQUEUE_SEGMENTS 64 /* of one request */

struct vmem_region {
    uint64_t guest, size, user; /* guest-physical, bytes, address in the hypervisor */
    uint8_t *at;                /* here */
    void *map;
    size_t map_size;
};

struct vmem {
    struct vmem_region region[VMEM_REGIONS];
    size_t n;
};

/* Maps `size` bytes from `offset` of fd, which stays the caller's. */
int vmem_add(struct vmem *m, uint64_t guest, uint64_t size, uint64_t user, uint64_t offset, int fd,
             struct err *err);
void vmem_clear(struct vmem *m);
/* NULL unless the whole range lies in one region. */
void *vmem_guest(const struct vmem *m, uint64_t address, uint64_t size);
void *vmem_user(const struct vmem *m, uint64_t address, uint64_t size);

struct vqueue {
    uint16_t num;                        /* 0: not set up */
    uint64_t desc_at, avail_at, used_at; /* hypervisor's addresses, as told */
    void *desc, *avail, *used;           /* NULL until vqueue_map() */
    uint16_t last_avail, last_used, signalled;
    bool enabled, event_idx, broken;
    int kick, call; /* eventfds, -1: none; owned */
};
#define VQUEUE_INIT                                                                                \
    {                                                                                              \
        .kick = -1, .call = -1                                                                     \
    }

void vqueue_clear(struct vqueue *r);
/* Finds the three parts in the memory table; false when they are not there. */
bool vqueue_map(struct vqueue *r, const struct vmem *m);
bool vqueue_usable(const struct vqueue *r);

/* One request of the guest's: what it gives to read, then what it gives to fill. */
struct vchain {
    uint16_t head;
    struct iovec iov[VQUEUE_SEGMENTS];
    size_t n_out, n_in; /* iov[0..n_out) to read, then n_in to fill */
    size_t out_bytes, in_bytes;
};
/* 1 with a chain, 0 when there is none, -1 when the ring has just broken. */
int vqueue_pop(struct vqueue *r, const struct vmem *m, struct vchain *c);
/* Takes back the last vqueue_pop(). */
void vqueue_unpop(struct vqueue *r);
/* Done with a chain, of whose second part `written` bytes were filled. */
void vqueue_push(struct vqueue *r, const struct vchain *c, uint32_t written);
/* Interrupts the guest if it wants to know of what was pushed. */
void vqueue_notify(struct vqueue *r);
/* Asks for a kick when something comes; true when something has come meanwhile. */
bool vqueue_arm(struct vqueue *r);

#endif
