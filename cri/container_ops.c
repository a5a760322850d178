#include "cri/container_ops.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/failpoint.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "cri/agent_call.h"
#include "cri/container_disks.h"
#include "cri/container_end.h"
#include "cri/container_images.h"
#include "cri/container_input.h"
#include "cri/container_settle.h"
#include "cri/events.h"
#include "cri/inspect.h"
#include "cri/resources.h"
#include "cri/sandbox_ops.h"
#include "cri/spec.h"
#include "cri/spec_cdi.h"

/* How long a killed container may take to disappear before StopContainer gives up. */
#define KILL_NS (30LL * 1000000000)
#define UNDO_NS (60LL * 1000000000)
/* For calls that a guest answers at once: one that does not must not hold its caller, who may want
 * to get rid of it. And for the kill before a sandbox is taken down anyway. */
#define AGENT_NS (20LL * 1000000000)
#define LAST_KILL_NS (3LL * 1000000000)

static void set_text(struct container *c, char **field, const char *text)
{
    (void)pthread_mutex_lock(&c->rt->lock);
    free(*field);
    *field = xstrdup(text);
    (void)pthread_mutex_unlock(&c->rt->lock);
}

int container_set_phase(struct container *c, enum container_phase phase, struct err *err)
{
    (void)pthread_mutex_lock(&c->rt->lock);
    if (phase == CONTAINER_CREATED && c->rec.phase == CONTAINER_CREATING) {
        c->rec.phase = phase;
        events_container(c, RUNTIME__V1__CONTAINER_EVENT_TYPE__CONTAINER_CREATED_EVENT);
    }
    c->rec.phase = phase;
    (void)pthread_mutex_unlock(&c->rt->lock);
    return container_save(c, err);
}

bool container_start_is_doomed(struct container *c)
{
    (void)pthread_mutex_lock(&c->rt->lock);
    bool doomed = c->rec.phase <= CONTAINER_CREATED && strcmp(c->rec.reason, START_ERROR) == 0;
    (void)pthread_mutex_unlock(&c->rt->lock);
    return doomed;
}

/* --- create --- */

int container_resolve_log_path(struct container *c, struct err *err)
{
    const char *dir = c->sandbox->config->log_directory;
    const char *name = c->config->log_path;
    if (str_empty(dir) || str_empty(name))
        return 0;
    if (strlen(dir) + strlen(name) + 2 > LIMIT_PATH)
        return err_set(err, ERR_INVALID, "log path is longer than %d bytes", LIMIT_PATH);
    if (dir[0] != '/')
        return err_set(err, ERR_INVALID, "log_directory \"%.200s\" is not absolute", dir);
    /* a client is root's equal, but a path that climbs out of the log directory is a mistake */
    auto_free char *probe = fs_format("/%s/", name);
    if (probe == NULL || strstr(probe, "/../") != NULL)
        return err_set(err, ERR_INVALID, "log_path \"%.200s\" leaves the log directory", name);
    auto_free char *path = fs_format("%s/%s", dir, name);
    auto_free char *parent = xstrdup(path);
    *strrchr(parent, '/') = '\0';
    if (fs_mkdir_p(parent, 0755, err) < 0)
        return err_wrap(err, "log directory");
    set_text(c, &c->rec.log_path, path);
    return 0;
}

static void on_log_done(void *arg)
{
    container_log_is_done(arg);
}

static void on_output(void *arg, unsigned stream, const void *data, size_t len)
{
    hub_data(&((struct container *)arg)->hub, stream, data, len);
}

static void on_output_end(void *arg, unsigned stream)
{
    hub_end(&((struct container *)arg)->hub, stream);
}

