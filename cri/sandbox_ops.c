#include "cri/sandbox_ops.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/failpoint.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "cri/container_ops.h"
#include "cri/resources.h"
#include "cri/sandbox_net.h"
#include "cri/spec.h"
#include "cri/telemetry.h"

/* What undoing may take: longer than a CNI plugin's own timeout, shorter than a client's patience.
 */
#define UNDO_NS (150LL * 1000000000)

void sandbox_set_text(struct sandbox *s, char **field, char *owned)
{
    (void)pthread_mutex_lock(&s->rt->lock);
    free(*field);
    *field = owned;
    (void)pthread_mutex_unlock(&s->rt->lock);
}

/* --- machine --- */

struct machine_spec sandbox_machine_spec(struct sandbox *s)
{
    struct machine_spec spec = {.sandbox_id = s->rec.id,
                                .cgroup_parent = "",
                                .tap_fd = -1,
                                .backend = s->backend.backend,
                                .netns = backend_host_network(s->config) ? NULL : s->rec.netns,
                                .host_ipc = backend_host_ipc(s->config),
                                .host_uts = backend_host_network(s->config)};
    const Runtime__V1__LinuxPodSandboxConfig *l = s->config->linux;
    if (l != NULL)
        spec.cgroup_parent = l->cgroup_parent;
    resources_of_pod(s, &spec);
    return spec;
}

static void on_machine_event(void *arg, const Aspis__Agent__V1__Event *event)
{
    container_on_event(arg, event);
}

struct death {
    struct sandbox *s;
    char *reason;
};

/* On the worker loop: it writes records. */
static void bury_machine(void *arg)
{
    struct death *d = arg;
    struct sandbox *s = d->s;
    (void)pthread_mutex_lock(&s->rt->lock);
    bool expected = s->stopping || s->rec.phase != SANDBOX_READY;
    (void)pthread_mutex_unlock(&s->rt->lock);
    if (!expected) {
        auto_err struct err err = ERR_INIT;
        telemetry_machine_death();
        log_error("machine of sandbox died", LOG_STR("sandbox", s->rec.id),
                  LOG_STR("reason", d->reason));
        if (sandbox_set_phase(s, SANDBOX_NOTREADY, d->reason, &err) < 0)
            log_error("cannot record dead sandbox", LOG_STR("sandbox", s->rec.id),
                      LOG_STR("error", err_msg(&err)));
    }
    containers_lost(s, d->reason);
    sandbox_unref(s);
    free(d->reason);
    free(d);
}

static void on_machine_dead(void *arg, const char *reason)
{
    struct death *d = xcalloc(1, sizeof(*d));
    d->s = sandbox_ref(arg);
    d->reason = xstrdup(reason);
    loop_post(d->s->rt->worker, bury_machine, d);
}

const struct machine_callbacks sandbox_machine_callbacks = {
    .on_event = on_machine_event,
    .on_dead = on_machine_dead,
};

bool sandbox_set_machine(struct sandbox *s, struct machine *m)
{
    struct machine_record record = {0};
    machine_get_record(m, &record);
    char *text = machine_record_encode(&record);
    bool cloned = record.cloned;
    machine_record_clear(&record);
    (void)pthread_mutex_lock(&s->rt->lock);
    s->machine = m;
    free(s->rec.machine);
    s->rec.machine = text;
    (void)pthread_mutex_unlock(&s->rt->lock);
    return cloned;
}

static int machine_up(struct sandbox *s, int tap, struct timeline *t, struct cancel *cancel,
                      struct err *err)
{
    struct machine_spec spec = sandbox_machine_spec(s);
    spec.tap_fd = tap;
    spec.timeline = t;
    struct machine_callbacks cb = sandbox_machine_callbacks;
    cb.arg = s;
    if (FAILPOINT("sandbox.machine", err) < 0)
        return -1;
    int64_t begin = mono_ns();
    struct machine *m = machine_start(s->rt->deps.factory, &spec, &cb, cancel, err);
    if (m == NULL) {
        telemetry_machine_start(TELEMETRY_FAILED, 0);
        return -1;
    }
    telemetry_machine_start(sandbox_set_machine(s, m) ? TELEMETRY_CLONED : TELEMETRY_BOOTED,
                            mono_ns() - begin);
    return sandbox_save(s, err);
}

