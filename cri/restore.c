#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/failpoint.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "cri/agent_call.h"
#include "cri/checkpoint.h"
#include "cri/checkpoint_dir.h"
#include "cri/container_images.h"
#include "cri/container_ops.h"
#include "cri/resources.h"
#include "cri/sandbox_net.h"
#include "cri/sandbox_ops.h"
#include "cri/service_runtime.h"
#include "cri/spec.h"
#include "cri/telemetry.h"

#define AGENT_NS (20LL * 1000000000)

/* One restore under way. */
struct work {
    struct runtime *rt;
    struct checkpoint_dir dir;
    struct arena *arena;
    struct checkpoint c;
    const Runtime__V1__PodSandboxConfig *pod;
    struct container_images *images; /* of each container, in the checkpoint's order */
    size_t n_images;
    struct image_disk disks[HV_MAX_DISKS];
    size_t n_disks; /* opened */
    struct strv held;
    struct restore_volumes volumes;

    struct sandbox *s;
    struct container **containers; /* in the model */
    size_t n_containers;
};

static void work_clear(struct work *w)
{
    checkpoint_dir_clear(&w->dir);
    for (size_t i = 0; i < w->n_images; i++)
        container_images_let_go(&w->images[i]);
    free(w->images);
    for (size_t i = 0; i < w->n_disks; i++)
        image_disk_clear(&w->disks[i]);
    for (size_t i = 0; i < w->held.n; i++)
        image_unhold(w->rt->deps.images, w->held.v[i]);
    strv_clear(&w->held);
    restore_volumes_clear(&w->volumes);
    for (size_t i = 0; i < w->n_containers; i++)
        container_unref(w->containers[i]);
    free(w->containers);
    sandbox_unref(w->s);
    arena_free(w->arena);
}

/* --- before anything is made --- */

static int read_checkpoint(struct work *w, const char *path, struct err *err)
{
    size_t len = 0;
    auto_free char *text = NULL;
    w->arena = arena_new(LIMIT_CALL_ARENA);
    if (w->arena == NULL)
        return err_sys(err, ENOMEM, "checkpoint");
    return checkpoint_dir_open(path, &w->dir, &text, &len, err) < 0 ||
                   checkpoint_decode(text, len, w->arena, &w->c, err) < 0
               ? -1
               : 0;
}

/* What the client wants of a saved container; as it was saved, if it says nothing of any. */
static const Runtime__V1__ContainerConfig *wanted_config(const struct work *w, size_t i,
                                                         const struct restore_options *o)
{
    const Runtime__V1__ContainerConfig *saved = w->c.containers[i].config;
    if (o->n_containers == 0)
        return saved;
    for (size_t k = 0; k < o->n_containers; k++) {
        if (strcmp(o->containers[k]->metadata->name, saved->metadata->name) == 0)
            return o->containers[k];
    }
    return NULL;
}

