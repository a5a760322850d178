/*
 * The accelerator's verdict. A /dev/kvm that opens proves nothing (nested and paravirtual hosts),
 * so `auto` means: a VM has reached its agent under KVM within the deadline. The verdict holds for
 * the daemon's life, and for this boot's later daemons with the same QEMU, kernel and initrd.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "sandbox/lock.h"
#include "sandbox/machine_internal.h"

static void add_file(struct buf *b, const char *path)
{
    struct stat st = {0};
    (void)stat(path, &st);
    (void)buf_printf(b, ";%s,%" PRIu64 ",%" PRId64 ".%ld,%" PRIu64, path, (uint64_t)st.st_size,
                     (int64_t)st.st_mtim.tv_sec, st.st_mtim.tv_nsec, (uint64_t)st.st_ino);
}

/* What a verdict depends on. */
static char *make_key(const struct machine_factory *f)
{
    auto_free char *boot = fs_boot_id(NULL);
    auto_buf struct buf b = BUF_INIT(KiB(32));
    (void)buf_puts(&b, boot != NULL ? boot : "?");
    add_file(&b, f->config.qemu);
    add_file(&b, f->config.kernel);
    add_file(&b, f->config.initrd);
    return buf_take(&b);
}

static char *cache_path(const struct machine_factory *f)
{
    return fs_format("%s/accel.json", f->config.run_root);
}

/* The reason given to others is never freed while the factory lives: a verdict is set once. The
 * first text ("not decided yet") is kept for whoever read it. */
static void set_verdict(struct machine_factory *f, enum accel accel, const char *reason)
{
    (void)pthread_mutex_lock(&f->lock);
    if (f->accel == ACCEL_AUTO) {
        f->accel_undecided_text = f->accel_reason;
        f->accel_reason = xstrdup(reason);
        f->accel = accel;
    }
    (void)pthread_mutex_unlock(&f->lock);
}

void accel_load(struct machine_factory *f)
{
    auto_free char *path = cache_path(f);
    size_t len = 0;
    auto_free char *text = fs_read(path, KiB(64), &len, NULL);
    auto_free char *key = make_key(f);
    json_auto_t *v = text != NULL ? json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL) : NULL;
    const char *theirs = json_string_value(json_object_get(v, "key"));
    const char *accel = json_string_value(json_object_get(v, "accel"));
    const char *reason = json_string_value(json_object_get(v, "reason"));
    if (theirs == NULL || accel == NULL || reason == NULL || key == NULL ||
        strcmp(theirs, key) != 0)
        return;
    if (strcmp(accel, "kvm") == 0)
        set_verdict(f, ACCEL_KVM, reason);
    else if (strcmp(accel, "tcg") == 0)
        set_verdict(f, ACCEL_TCG, reason);
}

static void store(const struct machine_factory *f, enum accel accel, const char *reason)
{
    auto_free char *path = cache_path(f);
    auto_free char *key = make_key(f);
    json_auto_t *v = json_pack("{s:s,s:s,s:s}", "key", key, "accel",
                               accel == ACCEL_KVM ? "kvm" : "tcg", "reason", reason);
    char *text = v != NULL ? json_dumps(v, 0) : NULL;
    /* a cache: without it the next daemon probes again */
    if (text != NULL && fs_mkdir_p(f->config.run_root, 0711, NULL) == 0)
        (void)fs_write_atomic(path, text, strlen(text), 0600, false, NULL);
    free(text);
}

/* What can be seen without booting anything. */
static int kvm_opens(struct err *err)
{
    auto_close int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0)
        return err_sys(err, errno, "open /dev/kvm");
    int version = ioctl(kvm, KVM_GET_API_VERSION, 0);
    if (version != KVM_API_VERSION)
        return err_set(err, ERR_UNIMPLEMENTED, "/dev/kvm has API version %d", version);
    auto_close int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    if (vm < 0)
        return err_sys(err, errno, "make a KVM VM");
    (void)fcntl(vm, F_SETFD, FD_CLOEXEC);
    return 0;
}

static void ignore_dead(void *arg, const char *reason)
{
    (void)arg;
    (void)reason;
}

static void ignore_event(void *arg, const Aspis__Agent__V1__Event *event)
{
    (void)arg;
    (void)event;
}

/* 0: KVM carried a guest to its agent. */
static int probe(struct machine_factory *f, struct cancel *cancel, struct err *err)
{
    char id[32] = "kvm-probe-";
    size_t n = strlen(id);
    fs_random_hex(id + n, 12);
    id[n + 12] = '\0';
    struct machine_spec spec = {.sandbox_id = id, .cgroup_parent = "", .tap_fd = -1};
    struct machine_callbacks cb = {.on_event = ignore_event, .on_dead = ignore_dead};
    if (FAILPOINT("machine.accel", err) < 0 || kvm_opens(err) < 0)
        return -1;
    struct machine_how how = {.accel = ACCEL_KVM, .timeout_ns = f->config.kvm_probe_timeout_ns};
    struct machine *m = machine_boot(f, &spec, &how, &cb, cancel, err);
    if (m == NULL)
        return -1;
    (void)machine_destroy(m, NULL, NULL);
    machine_free(m);
    return 0;
}

static enum accel decided(struct machine_factory *f)
{
    (void)pthread_mutex_lock(&f->lock);
    enum accel a = f->accel;
    (void)pthread_mutex_unlock(&f->lock);
    return a;
}

/* One line: the console's lines stay in the error of a failing pod, not in Status. */
static char *first_line(const char *text)
{
    return xstrndup(text, strcspn(text, "\n"));
}

static int decide(struct machine_factory *f, struct cancel *cancel, struct err *err)
{
    auto_err struct err e = ERR_INIT;
    int64_t start = mono_ns();
    enum accel accel = ACCEL_TCG;
    auto_free char *reason = NULL;
    if (probe(f, cancel, &e) == 0) {
        accel = ACCEL_KVM;
        reason = fs_format("kvm: guest reached the agent in %" PRId64 " ms",
                           (mono_ns() - start) / 1000000);
    } else if (cancel_check(cancel, err) < 0) {
        return err_wrap(err, "kvm probe"); /* the caller gave up: that says nothing about KVM */
    } else {
        auto_free char *why = first_line(err_msg(&e));
        reason = fs_format("tcg: kvm probe: %s", why);
    }
    set_verdict(f, accel, reason);
    store(f, accel, reason);
    return 0;
}

int machine_decide_accel(struct machine_factory *f, struct cancel *cancel, struct err *err)
{
    if (decided(f) != ACCEL_AUTO)
        return 0;
    if (lock_within(&f->deciding, cancel, "the kvm probe", err) < 0)
        return -1;
    int ret = decided(f) != ACCEL_AUTO ? 0 : decide(f, cancel, err);
    (void)pthread_mutex_unlock(&f->deciding);
    return ret;
}