/* A spare VM, with its namespace, becomes the sandbox's, whose id it has; not claimed yet. */
static int adopt_spare(struct sandbox *s, struct spare *sp, struct err *err)
{
    sandbox_set_text(s, &s->rec.netns, take(sp->netns));
    (void)sandbox_set_machine(s, take(sp->machine));
    return sandbox_save(s, err);
}

static int claim_machine(struct sandbox *s, struct timeline *t, struct cancel *cancel,
                         struct err *err)
{
    struct machine_spec spec = sandbox_machine_spec(s);
    struct machine_callbacks cb = sandbox_machine_callbacks;
    cb.arg = s;
    int64_t begin = mono_ns();
    if (machine_claim(s->machine, &spec, &cb, cancel, err) < 0) {
        telemetry_machine_start(TELEMETRY_FAILED, 0);
        return -1;
    }
    telemetry_machine_start(TELEMETRY_SPARE, mono_ns() - begin);
    (void)sandbox_set_machine(s, s->machine); /* its record has another cgroup now */
    timeline_mark(t, "spare claimed");
    return 0;
}

/* The VM starts, or is claimed, on a thread of its own while the plugins run. */
struct machine_job {
    struct sandbox *s;
    bool claim; /* it is a spare that the sandbox has already */
    int tap;
    struct timeline *timeline;
    struct cancel *both; /* fired by whichever side fails first */
    struct err err;
    int64_t failed_at;
    int ret;
};

static void *machine_thread(void *arg)
{
    struct machine_job *j = arg;
    j->ret = j->claim ? claim_machine(j->s, j->timeline, j->both, &j->err)
                      : machine_up(j->s, j->tap, j->timeline, j->both, &j->err);
    if (j->ret < 0) {
        j->failed_at = mono_ns();
        cancel_fire(j->both);
    }
    return NULL;
}

/* VM and network at the same time. What one of them has made when the other fails is the caller's
 * to undo; *machines_fault tells which it was. */
static int network_and_machine_up(struct sandbox *s, int tap, bool claim, struct timeline *t,
                                  bool *machines_fault, struct cancel *cancel, struct err *err)
{
    auto_cancel struct cancel *both = cancel_child(cancel, 0, err);
    if (both == NULL)
        return -1;
    struct machine_job j = {.s = s, .claim = claim, .tap = tap, .timeline = t, .both = both};
    pthread_t thread;
    int rc = pthread_create(&thread, NULL, machine_thread, &j);
    if (rc != 0)
        return err_sys(err, rc, "start a thread");
    auto_err struct err net_err = ERR_INIT;
    int ret = sandbox_network_up(s, t, both, &net_err);
    int64_t failed_at = mono_ns();
    if (ret < 0)
        cancel_fire(both);
    (void)pthread_join(thread, NULL);
    *machines_fault = j.ret < 0 && (ret == 0 || j.failed_at < failed_at);
    if (*machines_fault)
        (void)err_move(err, &j.err); /* the first failure is the reason, a later one its echo */
    else if (ret < 0)
        (void)err_move(err, &net_err);
    err_clear(&j.err);
    return ret < 0 || j.ret < 0 ? -1 : 0;
}

static int machine_down(struct sandbox *s, struct cancel *cancel, struct err *err)
{
    if (s->machine != NULL) {
        if (machine_destroy(s->machine, cancel, err) < 0)
            return err_wrap(err, "stop machine");
        sandbox_drop_machine(s);
    } else if (s->rec.machine[0] != '\0') {
        struct machine_record record = {0};
        auto_err struct err why = ERR_INIT;
        bool known = machine_record_decode(s->rec.machine, &record, &why) == 0;
        if (!known) /* then by its name, as one that was never recorded */
            log_warn("sandbox's vm is looked for without its record", LOG_STR("sandbox", s->rec.id),
                     LOG_STR("error", err_msg(&why)));
        int rc = machine_destroy_record(s->rt->deps.factory, s->rec.id, known ? &record : NULL,
                                        cancel, err);
        machine_record_clear(&record);
        if (rc < 0)
            return err_wrap(err, "stop machine");
    } else if (s->rec.phase == SANDBOX_CREATING &&
               machine_destroy_record(s->rt->deps.factory, s->rec.id, NULL, cancel, err) < 0) {
        /* a daemon may have died between starting the VM and recording it */
        return err_wrap(err, "stop machine");
    }
    sandbox_set_text(s, &s->rec.machine, xstrdup(""));
    return sandbox_save(s, err);
}

