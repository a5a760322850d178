#include "agent/pod.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/disk.h"
#include "agent/identity.h"
#include "agent/net.h"
#include "agent/net_check.h"
#include "agent/pidns.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/idmap.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "base/timeline.h"

#define RUN_DIR "/run/aspis"
#define SHM_DEFAULT MiB(64)
#define WAIT_NS (LIMIT_DEVICE_WAIT_MS * INT64_C(1000000))

typedef Aspis__Agent__V1__ConfigurePodRequest request;

struct pod {
    struct loop *loop;
    bool guest; /* we are this machine's init, so the machine is ours */
    bool host;  /* a pod on the host: the namespaces are ours, but for: */
    bool host_net, host_ipc, host_uts;
    int userns; /* to which these belong; -1: ours */
    char *userns_path;
    char *id;
    char *file_resolv, *file_hosts, *file_hostname, *dir_shm, *dir_scratch, *dir_images;
    uint64_t shm_bytes; /* 0: not mounted */
    bool scratch_mounted;
    bool net_applied;     /* or tried */
    char *scratch_serial; /* what is mounted there; "" for tmpfs */
    struct disks *disks;

    pid_t pidns_init; /* 0: none */
    char *pidns_path;

    /* The ConfigurePod that waits for devices. */
    const request *waiting;
    struct timeline timeline; /* of it */
    pod_configured_fn done;
    void *done_arg;
    struct loop_source *deadline;
};

static void clear_dirs(struct pod *p)
{
    disks_free(p->disks);
    free(p->file_resolv);
    free(p->file_hosts);
    free(p->file_hostname);
    free(p->dir_shm);
    free(p->dir_scratch);
    free(p->dir_images);
}

static void set_dirs(struct pod *p, const char *dir)
{
    clear_dirs(p);
    p->file_resolv = fs_format("%s/pod/resolv.conf", dir);
    p->file_hosts = fs_format("%s/pod/hosts", dir);
    p->file_hostname = fs_format("%s/pod/hostname", dir);
    p->dir_shm = fs_format("%s/pod/shm", dir);
    p->dir_scratch = fs_format("%s/scratch", dir);
    p->dir_images = fs_format("%s/images", dir);
    p->disks = disks_new(p->loop, p->dir_images);
}

static void deadline_passed(struct loop_source *src, void *arg);

struct pod *pod_new(struct loop *loop, struct err *err)
{
    struct pod *p = xcalloc(1, sizeof(*p));
    p->loop = loop;
    p->guest = true;
    p->userns = -1;
    p->id = xstrdup("");
    timeline_begin(&p->timeline);
    p->deadline = loop_add_timer(loop, -1, deadline_passed, p, err);
    if (p->deadline == NULL) {
        free(p->id);
        free(p);
        return NULL;
    }
    set_dirs(p, RUN_DIR);
    return p;
}

void pod_use_dir(struct pod *p, const char *dir)
{
    p->guest = false;
    set_dirs(p, dir);
}

void pod_use_host(struct pod *p, bool host_net, bool host_ipc, bool host_uts, int userns)
{
    p->guest = false;
    p->host = true;
    p->host_net = host_net;
    p->host_ipc = host_ipc;
    p->host_uts = host_uts;
    p->userns = userns;
    if (userns >= 0) /* for children, too, which close what they do not know */
        p->userns_path = fs_format("/proc/%d/fd/%d", (int)getpid(), userns);
    disks_use_trees(p->disks);
}

bool pod_on_host(const struct pod *p)
{
    return p->host;
}

const char *pod_userns(const struct pod *p)
{
    return p->userns_path;
}

bool pod_has_host_network(const struct pod *p)
{
    return p->host_net;
}

static void end_waiting(struct pod *p, const struct err *err)
{
    if (p->waiting == NULL)
        return;
    p->waiting = NULL;
    loop_set_timer(p->deadline, -1);
    p->done(p->done_arg, err);
}