/* A log handle for c. It stays open until the container is removed. */
static struct container_log *open_log(struct container *c, struct err *err)
{
    auto_free char *state = container_log_state_path(c);
    auto_free char *dir = fs_format("%s/logs", c->rt->deps.run_root);
    if (fs_mkdir_p(dir, 0700, err) < 0)
        return NULL;
    struct container_log_options o = {.path = c->rec.log_path,
                                      .state_path = state,
                                      .container_id = c->rec.id,
                                      .io = c->rt->deps.io,
                                      .on_done = on_log_done,
                                      .on_output = on_output,
                                      .on_output_end = on_output_end,
                                      .arg = c};
    struct container_log *log = container_log_open(&o, err);
    if (log != NULL)
        (void)container_ref(c); /* the log calls back; given back when it is closed */
    return log;
}

void container_close_log(struct container *c, bool forget)
{
    (void)pthread_mutex_lock(&c->rt->lock);
    struct container_log *log = c->log;
    c->log = NULL;
    (void)pthread_mutex_unlock(&c->rt->lock);
    container_end_forget(c);
    container_input_close(c);
    auto_free char *state = container_log_state_path(c);
    if (forget)
        (void)unlink(state);
    if (log == NULL)
        return;
    container_log_close(log);
    container_unref(c);
}

int container_resume_log(struct container *c, struct link *link, struct err *err)
{
    struct container_log *log = open_log(c, err);
    if (log == NULL)
        return -1;
    (void)pthread_mutex_lock(&c->rt->lock);
    c->log = log;
    (void)pthread_mutex_unlock(&c->rt->lock);
    return container_log_attach(log, link, c->rec.stdout_id, c->rec.stderr_id, err);
}

/* The images' disks are plugged in on a thread of its own: the guest can be asked for the container
 * meanwhile, since it waits for them. */
struct plug {
    struct container *c;
    struct machine *m;
    struct timeline *timeline;
    struct cancel *both; /* fired when it fails */
    struct err err;
    int ret;
};

static void *plug_thread(void *arg)
{
    struct plug *p = arg;
    p->ret = container_images_attach(p->c, p->m, p->both, &p->err);
    if (p->ret == 0)
        p->ret = container_disks_attach(p->c, p->m, p->both, &p->err);
    if (p->ret < 0)
        cancel_fire(p->both);
    timeline_mark(p->timeline, "image disks plugged");
    return NULL;
}

static void keep_reply(struct container *c, const Aspis__Agent__V1__CreateContainerResponse *r)
{
    auto_buf struct buf groups = BUF_INIT(KiB(16));
    (void)pthread_mutex_lock(&c->rt->lock);
    c->pid = r->pid;
    if (r->streams != NULL) {
        c->rec.stdin_id = r->streams->stdin_id;
        c->rec.stdout_id = r->streams->stdout_id;
        c->rec.stderr_id = r->streams->stderr_id;
    }
    if (r->user != NULL) {
        c->rec.uid = r->user->uid;
        c->rec.gid = r->user->gid;
        for (size_t i = 0; i < r->user->n_supplemental_groups; i++)
            (void)buf_printf(&groups, "%s%u", i > 0 ? " " : "", r->user->supplemental_groups[i]);
    }
    free(c->rec.groups);
    c->rec.groups = xstrdup(buf_str(&groups));
    (void)pthread_mutex_unlock(&c->rt->lock);
}

static int put_volumes(Aspis__Agent__V1__CreateContainerRequest *req,
                       const struct machine_volume *v, size_t n, struct arena *a, struct err *err)
{
    req->volumes = arena_alloc(a, (n + 1) * sizeof(void *));
    for (size_t i = 0; req->volumes != NULL && i < n; i++) {
        Aspis__Agent__V1__Volume *out = arena_alloc(a, sizeof(*out));
        if (out == NULL)
            break;
        aspis__agent__v1__volume__init(out);
        out->id = v[i].id;
        out->file = v[i].file;
        out->mirrored = v[i].mirrored;
        if (v[i].huge.name[0] != '\0' && (out->huge = arena_alloc(a, sizeof(*out->huge))) != NULL) {
            aspis__agent__v1__huge_volume__init(out->huge);
            out->huge->name = arena_strdup(a, v[i].huge.name);
            out->huge->mode = v[i].huge.mode;
            out->huge->uid = v[i].huge.uid;
            out->huge->gid = v[i].huge.gid;
        }
        req->volumes[req->n_volumes++] = out;
    }
    return arena_exhausted(a) ? err_sys(err, ENOMEM, "volumes") : 0;
}