/* --- run --- */

struct network_job {
    struct sandbox *s;
    struct timeline *timeline;
    struct cancel *cancel;
    struct err err;
    int ret;
};

static void *network_thread(void *arg)
{
    struct network_job *j = arg;
    j->ret = sandbox_network_down(j->s, j->cancel, &j->err);
    timeline_mark(j->timeline, "network");
    return NULL;
}

/* VM and network at the same time, each as far as it goes. */
static int machine_and_network_down(struct sandbox *s, struct timeline *t, struct cancel *cancel,
                                    struct err *err)
{
    struct network_job j = {.s = s, .timeline = t, .cancel = cancel};
    pthread_t thread;
    int rc = pthread_create(&thread, NULL, network_thread, &j);
    int ret = machine_down(s, cancel, err);
    timeline_mark(t, "machine");
    if (rc == 0)
        (void)pthread_join(thread, NULL);
    else
        (void)network_thread(&j);
    if (ret == 0 && j.ret < 0)
        (void)err_move(err, &j.err);
    err_clear(&j.err);
    return ret < 0 || j.ret < 0 ? -1 : 0;
}

int sandbox_teardown(struct sandbox *s, struct cancel *cancel, struct err *err)
{
    auto_free char *run_dir = sandbox_run_dir(s);
    if (machine_and_network_down(s, NULL, cancel, err) < 0)
        return -1;
    return fs_rm_rf(run_dir, err);
}

void sandbox_undo(struct sandbox *s, const struct err *cause)
{
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *own = cancel_new(mono_ns() + UNDO_NS, NULL);
    sandbox_set_undoing(s, true);
    if (sandbox_teardown(s, own, &err) == 0) {
        sandbox_forget(s);
        model_remove_sandbox(s->rt, s);
        return;
    }
    sandbox_set_undoing(s, false); /* it becomes one that clients see */
    log_error("cannot undo failed sandbox; it stays as not ready", LOG_STR("sandbox", s->rec.id),
              LOG_STR("error", err_msg(&err)));
    (void)sandbox_set_phase(s, SANDBOX_NOTREADY, err_msg(cause), NULL);
}

static int build_new(struct sandbox *s, struct timeline *t, struct cancel *cancel, struct err *err)
{
    auto_close int tap = -1;
    bool ignored;
    if (sandbox_namespace_up(s, &tap, err) < 0)
        return -1;
    timeline_mark(t, "namespace and tap");
    return network_and_machine_up(s, tap, false, t, &ignored, cancel, err);
}

/* 1: done; 0: the spare was no good and is gone, with its namespace. */
static int build_on_spare(struct sandbox *s, struct spare *sp, struct timeline *t,
                          struct cancel *cancel, struct err *err)
{
    auto_err struct err why = ERR_INIT;
    bool machines_fault = false;
    if (adopt_spare(s, sp, err) < 0)
        return -1;
    timeline_mark(t, "spare taken");
    if (network_and_machine_up(s, -1, true, t, &machines_fault, cancel, &why) == 0)
        return 1;
    if (!machines_fault || cancel_check(cancel, NULL) < 0)
        return err_move(err, &why);
    log_warn("a spare vm is unusable", LOG_STR("sandbox", s->rec.id),
             LOG_STR("error", err_msg(&why)));
    return sandbox_teardown(s, cancel, err) < 0 ? -1 : 0;
}

int sandbox_become_ready(struct sandbox *s, struct err *err)
{
    if (sandbox_set_phase(s, SANDBOX_READY, "", err) < 0)
        return -1;
    /* a death reported before it was READY changed nothing (bury_machine) */
    if (!machine_alive(s->machine))
        return err_set(err, ERR_UNAVAILABLE, "the machine died while it was set up");
    return 0;
}