void pod_free(struct pod *p)
{
    if (p == NULL)
        return;
    auto_err struct err err = ERR_INIT;
    err_set(&err, ERR_CANCELLED, "the agent is ending");
    end_waiting(p, &err);
    if (p->pidns_init > 0)
        (void)kill(p->pidns_init, SIGKILL);
    loop_remove(p->deadline);
    clear_dirs(p);
    free(p->id);
    free(p->scratch_serial);
    free(p->pidns_path);
    free(p->userns_path);
    free(p);
}

const char *pod_id(const struct pod *p)
{
    return p->id;
}

int pod_become(struct pod *p, const char *from, const char *id, struct err *err)
{
    size_t n = strlen(id);
    if (strcmp(p->id, from) != 0)
        return err_set(err, ERR_PRECONDITION, "this machine is sandbox %.64s", p->id);
    if (n == 0 || n > LIMIT_NAME)
        return err_set(err, ERR_INVALID, "sandbox_id of %zu bytes", n);
    free(p->id);
    p->id = xstrdup(id);
    return 0;
}

const char *pod_file(const struct pod *p, const char *name)
{
    if (strcmp(name, "resolv.conf") == 0)
        return p->file_resolv;
    if (strcmp(name, "hosts") == 0)
        return p->file_hosts;
    if (strcmp(name, "hostname") == 0)
        return p->file_hostname;
    if (strcmp(name, "shm") == 0)
        return p->dir_shm;
    return NULL;
}

const char *pod_scratch_dir(const struct pod *p)
{
    return p->dir_scratch;
}

/* --- ConfigurePod ------------------------------------------------------------------------- */

static int check(const struct pod *p, const request *req, struct err *err)
{
    size_t n = strlen(req->sandbox_id);
    if (n == 0 || n > LIMIT_NAME)
        return err_set(err, ERR_INVALID, "sandbox_id of %zu bytes", n);
    if (*p->id && strcmp(p->id, req->sandbox_id) != 0)
        return err_set(err, ERR_PRECONDITION, "this machine already is sandbox %s", p->id);
    if (identity_check_hostname(req->hostname, err) < 0)
        return -1;
    if (req->entropy.len < IDENTITY_ENTROPY_MIN || req->entropy.len > IDENTITY_ENTROPY_MAX)
        return err_set(err, ERR_INVALID, "entropy of %zu bytes", req->entropy.len);
    if (req->machine_id.len != IDENTITY_MACHINE_ID)
        return err_set(err, ERR_INVALID, "machine_id of %zu bytes", req->machine_id.len);
    if (req->resolv_conf.len > LIMIT_POD_FILE || req->hosts.len > LIMIT_POD_FILE)
        return err_set(err, ERR_INVALID, "resolv.conf of %zu and hosts of %zu bytes",
                       req->resolv_conf.len, req->hosts.len);
    if (req->n_sysctls > LIMIT_POD_SYSCTLS)
        return err_set(err, ERR_INVALID, "%zu sysctls", req->n_sysctls);
    for (size_t i = 0; i < req->n_sysctls; i++) {
        auto_free char *path = identity_sysctl_path(req->sysctls[i]->key, err);
        if (path == NULL)
            return -1;
    }
    if (*req->scratch_disk && !disk_serial_valid(req->scratch_disk))
        return err_set(err, ERR_INVALID, "scratch_disk: not a disk serial: \"%.40s\"",
                       req->scratch_disk);
    if (p->scratch_mounted && strcmp(p->scratch_serial, req->scratch_disk) != 0)
        return err_set(err, ERR_PRECONDITION, "the scratch disk is \"%s\" already",
                       p->scratch_serial);
    return net_check(req, err);
}

/* Rewrites the file in place: containers have this very inode mounted. */
static int write_file(const char *path, const void *data, size_t len, struct err *err)
{
    auto_close int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
    if (fd < 0)
        return err_sys(err, errno, "open %s", path);
    if (fs_write_fd(fd, data, len, err) < 0)
        return err_wrap(err, "%s", path);
    if (ftruncate(fd, (off_t)len) < 0)
        return err_sys(err, errno, "truncate %s", path);
    return 0;
}

