/*
 * The life of a pod's machine: boot, cloning, adoption, death. Its end is in machine_end.c.
 *
 * State of one machine: `started` once the caller has its handle, `dead` once the VM is over,
 * whichever way it was noticed first (process exit, QMP, a broken link). Each step of a boot that
 * made something is undone by machine_take_down(), which looks at what there is and can run at any
 * point and more than once.
 */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "sandbox/cgroup.h"
#include "sandbox/lock.h"
#include "sandbox/machine_grow.h"
#include "sandbox/mirror.h"
#include "sandbox/scratch.h"
#include "sandbox/share.h"
#include "sandbox/template.h"

/* A clone answers in a twentieth of a second, or never; a busy host gets some patience. */
#define CLONE_TIMEOUT_NS INT64_C(15000000000)

/* --- death --- */

/* Control loop. The first call counts. */
static void die(struct machine *m, const char *reason)
{
    (void)pthread_mutex_lock(&m->lock);
    bool first = !m->dead;
    struct link *l = NULL;
    if (first) {
        m->dead = true;
        m->reason = xstrdup(reason);
        if (m->boot != NULL)
            cancel_fire(m->boot);
        l = m->link != NULL ? link_ref(m->link) : NULL;
    }
    bool tell = first && m->started && !m->silent;
    (void)pthread_mutex_unlock(&m->lock);
    /* a VM takes its containers with it */
    if (first && machine_on_host(m) && m->record.cgroup != NULL)
        cgroup_kill(m->record.cgroup);
    if (l != NULL) {
        link_close(l, reason);
        link_unref(l);
    }
    if (tell)
        m->cb.on_dead(m->cb.arg, reason);
}

static void on_hv_dead(void *arg, const char *reason)
{
    die(arg, reason);
}

static void on_link_broken(void *arg, const char *reason)
{
    struct machine *m = arg;
    auto_free char *console = m->hv != NULL ? m->ops->console_tail(m->hv) : NULL;
    auto_free char *text = str_empty(console)
                               ? fs_format("agent: %s", reason)
                               : fs_format("agent: %s; console: %s", reason, console);
    die(m, text);
}

static void on_link_event(void *arg, const Aspis__Agent__V1__Event *event)
{
    struct machine *m = arg;
    if (event->what_case == ASPIS__AGENT__V1__EVENT__WHAT_MEMORY_LOW)
        machine_press(m);
    m->cb.on_event(m->cb.arg, event);
}

static void on_link_up(void *arg, const Aspis__Agent__V1__HelloResponse *hello)
{
    (void)arg;
    (void)hello;
}

/* --- making and freeing --- */

static struct machine *make(struct machine_factory *f, const char *id, enum backend backend,
                            const struct machine_callbacks *cb, struct err *err)
{
    if (machine_check_id(id, err) < 0)
        return NULL;
    struct machine *m = xcalloc(1, sizeof(*m));
    m->f = f;
    m->ops = backend == BACKEND_HOST ? &host_hv : f->hv;
    m->record.backend = backend;
    m->cb = *cb;
    m->id = xstrdup(id);
    m->run_dir = machine_run_path(f, id);
    m->state_dir = machine_state_path(f, id);
    m->console_path = fs_format("%s/" HV_CONSOLE_FILE, m->run_dir);
    (void)pthread_mutex_init(&m->lock, NULL);
    (void)pthread_mutex_init(&m->ending, NULL);
    if (machine_grow_init(m, err) < 0) {
        machine_free(m);
        return NULL;
    }
    return m;
}

void machine_free(struct machine *m)
{
    if (m == NULL)
        return;
    machine_grow_free(m);
    /* the hypervisor first: once it is silent no callback of its can be closing the link */
    m->ops->free(m->hv);
    share_free(m->share);
    mirror_free(m->mirror);
    if (m->link != NULL) {
        link_close(m->link, "the daemon let go of the vm");
        link_unref(m->link);
    }
    cancel_unref(m->boot);
    machine_record_clear(&m->record);
    template_unref(m->tpl);
    strv_clear(&m->cgroup_dirs);
    (void)pthread_mutex_destroy(&m->lock);
    (void)pthread_mutex_destroy(&m->ending);
    free(m->reason);
    free(m->id);
    free(m->run_dir);
    free(m->state_dir);
    free(m->console_path);
    free(m->guest_mac);
    free(m);
}

