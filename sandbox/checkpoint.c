#include "sandbox/checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "sandbox/lock.h"
#include "sandbox/machine_internal.h"
#include "sandbox/mirror.h"

#define LOAD_BYTES_PER_S MiB(20) /* the slowest that is put up with */
#define MAX_MEMORY (GiB(1) * 1024 * 16)
#define MAX_VCPUS 288 /* q35's */

/* --- what the processor is, where the guest sees it --- */

/* Lines of the first processor that tell which instructions there are. */
static void cpu_text(char out[65])
{
    static const char *const keys[] = {"vendor_id", "cpu family", "model\t", "stepping", "flags"};
    auto_free char *text = fs_read("/proc/cpuinfo", MiB(4), NULL, NULL);
    uint64_t h[4] = {UINT64_C(0xcbf29ce484222325), 1, 2, 3};
    char *save = NULL;
    char *end = text != NULL ? strstr(text, "\n\n") : NULL;
    if (end != NULL)
        *end = '\0';
    for (char *line = text != NULL ? strtok_r(text, "\n", &save) : NULL; line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
            if (!str_starts(line, keys[i]))
                continue;
            /* FNV-1a, four ways: it only has to tell processors apart */
            for (const char *p = line; *p != '\0'; p++)
                for (size_t k = 0; k < ARRAY_LEN(h); k++)
                    h[k] = (h[k] ^ (uint8_t)*p ^ (k << 4)) * UINT64_C(0x100000001b3);
        }
    }
    (void)snprintf(out, 65, "%016" PRIx64 "%016" PRIx64 "%016" PRIx64 "%016" PRIx64, h[0], h[1],
                   h[2], h[3]);
}

/* --- saving --- */

int machine_checkpoint_check(struct machine *m, struct err *err)
{
    if (machine_on_host(m))
        return err_set(err, ERR_PRECONDITION,
                       "the pod runs on the host, without a VM that could be saved");
    if (strcmp(m->record.transport, transport_name(TRANSPORT_USER_VSOCK)) == 0)
        return err_set(err, ERR_PRECONDITION,
                       "the pod's link is a vsock device of our own, whose state cannot be saved");
    if (!machine_alive(m))
        return err_set(err, ERR_PRECONDITION, "the pod's VM is gone");
    return 0;
}

int machine_find_volumes(struct machine *m, const char *owner, struct machine_volume *v, size_t n,
                         struct err *err)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t nth = (uint32_t)i;
        v[i].nth = nth;
        v[i].file = false;
        v[i].mirrored = mirror_find(m->mirror, owner, nth, &v[i].id);
        if (!v[i].mirrored &&
            (m->share == NULL || !share_find(m->share, owner, nth, &v[i].id, &v[i].file)))
            return err_set(
                err, ERR_PRECONDITION,
                "%.200s: it is of huge pages, or an older daemon added it and did not note where",
                v[i].source);
    }
    return 0;
}

struct saving {
    struct machine *m;
    const struct machine_files *fd;
    struct cancel *cancel;
    struct machine_image *out;
    int (*paused)(void *arg, struct err *err);
    void *arg;
};

/* The guest has written all that it wanted to write by then: QEMU ends its requests when it
 * stops. */
static int save_scratch(void *arg, struct err *err)
{
    struct saving *s = arg;
    struct stat st;
    auto_free char *path = fs_format("%s/scratch.img", s->m->state_dir);
    auto_close int from = open(path, O_RDONLY | O_CLOEXEC);
    if (FAILPOINT("checkpoint.scratch", err) < 0)
        return -1;
    if (from < 0 || fstat(from, &st) < 0)
        return err_sys(err, errno, "open %s", path);
    s->out->scratch_bytes = (uint64_t)st.st_size;
    if (fs_copy_sparse(from, s->fd->scratch, err) < 0)
        return err_wrap(err, "copy the scratch disk");
    s->out->last_mirror = mirror_last_id(s->m->mirror);
    if (s->m->share != NULL &&
        share_save(s->m->share, s->fd->volumes, &s->out->last_volume, s->cancel, err) < 0)
        return -1;
    return s->paused != NULL ? s->paused(s->arg, err) : 0;
}

