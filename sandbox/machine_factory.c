#include <errno.h>
#include <fcntl.h>
#include <linux/vhost.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "sandbox/machine_internal.h"
#include "sandbox/template.h"
#include "sandbox/userns_probe.h"

#define VHOST_VSOCK "/dev/vhost-vsock"
#define MAX_UIDS 65536
#define TSC_MIN_INTERVAL_NS INT64_C(20000000) /* shorter gives too coarse a figure */

/* --- clocks --- */

static uint64_t read_tsc(void)
{
#if defined(__x86_64__)
    return __builtin_ia32_rdtsc();
#else
    return 0;
#endif
}

static uint64_t cpuinfo_khz(void)
{
    auto_free char *text = fs_read("/proc/cpuinfo", MiB(4), NULL, NULL);
    const char *p = text != NULL ? strstr(text, "\ncpu MHz") : NULL;
    p = p != NULL ? strchr(p, ':') : NULL;
    double mhz = p != NULL ? strtod(p + 1, NULL) : 0;
    return mhz > 100 && mhz < 20000 ? (uint64_t)(mhz * 1000) : 0;
}

/* The TSC's rate is not the current clock rate that /proc/cpuinfo shows, so it is measured where
 * time allows. */
uint64_t machine_tsc_khz(const struct machine_factory *f)
{
    int64_t ns = mono_ns() - f->tsc_sample_ns;
    uint64_t ticks = read_tsc() - f->tsc_sample;
    if (f->tsc_sample == 0)
        return 0;
    if (ns < TSC_MIN_INTERVAL_NS)
        return cpuinfo_khz();
    return (uint64_t)((double)ticks * 1e6 / (double)ns);
}

/* --- uids --- */

uint32_t machine_uid_take(struct machine_factory *f, struct err *err)
{
    uint32_t uid = 0;
    (void)pthread_mutex_lock(&f->lock);
    for (uint32_t i = 0; i < f->config.uid_count && uid == 0; i++) {
        if (f->uids[i] == 0) {
            f->uids[i] = 1;
            uid = f->config.uid_base + i;
        }
    }
    (void)pthread_mutex_unlock(&f->lock);
    if (uid == 0)
        (void)err_set(err, ERR_EXHAUSTED, "all %u uids for VMs are in use", f->config.uid_count);
    return uid;
}

static void uid_set(struct machine_factory *f, uint32_t uid, uint8_t taken)
{
    (void)pthread_mutex_lock(&f->lock);
    if (uid >= f->config.uid_base && uid - f->config.uid_base < f->config.uid_count)
        f->uids[uid - f->config.uid_base] = taken;
    (void)pthread_mutex_unlock(&f->lock);
}

void machine_uid_mark(struct machine_factory *f, uint32_t uid)
{
    uid_set(f, uid, 1);
}

void machine_uid_release(struct machine_factory *f, uint32_t uid)
{
    uid_set(f, uid, 0);
}

/* --- context ids --- */

/* The kernel refuses an id that another open vhost-vsock has. Uids are unique among our VMs, so an
 * id derived from one stays free between this look and QEMU's claim, but for foreign programs. */
uint32_t machine_cid_find(struct machine_factory *f, uint32_t seed, struct err *err)
{
    for (uint32_t i = 0; i < 64; i++) {
        uint64_t cid = UINT64_C(0x10000) + (seed - f->config.uid_base) + i * f->config.uid_count;
        auto_close int fd = open(VHOST_VSOCK, O_RDWR | O_CLOEXEC);
        if (fd < 0 || ioctl(fd, VHOST_SET_OWNER, NULL) < 0) {
            (void)err_sys(err, errno, "open " VHOST_VSOCK);
            return 0;
        }
        if (ioctl(fd, VHOST_VSOCK_SET_GUEST_CID, &cid) == 0)
            return (uint32_t)cid;
    }
    (void)err_set(err, ERR_EXHAUSTED, "no free vsock context id");
    return 0;
}

/* --- small things --- */

char *machine_run_path(const struct machine_factory *f, const char *id)
{
    return fs_format("%s/sandboxes/%s", f->config.run_root, id);
}

char *machine_state_path(const struct machine_factory *f, const char *id)
{
    return fs_format("%s/sandboxes/%s", f->config.state_root, id);
}

int machine_check_id(const char *id, struct err *err)
{
    size_t n = strlen(id);
    if (n == 0 || n > 128 || id[0] == '.' ||
        strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != n)
        return err_set(err, ERR_INVALID, "sandbox id \"%.100s\" is malformed", id);
    return 0;
}

/* --- the factory --- */

const char *transport_name(enum transport t)
{
    static const char *const names[] = {"auto", "virtio-serial", "vsock", "user-vsock"};
    return (size_t)t < ARRAY_LEN(names) ? names[t] : "?";
}