/* --- boot --- */

static int make_dirs(struct machine *m, struct err *err)
{
    static const char *const stale[] = {HV_CONSOLE_FILE, HV_OUTPUT_FILE};
    auto_free char *run_parent = machine_run_path(m->f, "");
    auto_free char *state_parent = machine_state_path(m->f, "");
    if (fs_mkdir_p(run_parent, 0711, err) < 0 || fs_mkdir_p(state_parent, 0711, err) < 0 ||
        fs_mkdir_p(m->run_dir, 0700, err) < 0 || fs_mkdir_p(m->state_dir, 0700, err) < 0)
        return -1;
    for (size_t i = 0; i < ARRAY_LEN(stale); i++) {
        auto_free char *path = fs_format("%s/%s", m->run_dir, stale[i]);
        (void)unlink(path);
    }
    return 0;
}

static int open_scratch(struct machine *m, const struct machine_how *how, struct cancel *cancel,
                        struct err *err)
{
    auto_free char *path = machine_scratch_path(m);
    (void)unlink(path); /* of an attempt that was cut short */
    if (how->restore != NULL)
        return machine_restore_scratch(path, how->restore, err);
    if (how->fork_of != NULL)
        return scratch_copy(how->fork_scratch_fd, path, err);
    if (how->tpl != NULL && how->tpl->state_fd >= 0)
        return scratch_copy(how->tpl->scratch_fd, path, err);
    return scratch_create(m->f->config.state_root, path, m->f->config.scratch_bytes, cancel, err);
}

static const char *accel_name(enum accel a)
{
    return a == ACCEL_KVM ? "kvm" : "tcg";
}

struct hv_spec machine_hv_spec(const struct machine_factory *f, enum accel accel,
                               const struct machine_size *size)
{
    return (struct hv_spec){
        .binary = f->config.qemu,
        .kernel = f->config.kernel,
        .initrd = f->config.initrd,
        .jail_helper = f->config.jail_helper,
        .pages_library = f->pages_library,
        .thrift = machine_libraries(f),
        .trim_seconds = f->config.idle_seconds,
        .accel = accel,
        .tsc_khz = machine_tsc_khz(f),
        .memory_bytes = size->memory_bytes,
        .max_memory_bytes = size->max_memory_bytes,
        .vcpus = size->vcpus,
        .max_vcpus = size->max_vcpus,
        .tap_fd = -1,
        .scratch_fd = -1,
        .scratch_serial = SCRATCH_SERIAL,
    };
}

void machine_used(struct machine *m)
{
    if (m->ops->used != NULL)
        m->ops->used(m->hv);
}

static bool uses_user_vsock(const struct machine *m)
{
    return strcmp(m->record.transport, transport_name(TRANSPORT_USER_VSOCK)) == 0;
}

