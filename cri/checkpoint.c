#include "cri/checkpoint.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/failpoint.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "cri/agent_call.h"
#include "cri/checkpoint_dir.h"
#include "cri/container_images.h"
#include "cri/container_ops.h"
#include "cri/resources.h"
#include "cri/sandbox_ops.h"
#include "cri/spec.h"
#include "cri/spec_cdi.h"

/* Of the guest's time, after which the pod goes on without us. */
#define FREEZE_LIMIT_MS 60000
#define FREEZE_NS (20LL * 1000000000)
#define THAW_NS (20LL * 1000000000)

/* --- what can be saved --- */

/* One checkpoint under way. */
struct work {
    struct sandbox *s;
    struct checkpoint c;
    struct container **saved; /* held, with their op locks */
    size_t n_saved;
    struct arena *arena;
};

static void work_clear(struct work *w)
{
    for (size_t i = 0; i < w->n_saved; i++) {
        oplock_release(&w->saved[i]->op);
        container_unref(w->saved[i]);
    }
    free(w->saved);
    arena_free(w->arena);
}

/* 1: it is saved; 0: it is left out. */
static int check_container(struct container *c, struct err *err)
{
    enum container_phase phase = container_phase(c);
    switch (phase) {
    case CONTAINER_RUNNING:
        return 1;
    case CONTAINER_EXITED:
        return 0;
    case CONTAINER_CREATING:
    case CONTAINER_CREATED:
    case CONTAINER_REMOVING:
    default:
        return err_set(err, ERR_PRECONDITION,
                       "container %.64s has not been started or is being removed",
                       c->config->metadata->name);
    }
}

/* Takes those that run, each with its lock, so that none is removed meanwhile. */
static int take_containers(struct work *w, struct cancel *cancel, struct err *err)
{
    size_t n = 0;
    struct container **list = model_containers_of(w->s, &n);
    int rc = 0;
    w->saved = xcalloc(n + 1, sizeof(struct container *));
    for (size_t i = 0; i < n; i++) {
        int one = rc < 0 ? 0 : check_container(list[i], err);
        if (one > 0 && oplock_take(&list[i]->op, cancel, err) < 0)
            one = -1;
        if (one < 0)
            rc = -1;
        if (one > 0)
            w->saved[w->n_saved++] = list[i];
        else
            container_unref(list[i]);
    }
    free(list);
    return rc;
}

static bool is_saved(const struct work *w, const char *id)
{
    for (size_t i = 0; i < w->n_saved; i++) {
        if (strcmp(w->saved[i]->rec.id, id) == 0)
            return true;
    }
    return false;
}

static int check_named(const struct work *w, const struct checkpoint_options *o, struct err *err)
{
    for (size_t i = 0; i < o->n_containers; i++) {
        if (!is_saved(w, o->containers[i]))
            return err_set(err, ERR_PRECONDITION, "container %.64s is not one that runs in the pod",
                           o->containers[i]);
    }
    for (size_t i = 0; i < w->n_saved && o->n_containers > 0; i++) {
        bool named = false;
        for (size_t k = 0; k < o->n_containers && !named; k++)
            named = strcmp(w->saved[i]->rec.id, o->containers[k]) == 0;
        if (!named)
            return err_set(err, ERR_PRECONDITION,
                           "container %.64s runs too and is not named: a VM is saved whole",
                           w->saved[i]->config->metadata->name);
    }
    return 0;
}

static int check_pod(struct work *w, struct err *err)
{
    const struct sandbox *s = w->s;
    (void)pthread_mutex_lock(&s->rt->lock);
    bool ready = s->rec.phase == SANDBOX_READY && !s->stopping;
    (void)pthread_mutex_unlock(&s->rt->lock);
    if (!ready)
        return err_set(err, ERR_PRECONDITION, "it is not ready");
    if (w->n_saved == 0)
        return err_set(err, ERR_PRECONDITION, "no container of it runs");
    if (s->backend.backend == BACKEND_VM && s->net.n_ifaces != 1)
        return err_set(err, ERR_PRECONDITION, "it has %zu network interfaces", s->net.n_ifaces);
    return 0;
}

/* --- what is written down --- */

