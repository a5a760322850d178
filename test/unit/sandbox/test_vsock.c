/* The virtio socket device between a QEMU and a guest's driver that are both this test. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/virtio_ring.h>
#include <linux/virtio_vsock.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "sandbox/vhost_user.h"
#include "sandbox/vsock_dev.h"

#define CID 7
#define MEMORY MiB(1)
#define USER 0x10000000ULL /* where the hypervisor has the memory */
#define NUM 16
#define BUFFER KiB(4)

/* One ring's parts in the guest's memory. */
struct driver {
    uint64_t desc, avail, used, buffers;
    uint16_t next, seen;
};

struct world {
    struct loop *loop;
    struct vhost_user *vhost;
    struct vsock_dev *dev;
    uint8_t *memory;
    int kick[2], call[2];
    struct driver ring[2];
    bool closed;
};

static struct vqueue *ring(void *arg, unsigned which)
{
    return vhost_user_ring(((struct world *)arg)->vhost, which);
}

static const struct vmem *memory(void *arg)
{
    return vhost_user_memory(((struct world *)arg)->vhost);
}

static void kicked(void *arg, unsigned which)
{
    struct world *w = arg;
    if (w->dev != NULL)
        vsock_dev_kicked(w->dev, which);
}

static void reset(void *arg)
{
    struct world *w = arg;
    if (w->dev != NULL)
        vsock_dev_reset(w->dev);
}

static void closed(void *arg, const char *why)
{
    (void)why;
    ((struct world *)arg)->closed = true;
}

static int say(struct world *w, uint32_t request, const void *payload, uint32_t size, int fd)
{
    uint8_t m[512];
    uint32_t header[3] = {request, 1, size};
    int fds[1] = {fd};
    memcpy(m, header, sizeof(header));
    memcpy(m + sizeof(header), payload, size);
    int rc = vhost_user_message(w->vhost, m, sizeof(header) + size, fds, fd >= 0 ? 1 : 0, NULL);
    if (fds[0] >= 0)
        (void)close(fds[0]);
    return rc;
}