static void decide_transport(struct machine_factory *f)
{
    if (f->config.transport != TRANSPORT_AUTO) {
        f->transport = f->config.transport;
        f->transport_reason = "configured";
        return;
    }
    auto_close int fd = open(VHOST_VSOCK, O_RDWR | O_CLOEXEC);
    if (fd >= 0) {
        f->transport = TRANSPORT_VSOCK;
        f->transport_reason = VHOST_VSOCK " is there";
    } else {
        f->transport = TRANSPORT_VIRTIO_SERIAL;
        f->transport_reason = VHOST_VSOCK " is missing on this host";
    }
}

static int check_config(const struct machine_config *c, struct err *err)
{
    if (str_empty(c->qemu) || str_empty(c->kernel) || str_empty(c->initrd) ||
        str_empty(c->jail_helper) || str_empty(c->run_root) || str_empty(c->state_root) ||
        str_empty(c->cgroup_root) || c->cgroup_root[0] != '/')
        return err_set(err, ERR_INVALID, "machine configuration: a path is missing");
    if (c->uid_base == 0 || c->uid_count == 0 || c->uid_count > MAX_UIDS ||
        c->uid_base > UINT32_MAX - 1 - c->uid_count)
        return err_set(err, ERR_INVALID, "machine configuration: bad uid range");
    if (c->base_memory_bytes < MiB(64) || c->scratch_bytes < MiB(16) || c->boot_timeout_ns <= 0)
        return err_set(err, ERR_INVALID,
                       "machine configuration: memory, scratch disk or boot "
                       "timeout too small");
    if (strchr(c->kernel, ':') != NULL || strchr(c->initrd, ':') != NULL)
        return err_set(err, ERR_INVALID, "machine configuration: ':' in a path");
    return 0;
}

/* They are installed beside the jail helper; clones go without those that are not there. */
static char *find_library(const char *jail_helper, const char *name)
{
    const char *slash = strrchr(jail_helper, '/');
    char *path =
        fs_format("%.*s/%s", slash != NULL ? (int)(slash - jail_helper) : 0, jail_helper, name);
    if (path != NULL && access(path, R_OK) < 0) {
        free(path);
        path = NULL;
    }
    return path;
}

void machine_try_libraries(struct machine_factory *f, struct cancel *cancel)
{
    struct hv_libraries all = {.trim = f->trim_library, .disas = f->disas_library};
    bool there = all.trim != NULL && all.disas != NULL && f->hv->takes != NULL;
    atomic_store(&f->thrifty, there && f->hv->takes(f->config.qemu, &all, cancel));
    if (there && !atomic_load(&f->thrifty) && !cancel_fired(cancel))
        log_warn("idle pods keep what their vms have translated: qemu takes no plugin of ours");
}

struct hv_libraries machine_libraries(const struct machine_factory *f)
{
    if (!atomic_load(&f->thrifty))
        return (struct hv_libraries){NULL, NULL};
    return (struct hv_libraries){.trim = f->trim_library, .disas = f->disas_library};
}

struct machine_factory *machine_factory_new(const struct machine_config *config,
                                            struct loop *control, struct loop *io, struct err *err)
{
    if (check_config(config, err) < 0)
        return NULL;
    struct mirror_watch *watch = mirror_watch_new(err);
    if (watch == NULL)
        return NULL;
    struct machine_factory *f = xcalloc(1, sizeof(*f));
    f->mirror_watch = watch;
    f->config = *config;
    f->config.qemu = xstrdup(config->qemu);
    f->config.kernel = xstrdup(config->kernel);
    f->config.initrd = xstrdup(config->initrd);
    f->config.jail_helper = xstrdup(config->jail_helper);
    f->config.share_helper = xstrdup(config->share_helper);
    f->config.agent = xstrdup(config->agent);
    f->pages_library = find_library(config->jail_helper, "aspis-pages.so");
    f->trim_library = find_library(config->jail_helper, "aspis-trim.so");
    f->disas_library = find_library(config->jail_helper, "aspis-disas.so");
    f->config.vsock_helper = xstrdup(config->vsock_helper);
    f->config.run_root = xstrdup(config->run_root);
    f->config.state_root = xstrdup(config->state_root);
    f->config.image_root = xstrdup(config->image_root);
    f->config.cgroup_root = xstrdup(config->cgroup_root);
    /* beside it, not below: the whole group is to get what others leave */
    f->spare_cgroup_root = fs_format("%s-spare", config->cgroup_root);
    if (f->config.kvm_probe_timeout_ns <= 0)
        f->config.kvm_probe_timeout_ns = f->config.boot_timeout_ns;
    f->control = control;
    f->io = io;
    f->hv = &qemu_hv;
    f->uids = xcalloc(config->uid_count, 1);
    (void)pthread_mutex_init(&f->lock, NULL);
    (void)pthread_mutex_init(&f->deciding, NULL);
    host_memory_init(&f->host_memory);
    if (config->templates)
        f->templates = template_pool_new(f);
    f->tsc_sample_ns = mono_ns();
    f->tsc_sample = read_tsc();
    struct sysinfo si;
    if (sysinfo(&si) == 0)
        f->host_memory_bytes = (uint64_t)si.totalram * si.mem_unit;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    f->host_vcpus = cpus > 0 ? (uint32_t)cpus : 1;
    decide_transport(f);
    if (config->accel != ACCEL_AUTO) {
        f->accel = config->accel;
        f->accel_reason = xstrdup("configured");
    } else {
        f->accel_reason = xstrdup("not decided yet");
        accel_load(f);
    }
    return f;
}

