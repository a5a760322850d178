#include "cri/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/str.h"
#include "cri/events.h"

#define ID_LENGTH 64

ProtobufCMessage *message_clone(const ProtobufCMessage *m)
{
    size_t len = protobuf_c_message_get_packed_size(m);
    auto_free uint8_t *data = xcalloc(1, len);
    (void)protobuf_c_message_pack(m, data);
    return protobuf_c_message_unpack(m->descriptor, NULL, len, data);
}

static void *pack(const ProtobufCMessage *m, size_t *len)
{
    *len = protobuf_c_message_get_packed_size(m);
    uint8_t *data = xcalloc(1, *len);
    (void)protobuf_c_message_pack(m, data);
    return data;
}

static void free_message(void *m)
{
    if (m != NULL)
        protobuf_c_message_free_unpacked(m, NULL);
}

/* --- sandboxes --- */

static struct sandbox *sandbox_bare(struct runtime *rt, struct err *err)
{
    struct sandbox *s = xcalloc(1, sizeof(*s));
    atomic_init(&s->refs, 1);
    s->rt = rt;
    s->op.fd = s->disks.fd = -1;
    (void)pthread_mutex_init(&s->save, NULL);
    TAILQ_INIT(&s->containers);
    TAILQ_INIT(&s->execs);
    s->settled_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->settled_fd < 0 || oplock_init(&s->op, err) < 0 || oplock_init(&s->disks, err) < 0 ||
        oplock_init(&s->fit, err) < 0) {
        (void)err_sys(err, errno, "new sandbox");
        sandbox_unref(s);
        return NULL;
    }
    return s;
}

/* A pod that names no host is called by its id, as other runtimes do with containers. */
static void fill_hostname(Runtime__V1__PodSandboxConfig *config, const char *id)
{
    char node[65] = "";
    if (backend_host_network(config) && gethostname(node, sizeof(node) - 1) == 0) {
        if (config->hostname[0] != '\0')
            free(config->hostname);
        config->hostname = xstrdup(node);
    } else if (config->hostname[0] == '\0') {
        config->hostname = xstrndup(id, 12);
    }
}

/* A recorded machine is what it is; what the rule would be today decides the rest. */
static void find_backend(struct sandbox *s)
{
    struct machine_record record = {0};
    auto_err struct err err = ERR_INIT;
    if (backend_choose(s->config, s->rec.handler, s->rt->deps.privileged_on_host, &s->backend,
                       &err) < 0)
        s->backend = (struct backend_choice){BACKEND_VM, "its record is damaged"};
    if (s->rec.machine[0] == '\0' || machine_record_decode(s->rec.machine, &record, &err) < 0)
        return;
    if (record.backend != s->backend.backend)
        s->backend = (struct backend_choice){record.backend, "the rule when it was made"};
    machine_record_clear(&record);
}

static char *name_key_of(const Runtime__V1__PodSandboxConfig *config)
{
    const Runtime__V1__PodSandboxMetadata *m = config->metadata;
    return fs_format("%s/%s/%s/%u", m->namespace_, m->name, m->uid, m->attempt);
}

struct sandbox *sandbox_new(struct runtime *rt, const char *id,
                            const Runtime__V1__PodSandboxConfig *config, const char *handler,
                            struct err *err)
{
    struct backend_choice backend;
    if (backend_choose(config, handler, rt->deps.privileged_on_host, &backend, err) < 0)
        return NULL;
    struct sandbox *s = sandbox_bare(rt, err);
    if (s == NULL)
        return NULL;
    s->backend = backend;
    s->config = (Runtime__V1__PodSandboxConfig *)message_clone(&config->base);
    fill_hostname(s->config, id);
    s->name_key = name_key_of(s->config);
    s->rec = (struct sandbox_record){
        .id = xstrdup(id),
        .phase = SANDBOX_CREATING,
        .handler = xstrdup(handler),
        .created_at = wall_ns(),
        .boot_id = xstrdup(rt->boot_id),
        .netns = xstrdup(""),
        .net = xstrdup(""),
        .machine = xstrdup(""),
        .reason = xstrdup(""),
    };
    s->rec.config = pack(&config->base, &s->rec.config_len);
    return s;
}