static void set_up_ring(struct world *w, uint32_t i)
{
    struct driver *d = &w->ring[i];
    d->desc = i * KiB(8);
    d->avail = d->desc + NUM * sizeof(struct vring_desc);
    d->used = d->desc + KiB(4);
    d->buffers = KiB(64) + i * KiB(128);
    uint32_t num[2] = {i, NUM};
    uint32_t base[2] = {i, 0};
    uint32_t enable[2] = {i, 1};
    struct {
        uint32_t ring, flags;
        uint64_t desc, used, avail, log;
    } addr = {i, 0, USER + d->desc, USER + d->used, USER + d->avail, 0};
    uint64_t which = i;
    w->kick[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    w->call[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    assert_int_equal(say(w, 8, num, sizeof(num), -1), 0);
    assert_int_equal(say(w, 10, base, sizeof(base), -1), 0);
    assert_int_equal(say(w, 9, &addr, sizeof(addr), -1), 0);
    assert_int_equal(say(w, 12, &which, sizeof(which), dup(w->kick[i])), 0);
    assert_int_equal(say(w, 13, &which, sizeof(which), dup(w->call[i])), 0);
    assert_int_equal(say(w, 18, enable, sizeof(enable), -1), 0);
}

static void post(struct world *w, uint32_t i, uint16_t head)
{
    struct driver *d = &w->ring[i];
    memcpy(w->memory + d->avail + 4 + 2 * (size_t)(d->next % NUM), &head, 2);
    d->next++;
    memcpy(w->memory + d->avail + 2, &d->next, 2);
    (void)eventfd_write(w->kick[i], 1);
}

static void describe(struct world *w, uint32_t i, uint16_t at, uint64_t addr, uint32_t len,
                     uint16_t flags, uint16_t next)
{
    struct vring_desc desc = {.addr = addr, .len = len, .flags = flags, .next = next};
    memcpy(w->memory + w->ring[i].desc + at * sizeof(desc), &desc, sizeof(desc));
}

static void give_buffers(struct world *w, uint16_t n)
{
    for (uint16_t i = 0; i < n; i++) {
        describe(w, VSOCK_RING_RX, i, w->ring[0].buffers + i * BUFFER, BUFFER, VRING_DESC_F_WRITE,
                 0);
        post(w, VSOCK_RING_RX, i);
    }
}

static void turn(struct world *w)
{
    for (int i = 0; i < 8; i++)
        loop_turn(w->loop, 0);
}

/* The next packet that the device has put into the rx ring, its buffer given back. */
static bool next_packet(struct world *w, struct virtio_vsock_hdr *h, char *data)
{
    struct driver *d = &w->ring[0];
    uint16_t there;
    turn(w);
    memcpy(&there, w->memory + d->used + 2, 2);
    if (there == d->seen)
        return false;
    struct vring_used_elem e;
    memcpy(&e, w->memory + d->used + 4 + sizeof(e) * (size_t)(d->seen % NUM), sizeof(e));
    d->seen++;
    memcpy(h, w->memory + d->buffers + e.id * BUFFER, sizeof(*h));
    assert_int_equal(e.len, sizeof(*h) + h->len);
    if (data != NULL)
        memcpy(data, w->memory + d->buffers + e.id * BUFFER + sizeof(*h), h->len);
    post(w, VSOCK_RING_RX, (uint16_t)e.id);
    return true;
}

static void guest_says(struct world *w, uint32_t from, uint32_t to, uint16_t op, uint32_t flags,
                       const void *data, uint32_t len, uint32_t alloc, uint32_t fwd)
{
    struct driver *d = &w->ring[1];
    uint16_t head = (uint16_t)(2 * (d->next % (NUM / 2)));
    struct virtio_vsock_hdr h = {.src_cid = CID,
                                 .dst_cid = 2,
                                 .src_port = from,
                                 .dst_port = to,
                                 .len = len,
                                 .type = VIRTIO_VSOCK_TYPE_STREAM,
                                 .op = op,
                                 .flags = flags,
                                 .buf_alloc = alloc,
                                 .fwd_cnt = fwd};
    uint64_t at = d->buffers + head * BUFFER;
    memcpy(w->memory + at, &h, sizeof(h));
    describe(w, VSOCK_RING_TX, head, at, sizeof(h), len > 0 ? VRING_DESC_F_NEXT : 0,
             (uint16_t)(head + 1));
    if (len > 0) {
        memcpy(w->memory + at + sizeof(h), data, len);
        describe(w, VSOCK_RING_TX, (uint16_t)(head + 1), at + sizeof(h), len, 0, 0);
    }
    post(w, VSOCK_RING_TX, head);
    turn(w);
}

static int set_up(void **state)
{
    struct world *w = test_calloc(1, sizeof(*w));
    uint64_t cid = CID;
    struct vhost_user_callbacks cb = {.kicked = kicked, .reset = reset, .closed = closed, .arg = w};
    struct vsock_dev_ring rings = {.ring = ring, .memory = memory, .arg = w};
    struct {
        uint32_t n, padding;
        uint64_t guest, size, user, offset;
    } table = {1, 0, 0, MEMORY, USER, 0};
    uint64_t features = (1ULL << 32) | (1ULL << 30) | (1ULL << VIRTIO_RING_F_EVENT_IDX);
    w->loop = loop_new(NULL);
    w->vhost = vhost_user_new(w->loop, -1, &cid, sizeof(cid), &cb, NULL);
    w->dev = vsock_dev_new(w->loop, CID, &rings, NULL);
    assert_non_null(w->dev);
    int fd = memfd_create("guest", MFD_CLOEXEC);
    assert_int_equal(ftruncate(fd, MEMORY), 0);
    w->memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(w->memory, MAP_FAILED);
    assert_int_equal(say(w, 2, &features, sizeof(features), -1), 0);
    assert_int_equal(say(w, 5, &table, sizeof(table), fd), 0);
    set_up_ring(w, VSOCK_RING_RX);
    set_up_ring(w, VSOCK_RING_TX);
    *state = w;
    return 0;
}

static int tear_down(void **state)
{
    struct world *w = *state;
    vsock_dev_free(w->dev);
    vhost_user_free(w->vhost);
    loop_free(w->loop);
    (void)munmap(w->memory, MEMORY);
    for (int i = 0; i < 2; i++) {
        (void)close(w->kick[i]);
        (void)close(w->call[i]);
    }
    test_free(w);
    return 0;
}

/* A client whose CONNECT the guest has accepted; *port is the device's. */
static int connected(struct world *w, uint32_t *port, uint32_t alloc)
{
    int pair[2];
    struct virtio_vsock_hdr h;
    char line[64] = "";
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    assert_int_equal(vsock_dev_client(w->dev, pair[0], NULL), 0);
    assert_int_equal(send(pair[1], "CONNECT 1024\n", 13, 0), 13);
    assert_true(next_packet(w, &h, NULL));
    assert_int_equal(h.op, VIRTIO_VSOCK_OP_REQUEST);
    assert_int_equal(h.dst_port, 1024);
    assert_int_equal(h.dst_cid, CID);
    assert_int_equal(h.src_cid, 2);
    assert_int_equal(h.buf_alloc, LIMIT_VSOCK_CREDIT);
    *port = h.src_port;
    guest_says(w, 1024, *port, VIRTIO_VSOCK_OP_RESPONSE, 0, NULL, 0, alloc, 0);
    assert_true(recv(pair[1], line, sizeof(line) - 1, 0) > 4);
    assert_memory_equal(line, "OK ", 3);
    return pair[1];
}

static void test_bytes_both_ways(void **state)
{
    struct world *w = *state;
    struct virtio_vsock_hdr h;
    char data[BUFFER];
    uint32_t port;
    uint64_t n;
    give_buffers(w, 8);
    int fd = connected(w, &port, 65536);
    assert_int_equal(send(fd, "to the guest", 12, 0), 12);
    assert_true(next_packet(w, &h, data));
    assert_int_equal(h.op, VIRTIO_VSOCK_OP_RW);
    assert_int_equal(h.len, 12);
    assert_memory_equal(data, "to the guest", 12);
    assert_int_equal(read(w->call[0], &n, sizeof(n)), sizeof(n)); /* it was interrupted */
    guest_says(w, 1024, port, VIRTIO_VSOCK_OP_RW, 0, "to the host", 11, 65536, 12);
    assert_int_equal(recv(fd, data, sizeof(data), 0), 11);
    assert_memory_equal(data, "to the host", 11);
    /* half-close, then the other half */
    assert_int_equal(shutdown(fd, SHUT_WR), 0);
    assert_true(next_packet(w, &h, NULL));
    assert_int_equal(h.op, VIRTIO_VSOCK_OP_SHUTDOWN);
    assert_int_equal(h.flags, VIRTIO_VSOCK_SHUTDOWN_SEND);
    assert_int_equal(h.fwd_cnt, 11);
    guest_says(w, 1024, port, VIRTIO_VSOCK_OP_RW, 0, "late", 4, 65536, 12);
    assert_int_equal(recv(fd, data, sizeof(data), 0), 4);
    guest_says(w, 1024, port, VIRTIO_VSOCK_OP_SHUTDOWN, 3, NULL, 0, 65536, 12);
    assert_int_equal(recv(fd, data, sizeof(data), 0), 0);
    assert_true(next_packet(w, &h, NULL));
    assert_int_equal(h.op, VIRTIO_VSOCK_OP_RST);
    (void)close(fd);
}

static void test_no_more_than_the_guest_has_room_for(void **state)
{
    struct world *w = *state;
    struct virtio_vsock_hdr h;
    char data[BUFFER];
    uint32_t port;
    give_buffers(w, 8);
    int fd = connected(w, &port, 10);
    assert_int_equal(send(fd, "0123456789abcdef", 16, 0), 16);
    assert_true(next_packet(w, &h, data));
    assert_int_equal(h.len, 10);
    assert_false(next_packet(w, &h, data));
    guest_says(w, 1024, port, VIRTIO_VSOCK_OP_CREDIT_UPDATE, 0, NULL, 0, 10, 10);
    assert_true(next_packet(w, &h, data));
    assert_int_equal(h.len, 6);
    assert_memory_equal(data, "abcdef", 6);
    (void)close(fd);
}

static void test_a_client_that_does_not_read(void **state)
{
    struct world *w = *state;
    struct virtio_vsock_hdr h;
    static const char block[BUFFER - 64];
    uint32_t port;
    bool was_reset = false;
    give_buffers(w, 8);
    int fd = connected(w, &port, 65536);
    /* a guest that ignores its credit: the connection ends, and what was kept is bounded */
    for (int i = 0; i < 400 && !was_reset; i++) {
        guest_says(w, 1024, port, VIRTIO_VSOCK_OP_RW, 0, block, sizeof(block), 65536, 0);
        while (next_packet(w, &h, NULL))
            was_reset |= h.op == VIRTIO_VSOCK_OP_RST;
    }
    assert_true(was_reset);
    (void)close(fd);
}

static void test_strangers_are_reset(void **state)
{
    struct world *w = *state;
    struct virtio_vsock_hdr h;
    unsigned n = 0;
    for (int i = 0; i < 3 * LIMIT_VSOCK_STRANGERS; i++)
        guest_says(w, 99, 5000 + (uint32_t)i, VIRTIO_VSOCK_OP_REQUEST, 0, NULL, 0, 0, 0);
    give_buffers(w, 8);
    while (next_packet(w, &h, NULL)) {
        assert_int_equal(h.op, VIRTIO_VSOCK_OP_RST);
        assert_int_equal(h.dst_port, 99);
        n++;
    }
    assert_int_equal(n, LIMIT_VSOCK_STRANGERS);
    /* a reset is not answered */
    guest_says(w, 99, 1, VIRTIO_VSOCK_OP_RST, 0, NULL, 0, 0, 0);
    assert_false(next_packet(w, &h, NULL));
}

static void test_refused_and_malformed_clients(void **state)
{
    struct world *w = *state;
    static const char *const bad[] = {"HELLO\n", "CONNECT x\n", "CONNECT 4294967296\n",
                                      "CONNECT 00000000000000000000000000000001\n", "\n"};
    struct virtio_vsock_hdr h;
    char c;
    int pair[2];
    give_buffers(w, 8);
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair),
                         0);
        assert_int_equal(vsock_dev_client(w->dev, pair[0], NULL), 0);
        assert_true(send(pair[1], bad[i], strlen(bad[i]), 0) > 0);
        assert_false(next_packet(w, &h, NULL));
        errno = 0;
        assert_true(recv(pair[1], &c, 1, 0) <= 0 && errno != EAGAIN);
        (void)close(pair[1]);
    }
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair), 0);
    assert_int_equal(vsock_dev_client(w->dev, pair[0], NULL), 0);
    assert_int_equal(send(pair[1], "CONNECT 1\n", 10, 0), 10);
    assert_true(next_packet(w, &h, NULL));
    guest_says(w, 1, h.src_port, VIRTIO_VSOCK_OP_RST, 0, NULL, 0, 0, 0);
    assert_int_equal(recv(pair[1], &c, 1, 0), 0);
    (void)close(pair[1]);
}