int checkpoint_layout(struct runtime *rt, const char *image_id, char out[DIGEST_MAX],
                      struct err *err)
{
    struct image_disk disk = {0};
    struct digest_ctx c;
    struct checkpoint_file tree;
    if (image_disk_open(rt->deps.images, image_id, &disk, err) < 0)
        return -1;
    /* the first part says where in the others everything is */
    int rc = checkpoint_file_describe(disk.parts[0].fd, &tree, NULL, err);
    if (rc == 0)
        rc = digest_init(&c, "sha256", err);
    if (rc == 0) {
        rc = digest_update(&c, tree.digest, strlen(tree.digest), err);
        for (size_t i = 0; rc == 0 && i < disk.n_parts; i++) {
            char size[24];
            int len = snprintf(size, sizeof(size), " %" PRIu64, disk.parts[i].size);
            rc = digest_update(&c, size, (size_t)len, err);
        }
        if (rc == 0)
            rc = digest_final(&c, out, err);
        else
            digest_clear(&c);
    }
    image_disk_clear(&disk);
    return rc;
}

static const char *image_of_mount(const struct container *c, const char *serial)
{
    for (size_t i = 0; i < c->config->n_mounts; i++) {
        char mine[21];
        if (!spec_is_image_volume(c->config->mounts[i]))
            continue;
        image_disk_serial(c->config->mounts[i]->image->image, mine);
        if (strcmp(mine, serial) == 0)
            return c->config->mounts[i]->image->image;
    }
    return NULL;
}

/* Whose disk it is: of a container, ended ones included, or one that stayed in. */
static const char *image_of(struct work *w, const char *serial)
{
    struct sandbox *s = w->s;
    struct container *c;
    char mine[21];
    const char *id = NULL;
    (void)pthread_mutex_lock(&s->rt->lock);
    TAILQ_FOREACH(c, &s->containers, link)
    {
        image_disk_serial(c->rec.image_id, mine);
        if (id == NULL && strcmp(mine, serial) == 0)
            id = arena_strdup(w->arena, c->rec.image_id);
        const char *mounted = id == NULL ? image_of_mount(c, serial) : NULL;
        if (mounted != NULL)
            id = arena_strdup(w->arena, mounted);
    }
    (void)pthread_mutex_unlock(&s->rt->lock);
    if (id == NULL && s->idle_image != NULL) {
        image_disk_serial(s->idle_image, mine);
        if (strcmp(mine, serial) == 0)
            id = arena_strdup(w->arena, s->idle_image);
    }
    return id;
}

static int describe_disks(struct work *w, struct err *err)
{
    struct runtime *rt = w->s->rt;
    const struct hv_shape *shape = &w->c.machine.shape;
    for (size_t i = 0; i < shape->n_disks; i++) {
        struct checkpoint_disk *d = &w->c.disks[i];
        d->image = image_of(w, shape->disks[i].serial);
        if (d->image == NULL)
            return err_set(err, ERR_PRECONDITION,
                           "the VM has a disk %s, which is of no image of its containers",
                           shape->disks[i].serial);
        auto_image struct image *image = image_find(rt->deps.images, d->image, err);
        if (image == NULL || checkpoint_layout(rt, d->image, d->layout, err) < 0)
            return err_wrap(err, "image %.80s", d->image);
        d->name = arena_strdup(w->arena, container_images_ref(image));
    }
    return 0;
}

/* Their sources are not the configuration's, which the copy may be given others for. */
static int refuse_cdi_mounts(const struct container *c, struct err *err)
{
    auto_cdi_edits struct cdi_edits e = {0};
    if (spec_cdi_resolve(c->config, &e, err) < 0)
        return -1;
    return e.n_mounts == 0 ? 0
                           : err_set(err, ERR_PRECONDITION, "%s: a mount of a CDI device",
                                     e.mounts[0].container_path);
}

/* What the guest calls the volumes of a container. Two in one place could not be told apart when
 * the pod is restored. */
static int describe_volumes(struct work *w, size_t i, struct machine *m, struct err *err)
{
    const struct container *c = w->saved[i];
    struct checkpoint_container *out = &w->c.containers[i];
    auto_free struct machine_volume *v = spec_volumes(c->config, &out->n_volumes);
    if (checkpoint_check_places(c->config, err) < 0 || refuse_cdi_mounts(c, err) < 0 ||
        machine_find_volumes(m, c->rec.id, v, out->n_volumes, err) < 0)
        return err_wrap(err, "container %.64s", c->config->metadata->name);
    out->volumes = arena_alloc(w->arena, (out->n_volumes + 1) * sizeof(*out->volumes));
    if (out->volumes == NULL)
        return err_sys(err, ENOMEM, "checkpoint");
    for (size_t k = 0; k < out->n_volumes; k++)
        out->volumes[k] =
            (struct checkpoint_volume){.id = v[k].id, .mirrored = v[k].mirrored, .file = v[k].file};
    return 0;
}

