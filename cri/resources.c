#include "cri/resources.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "cri/confine.h"
#include "cri/container_ops.h"
#include "cri/huge_pages.h"
#include "cri/resource_limits.h"
#include "cri/spec.h"

typedef Runtime__V1__LinuxContainerResources Resources;

#define AGENT_NS INT64_C(20000000000)
#define PERIOD RESOURCE_LIMITS_PERIOD

static void free_message(void *m)
{
    if (m != NULL)
        protobuf_c_message_free_unpacked(m, NULL);
}

static Resources *copy(const Resources *r)
{
    return r != NULL ? (Resources *)message_clone(&r->base) : NULL;
}

/* --- limits of the guest --- */

int resources_set_limits(struct machine *m, const char *id, const struct strv *keys,
                         const struct strv *values, const int64_t *oom_score_adj,
                         struct cancel *cancel, struct err *err)
{
    if (keys->n == 0 && oom_score_adj == NULL)
        return 0;
    auto_arena struct arena *a = arena_new(LIMIT_CALL_ARENA);
    auto_cancel struct cancel *limit = cancel_child(cancel, mono_ns() + AGENT_NS, err);
    Aspis__Agent__V1__SetLimitsRequest req;
    aspis__agent__v1__set_limits_request__init(&req);
    if (a == NULL || limit == NULL ||
        (req.limits = arena_alloc(a, (keys->n + 1) * sizeof(void *))) == NULL)
        return limit == NULL ? -1 : err_sys(err, ENOMEM, "limits");
    req.container_id = arena_strdup(a, id);
    for (size_t i = 0; i < keys->n; i++) {
        Aspis__Agent__V1__KeyValue *kv = arena_alloc(a, sizeof(*kv));
        if (kv == NULL)
            return err_sys(err, ENOMEM, "limits");
        aspis__agent__v1__key_value__init(kv);
        kv->key = keys->v[i];
        kv->value = values->v[i];
        req.limits[req.n_limits++] = kv;
    }
    if (req.container_id == NULL)
        return err_sys(err, ENOMEM, "limits");
    Aspis__Agent__V1__OomScore score;
    aspis__agent__v1__oom_score__init(&score);
    if (oom_score_adj != NULL) {
        int64_t adj = *oom_score_adj;
        score.adj = (int32_t)(adj < -1000 ? -1000 : adj > 1000 ? 1000 : adj);
        req.oom_score = &score;
    }
    const Aspis__Agent__V1__SetLimitsResponse *reply =
        (const Aspis__Agent__V1__SetLimitsResponse *)(const void *)link_call(
            machine_link(m), "SetLimits", &req.base,
            &aspis__agent__v1__set_limits_response__descriptor, a, limit, err);
    if (reply == NULL)
        return -1;
    if (oom_score_adj != NULL && !reply->oom_score)
        return err_set(err, ERR_PRECONDITION,
                       "the pod was started by an older release, whose agent cannot change "
                       "oom_score_adj");
    for (size_t i = 0; i < keys->n; i++) {
        const char *have = i < reply->n_limits ? reply->limits[i]->value : "";
        if (!resource_limits_as_written(keys->v[i], values->v[i], have))
            return err_set(err, ERR_INTERNAL, "the guest has %s = \"%.100s\" instead of \"%.100s\"",
                           keys->v[i], have, values->v[i]);
    }
    return 0;
}

static int set_in_guest(struct machine *m, const char *id, const Resources *r,
                        const Resources *before, struct cancel *cancel, struct err *err)
{
    auto_strv struct strv keys = {0};
    auto_strv struct strv values = {0};
    enum backend backend = machine_backend(m);
    resource_limits_files(r, &keys, &values);
    huge_pages_files(r, backend, &keys, &values);
    if (backend == BACKEND_HOST) /* in a VM it is not so simple (confine.h) */
        resource_limits_cpusets(r, &keys, &values);
    bool other = r->oom_score_adj != (before != NULL ? before->oom_score_adj : 0);
    return resources_set_limits(m, id, &keys, &values, other ? &r->oom_score_adj : NULL, cancel,
                                err);
}