static int find_images(struct work *w, const struct restore_options *o, struct err *err)
{
    if (o->n_containers != 0 && o->n_containers != w->c.n_containers)
        return err_set(err, ERR_PRECONDITION, "%zu containers were saved, %zu are asked for",
                       w->c.n_containers, o->n_containers);
    w->images = xcalloc(w->c.n_containers + 1, sizeof(*w->images));
    for (size_t i = 0; i < w->c.n_containers; i++) {
        const struct checkpoint_container *c = &w->c.containers[i];
        const Runtime__V1__ContainerConfig *config = wanted_config(w, i, o);
        auto_err struct err why = ERR_INIT;
        if (config == NULL)
            return err_set(err, ERR_PRECONDITION, "nothing is said of the saved container %.64s",
                           c->config->metadata->name);
        if (config == c->config) {
            /* by the id, since the name may mean another image by now */
            Runtime__V1__ImageSpec *spec = arena_memdup(w->arena, config->image, sizeof(*spec));
            Runtime__V1__ContainerConfig *copy = arena_memdup(w->arena, config, sizeof(*copy));
            if (spec == NULL || copy == NULL)
                return err_sys(err, ENOMEM, "checkpoint");
            if (str_empty(spec->user_specified_image))
                spec->user_specified_image = spec->image;
            spec->image = arena_strdup(w->arena, c->image_id);
            copy->image = spec;
            config = copy;
        }
        /* a saved one is as little to be believed as a client's */
        if (cri_check_container_config(config, err) < 0 ||
            spec_check_container(config, w->pod, BACKEND_VM, err) < 0)
            return err_wrap(err, "container %.64s", c->config->metadata->name);
        if (container_images_find(w->rt->deps.images, config, &w->images[i], &why) < 0) {
            if (why.code != ERR_NOT_FOUND)
                return err_move(err, &why);
            return err_set(err, ERR_PRECONDITION,
                           "container %.64s: image %.200s (%.80s) is not here",
                           c->config->metadata->name, c->image_ref, c->image_id);
        }
        w->n_images++;
        if (strcmp(w->images[i].own->id, c->image_id) != 0)
            return err_set(err, ERR_PRECONDITION, "container %.64s: its image was %.80s, not %.80s",
                           c->config->metadata->name, c->image_id, w->images[i].own->id);
        if (restore_check_container(c->config, w->images[i].config, err) < 0 ||
            restore_volumes_find(&w->c, i, w->images[i].config, &w->volumes, err) < 0)
            return -1;
    }
    return 0;
}

static int open_disks(struct work *w, struct err *err)
{
    for (size_t i = 0; i < w->c.machine.shape.n_disks; i++) {
        const struct checkpoint_disk *d = &w->c.disks[i];
        struct image_store *store = w->rt->deps.images;
        auto_err struct err why = ERR_INIT;
        char layout[DIGEST_MAX];
        auto_image struct image *image = image_hold(store, d->image, &why);
        if (image == NULL && why.code == ERR_NOT_FOUND)
            return err_set(err, ERR_PRECONDITION, "image %.200s (%.80s) is not here", d->name,
                           d->image);
        if (image == NULL)
            return err_move(err, &why);
        strv_add(&w->held, image->id);
        if (image_disk_open(store, image->id, &w->disks[i], err) < 0)
            return err_wrap(err, "image %.200s", d->name);
        w->n_disks++;
        if (checkpoint_layout(w->rt, image->id, layout, err) < 0)
            return err_wrap(err, "image %.200s", d->name);
        if (strcmp(layout, d->layout) != 0)
            return err_set(err, ERR_PRECONDITION,
                           "image %.200s lies on its disk otherwise than when the pod was saved",
                           d->name);
    }
    return 0;
}

static int prepare(struct work *w, const struct restore_options *o, struct cancel *cancel,
                   struct err *err)
{
    if (read_checkpoint(w, o->path, err) < 0)
        return -1;
    w->pod = o->pod != NULL ? o->pod : w->c.pod;
    struct backend_choice backend;
    if (cri_check_sandbox_config(w->pod, err) < 0)
        return -1;
    if (restore_check_pod(w->c.pod, w->pod, err) < 0 ||
        backend_choose(w->pod, o->handler, w->rt->deps.privileged_on_host, &backend, err) < 0)
        return -1;
    if (backend.backend != BACKEND_VM)
        return err_set(err, ERR_PRECONDITION, "a saved VM cannot run on the host: %s", backend.why);
    if (machine_decide_accel(w->rt->deps.factory, cancel, err) < 0 ||
        machine_restore_check(w->rt->deps.factory, &w->c.machine, err) < 0 ||
        find_images(w, o, err) < 0 || open_disks(w, err) < 0)
        return -1;
    if (w->dir.volumes < 0 && w->c.volumes.bytes > 0)
        return err_set(err, ERR_NOT_FOUND, "it has no file volumes");
    if (w->dir.volumes >= 0 &&
        checkpoint_file_check(w->dir.volumes, &w->c.volumes, "volumes", cancel, err) < 0)
        return -1;
    return checkpoint_file_check(w->dir.state, &w->c.state, "vm", cancel, err) < 0 ||
                   checkpoint_file_check(w->dir.scratch, &w->c.scratch, "scratch", cancel, err) < 0
               ? -1
               : 0;
}

