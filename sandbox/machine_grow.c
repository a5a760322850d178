/*
 * A machine's size after its start. What a clone lacks is added as soon as its agent answers. A VM
 * of a pod without a memory limit grows further each time that its guest says that memory runs
 * short, up to the configured ceiling; the guest holds its containers back meanwhile.
 *
 * Growing doubles a VM: memory that the guest does not use costs the host nothing but the guest's
 * own tables for it (1/64), and what it has used and freed comes back by free page reporting.
 */
#include <errno.h>
#include <inttypes.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/log.h"
#include "sandbox/cgroup.h"
#include "sandbox/lock.h"
#include "sandbox/machine_grow.h"

#define AGENT_NS INT64_C(20000000000)
/* After which a VM for which the host had no memory may ask for some again. */
#define HOST_SHORT_S 10

static uint64_t steps(uint64_t bytes)
{
    return (bytes + HV_MEMORY_STEP - 1) / HV_MEMORY_STEP * HV_MEMORY_STEP;
}

int machine_grow_init(struct machine *m, struct err *err)
{
    (void)pthread_mutex_init(&m->sizing, NULL);
    (void)pthread_cond_init(&m->pressed, NULL);
    m->stop = cancel_new(0, err);
    return m->stop != NULL ? 0 : -1;
}

void machine_grow_free(struct machine *m)
{
    if (m->stop != NULL)
        cancel_fire(m->stop);
    (void)pthread_mutex_lock(&m->lock);
    m->grower_ends = true;
    bool runs = m->grower_runs;
    (void)pthread_cond_signal(&m->pressed);
    (void)pthread_mutex_unlock(&m->lock);
    if (runs)
        (void)pthread_join(m->grower, NULL);
    cancel_unref(m->stop);
    m->stop = NULL;
    (void)pthread_cond_destroy(&m->pressed);
    (void)pthread_mutex_destroy(&m->sizing);
}

/* --- the agent's side --- */

static int ask_agent(struct machine *m, uint64_t added, uint32_t vcpus, bool watch,
                     struct hv_size *got, struct cancel *cancel, struct err *err)
{
    Aspis__Agent__V1__ResizeRequest req;
    aspis__agent__v1__resize_request__init(&req);
    req.added_bytes = added;
    req.vcpus = vcpus;
    req.watch_memory = watch;
    req.huge_bytes = m->huge_bytes;
    auto_cancel struct cancel *limit = cancel_child(cancel, mono_ns() + AGENT_NS, err);
    auto_arena struct arena *a = arena_new(LIMIT_RPC_MESSAGE);
    if (limit == NULL || a == NULL)
        return limit == NULL ? -1 : err_sys(err, ENOMEM, "resize");
    const Aspis__Agent__V1__ResizeResponse *r =
        (const Aspis__Agent__V1__ResizeResponse *)(const void *)link_call(
            m->link, "Resize", &req.base, &aspis__agent__v1__resize_response__descriptor, a, limit,
            err);
    if (r == NULL)
        return -1;
    got->added_bytes = r->added_bytes;
    got->vcpus = r->vcpus;
    if (r->huge_bytes < m->huge_bytes)
        return err_set(err, ERR_EXHAUSTED,
                       "the guest could make %" PRIu64 " of %" PRIu64 " MiB into huge pages",
                       r->huge_bytes / MiB(1), m->huge_bytes / MiB(1));
    return 0;
}

/* --- under m->sizing --- */

static uint64_t ceiling(const struct machine *m)
{
    const struct machine_config *c = &m->f->config;
    uint64_t most = m->f->host_memory_bytes;
    if (c->max_memory_bytes != 0 && c->max_memory_bytes < most)
        most = c->max_memory_bytes;
    if (c->memory_ceiling_bytes != 0 && c->memory_ceiling_bytes < most)
        most = c->memory_ceiling_bytes;
    return most + m->huge_bytes;
}

static void remember(struct machine *m, uint64_t added, uint32_t vcpus)
{
    (void)pthread_mutex_lock(&m->lock);
    m->record.memory_bytes = m->record.boot_bytes + added;
    if (vcpus > 0)
        m->record.vcpus = vcpus;
    (void)pthread_mutex_unlock(&m->lock);
}

/* Whether the guest is to say when memory runs short. */
static bool watched(const struct machine *m)
{
    return !m->limited && m->record.memory_bytes < ceiling(m);
}

