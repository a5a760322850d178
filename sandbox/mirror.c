#include "sandbox/mirror.h"

#include <errno.h>
#include <jansson.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "proto/agent.pb-c.h"
#include "proto/arena.h"
#include "sandbox/checkpoint.h"
#include "sandbox/lock.h"
#include "sandbox/mirror_scan.h"
#include "sandbox/volume_ids.h"

#define STATE_FILE "mirror.json"
#define FIRST_ID MACHINE_MIRROR_FIRST /* those below are the file share's */
#define CALL_NS INT64_C(10000000000)
#define RETRY_FIRST_MS 100
#define RETRY_MAX_MS 5000
#define TRIES 5 /* kubelet may be at work */
#define ARENA (LIMIT_MIRROR_BYTES + MiB(1))

struct entry {
    LIST_ENTRY(entry) link;
    struct mirror *all;
    uint32_t id;
    char *source;
    struct volume_ids ids;
    struct strv owners;
    struct strv places; /* "N OWNER" for the owner's Nth volume; an older daemon noted none */
    size_t bytes;       /* when it was added */
    bool dirty;
    /* under `turn` */
    struct mirror_dir *root, *data;
    char *data_name; /* of the watched data directory */
};

struct mirror {
    char *run_dir, *state_path;
    struct mirror_watch *watch;
    struct link *link;
    struct cancel *stop; /* once there is a thread */
    /* Held while a volume is read and sent: one at a time, so that none arrives in the wrong order.
     * Entries come and go under both locks; `turn` is the outer one, the watch's lies between. */
    pthread_mutex_t turn;
    pthread_mutex_t lock; /* guards the rest */
    pthread_cond_t news;
    bool running, stopping;
    pthread_t thread;
    uint32_t last_id;
    LIST_HEAD(, entry) entries;
};

/* --- the record --- */

static json_t *texts(const struct strv *v)
{
    json_t *list = json_array();
    for (size_t i = 0; i < v->n; i++)
        (void)json_array_append_new(list, json_string(v->v[i]));
    return list;
}

static void put_texts(struct strv *v, const json_t *list)
{
    size_t i;
    const json_t *item;
    json_array_foreach(list, i, item)
    {
        if (json_string_value(item) != NULL)
            strv_add(v, json_string_value(item));
    }
}

static int save_locked(struct mirror *m, struct err *err)
{
    json_auto_t *list = json_array();
    struct entry *e;
    LIST_FOREACH(e, &m->entries, link)
    {
        if (json_array_append_new(list,
                                  json_pack("{s:I, s:s, s:I, s:o, s:o, s:[I, I, I, I]}", "id",
                                            (json_int_t)e->id, "source", e->source, "bytes",
                                            (json_int_t)e->bytes, "owners", texts(&e->owners),
                                            "places", texts(&e->places), "ids",
                                            (json_int_t)e->ids.uid, (json_int_t)e->ids.n_uids,
                                            (json_int_t)e->ids.gid, (json_int_t)e->ids.n_gids)) < 0)
            return err_set(err, ERR_INVALID, "volume path is not valid UTF-8");
    }
    json_auto_t *v = json_pack("{s:I, s:O}", "last_id", (json_int_t)m->last_id, "volumes", list);
    auto_free char *text = v != NULL ? json_dumps(v, JSON_COMPACT) : NULL;
    if (text == NULL)
        return err_sys(err, ENOMEM, "record of mirrored volumes");
    return fs_write_atomic(m->state_path, text, strlen(text), 0600, false, err);
}

static struct entry *entry_new(struct mirror *m, uint32_t id, const char *source,
                               const struct volume_ids *ids, size_t bytes)
{
    struct entry *e = xcalloc(1, sizeof(*e));
    e->all = m;
    e->id = id;
    e->source = xstrdup(source);
    e->ids = *ids;
    e->bytes = bytes;
    LIST_INSERT_HEAD(&m->entries, e, link);
    return e;
}

