#include "cri/runtime.h"

#include <dirent.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "cri/checkpoint.h"
#include "cri/container_end.h"
#include "cri/container_images.h"
#include "cri/container_ops.h"
#include "cri/container_settle.h"
#include "cri/events.h"
#include "cri/heartbeat.h"
#include "cri/model.h"
#include "cri/sandbox_ops.h"
#include "netplugin/cni.h"
#include "netplugin/netns_note.h"

/* A VM of an earlier daemon that does not answer in this time is given up. */
#define ADOPT_NS (15LL * 1000000000)
#define CLEAN_NS (150LL * 1000000000)
#define TRIM_NS (20LL * 1000000000)

static void *run_worker(void *arg)
{
    loop_run(arg);
    return NULL;
}

struct runtime *runtime_new(const struct runtime_deps *deps, struct err *err)
{
    struct runtime *rt = xcalloc(1, sizeof(*rt));
    rt->deps = *deps;
    rt->deps.run_root = xstrdup(deps->run_root);
    rt->deps.state_root = xstrdup(deps->state_root);
    (void)pthread_mutex_init(&rt->lock, NULL);
    (void)pthread_cond_init(&rt->machine_free, NULL);
    auto_free char *db = fs_format("%s/state.db", deps->state_root);
    auto_free char *notes = netns_notes_dir(rt);
    auto_free char *moved = NULL;
    if (fs_mkdir_p(deps->state_root, 0700, err) == 0 && fs_mkdir_p(deps->run_root, 0700, err) == 0)
        rt->boot_id = fs_boot_id(err);
    rt->events = events_new();
    if (rt->boot_id != NULL)
        rt->stats = stats_new(rt, err);
    if (rt->stats != NULL)
        rt->records = records_open(db, &moved, err);
    if (rt->records != NULL && deps->spares > 0)
        rt->spares = spares_new(deps->factory, notes, deps->spares, SANDBOX_TAP_NAME, err);
    if (rt->records != NULL && (rt->spares != NULL || deps->spares == 0))
        rt->worker = loop_new(err);
    if (rt->worker == NULL) {
        runtime_free(rt);
        return NULL;
    }
    int rc = pthread_create(&rt->worker_thread, NULL, run_worker, rt->worker);
    if (rc != 0) {
        (void)err_sys(err, rc, "start worker thread");
        loop_free(rt->worker);
        rt->worker = NULL;
        runtime_free(rt);
        return NULL;
    }
    if (moved != NULL)
        log_error("records were damaged; began new ones, pods of before will be collected",
                  LOG_STR("damaged", moved));
    return rt;
}

/* Lets go of every object without touching a VM. */
static void forget_sandboxes(struct runtime *rt)
{
    struct sandbox *s;
    struct sandbox *next;
    HASH_ITER(hh, rt->sandboxes, s, next)
    {
        size_t n = 0;
        struct container **list = model_containers_of(s, &n);
        /* before the link, whose end would look like the output's */
        for (size_t i = 0; i < n; i++)
            container_close_log(list[i], false);
        /* before the containers, which keep their ends from being acknowledged */
        sandbox_drop_machine(s);
        for (size_t i = 0; i < n; i++) {
            model_remove_container(rt, list[i]);
            container_unref(list[i]);
        }
        free(list);
        model_remove_sandbox(rt, s);
    }
}

void runtime_free(struct runtime *rt)
{
    if (rt == NULL)
        return;
    spares_free(rt->spares);
    heartbeat_free(rt->heartbeat);
    stats_free(rt->stats);
    forget_sandboxes(rt);
    if (rt->worker != NULL) {
        loop_stop(rt->worker);
        (void)pthread_join(rt->worker_thread, NULL);
        loop_free(rt->worker);
    }
    records_close(rt->records);
    events_free(rt->events);
    free(rt->boot_id);
    char *run_root = __extension__(char *)(uintptr_t) rt->deps.run_root;
    char *state_root = __extension__(char *)(uintptr_t) rt->deps.state_root;
    free(run_root);
    free(state_root);
    (void)pthread_cond_destroy(&rt->machine_free);
    (void)pthread_mutex_destroy(&rt->lock);
    free(rt);
}

/* What many calls at a time have left in the heaps of their threads is the host's again. */
static void trim(struct loop_source *src, void *arg)
{
    (void)arg;
    (void)malloc_trim(0);
    (void)loop_set_timer(src, TRIM_NS);
}