struct sandbox *sandbox_from_record(struct runtime *rt, struct sandbox_record *rec, struct err *err)
{
    Runtime__V1__PodSandboxConfig *config =
        runtime__v1__pod_sandbox_config__unpack(NULL, rec->config_len, rec->config);
    if (config == NULL || config->metadata == NULL) {
        free_message(config);
        (void)err_set(err, ERR_DATA_LOSS, "record of sandbox %s holds no configuration", rec->id);
        return NULL;
    }
    struct sandbox *s = sandbox_bare(rt, err);
    if (s == NULL) {
        free_message(config);
        return NULL;
    }
    s->config = config;
    fill_hostname(config, rec->id);
    s->name_key = name_key_of(config);
    s->rec = *rec;
    *rec = (struct sandbox_record){0};
    find_backend(s);
    if (s->rec.net[0] != '\0')
        (void)netinfo_decode(s->rec.net, &s->net, NULL);
    (void)eventfd_write(s->settled_fd, 1);
    return s;
}

struct sandbox *sandbox_ref(struct sandbox *s)
{
    if (s != NULL)
        atomic_fetch_add(&s->refs, 1);
    return s;
}

void sandbox_unref(struct sandbox *s)
{
    if (s == NULL || atomic_fetch_sub(&s->refs, 1) != 1)
        return;
    netinfo_clear(&s->net);
    free_message(s->config);
    free_message(s->resources);
    sandbox_record_clear(&s->rec);
    free(s->name_key);
    free(s->timeline);
    free(s->silence);
    free(s->idle_image);
    stats_cache_clear(&s->stats);
    oplock_destroy(&s->op);
    oplock_destroy(&s->disks);
    oplock_destroy(&s->fit);
    cleanup_closep(&s->settled_fd);
    (void)pthread_mutex_destroy(&s->save);
    free(s);
}

struct sandbox *model_add_sandbox(struct runtime *rt, struct sandbox *s)
{
    struct sandbox *holder = NULL;
    (void)pthread_mutex_lock(&rt->lock);
    HASH_FIND(hh_name, rt->names, s->name_key, strlen(s->name_key), holder);
    if (holder != NULL) {
        (void)sandbox_ref(holder);
    } else {
        (void)sandbox_ref(s);
        HASH_ADD_KEYPTR(hh, rt->sandboxes, s->rec.id, strlen(s->rec.id), s);
        HASH_ADD_KEYPTR(hh_name, rt->names, s->name_key, strlen(s->name_key), s);
    }
    (void)pthread_mutex_unlock(&rt->lock);
    return holder;
}

void model_remove_sandbox(struct runtime *rt, struct sandbox *s)
{
    struct sandbox *found = NULL;
    (void)pthread_mutex_lock(&rt->lock);
    HASH_FIND(hh, rt->sandboxes, s->rec.id, strlen(s->rec.id), found);
    if (found == s) {
        HASH_DELETE(hh, rt->sandboxes, s);
        HASH_DELETE(hh_name, rt->names, s);
        if (s->rec.phase != SANDBOX_CREATING)
            events_sandbox(s, RUNTIME__V1__CONTAINER_EVENT_TYPE__CONTAINER_DELETED_EVENT);
    }
    (void)pthread_mutex_unlock(&rt->lock);
    if (found == s)
        sandbox_unref(s);
}

/* Clients may shorten ids as long as they are unambiguous (crictl does). */
#define FIND_BY_PREFIX(head, id, visible, result, ambiguous)                                       \
    do {                                                                                           \
        HASH_FIND(hh, head, id, strlen(id), result);                                               \
        if ((result) == NULL && strlen(id) < ID_LENGTH) {                                          \
            for (__typeof__(result) it_ = (head); it_ != NULL; it_ = it_->hh.next) {               \
                if (!str_starts(it_->rec.id, id) || !(visible(it_)))                               \
                    continue;                                                                      \
                (ambiguous) = (result) != NULL;                                                    \
                (result) = it_;                                                                    \
                if (ambiguous)                                                                     \
                    break;                                                                         \
            }                                                                                      \
        }                                                                                          \
        if ((result) != NULL && !(visible(result)))                                                \
            (result) = NULL;                                                                       \
    } while (0)

static bool sandbox_visible(const struct sandbox *s)
{
    return s->rec.phase != SANDBOX_CREATING;
}

struct sandbox *model_find_sandbox(struct runtime *rt, const char *id, struct err *err)
{
    struct sandbox *s = NULL;
    bool ambiguous = false;
    if (str_empty(id)) {
        (void)err_set(err, ERR_INVALID, "pod_sandbox_id is empty");
        return NULL;
    }
    (void)pthread_mutex_lock(&rt->lock);
    FIND_BY_PREFIX(rt->sandboxes, id, sandbox_visible, s, ambiguous);
    if (!ambiguous)
        (void)sandbox_ref(s);
    (void)pthread_mutex_unlock(&rt->lock);
    if (ambiguous)
        (void)err_set(err, ERR_INVALID, "sandbox id %.64s is ambiguous", id);
    else if (s == NULL)
        (void)err_set(err, ERR_NOT_FOUND, "sandbox %.64s not found", id);
    return ambiguous ? NULL : s;
}