static int write_files(struct pod *p, const request *req, struct err *err)
{
    auto_free char *hostname = fs_format("%s\n", req->hostname);
    if (fs_mkdir_p(p->dir_shm, 0755, err) < 0 ||
        write_file(p->file_resolv, req->resolv_conf.data, req->resolv_conf.len, err) < 0 ||
        write_file(p->file_hosts, req->hosts.data, req->hosts.len, err) < 0 ||
        write_file(p->file_hostname, hostname, strlen(hostname), err) < 0)
        return -1;
    return 0;
}

static int mount_shm(struct pod *p, uint64_t bytes, struct err *err)
{
    if (bytes == 0)
        bytes = SHM_DEFAULT;
    if ((!p->guest && !p->host) || p->shm_bytes == bytes)
        return 0;
    if (p->host_ipc) {
        if (p->shm_bytes == 0 && mount("/dev/shm", p->dir_shm, NULL, MS_BIND, NULL) < 0)
            return err_sys(err, errno, "bind the host's /dev/shm");
        p->shm_bytes = bytes;
        return 0;
    }
    auto_free char *options = fs_format("mode=1777,size=%" PRIu64, bytes);
    unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    if (p->shm_bytes != 0)
        flags |= MS_REMOUNT;
    if (mount("shm", p->dir_shm, "tmpfs", flags, options) < 0)
        return err_sys(err, errno, "mount %" PRIu64 " bytes of shm", bytes);
    p->shm_bytes = bytes;
    return 0;
}

/* What needs no device. */
static int configure_identity(struct pod *p, const request *req, struct err *err)
{
    if (p->guest) {
        if (req->wall_clock_ns != 0 && identity_set_clock(req->wall_clock_ns, err) < 0)
            return -1;
        timeline_mark(&p->timeline, "clock");
        if (identity_seed(req->entropy.data, req->entropy.len, err) < 0 ||
            identity_set_hostname(req->hostname, err) < 0)
            return -1;
        if (fs_mkdir_p("/etc", 0755, err) < 0 ||
            identity_write_machine_id("/etc/machine-id", req->machine_id.data, err) < 0)
            return -1;
    }
    if (p->host && !p->host_uts && identity_set_hostname(req->hostname, err) < 0)
        return -1;
    timeline_mark(&p->timeline, "identity");
    return write_files(p, req, err) < 0 ? -1 : mount_shm(p, req->shm_bytes, err);
}

/* 1: mounted; 0: the disk is not there yet. */
static int mount_scratch(struct pod *p, const char *serial, struct err *err)
{
    if (p->scratch_mounted)
        return 1;
    if (fs_mkdir_p(p->dir_scratch, 0700, err) < 0)
        return -1;
    if (p->guest && *serial == '\0') {
        if (mount("scratch", p->dir_scratch, "tmpfs", MS_NOATIME, "mode=0700") < 0)
            return err_sys(err, errno, "mount a tmpfs as scratch space");
    } else if (p->guest) {
        auto_free char *dev = disk_find("/sys", serial);
        if (dev == NULL) {
            err_set(err, ERR_NOT_FOUND, "scratch disk %s is not there", serial);
            return 0;
        }
        if (mount(dev, p->dir_scratch, "ext4", MS_NOATIME, "discard") < 0)
            return err_sys(err, errno, "scratch disk %s: mount %s as ext4", serial, dev);
    }
    p->scratch_mounted = true;
    p->scratch_serial = xstrdup(serial);
    return 1;
}

/* Only what belongs to a namespace of the pod may be set: the rest is the host's. The names are
 * those that Linux keeps per namespace (ipc_namespaces(7); net.* in any network namespace but the
 * first). */
