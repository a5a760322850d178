#include "sandbox/vhost_user.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/virtio_config.h>
#include <linux/virtio_ring.h>

#include "base/cleanup.h"
#include "base/str.h"

enum {
    GET_FEATURES = 1,
    SET_FEATURES = 2,
    SET_OWNER = 3,
    RESET_OWNER = 4,
    SET_MEM_TABLE = 5,
    SET_VRING_NUM = 8,
    SET_VRING_ADDR = 9,
    SET_VRING_BASE = 10,
    GET_VRING_BASE = 11,
    SET_VRING_KICK = 12,
    SET_VRING_CALL = 13,
    SET_VRING_ERR = 14,
    GET_PROTOCOL_FEATURES = 15,
    SET_PROTOCOL_FEATURES = 16,
    SET_VRING_ENABLE = 18,
    GET_CONFIG = 24,
};

#define F_PROTOCOL_FEATURES (UINT64_C(1) << 30)
#define FEATURES                                                                                   \
    ((UINT64_C(1) << VIRTIO_F_VERSION_1) | F_PROTOCOL_FEATURES |                                   \
     (UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX) | (UINT64_C(1) << VIRTIO_RING_F_INDIRECT_DESC))
#define PROTOCOL_REPLY_ACK (UINT64_C(1) << 3)
#define PROTOCOL_CONFIG (UINT64_C(1) << 9)

#define FLAG_VERSION 1U
#define FLAG_REPLY 4U
#define FLAG_NEED_REPLY 8U
#define RING_NO_FD 0x100U

struct header {
    uint32_t request, flags, size;
};

struct wire_region {
    uint64_t guest, size, user, offset;
};

struct wire_table {
    uint32_t n, padding;
    struct wire_region region[VMEM_REGIONS];
};

struct wire_state {
    uint32_t ring, value;
};

struct wire_addr {
    uint32_t ring, flags;
    uint64_t desc, used, avail, log;
};

#define CONFIG_MAX 64
struct wire_config {
    uint32_t offset, size, flags;
    uint8_t data[CONFIG_MAX];
};

union payload {
    uint64_t number;
    struct wire_table table;
    struct wire_state state;
    struct wire_addr addr;
    struct wire_config config;
};

struct kick {
    struct vhost_user *v;
    unsigned ring;
    struct loop_source *src;
};

struct vhost_user {
    struct loop *loop;
    int fd;
    struct loop_source *src;
    struct vhost_user_callbacks cb;
    uint8_t config[CONFIG_MAX];
    size_t config_size;
    struct vmem memory;
    struct vqueue ring[VHOST_RINGS];
    struct kick kick[VHOST_RINGS];
    uint64_t features;
    bool acks;
};

static void on_message(struct loop_source *src, uint32_t events, void *arg);

struct vhost_user *vhost_user_new(struct loop *loop, int fd, const void *config, size_t config_size,
                                  const struct vhost_user_callbacks *cb, struct err *err)
{
    struct vhost_user *v = xcalloc(1, sizeof(*v));
    v->loop = loop;
    v->fd = fd;
    v->cb = *cb;
    v->config_size = config_size < CONFIG_MAX ? config_size : CONFIG_MAX;
    memcpy(v->config, config, v->config_size);
    for (unsigned i = 0; i < VHOST_RINGS; i++) {
        v->ring[i] = (struct vqueue)VQUEUE_INIT;
        v->kick[i] = (struct kick){.v = v, .ring = i};
    }
    v->src = fd >= 0 ? loop_add_fd(loop, fd, EPOLLIN, on_message, v, err) : NULL;
    if (fd >= 0 && v->src == NULL) {
        vhost_user_free(v);
        return NULL;
    }
    return v;
}

static void drop_kick(struct kick *k)
{
    loop_remove(k->src);
    k->src = NULL;
}

void vhost_user_free(struct vhost_user *v)
{
    if (v == NULL)
        return;
    loop_remove(v->src);
    for (unsigned i = 0; i < VHOST_RINGS; i++) {
        drop_kick(&v->kick[i]);
        vqueue_clear(&v->ring[i]);
    }
    vmem_clear(&v->memory);
    cleanup_closep(&v->fd);
    free(v);
}

struct vqueue *vhost_user_ring(struct vhost_user *v, unsigned ring)
{
    return &v->ring[ring];
}

const struct vmem *vhost_user_memory(const struct vhost_user *v)
{
    return &v->memory;
}

static void on_kick(struct loop_source *src, uint32_t events, void *arg)
{
    struct kick *k = arg;
    uint64_t n;
    (void)src;
    (void)events;
    if (read(k->v->ring[k->ring].kick, &n, sizeof(n)) < 0 && errno != EAGAIN)
        drop_kick(k); /* no eventfd: it would be readable for ever */
    k->v->cb.kicked(k->v->cb.arg, k->ring);
}

/* --- one request each; `p` is as long as the message said, the rest zero --- */