static int build(struct sandbox *s, struct spare *sp, struct timeline *t, struct cancel *cancel,
                 struct err *err)
{
    if (sandbox_save(s, err) < 0 || FAILPOINT("sandbox.record", err) < 0)
        return -1;
    timeline_mark(t, "record");
    int rc = sp != NULL ? build_on_spare(s, sp, t, cancel, err) : 0;
    if (rc < 0 || (rc == 0 && build_new(s, t, cancel, err) < 0))
        return -1;
    if (FAILPOINT("sandbox.configure", err) < 0 ||
        sandbox_configure_pod(s, s->machine, cancel, err) < 0)
        return -1;
    timeline_mark(t, "pod configured");
    if (FAILPOINT("sandbox.ready", err) < 0)
        return -1;
    return sandbox_become_ready(s, err);
}

/* Another call is making this sandbox, or has made it. 1: it failed and is gone, try as the first.
 */
static int join(struct sandbox *holder, struct cancel *cancel, struct err *err)
{
    if (cancel_poll(cancel, holder->settled_fd, POLLIN, -1, err) < 0)
        return -1;
    (void)pthread_mutex_lock(&holder->rt->lock);
    enum sandbox_phase phase = holder->rec.phase;
    struct sandbox *listed = NULL;
    HASH_FIND(hh, holder->rt->sandboxes, holder->rec.id, strlen(holder->rec.id), listed);
    bool gone = listed != holder;
    (void)pthread_mutex_unlock(&holder->rt->lock);
    if (phase == SANDBOX_READY && !gone)
        return 0;
    if (phase == SANDBOX_CREATING || gone)
        return 1;
    return err_set(err, ERR_EXISTS, "sandbox %s exists as %.12s and is not ready; remove it first",
                   holder->name_key, holder->rec.id);
}

/* Takes a spare, whose id the sandbox gets, if it is for a VM and one is there; id is 65 bytes. */
static struct spare *choose_id(struct runtime *rt, enum backend backend, char *id)
{
    struct spare *sp = backend == BACKEND_VM ? spares_take(rt->spares) : NULL;
    if (sp != NULL)
        memcpy(id, sp->id, 65);
    else
        fs_random_hex(id, 64);
    return sp;
}

/* What is left of a spare once its sandbox is built, or not. */
static void settle_spare(struct runtime *rt, struct spare *sp)
{
    if (sp != NULL && sp->machine != NULL)
        spares_put_back(rt->spares, sp);
    else
        spare_free(sp);
    spares_yield(rt->spares);
}

struct sandbox *sandbox_run(struct runtime *rt, const Runtime__V1__PodSandboxConfig *config,
                            const char *handler, struct cancel *cancel, struct err *err)
{
    char title[200];
    struct backend_choice backend;
    if (backend_choose(config, handler, rt->deps.privileged_on_host, &backend, err) < 0)
        return NULL;
    for (;;) {
        char id[65];
        struct spare *sp = choose_id(rt, backend.backend, id);
        auto_sandbox struct sandbox *s = sandbox_new(rt, id, config, handler, err);
        auto_sandbox struct sandbox *holder = s != NULL ? model_add_sandbox(rt, s) : NULL;
        if (s == NULL || holder != NULL)
            settle_spare(rt, sp);
        if (s == NULL)
            return NULL;
        if (holder != NULL) {
            int rc = join(holder, cancel, err);
            if (rc == 0)
                return take(holder);
            if (rc < 0)
                return NULL;
            continue;
        }
        int64_t begin = mono_ns();
        struct timeline timeline;
        timeline_begin(&timeline);
        int rc = build(s, sp, &timeline, cancel, err);
        timeline_mark(&timeline, "ready");
        sandbox_set_text(s, &s->timeline, timeline_text(&timeline));
        timeline_end(&timeline);
        if (rc < 0) {
            (void)err_wrap(err, "%s", sandbox_title(s, title));
            sandbox_undo(s, err);
        } else {
            log_info("sandbox runs", LOG_STR("sandbox", s->rec.id), LOG_STR("pod", s->name_key),
                     LOG_INT("ms", (mono_ns() - begin) / 1000000));
            log_debug("timeline", LOG_STR("sandbox", s->rec.id), LOG_STR("ms", s->timeline));
        }
        settle_spare(rt, sp);
        (void)eventfd_write(s->settled_fd, 1);
        return rc < 0 ? NULL : take(s);
    }
}