static bool load_entry(struct mirror *m, const json_t *v)
{
    json_int_t id = json_integer_value(json_object_get(v, "id"));
    json_int_t bytes = json_integer_value(json_object_get(v, "bytes"));
    const char *source = json_string_value(json_object_get(v, "source"));
    const json_t *owners = json_object_get(v, "owners");
    if (id <= (json_int_t)FIRST_ID || id > UINT32_MAX || bytes < 0 || source == NULL ||
        !json_is_array(owners))
        return false;
    struct volume_ids ids;
    uint32_t *numbers[] = {&ids.uid, &ids.n_uids, &ids.gid, &ids.n_gids};
    /* an older daemon's has none: as they are */
    for (size_t i = 0; i < ARRAY_LEN(numbers); i++)
        *numbers[i] = (uint32_t)json_integer_value(json_array_get(json_object_get(v, "ids"), i));
    struct entry *e = entry_new(m, (uint32_t)id, source, &ids, (size_t)bytes);
    put_texts(&e->owners, owners);
    put_texts(&e->places, json_object_get(v, "places"));
    e->dirty = true;
    return true;
}

static int load(struct mirror *m, struct err *err)
{
    size_t len = 0;
    if (!fs_exists(m->state_path))
        return 0;
    auto_free char *text = fs_read(m->state_path, LIMIT_RPC_MESSAGE, &len, err);
    if (text == NULL)
        return -1;
    json_error_t at;
    json_auto_t *v = json_loadb(text, len, JSON_REJECT_DUPLICATES, &at);
    json_int_t last = json_integer_value(json_object_get(v, "last_id"));
    const json_t *list = json_object_get(v, "volumes");
    size_t i;
    const json_t *item;
    bool good = json_is_array(list) && last >= (json_int_t)FIRST_ID && last < UINT32_MAX;
    json_array_foreach(list, i, item)
    {
        good = good && load_entry(m, item);
    }
    if (!good)
        return err_set(err, ERR_DATA_LOSS, "%s is damaged", m->state_path);
    m->last_id = (uint32_t)last;
    return 0;
}

/* --- one volume; under `turn` --- */

static void entry_free(struct entry *e)
{
    mirror_watch_remove(e->all->watch, e->root);
    mirror_watch_remove(e->all->watch, e->data);
    strv_clear(&e->owners);
    strv_clear(&e->places);
    free(e->data_name);
    free(e->source);
    free(e);
}

static void on_change(void *arg)
{
    struct entry *e = arg;
    (void)pthread_mutex_lock(&e->all->lock);
    e->dirty = true;
    (void)pthread_cond_signal(&e->all->news);
    (void)pthread_mutex_unlock(&e->all->lock);
}

/* The data directory is watched too: older kubelets change owners after they have made it current.
 */
static int watch_data(struct entry *e, const char *name, struct err *err)
{
    auto_free char *path = fs_format("%s/%s", e->source, name);
    struct mirror_dir *d = mirror_watch_add(e->all->watch, path, on_change, e, err);
    if (d == NULL)
        return -1;
    mirror_watch_remove(e->all->watch, e->data);
    e->data = d;
    free(e->data_name);
    e->data_name = xstrdup(name);
    return 0;
}

/* The guest's files have the ids that its containers are to see. */
static void map_ids(const struct volume_ids *ids, const Aspis__Agent__V1__SyncVolumeRequest *req)
{
    volume_ids_out(ids, &req->root->uid, &req->root->gid);
    for (size_t i = 0; i < req->n_entries; i++)
        volume_ids_out(ids, &req->entries[i]->uid, &req->entries[i]->gid);
}

/* Reads the volume as it was at one moment after all watches were set. */
static int look(struct entry *e, size_t max, struct arena *a,
                Aspis__Agent__V1__SyncVolumeRequest *req, struct err *err)
{
    size_t bytes = 0;
    aspis__agent__v1__sync_volume_request__init(req);
    if (e->root == NULL)
        e->root = mirror_watch_add(e->all->watch, e->source, on_change, e, err);
    if (e->root == NULL || mirror_scan(e->source, max, a, req, &bytes, err) < 0)
        return -1;
    if (e->data_name != NULL && strcmp(e->data_name, req->data) == 0)
        return 0;
    if (watch_data(e, req->data, err) < 0)
        return -1;
    return err_set(err, ERR_NOT_FOUND, "%s has changed", e->source);
}