static bool sysctl_is_pods(const struct pod *p, const char *key)
{
    static const char *const ipc[] = {"kernel/shmmax",          "kernel/shmall", "kernel/shmmni",
                                      "kernel/shm_rmid_forced", "kernel/msgmax", "kernel/msgmnb",
                                      "kernel/msgmni",          "kernel/sem",    "fs/mqueue/"};
    auto_free char *path = identity_sysctl_path(key, NULL);
    if (path == NULL)
        return false;
    if (str_starts(path, "net/"))
        return !p->host_net;
    for (size_t i = 0; i < ARRAY_LEN(ipc); i++) {
        bool prefix = str_ends(ipc[i], "/");
        if (prefix ? str_starts(path, ipc[i]) : strcmp(path, ipc[i]) == 0)
            return !p->host_ipc;
    }
    return false;
}

static int set_one(void *arg, struct err *err)
{
    const Aspis__Agent__V1__KeyValue *kv = arg;
    return identity_set_sysctl(kv->key, kv->value, err);
}

/* Those of an ipc namespace may be written by the root of its user namespace only, not by the
 * host's. */
static int set_host_sysctl(const struct pod *p, Aspis__Agent__V1__KeyValue *kv, struct err *err)
{
    bool net = str_starts(kv->key, "net.") || str_starts(kv->key, "net/");
    return p->userns >= 0 && !net ? idmap_run(p->userns, set_one, kv, err) : set_one(kv, err);
}

static int set_host_sysctls(const struct pod *p, const request *req, struct err *err)
{
    for (size_t i = 0; i < req->n_sysctls; i++) {
        const char *key = req->sysctls[i]->key;
        if (!sysctl_is_pods(p, key))
            return err_set(err, ERR_INVALID, "sysctl %.100s is the host's, not the pod's", key);
        if (set_host_sysctl(p, req->sysctls[i], err) < 0)
            return -1;
    }
    return 0;
}

/* What needs devices. 1: done; 0: something is missing, which *err names. */
static int configure_devices(struct pod *p, const request *req, struct err *err)
{
    timeline_mark(&p->timeline, "files and shm");
    int r = mount_scratch(p, req->scratch_disk, err);
    if (r <= 0 || (!p->guest && !p->host))
        return r;
    timeline_mark(&p->timeline, "scratch mounted");
    if (p->host)
        return set_host_sysctls(p, req, err) < 0 ? -1 : 1;
    r = net_ready(req, err);
    if (r <= 0)
        return r;
    timeline_mark(&p->timeline, "NICs found");
    bool first = !p->net_applied;
    p->net_applied = true;
    if ((first ? net_apply_first(req, err) : net_apply(req, err)) < 0)
        return err_wrap(err, "network");
    timeline_mark(&p->timeline, "network");
    for (size_t i = 0; i < req->n_sysctls; i++) {
        if (identity_set_sysctl(req->sysctls[i]->key, req->sysctls[i]->value, err) < 0)
            return -1;
    }
    return 1;
}

/* Short, since every byte on the console stops an emulated guest. */
static void log_configured(struct pod *p)
{
    if (!timeline_older(&p->timeline, LIMIT_AGENT_SLOW_NS)) {
        log_info("configured");
        return;
    }
    auto_free char *steps = timeline_text(&p->timeline);
    log_info("configured", LOG_STR("sandbox", p->id), LOG_STR("ms", steps));
}

/* Goes on with the waiting request as far as it goes now. */
static void try_devices(struct pod *p, bool last)
{
    auto_err struct err err = ERR_INIT;
    const request *req = p->waiting;
    int r = configure_devices(p, req, &err);
    if (r == 0 && !last)
        return;
    bool first = r > 0 && *p->id == '\0';
    if (first) {
        free(p->id);
        p->id = xstrdup(req->sandbox_id);
        timeline_mark(&p->timeline, "done");
    }
    if (r == 0) {
        auto_err struct err late = ERR_INIT;
        err_set(&late, ERR_DEADLINE, "%s after %d ms", err_msg(&err), LIMIT_DEVICE_WAIT_MS);
        err_move(&err, &late);
    }
    end_waiting(p, r > 0 ? NULL : &err);
    if (first)
        log_configured(p);
}

static void deadline_passed(struct loop_source *src, void *arg)
{
    struct pod *p = arg;
    (void)src;
    if (p->waiting != NULL)
        try_devices(p, true);
}