const char *machine_cgroup_root(const struct machine_factory *f, const char *cgroup)
{
    size_t n = strlen(f->spare_cgroup_root);
    return strncmp(cgroup, f->spare_cgroup_root, n) == 0 && cgroup[n] == '/'
               ? f->spare_cgroup_root
               : f->config.cgroup_root;
}

static void free_string(const char *s)
{
    free(__extension__(void *)(uintptr_t) s);
}

void machine_factory_free(struct machine_factory *f)
{
    if (f == NULL)
        return;
    template_pool_free(f->templates);
    mirror_watch_free(f->mirror_watch);
    free_string(f->config.qemu);
    free_string(f->config.kernel);
    free_string(f->config.initrd);
    free_string(f->config.jail_helper);
    free_string(f->config.share_helper);
    free_string(f->config.agent);
    free(f->pages_library);
    free(f->trim_library);
    free(f->disas_library);
    free_string(f->config.vsock_helper);
    free_string(f->config.run_root);
    free_string(f->config.state_root);
    free_string(f->config.image_root);
    free_string(f->config.cgroup_root);
    free(f->spare_cgroup_root);
    free(f->uids);
    free(f->accel_reason);
    free(f->accel_undecided_text);
    (void)pthread_mutex_destroy(&f->lock);
    (void)pthread_mutex_destroy(&f->deciding);
    host_memory_destroy(&f->host_memory);
    free(f);
}

/* --- facts --- */

/* A bzImage names its release: Linux x86 boot protocol, header at 0x202, kernel_version at 0x20e is
 * the offset of the text less 0x200. */
static char *kernel_release(const char *path)
{
    auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
    unsigned char head[0x210];
    if (fd < 0 || pread(fd, head, sizeof(head), 0) != (ssize_t)sizeof(head) ||
        memcmp(head + 0x202, "HdrS", 4) != 0)
        return NULL;
    char text[129] = "";
    off_t at = (off_t)(head[0x20e] | head[0x20f] << 8) + 0x200;
    ssize_t n = pread(fd, text, sizeof(text) - 1, at);
    if (n <= 0)
        return NULL;
    text[n] = '\0';
    size_t len =
        strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.+-_~");
    return len > 0 ? xstrndup(text, len) : NULL;
}

static char *why_not(const struct machine_factory *f, const struct machine_facts *facts,
                     const struct err *version_err)
{
    if (facts->qemu_version == NULL)
        return fs_format("qemu cannot be run: %s", err_msg(version_err));
    const char *files[] = {f->config.kernel, f->config.initrd};
    for (size_t i = 0; i < ARRAY_LEN(files); i++) {
        if (access(files[i], R_OK) < 0)
            return fs_format("guest file %s cannot be read: %s", files[i], strerror(errno));
    }
    if (access(f->config.jail_helper, X_OK) < 0)
        return fs_format("jail helper %s cannot be run: %s", f->config.jail_helper,
                         strerror(errno));
    return NULL;
}

int machine_facts(struct machine_factory *f, struct machine_facts *facts, struct err *err)
{
    *facts = (struct machine_facts){0};
    auto_err struct err e = ERR_INIT;
    auto_cancel struct cancel *c = cancel_new(mono_ns() + INT64_C(10000000000), err);
    if (c == NULL)
        return -1;
    facts->qemu_version = f->hv->version(f->config.qemu, c, &e);
    facts->kernel_release = kernel_release(f->config.kernel);
    facts->transport = f->transport;
    facts->transport_reason = f->transport_reason;
    facts->templates = template_pool_text(f->templates);
    (void)pthread_mutex_lock(&f->lock);
    facts->accel = f->accel;
    facts->accel_reason = f->accel_reason; /* replaced once at most: see accel.c */
    (void)pthread_mutex_unlock(&f->lock);
    facts->not_ready_reason = why_not(f, facts, &e);
    facts->ready = facts->not_ready_reason == NULL;
    return 0;
}

int machine_host_userns(struct machine_factory *f, struct err *err)
{
    if (atomic_load(&f->host_userns))
        return 0;
    if (f->config.agent == NULL || f->config.image_root == NULL)
        return err_set(err, ERR_UNIMPLEMENTED, "no pods without a VM are configured");
    if (userns_probe(f->config.image_root, f->config.state_root, err) < 0)
        return err_wrap(err, "user namespaces of pods on the host");
    atomic_store(&f->host_userns, true);
    return 0;
}

void machine_facts_clear(struct machine_facts *facts)
{
    free(facts->qemu_version);
    free(facts->kernel_release);
    free(facts->not_ready_reason);
    free(facts->templates);
    *facts = (struct machine_facts){0};
}