static void test_connections_are_bounded(void **state)
{
    struct world *w = *state;
    int pair[2];
    int kept[LIMIT_VSOCK_CONNECTIONS];
    for (int i = 0; i < LIMIT_VSOCK_CONNECTIONS; i++) {
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        assert_int_equal(vsock_dev_client(w->dev, pair[0], NULL), 0);
        kept[i] = pair[1];
    }
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(vsock_dev_client(w->dev, pair[0], NULL), -1);
    (void)close(pair[1]);
    for (int i = 0; i < LIMIT_VSOCK_CONNECTIONS; i++)
        (void)close(kept[i]);
}

/* Each leaves its ring broken and the device alive. */
static void test_hostile_rings(void **state)
{
    struct world *w = *state;
    enum { OUTSIDE, LOOP, HEAD, JUMP, NESTED, WRITE_FIRST, LENGTH, N_CASES };
    for (int i = 0; i < N_CASES; i++) {
        struct vqueue *q = ring(w, VSOCK_RING_TX);
        uint64_t at = w->ring[1].buffers;
        uint16_t head = 0;
        if (i == OUTSIDE)
            describe(w, 1, 0, MEMORY - 8, 64, 0, 0);
        else if (i == LOOP)
            describe(w, 1, 0, at, 8, VRING_DESC_F_NEXT, 0);
        else if (i == HEAD)
            head = NUM;
        else if (i == NESTED) {
            struct vring_desc inner = {.addr = at, .len = 16, .flags = VRING_DESC_F_INDIRECT};
            memcpy(w->memory + at, &inner, sizeof(inner));
            describe(w, 1, 0, at, sizeof(inner), VRING_DESC_F_INDIRECT, 0);
        } else if (i == WRITE_FIRST) {
            describe(w, 1, 0, at, 8, VRING_DESC_F_NEXT | VRING_DESC_F_WRITE, 1);
            describe(w, 1, 1, at, 8, 0, 0);
        } else if (i == LENGTH)
            describe(w, 1, 0, 8, UINT32_MAX, 0, 0);
        if (i == JUMP)
            w->ring[1].next = (uint16_t)(w->ring[1].next + NUM + 1);
        post(w, 1, head);
        turn(w);
        assert_true(q->broken);
        assert_false(vqueue_usable(q));
        /* the driver starts anew */
        uint32_t state_of[2] = {1, 0};
        memset(w->memory + w->ring[1].avail, 0, 4);
        memset(w->memory + w->ring[1].used, 0, 4);
        w->ring[1].next = 0;
        assert_int_equal(say(w, 11, state_of, sizeof(state_of), -1), 0);
        (void)close(w->kick[1]);
        (void)close(w->call[1]);
        set_up_ring(w, VSOCK_RING_TX);
        assert_true(vqueue_usable(q));
    }
}

