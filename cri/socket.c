#include "cri/socket.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/cleanup.h"
#include "base/fs.h"

/* While it is not yet listening the socket has a longer name; see gserver_start(). */
#define SUFFIX_ROOM 16

int socket_check(const char *path, struct err *err)
{
    if (path[0] != '/')
        return err_set(err, ERR_INVALID, "socket `%s`: the path must be absolute", path);
    if (strlen(path) + SUFFIX_ROOM >= sizeof(((struct sockaddr_un *)NULL)->sun_path))
        return err_set(err, ERR_INVALID, "socket `%s`: the path is too long", path);
    struct stat st;
    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : err_sys(err, errno, "socket `%s`", path);
    if (!S_ISSOCK(st.st_mode))
        return err_set(err, ERR_EXISTS,
                       "socket `%s`: something that is not a socket is in the way; remove it",
                       path);
    return 0;
}

int socket_lock(const char *path, struct err *err)
{
    if (socket_check(path, err) < 0)
        return -1;
    auto_free char *dir = fs_format("%.*s", (int)(strrchr(path, '/') - path), path);
    auto_free char *lock = fs_format("%s.lock", path);
    if (dir == NULL || lock == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    if (dir[0] != '\0' && fs_mkdir_p(dir, 0711, err) < 0)
        return err_wrap(err, "directory of the socket");
    auto_close int fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return err_sys(err, errno, "lock file `%s`", lock);
    pid_t holder = 0;
    int held = fs_lock(fd, &holder, err);
    if (held < 0)
        return err_wrap(err, "lock file `%s`", lock);
    if (held > 0)
        return err_set(err, ERR_PRECONDITION, "socket `%s`: another aspisd (pid %d) serves it",
                       path, (int)holder);
    /* For people; the lock itself is what counts. */
    if (ftruncate(fd, 0) < 0 || dprintf(fd, "%d\n", (int)getpid()) < 0)
        return err_sys(err, errno, "lock file `%s`", lock);
    return take_fd(&fd);
}