/* The container whose processes this one is to see is of the same pod and runs. */
static int check_target(const struct container *c, const char *id, struct err *err)
{
    if (str_empty(id))
        return 0;
    auto_container struct container *target = model_find_container(c->rt, id, NULL);
    if (target == NULL || target->sandbox != c->sandbox)
        return err_set(err, ERR_INVALID, "pid namespace TARGET: the pod has no container %.64s",
                       id);
    if (container_phase(target) != CONTAINER_RUNNING)
        return err_set(err, ERR_PRECONDITION,
                       "pid namespace TARGET: container %.64s is not running", id);
    return 0;
}

static void free_config(Runtime__V1__ContainerConfig **config)
{
    if (*config != NULL)
        protobuf_c_message_free_unpacked(&(*config)->base, NULL);
}
#define auto_config __attribute__((cleanup(free_config)))

static int create_in_guest(struct container *c, struct machine *m, struct image *image,
                           struct cancel *cancel, struct err *err)
{
    auto_arena struct arena *a = arena_new(LIMIT_CALL_ARENA);
    if (a == NULL)
        return err_sys(err, ENOMEM, "create in guest");
    size_t n_volumes = 0;
    auto_config Runtime__V1__ContainerConfig *config = spec_cdi_apply(c->config, err);
    if (config == NULL)
        return -1;
    auto_free struct machine_volume *volumes = spec_volumes(config, &n_volumes);
    auto_strv struct strv disks = {0};
    char serial[21];
    if (machine_add_volumes(m, c->rec.id, volumes, n_volumes, cancel, err) < 0)
        return err_wrap(err, "volumes");
    auto_free char *plain = spec_make(config, c->sandbox->config, &image->config, volumes, err);
    auto_free char *spec = plain != NULL ? spec_adapt(plain, config, c->sandbox->config, volumes,
                                                      n_volumes, c->sandbox->backend.backend, err)
                                         : NULL;
    if (spec == NULL)
        return -1;
    inspect_keep_spec(c, spec);
    auto_seccomp_filter struct seccomp_filter filter = {0};
    if (spec_seccomp(c->config, &filter, err) < 0)
        return -1;
    Aspis__Agent__V1__User user;
    aspis__agent__v1__user__init(&user);
    if (spec_user(config, &image->config, &user, err) < 0)
        return -1;
    Aspis__Agent__V1__CreateContainerRequest req;
    aspis__agent__v1__create_container_request__init(&req);
    if (put_volumes(&req, volumes, n_volumes, a, err) < 0)
        return -1;
    req.container_id = c->rec.id;
    req.oci_spec = (ProtobufCBinaryData){strlen(spec), (uint8_t *)spec};
    image_disk_serial(image->id, serial);
    req.image_disk = serial;
    container_images_volume_disks(c, &disks);
    req.n_volume_disks = disks.n;
    req.volume_disks = disks.v;
    req.user = &user;
    req.tty = c->config->tty;
    req.stdin = c->config->stdin;
    req.shared_pid = spec_shared_pid(c->config);
    const Runtime__V1__LinuxContainerConfig *l = c->config->linux;
    req.readonly_rootfs =
        l != NULL && l->security_context != NULL && l->security_context->readonly_rootfs;
    if (spec_guest(c->config, c->sandbox->backend.backend, &filter, &req, a, err) < 0 ||
        check_target(c, req.pid_target, err) < 0)
        return -1;
    const ProtobufCMessage *reply =
        FAILPOINT("container.agent", err) < 0
            ? NULL
            : link_call(machine_link(m), "CreateContainer", &req.base,
                        &aspis__agent__v1__create_container_response__descriptor, a, cancel, err);
    if (reply == NULL)
        return -1;
    const Aspis__Agent__V1__CreateContainerResponse *r =
        (const Aspis__Agent__V1__CreateContainerResponse *)reply;
    if (str_empty(r->start_error) && spec_guest_understood(&req, r->knows, err) < 0)
        return -1;
    keep_reply(c, r);
    if (!str_empty(r->start_error)) {
        set_text(c, &c->rec.reason, START_ERROR);
        set_text(c, &c->rec.message, r->start_error);
    }
    return 0;
}

