/*
 * A connection's way: HELLO (the client says which port) -> ASKED (the guest was asked) -> OPEN ->
 * gone. What has to be said to the guest is kept as flags of the connection, never as a queue, and
 * sent when the guest has given room for it: so no client and no guest can make us hold more than
 * LIMIT_VSOCK_CONNECTIONS times LIMIT_VSOCK_CREDIT bytes.
 */
#include "sandbox/vsock_dev.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <linux/virtio_vsock.h>
#include <linux/vm_sockets.h>

#define HASH_FUNCTION HASH_FNV /* clang warns of the default one */
#include <uthash.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/limits.h"
#include "base/str.h"

#define FIRST_PORT 0x40000000U
#define HELLO_MAX 24 /* "CONNECT 4294967295\n" */
/* Of one packet to the guest: Linux guests offer buffers of 4 KiB, others may more. */
#define PACKET_MAX KiB(64)
/* Packets of the guest's handled in one go before the loop gets its turn. */
#define TX_BATCH 64

enum state { HELLO, ASKED, OPEN };

struct conn {
    struct vsock_dev *d;
    enum state state;
    int fd;
    struct loop_source *src;
    uint32_t events; /* what src waits for */
    uint32_t port;   /* ours: the key */
    uint32_t guest_port;
    char hello[HELLO_MAX];
    size_t hello_len;
    struct buf out; /* of the guest's, not yet taken by the client */
    /* to be said to the guest */
    bool ask, credit, end, reset;
    bool client_ended; /* nothing more comes from the client */
    bool hung_up;      /* the client is gone; what it sent last may wait in the socket */
    bool guest_ended;  /* nothing more comes from the guest */
    uint32_t guest_alloc, guest_fwd; /* the guest's buffer, and what it took of it */
    uint32_t sent;                   /* bytes of ours, ever */
    uint32_t taken, told; /* the guest's bytes that the client took; the last we said of it */
    bool waiting;         /* in d->ready */
    UT_hash_handle hh;
    TAILQ_ENTRY(conn) link;
};

/* A packet out of nowhere is answered with a reset; of the newest ones, that is. */
struct stranger {
    uint32_t src_port, dst_port;
};

struct vsock_dev {
    struct loop *loop;
    uint64_t cid;
    struct vsock_dev_ring rings;
    struct conn *conns;       /* by port */
    TAILQ_HEAD(, conn) ready; /* have something for the guest, first come first served */
    uint32_t next_port;
    struct stranger strangers[LIMIT_VSOCK_STRANGERS];
    unsigned n_strangers;
    struct loop_source *later; /* the rest of a batch */
};

static void send_all(struct vsock_dev *d);

/* --- connections --- */

static void free_conn(struct conn *c)
{
    struct vsock_dev *d = c->d;
    loop_remove(c->src);
    cleanup_closep(&c->fd);
    buf_clear(&c->out);
    if (c->waiting)
        TAILQ_REMOVE(&d->ready, c, link);
    HASH_DEL(d->conns, c);
    free(c);
}

static void want(struct conn *c)
{
    if (c->waiting)
        return;
    c->waiting = true;
    TAILQ_INSERT_TAIL(&c->d->ready, c, link);
}

static uint32_t guest_room(const struct conn *c)
{
    uint32_t in_flight = c->sent - c->guest_fwd;
    return c->guest_alloc > in_flight ? c->guest_alloc - in_flight : 0;
}

/* Waits for just what can be used: a descriptor nobody reads would spin. */
static void watch(struct conn *c)
{
    uint32_t events = 0;
    if (c->src == NULL)
        return;
    if (c->state == HELLO ||
        (c->state == OPEN && !c->client_ended && !c->waiting && guest_room(c) > 0))
        events |= EPOLLIN;
    if (c->out.len > 0)
        events |= EPOLLOUT;
    if (events != c->events && loop_set_events(c->src, events) == 0)
        c->events = events;
}

/* The client is gone or wrong: the guest is told, if it knows of the connection. */
static void drop(struct conn *c)
{
    if (c->state == HELLO) {
        free_conn(c);
        return;
    }
    loop_remove(c->src);
    c->src = NULL;
    cleanup_closep(&c->fd);
    buf_clear(&c->out);
    c->ask = c->credit = c->end = false;
    c->reset = true;
    want(c);
}