void pod_configure(struct pod *p, const request *req, pod_configured_fn done, void *arg)
{
    auto_err struct err err = ERR_INIT;
    if (p->waiting != NULL) {
        err_set(&err, ERR_ABORTED, "another ConfigurePod came");
        end_waiting(p, &err);
        err_clear(&err);
    }
    timeline_end(&p->timeline);
    timeline_begin(&p->timeline);
    if (check(p, req, &err) < 0 || configure_identity(p, req, &err) < 0 ||
        loop_set_timer(p->deadline, WAIT_NS) < 0) {
        if (err.code == ERR_OK)
            err_set(&err, ERR_INTERNAL, "set the deadline for devices");
        done(arg, &err);
        return;
    }
    p->waiting = req;
    p->done = done;
    p->done_arg = arg;
    try_devices(p, false);
}

/* A file comes and goes: the file system's tables of free blocks and inodes are then in memory. */
static int try_scratch(const struct pod *p, struct err *err)
{
    auto_free char *dir = fs_format("%s/first", p->dir_scratch);
    auto_free char *file = fs_format("%s/file", dir);
    if (fs_mkdir_p(dir, 0700, err) < 0 || write_file(file, "", 1, err) < 0)
        return -1;
    auto_close int fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0) /* blocks are found when it is written */
        return err_sys(err, errno, "write %s", file);
    return fs_rm_rf(dir, err);
}

int pod_prepare(struct pod *p, const char *scratch_disk, struct err *err)
{
    if (!p->guest || *p->id != '\0' || p->waiting != NULL)
        return err_set(err, ERR_PRECONDITION, "this is no guest without a pod");
    if (!disk_serial_valid(scratch_disk))
        return err_set(err, ERR_INVALID, "scratch_disk: not a disk serial: \"%.40s\"",
                       scratch_disk);
    if (fs_mkdir_p(p->dir_shm, 0755, err) < 0 || mount_shm(p, SHM_DEFAULT, err) < 0 ||
        net_prepare(err) < 0)
        return -1;
    disks_learn(p->disks, "/sys");
    return mount_scratch(p, scratch_disk, err) > 0 && try_scratch(p, err) == 0 ? 0 : -1;
}

void pod_device_appeared(struct pod *p)
{
    if (p->waiting != NULL)
        try_devices(p, false);
    disks_rescan(p->disks);
}

/* --- images and namespaces ---------------------------------------------------------------- */

void pod_image_acquire(struct pod *p, const char *serial, pod_image_fn done, void *arg)
{
    disks_acquire(p->disks, serial, done, arg);
}

void pod_image_give_up(struct pod *p, const void *arg)
{
    disks_give_up(p->disks, arg);
}

void pod_image_release(struct pod *p, const char *serial)
{
    disks_release(p->disks, serial);
}

int pod_image_name(struct pod *p, const char *serial, const char *disk, struct err *err)
{
    return disks_name(p->disks, serial, disk, err);
}

int pod_image_detach(struct pod *p, const char *serial, struct err *err)
{
    return disks_detach(p->disks, serial, err);
}

const char *const *pod_images(const struct pod *p)
{
    return disks_mounted(p->disks);
}

const char *pod_shared_pidns(struct pod *p, struct err *err)
{
    if (p->pidns_init == 0) {
        pid_t pid = pidns_start(err);
        if (pid < 0)
            return NULL;
        p->pidns_init = pid;
        p->pidns_path = fs_format("/proc/%d/ns/pid", (int)pid);
    }
    return p->pidns_path;
}

void pod_reaped(struct pod *p, pid_t pid)
{
    if (p->pidns_init == 0 || pid != p->pidns_init)
        return;
    /* With its init the namespace is dead and so are all its processes; the next container gets a
     * new one. */
    log_error("the shared process namespace's init is gone", LOG_INT("pid", pid));
    p->pidns_init = 0;
    free(p->pidns_path);
    p->pidns_path = NULL;
}