int sandbox_save(struct sandbox *s, struct err *err)
{
    (void)pthread_mutex_lock(&s->save);
    (void)pthread_mutex_lock(&s->rt->lock);
    struct sandbox_record snap = s->rec;
    snap.netns = xstrdup(s->rec.netns);
    snap.net = xstrdup(s->rec.net);
    snap.machine = xstrdup(s->rec.machine);
    snap.reason = xstrdup(s->rec.reason);
    (void)pthread_mutex_unlock(&s->rt->lock);
    int rc = s->deleted ? 0 : records_put_sandbox(s->rt->records, &snap, s->undoing ? NULL : err);
    if (s->undoing)
        rc = 0;
    (void)pthread_mutex_unlock(&s->save);
    free(snap.netns);
    free(snap.net);
    free(snap.machine);
    free(snap.reason);
    return rc;
}

int sandbox_delete(struct sandbox *s, struct err *err)
{
    (void)pthread_mutex_lock(&s->save);
    s->deleted = true;
    int rc = records_delete_sandbox(s->rt->records, s->rec.id, err);
    (void)pthread_mutex_unlock(&s->save);
    return rc;
}

void sandbox_set_undoing(struct sandbox *s, bool undoing)
{
    (void)pthread_mutex_lock(&s->save);
    s->undoing = undoing;
    (void)pthread_mutex_unlock(&s->save);
}

void sandbox_forget(struct sandbox *s)
{
    (void)pthread_mutex_lock(&s->save);
    s->deleted = true;
    records_forget_sandbox(s->rt->records, s->rec.id);
    (void)pthread_mutex_unlock(&s->save);
}

int sandbox_set_phase(struct sandbox *s, enum sandbox_phase phase, const char *reason,
                      struct err *err)
{
    (void)pthread_mutex_lock(&s->rt->lock);
    enum sandbox_phase before = s->rec.phase;
    s->rec.phase = phase;
    if (reason != NULL) {
        free(s->rec.reason);
        s->rec.reason = xstrdup(reason);
    }
    if (phase == SANDBOX_READY && before == SANDBOX_CREATING) {
        events_sandbox(s, RUNTIME__V1__CONTAINER_EVENT_TYPE__CONTAINER_CREATED_EVENT);
        events_sandbox(s, RUNTIME__V1__CONTAINER_EVENT_TYPE__CONTAINER_STARTED_EVENT);
    } else if (phase == SANDBOX_NOTREADY && before == SANDBOX_READY) {
        events_sandbox(s, RUNTIME__V1__CONTAINER_EVENT_TYPE__CONTAINER_STOPPED_EVENT);
    }
    (void)pthread_mutex_unlock(&s->rt->lock);
    return sandbox_save(s, err);
}

struct machine *sandbox_use_machine(struct sandbox *s, struct err *err)
{
    (void)pthread_mutex_lock(&s->rt->lock);
    struct machine *m =
        s->rec.phase == SANDBOX_READY || s->rec.phase == SANDBOX_CREATING ? s->machine : NULL;
    if (m != NULL)
        s->machine_users++;
    auto_free char *reason = m == NULL ? xstrdup(s->rec.reason) : NULL;
    (void)pthread_mutex_unlock(&s->rt->lock);
    if (m == NULL)
        (void)err_set(err, ERR_PRECONDITION, "sandbox %.12s is not running%s%s", s->rec.id,
                      str_empty(reason) ? "" : ": ", reason);
    return m;
}

void sandbox_release_machine(struct sandbox *s)
{
    (void)pthread_mutex_lock(&s->rt->lock);
    if (--s->machine_users == 0)
        (void)pthread_cond_broadcast(&s->rt->machine_free);
    (void)pthread_mutex_unlock(&s->rt->lock);
}

void sandbox_drop_machine(struct sandbox *s)
{
    (void)pthread_mutex_lock(&s->rt->lock);
    struct machine *m = s->machine;
    s->machine = NULL;
    while (s->machine_users > 0)
        (void)pthread_cond_wait(&s->rt->machine_free, &s->rt->lock);
    (void)pthread_mutex_unlock(&s->rt->lock);
    machine_free(m);
}

/* --- containers --- */