/* The record of a container, and the limits that it has by now. Under its op lock. */
static void describe_container(struct work *w, size_t i)
{
    struct container *c = w->saved[i];
    struct checkpoint_container *out = &w->c.containers[i];
    (void)pthread_mutex_lock(&c->rt->lock);
    *out = (struct checkpoint_container){
        .id = c->rec.id,
        .config = c->config,
        .image_id = c->rec.image_id,
        .image_ref = c->rec.image_ref,
        .stop_signal = c->rec.stop_signal,
        .groups = arena_strdup(w->arena, c->rec.groups),
        .uid = c->rec.uid,
        .gid = c->rec.gid,
        .stdin_id = c->rec.stdin_id,
        .stdout_id = c->rec.stdout_id,
        .stderr_id = c->rec.stderr_id,
    };
    if (c->resources != NULL && c->config->linux != NULL) {
        Runtime__V1__ContainerConfig *config =
            arena_memdup(w->arena, c->config, sizeof(*c->config));
        Runtime__V1__LinuxContainerConfig *linux_config =
            arena_memdup(w->arena, c->config->linux, sizeof(*c->config->linux));
        if (config != NULL && linux_config != NULL) {
            linux_config->resources = (Runtime__V1__LinuxContainerResources *)message_clone(
                &c->resources->base); /* given back by undescribe() */
            config->linux = linux_config;
            out->config = config;
        }
    }
    (void)pthread_mutex_unlock(&c->rt->lock);
}

static void undescribe(struct work *w)
{
    for (size_t i = 0; i < w->c.n_containers; i++) {
        if (w->c.containers[i].config != w->saved[i]->config)
            protobuf_c_message_free_unpacked(&w->c.containers[i].config->linux->resources->base,
                                             NULL);
    }
    w->c.n_containers = 0;
}

static int describe(struct work *w, struct machine *m, struct err *err)
{
    struct sandbox *s = w->s;
    w->arena = arena_new(MiB(16));
    if (w->arena == NULL)
        return err_sys(err, ENOMEM, "checkpoint");
    w->c.aspis = ASPIS_VERSION;
    w->c.sandbox_id = s->rec.id;
    w->c.mac = s->net.ifaces[0].mac;
    w->c.pod = s->config;
    w->c.containers = arena_alloc(w->arena, (w->n_saved + 1) * sizeof(*w->c.containers));
    if (w->c.containers == NULL)
        return err_sys(err, ENOMEM, "checkpoint");
    for (size_t i = 0; i < w->n_saved; i++) {
        describe_container(w, i);
        w->c.n_containers++;
        if (describe_volumes(w, i, m, err) < 0)
            return -1;
    }
    return 0;
}

/* --- saving --- */

static int freeze(struct sandbox *s, struct cancel *cancel, struct err *err)
{
    Aspis__Agent__V1__FreezePodRequest req;
    aspis__agent__v1__freeze_pod_request__init(&req);
    req.limit_ms = FREEZE_LIMIT_MS;
    if (FAILPOINT("checkpoint.freeze", err) < 0 ||
        agent_tell(s, "FreezePod", &req.base, FREEZE_NS, cancel, err) < 0)
        return err_wrap(err, "freeze its processes");
    return 0;
}

static int thaw(struct sandbox *s, struct err *err)
{
    Aspis__Agent__V1__ThawPodRequest req;
    aspis__agent__v1__thaw_pod_request__init(&req);
    auto_cancel struct cancel *own = cancel_new(mono_ns() + THAW_NS, err);
    req.wall_clock_ns = (uint64_t)wall_ns();
    return own == NULL || agent_tell(s, "ThawPod", &req.base, THAW_NS, own, err) < 0
               ? err_wrap(err, "thaw its processes")
               : 0;
}

/* While the VM stands still: what is in the logs by now, of bytes that the agent in the saved VM
 * still has, since it has heard of no later acknowledgement than ours. */
static int note_logs(void *arg, struct err *err)
{
    struct work *w = arg;
    (void)err;
    w->c.created_at = wall_ns();
    for (size_t i = 0; i < w->n_saved; i++) {
        if (w->saved[i]->log != NULL)
            container_log_offsets(w->saved[i]->log, w->c.containers[i].offset);
    }
    return 0;
}

static int check_still_there(const struct work *w, struct err *err)
{
    for (size_t i = 0; i < w->n_saved; i++) {
        if (container_phase(w->saved[i]) != CONTAINER_RUNNING)
            return err_set(err, ERR_ABORTED, "container %.64s ended meanwhile",
                           w->saved[i]->config->metadata->name);
    }
    return 0;
}