static int describe(struct machine *m, struct machine_image *out, struct cancel *cancel,
                    struct err *err)
{
    auto_free char *version = m->f->hv->version(m->f->config.qemu, cancel, err);
    if (version == NULL)
        return -1;
    (void)snprintf(out->qemu, sizeof(out->qemu), "%s", version);
    (void)snprintf(out->accel, sizeof(out->accel), "%s", m->record.accel);
    (void)snprintf(out->transport, sizeof(out->transport), "%s", m->record.transport);
    if (strcmp(m->record.accel, "kvm") == 0)
        cpu_text(out->cpu);
    return 0;
}

int machine_checkpoint(struct machine *m, const struct machine_files *fd, struct machine_image *out,
                       int (*paused)(void *arg, struct err *err), void *arg, struct cancel *cancel,
                       struct err *err)
{
    struct saving s = {
        .m = m, .fd = fd, .cancel = cancel, .out = out, .paused = paused, .arg = arg};
    *out = (struct machine_image){0};
    if (machine_checkpoint_check(m, err) < 0 || describe(m, out, cancel, err) < 0)
        return -1;
    /* it neither grows nor shrinks meanwhile */
    if (lock_within(&m->sizing, cancel, "a change of the vm's size", err) < 0)
        return -1;
    int ret = m->ops->checkpoint(m->hv, fd->state, &out->shape, save_scratch, &s, cancel, err);
    (void)pthread_mutex_unlock(&m->sizing);
    return ret < 0 ? err_wrap(err, "save the vm") : 0;
}

/* --- restoring --- */

static bool known(const char *text, const char *const *words, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (strcmp(text, words[i]) == 0)
            return true;
    }
    return false;
}

static int check_disks(const struct hv_shape *s, struct err *err)
{
    bool slots[HV_MAX_DISKS] = {false};
    if (s->n_disks > HV_MAX_DISKS)
        return err_set(err, ERR_INVALID, "%zu disks", s->n_disks);
    for (size_t i = 0; i < s->n_disks; i++) {
        const struct hv_disk *d = &s->disks[i];
        if (d->slot == 0 || d->slot >= HV_MAX_DISKS || slots[d->slot])
            return err_set(err, ERR_INVALID, "disk %zu is in slot %u", i, d->slot);
        slots[d->slot] = true;
    }
    return 0;
}

int machine_image_check(const struct machine_image *i, struct err *err)
{
    static const char *const accels[] = {"kvm", "tcg"};
    static const char *const transports[] = {"virtio-serial", "vsock"};
    static const char *const rams[] = {"ram", "pc.ram"};
    const struct hv_shape *s = &i->shape;
    if (!known(i->accel, accels, ARRAY_LEN(accels)) ||
        !known(i->transport, transports, ARRAY_LEN(transports)) ||
        !known(s->ram_id, rams, ARRAY_LEN(rams)))
        return err_set(err, ERR_INVALID, "the VM's kind is not known");
    if (s->boot_bytes < MiB(16) || s->boot_bytes % MiB(1) != 0 || s->max_bytes % MiB(1) != 0 ||
        s->max_bytes < s->boot_bytes || s->max_bytes > MAX_MEMORY ||
        s->added_bytes > s->max_bytes - s->boot_bytes)
        return err_set(err, ERR_INVALID, "the VM's memory has an impossible size");
    if (s->boot_vcpus == 0 || s->vcpus < s->boot_vcpus || s->vcpus > s->max_vcpus ||
        s->max_vcpus > MAX_VCPUS)
        return err_set(err, ERR_INVALID, "the VM has an impossible number of vcpus");
    if (i->scratch_bytes == 0 || i->scratch_bytes % 512 != 0 || i->scratch_bytes > INT64_MAX / 2)
        return err_set(err, ERR_INVALID, "the scratch disk has an impossible size");
    if (i->last_volume >= MACHINE_MIRROR_FIRST || i->last_mirror < MACHINE_MIRROR_FIRST ||
        i->last_mirror == UINT32_MAX)
        return err_set(err, ERR_INVALID, "the VM's volumes have impossible ids");
    return check_disks(s, err);
}