/* The images' disks and the container. */
static int create_on_images(struct container *c, struct machine *m, struct image *image,
                            struct timeline *t, struct cancel *cancel, struct err *err)
{
    /* no device appears there, for which the agent could wait */
    if (machine_backend(m) == BACKEND_HOST) {
        if (container_images_attach(c, m, cancel, err) < 0)
            return -1;
        return create_in_guest(c, m, image, cancel, err);
    }
    auto_cancel struct cancel *both = cancel_child(cancel, 0, err);
    struct plug p = {.c = c, .m = m, .timeline = t, .both = both};
    auto_err struct err why = ERR_INIT;
    pthread_t thread;
    if (both == NULL)
        return -1;
    int rc = pthread_create(&thread, NULL, plug_thread, &p);
    if (rc != 0)
        return err_sys(err, rc, "start a thread");
    rc = create_in_guest(c, m, image, both, &why);
    (void)pthread_join(thread, NULL);
    if (p.ret < 0) /* the guest then only waited in vain */
        return err_move(err, &p.err);
    err_clear(&p.err);
    return rc < 0 ? err_move(err, &why) : 0;
}

static int build(struct container *c, struct image *image, struct timeline *t,
                 struct cancel *cancel, struct err *err)
{
    char signal_name[16];
    (void)spec_stop_signal(c->config, &image->config, signal_name);
    set_text(c, &c->rec.stop_signal, signal_name);
    if (container_resolve_log_path(c, err) < 0 || container_save(c, err) < 0 ||
        FAILPOINT("container.record", err) < 0)
        return -1;
    struct machine *m = sandbox_use_machine(c->sandbox, err);
    if (m == NULL)
        return -1;
    timeline_mark(t, "record");
    int rc = resources_fit(c->sandbox, m, cancel, err);
    timeline_mark(t, "vm fits");
    if (rc == 0)
        rc = create_on_images(c, m, image, t, cancel, err);
    if (rc == 0)
        rc = resources_created(c, m, cancel, err);
    timeline_mark(t, "created in guest");
    /* the ids of the streams must be on record before a byte of them is acknowledged */
    if (rc == 0)
        rc = container_save(c, err);
    if (rc == 0 && !container_start_is_doomed(c))
        rc = container_resume_log(c, machine_link(m), err);
    sandbox_release_machine(c->sandbox);
    return rc < 0 ? -1 : container_set_phase(c, CONTAINER_CREATED, err);
}

/* Once the guest has let go of them. */
static int drop_volumes(struct container *c, struct cancel *cancel, struct err *err)
{
    if (c->config->n_mounts == 0 && c->config->n_cdi_devices == 0)
        return 0;
    struct machine *m = sandbox_use_machine(c->sandbox, NULL);
    if (m == NULL)
        return 0; /* they went with it */
    int rc = machine_remove_volumes(m, c->rec.id, cancel, err);
    sandbox_release_machine(c->sandbox);
    return rc;
}

/* Removes what a failed create may have left in the guest and here. */
static void undo_create(struct container *c)
{
    Aspis__Agent__V1__RemoveContainerRequest req;
    aspis__agent__v1__remove_container_request__init(&req);
    auto_cancel struct cancel *own = cancel_new(mono_ns() + UNDO_NS, NULL);
    auto_err struct err err = ERR_INIT;
    req.container_id = c->rec.id;
    if (agent_tell(c->sandbox, "RemoveContainer", &req.base, AGENT_NS, own, &err) < 0 &&
        err.code != ERR_PRECONDITION)
        log_warn("cannot remove failed container from guest", LOG_STR("container", c->rec.id),
                 LOG_STR("error", err_msg(&err)));
    (void)drop_volumes(c, own, NULL);
    inspect_drop_spec(c);
    container_images_detach(c, own);
    container_disks_detach(c, own);
    container_close_log(c, true);
    (void)container_delete(c, NULL);
    model_remove_container(c->rt, c);
    resources_give_back(c, own);
}