static struct container *container_bare(struct sandbox *s, struct err *err)
{
    struct container *c = xcalloc(1, sizeof(*c));
    atomic_init(&c->refs, 1);
    c->rt = s->rt;
    c->sandbox = sandbox_ref(s);
    c->op.fd = c->input_turn.fd = -1;
    hub_init(&c->hub);
    (void)pthread_mutex_init(&c->save, NULL);
    c->exited_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (c->exited_fd < 0 || oplock_init(&c->op, err) < 0 || oplock_init(&c->input_turn, err) < 0) {
        (void)err_sys(err, errno, "new container");
        container_unref(c);
        return NULL;
    }
    return c;
}

struct container *container_new(struct sandbox *s, const char *id,
                                const Runtime__V1__ContainerConfig *config, struct err *err)
{
    struct container *c = container_bare(s, err);
    if (c == NULL)
        return NULL;
    c->config = (Runtime__V1__ContainerConfig *)message_clone(&config->base);
    c->rec = (struct container_record){
        .id = xstrdup(id),
        .sandbox_id = xstrdup(s->rec.id),
        .phase = CONTAINER_CREATING,
        .created_at = wall_ns(),
        .image_id = xstrdup(""),
        .image_ref = xstrdup(""),
        .stop_signal = xstrdup(""),
        .reason = xstrdup(""),
        .message = xstrdup(""),
        .log_path = xstrdup(""),
        .groups = xstrdup(""),
    };
    c->rec.config = pack(&config->base, &c->rec.config_len);
    return c;
}

struct container *container_from_record(struct sandbox *s, struct container_record *rec,
                                        struct err *err)
{
    Runtime__V1__ContainerConfig *config =
        runtime__v1__container_config__unpack(NULL, rec->config_len, rec->config);
    if (config == NULL || config->metadata == NULL || config->image == NULL) {
        free_message(config);
        (void)err_set(err, ERR_DATA_LOSS, "record of container %s holds no configuration", rec->id);
        return NULL;
    }
    struct container *c = container_bare(s, err);
    if (c == NULL) {
        free_message(config);
        return NULL;
    }
    c->config = config;
    c->rec = *rec;
    *rec = (struct container_record){0};
    if (c->rec.phase == CONTAINER_EXITED || c->rec.phase == CONTAINER_REMOVING)
        (void)eventfd_write(c->exited_fd, 1);
    return c;
}

struct container *container_ref(struct container *c)
{
    if (c != NULL)
        atomic_fetch_add(&c->refs, 1);
    return c;
}

void container_unref(struct container *c)
{
    if (c == NULL || atomic_fetch_sub(&c->refs, 1) != 1)
        return;
    free_message(c->config);
    free_message(c->resources);
    free(c->start_error);
    container_record_clear(&c->rec);
    free(c->guest_cpus);
    oplock_destroy(&c->op);
    oplock_destroy(&c->input_turn);
    hub_destroy(&c->hub);
    cleanup_closep(&c->exited_fd);
    (void)pthread_mutex_destroy(&c->save);
    sandbox_unref(c->sandbox);
    free(c);
}

int model_add_container(struct runtime *rt, struct container *c, struct err *err)
{
    const Runtime__V1__ContainerMetadata *m = c->config->metadata;
    struct sandbox *s = c->sandbox;
    int rc = 0;
    (void)pthread_mutex_lock(&rt->lock);
    /* of one that is being made only its maker knows: RestorePod */
    if ((s->rec.phase != SANDBOX_READY && s->rec.phase != SANDBOX_CREATING) || s->stopping)
        rc = err_set(err, ERR_PRECONDITION, "sandbox %.12s is not ready", s->rec.id);
    struct container *other;
    TAILQ_FOREACH(other, &s->containers, link)
    {
        const Runtime__V1__ContainerMetadata *o = other->config->metadata;
        if (rc == 0 && strcmp(o->name, m->name) == 0 && o->attempt == m->attempt)
            rc = err_set(err, ERR_EXISTS,
                         "container %s (attempt %u) exists in this sandbox as %.12s", m->name,
                         m->attempt, other->rec.id);
    }
    if (rc == 0) {
        (void)container_ref(c);
        HASH_ADD_KEYPTR(hh, rt->containers, c->rec.id, strlen(c->rec.id), c);
        TAILQ_INSERT_TAIL(&s->containers, c, link);
    }
    (void)pthread_mutex_unlock(&rt->lock);
    return rc;
}

