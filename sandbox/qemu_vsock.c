/*
 * The virtio socket device of our own (aspis-vsock) beside a QEMU: a process in the same jail, uid
 * and cgroup, which maps the guest's RAM. So that RAM must be a file that both share: a fresh one
 * for a boot, a private copy of the template's for a clone. QEMU cannot migrate the device, so a
 * clone gets it plugged in once its state is loaded.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/limits.h"
#include "base/spawn.h"
#include "sandbox/jail.h"
#include "sandbox/qemu_vm.h"

#define COPY_STEP MiB(64)
#define HELPER_NOFILE (LIMIT_VSOCK_CONNECTIONS + 64)

/* --- memory --- */

/* What the file holds, leaving its holes: a template is mostly holes. */
static int copy_extents(int from, int to, off_t size, struct err *err)
{
    off_t at = 0;
    while (at < size && (at = lseek(from, at, SEEK_DATA)) >= 0) {
        off_t end = lseek(from, at, SEEK_HOLE);
        if (end < 0)
            return err_sys(err, errno, "copy the template's memory");
        void *src = mmap(NULL, (size_t)(end - at), PROT_READ, MAP_SHARED, from, at);
        if (src == MAP_FAILED) // NOLINT(performance-no-int-to-ptr)
            return err_sys(err, errno, "map the template's memory");
        size_t left = (size_t)(end - at);
        const char *p = src;
        int failed = 0;
        while (left > 0 && failed == 0) {
            ssize_t n = pwrite(to, p, left < COPY_STEP ? left : COPY_STEP, at);
            if (n <= 0)
                failed = n < 0 ? errno : EIO;
            else {
                p += n;
                at += n;
                left -= (size_t)n;
            }
        }
        (void)munmap(src, (size_t)(p - (const char *)src) + left);
        if (failed != 0)
            return err_sys(err, failed, "copy the template's memory");
    }
    return at < 0 && errno != ENXIO ? err_sys(err, errno, "copy the template's memory") : 0;
}

int qemu_vsock_ram(const struct hv_spec *s, struct err *err)
{
    struct stat st;
    auto_close int fd = memfd_create("aspis-ram", MFD_CLOEXEC);
    /* QEMU, under an uid of its own, opens the RAM by way of its descriptor */
    if (fd < 0 || ftruncate(fd, (off_t)s->memory_bytes) < 0 || fchmod(fd, 0666) < 0)
        return err_sys(err, errno, "make the guest's memory");
    if (s->tpl == NULL)
        return take_fd(&fd);
    if (fstat(s->tpl->ram_fd, &st) < 0)
        return err_sys(err, errno, "look at the template's memory");
    if (ftruncate(fd, st.st_size) < 0)
        return err_sys(err, errno, "make the guest's memory");
    if (copy_extents(s->tpl->ram_fd, fd, st.st_size, err) < 0)
        return -1;
    return take_fd(&fd);
}

/* --- the process --- */

int qemu_vsock_start(struct hv *hv, const struct hv_spec *s, int listen_fd, int output_fd,
                     struct cancel *cancel, struct err *err)
{
    char cid[16];
    auto_free char *name = NULL;
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return err_sys(err, errno, "make a connection for the vsock device");
    auto_close int ours = pair[0];
    auto_close int theirs = pair[1];
    (void)snprintf(cid, sizeof(cid), "%d", QEMU_VSOCK_CID);
    size_t len = strlen(s->name) + sizeof("guest=");
    name = xcalloc(len, 1);
    (void)snprintf(name, len, "guest=%s", s->name);
    const char *argv[] = {s->vsock_helper, cid, name, NULL};
    struct jail_bind binds[8];
    size_t n = 0;
    for (; n < JAIL_LIBRARIES_N && n < ARRAY_LEN(binds) - 1; n++)
        binds[n] = JAIL_LIBRARIES[n];
    binds[n++] = (struct jail_bind){.src = s->vsock_helper};
    const struct spawn_fd fds[] = {{1, output_fd}, {2, output_fd}, {3, theirs}, {4, listen_fd}};
    const struct jail_rlimit limits[] = {{"nofile", HELPER_NOFILE}, {"core", 0}};
    struct jail_opts jail = {.helper = s->jail_helper,
                             .uid = s->uid,
                             .cgroups = s->cgroups,
                             .binds = binds,
                             .n_binds = n,
                             .rlimits = limits,
                             .n_rlimits = ARRAY_LEN(limits),
                             .argv = argv,
                             .fds = fds,
                             .n_fds = ARRAY_LEN(fds)};
    if (FAILPOINT("machine.vsock", err) < 0 || jail_spawn(&jail, cancel, &hv->vsock, err) < 0)
        return err_wrap(err, "start the vsock device");
    return take_fd(&ours);
}

void qemu_vsock_end(struct hv *hv)
{
    if (hv->vsock.pidfd < 0)
        return;
    spawn_kill_pidfd(hv->vsock.pidfd);
    (void)waitpid(hv->vsock.pid, NULL, 0);
    cleanup_closep(&hv->vsock.pidfd);
}

int qemu_vsock_plug(struct hv *hv, struct cancel *cancel, struct err *err)
{
    int rc = FAILPOINT("machine.vsock.plug", err);
    if (rc == 0)
        rc = qmp_run(hv->qmp, "device_add",
                     json_pack("{s:s, s:s, s:s, s:s, s:s}", "driver", "vhost-user-vsock-pci", "id",
                               "vsock", "chardev", "vsock", "bus", QEMU_PLUG_BUS, "addr",
                               QEMU_VSOCK_ADDR),
                     -1, cancel, err);
    return rc < 0 ? err_wrap(err, "plug the vsock device in") : 0;
}