/* In the model and with its images on record, which keeps them from being removed; *image (the
 * caller's) is its own. */
static struct container *begin(struct sandbox *s, const Runtime__V1__ContainerConfig *config,
                               struct image **image, struct err *err)
{
    char title[200];
    char id[65];
    struct container_images images;
    fs_random_hex(id, 64);
    if (container_images_find(s->rt->deps.images, config, &images, err) < 0) {
        (void)err_wrap(err, "create container %.64s in %s", config->metadata->name,
                       sandbox_title(s, title));
        return NULL;
    }
    auto_container struct container *c = container_new(s, id, images.config, err);
    if (c != NULL) {
        set_text(c, &c->rec.image_id, images.own->id);
        set_text(c, &c->rec.image_ref, container_images_ref(images.own));
    }
    if (c != NULL && model_add_container(s->rt, c, err) < 0) {
        (void)err_wrap(err, "create %s", container_title(c, title));
        container_unref(take(c));
    }
    if (c != NULL)
        *image = take(images.own);
    container_images_let_go(&images);
    return take(c);
}

struct container *container_create(struct sandbox *s, const Runtime__V1__ContainerConfig *config,
                                   struct cancel *cancel, struct err *err)
{
    char title[200];
    auto_image struct image *image = NULL;
    auto_container struct container *c = begin(s, config, &image, err);
    if (c == NULL)
        return NULL;
    spares_yield(s->rt->spares);
    struct timeline timeline;
    timeline_begin(&timeline);
    int rc = build(c, image, &timeline, cancel, err);
    timeline_mark(&timeline, "created");
    auto_free char *steps = timeline_text(&timeline);
    timeline_end(&timeline);
    log_debug("timeline of create", LOG_STR("container", c->rec.id), LOG_STR("ms", steps));
    if (rc < 0) {
        (void)err_wrap(err, "create %s", container_title(c, title));
        undo_create(c);
        return NULL;
    }
    return take(c);
}

/* --- start --- */

static int start_locked(struct container *c, struct cancel *cancel, struct err *err)
{
    (void)pthread_mutex_lock(&c->rt->lock);
    bool unsure = c->start_unsure;
    (void)pthread_mutex_unlock(&c->rt->lock);
    if (unsure && container_settle(c, err) < 0) {
        err->code = ERR_UNAVAILABLE;
        return -1;
    }
    if (container_phase(c) != CONTAINER_CREATED)
        return err_set(err, ERR_PRECONDITION, "it is not in state CREATED");
    if (container_start_is_doomed(c))
        return err_set(err, ERR_INVALID, "%s", c->rec.message);
    struct machine *m = sandbox_use_machine(c->sandbox, err);
    if (m == NULL)
        return -1;
    auto_arena struct arena *a = arena_new(LIMIT_CALL_ARENA);
    Aspis__Agent__V1__StartContainerRequest req;
    aspis__agent__v1__start_container_request__init(&req);
    req.container_id = c->rec.id;
    (void)pthread_mutex_lock(&c->rt->lock);
    c->starting = true;
    (void)pthread_mutex_unlock(&c->rt->lock);
    const ProtobufCMessage *reply =
        a == NULL || FAILPOINT("container.start", err) < 0
            ? NULL
            : link_call(machine_link(m), "StartContainer", &req.base,
                        &aspis__agent__v1__start_container_response__descriptor, a, cancel, err);
    sandbox_release_machine(c->sandbox);
    (void)FAILPOINT("container.started", NULL);
    if (reply == NULL)
        return -1;
    (void)pthread_mutex_lock(&c->rt->lock);
    c->rec.started_at = wall_ns();
    /* a process that ended before this reply has its end recorded already */
    if (c->rec.phase == CONTAINER_CREATED) {
        c->rec.phase = CONTAINER_RUNNING;
        events_container(c, RUNTIME__V1__CONTAINER_EVENT_TYPE__CONTAINER_STARTED_EVENT);
    }
    (void)pthread_mutex_unlock(&c->rt->lock);
    return container_save(c, err);
}

