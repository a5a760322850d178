#include "cri/spec_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "cri/userns.h"

static bool same_ids(const Runtime__V1__IDMapping *a, const Runtime__V1__IDMapping *b)
{
    return a->container_id == b->container_id && a->host_id == b->host_id && a->length == b->length;
}

/* The file server maps ids, as kubelet wants it: those of the pod's user namespace. */
static int check_ids(const Runtime__V1__Mount *m, const Runtime__V1__UserNamespace *userns,
                     struct err *err)
{
    if (m->n_uidmappings == 0 && m->n_gidmappings == 0)
        return 0;
    if (userns == NULL || m->n_uidmappings != 1 || m->n_gidmappings != 1 ||
        !same_ids(m->uidmappings[0], userns->uids[0]) ||
        !same_ids(m->gidmappings[0], userns->gids[0]))
        return err_set(err, ERR_INVALID,
                       "an id-mapped mount takes the one mapping of its pod's user namespace");
    return 0;
}

/* kubelet refuses what leaves the volume before it asks us; a symlink of the image's own is
 * resolved in the guest. */
static int check_sub_path(const char *path, struct err *err)
{
    auto_free char *probe = fs_format("/%s/", path);
    if (strlen(path) >= LIMIT_PATH)
        return err_set(err, ERR_INVALID, "the sub path is too long");
    if (path[0] == '/')
        return err_set(err, ERR_INVALID, "sub path \"%.200s\" is not relative", path);
    if (strstr(probe, "/../") != NULL)
        return err_set(err, ERR_INVALID, "sub path \"%.200s\" leaves the image", path);
    return 0;
}

static int check_image_volume(const Runtime__V1__Mount *m, struct err *err)
{
    if (m->host_path[0] != '\0')
        return err_set(err, ERR_INVALID, "the mount names both an image and the host path %.200s",
                       m->host_path);
    if (!m->readonly)
        return err_set(err, ERR_INVALID, "an image can be mounted read-only only");
    if (m->propagation != RUNTIME__V1__MOUNT_PROPAGATION__PROPAGATION_PRIVATE)
        return err_set(err, ERR_INVALID, "an image volume has nothing to propagate");
    return check_sub_path(m->image_sub_path, err);
}

/* The messages on recursive read-only mounts are containerd's, which kubelet's users know. */
static int check_mount(const Runtime__V1__Mount *m, const Runtime__V1__UserNamespace *userns,
                       struct err *err)
{
    bool alone = m->propagation == RUNTIME__V1__MOUNT_PROPAGATION__PROPAGATION_PRIVATE;
    if (spec_is_image_volume(m)) {
        if (check_image_volume(m, err) < 0)
            return -1;
    } else if (m->image_sub_path[0] != '\0') {
        return err_set(err, ERR_INVALID, "the mount has an image sub path, but no image");
    }
    if (m->recursive_read_only && !m->readonly)
        return err_set(err, ERR_INVALID, "recursive read-only mount conflicts with RW mount");
    if (m->recursive_read_only && !alone)
        return err_set(err, ERR_INVALID,
                       "recursive read-only mount must have PROPAGATION_PRIVATE propagation");
    if (!spec_is_image_volume(m) && (m->host_path[0] != '/' || strlen(m->host_path) >= LIMIT_PATH))
        return err_set(err, ERR_INVALID, "the host path is no absolute path");
    if (m->container_path[0] == '\0' || strlen(m->container_path) >= LIMIT_PATH ||
        strspn(m->container_path, "/") == strlen(m->container_path))
        return err_set(err, ERR_INVALID, "the container path names nothing below /");
    if (check_ids(m, userns, err) < 0)
        return -1;
    if (m->n_mount_options > 0)
        return err_set(err, ERR_UNIMPLEMENTED, "mount option %.64s is not supported",
                       m->mount_options[0]);
    if (m->selinux_relabel && access("/sys/fs/selinux/enforce", F_OK) == 0)
        return err_set(err, ERR_UNIMPLEMENTED, "SELinux labels are not supported");
    return 0;
}