static int start_hv(struct machine *m, const struct machine_spec *spec,
                    const struct machine_how *how, struct cancel *cancel, struct err *err)
{
    struct machine_factory *f = m->f;
    auto_strv struct strv cgroups = {0};
    if (FAILPOINT("machine.cgroup", err) < 0 || cgroup_create(m->record.cgroup, &cgroups, err) < 0)
        return -1;
    if (spec->spare)
        cgroup_make_modest(f->spare_cgroup_root);
    auto_close int scratch = open_scratch(m, how, cancel, err);
    if (scratch < 0)
        return -1;
    timeline_mark(spec->timeline, "cgroup and scratch disk");
    /* a template's size is fixed: machine_fit() does the rest */
    struct machine_size size = how->tpl != NULL || how->fork_of != NULL
                                   ? machine_base_size(f)
                                   : machine_spec_size(f, spec);
    struct hv_restore saved = {.state_fd = -1};
    if (how->restore != NULL) {
        const struct hv_shape *shape = &how->restore->image->shape;
        size = (struct machine_size){.memory_bytes = shape->boot_bytes,
                                     .max_memory_bytes = shape->max_bytes,
                                     .vcpus = shape->boot_vcpus,
                                     .max_vcpus = shape->max_vcpus};
        saved = (struct hv_restore){.state_fd = how->restore->state_fd,
                                    .ram_id = shape->ram_id,
                                    .vcpus = shape->vcpus,
                                    .disks = how->restore->disks,
                                    .n_disks = shape->n_disks};
    }
    struct hv_spec hs = machine_hv_spec(f, how->accel, &size);
    hs.restore = how->restore != NULL ? &saved : NULL;
    hs.name = m->run_dir; /* tells the VMs of two daemons apart */
    hs.run_dir = m->run_dir;
    hs.cgroups = (const char *const *)cgroups.v;
    hs.uid = m->record.uid;
    hs.tap_fd = spec->tap_fd;
    hs.mac = m->guest_mac;
    hs.scratch_fd = scratch;
    hs.cid = m->record.cid;
    hs.tpl = how->tpl;
    hs.fork_library = spec->zygote ? f->fork_library : NULL;
    hs.fork_of = how->fork_of != NULL ? how->fork_of->hv : NULL;
    hs.fork_scratch_fd = how->fork_scratch_fd;
    hs.user_vsock = uses_user_vsock(m);
    hs.vsock_helper = f->config.vsock_helper;
    m->record.boot_bytes = m->record.memory_bytes = size.memory_bytes;
    m->record.vcpus = size.vcpus;
    struct hv_callbacks cb = {.on_dead = on_hv_dead, .arg = m};
    m->hv = m->ops->launch(&hs, f->control, &cb, cancel, err);
    if (m->hv == NULL)
        return -1;
    struct hv_process p = m->ops->process(m->hv);
    m->record.pid = p.pid;
    m->record.pid_start_time = p.start_time;
    timeline_mark(spec->timeline, how->fork_of != NULL ? "copy: qemu"
                                  : how->tpl != NULL   ? "clone: qemu"
                                                       : "boot: qemu");
    return 0;
}

static int make_share(struct machine *m, const struct link_transport *t, struct err *err)
{
    struct share_config c = {.server = m->f->config.share_helper,
                             .jail_helper = m->f->config.jail_helper,
                             .run_dir = m->run_dir,
                             .cgroup = m->record.cgroup,
                             .uid = m->record.uid,
                             .transport = t};
    if (m->f->config.share_helper != NULL)
        m->share = share_new(&c, err);
    return m->share == NULL && m->f->config.share_helper != NULL ? -1 : 0;
}

static int start_link(struct machine *m, struct cancel *cancel, struct err *err)
{
    static const char *const sockets[LINK_CHANNELS] = HV_SOCKETS_CHANNEL;
    bool hybrid = uses_user_vsock(m);
    struct link_transport t = {.kind = m->record.cid != 0 ? LINK_VSOCK
                                       : hybrid           ? LINK_HYBRID
                                                          : LINK_UNIX,
                               .cid = m->record.cid};
    for (int i = 0; i < LINK_CHANNELS && m->record.cid == 0; i++)
        t.path[i] = fs_format("%s/%s", m->run_dir, hybrid ? HV_SOCKET_VSOCK : sockets[i]);
    struct link_callbacks cb = {
        .on_event = on_link_event, .on_up = on_link_up, .on_broken = on_link_broken, .arg = m};
    struct link *l = NULL;
    if (FAILPOINT("machine.link", err) == 0 && (machine_on_host(m) || make_share(m, &t, err) == 0))
        l = link_new(&t, m->f->control, m->f->io, &cb, err);
    for (int i = 0; i < LINK_CHANNELS; i++)
        free(t.path[i]);
    if (l == NULL)
        return -1;
    (void)pthread_mutex_lock(&m->lock);
    m->link = l;
    (void)pthread_mutex_unlock(&m->lock);
    m->mirror = mirror_new(m->run_dir, m->f->mirror_watch, l, err);
    if (m->mirror == NULL || FAILPOINT("machine.hello", err) < 0)
        return -1;
    return link_wait_up(l, cancel, err);
}

