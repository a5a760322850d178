#include "cri/check.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <pwd.h>
#include <sched.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/loop.h"
#include "base/str.h"
#include "cri/config.h"

#define MIN_DISK GiB(1)
#define LOW_DISK GiB(10)

enum verdict { GOOD, NOTE, BAD };

struct check {
    const struct config *config;
    FILE *out;
    bool bad;
};

__attribute__((format(printf, 4, 5))) static void say(struct check *c, enum verdict v,
                                                      const char *what, const char *fmt, ...)
{
    static const char *const marks[] = {"ok  ", "note", "FAIL"};
    va_list ap;
    va_start(ap, fmt);
    (void)fprintf(c->out, "%s  %-13s ", marks[v], what);
    (void)vfprintf(c->out, fmt, ap);
    (void)fputc('\n', c->out);
    va_end(ap);
    if (v == BAD)
        c->bad = true;
}

static void check_file(struct check *c, const char *what, const char *path, int mode,
                       const char *hint)
{
    if (access(path, mode) == 0)
        say(c, GOOD, what, "%s", path);
    else
        say(c, BAD, what, "%s: %s%s%s", path, strerror(errno), hint[0] != '\0' ? "; " : "", hint);
}

static void check_device(struct check *c, const char *what, const char *path, enum verdict missing,
                         const char *good, const char *bad)
{
    auto_close int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd >= 0)
        say(c, GOOD, what, "%s can be opened%s%s", path, good[0] != '\0' ? "; " : "", good);
    else
        say(c, missing, what, "%s: %s; %s", path, strerror(errno), bad);
}

static void *new_netns(void *arg)
{
    int *rc = arg;
    *rc = unshare(CLONE_NEWNET) == 0 ? 0 : errno;
    return NULL;
}

/* On a thread of its own, so that ours stays where it is. */
static void check_netns(struct check *c)
{
    int rc = 0;
    pthread_t thread;
    if (pthread_create(&thread, NULL, new_netns, &rc) != 0)
        return;
    (void)pthread_join(thread, NULL);
    if (rc == 0)
        say(c, GOOD, "netns", "network namespaces can be made");
    else
        say(c, BAD, "netns", "cannot make a network namespace: %s", strerror(rc));
}

static void check_cgroup(struct check *c)
{
    struct statfs fs;
    if (statfs("/sys/fs/cgroup", &fs) < 0)
        say(c, BAD, "cgroup", "/sys/fs/cgroup: %s", strerror(errno));
    else if (fs.f_type == CGROUP2_SUPER_MAGIC)
        say(c, GOOD, "cgroup", "version 2");
    else if (fs_exists("/sys/fs/cgroup/unified/cgroup.controllers"))
        say(c, GOOD, "cgroup", "version 1 with a version 2 tree beside it");
    else if (fs_exists("/sys/fs/cgroup/memory"))
        say(c, GOOD, "cgroup", "version 1");
    else
        say(c, NOTE, "cgroup", "no memory controller is mounted: pods are not limited");
}

/* What the machine folder finds out about QEMU, kernel and transport. */
static void check_facts(struct check *c, struct loop *loop)
{
    auto_err struct err err = ERR_INIT;
    struct machine_factory *f = machine_factory_new(&c->config->machine, loop, loop, &err);
    struct machine_facts facts = {0};
    if (f == NULL || machine_facts(f, &facts, &err) < 0) {
        say(c, BAD, "machine", "%s", err_msg(&err));
    } else {
        if (facts.qemu_version != NULL)
            say(c, GOOD, "qemu version", "%s", facts.qemu_version);
        if (facts.kernel_release != NULL)
            say(c, GOOD, "guest kernel", "%s", facts.kernel_release);
        if (facts.accel == ACCEL_AUTO)
            say(c, GOOD, "accelerator", "auto: decided when the first guest boots");
        else
            say(c, facts.accel == ACCEL_TCG ? NOTE : GOOD, "accelerator", "%s: %s",
                facts.accel == ACCEL_KVM ? "kvm" : "tcg (emulation)",
                facts.accel_reason != NULL ? facts.accel_reason : "");
        say(c, GOOD, "transport", "%s: %s", transport_name(facts.transport),
            facts.transport_reason != NULL ? facts.transport_reason : "");
        if (facts.ready)
            say(c, GOOD, "machine", "pods' machines can be started");
        else
            say(c, BAD, "machine", "%s",
                facts.not_ready_reason != NULL ? facts.not_ready_reason : "not ready");
        machine_facts_clear(&facts);
    }
    machine_factory_free(f);
}

static void check_cni(struct check *c, struct loop *loop)
{
    auto_err struct err err = ERR_INIT;
    struct cni *cni = cni_new(&c->config->cni, loop, &err);
    if (cni == NULL) {
        say(c, BAD, "network", "%s", err_msg(&err));
        return;
    }
    auto_free char *reason = NULL;
    auto_free char *message = NULL;
    auto_free char *network = NULL;
    if (cni_ready(cni, &reason, &message, &network))
        say(c, GOOD, "network", "CNI network `%s` from %s", network != NULL ? network : "",
            c->config->cni.conf_dir);
    else
        say(c, BAD, "network", "%s", message != NULL ? message : "no CNI network is configured");
    cni_free(cni);
}