int container_start(struct container *c, struct cancel *cancel, struct err *err)
{
    char title[200];
    spares_yield(c->rt->spares);
    if (oplock_take(&c->op, cancel, err) < 0)
        return err_wrap(err, "start %s", container_title(c, title));
    auto_oplock struct oplock *held = &c->op;
    auto_err struct err why = ERR_INIT;
    if (start_locked(c, cancel, &why) == 0)
        return 0;
    bool cut = why.code == ERR_CANCELLED || why.code == ERR_DEADLINE || why.code == ERR_UNAVAILABLE;
    auto_err struct err unsettled = ERR_INIT;
    /* what failed for good is shown as containerd does: EXITED, 128, StartError. A start that never
     * reached the guest may be tried again. */
    if (!cut && why.code != ERR_PRECONDITION)
        container_finish_start_error(c, err_msg(&why));
    else if (cut && container_settle(c, &unsettled) < 0)
        log_warn("a start was cut", LOG_STR("container", c->rec.id),
                 LOG_STR("error", err_msg(&unsettled)));
    (void)err_move(err, &why);
    return err_wrap(err, "start %s", container_title(c, title));
}

/* --- stop --- */

static int send_signal(struct container *c, int sig, bool all, struct cancel *cancel,
                       struct err *err)
{
    Aspis__Agent__V1__SignalContainerRequest req;
    aspis__agent__v1__signal_container_request__init(&req);
    req.container_id = c->rec.id;
    req.signal = (uint32_t)sig;
    req.all = all;
    return agent_tell(c->sandbox, "SignalContainer", &req.base, AGENT_NS, cancel, err);
}

/* 1: it ended; 0: time is up. */
static int wait_exit(struct container *c, int64_t ns, struct cancel *cancel, struct err *err)
{
    int64_t ms = ns / 1000000;
    int rc = cancel_poll(cancel, c->exited_fd, POLLIN, ms > INT32_MAX ? INT32_MAX : (int)ms, err);
    return rc < 0 ? -1 : rc > 0;
}

/* A call that fails because the container or its machine ended meanwhile is what we wanted. */
static int signal_or_gone(struct container *c, int sig, bool all, struct cancel *cancel,
                          struct err *err)
{
    auto_err struct err why = ERR_INIT;
    if (send_signal(c, sig, all, cancel, &why) == 0 || why.code == ERR_NOT_FOUND ||
        why.code == ERR_PRECONDITION || why.code == ERR_UNAVAILABLE)
        return 0;
    return err_move(err, &why);
}

static int kill_and_wait(struct container *c, struct cancel *cancel, struct err *err)
{
    if (signal_or_gone(c, SIGKILL, true, cancel, err) < 0)
        return -1;
    int rc = wait_exit(c, KILL_NS, cancel, err);
    if (rc == 0)
        return err_set(err, ERR_DEADLINE, "still running %lld s after SIGKILL",
                       KILL_NS / 1000000000);
    return rc < 0 ? -1 : 0;
}