/* The agent alone. It has a group of its own beside those of the containers: on version 2 no group
 * may hold processes and groups with controllers. */
static int start_agent(struct machine *m, const struct machine_spec *spec, struct cancel *cancel,
                       struct err *err)
{
    auto_strv struct strv cgroups = {0};
    auto_free char *own = fs_format("%s/agent", m->record.cgroup);
    if (m->f->config.agent == NULL)
        return err_set(err, ERR_PRECONDITION, "no agent for pods on the host is configured");
    if (FAILPOINT("machine.cgroup", err) < 0 || cgroup_create(own, &cgroups, err) < 0)
        return -1;
    timeline_mark(spec->timeline, "cgroup");
    struct hv_host host = {.cgroup = m->record.cgroup,
                           .state_dir = m->state_dir,
                           .netns = spec->netns,
                           .host_ipc = spec->host_ipc,
                           .host_uts = spec->host_uts};
    struct hv_spec hs = {.name = m->run_dir,
                         .run_dir = m->run_dir,
                         .binary = m->f->config.agent,
                         .cgroups = (const char *const *)cgroups.v,
                         .tap_fd = -1,
                         .scratch_fd = -1,
                         .host = &host};
    struct hv_callbacks cb = {.on_dead = on_hv_dead, .arg = m};
    m->hv = m->ops->launch(&hs, m->f->control, &cb, cancel, err);
    if (m->hv == NULL)
        return -1;
    struct hv_process p = m->ops->process(m->hv);
    m->record.pid = p.pid;
    m->record.pid_start_time = p.start_time;
    timeline_mark(spec->timeline, "agent started");
    return 0;
}

static int boot_host_steps(struct machine *m, const struct machine_spec *spec,
                           struct cancel *cancel, struct err *err)
{
    m->record.accel = xstrdup("none");
    m->record.transport = xstrdup("unix");
    m->record.cgroup = cgroup_path(spec->cgroup_parent, m->f->config.cgroup_root, m->id, err);
    if (m->record.cgroup == NULL || start_agent(m, spec, cancel, err) < 0 ||
        start_link(m, cancel, err) < 0)
        return -1;
    timeline_mark(spec->timeline, "agent answers");
    return 0;
}

static int boot_steps(struct machine *m, const struct machine_spec *spec,
                      const struct machine_how *how, struct cancel *cancel, struct err *err)
{
    struct machine_factory *f = m->f;
    if (FAILPOINT("machine.dirs", err) < 0 || make_dirs(m, err) < 0)
        return -1;
    if (machine_on_host(m))
        return boot_host_steps(m, spec, cancel, err);
    if ((m->record.uid = machine_uid_take(f, err)) == 0)
        return -1;
    m->uid_taken = true;
    m->record.accel = xstrdup(accel_name(how->accel));
    m->record.cloned = (how->tpl != NULL && how->tpl->state_fd >= 0) || how->fork_of != NULL;
    if (spec->tap_fd >= 0)
        m->guest_mac = xstrdup(how->guest_mac != NULL ? how->guest_mac
                               : spec->mac != NULL    ? spec->mac
                                                      : TEMPLATE_MAC);
    /* what becomes a template may have no device that cannot be saved */
    bool template = how->tpl != NULL && how->tpl->state_fd < 0;
    m->record.transport = xstrdup(transport_name(
        f->transport == TRANSPORT_USER_VSOCK && template ? TRANSPORT_VIRTIO_SERIAL : f->transport));
    if (f->transport == TRANSPORT_VSOCK &&
        (m->record.cid = machine_cid_find(f, m->record.uid, err)) == 0)
        return -1;
    m->record.cgroup = cgroup_path(spec->spare ? f->spare_cgroup_root : spec->cgroup_parent,
                                   f->config.cgroup_root, m->id, err);
    if (m->record.cgroup == NULL)
        return -1;
    if (start_hv(m, spec, how, cancel, err) < 0 || start_link(m, cancel, err) < 0)
        return -1;
    timeline_mark(spec->timeline, "agent answers");
    /* a saved VM has its size */
    if ((how->restore != NULL ? machine_learn_size : machine_fit)(m, spec, cancel, err) < 0)
        return -1;
    timeline_mark(spec->timeline, "grown");
    return 0;
}