int runtime_watch(struct runtime *rt, struct err *err)
{
    if (loop_add_timer(rt->worker, TRIM_NS, trim, NULL, err) == NULL) /* it goes with the worker */
        return -1;
    rt->heartbeat = heartbeat_new(rt, rt->deps.control, rt->deps.guest_silence_ns, err);
    return rt->heartbeat == NULL ? -1 : 0;
}

bool runtime_image_in_use(void *arg, const char *image_id)
{
    struct runtime *rt = arg;
    bool used = false;
    (void)pthread_mutex_lock(&rt->lock);
    for (struct container *c = rt->containers; c != NULL && !used; c = c->hh.next)
        used = container_images_uses(c, image_id);
    (void)pthread_mutex_unlock(&rt->lock);
    return used;
}

/* --- recovery --- */

/* As model_add_sandbox(), but two of one name mean that the earlier one was to be forgotten when
 * there was no room to write that (records.h). Its parts are collected with what no record owns. */
static struct sandbox *add_newer(struct runtime *rt, struct sandbox *s)
{
    struct sandbox *holder = model_add_sandbox(rt, s);
    if (holder == NULL || holder->rec.created_at > s->rec.created_at)
        return holder;
    log_warn("record of a forgotten sandbox dropped", LOG_STR("sandbox", holder->rec.id));
    sandbox_forget(holder);
    model_remove_sandbox(rt, holder);
    sandbox_unref(holder);
    return model_add_sandbox(rt, s);
}

static void load(struct runtime *rt, struct err *err)
{
    struct sandbox_record *sandboxes = NULL;
    struct container_record *containers = NULL;
    size_t n_sandboxes = 0;
    size_t n_containers = 0;
    if (records_load_sandboxes(rt->records, &sandboxes, &n_sandboxes, err) < 0 ||
        records_load_containers(rt->records, &containers, &n_containers, err) < 0)
        log_error("some records cannot be read", LOG_STR("error", err_msg(err)));
    for (size_t i = 0; i < n_sandboxes; i++) {
        auto_err struct err why = ERR_INIT;
        auto_sandbox struct sandbox *s = sandbox_from_record(rt, &sandboxes[i], &why);
        auto_sandbox struct sandbox *holder = s != NULL ? add_newer(rt, s) : NULL;
        if (s == NULL || holder != NULL)
            log_error("record of sandbox is unusable; its pod will be collected",
                      LOG_STR("error", err_msg(&why)));
        sandbox_record_clear(&sandboxes[i]);
    }
    for (size_t i = 0; i < n_containers; i++) {
        auto_err struct err why = ERR_INIT;
        struct sandbox *s = NULL;
        struct container_record *r = &containers[i];
        HASH_FIND(hh, rt->sandboxes, r->sandbox_id, strlen(r->sandbox_id), s);
        auto_container struct container *c = s != NULL ? container_from_record(s, r, &why) : NULL;
        if (c != NULL) {
            (void)pthread_mutex_lock(&rt->lock);
            (void)container_ref(c);
            HASH_ADD_KEYPTR(hh, rt->containers, c->rec.id, strlen(c->rec.id), c);
            TAILQ_INSERT_TAIL(&s->containers, c, link);
            (void)pthread_mutex_unlock(&rt->lock);
        }
        if (c == NULL)
            log_error("record of container is unusable; the container will be removed",
                      LOG_STR("container", r->id), LOG_STR("sandbox", r->sandbox_id),
                      LOG_STR("error", s != NULL ? err_msg(&why) : "its sandbox is not known"));
        container_record_clear(r);
    }
    free(sandboxes);
    free(containers);
}

/* A container of which the agent knows; resumes its log. */
static void adopt_container(struct container *c, struct link *link,
                            const Aspis__Agent__V1__ProcessState *p)
{
    auto_err struct err err = ERR_INIT;
    enum container_phase phase = container_phase(c);
    if (phase == CONTAINER_EXITED)
        return;
    c->pid = p->pid; /* nobody else is here yet */
    if (container_resume_log(c, link, &err) < 0) {
        log_error("cannot resume container log", LOG_STR("container", c->rec.id),
                  LOG_STR("error", err_msg(&err)));
        container_log_is_done(c);
    }
    container_take_state(c, p);
}

static void remove_in_guest(struct link *link, const char *container_id, const char *exec_id,
                            struct cancel *cancel)
{
    auto_arena struct arena *a = arena_new(LIMIT_CALL_ARENA);
    if (a == NULL)
        return;
    char *id = arena_strdup(a, container_id);
    char *exec = arena_strdup(a, exec_id);
    Aspis__Agent__V1__RemoveProcessRequest process;
    aspis__agent__v1__remove_process_request__init(&process);
    Aspis__Agent__V1__RemoveContainerRequest container;
    aspis__agent__v1__remove_container_request__init(&container);
    process.container_id = container.container_id = id;
    process.exec_id = exec;
    bool is_exec = exec[0] != '\0';
    (void)link_call(link, is_exec ? "RemoveProcess" : "RemoveContainer",
                    is_exec ? &process.base : &container.base, &aspis__agent__v1__empty__descriptor,
                    a, cancel, NULL);
}

