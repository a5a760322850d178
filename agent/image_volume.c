#include "agent/image_volume.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/fs.h"

/* O_PATH descriptor of the directory. */
static int open_dir(const char *mountpoint, const char *path, struct err *err)
{
    auto_close int root = open(mountpoint, O_PATH | O_DIRECTORY | O_CLOEXEC);
    struct stat st;

    if (root < 0)
        return err_sys(err, errno, "image at %s", mountpoint);
    if (*path == '\0')
        return take_fd(&root);
    auto_err struct err why = ERR_INIT;
    auto_close int fd = fs_open_in_root(root, path, O_PATH | O_CLOEXEC, 0, &why);
    if (fd < 0 && why.code == ERR_NOT_FOUND)
        return err_set(err, ERR_NOT_FOUND, "sub path \"%.200s\" does not exist in the image", path);
    if (fd < 0 && why.sys_errno == ELOOP)
        return err_set(err, ERR_INVALID, "sub path \"%.200s\": too many links", path);
    if (fd < 0)
        return err_move(err, &why);
    if (fstat(fd, &st) < 0 || !S_ISDIR(st.st_mode))
        return err_set(err, ERR_INVALID, "sub path \"%.200s\" is no directory of the image", path);
    return take_fd(&fd);
}

int image_volume_bind(const char *mountpoint, const char *path, const char *target, struct err *err)
{
    char source[64];
    auto_close int fd = open_dir(mountpoint, path, err);

    if (fd < 0 || fs_mkdir_p(target, 0700, err) < 0)
        return -1;
    (void)snprintf(source, sizeof(source), "/proc/self/fd/%d", fd);
    if (mount(source, target, NULL, MS_BIND, NULL) < 0)
        return err_sys(err, errno, "bind it at %s", target);
    return 0;
}