int spec_check_mounts(const Container *c, struct err *err)
{
    if (c->n_mounts > LIMIT_FS_VOLUMES)
        return err_set(err, ERR_INVALID, "more than %d mounts", LIMIT_FS_VOLUMES);
    const Runtime__V1__NamespaceOption *n = namespaces_of(c);
    /* checked before (userns_check_options()) */
    const Runtime__V1__UserNamespace *userns = userns_wanted(n) ? n->userns_options : NULL;
    size_t images = 0;
    for (size_t i = 0; i < c->n_mounts; i++) {
        const Runtime__V1__Mount *m = c->mounts[i];
        images += spec_is_image_volume(m);
        if (check_mount(m, userns, err) == 0)
            continue;
        if (spec_is_image_volume(m))
            return err_wrap(err, "image volume at %.200s", m->container_path);
        return err_wrap(err, "mount of %.200s at %.200s", m->host_path, m->container_path);
    }
    if (images > LIMIT_IMAGE_VOLUMES)
        return err_set(err, ERR_INVALID, "more than %d image volumes", LIMIT_IMAGE_VOLUMES);
    return 0;
}

struct machine_volume *spec_volumes(const Container *c, size_t *n)
{
    *n = 0;
    if (c->n_mounts == 0)
        return NULL;
    struct machine_volume *list = xcalloc(c->n_mounts, sizeof(*list));
    for (size_t i = 0; i < c->n_mounts; i++) {
        const Runtime__V1__Mount *m = c->mounts[i];
        if (spec_is_image_volume(m))
            continue;
        struct machine_volume *v = &list[(*n)++];
        v->source = m->host_path;
        v->readonly = m->readonly;
        v->recursive = m->recursive_read_only;
        v->slave = m->propagation == RUNTIME__V1__MOUNT_PROPAGATION__PROPAGATION_HOST_TO_CONTAINER;
        v->shared = m->propagation == RUNTIME__V1__MOUNT_PROPAGATION__PROPAGATION_BIDIRECTIONAL;
        if (m->n_uidmappings > 0)
            v->ids = (struct volume_ids){.uid = m->uidmappings[0]->host_id,
                                         .n_uids = m->uidmappings[0]->length,
                                         .gid = m->gidmappings[0]->host_id,
                                         .n_gids = m->gidmappings[0]->length};
    }
    return list;
}

static void add_mount(json_t *mounts, const char *dst, const char *type, const char *src,
                      const char *const *options)
{
    json_t *opts = json_array();
    for (; *options != NULL; options++)
        (void)json_array_append_new(opts, json_string(*options));
    (void)json_array_append_new(mounts, json_pack("{s:s, s:s, s:s, s:o}", "destination", dst,
                                                  "type", type, "source", src, "options", opts));
}

/* "/a//b/./c/" and "/a/b/c" are the same place; ".." stays as it is, libcrun resolves it within the
 * root. */
static char *clean_path(const char *path)
{
    char *out = xcalloc(strlen(path) + 2, 1);
    size_t n = 0;
    while (*path != '\0') {
        path += strspn(path, "/");
        size_t len = strcspn(path, "/");
        if (len > 0 && !(len == 1 && path[0] == '.')) {
            out[n++] = '/';
            memcpy(out + n, path, len);
            n += len;
        }
        path += len;
    }
    return out;
}

static size_t depth(const char *path)
{
    size_t n = 0;
    for (; *path != '\0'; path++)
        n += *path == '/';
    return n;
}

static const char *destination(const json_t *mount)
{
    return json_string_value(json_object_get(mount, "destination"));
}