/* Compares the guest's containers with the records: what only the guest has goes away there, what
 * only we have is lost. */
static int reconcile(struct sandbox *s, struct machine *m, struct cancel *cancel, struct err *err)
{
    auto_arena struct arena *a = arena_new(LIMIT_CALL_ARENA);
    Aspis__Agent__V1__Empty empty;
    aspis__agent__v1__empty__init(&empty);
    const ProtobufCMessage *reply =
        a == NULL ? NULL
                  : link_call(machine_link(m), "ListState", &empty.base,
                              &aspis__agent__v1__list_state_response__descriptor, a, cancel, err);
    if (reply == NULL)
        return err_wrap(err, "list state of guest");
    const Aspis__Agent__V1__ListStateResponse *state =
        (const Aspis__Agent__V1__ListStateResponse *)reply;
    size_t n = 0;
    struct container **list = model_containers_of(s, &n);
    bool *known = xcalloc(n, sizeof(*known));
    for (size_t i = 0; i < state->n_processes; i++) {
        const Aspis__Agent__V1__ProcessState *p = state->processes[i];
        size_t at = n;
        for (size_t k = 0; k < n && p->exec_id[0] == '\0'; k++) {
            if (strcmp(list[k]->rec.id, p->container_id) == 0 &&
                list[k]->rec.phase != CONTAINER_CREATING &&
                list[k]->rec.phase != CONTAINER_REMOVING)
                at = k;
        }
        if (at == n) {
            remove_in_guest(machine_link(m), p->container_id, p->exec_id, cancel);
            continue;
        }
        known[at] = true;
        adopt_container(list[at], machine_link(m), p);
    }
    for (size_t k = 0; k < n; k++) {
        struct container *c = list[k];
        if (c->rec.phase == CONTAINER_CREATING || c->rec.phase == CONTAINER_REMOVING) {
            container_close_log(c, true);
            /* the guest may still be making it, and then does not list it */
            remove_in_guest(machine_link(m), c->rec.id, "", cancel);
            (void)machine_remove_volumes(m, c->rec.id, cancel, NULL);
            (void)container_delete(c, NULL);
            model_remove_container(s->rt, c);
        } else if (!known[k] && c->rec.phase != CONTAINER_EXITED && !container_start_is_doomed(c)) {
            container_finish_lost(c, "the guest no longer knows this container");
        }
        container_unref(c);
    }
    free(known);
    free(list);
    return 0;
}

static void adopt(struct sandbox *s, struct cancel *cancel)
{
    auto_err struct err err = ERR_INIT;
    struct machine_record record = {0};
    auto_cancel struct cancel *limit = cancel_child(cancel, mono_ns() + ADOPT_NS, NULL);
    struct machine *m = NULL;
    if (strcmp(s->rec.boot_id, s->rt->boot_id) != 0)
        (void)err_set(&err, ERR_NOT_FOUND, "the host was restarted");
    else if (machine_record_decode(s->rec.machine, &record, &err) == 0) {
        struct machine_spec spec = sandbox_machine_spec(s);
        struct machine_callbacks cb = sandbox_machine_callbacks;
        cb.arg = s;
        m = machine_adopt(s->rt->deps.factory, &spec, &record, &cb, limit, &err);
    }
    machine_record_clear(&record);
    if (m != NULL) {
        (void)pthread_mutex_lock(&s->rt->lock);
        s->machine = m;
        (void)pthread_mutex_unlock(&s->rt->lock);
        if (reconcile(s, m, limit, &err) == 0) {
            log_info("sandbox adopted", LOG_STR("sandbox", s->rec.id), LOG_STR("pod", s->name_key));
            return;
        }
    }
    log_warn("sandbox is lost", LOG_STR("sandbox", s->rec.id), LOG_STR("error", err_msg(&err)));
    containers_lost(s, err_msg(&err));
    (void)sandbox_set_phase(s, SANDBOX_NOTREADY, err_msg(&err), NULL);
}