/* Which of the ways a boot can fail it was: the VM's own end says most. */
static void explain_failure(struct machine *m, int64_t timeout_ns, struct cancel *callers,
                            struct err *err)
{
    (void)pthread_mutex_lock(&m->lock);
    auto_free char *reason = xstrdup(m->reason);
    (void)pthread_mutex_unlock(&m->lock);
    if (reason != NULL) {
        (void)err_set(err, ERR_INTERNAL, "%s", reason);
    } else if (err->code == ERR_DEADLINE && !(callers != NULL && cancel_fired(callers))) {
        auto_free char *step = xstrdup(err_msg(err));
        auto_free char *console = m->hv != NULL ? m->ops->console_tail(m->hv) : NULL;
        if (m->hv == NULL) { /* a busy host: it did not get that far */
            (void)err_set(err, ERR_DEADLINE, "the agent did not answer within %" PRId64 " ms; %s",
                          timeout_ns / 1000000, step);
            return;
        }
        (void)err_set(err, ERR_DEADLINE, "the agent did not answer within %" PRId64 " ms; %s%s",
                      timeout_ns / 1000000,
                      str_empty(console) ? "the console is empty" : "console: ", console);
    }
}

struct machine *machine_boot(struct machine_factory *f, const struct machine_spec *spec,
                             const struct machine_how *how, const struct machine_callbacks *cb,
                             struct cancel *cancel, struct err *err)
{
    auto_err struct err e = ERR_INIT;
    struct machine *m = make(f, spec->sandbox_id, spec->backend, cb, err);
    if (m == NULL)
        return NULL;
    m->boot = cancel_child(cancel, mono_ns() + how->timeout_ns, &e);
    int ret = m->boot != NULL ? boot_steps(m, spec, how, m->boot, &e) : -1;
    (void)pthread_mutex_lock(&m->lock);
    if (ret == 0 && !m->dead)
        m->started = true;
    bool ok = m->started;
    (void)pthread_mutex_unlock(&m->lock);
    if (!ok) {
        explain_failure(m, how->timeout_ns, cancel, &e);
        auto_err struct err undo = ERR_INIT;
        if (machine_take_down(m, NULL, &undo) < 0)
            (void)err_append(&e, " (and cleaning up: %s)", err_msg(&undo));
        machine_free(m);
        (void)err_move(err, &e);
        return NULL;
    }
    return m;
}

char *machine_scratch_path(const struct machine *m)
{
    return fs_format("%s/scratch.img", m->state_dir);
}

static int prepare_template(struct machine *m, struct cancel *cancel, struct err *err)
{
    static char scratch[] = SCRATCH_SERIAL;
    Aspis__Agent__V1__PrepareTemplateRequest req;
    aspis__agent__v1__prepare_template_request__init(&req);
    req.scratch_disk = scratch;
    auto_arena struct arena *arena = arena_new(LIMIT_RPC_MESSAGE);
    auto_err struct err e = ERR_INIT;
    if (link_call(m->link, "PrepareTemplate", &req.base, &aspis__agent__v1__empty__descriptor,
                  arena, cancel, &e) != NULL ||
        e.code == ERR_UNIMPLEMENTED) /* an older agent's clones do it themselves */
        return 0;
    (void)err_wrap(&e, "prepare template");
    return err_move(err, &e);
}

int machine_save(struct machine *m, int state_fd, struct cancel *cancel, struct err *err)
{
    if (prepare_template(m, cancel, err) < 0)
        return -1;
    /* the guest is to see its ports closed, as a clone's are until the daemon connects */
    link_close(m->link, "the vm becomes a template");
    return m->ops->save(m->hv, state_fd, cancel, err);
}