static int call(struct mirror *m, const char *method, const ProtobufCMessage *req,
                struct cancel *cancel, struct err *err)
{
    auto_cancel struct cancel *limit = cancel_child(cancel, mono_ns() + CALL_NS, err);
    auto_arena struct arena *a = arena_new(KiB(64));
    if (limit == NULL || a == NULL)
        return err_sys(err, ENOMEM, "%s", method);
    return link_call(m->link, method, req, &aspis__agent__v1__empty__descriptor, a, limit, err) !=
                   NULL
               ? 0
               : -1;
}

static int sync_entry(struct entry *e, size_t max, struct cancel *cancel, struct err *err)
{
    for (int i = 0; i < TRIES; i++) {
        auto_arena struct arena *a = arena_new(ARENA);
        Aspis__Agent__V1__SyncVolumeRequest req;
        if (a == NULL)
            return err_sys(err, ENOMEM, "copy of a volume");
        if (look(e, max, a, &req, err) == 0) {
            err_clear(err);
            req.id = e->id;
            map_ids(&e->ids, &req);
            return call(e->all, "SyncVolume", &req.base, cancel, err);
        }
        if (err->code != ERR_NOT_FOUND)
            return -1;
    }
    return -1;
}

/* --- the thread --- */

static struct entry *next_locked(struct mirror *m)
{
    struct entry *e;
    LIST_FOREACH(e, &m->entries, link)
    if (e->dirty || e->owners.n == 0)
        return e;
    return NULL;
}

static bool may_pass(const struct err *err)
{
    return err->code == ERR_UNAVAILABLE || err->code == ERR_DEADLINE;
}

static int drop(struct entry *e, struct err *err)
{
    struct mirror *m = e->all;
    Aspis__Agent__V1__DropVolumeRequest req;
    aspis__agent__v1__drop_volume_request__init(&req);
    req.id = e->id;
    if (call(m, "DropVolume", &req.base, m->stop, err) < 0 && may_pass(err))
        return -1;
    (void)pthread_mutex_lock(&m->lock);
    LIST_REMOVE(e, link);
    (void)save_locked(m, NULL);
    (void)pthread_mutex_unlock(&m->lock);
    entry_free(e);
    return 0;
}

static int refresh(struct entry *e, struct err *err)
{
    struct mirror *m = e->all;
    (void)pthread_mutex_lock(&m->lock);
    e->dirty = false;
    (void)pthread_mutex_unlock(&m->lock);
    if (sync_entry(e, LIMIT_MIRROR_BYTES, m->stop, err) == 0)
        return 0;
    if (may_pass(err)) {
        (void)pthread_mutex_lock(&m->lock);
        e->dirty = true;
        (void)pthread_mutex_unlock(&m->lock);
        return -1;
    }
    if (!cancel_fired(m->stop))
        log_warn("a volume's copy in the guest stays as it was", LOG_STR("source", e->source),
                 LOG_STR("error", err_msg(err)));
    return 0;
}

/* Does one thing that there is to do, if any. -1: to be tried again. */
static int work(struct mirror *m)
{
    auto_err struct err err = ERR_INIT;
    int r = 0;
    (void)pthread_mutex_lock(&m->turn);
    (void)pthread_mutex_lock(&m->lock);
    struct entry *e = next_locked(m);
    bool unused = e != NULL && e->owners.n == 0;
    (void)pthread_mutex_unlock(&m->lock);
    if (e != NULL)
        r = unused ? drop(e, &err) : refresh(e, &err);
    (void)pthread_mutex_unlock(&m->turn);
    return r;
}