/* --- the pod as a whole --- */

static const Resources *pod_resources(const struct sandbox *s)
{
    if (s->resources != NULL)
        return s->resources;
    return s->config->linux != NULL ? s->config->linux->resources : NULL;
}

/* Thousandths of a CPU. */
uint64_t resources_cpu_milli(const Resources *r)
{
    uint64_t period = r != NULL && r->cpu_period > 0 ? (uint64_t)r->cpu_period : PERIOD;
    if (r == NULL || r->cpu_quota <= 0 || (uint64_t)r->cpu_quota > UINT64_MAX / 1000)
        return 0;
    return ((uint64_t)r->cpu_quota * 1000 + period - 1) / period;
}

static uint64_t memory_of(const Resources *r)
{
    return r != NULL && r->memory_limit_in_bytes > 0 ? (uint64_t)r->memory_limit_in_bytes : 0;
}

static bool lives(const struct container *c)
{
    return c->rec.phase <= CONTAINER_RUNNING;
}

void resources_of_pod(struct sandbox *s, struct machine_spec *spec)
{
    uint64_t memory = 0;
    uint64_t cpu = 0;
    uint64_t huge = 0;
    struct container *c;
    (void)pthread_mutex_lock(&s->rt->lock);
    TAILQ_FOREACH(c, &s->containers, link)
    {
        if (!lives(c))
            continue;
        uint64_t more = memory_of(container_resources(c));
        memory = more > UINT64_MAX - memory ? UINT64_MAX : memory + more;
        cpu += resources_cpu_milli(container_resources(c)) % UINT32_MAX;
        huge += huge_pages_bytes(container_resources(c));
    }
    const Resources *r = pod_resources(s);
    spec->memory_limit_bytes = memory_of(r);
    spec->memory_needed_bytes = memory;
    spec->huge_bytes = huge;
    if (resources_cpu_milli(r) > cpu)
        cpu = resources_cpu_milli(r);
    (void)pthread_mutex_unlock(&s->rt->lock);
    spec->cpu_quota = cpu > INT64_MAX / 100 ? INT64_MAX : (int64_t)(cpu * 100);
    spec->cpu_period = PERIOD;
}

/* Host CPUs that all containers together may use: "" when one of them may use any. The caller's. */
static char *union_of_cpusets(struct sandbox *s, bool mems)
{
    auto_buf struct buf b = BUF_INIT(KiB(64));
    struct container *c;
    bool all = true;
    (void)pthread_mutex_lock(&s->rt->lock);
    TAILQ_FOREACH(c, &s->containers, link)
    {
        const Resources *r = container_resources(c);
        const char *set = r == NULL ? "" : mems ? r->cpuset_mems : r->cpuset_cpus;
        if (!lives(c))
            continue;
        all = all && !str_empty(set);
        (void)buf_printf(&b, "%s%s", b.len > 0 ? "," : "", set);
    }
    (void)pthread_mutex_unlock(&s->rt->lock);
    return xstrdup(all && buf_ok(&b) ? buf_str(&b) : "");
}

int resources_fit(struct sandbox *s, struct machine *m, struct cancel *cancel, struct err *err)
{
    struct machine_spec spec = {0};
    if (oplock_take(&s->fit, cancel, err) < 0)
        return -1;
    auto_oplock struct oplock *held = &s->fit;
    resources_of_pod(s, &spec);
    if (machine_backend(m) == BACKEND_VM && confine_need(s, &spec.min_vcpus, err) < 0)
        return -1;
    auto_free char *cpus = union_of_cpusets(s, false);
    auto_free char *mems = union_of_cpusets(s, true);
    if (FAILPOINT("container.fit", err) < 0 || machine_resize(m, &spec, cancel, err) < 0)
        return -1;
    if (machine_set_cpuset(m, cpus, mems, err) < 0)
        return -1;
    return confine_apply(s, m, cancel, err);
}

