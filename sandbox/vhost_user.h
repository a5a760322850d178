/*
 * vhost_user - the device's end of a vhost-user connection: QEMU tells where the guest's memory and
 * the rings are.
 *
 * Messages and their order: QEMU docs/interop/vhost-user. Offered: VIRTIO_F_VERSION_1, event index,
 * indirect descriptors; of the protocol's own features CONFIG and REPLY_ACK. There is no
 * reconnecting: the connection's end is the VM's end.
 *
 * Memory: owns the connection, the memory table and the rings. Threads: the loop's.
 */
#ifndef ASPIS_SANDBOX_VHOST_USER_H
#define ASPIS_SANDBOX_VHOST_USER_H

#include "base/loop.h"
#include "sandbox/vqueue.h"

#define VHOST_RINGS 2

struct vhost_user_callbacks {
    void (*kicked)(void *arg, unsigned ring); /* the guest has put something there */
    void (*reset)(void *arg); /* the driver went: what the device knew of the guest is void */
    void (*closed)(void *arg, const char *why); /* NULL: QEMU ended */
    void *arg;
};

struct vhost_user;
/* `config` is the device's configuration space, copied. Takes fd in any case. */
struct vhost_user *vhost_user_new(struct loop *loop, int fd, const void *config, size_t config_size,
                                  const struct vhost_user_callbacks *cb, struct err *err);
void vhost_user_free(struct vhost_user *v);
struct vqueue *vhost_user_ring(struct vhost_user *v, unsigned ring);
const struct vmem *vhost_user_memory(const struct vhost_user *v);

/* One message as it would come from QEMU; for vhost_user_new()'s own reading, and the fuzzer. fds
 * are taken. Negative: the connection has to end. */
int vhost_user_message(struct vhost_user *v, const void *data, size_t size, int *fds, size_t n_fds,
                       struct err *err);

#endif
