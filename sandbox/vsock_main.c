/*
 * aspis-vsock - the virtio socket device of one VM, for hosts without /dev/vhost-vsock. Started by
 * qemu.c in a jail, before QEMU:
 *     aspis-vsock CID guest=NAME
 * Descriptor 3 is the vhost-user connection to QEMU, 4 the listening unix socket (vsock_dev.h).
 * NAME only shows in ps.
 *
 * It lives as long as its QEMU, which would never tell another one where the rings are.
 */
#include <errno.h>
#include <fcntl.h>
#include <seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "sandbox/lockdown.h"
#include "sandbox/vhost_user.h"
#include "sandbox/vsock_dev.h"

enum { QEMU_FD = 3, LISTEN_FD = 4 };

struct server {
    struct loop *loop;
    struct vhost_user *vhost;
    struct vsock_dev *dev;
    int status;
};

static struct vqueue *ring(void *arg, unsigned which)
{
    struct server *s = arg;
    return vhost_user_ring(s->vhost, which);
}

static const struct vmem *memory(void *arg)
{
    struct server *s = arg;
    return vhost_user_memory(s->vhost);
}

static void on_kicked(void *arg, unsigned which)
{
    struct server *s = arg;
    if (s->dev != NULL)
        vsock_dev_kicked(s->dev, which);
}

static void on_reset(void *arg)
{
    struct server *s = arg;
    if (s->dev != NULL)
        vsock_dev_reset(s->dev);
}

static void on_closed(void *arg, const char *why)
{
    struct server *s = arg;
    if (why != NULL)
        (void)fprintf(stderr, "vhost-user: %s\n", why);
    s->status = why != NULL;
    loop_stop(s->loop);
}

static void on_listener(struct loop_source *src, uint32_t events, void *arg)
{
    struct server *s = arg;
    auto_err struct err err = ERR_INIT;
    // cppcheck-suppress nullPointer
    int fd = accept4(LISTEN_FD, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    (void)src;
    (void)events;
    if (fd >= 0 && vsock_dev_client(s->dev, fd, &err) < 0)
        (void)fprintf(stderr, "%s\n", err_msg(&err));
}

static int run(struct server *s, uint64_t cid, struct err *err)
{
    static const int calls[] = {
        SCMP_SYS(read),      SCMP_SYS(write),   SCMP_SYS(recvmsg),    SCMP_SYS(recvfrom),
        SCMP_SYS(sendmsg),   SCMP_SYS(sendto),  SCMP_SYS(epoll_wait), SCMP_SYS(epoll_pwait),
        SCMP_SYS(epoll_ctl), SCMP_SYS(accept4), SCMP_SYS(shutdown),   SCMP_SYS(timerfd_settime),
        SCMP_SYS(newfstatat)};
    struct vhost_user_callbacks cb = {
        .kicked = on_kicked, .reset = on_reset, .closed = on_closed, .arg = s};
    struct vsock_dev_ring rings = {.ring = ring, .memory = memory, .arg = s};
    s->loop = loop_new(err);
    if (s->loop == NULL)
        return -1;
    s->vhost = vhost_user_new(s->loop, QEMU_FD, &cid, sizeof(cid), &cb, err);
    if (s->vhost == NULL)
        return -1;
    s->dev = vsock_dev_new(s->loop, cid, &rings, err);
    if (s->dev == NULL || loop_add_fd(s->loop, LISTEN_FD, EPOLLIN, on_listener, s, err) == NULL ||
        lock_down(calls, ARRAY_LEN(calls), err) < 0)
        return -1;
    loop_run(s->loop);
    return s->status != 0 ? err_set(err, ERR_UNAVAILABLE, "the connection to QEMU is over") : 0;
}

int main(int argc, char **argv)
{
    auto_err struct err err = ERR_INIT;
    struct server s = {.status = 0};
    uint64_t cid;
    if (argc != 3 || str_to_u64(argv[1], &cid) < 0 || cid < 3 || cid >= UINT32_MAX ||
        fcntl(QEMU_FD, F_GETFD) < 0 || fcntl(LISTEN_FD, F_SETFL, O_NONBLOCK) < 0) {
        (void)fputs("Usage: aspis-vsock CID guest=NAME\nPart of Aspis; started by aspisd.\n",
                    stderr);
        return 2;
    }
    (void)prctl(PR_SET_DUMPABLE, 0);
    (void)signal(SIGPIPE, SIG_IGN); // NOLINT(cert-err33-c)
    if (run(&s, cid, &err) < 0) {
        (void)fprintf(stderr, "%s\n", err_msg(&err));
        (void)fflush(stderr);
        _exit(1);
    }
    _exit(0); /* a leak checker has no /proc of ours to look into */
}
