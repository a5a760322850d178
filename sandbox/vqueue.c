#include "sandbox/vqueue.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/virtio_ring.h>

#include "base/cleanup.h"

/* --- memory --- */

int vmem_add(struct vmem *m, uint64_t guest, uint64_t size, uint64_t user, uint64_t offset, int fd,
             struct err *err)
{
    if (m->n == VMEM_REGIONS)
        return err_set(err, ERR_EXHAUSTED, "more than %d memory regions", VMEM_REGIONS);
    if (size == 0 || size > SIZE_MAX - offset || guest + size < guest || user + size < user)
        return err_set(err, ERR_INVALID, "a memory region without sense");
    struct stat st;
    if (fstat(fd, &st) < 0 || (uint64_t)st.st_size < offset + size)
        return err_set(err, ERR_INVALID, "a memory region larger than its file");
    /* offsets need not be page aligned; the mapping starts where the file does */
    size_t map_size = (size_t)(offset + size);
    void *map = mmap(NULL, map_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) // NOLINT(performance-no-int-to-ptr)
        return err_sys(err, errno, "map the guest's memory");
    m->region[m->n++] = (struct vmem_region){.guest = guest,
                                             .size = size,
                                             .user = user,
                                             .at = (uint8_t *)map + offset,
                                             .map = map,
                                             .map_size = map_size};
    return 0;
}

void vmem_clear(struct vmem *m)
{
    for (size_t i = 0; i < m->n; i++)
        (void)munmap(m->region[i].map, m->region[i].map_size);
    *m = (struct vmem){0};
}

void *vmem_guest(const struct vmem *m, uint64_t address, uint64_t size)
{
    for (size_t i = 0; i < m->n; i++) {
        const struct vmem_region *r = &m->region[i];
        if (address >= r->guest && address - r->guest < r->size &&
            size <= r->size - (address - r->guest))
            return r->at + (address - r->guest);
    }
    return NULL;
}

void *vmem_user(const struct vmem *m, uint64_t address, uint64_t size)
{
    for (size_t i = 0; i < m->n; i++) {
        const struct vmem_region *r = &m->region[i];
        if (address >= r->user && address - r->user < r->size &&
            size <= r->size - (address - r->user))
            return r->at + (address - r->user);
    }
    return NULL;
}

/* --- rings --- */

void vqueue_clear(struct vqueue *r)
{
    cleanup_closep(&r->kick);
    cleanup_closep(&r->call);
    *r = (struct vqueue)VQUEUE_INIT;
}

bool vqueue_map(struct vqueue *r, const struct vmem *m)
{
    size_t n = r->num;
    r->desc = r->avail = r->used = NULL;
    r->broken = false;
    if (n == 0 || n > VQUEUE_MAX || (n & (n - 1)) != 0)
        return false;
    void *desc = vmem_user(m, r->desc_at, n * sizeof(struct vring_desc));
    /* flags, index, the entries, and the other side's event index */
    void *avail = vmem_user(m, r->avail_at, 4 + 2 * n + 2);
    void *used = vmem_user(m, r->used_at, 4 + n * sizeof(struct vring_used_elem) + 2);
    if (desc == NULL || avail == NULL || used == NULL || (uintptr_t)desc % 16 != 0 ||
        (uintptr_t)avail % 2 != 0 || (uintptr_t)used % 4 != 0)
        return false;
    r->desc = desc;
    r->avail = avail;
    r->used = used;
    (void)memcpy(&r->last_used, (uint8_t *)used + 2, sizeof(r->last_used));
    r->signalled = r->last_used;
    return true;
}

bool vqueue_usable(const struct vqueue *r)
{
    return r->desc != NULL && r->enabled && !r->broken;
}

/* The guest writes these while we read: one access each, never two. */
static uint16_t load16(const void *at)
{
    return atomic_load_explicit((const _Atomic uint16_t *)at, memory_order_acquire);
}

static void store16(void *at, uint16_t v)
{
    atomic_store_explicit((_Atomic uint16_t *)at, v, memory_order_release);
}

