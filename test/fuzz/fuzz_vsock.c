/* A guest's memory, rings and packets as the virtio socket device finds them: the input is the
 * memory. One client is connected, so that packets for it can be found. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "sandbox/vsock_dev.h"

#define MEMORY 16384
#define RING_SIZE 2048

struct guest {
    struct vmem memory;
    struct vqueue ring[2];
};

static struct vqueue *ring(void *arg, unsigned which)
{
    return &((struct guest *)arg)->ring[which];
}

static const struct vmem *memory(void *arg)
{
    return &((struct guest *)arg)->memory;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct guest g = {.ring = {VQUEUE_INIT, VQUEUE_INIT}};
    struct vsock_dev_ring rings = {.ring = ring, .memory = memory, .arg = &g};
    auto_close int fd = memfd_create("guest", MFD_CLOEXEC);
    int pair[2];
    if (fd < 0 || ftruncate(fd, MEMORY) < 0 || vmem_add(&g.memory, 0, MEMORY, 0, 0, fd, NULL) < 0 ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
        abort();
    memcpy(g.memory.region[0].at, data, size < MEMORY ? size : MEMORY);
    for (unsigned i = 0; i < 2; i++) {
        g.ring[i].num = 16;
        g.ring[i].desc_at = (uint64_t)i * RING_SIZE;
        g.ring[i].avail_at = g.ring[i].desc_at + 16 * 16;
        g.ring[i].used_at = g.ring[i].avail_at + 64;
        g.ring[i].enabled = true;
        g.ring[i].event_idx = size > 0 && (data[size - 1] & 1) != 0;
        if (!vqueue_map(&g.ring[i], &g.memory))
            abort();
    }
    struct loop *loop = loop_new(NULL);
    struct vsock_dev *d = vsock_dev_new(loop, 3, &rings, NULL);
    if (loop == NULL || d == NULL || send(pair[1], "CONNECT 1024\nxyz", 16, 0) != 16 ||
        vsock_dev_client(d, pair[0], NULL) < 0)
        abort();
    loop_turn(loop, 0);
    vsock_dev_kicked(d, VSOCK_RING_TX);
    vsock_dev_kicked(d, VSOCK_RING_RX);
    loop_turn(loop, 0);
    (void)close(pair[1]);
    loop_turn(loop, 0);
    vsock_dev_free(d);
    loop_free(loop);
    vmem_clear(&g.memory);
    return 0;
}