/* --- the sandbox --- */

static int machine_up(struct work *w, int tap, struct cancel *cancel, struct err *err)
{
    struct sandbox *s = w->s;
    struct hv_disk disks[HV_MAX_DISKS];
    struct disk_part *parts[HV_MAX_DISKS] = {NULL};
    struct machine_spec spec = sandbox_machine_spec(s);
    struct machine_callbacks cb = sandbox_machine_callbacks;
    struct machine_restore r = {.image = &w->c.machine,
                                .state_fd = w->dir.state,
                                .scratch_fd = w->dir.scratch,
                                .disks = disks,
                                .guest_mac = w->c.mac};
    cb.arg = s;
    spec.tap_fd = tap;
    for (size_t i = 0; i < w->n_disks; i++) {
        const struct image_disk *d = &w->disks[i];
        disks[i] = w->c.machine.shape.disks[i];
        parts[i] = xcalloc(d->n_parts, sizeof(*parts[i]));
        for (size_t k = 0; k < d->n_parts; k++)
            parts[i][k] = (struct disk_part){.fd = d->parts[k].fd, .size = d->parts[k].size};
        disks[i].parts = parts[i];
        disks[i].n_parts = d->n_parts;
    }
    int64_t begin = mono_ns();
    struct machine *m = FAILPOINT("restore.machine", err) < 0
                            ? NULL
                            : machine_restore(w->rt->deps.factory, &spec, &r, &cb, cancel, err);
    for (size_t i = 0; i < w->n_disks; i++)
        free(parts[i]);
    if (m == NULL) {
        telemetry_machine_start(TELEMETRY_FAILED, 0);
        return -1;
    }
    telemetry_machine_start(TELEMETRY_BOOTED, mono_ns() - begin);
    (void)sandbox_set_machine(s, m);
    return sandbox_save(s, err);
}

static int become(struct work *w, struct cancel *cancel, struct err *err)
{
    Aspis__Agent__V1__BecomePodRequest req;
    aspis__agent__v1__become_pod_request__init(&req);
    req.from_id = arena_strdup(w->arena, w->c.sandbox_id);
    req.sandbox_id = w->s->rec.id;
    req.containers = arena_alloc(w->arena, (w->n_containers + 1) * sizeof(void *));
    for (size_t i = 0; req.containers != NULL && i < w->n_containers; i++) {
        Aspis__Agent__V1__KeyValue *kv = arena_alloc(w->arena, sizeof(*kv));
        if (kv == NULL)
            break;
        aspis__agent__v1__key_value__init(kv);
        kv->key = arena_strdup(w->arena, w->c.containers[i].id);
        kv->value = w->containers[i]->rec.id;
        req.containers[req.n_containers++] = kv;
    }
    if (arena_exhausted(w->arena))
        return err_sys(err, ENOMEM, "restore");
    if (FAILPOINT("restore.become", err) < 0 ||
        agent_tell(w->s, "BecomePod", &req.base, AGENT_NS, cancel, err) < 0)
        return err_wrap(err, "make the saved VM this pod");
    return 0;
}

static int attach_volumes(struct work *w, struct cancel *cancel, struct err *err)
{
    struct restore_volumes *v = &w->volumes;
    for (size_t i = 0; i < v->n; i++)
        v->list[i].owner = w->containers[v->container[i]]->rec.id;
    return machine_restore_volumes(w->s->machine, &w->c.machine, w->dir.volumes, v->list, v->n,
                                   cancel, err);
}

/* --- the containers --- */

static void set_text(char **field, const char *text)
{
    free(*field);
    *field = xstrdup(text);
}