static void *run(void *arg)
{
    struct mirror *m = arg;
    int wait_ms = 0;
    (void)pthread_mutex_lock(&m->lock);
    while (!m->stopping) {
        if (wait_ms > 0) {
            struct timespec until;
            (void)clock_gettime(CLOCK_MONOTONIC, &until);
            int64_t ns = until.tv_nsec + wait_ms * INT64_C(1000000);
            until.tv_sec += ns / 1000000000;
            until.tv_nsec = ns % 1000000000;
            (void)pthread_cond_timedwait(&m->news, &m->lock, &until);
        } else if (next_locked(m) == NULL) {
            (void)pthread_cond_wait(&m->news, &m->lock);
            continue;
        }
        if (m->stopping)
            break;
        (void)pthread_mutex_unlock(&m->lock);
        if (work(m) == 0)
            wait_ms = 0;
        else
            wait_ms = wait_ms == 0 ? RETRY_FIRST_MS
                                   : (wait_ms > RETRY_MAX_MS / 2 ? RETRY_MAX_MS : wait_ms * 2);
        (void)pthread_mutex_lock(&m->lock);
    }
    (void)pthread_mutex_unlock(&m->lock);
    return NULL;
}

static int start_thread(struct mirror *m, struct err *err)
{
    if (m->stop == NULL)
        m->stop = cancel_new(0, err);
    if (m->stop == NULL)
        return -1;
    int e = m->running ? 0 : pthread_create(&m->thread, NULL, run, m);
    if (e != 0)
        return err_sys(err, e, "start a thread");
    m->running = true;
    return 0;
}

/* --- owners --- */

static bool has(const struct strv *v, const char *text)
{
    for (size_t i = 0; i < v->n; i++)
        if (strcmp(v->v[i], text) == 0)
            return true;
    return false;
}

static bool owns(const struct entry *e, const char *owner)
{
    return has(&e->owners, owner);
}

static void own(struct entry *e, const char *owner, uint32_t nth)
{
    auto_free char *place = fs_format("%u %s", nth, owner);
    if (!owns(e, owner))
        strv_add(&e->owners, owner);
    if (!has(&e->places, place))
        strv_add(&e->places, place);
}

static void disown(struct entry *e, const char *owner)
{
    struct strv left = {0};
    for (size_t i = 0; i < e->owners.n; i++)
        if (strcmp(e->owners.v[i], owner) != 0)
            strv_add(&left, e->owners.v[i]);
    strv_clear(&e->owners);
    e->owners = left;
    left = (struct strv){0};
    for (size_t i = 0; i < e->places.n; i++) {
        const char *space = strchr(e->places.v[i], ' ');
        if (space == NULL || strcmp(space + 1, owner) != 0)
            strv_add(&left, e->places.v[i]);
    }
    strv_clear(&e->places);
    e->places = left;
}

/* The source's entry, made if there is none. NULL: no room for it. */
static struct entry *claim_locked(struct mirror *m, const char *owner, const char *source,
                                  const struct machine_volume *v, size_t bytes, struct err *err)
{
    const struct volume_ids *ids = &v->ids;
    struct entry *e;
    struct entry *same = NULL;
    size_t n = 0;
    size_t all = bytes;
    LIST_FOREACH(e, &m->entries, link)
    {
        n++;
        all += e->bytes;
        if (strcmp(e->source, source) == 0 && memcmp(&e->ids, ids, sizeof(*ids)) == 0)
            same = e;
    }
    if (same == NULL && (n >= LIMIT_MIRROR_VOLUMES || all > LIMIT_MIRROR_POD)) {
        (void)err_set(err, ERR_EXHAUSTED, "too much of them in one pod");
        return NULL;
    }
    if (m->stopping || start_thread(m, err) < 0)
        return NULL;
    if (same == NULL)
        same = entry_new(m, ++m->last_id, source, ids, bytes);
    own(same, owner, v->nth);
    if (save_locked(m, err) == 0)
        return same;
    disown(same, owner);
    (void)pthread_cond_signal(&m->news);
    return NULL;
}

