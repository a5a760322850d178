#include "agent/userns.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/idmap.h"
#include "base/str.h"

int userns_check(Aspis__Agent__V1__IdMapping *const *map, size_t n, const char *what,
                 struct err *err)
{
    uint32_t outside;
    if (n > IDMAP_RANGES)
        return err_set(err, ERR_INVALID, "%s: %zu mappings", what, n);
    for (size_t i = 0; i < n; i++) {
        uint64_t len = map[i]->length;
        if (len == 0 || map[i]->container_id + len > UINT32_MAX ||
            map[i]->host_id + len > UINT32_MAX)
            return err_set(err, ERR_INVALID, "%s: mapping %zu is out of range", what, i);
    }
    if (n > 0 && !userns_id(map, n, 0, &outside))
        return err_set(err, ERR_INVALID, "%s: id 0 is not mapped", what);
    return 0;
}

bool userns_id(Aspis__Agent__V1__IdMapping *const *map, size_t n, uint32_t id, uint32_t *outside)
{
    for (size_t i = 0; i < n; i++) {
        if (id >= map[i]->container_id && id - map[i]->container_id < map[i]->length) {
            *outside = map[i]->host_id + (id - map[i]->container_id);
            return true;
        }
    }
    return false;
}

static struct idmap_range *ranges(Aspis__Agent__V1__IdMapping *const *map, size_t n)
{
    struct idmap_range *out = xcalloc(n + 1, sizeof(*out));
    for (size_t i = 0; i < n; i++)
        out[i] = (struct idmap_range){map[i]->container_id, map[i]->host_id, map[i]->length};
    return out;
}

int userns_open(const Aspis__Agent__V1__CreateContainerRequest *req, struct err *err)
{
    auto_free struct idmap_range *uids = ranges(req->uids, req->n_uids);
    auto_free struct idmap_range *gids = ranges(req->gids, req->n_gids);
    return idmap_userns(uids, req->n_uids, gids, req->n_gids, err);
}

int userns_mount(int userns, const char *from, const char *to, struct err *err)
{
    auto_close int fd = (int)syscall(SYS_open_tree, AT_FDCWD, from,
                                     (unsigned)(OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC));
    if (fd < 0)
        return err_sys(err, errno, "copy the mount %s", from);
    int e = idmap_set(fd, userns, false);
    if (e != 0)
        return err_sys(err, e, "mount %s with other ids", from);
    if (syscall(SYS_move_mount, fd, "", AT_FDCWD, to, MOVE_MOUNT_F_EMPTY_PATH) < 0)
        return err_sys(err, errno, "mount on %s", to);
    return 0;
}