int resources_created(struct container *c, struct machine *m, struct cancel *cancel,
                      struct err *err)
{
    if (oplock_take(&c->sandbox->fit, cancel, err) < 0)
        return -1;
    auto_oplock struct oplock *held = &c->sandbox->fit;
    return confine_new(c, m, cancel, err);
}

void resources_give_back(struct container *c, struct cancel *cancel)
{
    auto_err struct err err = ERR_INIT;
    (void)pthread_mutex_lock(&c->rt->lock);
    const Resources *r = container_resources(c);
    bool reserved = huge_pages_bytes(r) > 0 || (r != NULL && !str_empty(r->cpuset_cpus));
    (void)pthread_mutex_unlock(&c->rt->lock);
    struct machine *m = reserved ? sandbox_use_machine(c->sandbox, NULL) : NULL;
    if (m == NULL)
        return; /* nothing, or it went with the machine */
    if (resources_fit(c->sandbox, m, cancel, &err) < 0)
        log_warn("cannot take back huge pages and CPUs", LOG_STR("sandbox", c->sandbox->rec.id),
                 LOG_STR("error", err_msg(&err)));
    sandbox_release_machine(c->sandbox);
}

/* --- records --- */

static void *pack(const ProtobufCMessage *m, size_t *len)
{
    *len = protobuf_c_message_get_packed_size(m);
    uint8_t *data = xcalloc(1, *len + 1);
    (void)protobuf_c_message_pack(m, data);
    return data;
}

/* From here on the record's configuration has them; the one in memory is constant. Takes r. */
static int keep_container(struct container *c, Resources *r, struct err *err)
{
    Runtime__V1__ContainerConfig *config =
        runtime__v1__container_config__unpack(NULL, c->rec.config_len, c->rec.config);
    if (config != NULL && config->linux == NULL) {
        config->linux = xcalloc(1, sizeof(*config->linux));
        runtime__v1__linux_container_config__init(config->linux);
    }
    if (config != NULL) {
        free_message(config->linux->resources);
        config->linux->resources = copy(r);
    }
    size_t len = 0;
    void *data = config != NULL ? pack(&config->base, &len) : NULL;
    free_message(config);
    /* the save lock: a write of the record under way reads the old one */
    (void)pthread_mutex_lock(&c->save);
    (void)pthread_mutex_lock(&c->rt->lock);
    Resources *old = c->resources;
    c->resources = r;
    if (data != NULL) {
        void *before = c->rec.config;
        c->rec.config = data;
        c->rec.config_len = len;
        data = before;
    }
    (void)pthread_mutex_unlock(&c->rt->lock);
    (void)pthread_mutex_unlock(&c->save);
    free(data);
    free_message(old);
    return container_save(c, err);
}

static int keep_sandbox(struct sandbox *s, Resources *overhead, Resources *resources,
                        struct err *err)
{
    Runtime__V1__PodSandboxConfig *config =
        runtime__v1__pod_sandbox_config__unpack(NULL, s->rec.config_len, s->rec.config);
    if (config != NULL && config->linux == NULL) {
        config->linux = xcalloc(1, sizeof(*config->linux));
        runtime__v1__linux_pod_sandbox_config__init(config->linux);
    }
    if (config != NULL && resources != NULL) {
        free_message(config->linux->resources);
        config->linux->resources = copy(resources);
    }
    if (config != NULL && overhead != NULL) {
        free_message(config->linux->overhead);
        config->linux->overhead = copy(overhead);
    }
    size_t len = 0;
    void *data = config != NULL ? pack(&config->base, &len) : NULL;
    free_message(config);
    (void)pthread_mutex_lock(&s->save);
    (void)pthread_mutex_lock(&s->rt->lock);
    Resources *old = NULL;
    if (resources != NULL) {
        old = s->resources;
        s->resources = resources;
    }
    if (data != NULL) {
        void *before = s->rec.config;
        s->rec.config = data;
        s->rec.config_len = len;
        data = before;
    }
    (void)pthread_mutex_unlock(&s->rt->lock);
    (void)pthread_mutex_unlock(&s->save);
    free(data);
    free_message(old);
    free_message(overhead);
    return sandbox_save(s, err);
}