/* Records of containers whose creation or removal was cut off, in a sandbox that has no machine. */
static void settle_containers(struct sandbox *s)
{
    size_t n = 0;
    struct container **list = model_containers_of(s, &n);
    for (size_t i = 0; i < n; i++) {
        struct container *c = list[i];
        if (c->rec.phase == CONTAINER_CREATING || c->rec.phase == CONTAINER_REMOVING) {
            (void)container_delete(c, NULL);
            model_remove_container(s->rt, c);
        } else if (c->rec.phase != CONTAINER_EXITED) {
            container_finish_lost(c, s->rec.reason);
        }
        container_unref(c);
    }
    free(list);
}

static void forget_containers(struct sandbox *s)
{
    size_t n = 0;
    struct container **list = model_containers_of(s, &n);
    for (size_t i = 0; i < n; i++) {
        (void)container_delete(list[i], NULL);
        model_remove_container(s->rt, list[i]);
        container_unref(list[i]);
    }
    free(list);
}

static void recover_sandbox(struct sandbox *s, struct cancel *cancel)
{
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *limit = cancel_child(cancel, mono_ns() + CLEAN_NS, NULL);
    switch (s->rec.phase) {
    case SANDBOX_READY:
        adopt(s, cancel);
        return;
    case SANDBOX_NOTREADY:
        settle_containers(s);
        return;
    case SANDBOX_CREATING:
        /* nobody was told of it, nor of the containers that it may have brought (restore.c) */
        if (sandbox_teardown(s, limit, &err) == 0 && sandbox_delete(s, &err) == 0) {
            forget_containers(s);
            log_info("half-made sandbox removed", LOG_STR("sandbox", s->rec.id));
            model_remove_sandbox(s->rt, s);
            return;
        }
        (void)sandbox_set_phase(s, SANDBOX_NOTREADY, err_msg(&err), NULL);
        break;
    case SANDBOX_REMOVING:
    default:
        if (sandbox_remove(s, limit, &err) == 0)
            return;
        break;
    }
    log_error("cannot finish what an earlier daemon began; a client can remove the sandbox",
              LOG_STR("sandbox", s->rec.id), LOG_STR("error", err_msg(&err)));
}

static bool known_sandbox(void *arg, const char *id)
{
    struct runtime *rt = arg;
    struct sandbox *s = NULL;
    HASH_FIND(hh, rt->sandboxes, id, strlen(id), s);
    return s != NULL;
}

static bool known_container(struct runtime *rt, const char *id)
{
    struct container *c = NULL;
    HASH_FIND(hh, rt->containers, id, strlen(id), c);
    return c != NULL;
}

/* Of containers that there are no more. */
static void sweep_logs(struct runtime *rt)
{
    auto_free char *base = fs_format("%s/logs", rt->deps.run_root);
    auto_closedir DIR *d = opendir(base);
    struct dirent *e;
    while (d != NULL && (e = readdir(d)) != NULL) {
        if (e->d_name[0] == '.' || known_container(rt, e->d_name))
            continue;
        auto_free char *path = fs_format("%s/%s", base, e->d_name);
        (void)unlink(path);
    }
}

int runtime_recover(struct runtime *rt, struct cancel *cancel, struct err *err)
{
    load(rt, err);
    err_clear(err);
    size_t n = 0;
    struct sandbox **list = xcalloc(HASH_CNT(hh, rt->sandboxes), sizeof(struct sandbox *));
    for (struct sandbox *s = rt->sandboxes; s != NULL; s = s->hh.next)
        list[n++] = sandbox_ref(s);
    for (size_t i = 0; i < n; i++) {
        recover_sandbox(list[i], cancel);
        sandbox_unref(list[i]);
    }
    free(list);
    checkpoint_recover(rt);
    n = 0;
    const char **ids = xcalloc(HASH_CNT(hh, rt->sandboxes), sizeof(*ids));
    for (struct sandbox *s = rt->sandboxes; s != NULL; s = s->hh.next)
        ids[n++] = s->rec.id;
    auto_err struct err why = ERR_INIT;
    sweep_logs(rt);
    auto_cancel struct cancel *limit = cancel_child(cancel, mono_ns() + CLEAN_NS, NULL);
    if (cni_gc(rt->deps.cni, ids, n, limit, &why) < 0)
        log_warn("network garbage collection failed", LOG_STR("error", err_msg(&why)));
    auto_free char *notes = netns_notes_dir(rt);
    if (netns_notes_collect(notes, known_sandbox, rt, &why) < 0)
        log_warn("cannot collect network namespaces", LOG_STR("error", err_msg(&why)));
    if (machine_collect(rt->deps.factory, ids, n, &why) < 0)
        log_error("cannot collect leftovers", LOG_STR("error", err_msg(&why)));
    free(ids);
    return cancel_check(cancel, err);
}