static int add_container(struct work *w, size_t i, struct err *err)
{
    const struct checkpoint_container *from = &w->c.containers[i];
    char id[65];
    fs_random_hex(id, 64);
    auto_container struct container *c = container_new(w->s, id, w->images[i].config, err);
    if (c == NULL)
        return -1;
    set_text(&c->rec.image_id, w->images[i].own->id);
    set_text(&c->rec.image_ref, container_images_ref(w->images[i].own));
    set_text(&c->rec.stop_signal, from->stop_signal);
    set_text(&c->rec.groups, from->groups);
    c->rec.uid = from->uid;
    c->rec.gid = from->gid;
    c->rec.stdin_id = from->stdin_id;
    c->rec.stdout_id = from->stdout_id;
    c->rec.stderr_id = from->stderr_id;
    if (model_add_container(w->rt, c, err) < 0)
        return -1;
    w->containers[w->n_containers++] = take(c);
    return 0;
}

static int begin_log(struct work *w, size_t i, struct machine *m, struct err *err)
{
    struct container *c = w->containers[i];
    auto_free char *state = container_log_state_path(c);
    auto_free char *dir = fs_format("%s/logs", w->rt->deps.run_root);
    if (container_resolve_log_path(c, err) < 0 || container_save(c, err) < 0 ||
        fs_mkdir_p(dir, 0700, err) < 0 ||
        container_log_begin(state, w->c.containers[i].offset, err) < 0)
        return -1;
    return container_resume_log(c, machine_link(m), err);
}

static void remove_in_guest(struct work *w, const Aspis__Agent__V1__ProcessState *p,
                            struct cancel *cancel)
{
    Aspis__Agent__V1__RemoveProcessRequest process;
    Aspis__Agent__V1__RemoveContainerRequest container;
    aspis__agent__v1__remove_process_request__init(&process);
    aspis__agent__v1__remove_container_request__init(&container);
    process.container_id = container.container_id = p->container_id;
    process.exec_id = p->exec_id;
    bool is_exec = p->exec_id[0] != '\0';
    (void)agent_tell(w->s, is_exec ? "RemoveProcess" : "RemoveContainer",
                     is_exec ? &process.base : &container.base, AGENT_NS, cancel, NULL);
}

/* What else is in the guest: containers that had ended, commands that were being executed. */
static int take_stock(struct work *w, struct cancel *cancel, struct err *err)
{
    auto_arena struct arena *a = arena_new(LIMIT_CALL_ARENA);
    Aspis__Agent__V1__Empty empty;
    aspis__agent__v1__empty__init(&empty);
    const Aspis__Agent__V1__ListStateResponse *state =
        a == NULL ? NULL
                  : (const Aspis__Agent__V1__ListStateResponse *)(const void *)agent_ask(
                        w->s, "ListState", &empty.base,
                        &aspis__agent__v1__list_state_response__descriptor, a, cancel, err);
    if (state == NULL)
        return err_wrap(err, "list state of guest");
    size_t found = 0;
    for (size_t i = 0; i < state->n_processes; i++) {
        const Aspis__Agent__V1__ProcessState *p = state->processes[i];
        struct container *c = NULL;
        for (size_t k = 0; k < w->n_containers && p->exec_id[0] == '\0' && c == NULL; k++) {
            if (strcmp(w->containers[k]->rec.id, p->container_id) == 0)
                c = w->containers[k];
        }
        if (c == NULL) {
            remove_in_guest(w, p, cancel);
            continue;
        }
        found++;
        (void)pthread_mutex_lock(&w->rt->lock);
        c->pid = p->pid;
        (void)pthread_mutex_unlock(&w->rt->lock);
    }
    return found == w->n_containers
               ? 0
               : err_set(err, ERR_DATA_LOSS, "the saved VM has %zu of the %zu containers", found,
                         w->n_containers);
}

/* One disk that no container uses is the pod's idle one; more of them stay until it ends. */
static void note_idle(struct work *w)
{
    for (size_t i = 0; i < w->n_disks; i++) {
        bool used = false;
        for (size_t k = 0; k < w->n_containers && !used; k++)
            used = container_images_uses(w->containers[k], w->c.disks[i].image);
        if (!used && w->s->idle_image == NULL)
            w->s->idle_image = xstrdup(w->c.disks[i].image);
    }
}

