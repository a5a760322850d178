#include "agent/uevent.h"

#include <errno.h>
#include <linux/netlink.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/log.h"
#include "base/str.h"

#define KERNEL_GROUP 1U
/* The kernel's own buffer for one message is 2 KiB (UEVENT_BUFFER_SIZE). */
#define MESSAGE_MAX 4096
#define RECEIVE_BUFFER (1 << 20)

struct uevent_listener {
    int fd;
    struct loop_source *source;
    uevent_fn fn;
    void *arg;
};

int uevent_parse(char *buf, size_t len, struct uevent *out)
{
    *out = (struct uevent){0};
    if (len == 0 || buf[len - 1] != '\0')
        return -1;
    /* The first string is a summary, "action@devpath"; everything in it comes again as a key. */
    const char *end = buf + len;
    const char *s = buf + strlen(buf) + 1;
    for (; s < end; s += strlen(s) + 1) {
        if (str_starts(s, "ACTION="))
            out->action = s + strlen("ACTION=");
        else if (str_starts(s, "DEVPATH="))
            out->devpath = s + strlen("DEVPATH=");
        else if (str_starts(s, "SUBSYSTEM="))
            out->subsystem = s + strlen("SUBSYSTEM=");
    }
    return out->action && out->devpath && out->subsystem ? 0 : -1;
}

static void readable(struct loop_source *src, uint32_t events, void *arg)
{
    struct uevent_listener *l = arg;
    (void)src;
    (void)events;
    for (;;) {
        char buf[MESSAGE_MAX];
        struct sockaddr_nl from;
        struct iovec iov = {.iov_base = buf, .iov_len = sizeof(buf)};
        struct msghdr msg = {
            .msg_name = &from, .msg_namelen = sizeof(from), .msg_iov = &iov, .msg_iovlen = 1};
        ssize_t n = recvmsg(l->fd, &msg, MSG_DONTWAIT);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            if (errno == ENOBUFS) {
                log_warn("device events were lost, looking at all devices");
                l->fn(l->arg, NULL);
                continue;
            }
            return;
        }
        struct uevent event;
        /* Only port 0 is the kernel; a process with CAP_NET_ADMIN could send to the group too. */
        if (msg.msg_namelen == sizeof(from) && from.nl_pid == 0 && !(msg.msg_flags & MSG_TRUNC) &&
            uevent_parse(buf, (size_t)n, &event) == 0)
            l->fn(l->arg, &event);
    }
}

struct uevent_listener *uevent_listen(struct loop *loop, uevent_fn fn, void *arg, struct err *err)
{
    auto_close int fd =
        socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);
    if (fd < 0) {
        err_sys(err, errno, "open the device event socket");
        return NULL;
    }
    int size = RECEIVE_BUFFER;
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
    struct sockaddr_nl addr = {.nl_family = AF_NETLINK, .nl_groups = KERNEL_GROUP};
    if (bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        err_sys(err, errno, "join the kernel's device events");
        return NULL;
    }
    struct uevent_listener *l = xcalloc(1, sizeof(*l));
    l->fd = fd;
    l->fn = fn;
    l->arg = arg;
    l->source = loop_add_fd(loop, fd, EPOLLIN, readable, l, err);
    if (l->source == NULL) {
        free(l);
        return NULL;
    }
    (void)take_fd(&fd);
    return l;
}

void uevent_listener_free(struct uevent_listener *l)
{
    if (l == NULL)
        return;
    loop_remove(l->source);
    (void)close(l->fd);
    free(l);
}