static int set_memory(struct vhost_user *v, const union payload *p, size_t size, int *fds,
                      size_t n_fds, struct err *err)
{
    size_t n = p->table.n;
    if (n > VMEM_REGIONS || n != n_fds || size < 8 + n * sizeof(struct wire_region))
        return err_set(err, ERR_INVALID, "memory table: %zu regions with %zu descriptors", n,
                       n_fds);
    vmem_clear(&v->memory);
    for (size_t i = 0; i < n; i++) {
        const struct wire_region *r = &p->table.region[i];
        if (vmem_add(&v->memory, r->guest, r->size, r->user, r->offset, fds[i], err) < 0)
            return -1;
    }
    /* a memory hot-plug moves the rings under us */
    for (unsigned i = 0; i < VHOST_RINGS; i++) {
        if (v->ring[i].desc != NULL && !vqueue_map(&v->ring[i], &v->memory))
            return err_set(err, ERR_INVALID, "ring %u is outside of the new memory", i);
    }
    return 0;
}

static struct vqueue *ring_of(struct vhost_user *v, uint32_t ring)
{
    return ring < VHOST_RINGS ? &v->ring[ring] : NULL;
}

static int set_address(struct vhost_user *v, const struct wire_addr *a, struct err *err)
{
    struct vqueue *r = ring_of(v, a->ring);
    if (r == NULL)
        return 0; /* the event ring is QEMU's own business */
    r->desc_at = a->desc;
    r->avail_at = a->avail;
    r->used_at = a->used;
    if (!vqueue_map(r, &v->memory))
        return err_set(err, ERR_INVALID, "ring %u is outside of the guest's memory", a->ring);
    return 0;
}

static int set_kick(struct vhost_user *v, uint64_t number, int *fd, struct err *err)
{
    uint32_t ring = number & 0xff;
    struct vqueue *r = ring_of(v, ring);
    if (r == NULL)
        return 0;
    drop_kick(&v->kick[ring]);
    cleanup_closep(&r->kick);
    if ((number & RING_NO_FD) || fd == NULL)
        return err_set(err, ERR_UNIMPLEMENTED, "ring %u without a kick descriptor", ring);
    r->kick = take_fd(fd);
    r->event_idx = (v->features & (UINT64_C(1) << VIRTIO_RING_F_EVENT_IDX)) != 0;
    if (!(v->features & F_PROTOCOL_FEATURES))
        r->enabled = true;
    v->kick[ring].src = loop_add_fd(v->loop, r->kick, EPOLLIN, on_kick, &v->kick[ring], err);
    return v->kick[ring].src != NULL ? 0 : -1;
}

static void set_call(struct vhost_user *v, uint64_t number, int *fd)
{
    struct vqueue *r = ring_of(v, number & 0xff);
    if (r == NULL)
        return;
    cleanup_closep(&r->call);
    if (!(number & RING_NO_FD) && fd != NULL)
        r->call = take_fd(fd);
}

static void stop_ring(struct vhost_user *v, uint32_t ring)
{
    struct vqueue *r = ring_of(v, ring);
    if (r == NULL)
        return;
    drop_kick(&v->kick[ring]);
    cleanup_closep(&r->kick);
    r->desc = r->avail = r->used = NULL;
    v->cb.reset(v->cb.arg);
}

static void get_config(const struct vhost_user *v, union payload *p)
{
    uint32_t size = p->config.size;
    uint32_t offset = p->config.offset;
    memset(p->config.data, 0, sizeof(p->config.data));
    if (offset > v->config_size || size > v->config_size - offset)
        p->config.size = 0; /* as the protocol says no */
    else
        memcpy(p->config.data, v->config + offset, size);
}

static int reply(struct vhost_user *v, uint32_t request, const void *data, size_t size,
                 struct err *err)
{
    struct header h = {request, FLAG_VERSION | FLAG_REPLY, (uint32_t)size};
    __extension__ struct iovec iov[2] = {{&h, sizeof(h)}, {(void *)(uintptr_t)data, size}};
    struct msghdr m = {.msg_iov = iov, .msg_iovlen = 2};
    if (v->fd < 0)
        return 0;
    if (sendmsg(v->fd, &m, MSG_NOSIGNAL) != (ssize_t)(sizeof(h) + size))
        return err_sys(err, errno, "answer QEMU");
    return 0;
}

static int reply_number(struct vhost_user *v, uint32_t request, uint64_t n, struct err *err)
{
    return reply(v, request, &n, sizeof(n), err);
}

