/* What QEMU, taken over by its guest, could say to the virtio socket device: messages one after the
 * other, each with the descriptors that its first byte asks for. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "sandbox/vhost_user.h"

static void kicked(void *arg, unsigned ring)
{
    struct vchain c;
    struct vhost_user *v = *(struct vhost_user **)arg;
    if (v != NULL && ring < VHOST_RINGS &&
        vqueue_pop(vhost_user_ring(v, ring), vhost_user_memory(v), &c) == 1)
        vqueue_push(vhost_user_ring(v, ring), &c, 0);
}

static void reset(void *arg)
{
    (void)arg;
}

static void closed(void *arg, const char *why)
{
    (void)arg;
    (void)why;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct vhost_user *v = NULL;
    uint64_t cid = 3;
    struct loop *loop = loop_new(NULL);
    struct vhost_user_callbacks cb = {
        .kicked = kicked, .reset = reset, .closed = closed, .arg = &v};
    v = vhost_user_new(loop, -1, &cid, sizeof(cid), &cb, NULL);
    while (size > 2) {
        size_t n_fds = data[0] % 9;
        size_t len = data[1];
        int fds[8];
        data += 2;
        size -= 2;
        if (len > size)
            len = size;
        if (n_fds > 8)
            n_fds = 8;
        for (size_t i = 0; i < n_fds; i++) {
            fds[i] = (i & 1) == 0 ? memfd_create("m", MFD_CLOEXEC)
                                  : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
            if (fds[i] < 0 || ((i & 1) == 0 && ftruncate(fds[i], 65536) < 0))
                abort();
        }
        int rc = vhost_user_message(v, data, len, fds, n_fds, NULL);
        for (size_t i = 0; i < n_fds; i++) {
            if (fds[i] >= 0)
                (void)close(fds[i]);
        }
        data += len;
        size -= len;
        if (rc < 0)
            break;
        loop_turn(loop, 0);
    }
    vhost_user_free(v);
    loop_free(loop);
    return 0;
}