/* The file system that a directory is on or will be made on. */
static void check_disk(struct check *c, const char *what, const char *dir)
{
    auto_free char *path = xstrdup(dir);
    while (!fs_exists(path)) {
        char *slash = strrchr(path, '/');
        if (slash == path) {
            path[1] = '\0';
            break;
        }
        *slash = '\0';
    }
    struct statvfs fs;
    if (statvfs(path, &fs) < 0) {
        say(c, BAD, what, "%s: %s", path, strerror(errno));
        return;
    }
    uint64_t left = (uint64_t)fs.f_bavail * fs.f_frsize;
    enum verdict v = left < MIN_DISK ? BAD : left < LOW_DISK ? NOTE : GOOD;
    say(c, v, what, "%s: %llu MiB free%s", dir, (unsigned long long)(left >> 20),
        v == BAD ? ", too little for images" : "");
}

/* The machines' uids must be nobody else's. */
static void check_uids(struct check *c)
{
    const struct machine_config *m = &c->config->machine;
    auto_fclose FILE *f = fopen("/etc/passwd", "re");
    const struct passwd *p;
    while (f != NULL && (p = fgetpwent(f)) != NULL)
        if (p->pw_uid >= m->uid_base && p->pw_uid - m->uid_base < m->uid_count) {
            say(c, BAD, "uids", "%u of machine.uid_base is the user %s", (unsigned)p->pw_uid,
                p->pw_name);
            return;
        }
    say(c, GOOD, "uids", "%u to %u are for machines", m->uid_base, m->uid_base + m->uid_count - 1);
}

static void check_memory(struct check *c)
{
    auto_err struct err err = ERR_INIT;
    auto_free char *text = fs_read("/proc/meminfo", KiB(64), NULL, &err);
    const char *at = text != NULL ? strstr(text, "MemAvailable:") : NULL;
    if (at == NULL)
        return;
    unsigned long long kib = strtoull(at + strlen("MemAvailable:"), NULL, 10);
    bool low = kib * 1024 < c->config->machine.overhead_memory_bytes + MiB(128);
    say(c, low ? NOTE : GOOD, "memory", "%llu MiB available", kib >> 10);
}

static void *run_loop(void *arg)
{
    loop_run(arg);
    return NULL;
}

/* What needs a running loop. */
static void check_parts(struct check *c)
{
    auto_err struct err err = ERR_INIT;
    struct loop *loop = loop_new(&err);
    pthread_t thread;
    if (loop == NULL || pthread_create(&thread, NULL, run_loop, loop) != 0) {
        say(c, BAD, "loop", "%s", err_msg(&err));
        return;
    }
    check_facts(c, loop);
    check_cni(c, loop);
    loop_stop(loop);
    (void)pthread_join(thread, NULL);
    loop_free(loop);
}

int check_machine(const struct config *config, FILE *out)
{
    struct check c = {.config = config, .out = out};
    say(&c, GOOD, "version", "aspis " ASPIS_VERSION);
    if (config->file != NULL)
        say(&c, GOOD, "config", "%s", config->file);
    else
        say(&c, GOOD, "config", "defaults; there is no " CONFIG_DEFAULT_PATH);
    if (geteuid() == 0)
        say(&c, GOOD, "user", "root");
    else
        say(&c, BAD, "user", "not root: aspisd makes namespaces, taps and cgroups");

    check_file(&c, "qemu", config->machine.qemu, X_OK, "install qemu-system-x86");
    check_file(&c, "kernel", config->machine.kernel, R_OK, "make it with deploy/guest/prepare");
    check_file(&c, "initrd", config->machine.initrd, R_OK, "make it with deploy/guest/mkinitrd");
    check_file(&c, "jail", config->machine.jail_helper, X_OK, "");
    check_file(&c, "file server", config->machine.share_helper, X_OK, "");
    check_file(&c, "agent", config->machine.agent, X_OK, "");
    check_file(&c, "unpacker", config->images.unpacker, X_OK, "");

    check_device(&c, "kvm", "/dev/kvm", config->machine.accel == ACCEL_KVM ? BAD : NOTE,
                 "whether it works shows when the first guest boots", "guests are emulated (tcg)");
    check_device(&c, "vsock", "/dev/vhost-vsock",
                 config->machine.transport == TRANSPORT_VSOCK ? BAD : NOTE, "",
                 "the link uses virtio-serial");
    check_device(&c, "tun", "/dev/net/tun", BAD, "", "pods get no network");
    check_netns(&c);
    check_cgroup(&c);
    check_uids(&c);
    check_memory(&c);
    check_disk(&c, "disk", config->state_root);
    if (!str_starts(config->images.root, config->state_root))
        check_disk(&c, "image disk", config->images.root);

    check_parts(&c);
    (void)fprintf(out, "%s\n", c.bad ? "Pods cannot run here yet." : "Pods can run here.");
    return c.bad ? 1 : 0;
}