static int stop_locked(struct container *c, int64_t timeout, struct cancel *cancel, struct err *err)
{
    enum container_phase phase = container_phase(c);
    if (phase == CONTAINER_EXITED || phase == CONTAINER_REMOVING)
        return 0;
    (void)pthread_mutex_lock(&c->rt->lock);
    c->stopping = true;
    (void)pthread_mutex_unlock(&c->rt->lock);
    int sig = spec_signal_number(c->rec.stop_signal);
    /* a container that never started has nobody to ask */
    if (phase == CONTAINER_RUNNING && timeout > 0 && sig != SIGKILL) {
        if (signal_or_gone(c, sig, false, cancel, err) < 0)
            return -1;
        int64_t ns = timeout > INT32_MAX ? INT64_MAX / 2 : timeout * 1000000000;
        int rc = wait_exit(c, ns, cancel, err);
        if (rc != 0)
            return rc < 0 ? -1 : 0;
    }
    return kill_and_wait(c, cancel, err);
}

int container_stop(struct container *c, int64_t timeout, struct cancel *cancel, struct err *err)
{
    char title[200];
    /* a second stop with a shorter grace must not wait for the first: no op lock while waiting */
    if (stop_locked(c, timeout, cancel, err) < 0)
        return err_wrap(err, "stop %s", container_title(c, title));
    return 0;
}

int container_remove(struct container *c, struct cancel *cancel, struct err *err)
{
    char title[200];
    if (oplock_take(&c->op, cancel, err) < 0)
        return err_wrap(err, "remove %s", container_title(c, title));
    auto_oplock struct oplock *held = &c->op;
    if (container_phase(c) == CONTAINER_RUNNING && stop_locked(c, 0, cancel, err) < 0)
        return err_wrap(err, "remove %s", container_title(c, title));
    if (container_set_phase(c, CONTAINER_REMOVING, err) < 0 ||
        FAILPOINT("container.remove", err) < 0)
        return err_wrap(err, "remove %s", container_title(c, title));
    Aspis__Agent__V1__RemoveContainerRequest req;
    aspis__agent__v1__remove_container_request__init(&req);
    req.container_id = c->rec.id;
    auto_err struct err why = ERR_INIT;
    if (agent_tell(c->sandbox, "RemoveContainer", &req.base, AGENT_NS, cancel, &why) < 0 &&
        why.code != ERR_PRECONDITION && why.code != ERR_UNAVAILABLE) {
        (void)err_move(err, &why);
        return err_wrap(err, "remove %s", container_title(c, title));
    }
    if (drop_volumes(c, cancel, err) < 0)
        return err_wrap(err, "remove %s", container_title(c, title));
    inspect_drop_spec(c);
    container_images_detach(c, cancel);
    container_disks_detach(c, cancel);
    resources_give_back(c, cancel);
    container_close_log(c, true);
    if (container_delete(c, err) < 0)
        return err_wrap(err, "remove %s", container_title(c, title));
    (void)eventfd_write(c->exited_fd, 1);
    model_remove_container(c->rt, c);
    sandbox_ack_events(c->sandbox);
    return 0;
}

void containers_kill_all(struct sandbox *s, struct cancel *cancel)
{
    size_t n = 0;
    struct container **list = model_containers_of(s, &n);
    auto_cancel struct cancel *limit = cancel_child(cancel, mono_ns() + LAST_KILL_NS, NULL);
    for (size_t i = 0; i < n; i++) {
        if (container_phase(list[i]) == CONTAINER_RUNNING)
            (void)signal_or_gone(list[i], SIGKILL, true, limit, NULL);
    }
    for (size_t i = 0; i < n; i++) {
        if (container_phase(list[i]) == CONTAINER_RUNNING)
            (void)wait_exit(list[i], LAST_KILL_NS, limit, NULL);
        container_unref(list[i]);
    }
    free(list);
}

int container_reopen_log(struct container *c, struct cancel *cancel, struct err *err)
{
    char title[200];
    if (oplock_take(&c->op, cancel, err) < 0)
        return err_wrap(err, "reopen log of %s", container_title(c, title));
    auto_oplock struct oplock *held = &c->op;
    if (container_phase(c) != CONTAINER_RUNNING || c->log == NULL)
        (void)err_set(err, ERR_PRECONDITION, "it is not running");
    else if (container_log_reopen(c->log, err) == 0)
        return 0;
    return err_wrap(err, "reopen log of %s", container_title(c, title));
}