/* Both sides have said all: the connection ends by a reset, as the protocol has it. */
static bool over(const struct conn *c)
{
    return c->guest_ended && c->out.len == 0 && (c->client_ended || c->fd < 0);
}

static void flush(struct conn *c)
{
    while (c->out.len > 0 && c->fd >= 0) {
        ssize_t n = send(c->fd, c->out.data, c->out.len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EAGAIN) {
            drop(c);
            return;
        }
        if (n <= 0)
            break;
        buf_consume(&c->out, (size_t)n);
        c->taken += (uint32_t)n;
    }
    if (c->out.len == 0 && c->guest_ended)
        (void)shutdown(c->fd, SHUT_WR);
    /* a quarter of the window given back is worth a packet */
    if (c->taken - c->told >= LIMIT_VSOCK_CREDIT / 4) {
        c->credit = true;
        want(c);
    }
    if (over(c))
        drop(c);
}

/* Byte by byte: what follows the line is the connection's. 0: not yet, 1: c->hello is a line. */
static int read_line(struct conn *c)
{
    for (;;) {
        char *at = c->hello + c->hello_len;
        ssize_t n = recv(c->fd, at, 1, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return 0;
        if (n <= 0)
            return -1;
        if (*at == '\n') {
            *at = '\0';
            return 1;
        }
        if (++c->hello_len == HELLO_MAX)
            return -1;
    }
}

static void read_hello(struct conn *c)
{
    uint64_t port;
    int rc = read_line(c);
    if (rc == 0)
        return;
    if (rc < 0 || !str_starts(c->hello, "CONNECT ") || str_to_u64(c->hello + 8, &port) < 0 ||
        port > UINT32_MAX) {
        drop(c);
        return;
    }
    c->guest_port = (uint32_t)port;
    c->state = ASKED;
    c->ask = true;
    want(c);
}

static void on_client(struct loop_source *src, uint32_t events, void *arg)
{
    struct conn *c = arg;
    struct vsock_dev *d = c->d;
    (void)src;
    if (events & EPOLLOUT) {
        uint32_t port = c->port;
        flush(c);
        HASH_FIND(hh, d->conns, &port, sizeof(port), c);
        if (c == NULL || c->src == NULL) {
            send_all(d);
            return;
        }
    }
    if (c->state == HELLO) {
        read_hello(c);
    } else {
        if (events & (EPOLLHUP | EPOLLERR)) {
            /* reported whether it is asked for or not */
            c->hung_up = true;
            loop_remove(c->src);
            c->src = NULL;
        }
        want(c); /* read straight into the guest's buffers */
    }
    send_all(d);
}

int vsock_dev_client(struct vsock_dev *d, int fd, struct err *err)
{
    auto_close int owned = fd;
    if (HASH_COUNT(d->conns) >= LIMIT_VSOCK_CONNECTIONS)
        return err_set(err, ERR_EXHAUSTED, "%d connections to the guest", LIMIT_VSOCK_CONNECTIONS);
    struct conn *c = xcalloc(1, sizeof(*c));
    c->d = d;
    c->out = (struct buf)BUF_INIT(LIMIT_VSOCK_CREDIT);
    struct conn *other = NULL;
    do {
        c->port = d->next_port;
        d->next_port = d->next_port == UINT32_MAX ? FIRST_PORT : d->next_port + 1;
        HASH_FIND(hh, d->conns, &c->port, sizeof(c->port), other);
    } while (other != NULL);
    c->fd = take_fd(&owned);
    c->events = EPOLLIN;
    c->src = loop_add_fd(d->loop, c->fd, c->events, on_client, c, err);
    if (c->src == NULL) {
        cleanup_closep(&c->fd);
        free(c);
        return -1;
    }
    HASH_ADD(hh, d->conns, port, sizeof(c->port), c);
    return 0;
}

/* --- to the guest --- */

static struct virtio_vsock_hdr header(const struct vsock_dev *d, uint32_t from, uint32_t to,
                                      uint16_t op)
{
    return (struct virtio_vsock_hdr){.src_cid = VMADDR_CID_HOST,
                                     .dst_cid = d->cid,
                                     .src_port = from,
                                     .dst_port = to,
                                     .type = VIRTIO_VSOCK_TYPE_STREAM,
                                     .op = op,
                                     .buf_alloc = LIMIT_VSOCK_CREDIT};
}

/* Copies into a request's writable part from `offset` on; false when it does not fit. */
static bool scatter(const struct vchain *c, size_t offset, const void *data, size_t len)
{
    const uint8_t *from = data;
    for (size_t i = c->n_out; i < c->n_out + c->n_in && len > 0; i++) {
        size_t room = c->iov[i].iov_len;
        if (offset >= room) {
            offset -= room;
            continue;
        }
        size_t n = room - offset < len ? room - offset : len;
        memcpy((uint8_t *)c->iov[i].iov_base + offset, from, n);
        from += n;
        len -= n;
        offset = 0;
    }
    return len == 0;
}

static bool put_header(struct vqueue *r, const struct vchain *chain, struct conn *c,
                       struct virtio_vsock_hdr *h)
{
    if (c != NULL) {
        h->fwd_cnt = c->taken;
        c->told = c->taken;
        c->credit = false;
    }
    if (!scatter(chain, 0, h, sizeof(*h))) {
        vqueue_push(r, chain, 0);
        return false;
    }
    vqueue_push(r, chain, (uint32_t)sizeof(*h) + h->len);
    return true;
}

/* The client's bytes, read straight into the guest's buffer behind the header. -1: the client is at
 * its end or gone, 0: nothing now. */
static ssize_t read_into(struct conn *c, const struct vchain *chain)
{
    struct iovec iov[VQUEUE_SEGMENTS];
    size_t n = 0;
    size_t skip = sizeof(struct virtio_vsock_hdr);
    size_t room = guest_room(c) < PACKET_MAX ? guest_room(c) : PACKET_MAX;
    for (size_t i = chain->n_out; i < chain->n_out + chain->n_in && room > 0; i++) {
        struct iovec v = chain->iov[i];
        if (skip >= v.iov_len) {
            skip -= v.iov_len;
            continue;
        }
        v.iov_base = (uint8_t *)v.iov_base + skip;
        v.iov_len -= skip;
        skip = 0;
        if (v.iov_len > room)
            v.iov_len = room;
        room -= v.iov_len;
        iov[n++] = v;
    }
    if (n == 0)
        return 0;
    struct msghdr m = {.msg_iov = iov, .msg_iovlen = n};
    ssize_t got;
    do
        got = recvmsg(c->fd, &m, MSG_DONTWAIT);
    while (got < 0 && errno == EINTR);
    if (got < 0 && errno == EAGAIN)
        return 0;
    return got > 0 ? got : -1;
}

/* One packet of this connection's, if it has one; false: it has nothing to say now. */
static bool send_one(struct vsock_dev *d, struct vqueue *r, struct conn *c)
{
    struct vchain chain;
    struct virtio_vsock_hdr h;
    if (vqueue_pop(r, d->rings.memory(d->rings.arg), &chain) != 1)
        return false;
    h = header(d, c->port, c->guest_port, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
    if (c->reset) {
        h.op = VIRTIO_VSOCK_OP_RST;
        (void)put_header(r, &chain, c, &h);
        free_conn(c);
        return true;
    }
    if (c->ask) {
        h.op = VIRTIO_VSOCK_OP_REQUEST;
        c->ask = false;
    } else if (c->end) {
        h.op = VIRTIO_VSOCK_OP_SHUTDOWN;
        h.flags = VIRTIO_VSOCK_SHUTDOWN_SEND;
        c->end = false;
    } else if (c->state == OPEN && !c->client_ended && c->fd >= 0 && guest_room(c) > 0) {
        ssize_t n = read_into(c, &chain);
        if (n < 0 && c->hung_up) {
            vqueue_unpop(r);
            drop(c);
            return true;
        }
        if (n < 0) {
            c->client_ended = true;
            h.op = VIRTIO_VSOCK_OP_SHUTDOWN;
            h.flags = VIRTIO_VSOCK_SHUTDOWN_SEND;
        } else if (n > 0) {
            h.op = VIRTIO_VSOCK_OP_RW;
            h.len = (uint32_t)n;
            c->sent += (uint32_t)n;
        } else if (!c->credit) {
            vqueue_unpop(r);
            return false;
        }
    } else if (!c->credit) {
        vqueue_unpop(r);
        return false;
    }
    (void)put_header(r, &chain, c, &h);
    return true;
}

static bool send_stranger(struct vsock_dev *d, struct vqueue *r)
{
    struct vchain chain;
    if (vqueue_pop(r, d->rings.memory(d->rings.arg), &chain) != 1)
        return false;
    struct stranger s = d->strangers[--d->n_strangers];
    struct virtio_vsock_hdr h = header(d, s.dst_port, s.src_port, VIRTIO_VSOCK_OP_RST);
    (void)put_header(r, &chain, NULL, &h);
    return true;
}

/* In turns, a packet each, as long as the guest has given buffers. */
static void send_all(struct vsock_dev *d)
{
    struct vqueue *r = d->rings.ring(d->rings.arg, VSOCK_RING_RX);
    do {
        while (d->n_strangers > 0 && send_stranger(d, r))
            continue;
        while (!TAILQ_EMPTY(&d->ready) && vqueue_usable(r)) {
            struct conn *c = TAILQ_FIRST(&d->ready);
            uint32_t port = c->port;
            TAILQ_REMOVE(&d->ready, c, link);
            c->waiting = false;
            struct vchain probe;
            if (vqueue_pop(r, d->rings.memory(d->rings.arg), &probe) != 1) {
                c->waiting = true;
                TAILQ_INSERT_HEAD(&d->ready, c, link);
                break;
            }
            vqueue_unpop(r);
            bool said = send_one(d, r, c);
            HASH_FIND(hh, d->conns, &port, sizeof(port), c);
            if (c == NULL)
                continue;
            if (over(c) && !c->reset && c->state == OPEN)
                drop(c);
            else if (said)
                want(c); /* maybe more */
            else
                watch(c);
        }
    } while (vqueue_usable(r) && (!TAILQ_EMPTY(&d->ready) || d->n_strangers > 0) && vqueue_arm(r));
    vqueue_notify(r);
    struct conn *c;
    TAILQ_FOREACH(c, &d->ready, link)
    watch(c); /* the guest has no room for it now */
}

/* --- from the guest --- */

static void refuse(struct vsock_dev *d, const struct virtio_vsock_hdr *h)
{
    if (h->op == VIRTIO_VSOCK_OP_RST)
        return;
    if (d->n_strangers == LIMIT_VSOCK_STRANGERS)
        memmove(d->strangers, d->strangers + 1, --d->n_strangers * sizeof(*d->strangers));
    d->strangers[d->n_strangers++] = (struct stranger){h->src_port, h->dst_port};
}

static void accepted(struct conn *c)
{
    char line[32];
    int n = snprintf(line, sizeof(line), "OK %" PRIu32 "\n", c->port);
    c->state = OPEN;
    if (buf_append(&c->out, line, (size_t)n) < 0) {
        drop(c);
        return;
    }
    c->taken -= (uint32_t)n; /* the line is not the guest's */
    c->told = c->taken;
    flush(c);
}

/* Copies the payload behind the header out of the guest's memory. */
static bool gather(const struct vchain *chain, size_t len, struct buf *to)
{
    size_t skip = sizeof(struct virtio_vsock_hdr);
    for (size_t i = 0; i < chain->n_out && len > 0; i++) {
        struct iovec v = chain->iov[i];
        if (skip >= v.iov_len) {
            skip -= v.iov_len;
            continue;
        }
        size_t n = v.iov_len - skip < len ? v.iov_len - skip : len;
        if (buf_append(to, (const uint8_t *)v.iov_base + skip, n) < 0)
            return false; /* more than the credit it was given */
        skip = 0;
        len -= n;
    }
    return len == 0;
}

static void on_packet(struct vsock_dev *d, const struct vchain *chain)
{
    struct virtio_vsock_hdr h;
    uint8_t *to = (uint8_t *)&h;
    size_t left = sizeof(h);
    for (size_t i = 0; i < chain->n_out && left > 0; i++) {
        size_t n = chain->iov[i].iov_len < left ? chain->iov[i].iov_len : left;
        memcpy(to, chain->iov[i].iov_base, n);
        to += n;
        left -= n;
    }
    if (left > 0)
        return;
    struct conn *c = NULL;
    HASH_FIND(hh, d->conns, &h.dst_port, sizeof(h.dst_port), c);
    if (h.type != VIRTIO_VSOCK_TYPE_STREAM || h.src_cid != d->cid || h.dst_cid != VMADDR_CID_HOST ||
        c == NULL || c->state == HELLO || c->guest_port != h.src_port) {
        refuse(d, &h);
        return;
    }
    if (c->reset)
        return; /* it will hear of it */
    c->guest_alloc = h.buf_alloc;
    c->guest_fwd = h.fwd_cnt;
    switch (h.op) {
    case VIRTIO_VSOCK_OP_RESPONSE:
        if (c->state == ASKED)
            accepted(c);
        else
            drop(c);
        break;
    case VIRTIO_VSOCK_OP_RST:
        /* what it sent before is the client's all the same, as far as its socket takes it now */
        if (c->state == OPEN)
            flush(c);
        HASH_FIND(hh, d->conns, &h.dst_port, sizeof(h.dst_port), c);
        if (c != NULL)
            free_conn(c);
        return;
    case VIRTIO_VSOCK_OP_RW:
        if (c->state != OPEN || c->guest_ended || !gather(chain, h.len, &c->out))
            drop(c);
        else
            flush(c);
        break;
    case VIRTIO_VSOCK_OP_SHUTDOWN:
        if (h.flags & VIRTIO_VSOCK_SHUTDOWN_RCV)
            c->client_ended = true; /* nobody would read it */
        if (h.flags & VIRTIO_VSOCK_SHUTDOWN_SEND)
            c->guest_ended = true;
        flush(c);
        break;
    case VIRTIO_VSOCK_OP_CREDIT_REQUEST:
        c->credit = true;
        want(c);
        break;
    case VIRTIO_VSOCK_OP_CREDIT_UPDATE:
        break;
    default:
        drop(c);
        break;
    }
    HASH_FIND(hh, d->conns, &h.dst_port, sizeof(h.dst_port), c);
    if (c != NULL && c->hung_up && c->fd >= 0)
        want(c); /* nothing else would wake it */
    else if (c != NULL)
        watch(c);
}

static void receive_all(struct vsock_dev *d)
{
    struct vqueue *r = d->rings.ring(d->rings.arg, VSOCK_RING_TX);
    struct vchain chain;
    unsigned n = 0;
    do {
        while (n < TX_BATCH && vqueue_pop(r, d->rings.memory(d->rings.arg), &chain) == 1) {
            on_packet(d, &chain);
            vqueue_push(r, &chain, 0);
            n++;
        }
        vqueue_notify(r);
    } while (n < TX_BATCH && vqueue_arm(r));
    if (n == TX_BATCH)
        (void)loop_set_timer(d->later, 0);
}

static void on_later(struct loop_source *src, void *arg)
{
    (void)src;
    receive_all(arg);
    send_all(arg);
}

void vsock_dev_kicked(struct vsock_dev *d, unsigned ring)
{
    if (ring == VSOCK_RING_TX)
        receive_all(d);
    send_all(d);
}

void vsock_dev_reset(struct vsock_dev *d)
{
    struct conn *c;
    struct conn *next;
    d->n_strangers = 0;
    HASH_ITER(hh, d->conns, c, next) // NOLINT
    {
        if (c->state != HELLO)
            free_conn(c);
    }
}

struct vsock_dev *vsock_dev_new(struct loop *loop, uint64_t cid, const struct vsock_dev_ring *rings,
                                struct err *err)
{
    struct vsock_dev *d = xcalloc(1, sizeof(*d));
    d->loop = loop;
    d->cid = cid;
    d->rings = *rings;
    d->next_port = FIRST_PORT;
    TAILQ_INIT(&d->ready);
    d->later = loop_add_timer(loop, -1, on_later, d, err);
    if (d->later == NULL) {
        free(d);
        return NULL;
    }
    return d;
}

void vsock_dev_free(struct vsock_dev *d)
{
    if (d == NULL)
        return;
    struct conn *c;
    struct conn *next;
    HASH_ITER(hh, d->conns, c, next) // NOLINT
    free_conn(c);
    loop_remove(d->later);
    free(d);
}