/* --- all of it --- */

static int build(struct work *w, struct cancel *cancel, struct err *err)
{
    struct sandbox *s = w->s;
    auto_close int tap = -1;
    if (sandbox_save(s, err) < 0 || FAILPOINT("restore.record", err) < 0 ||
        sandbox_namespace_up(s, &tap, err) < 0 || sandbox_network_up(s, NULL, cancel, err) < 0 ||
        machine_up(w, tap, cancel, err) < 0)
        return -1;
    w->containers = xcalloc(w->c.n_containers + 1, sizeof(struct container *));
    for (size_t i = 0; i < w->c.n_containers; i++) {
        if (add_container(w, i, err) < 0)
            return -1;
    }
    if (become(w, cancel, err) < 0 || attach_volumes(w, cancel, err) < 0 ||
        FAILPOINT("restore.configure", err) < 0 ||
        sandbox_configure_pod(s, s->machine, cancel, err) < 0 || take_stock(w, cancel, err) < 0)
        return -1;
    for (size_t i = 0; i < w->n_containers; i++) {
        if (begin_log(w, i, s->machine, err) < 0)
            return -1;
    }
    /* what lies on the host: the VM's control group and the pins of its vCPUs */
    if (resources_fit(s, s->machine, cancel, err) < 0)
        return -1;
    note_idle(w);
    if (FAILPOINT("restore.ready", err) < 0)
        return -1;
    for (size_t i = 0; i < w->n_containers; i++) {
        if (container_set_phase(w->containers[i], CONTAINER_CREATED, err) < 0)
            return -1;
    }
    return sandbox_become_ready(s, err);
}

static void undo(struct work *w, const struct err *cause)
{
    /* first the guest, which then has no more to say about its containers */
    for (size_t i = 0; i < w->n_containers; i++) {
        struct container *c = w->containers[i];
        container_close_log(c, true);
        (void)container_delete(c, NULL);
        model_remove_container(w->rt, c);
    }
    sandbox_undo(w->s, cause);
}

static int restore(struct work *w, const struct restore_options *o, struct cancel *cancel,
                   struct err *err)
{
    char id[65];
    char title[200];
    int64_t begin = mono_ns();
    if (prepare(w, o, cancel, err) < 0)
        return err_wrap(err, "restore %.200s", o->path);
    fs_random_hex(id, 64);
    w->s = sandbox_new(w->rt, id, w->pod, o->handler, err);
    if (w->s == NULL)
        return -1;
    auto_sandbox struct sandbox *holder = model_add_sandbox(w->rt, w->s);
    if (holder != NULL)
        return err_set(err, ERR_EXISTS, "restore %.200s: sandbox %s exists as %.12s", o->path,
                       holder->name_key, holder->rec.id);
    auto_err struct err why = ERR_INIT;
    int rc = build(w, cancel, &why);
    if (rc < 0) {
        (void)err_wrap(&why, "restore %.200s as %s", o->path, sandbox_title(w->s, title));
        undo(w, &why);
    } else {
        log_info("pod restored", LOG_STR("sandbox", w->s->rec.id), LOG_STR("pod", w->s->name_key),
                 LOG_STR("path", o->path), LOG_INT("ms", (mono_ns() - begin) / 1000000));
    }
    (void)eventfd_write(w->s->settled_fd, 1);
    return rc < 0 ? err_move(err, &why) : 0;
}

struct sandbox *sandbox_restore(struct runtime *rt, const struct restore_options *o,
                                struct cancel *cancel, struct err *err)
{
    struct work w = {.rt = rt, .dir = CHECKPOINT_DIR_INIT};
    int rc = restore(&w, o, cancel, err);
    struct sandbox *s = rc == 0 ? sandbox_ref(w.s) : NULL;
    work_clear(&w);
    return s;
}