/* A clone of the template, or NULL when none fits or it fails, which is the template's fault until
 * an ordinary boot fails too. */
static struct machine *clone_template(struct machine_factory *f, const struct machine_spec *spec,
                                      enum accel accel, const struct machine_callbacks *cb,
                                      struct cancel *cancel)
{
    struct machine_size size = machine_spec_size(f, spec);
    auto_template struct template *t =
        spec->tap_fd >= 0 ? template_take(f->templates, accel, &size) : NULL;
    struct hv_template files = {-1, -1, -1};
    auto_err struct err err = ERR_INIT;
    if (t == NULL)
        return NULL;
    struct machine *m = NULL;
    if (template_open(t, &files, &err) == 0) {
        struct machine_how how = {.accel = accel,
                                  .timeout_ns = f->config.boot_timeout_ns < CLONE_TIMEOUT_NS
                                                    ? f->config.boot_timeout_ns
                                                    : CLONE_TIMEOUT_NS,
                                  .tpl = &files,
                                  .guest_mac = TEMPLATE_MAC};
        m = machine_boot(f, spec, &how, cb, cancel, &err);
    }
    cleanup_closep(&files.ram_fd);
    cleanup_closep(&files.state_fd);
    cleanup_closep(&files.scratch_fd);
    if (m != NULL)
        m->tpl = take(t);
    if (m != NULL)
        template_worked(f->templates);
    else if (cancel_check(cancel, NULL) == 0 && !spec->spare) /* which may just have had no time */
        template_suspect(f->templates, t, err_msg(&err));
    return m;
}

static struct machine *start_on_host(struct machine_factory *f, const struct machine_spec *spec,
                                     const struct machine_callbacks *cb, struct cancel *cancel,
                                     struct err *err)
{
    struct machine_how how = {.timeout_ns = f->config.boot_timeout_ns};
    struct machine *m = machine_boot(f, spec, &how, cb, cancel, err);
    if (m == NULL)
        (void)err_wrap(err, "start the pod on the host");
    return m;
}

/* The host would kill QEMU before the guest had a chance to end what uses too much. */
static int check_room(struct machine_factory *f, const struct machine_spec *spec, struct err *err)
{
    auto_free char *path =
        cgroup_path(spec->cgroup_parent, f->config.cgroup_root, spec->sandbox_id, err);
    if (path == NULL)
        return -1;
    uint64_t limit = cgroup_memory_limit(path);
    uint64_t need = f->config.overhead_memory_bytes;
    if (limit >= need)
        return 0;
    return err_set(err, ERR_PRECONDITION,
                   "the pod's control group may use %" PRIu64 " bytes of memory; a VM needs at "
                   "least %" PRIu64 ": a RuntimeClass can add that as overhead",
                   limit, need);
}

struct machine *machine_start(struct machine_factory *f, const struct machine_spec *spec,
                              const struct machine_callbacks *cb, struct cancel *cancel,
                              struct err *err)
{
    if (spec->backend == BACKEND_HOST)
        return start_on_host(f, spec, cb, cancel, err);
    if (check_room(f, spec, err) < 0 || machine_decide_accel(f, cancel, err) < 0) {
        (void)err_wrap(err, "start machine");
        return NULL;
    }
    (void)pthread_mutex_lock(&f->lock);
    struct machine_how how = {.accel = f->accel, .timeout_ns = f->config.boot_timeout_ns};
    (void)pthread_mutex_unlock(&f->lock);
    struct machine *m = machine_fork(f, spec, how.accel, cb, cancel);
    if (m == NULL && cancel_check(cancel, NULL) == 0)
        m = clone_template(f, spec, how.accel, cb, cancel);
    if (m == NULL && cancel_check(cancel, err) == 0) {
        if (spec->spare)
            (void)err_set(err, ERR_UNAVAILABLE, "there is no template to clone");
        else
            m = machine_boot(f, spec, &how, cb, cancel, err);
    }
    if (m == NULL)
        (void)err_wrap(err, "start machine");
    else if (!spec->spare)
        machine_used(m);
    return m;
}

/* --- spares --- */