static int write_down(struct work *w, struct checkpoint_dir *d, struct cancel *cancel,
                      struct err *err)
{
    if (checkpoint_file_describe(d->state, &w->c.state, cancel, err) < 0 ||
        checkpoint_file_describe(d->scratch, &w->c.scratch, cancel, err) < 0 ||
        checkpoint_file_describe(d->volumes, &w->c.volumes, cancel, err) < 0 ||
        describe_disks(w, err) < 0)
        return -1;
    auto_free char *text = checkpoint_encode(&w->c, err);
    if (text == NULL)
        return -1;
    if (strlen(text) > LIMIT_CHECKPOINT_MANIFEST)
        return err_set(err, ERR_EXHAUSTED, "its manifest would be too large");
    return checkpoint_dir_finish(d, text, err);
}

/* The pod goes on as soon as its VM is saved, or else once everything has gone well. */
static int save(struct work *w, struct machine *m, const struct checkpoint_options *o,
                struct cancel *cancel, struct err *err)
{
    auto_checkpoint_dir struct checkpoint_dir d = CHECKPOINT_DIR_INIT;
    if (checkpoint_dir_create(o->path, w->s->rt->deps.state_root, w->s->rec.id, &d, err) < 0)
        return -1;
    auto_err struct err e = ERR_INIT;
    const struct machine_files files = {d.state, d.scratch, d.volumes};
    int64_t begin = mono_ns();
    int rc = freeze(w->s, cancel, &e);
    if (rc == 0)
        rc = machine_checkpoint(m, &files, &w->c.machine, note_logs, w, cancel, &e);
    bool thawed = rc < 0 || o->leave_running;
    auto_err struct err undo = ERR_INIT;
    if (thawed && thaw(w->s, &undo) < 0)
        rc = rc < 0 ? err_append(&e, " (and %s)", err_msg(&undo)) : err_move(&e, &undo);
    int64_t pause = mono_ns() - begin;
    if (rc == 0)
        rc = check_still_there(w, &e);
    if (rc == 0)
        rc = write_down(w, &d, cancel, &e);
    if (rc < 0 && !thawed)
        (void)thaw(w->s, NULL);
    if (rc == 0)
        log_info("pod saved", LOG_STR("sandbox", w->s->rec.id), LOG_STR("path", o->path),
                 LOG_INT("paused_ms", pause / 1000000),
                 LOG_INT("ms", (mono_ns() - begin) / 1000000),
                 LOG_INT("state_bytes", (int64_t)w->c.state.bytes));
    return rc < 0 ? err_move(err, &e) : 0;
}

static int checkpoint_locked(struct sandbox *s, const struct checkpoint_options *o,
                             struct cancel *cancel, struct err *err)
{
    struct work w = {.s = s};
    struct machine *m = NULL;
    int rc = s->backend.backend == BACKEND_HOST
                 ? err_set(err, ERR_PRECONDITION,
                           "it runs on the host, without a VM that could be saved")
                 : take_containers(&w, cancel, err);
    if (rc == 0 && (check_pod(&w, err) < 0 || check_named(&w, o, err) < 0 ||
                    (m = sandbox_use_machine(s, err)) == NULL ||
                    machine_checkpoint_check(m, err) < 0 || describe(&w, m, err) < 0))
        rc = -1;
    if (rc == 0)
        rc = save(&w, m, o, cancel, err);
    undescribe(&w);
    work_clear(&w);
    if (m != NULL)
        sandbox_release_machine(s);
    return rc;
}

int sandbox_checkpoint(struct sandbox *s, const struct checkpoint_options *o, struct cancel *cancel,
                       struct err *err)
{
    char title[200];
    auto_err struct err e = ERR_INIT;
    if (oplock_take(&s->op, cancel, err) < 0)
        return err_wrap(err, "checkpoint %s", sandbox_title(s, title));
    int rc = checkpoint_locked(s, o, cancel, &e);
    oplock_release(&s->op);
    if (rc < 0) {
        (void)err_wrap(&e, "checkpoint %s", sandbox_title(s, title));
        return err_move(err, &e);
    }
    return o->leave_running ? 0 : sandbox_stop(s, cancel, err);
}

/* --- after a killed daemon --- */

static void go_on(void *arg, const char *sandbox_id)
{
    auto_err struct err err = ERR_INIT;
    auto_sandbox struct sandbox *s = model_find_sandbox(arg, sandbox_id, NULL);
    if (s != NULL && s->machine != NULL && thaw(s, &err) < 0)
        log_error("a pod that was being saved does not go on", LOG_STR("sandbox", sandbox_id),
                  LOG_STR("error", err_msg(&err)));
}

void checkpoint_recover(struct runtime *rt)
{
    checkpoint_dir_recover(rt->deps.state_root, go_on, rt);
}
