#include "sandbox/sockets.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"

static int address(const char *path, const char *name, int *dir, struct sockaddr_un *sa,
                   struct err *err)
{
    *dir = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (*dir < 0)
        return err_sys(err, errno, "open %s", path);
    *sa = (struct sockaddr_un){.sun_family = AF_UNIX};
    (void)snprintf(sa->sun_path, sizeof(sa->sun_path), "/proc/self/fd/%d/%s", *dir, name);
    return 0;
}

static int make_socket(struct err *err)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        (void)err_sys(err, errno, "make socket");
    return fd;
}

int socket_listen_at(const char *path, const char *name, struct err *err)
{
    auto_close int dir = -1;
    auto_close int fd = make_socket(err);
    struct sockaddr_un sa;
    if (fd < 0 || address(path, name, &dir, &sa, err) < 0)
        return -1;
    if ((unlinkat(dir, name, 0) < 0 && errno != ENOENT) ||
        bind(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0 || listen(fd, 4) < 0)
        return err_sys(err, errno, "listen at %s/%s", path, name);
    return take_fd(&fd);
}

int socket_connect_at(const char *path, const char *name, struct err *err)
{
    auto_close int dir = -1;
    auto_close int fd = make_socket(err);
    struct sockaddr_un sa;
    if (fd < 0 || address(path, name, &dir, &sa, err) < 0)
        return -1;
    /* a unix socket connects at once or not at all; a full backlog of a stopped peer must not block
     */
    if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0 || connect(fd, (struct sockaddr *)&sa, sizeof(sa)) < 0)
        return err_sys(err, errno, "connect to %s/%s", path, name);
    return take_fd(&fd);
}