void machine_on_template(struct machine_factory *f, void (*fn)(void *arg), void *arg)
{
    template_pool_notify(f->templates, fn, arg);
}

bool machine_is_current(struct machine *m)
{
    (void)pthread_mutex_lock(&m->f->lock);
    enum accel accel = m->f->accel;
    (void)pthread_mutex_unlock(&m->f->lock);
    struct machine_size size = machine_base_size(m->f);
    auto_template struct template *now = template_take(m->f->templates, accel, &size);
    return now != NULL && now == m->tpl && machine_alive(m);
}

struct new_callbacks {
    struct machine *m;
    struct machine_callbacks cb;
};

/* On the control loop, where callbacks run: none of the old ones is under way after that. */
static void set_callbacks(void *arg)
{
    const struct new_callbacks *n = arg;
    n->m->cb = n->cb;
}

int machine_claim(struct machine *m, const struct machine_spec *spec,
                  const struct machine_callbacks *cb, struct cancel *cancel, struct err *err)
{
    struct new_callbacks n = {.m = m, .cb = *cb};
    loop_call(m->f->control, set_callbacks, &n);
    uint64_t left = 0;
    auto_free char *path = cgroup_path(spec->cgroup_parent, m->f->config.cgroup_root, m->id, err);
    if (path == NULL || FAILPOINT("machine.claim", err) < 0 || machine_check_alive(m, err) < 0 ||
        check_room(m->f, spec, err) < 0 ||
        cgroup_move(m->record.cgroup, path, m->f->spare_cgroup_root, &left, cancel, err) < 0)
        return err_wrap(err, "claim a spare machine");
    share_move(m->share, path);
    machine_used(m);
    (void)pthread_mutex_lock(&m->lock);
    free(m->record.cgroup);
    m->record.cgroup = take(path);
    m->record.left_bytes = left;
    strv_clear(&m->cgroup_dirs);
    (void)pthread_mutex_unlock(&m->lock);
    if (lock_within(&m->sizing, cancel, "another change of the vm's size", err) < 0)
        return -1;
    int ret = machine_fit(m, spec, cancel, err);
    (void)pthread_mutex_unlock(&m->sizing);
    return ret;
}

/* --- adoption --- */

struct machine *machine_adopt(struct machine_factory *f, const struct machine_spec *spec,
                              const struct machine_record *record,
                              const struct machine_callbacks *cb, struct cancel *cancel,
                              struct err *err)
{
    struct machine *m = make(f, spec->sandbox_id, record->backend, cb, err);
    if (m == NULL)
        return NULL;
    auto_err struct err e = ERR_INIT;
    machine_copy_record(&m->record, record);
    m->pinned = true; /* for all we know */
    if (!machine_on_host(m)) {
        machine_uid_mark(f, record->uid);
        m->uid_taken = true;
    }
    m->boot = cancel_child(cancel, mono_ns() + f->config.boot_timeout_ns, &e);
    struct hv_callbacks hcb = {.on_dead = on_hv_dead, .arg = m};
    struct hv_process p = {.pid = record->pid, .start_time = record->pid_start_time};
    if (m->boot != NULL)
        m->hv = m->ops->adopt(&p, m->run_dir, f->config.qemu, f->control, &hcb, m->boot, &e);
    int ret = m->hv != NULL ? start_link(m, m->boot, &e) : -1;
    if (ret == 0)
        ret = machine_learn_size(m, spec, m->boot, &e);
    (void)pthread_mutex_lock(&m->lock);
    if (ret == 0 && !m->dead)
        m->started = true;
    bool ok = m->started;
    (void)pthread_mutex_unlock(&m->lock);
    if (ok) {
        machine_used(m);
        return m;
    }
    /* Nothing is taken down: the caller decides with machine_destroy_record(). But containers
     * without their agent are nobody's. */
    if (machine_on_host(m))
        cgroup_kill(record->cgroup);
    explain_failure(m, f->config.boot_timeout_ns, cancel, &e);
    machine_free(m);
    (void)err_move(err, &e);
    (void)err_wrap(err, "adopt machine");
    return NULL;
}
