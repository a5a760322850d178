#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <linux/vm_sockets.h>

#include "base/cleanup.h"
#include "sandbox/link_impl.h"

/* The guest is not there yet, or its channel is not: worth another try. */
static int not_yet(struct err *err, int sys_errno, const char *what)
{
    (void)err_sys(err, sys_errno, "connect %s", what);
    if (err != NULL)
        err->code = ERR_UNAVAILABLE;
    return -1;
}

static int dial_unix(const char *path, struct err *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    auto_close int fd = -1;

    if (path == NULL || strlen(path) >= sizeof(addr.sun_path))
        return err_set(err, ERR_INVALID, "link socket path is %s", path ? "too long" : "missing");
    memcpy(addr.sun_path, path, strlen(path));
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_sys(err, errno, "make link socket");
    if (connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0)
        return not_yet(err, errno, path);
    return take_fd(&fd);
}

/* "CONNECT <port>\n". The answer, "OK <number>\n", is not waited for: it passes as stale bytes
 * before the preamble's answer, and a guest that does not listen yet ends the connection. */
static int dial_hybrid(const char *path, enum link_channel ch, struct err *err)
{
    char line[32];
    int n = snprintf(line, sizeof(line), "CONNECT %u\n", LINK_VSOCK_PORT + (unsigned)ch);
    auto_close int fd = dial_unix(path, err);
    if (fd >= 0 && send(fd, line, (size_t)n, MSG_NOSIGNAL) != n)
        return not_yet(err, errno, path);
    return take_fd(&fd);
}

static int dial_vsock(uint32_t cid, enum link_channel ch, bool *connecting, struct err *err)
{
    struct sockaddr_vm addr = {
        .svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = LINK_VSOCK_PORT + (unsigned)ch};
    auto_close int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return err_sys(err, errno, "make vsock socket");
    if (connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0) {
        if (errno != EINPROGRESS)
            return not_yet(err, errno, "to the guest by vsock");
        *connecting = true;
    }
    return take_fd(&fd);
}

int link_dial_start(const struct link_transport *t, enum link_channel ch, bool *connecting,
                    struct err *err)
{
    *connecting = false;
    if (t->kind == LINK_UNIX)
        return dial_unix(t->path[ch], err);
    if (t->kind == LINK_HYBRID)
        return dial_hybrid(t->path[ch], ch, err);
    return dial_vsock(t->cid, ch, connecting, err);
}

int link_dial(const struct link_transport *t, enum link_channel ch, struct err *err)
{
    bool connecting;
    auto_close int fd = link_dial_start(t, ch, &connecting, err);
    int so_error = 0;
    socklen_t len = sizeof(so_error);

    if (fd < 0 || !connecting)
        return take_fd(&fd);
    /* The kernel's own limit ends this (2 s). */
    if (cancel_poll(NULL, fd, POLLOUT, -1, err) < 0)
        return -1;
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &so_error, &len) < 0)
        so_error = errno;
    if (so_error != 0)
        return not_yet(err, so_error, "to the guest by vsock");
    return take_fd(&fd);
}
