/*
 * The zygote: a spare VM, warmed up and then stopped for good, whose process is copied for each new
 * VM, with the code that it has translated. `cri` makes it (cri/spare) and owns it.
 *
 * A copy is a clone that was warmed up: everything that clones are given (MAC, entropy, names,
 * time) it is given too, in ConfigurePod. While there is no zygote, or after copying failed, VMs
 * are cloned from the template. Whether copies work with this QEMU and C library is found out by
 * the first one, which is a spare: before that no pod is one.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "sandbox/template.h"

#define FREEZE_MS 600000 /* of the guest's time, which stands still with the VM */
/* It answers within a twentieth of a second on an idle host. */
#define FORK_TIMEOUT_NS INT64_C(15000000000)

bool machine_can_fork(struct machine_factory *f)
{
    (void)pthread_mutex_lock(&f->lock);
    bool emulated = f->accel == ACCEL_TCG;
    (void)pthread_mutex_unlock(&f->lock);
    return f->config.fork && f->fork_library != NULL && f->transport == TRANSPORT_VIRTIO_SERIAL &&
           f->hv->freeze != NULL && emulated;
}

static int tell(struct machine *m, const char *method, const ProtobufCMessage *req,
                struct cancel *cancel, struct err *err)
{
    auto_arena struct arena *arena = arena_new(LIMIT_RPC_MESSAGE);
    return arena != NULL && link_call(m->link, method, req, &aspis__agent__v1__empty__descriptor,
                                      arena, cancel, err) != NULL
               ? 0
               : err_wrap(err, "%s", method);
}

int machine_freeze(struct machine *m, struct cancel *cancel, struct err *err)
{
    /* so that BecomePod can follow, in the copies */
    Aspis__Agent__V1__FreezePodRequest req;
    aspis__agent__v1__freeze_pod_request__init(&req);
    req.limit_ms = FREEZE_MS;
    if (tell(m, "FreezePod", &req.base, cancel, err) < 0)
        return err_wrap(err, "vm %.12s", m->id);
    /* the guest is to see its ports closed, as a copy's are until the daemon connects */
    link_close(m->link, "the vm is to be copied");
    return m->ops->freeze(m->hv, cancel, err) < 0 ? err_wrap(err, "vm %.12s", m->id) : 0;
}

void machine_set_zygote(struct machine_factory *f, struct machine *m, void (*failed)(void *arg),
                        void *arg)
{
    (void)pthread_rwlock_wrlock(&f->zygote_lock);
    f->zygote = m;
    atomic_store(&f->zygote_proven, false);
    f->zygote_failed = failed;
    f->zygote_arg = arg;
    (void)pthread_rwlock_unlock(&f->zygote_lock);
}

bool machine_is_copy(const struct machine *m)
{
    return m->forked;
}

static int become(struct machine *m, const char *from, struct cancel *cancel, struct err *err)
{
    Aspis__Agent__V1__BecomePodRequest req;
    aspis__agent__v1__become_pod_request__init(&req);
    auto_free char *old = xstrdup(from);
    req.from_id = old;
    req.sandbox_id = m->id;
    return tell(m, "BecomePod", &req.base, cancel, err);
}

/* Under zygote_lock. */
static struct machine *copy(struct machine_factory *f, const struct machine_spec *spec,
                            enum accel accel, const struct machine_callbacks *cb,
                            struct cancel *cancel, struct err *err)
{
    auto_free char *path = machine_scratch_path(f->zygote);
    auto_close int scratch = open(path, O_RDONLY | O_CLOEXEC);
    if (scratch < 0) {
        (void)err_sys(err, errno, "open %s", path);
        return NULL;
    }
    struct machine_how how = {.accel = accel,
                              .timeout_ns = f->config.boot_timeout_ns < FORK_TIMEOUT_NS
                                                ? f->config.boot_timeout_ns
                                                : FORK_TIMEOUT_NS,
                              .fork_of = f->zygote,
                              .fork_scratch_fd = scratch,
                              .guest_mac = f->zygote->guest_mac};
    struct machine *m = machine_boot(f, spec, &how, cb, cancel, err);
    if (m == NULL)
        return NULL;
    if (become(m, f->zygote->id, cancel, err) < 0) {
        (void)machine_destroy(m, NULL, NULL);
        machine_free(m);
        return NULL;
    }
    m->tpl = template_ref(f->zygote->tpl);
    m->forked = true;
    return m;
}

struct machine *machine_fork(struct machine_factory *f, const struct machine_spec *spec,
                             enum accel accel, const struct machine_callbacks *cb,
                             struct cancel *cancel)
{
    auto_err struct err err = ERR_INIT;
    struct machine_size size = machine_spec_size(f, spec);
    struct machine_size base = machine_base_size(f);
    struct machine *m = NULL;
    if (spec->zygote || spec->tap_fd < 0 || accel != ACCEL_TCG ||
        size.memory_bytes > base.max_memory_bytes || size.vcpus > base.max_vcpus)
        return NULL;
    (void)pthread_rwlock_rdlock(&f->zygote_lock);
    void (*failed)(void *arg) = f->zygote_failed;
    if (f->zygote != NULL && !spec->spare && !atomic_load(&f->zygote_proven)) {
        failed = NULL;
    } else if (f->zygote != NULL && machine_is_current(f->zygote)) {
        m = copy(f, spec, accel, cb, cancel, &err);
        if (m != NULL)
            atomic_store(&f->zygote_proven, true);
        if (m == NULL && cancel_check(cancel, NULL) == 0)
            log_warn("a copy of the zygote failed: its pod's vm is cloned",
                     LOG_STR("error", err_msg(&err)));
        else
            failed = NULL;
    }
    if (failed != NULL) /* also where it is only out of date */
        failed(f->zygote_arg);
    (void)pthread_rwlock_unlock(&f->zygote_lock);
    return m;
}