static int add_in_turn(struct mirror *m, const char *owner, const char *source,
                       struct machine_volume *v, size_t bytes, struct cancel *cancel,
                       struct err *err)
{
    (void)pthread_mutex_lock(&m->lock);
    struct entry *e = claim_locked(m, owner, source, v, bytes, err);
    (void)pthread_mutex_unlock(&m->lock);
    if (e == NULL)
        return -1;
    if (sync_entry(e, LIMIT_MIRROR_BYTES, cancel, err) == 0) {
        v->id = e->id;
        return 0;
    }
    (void)pthread_mutex_lock(&m->lock);
    disown(e, owner);
    (void)save_locked(m, NULL);
    (void)pthread_cond_signal(&m->news);
    (void)pthread_mutex_unlock(&m->lock);
    return -1;
}

static int measure(const char *path, size_t max, size_t *bytes, struct err *err)
{
    Aspis__Agent__V1__SyncVolumeRequest req;
    for (int i = 0; i < TRIES; i++) {
        auto_arena struct arena *a = arena_new(max + MiB(1));
        err_clear(err);
        aspis__agent__v1__sync_volume_request__init(&req);
        if (a == NULL)
            return err_sys(err, ENOMEM, "copy of a volume");
        if (mirror_scan(path, max, a, &req, bytes, err) == 0)
            return 0;
        if (err->code != ERR_NOT_FOUND)
            return -1;
    }
    return -1;
}

/* Is it worth trying? Most volumes are something else, and known to be after one look. */
static bool fits(const char *path, size_t *bytes)
{
    auto_err struct err why = ERR_INIT;
    return measure(path, LIMIT_MIRROR_FIRST, bytes, &why) == 0;
}

int mirror_add(struct mirror *m, const char *owner, struct machine_volume *v, struct cancel *cancel,
               struct err *err)
{
    auto_err struct err why = ERR_INIT;
    auto_free char *path = realpath(v->source, NULL);
    size_t bytes = 0;
    if (path == NULL || !fits(path, &bytes))
        return 0;
    if (lock_within(&m->turn, cancel, "the pod's mirrored volumes", err) < 0)
        return -1;
    int r = add_in_turn(m, owner, path, v, bytes, cancel, &why);
    (void)pthread_mutex_unlock(&m->turn);
    if (r < 0)
        log_info("a volume is shared, not mirrored", LOG_STR("source", path),
                 LOG_STR("reason", err_msg(&why)));
    return r == 0 ? 1 : cancel_check(cancel, err);
}

void mirror_remove(struct mirror *m, const char *owner)
{
    struct entry *e;
    bool any = false;
    if (m == NULL)
        return;
    (void)pthread_mutex_lock(&m->lock);
    LIST_FOREACH(e, &m->entries, link)
    {
        any = any || owns(e, owner);
        disown(e, owner);
    }
    if (any)
        (void)save_locked(m, NULL);
    (void)pthread_cond_signal(&m->news);
    (void)pthread_mutex_unlock(&m->lock);
}

/* --- saved pods --- */

int mirror_check_source(const char *source, struct err *err)
{
    size_t bytes = 0;
    auto_free char *path = realpath(source, NULL);
    return path != NULL ? measure(path, LIMIT_MIRROR_BYTES, &bytes, err)
                        : err_sys(err, errno, "%s", source);
}

bool mirror_find(struct mirror *m, const char *owner, uint32_t nth, uint32_t *id)
{
    auto_free char *place = fs_format("%u %s", nth, owner);
    const struct entry *e;
    bool found = false;
    (void)pthread_mutex_lock(&m->lock);
    LIST_FOREACH(e, &m->entries, link)
    {
        if (!has(&e->places, place))
            continue;
        *id = e->id;
        found = true;
    }
    (void)pthread_mutex_unlock(&m->lock);
    return found;
}

uint32_t mirror_last_id(struct mirror *m)
{
    (void)pthread_mutex_lock(&m->lock);
    uint32_t last = m->last_id;
    (void)pthread_mutex_unlock(&m->lock);
    return last;
}