int machine_restore_check(struct machine_factory *f, const struct machine_image *i, struct err *err)
{
    auto_cancel struct cancel *c = cancel_new(mono_ns() + INT64_C(10000000000), err);
    auto_free char *version = c != NULL ? f->hv->version(f->config.qemu, c, err) : NULL;
    if (version == NULL)
        return -1;
    if (strcmp(version, i->qemu) != 0)
        return err_set(err, ERR_PRECONDITION,
                       "it was made with QEMU %.100s, this daemon has %.100s", i->qemu, version);
    (void)pthread_mutex_lock(&f->lock);
    const char *accel = f->accel == ACCEL_KVM ? "kvm" : "tcg";
    (void)pthread_mutex_unlock(&f->lock);
    if (strcmp(accel, i->accel) != 0)
        return err_set(err, ERR_PRECONDITION, "its VM ran under %s, this daemon's run under %s",
                       i->accel, accel);
    if (strcmp(transport_name(f->transport), i->transport) != 0)
        return err_set(err, ERR_PRECONDITION, "its link is %s, this daemon's are %s", i->transport,
                       transport_name(f->transport));
    char cpu[65] = "";
    if (strcmp(i->accel, "kvm") == 0)
        cpu_text(cpu);
    if (strcmp(cpu, i->cpu) != 0)
        return err_set(err, ERR_PRECONDITION, "it was made on a host with another processor");
    if (i->shape.boot_bytes > f->host_memory_bytes)
        return err_set(err, ERR_PRECONDITION,
                       "its VM has %" PRIu64 " MiB of memory, this host %" PRIu64,
                       i->shape.boot_bytes / MiB(1), f->host_memory_bytes / MiB(1));
    if (i->scratch_bytes > f->config.scratch_bytes)
        return err_set(err, ERR_PRECONDITION,
                       "its scratch disk has %" PRIu64 " MiB, this daemon's have %" PRIu64,
                       i->scratch_bytes / MiB(1), f->config.scratch_bytes / MiB(1));
    return 0;
}

int machine_restore_scratch(const char *path, const struct machine_restore *r, struct err *err)
{
    if (FAILPOINT("checkpoint.disk", err) < 0)
        return -1;
    auto_close int to = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (to < 0)
        return err_sys(err, errno, "scratch disk: make %s", path);
    if (fs_copy_sparse(r->scratch_fd, to, err) < 0) {
        (void)unlink(path);
        return err_wrap(err, "scratch disk: fill %s", path);
    }
    return take_fd(&to);
}

struct machine *machine_restore(struct machine_factory *f, const struct machine_spec *spec,
                                const struct machine_restore *r, const struct machine_callbacks *cb,
                                struct cancel *cancel, struct err *err)
{
    struct stat st;
    if (fstat(r->state_fd, &st) < 0) {
        (void)err_sys(err, errno, "the saved state");
        return NULL;
    }
    int64_t load = (int64_t)((uint64_t)st.st_size / LOAD_BYTES_PER_S) * 1000000000;
    struct machine_how how = {.accel = strcmp(r->image->accel, "kvm") == 0 ? ACCEL_KVM : ACCEL_TCG,
                              .timeout_ns = f->config.boot_timeout_ns + load,
                              .guest_mac = r->guest_mac,
                              .restore = r};
    struct machine *m = machine_boot(f, spec, &how, cb, cancel, err);
    if (m == NULL)
        (void)err_wrap(err, "restore machine");
    return m;
}

int machine_check_mirror(const char *source, struct err *err)
{
    return mirror_check_source(source, err);
}

int machine_restore_volumes(struct machine *m, const struct machine_image *image, int volumes_fd,
                            const struct machine_owned_volume *list, size_t n,
                            struct cancel *cancel, struct err *err)
{
    bool shared = false;
    for (size_t i = 0; i < n; i++)
        shared = shared || !list[i].v.mirrored;
    if (m->share == NULL && shared)
        return err_set(err, ERR_UNIMPLEMENTED, "no file server is configured");
    if (FAILPOINT("restore.volumes", err) < 0)
        return -1;
    if (m->share != NULL &&
        share_restore(m->share, volumes_fd, image->last_volume, list, n, cancel, err) < 0)
        return err_wrap(err, "volumes");
    if (mirror_restore(m->mirror, image->last_mirror, list, n, cancel, err) < 0)
        return err_wrap(err, "volumes");
    return FAILPOINT("restore.mirrored", err);
}