static int set_size(struct machine *m, uint64_t added, uint32_t vcpus, struct cancel *cancel,
                    struct err *err)
{
    struct hv_size got = {0};
    if (m->ops->resize(m->hv, added, vcpus, cancel, err) < 0)
        return -1;
    bool watch = !m->limited && !m->host_short && m->record.boot_bytes + added < ceiling(m);
    if (ask_agent(m, added, vcpus, watch, &got, cancel, err) < 0)
        return -1;
    if (got.added_bytes < added || got.vcpus < vcpus)
        return err_set(err, ERR_UNAVAILABLE,
                       "the guest took in %" PRIu64 " of %" PRIu64 " MiB and runs %" PRIu32
                       " of %" PRIu32 " vcpus",
                       got.added_bytes / MiB(1), added / MiB(1), got.vcpus, vcpus);
    /* less was asked for: the guest may not have let go of all yet */
    struct hv_size now;
    if (m->ops->size(m->hv, &now, cancel, err) < 0)
        return -1;
    remember(m, now.added_bytes, got.vcpus);
    return 0;
}

/* --- the start --- */

int machine_fit(struct machine *m, const struct machine_spec *spec, struct cancel *cancel,
                struct err *err)
{
    if (machine_on_host(m))
        return 0;
    struct machine_size want = machine_spec_size(m->f, spec);
    uint64_t boot = m->record.boot_bytes;
    uint64_t added = want.memory_bytes > boot ? steps(want.memory_bytes - boot) : 0;
    m->limited = spec->memory_limit_bytes != 0;
    if (added > 0 || want.vcpus > m->record.vcpus) {
        if (set_size(m, added, want.vcpus, cancel, err) < 0)
            return err_wrap(err, "grow the vm");
        return 0;
    }
    /* a template's guest watches already, and a limited pod's is told when it complains */
    struct hv_size got;
    auto_err struct err e = ERR_INIT;
    if (!m->record.cloned && watched(m) && ask_agent(m, 0, 0, true, &got, cancel, &e) < 0 &&
        e.code != ERR_UNIMPLEMENTED) { /* an older agent in the guest */
        (void)err_wrap(&e, "watch the guest's memory");
        return err_move(err, &e);
    }
    return 0;
}

int machine_learn_size(struct machine *m, const struct machine_spec *spec, struct cancel *cancel,
                       struct err *err)
{
    struct hv_size now;
    if (machine_on_host(m))
        return 0;
    m->limited = spec->memory_limit_bytes != 0;
    m->huge_bytes = spec->huge_bytes;
    m->vcpus_pinned = true; /* who knows */
    if (m->ops->size(m->hv, &now, cancel, err) < 0)
        return err_wrap(err, "learn the vm's size");
    remember(m, now.added_bytes, now.vcpus);
    /* an earlier daemon may have told it that the host has no room */
    struct hv_size got;
    auto_err struct err e = ERR_INIT;
    if (watched(m) && ask_agent(m, now.added_bytes, now.vcpus, true, &got, cancel, &e) < 0)
        log_warn("cannot watch the guest's memory", LOG_STR("sandbox", m->id),
                 LOG_STR("error", err_msg(&e)));
    return 0;
}

/* --- later --- */

/* Nothing of a VM's size is to be changed, as far as is known here. */
static bool fits(struct machine *m, const struct machine_spec *spec,
                 const struct machine_size *want)
{
    (void)pthread_mutex_lock(&m->lock);
    uint64_t boot = m->record.boot_bytes;
    uint64_t added = want->memory_bytes > boot ? steps(want->memory_bytes - boot) : 0;
    bool limited = spec->memory_limit_bytes != 0;
    bool ok =
        m->limited == limited && want->vcpus <= m->record.vcpus &&
        m->huge_bytes == spec->huge_bytes &&
        (limited ? m->record.memory_bytes == boot + added : m->record.memory_bytes >= boot + added);
    (void)pthread_mutex_unlock(&m->lock);
    return ok;
}

/* Huge pages are beside all other memory, in the VM and on the host, whose control groups know
 * nothing of them: to the host they are ordinary memory. */