static uint8_t *avail_entry(const struct vqueue *r, uint16_t i)
{
    return (uint8_t *)r->avail + 4 + 2 * (size_t)(i % r->num);
}

/* The guest's word on when it wants an interrupt, behind the available entries. */
static uint16_t used_event(const struct vqueue *r)
{
    return load16((uint8_t *)r->avail + 4 + 2 * (size_t)r->num);
}

static void set_avail_event(const struct vqueue *r, uint16_t v)
{
    store16((uint8_t *)r->used + 4 + sizeof(struct vring_used_elem) * r->num, v);
}

static bool add_segment(struct vchain *c, const struct vmem *m, const struct vring_desc *d)
{
    bool in = (d->flags & VRING_DESC_F_WRITE) != 0;
    void *at = vmem_guest(m, d->addr, d->len);
    if (at == NULL || c->n_out + c->n_in == VQUEUE_SEGMENTS || (!in && c->n_in > 0))
        return false;
    c->iov[c->n_out + c->n_in] = (struct iovec){.iov_base = at, .iov_len = d->len};
    if (in) {
        c->n_in++;
        c->in_bytes += d->len;
    } else {
        c->n_out++;
        c->out_bytes += d->len;
    }
    return true;
}

/* Follows the links of one table; at most `n` steps, so a loop ends. */
static bool walk(struct vchain *c, const struct vmem *m, const uint8_t *table, size_t n, size_t at,
                 bool indirect)
{
    for (size_t steps = 0; steps < n; steps++) {
        struct vring_desc d;
        if (at >= n)
            return false;
        (void)memcpy(&d, table + at * sizeof(d), sizeof(d));
        if (d.flags & VRING_DESC_F_INDIRECT) {
            size_t inner = d.len / sizeof(d);
            const uint8_t *t = vmem_guest(m, d.addr, d.len);
            return !indirect && t != NULL && d.len % sizeof(d) == 0 && inner > 0 &&
                   inner <= VQUEUE_MAX && walk(c, m, t, inner, 0, true);
        }
        if (!add_segment(c, m, &d))
            return false;
        if (!(d.flags & VRING_DESC_F_NEXT))
            return true;
        at = d.next;
    }
    return false;
}

int vqueue_pop(struct vqueue *r, const struct vmem *m, struct vchain *c)
{
    if (!vqueue_usable(r))
        return 0;
    uint16_t there = load16((uint8_t *)r->avail + 2);
    if (there == r->last_avail)
        return 0;
    c->head = load16(avail_entry(r, r->last_avail));
    c->n_out = c->n_in = 0;
    c->out_bytes = c->in_bytes = 0;
    if ((uint16_t)(there - r->last_avail) > r->num || c->head >= r->num ||
        !walk(c, m, r->desc, r->num, c->head, false)) {
        r->broken = true;
        return -1;
    }
    r->last_avail++;
    return 1;
}

void vqueue_unpop(struct vqueue *r)
{
    r->last_avail--;
}

void vqueue_push(struct vqueue *r, const struct vchain *c, uint32_t written)
{
    struct vring_used_elem e = {.id = c->head, .len = written};
    (void)memcpy((uint8_t *)r->used + 4 + sizeof(e) * (size_t)(r->last_used % r->num), &e,
                 sizeof(e));
    store16((uint8_t *)r->used + 2, ++r->last_used);
}

void vqueue_notify(struct vqueue *r)
{
    if (r->desc == NULL || r->last_used == r->signalled)
        return;
    atomic_thread_fence(memory_order_seq_cst);
    bool wanted = (load16(r->avail) & VRING_AVAIL_F_NO_INTERRUPT) == 0;
    if (r->event_idx)
        wanted = vring_need_event(used_event(r), r->last_used, r->signalled);
    r->signalled = r->last_used;
    if (wanted && r->call >= 0)
        (void)eventfd_write(r->call, 1);
}

bool vqueue_arm(struct vqueue *r)
{
    if (!vqueue_usable(r))
        return false;
    if (r->event_idx)
        set_avail_event(r, r->last_avail);
    atomic_thread_fence(memory_order_seq_cst);
    return load16((uint8_t *)r->avail + 2) != r->last_avail;
}
