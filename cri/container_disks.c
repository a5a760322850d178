#include "cri/container_disks.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "base/str.h"
#include "cri/sandbox_ops.h"
#include "cri/spec.h"

/* A guest that does not let go of a disk must not hold up the removal of a container. */
#define DETACH_NS (20LL * 1000000000)

static int attach(struct container *c, struct machine *m, size_t index, struct cancel *cancel,
                  struct err *err)
{
    const Runtime__V1__Device *d = c->config->devices[index];
    bool writable = str_empty(d->permissions) || strchr(d->permissions, 'w') != NULL;
    char serial[21];
    struct stat st;
    auto_close int fd =
        open(d->host_path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return err_sys(err, errno, "device %.200s", d->host_path);
    if (fstat(fd, &st) < 0 || !S_ISBLK(st.st_mode))
        return err_set(err, ERR_PRECONDITION, "device %.200s is no block device any more",
                       d->host_path);
    spec_disk_serial(c->rec.id, index, serial);
    if (machine_attach_device(m, serial, fd, writable, cancel, err) < 0)
        return err_wrap(err, "device %.200s", d->host_path);
    return 0;
}

int container_disks_attach(struct container *c, struct machine *m, struct cancel *cancel,
                           struct err *err)
{
    for (size_t i = 0; machine_backend(m) == BACKEND_VM && i < c->config->n_devices; i++) {
        if (spec_is_disk(c->config->devices[i]->host_path) && attach(c, m, i, cancel, err) < 0)
            return -1;
    }
    return 0;
}

void container_disks_detach(struct container *c, struct cancel *cancel)
{
    if (c->config->n_devices == 0)
        return;
    auto_cancel struct cancel *limit = cancel_child(cancel, mono_ns() + DETACH_NS, NULL);
    struct machine *m = limit != NULL ? sandbox_use_machine(c->sandbox, NULL) : NULL;
    if (m == NULL)
        return; /* they went with it */
    for (size_t i = 0; machine_backend(m) == BACKEND_VM && i < c->config->n_devices; i++) {
        auto_err struct err err = ERR_INIT;
        char serial[21];
        spec_disk_serial(c->rec.id, i, serial);
        if (machine_detach_image(m, serial, limit, &err) < 0)
            log_warn("a block device stays in its pod", LOG_STR("container", c->rec.id),
                     LOG_STR("device", c->config->devices[i]->host_path),
                     LOG_STR("error", err_msg(&err)));
    }
    sandbox_release_machine(c->sandbox);
}