static int check_huge(struct machine *m, const struct machine_spec *spec,
                      const struct machine_size *want, struct err *err)
{
    const struct machine_config *c = &m->f->config;
    uint64_t most = m->f->host_memory_bytes;
    if (c->max_memory_bytes != 0 && c->max_memory_bytes < most)
        most = c->max_memory_bytes;
    uint64_t allowed = spec->huge_bytes > 0 ? cgroup_memory_limit(m->record.cgroup) : UINT64_MAX;
    if (spec->huge_bytes == 0)
        return 0;
    if (want->memory_bytes > most)
        return err_set(err, ERR_PRECONDITION,
                       "with %" PRIu64 " MiB of huge pages the vm needs %" PRIu64
                       " MiB; it can have %" PRIu64 " MiB at most",
                       spec->huge_bytes / MiB(1), want->memory_bytes / MiB(1), most / MiB(1));
    if (spec->memory_limit_bytes > allowed || allowed - spec->memory_limit_bytes < spec->huge_bytes)
        return err_set(err, ERR_PRECONDITION,
                       "the pod's %" PRIu64 " MiB of huge pages are ordinary memory of the host, "
                       "where its control group may use %" PRIu64 " MiB; with its memory limit it "
                       "needs %" PRIu64 " MiB: give its RuntimeClass an overhead",
                       spec->huge_bytes / MiB(1), allowed / MiB(1),
                       (spec->memory_limit_bytes + spec->huge_bytes) / MiB(1));
    return 0;
}

int machine_resize(struct machine *m, const struct machine_spec *spec, struct cancel *cancel,
                   struct err *err)
{
    struct machine_size want = machine_spec_size(m->f, spec);
    struct hv_size now;
    if (machine_on_host(m) || fits(m, spec, &want))
        return 0;
    if (check_huge(m, spec, &want, err) < 0 ||
        lock_within(&m->sizing, cancel, "another change of the vm's size", err) < 0)
        return -1;
    int ret = m->ops->size(m->hv, &now, cancel, err);
    if (ret == 0) {
        uint64_t boot = m->record.boot_bytes;
        uint64_t added = want.memory_bytes > boot ? steps(want.memory_bytes - boot) : 0;
        bool other_pages = m->huge_bytes != spec->huge_bytes;
        m->limited = spec->memory_limit_bytes != 0;
        m->huge_bytes = spec->huge_bytes;
        /* without a limit it keeps what it has grown to */
        if (!m->limited && added < now.requested_bytes)
            added = now.requested_bytes;
        if (added > now.max_added_bytes)
            ret = err_set(err, ERR_EXHAUSTED,
                          "the vm can have %" PRIu64 " MiB at most, %" PRIu64 " are needed",
                          (boot + now.max_added_bytes) / MiB(1), (boot + added) / MiB(1));
        else if (added != now.requested_bytes || added > now.added_bytes ||
                 want.vcpus > now.vcpus || other_pages)
            ret = set_size(m, added, want.vcpus > now.vcpus ? want.vcpus : now.vcpus, cancel, err);
        else
            remember(m, now.added_bytes, now.vcpus);
    }
    (void)pthread_mutex_unlock(&m->sizing);
    return ret < 0 ? err_wrap(err, "resize the vm") : 0;
}

int machine_set_cpuset(struct machine *m, const char *cpus, const char *mems, struct err *err)
{
    if (machine_on_host(m))
        return 0; /* each container has its own */
    int ret = 0;
    if (lock_within(&m->sizing, NULL, "another change of the vm's size", err) < 0)
        return -1;
    bool wanted = *cpus != '\0' || *mems != '\0';
    if (wanted || m->pinned) {
        m->pinned = true;
        if (cgroup_set_cpuset(m->record.cgroup, "cpuset.cpus", cpus, err) < 0 ||
            cgroup_set_cpuset(m->record.cgroup, "cpuset.mems", mems, err) < 0)
            ret = err_wrap(err, "cpuset of the vm");
        else
            m->pinned = wanted;
    }
    (void)pthread_mutex_unlock(&m->sizing);
    return ret;
}

int machine_pin_vcpus(struct machine *m, char *const *lists, size_t n, struct cancel *cancel,
                      struct err *err)
{
    if (machine_on_host(m))
        return 0;
    if (lock_within(&m->sizing, cancel, "another change of the vm's size", err) < 0)
        return -1;
    int ret = 0;
    if (lists != NULL || m->vcpus_pinned) {
        m->vcpus_pinned = true;
        ret = m->ops->pin(m->hv, lists, n, cancel, err);
        if (ret == 0)
            m->vcpus_pinned = lists != NULL;
    }
    (void)pthread_mutex_unlock(&m->sizing);
    return ret < 0 ? err_wrap(err, "cpusets of the vcpus") : 0;
}