void model_remove_container(struct runtime *rt, struct container *c)
{
    struct container *found = NULL;
    (void)pthread_mutex_lock(&rt->lock);
    HASH_FIND(hh, rt->containers, c->rec.id, strlen(c->rec.id), found);
    if (found == c) {
        HASH_DELETE(hh, rt->containers, c);
        TAILQ_REMOVE(&c->sandbox->containers, c, link);
        if (c->rec.phase != CONTAINER_CREATING)
            events_container(c, RUNTIME__V1__CONTAINER_EVENT_TYPE__CONTAINER_DELETED_EVENT);
    }
    (void)pthread_mutex_unlock(&rt->lock);
    if (found == c)
        container_unref(c);
}

static bool container_visible(const struct container *c)
{
    return c->rec.phase != CONTAINER_CREATING;
}

struct container *model_find_container(struct runtime *rt, const char *id, struct err *err)
{
    struct container *c = NULL;
    bool ambiguous = false;
    if (str_empty(id)) {
        (void)err_set(err, ERR_INVALID, "container_id is empty");
        return NULL;
    }
    (void)pthread_mutex_lock(&rt->lock);
    FIND_BY_PREFIX(rt->containers, id, container_visible, c, ambiguous);
    if (!ambiguous)
        (void)container_ref(c);
    (void)pthread_mutex_unlock(&rt->lock);
    if (ambiguous)
        (void)err_set(err, ERR_INVALID, "container id %.64s is ambiguous", id);
    else if (c == NULL)
        (void)err_set(err, ERR_NOT_FOUND, "container %.64s not found", id);
    return ambiguous ? NULL : c;
}

struct container **model_containers_of(struct sandbox *s, size_t *n)
{
    struct container **list = NULL;
    struct container *c;
    *n = 0;
    (void)pthread_mutex_lock(&s->rt->lock);
    TAILQ_FOREACH(c, &s->containers, link)
    {
        list = xrealloc(list, *n + 1, sizeof(struct container *));
        list[(*n)++] = container_ref(c);
    }
    (void)pthread_mutex_unlock(&s->rt->lock);
    return list;
}

int container_save(struct container *c, struct err *err)
{
    (void)pthread_mutex_lock(&c->save);
    (void)pthread_mutex_lock(&c->rt->lock);
    struct container_record snap = c->rec;
    snap.image_id = xstrdup(c->rec.image_id);
    snap.image_ref = xstrdup(c->rec.image_ref);
    snap.stop_signal = xstrdup(c->rec.stop_signal);
    snap.reason = xstrdup(c->rec.reason);
    snap.message = xstrdup(c->rec.message);
    snap.log_path = xstrdup(c->rec.log_path);
    snap.groups = xstrdup(c->rec.groups);
    (void)pthread_mutex_unlock(&c->rt->lock);
    int rc = c->deleted ? 0 : records_put_container(c->rt->records, &snap, err);
    (void)pthread_mutex_unlock(&c->save);
    free(snap.image_id);
    free(snap.image_ref);
    free(snap.stop_signal);
    free(snap.reason);
    free(snap.message);
    free(snap.log_path);
    free(snap.groups);
    return rc;
}

int container_delete(struct container *c, struct err *err)
{
    (void)pthread_mutex_lock(&c->save);
    c->deleted = true;
    int rc = records_delete_container(c->rt->records, c->rec.id, err);
    (void)pthread_mutex_unlock(&c->save);
    return rc;
}

enum container_phase container_phase(struct container *c)
{
    (void)pthread_mutex_lock(&c->rt->lock);
    enum container_phase phase = c->rec.phase;
    (void)pthread_mutex_unlock(&c->rt->lock);
    return phase;
}

char *sandbox_run_dir(const struct sandbox *s)
{
    return fs_format("%s/sandboxes/%s", s->rt->deps.run_root, s->rec.id);
}

char *netns_notes_dir(const struct runtime *rt)
{
    return fs_format("%s/netns", rt->deps.run_root);
}

char *container_log_state_path(const struct container *c)
{
    return fs_format("%s/logs/%s", c->rt->deps.run_root, c->rec.id);
}

const char *sandbox_title(const struct sandbox *s, char out[200])
{
    const Runtime__V1__PodSandboxMetadata *m = s->config->metadata;
    (void)snprintf(out, 200, "sandbox %.12s (%.80s/%.80s)", s->rec.id, m->namespace_, m->name);
    return out;
}

const char *container_title(const struct container *c, char out[200])
{
    (void)snprintf(out, 200, "container %.12s (%.80s) of sandbox %.12s", c->rec.id,
                   c->config->metadata->name, c->rec.sandbox_id);
    return out;
}