static void test_messages_without_sense(void **state)
{
    struct world *w = *state;
    uint8_t m[600] = {0};
    uint32_t header[3] = {1, 1, 500};
    struct {
        uint32_t n, padding;
        uint64_t guest, size, user, offset;
    } table = {1, 0, 0, MEMORY, USER, 0};
    memcpy(m, header, sizeof(header));
    assert_int_equal(vhost_user_message(w->vhost, m, 5, NULL, 0, NULL), -1);
    assert_int_equal(vhost_user_message(w->vhost, m, sizeof(m), NULL, 0, NULL), -1);
    assert_int_equal(vhost_user_message(w->vhost, m, sizeof(header), NULL, 0, NULL), -1);
    assert_int_equal(say(w, 77, "", 0, -1), -1);
    /* a table with fewer descriptors than regions, and one larger than its file */
    assert_int_equal(say(w, 5, &table, sizeof(table), -1), -1);
    table.size = 2 * MEMORY;
    int fd = memfd_create("small", MFD_CLOEXEC);
    assert_int_equal(ftruncate(fd, MEMORY), 0);
    assert_int_equal(say(w, 5, &table, sizeof(table), fd), -1);
    /* a ring outside of the memory */
    struct {
        uint32_t ring, flags;
        uint64_t desc, used, avail, log;
    } addr = {0, 0, USER + MEMORY - 8, USER, USER, 0};
    assert_int_equal(say(w, 9, &addr, sizeof(addr), -1), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_bytes_both_ways, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_no_more_than_the_guest_has_room_for, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(test_a_client_that_does_not_read, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_strangers_are_reset, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_refused_and_malformed_clients, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_connections_are_bounded, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_hostile_rings, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_messages_without_sense, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
