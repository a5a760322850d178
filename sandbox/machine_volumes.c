/*
 * What is put into a machine and taken out again: image disks, block devices, volumes. A volume
 * reaches its pod in one of three ways: on the host by a mount in its agent's namespace, in a VM as
 * a copy that follows the original (mirror.h) when the guest only reads it, else by the file server
 * (share.h). One of huge pages is the guest's own (huge_volume.h).
 */
#include <string.h>

#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/limits.h"
#include "sandbox/host_ns.h"
#include "sandbox/huge_volume.h"
#include "sandbox/machine_internal.h"
#include "sandbox/mirror.h"

/* --- disks --- */

/* A disk that was there before its image cannot say by itself whose it is now. */
static int name_disk(struct machine *m, const char *serial, char *disk, struct cancel *cancel,
                     struct err *err)
{
    Aspis__Agent__V1__NameDiskRequest req;
    aspis__agent__v1__name_disk_request__init(&req);
    req.serial = __extension__(char *)(uintptr_t) serial;
    req.disk = disk;
    auto_arena struct arena *arena = arena_new(LIMIT_RPC_MESSAGE);
    if (FAILPOINT("machine.attach.name", err) < 0 ||
        link_call(m->link, "NameDisk", &req.base, &aspis__agent__v1__empty__descriptor, arena,
                  cancel, err) == NULL)
        return err_wrap(err, "name disk %s", serial);
    return 0;
}

int machine_attach_image(struct machine *m, const char *serial, const struct disk_part *parts,
                         size_t n_parts, struct cancel *cancel, struct err *err)
{
    char disk[HV_SERIAL_SIZE] = "";
    auto_err struct err e = ERR_INIT;
    if (machine_check_alive(m, err) < 0 ||
        m->ops->add_disk(m->hv, serial, parts, n_parts, disk, cancel, err) < 0)
        return -1;
    /* if it cannot be named it stays until it is detached */
    if (strcmp(disk, serial) == 0 || name_disk(m, serial, disk, cancel, &e) == 0)
        return 0;
    if (e.code != ERR_UNIMPLEMENTED)
        return err_move(err, &e);
    /* an older agent */
    return m->ops->remove_disk(m->hv, serial, cancel, err) < 0
               ? -1
               : m->ops->add_disk(m->hv, serial, parts, n_parts, NULL, cancel, err);
}

int machine_attach_tree(struct machine *m, const char *serial, const char *dir, struct err *err)
{
    if (machine_check_alive(m, err) < 0)
        return -1;
    return host_ns_attach_image(m->record.pid, m->record.pid_start_time, serial, dir, err);
}

int machine_attach_device(struct machine *m, const char *serial, int fd, bool writable,
                          struct cancel *cancel, struct err *err)
{
    if (machine_check_alive(m, err) < 0)
        return -1;
    return m->ops->add_device(m->hv, serial, fd, writable, cancel, err);
}

int machine_detach_image(struct machine *m, const char *serial, struct cancel *cancel,
                         struct err *err)
{
    if (!machine_alive(m))
        return 0; /* it went with the VM */
    Aspis__Agent__V1__DetachDiskRequest req;
    aspis__agent__v1__detach_disk_request__init(&req);
    req.serial = __extension__(char *)(uintptr_t) serial;
    auto_err struct err e = ERR_INIT;
    auto_arena struct arena *arena = arena_new(LIMIT_RPC_MESSAGE);
    const ProtobufCMessage *r = link_call(m->link, "DetachDisk", &req.base,
                                          &aspis__agent__v1__empty__descriptor, arena, cancel, &e);
    if (r == NULL && e.code != ERR_NOT_FOUND) {
        (void)err_wrap(&e, "detach disk %s", serial);
        return err_move(err, &e);
    }
    return m->ops->remove_disk(m->hv, serial, cancel, err);
}

/* --- volumes --- */

/* Those that the guest gets a copy of, or makes itself of huge pages. -1, or how many the others
 * are, which are put into rest and their places into at. */
static ssize_t mirror_some(struct machine *m, const char *owner, struct machine_volume *v, size_t n,
                           struct machine_volume *rest, size_t *at, struct cancel *cancel,
                           struct err *err)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++) {
        int h = huge_volume_find(&v[i], i, err);
        if (h < 0)
            return -1;
        if (h > 0)
            continue;
        int r = v[i].readonly && !v[i].slave ? mirror_add(m->mirror, owner, &v[i], cancel, err) : 0;
        if (r < 0)
            return -1;
        v[i].mirrored = v[i].all_readonly = r == 1;
        if (r == 1)
            continue;
        rest[k] = v[i];
        at[k++] = i;
    }
    return (ssize_t)k;
}

int machine_add_volumes(struct machine *m, const char *owner, struct machine_volume *v, size_t n,
                        struct cancel *cancel, struct err *err)
{
    if (n == 0)
        return 0;
    for (size_t i = 0; i < n; i++)
        v[i].nth = (uint32_t)i;
    if (machine_check_alive(m, err) < 0)
        return -1;
    if (machine_on_host(m))
        return host_ns_attach_volumes(m->record.pid, m->record.pid_start_time, owner, v, n, err);
    auto_free struct machine_volume *rest = xcalloc(n, sizeof(*rest));
    auto_free size_t *at = xcalloc(n, sizeof(*at));
    ssize_t k = mirror_some(m, owner, v, n, rest, at, cancel, err);
    int r = k < 0 ? -1 : 0;
    if (k > 0 && m->share == NULL)
        r = err_set(err, ERR_UNIMPLEMENTED, "no file server is configured");
    else if (k > 0)
        r = share_add(m->share, owner, rest, (size_t)k, cancel, err);
    if (r < 0)
        mirror_remove(m->mirror, owner);
    for (ssize_t i = 0; i < k; i++)
        v[at[i]] = rest[i];
    return r;
}

int machine_remove_volumes(struct machine *m, const char *owner, struct cancel *cancel,
                           struct err *err)
{
    if (machine_on_host(m))
        host_ns_detach_volumes(m->record.pid, m->record.pid_start_time, owner);
    mirror_remove(m->mirror, owner);
    return m->share != NULL ? share_remove(m->share, owner, cancel, err) : 0;
}