/* What was one copy for two users can only be one volume. */
static int restore_entry(struct mirror *m, const struct machine_owned_volume *o, struct err *err)
{
    auto_free char *path = realpath(o->v.source, NULL);
    size_t bytes = 0;
    size_t n = 0;
    size_t all = 0;
    struct entry *e;
    struct entry *same = NULL;
    if (path == NULL)
        return err_sys(err, errno, "%s", o->v.source);
    if (measure(path, LIMIT_MIRROR_BYTES, &bytes, err) < 0)
        return -1;
    LIST_FOREACH(e, &m->entries, link)
    {
        n++;
        all += e->bytes;
        if (e->id == o->v.id)
            same = e;
    }
    if (same != NULL &&
        (strcmp(same->source, path) != 0 || memcmp(&same->ids, &o->v.ids, sizeof(o->v.ids)) != 0))
        return err_set(err, ERR_PRECONDITION, "%s and %s were one volume when the pod was saved",
                       same->source, path);
    if (same == NULL && (n >= LIMIT_MIRROR_VOLUMES || all + bytes > LIMIT_MIRROR_POD))
        return err_set(err, ERR_EXHAUSTED, "%s: too much of such volumes in one pod", path);
    if (same == NULL)
        same = entry_new(m, o->v.id, path, &o->v.ids, bytes);
    own(same, o->owner, o->v.nth);
    return 0;
}

int mirror_restore(struct mirror *m, uint32_t last_id, const struct machine_owned_volume *list,
                   size_t n, struct cancel *cancel, struct err *err)
{
    struct entry *e;
    int r = 0;
    if (lock_within(&m->turn, cancel, "the pod's mirrored volumes", err) < 0)
        return -1;
    (void)pthread_mutex_lock(&m->lock);
    m->last_id = last_id;
    for (size_t i = 0; i < n && r == 0; i++)
        r = list[i].v.mirrored ? restore_entry(m, &list[i], err) : 0;
    if (r == 0)
        r = save_locked(m, err);
    if (r == 0 && !LIST_EMPTY(&m->entries))
        r = start_thread(m, err);
    (void)pthread_mutex_unlock(&m->lock);
    /* `turn` keeps them all there */
    for (e = LIST_FIRST(&m->entries); e != NULL && r == 0; e = LIST_NEXT(e, link)) {
        r = sync_entry(e, LIMIT_MIRROR_BYTES, cancel, err);
        if (r < 0)
            (void)err_wrap(err, "%s", e->source);
    }
    (void)pthread_mutex_unlock(&m->turn);
    return r;
}

/* --- making and freeing --- */

struct mirror *mirror_new(const char *run_dir, struct mirror_watch *watch, struct link *link,
                          struct err *err)
{
    struct mirror *m = xcalloc(1, sizeof(*m));
    pthread_condattr_t attr;
    m->run_dir = xstrdup(run_dir);
    m->state_path = fs_format("%s/" STATE_FILE, run_dir);
    m->watch = watch;
    m->link = link_ref(link);
    m->last_id = FIRST_ID;
    LIST_INIT(&m->entries);
    (void)pthread_mutex_init(&m->turn, NULL);
    (void)pthread_mutex_init(&m->lock, NULL);
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&m->news, &attr);
    (void)pthread_condattr_destroy(&attr);
    if (load(m, err) < 0 || (!LIST_EMPTY(&m->entries) && start_thread(m, err) < 0)) {
        mirror_free(m);
        return NULL;
    }
    return m;
}

void mirror_stop(struct mirror *m)
{
    if (m == NULL)
        return;
    (void)pthread_mutex_lock(&m->lock);
    bool running = m->running;
    m->stopping = true;
    m->running = false;
    (void)pthread_cond_signal(&m->news);
    (void)pthread_mutex_unlock(&m->lock);
    if (m->stop != NULL)
        cancel_fire(m->stop);
    if (running)
        (void)pthread_join(m->thread, NULL);
}

void mirror_free(struct mirror *m)
{
    struct entry *e;
    if (m == NULL)
        return;
    mirror_stop(m);
    while ((e = LIST_FIRST(&m->entries)) != NULL) {
        LIST_REMOVE(e, link);
        entry_free(e);
    }
    link_unref(m->link);
    cancel_unref(m->stop);
    (void)pthread_cond_destroy(&m->news);
    (void)pthread_mutex_destroy(&m->lock);
    (void)pthread_mutex_destroy(&m->turn);
    free(m->state_path);
    free(m->run_dir);
    free(m);
}