/* --- stop and remove --- */

static int stop_locked(struct sandbox *s, struct timeline *t, struct cancel *cancel,
                       struct err *err)
{
    (void)pthread_mutex_lock(&s->rt->lock);
    s->stopping = true;
    bool notready = s->rec.phase == SANDBOX_NOTREADY;
    (void)pthread_mutex_unlock(&s->rt->lock);
    auto_free char *run_dir = sandbox_run_dir(s);
    int rc = machine_and_network_down(s, t, cancel, err);
    if (s->rec.machine[0] == '\0') { /* it is gone, whatever became of the network */
        containers_lost(s, "");
        if (!notready &&
            sandbox_set_phase(s, SANDBOX_NOTREADY, "stopped", rc == 0 ? err : NULL) < 0)
            return -1;
    }
    return rc < 0 ? -1 : fs_rm_rf(run_dir, err);
}

int sandbox_stop(struct sandbox *s, struct cancel *cancel, struct err *err)
{
    char title[200];
    if (oplock_take(&s->op, cancel, err) < 0)
        return err_wrap(err, "stop %s", sandbox_title(s, title));
    auto_oplock struct oplock *held = &s->op;
    /* running containers get their end recorded as killed, with their output complete */
    struct timeline timeline;
    timeline_begin(&timeline);
    containers_kill_all(s, cancel);
    timeline_mark(&timeline, "containers");
    int rc = stop_locked(s, &timeline, cancel, err);
    timeline_mark(&timeline, "stopped");
    auto_free char *steps = timeline_text(&timeline);
    timeline_end(&timeline);
    log_debug("timeline of stop", LOG_STR("sandbox", s->rec.id), LOG_STR("ms", steps));
    return rc < 0 ? err_wrap(err, "stop %s", sandbox_title(s, title)) : 0;
}

int sandbox_remove(struct sandbox *s, struct cancel *cancel, struct err *err)
{
    char title[200];
    if (oplock_take(&s->op, cancel, err) < 0)
        return err_wrap(err, "remove %s", sandbox_title(s, title));
    auto_oplock struct oplock *held = &s->op;
    (void)pthread_mutex_lock(&s->save);
    bool gone = s->deleted;
    (void)pthread_mutex_unlock(&s->save);
    if (gone)
        return 0;
    containers_kill_all(s, cancel);
    if (stop_locked(s, NULL, cancel, err) < 0 ||
        sandbox_set_phase(s, SANDBOX_REMOVING, "being removed", err) < 0 ||
        FAILPOINT("sandbox.remove", err) < 0)
        return err_wrap(err, "remove %s", sandbox_title(s, title));
    size_t n = 0;
    struct container **list = model_containers_of(s, &n);
    int rc = 0;
    for (size_t i = 0; i < n; i++) {
        if (rc == 0)
            rc = container_remove(list[i], cancel, err);
        container_unref(list[i]);
    }
    free(list);
    if (rc < 0 || sandbox_delete(s, err) < 0)
        return err_wrap(err, "remove %s", sandbox_title(s, title));
    model_remove_sandbox(s->rt, s);
    log_info("sandbox removed", LOG_STR("sandbox", s->rec.id), LOG_STR("pod", s->name_key));
    return 0;
}

void sandbox_ack_events(struct sandbox *s)
{
    uint64_t upto = 0;
    struct container *c;
    (void)pthread_mutex_lock(&s->rt->lock);
    upto = s->last_seq;
    TAILQ_FOREACH(c, &s->containers, link)
    {
        /* its exit is not on disk yet */
        if (c->exit_seq != 0 && c->exit_seq <= upto)
            upto = c->exit_seq - 1;
    }
    struct machine *m = s->machine;
    if (m != NULL)
        s->machine_users++;
    (void)pthread_mutex_unlock(&s->rt->lock);
    if (m == NULL)
        return;
    if (upto > 0)
        link_ack_events(machine_link(m), upto);
    sandbox_release_machine(s);
}