/* A mount of the container in the place of ours with the same destination, or behind them. */
static void add_own(json_t *mounts, const Runtime__V1__Mount *m, const char *source,
                    const char *const *options)
{
    auto_free char *dst = clean_path(m->container_path);
    size_t i;
    json_t *item;
    json_array_foreach(mounts, i, item)
    {
        if (strcmp(destination(item), dst) == 0) {
            (void)json_array_remove(mounts, i);
            break;
        }
    }
    add_mount(mounts, dst, "bind", source, options);
}

static void add_volume(json_t *mounts, const Runtime__V1__Mount *m, const struct machine_volume *v)
{
    char source[40];
    (void)snprintf(source, sizeof(source), "aspis:volume:%u", v->id);
    const char *options[] = {v->file ? "bind" : "rbind", "rprivate", v->all_readonly ? "ro" : "rw",
                             NULL};
    add_own(mounts, m, source, options);
}

/* Kubernetes promises of image volumes that nothing in them can be executed. */
static void add_image(json_t *mounts, const Runtime__V1__Mount *m)
{
    static const char *const options[] = {"bind",  "rprivate", "ro", "nosuid",
                                          "nodev", "noexec",   NULL};
    char serial[21];
    image_disk_serial(m->image->image, serial);
    auto_free char *source = fs_format("aspis:image:%s/%s", serial, m->image_sub_path);
    add_own(mounts, m, source, options);
}

/* Parents before what is mounted in them; otherwise the order stays. Takes the list. */
static json_t *sort_mounts(json_t *mounts)
{
    json_t *sorted = json_array();
    size_t deepest = 0;
    size_t i;
    const json_t *item;
    json_array_foreach(mounts, i, item)
    {
        if (depth(destination(item)) > deepest)
            deepest = depth(destination(item));
    }
    for (size_t d = 0; d <= deepest; d++) {
        for (i = 0; i < json_array_size(mounts); i++) {
            if (depth(destination(json_array_get(mounts, i))) == d)
                (void)json_array_append(sorted, json_array_get(mounts, i));
        }
    }
    json_decref(mounts);
    return sorted;
}

json_t *spec_mounts(const Container *c, const struct machine_volume *volumes)
{
#define OPTIONS(...) ((const char *const[]){__VA_ARGS__, NULL})
    const Security *s = security_of(c);
    bool readonly = s != NULL && s->readonly_rootfs;
    const char *rw = readonly ? "ro" : "rw";
    json_t *m = json_array();
    add_mount(m, "/proc", "proc", "proc", OPTIONS("nosuid", "noexec", "nodev"));
    add_mount(m, "/dev", "tmpfs", "tmpfs",
              OPTIONS("nosuid", "strictatime", "mode=755", "size=65536k"));
    add_mount(m, "/dev/pts", "devpts", "devpts",
              OPTIONS("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"));
    add_mount(m, "/dev/mqueue", "mqueue", "mqueue", OPTIONS("nosuid", "noexec", "nodev"));
    add_mount(m, "/sys", "sysfs", "sysfs", OPTIONS("nosuid", "noexec", "nodev", "ro"));
    add_mount(m, "/sys/fs/cgroup", "cgroup", "cgroup",
              OPTIONS("nosuid", "noexec", "nodev", "relatime", "ro"));
    add_mount(m, "/dev/shm", "bind", "aspis:shm", OPTIONS("rbind", "nosuid", "nodev", "noexec"));
    add_mount(m, "/etc/resolv.conf", "bind", "aspis:resolv.conf", OPTIONS("bind", rw));
    add_mount(m, "/etc/hosts", "bind", "aspis:hosts", OPTIONS("bind", rw));
    add_mount(m, "/etc/hostname", "bind", "aspis:hostname", OPTIONS("bind", rw));
#undef OPTIONS
    for (size_t i = 0, v = 0; i < c->n_mounts; i++) {
        if (spec_is_image_volume(c->mounts[i]))
            add_image(m, c->mounts[i]);
        else
            add_volume(m, c->mounts[i], &volumes[v++]);
    }
    return sort_mounts(m);
}