/* 1: answered; 0: not a question. */
static int handle(struct vhost_user *v, const struct header *h, union payload *p, int *fds,
                  size_t n_fds, struct err *err)
{
    struct vqueue *r = ring_of(v, p->state.ring);
    int *fd = n_fds > 0 ? fds : NULL;
    switch (h->request) {
    case GET_FEATURES:
        return reply_number(v, h->request, FEATURES, err) < 0 ? -1 : 1;
    case GET_PROTOCOL_FEATURES:
        return reply_number(v, h->request, PROTOCOL_REPLY_ACK | PROTOCOL_CONFIG, err) < 0 ? -1 : 1;
    case SET_PROTOCOL_FEATURES:
        v->acks = (p->number & PROTOCOL_REPLY_ACK) != 0;
        return 0;
    case SET_FEATURES:
        v->features = p->number;
        return 0;
    case SET_OWNER:
    case RESET_OWNER:
    case SET_VRING_ERR:
        return 0;
    case SET_MEM_TABLE:
        return set_memory(v, p, h->size, fds, n_fds, err);
    case SET_VRING_NUM:
        if (r != NULL)
            r->num = p->state.value <= VQUEUE_MAX ? (uint16_t)p->state.value : 0;
        return 0;
    case SET_VRING_ADDR:
        return set_address(v, &p->addr, err);
    case SET_VRING_BASE:
        if (r != NULL)
            r->last_avail = (uint16_t)p->state.value;
        return 0;
    case GET_VRING_BASE:
        p->state.value = r != NULL ? r->last_avail : 0;
        stop_ring(v, p->state.ring);
        return reply(v, h->request, &p->state, sizeof(p->state), err) < 0 ? -1 : 1;
    case SET_VRING_KICK:
        return set_kick(v, p->number, fd, err);
    case SET_VRING_CALL:
        set_call(v, p->number, fd);
        return 0;
    case SET_VRING_ENABLE:
        if (r != NULL) {
            r->enabled = p->state.value != 0;
            v->cb.kicked(v->cb.arg, p->state.ring); /* something may wait already */
        }
        return 0;
    case GET_CONFIG:
        get_config(v, p);
        return reply(v, h->request, &p->config, 12 + (size_t)p->config.size, err) < 0 ? -1 : 1;
    default:
        return err_set(err, ERR_UNIMPLEMENTED, "vhost-user request %" PRIu32, h->request);
    }
}

int vhost_user_message(struct vhost_user *v, const void *data, size_t size, int *fds, size_t n_fds,
                       struct err *err)
{
    struct header h;
    union payload p = {0};
    int rc = 0;
    if (size < sizeof(h) || size - sizeof(h) > sizeof(p))
        return err_set(err, ERR_INVALID, "a vhost-user message of %zu bytes", size);
    memcpy(&h, data, sizeof(h));
    if (h.size != size - sizeof(h) || (h.flags & 3U) != FLAG_VERSION)
        return err_set(err, ERR_INVALID, "a malformed vhost-user message");
    memcpy(&p, (const uint8_t *)data + sizeof(h), h.size);
    rc = handle(v, &h, &p, fds, n_fds, err);
    if (rc == 0 && (h.flags & FLAG_NEED_REPLY) && v->acks)
        rc = reply_number(v, h.request, 0, err);
    return rc < 0 ? -1 : 0;
}

/* --- the connection --- */

struct received {
    int fds[VMEM_REGIONS];
    size_t n;
};

static void close_received(struct received *r)
{
    for (size_t i = 0; i < r->n; i++)
        cleanup_closep(&r->fds[i]);
}

static void take_fds(struct msghdr *m, struct received *out)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < n && out->n < VMEM_REGIONS; i++)
            memcpy(&out->fds[out->n++], CMSG_DATA(c) + i * sizeof(int), sizeof(int));
    }
}

/* QEMU sends a header and its payload in one sendmsg(); the descriptors come with the header. */
static ssize_t receive(int fd, uint8_t *to, size_t room, struct received *r)
{
    union {
        struct cmsghdr align;
        uint8_t space[CMSG_SPACE(VMEM_REGIONS * sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = to, .iov_len = sizeof(struct header)};
    struct msghdr m = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control.space,
                       .msg_controllen = sizeof(control.space)};
    struct header h;
    ssize_t n = recvmsg(fd, &m, MSG_CMSG_CLOEXEC | MSG_WAITALL);
    if (n <= 0)
        return n;
    take_fds(&m, r);
    if ((size_t)n < sizeof(h) || (m.msg_flags & MSG_CTRUNC))
        return -1;
    memcpy(&h, to, sizeof(h));
    if (h.size > room - sizeof(h))
        return -1;
    if (h.size > 0 && recv(fd, to + sizeof(h), h.size, MSG_WAITALL) != (ssize_t)h.size)
        return -1;
    return (ssize_t)(sizeof(h) + h.size);
}

static void on_message(struct loop_source *src, uint32_t events, void *arg)
{
    struct vhost_user *v = arg;
    uint8_t data[sizeof(struct header) + sizeof(union payload)];
    struct received r = {.n = 0};
    auto_err struct err err = ERR_INIT;
    (void)src;
    (void)events;
    ssize_t n = receive(v->fd, data, sizeof(data), &r);
    if (n > 0 && vhost_user_message(v, data, (size_t)n, r.fds, r.n, &err) == 0) {
        close_received(&r);
        return;
    }
    close_received(&r);
    loop_remove(v->src);
    v->src = NULL;
    v->cb.closed(v->cb.arg, n == 0 ? NULL : n < 0 ? "the connection broke" : err_msg(&err));
}