/* As much of a growth as the host has room for. What gets none stops complaining, so that its own
 * OOM killer acts, as at the ceiling; grower_thread() lets it ask again later. */
static uint64_t granted(struct machine *m, const struct hv_size *now, uint64_t added)
{
    uint64_t want = added > now->requested_bytes ? added - now->requested_bytes : 0;
    if (want == 0)
        return added;
    uint64_t got = host_memory_grant(&m->f->host_memory, want, HV_MEMORY_STEP,
                                     m->f->config.host_reserve_bytes);
    m->host_short = got == 0;
    if (got < want)
        log_warn("the host is short of memory: a pod without a limit gets less",
                 LOG_STR("sandbox", m->id), LOG_INT("wanted_mib", (int64_t)(want / MiB(1))),
                 LOG_INT("got_mib", (int64_t)(got / MiB(1))));
    return now->requested_bytes + got;
}

/* The guest is short of memory: more, or the news that there is no more. */
static int relieve(struct machine *m, struct err *err)
{
    struct hv_size now;
    if (lock_within(&m->sizing, m->stop, "another change of the vm's size", err) < 0)
        return -1;
    int ret = m->ops->size(m->hv, &now, m->stop, err);
    if (ret == 0) {
        uint64_t boot = m->record.boot_bytes;
        uint64_t most = ceiling(m);
        uint64_t total = boot + now.requested_bytes;
        uint64_t added = now.requested_bytes + steps(total);
        if (m->limited || total >= most)
            added = now.requested_bytes;
        else if (boot + added > most)
            added = steps(most - boot);
        if (added > now.max_added_bytes)
            added = now.max_added_bytes;
        added = granted(m, &now, added);
        ret = set_size(m, added, now.vcpus, m->stop, err);
        if (ret == 0)
            log_info("the guest is short of memory", LOG_STR("sandbox", m->id),
                     LOG_INT("had_mib", (int64_t)(total / MiB(1))),
                     LOG_INT("has_mib", (int64_t)((boot + added) / MiB(1))));
    }
    (void)pthread_mutex_unlock(&m->sizing);
    return ret;
}

/* The host had no room for this VM, and may have some now: the guest may say again when it is
 * short. */
static int watch_again(struct machine *m, struct err *err)
{
    struct hv_size now;
    if (lock_within(&m->sizing, m->stop, "another change of the vm's size", err) < 0)
        return -1;
    m->host_short = false;
    int ret = m->ops->size(m->hv, &now, m->stop, err);
    if (ret == 0)
        ret = set_size(m, now.requested_bytes, now.vcpus, m->stop, err);
    (void)pthread_mutex_unlock(&m->sizing);
    return ret;
}

/* Under m->lock: true when the guest was told that there is no more, and that was a while ago. */
static bool wait_for_press(struct machine *m)
{
    struct timespec until;
    if (!m->host_short) {
        (void)pthread_cond_wait(&m->pressed, &m->lock);
        return false;
    }
    (void)clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += HOST_SHORT_S;
    return pthread_cond_timedwait(&m->pressed, &m->lock, &until) == ETIMEDOUT;
}

static void *grower_thread(void *arg)
{
    struct machine *m = arg;
    (void)pthread_mutex_lock(&m->lock);
    while (!m->grower_ends) {
        bool later = false;
        if (!m->short_of_memory) {
            later = wait_for_press(m);
            if (!later || m->grower_ends)
                continue;
        }
        m->short_of_memory = false;
        (void)pthread_mutex_unlock(&m->lock);
        auto_err struct err err = ERR_INIT;
        if ((later ? watch_again(m, &err) : relieve(m, &err)) < 0 &&
            cancel_check(m->stop, NULL) == 0)
            log_warn("a guest that is short of memory gets none", LOG_STR("sandbox", m->id),
                     LOG_STR("error", err_msg(&err)));
        (void)pthread_mutex_lock(&m->lock);
    }
    (void)pthread_mutex_unlock(&m->lock);
    return NULL;
}

void machine_press(struct machine *m)
{
    (void)pthread_mutex_lock(&m->lock);
    m->short_of_memory = true;
    if (!m->grower_runs && !m->grower_ends)
        m->grower_runs = pthread_create(&m->grower, NULL, grower_thread, m) == 0;
    (void)pthread_cond_signal(&m->pressed);
    (void)pthread_mutex_unlock(&m->lock);
}
