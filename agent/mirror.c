#include "agent/mirror.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/mirror_apply.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "proto/agent.pb-c.h"

struct mirrors {
    char *dir;
    struct rpc_method methods[3];
};

static char *path_of(const struct mirrors *m, uint32_t id)
{
    return fs_format("%s/%u", m->dir, id);
}

/* Room for two versions and the pages' ends. */
static int make(const char *path, struct err *err)
{
    auto_free char *options = fs_format("size=%zu,nr_inodes=%d,mode=0755",
                                        2 * (LIMIT_MIRROR_BYTES + LIMIT_MIRROR_ENTRIES * KiB(4)),
                                        4 * LIMIT_MIRROR_ENTRIES + 16);
    if (fs_mkdir_p(path, 0700, err) < 0)
        return -1;
    if (mount("aspis-mirror", path, "tmpfs", MS_NOSUID | MS_NODEV, options) < 0) {
        (void)err_sys(err, errno, "mount %s", path);
        (void)rmdir(path);
        return -1;
    }
    return 0;
}

static void destroy(const char *path)
{
    (void)umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW);
    (void)rmdir(path);
}

static int sync_volume(const struct mirrors *m, const Aspis__Agent__V1__SyncVolumeRequest *req,
                       struct err *err)
{
    auto_free char *path = path_of(m, req->id);
    if (mirror_check(req, err) < 0)
        return -1;
    bool is_new = !fs_exists(path);
    if (is_new && make(path, err) < 0)
        return err_wrap(err, "volume %u", req->id);
    if (mirror_apply(path, req, err) == 0)
        return 0;
    if (is_new)
        destroy(path);
    return err_wrap(err, "volume %u", req->id);
}

static void answer(struct rpc_call *call, int r, const struct err *err)
{
    Aspis__Agent__V1__Empty empty;
    aspis__agent__v1__empty__init(&empty);
    if (r < 0)
        rpc_fail(call, err);
    else
        rpc_reply(call, &empty.base);
}

static void handle_sync(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    auto_err struct err err = ERR_INIT;
    int r =
        sync_volume(arg, (const Aspis__Agent__V1__SyncVolumeRequest *)(const void *)request, &err);
    answer(call, r, &err);
}

static void handle_drop(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    auto_free char *path =
        path_of(arg, ((const Aspis__Agent__V1__DropVolumeRequest *)(const void *)request)->id);
    destroy(path);
    answer(call, 0, NULL);
}

struct mirrors *mirrors_new(const char *state_dir)
{
    struct mirrors *m = xcalloc(1, sizeof(*m));
    m->dir = fs_format("%s/.mirrors", state_dir);
    m->methods[0] = (struct rpc_method){
        "SyncVolume", &aspis__agent__v1__sync_volume_request__descriptor, handle_sync, m};
    m->methods[1] = (struct rpc_method){
        "DropVolume", &aspis__agent__v1__drop_volume_request__descriptor, handle_drop, m};
    return m;
}

const struct rpc_method *mirrors_methods(struct mirrors *m)
{
    return m->methods;
}

void mirrors_free(struct mirrors *m)
{
    if (m == NULL)
        return;
    free(m->dir);
    free(m);
}