/* --- updates --- */

/* Growing comes before the limits are raised, so that there is something to use; shrinking after
 * they were lowered. Both are what resources_fit() does with the new figures. */
static int apply(struct container *c, Resources *merged, struct cancel *cancel, struct err *err)
{
    struct machine *m = sandbox_use_machine(c->sandbox, err);
    if (m == NULL)
        return -1;
    (void)pthread_mutex_lock(&c->rt->lock);
    Resources *before = c->resources;
    const Resources *old = container_resources(c); /* stays while c->op is held */
    c->resources = merged;
    (void)pthread_mutex_unlock(&c->rt->lock);
    int ret = resources_fit(c->sandbox, m, cancel, err);
    if (ret == 0 && (ret = FAILPOINT("container.limits", err)) == 0)
        ret = set_in_guest(m, c->rec.id, merged, old, cancel, err);
    (void)pthread_mutex_lock(&c->rt->lock);
    c->resources = before;
    (void)pthread_mutex_unlock(&c->rt->lock);
    if (ret < 0) {
        auto_err struct err undo = ERR_INIT;
        (void)resources_fit(c->sandbox, m, cancel, &undo);
    }
    sandbox_release_machine(c->sandbox);
    return ret;
}

int container_update_resources(struct container *c, const Resources *r, struct cancel *cancel,
                               struct err *err)
{
    char title[200];
    if (spec_check_resources(r, err) < 0 ||
        huge_pages_check_backend(r, c->sandbox->backend.backend, err) < 0)
        return err_wrap(err, "update %s", container_title(c, title));
    if (oplock_take(&c->op, cancel, err) < 0)
        return err_wrap(err, "update %s", container_title(c, title));
    auto_oplock struct oplock *held = &c->op;
    (void)pthread_mutex_lock(&c->rt->lock);
    Resources *merged = resource_limits_merge(container_resources(c), r);
    bool alive = c->rec.phase == CONTAINER_CREATED || c->rec.phase == CONTAINER_RUNNING;
    (void)pthread_mutex_unlock(&c->rt->lock);
    int ret = 0;
    /* a container that was refused at its creation is not in the guest */
    if (alive && !container_start_is_doomed(c))
        ret = apply(c, merged, cancel, err);
    if (ret == 0)
        ret = keep_container(c, merged, err);
    else
        free_message(merged);
    return ret < 0 ? err_wrap(err, "update %s", container_title(c, title)) : 0;
}

int sandbox_update_resources(struct sandbox *s, const Resources *overhead,
                             const Resources *resources, struct cancel *cancel, struct err *err)
{
    char title[200];
    if (resources != NULL && spec_check_resources(resources, err) < 0)
        return err_wrap(err, "update %s", sandbox_title(s, title));
    if (oplock_take(&s->op, cancel, err) < 0)
        return err_wrap(err, "update %s", sandbox_title(s, title));
    auto_oplock struct oplock *held = &s->op;
    struct machine *m = sandbox_use_machine(s, err);
    if (m == NULL)
        return err_wrap(err, "update %s", sandbox_title(s, title));
    (void)pthread_mutex_lock(&s->rt->lock);
    Resources *merged =
        resources != NULL ? resource_limits_merge(pod_resources(s), resources) : NULL;
    Resources *before = s->resources;
    if (merged != NULL)
        s->resources = merged;
    (void)pthread_mutex_unlock(&s->rt->lock);
    int ret = resources_fit(s, m, cancel, err);
    (void)pthread_mutex_lock(&s->rt->lock);
    s->resources = before;
    (void)pthread_mutex_unlock(&s->rt->lock);
    sandbox_release_machine(s);
    if (ret == 0)
        ret = keep_sandbox(s, copy(overhead), merged, err);
    else
        free_message(merged);
    return ret < 0 ? err_wrap(err, "update %s", sandbox_title(s, title)) : 0;
}
