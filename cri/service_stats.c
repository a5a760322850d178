#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/str.h"
#include "cri/convert.h"
#include "cri/daemon.h"
#include "cri/model.h"
#include "cri/service_runtime.h"
#include "cri/stats_check.h"

typedef Aspis__Agent__V1__GroupStats group;

static struct runtime *runtime_of(const struct call *call)
{
    return ((const struct daemon *)call->daemon)->runtime;
}

/* --- pieces --- */

static Runtime__V1__UInt64Value *number(struct call *call, uint64_t n, struct err *err)
{
    Runtime__V1__UInt64Value *v = call_message(call, &runtime__v1__uint64_value__descriptor, err);
    if (v != NULL)
        v->value = n;
    return v;
}

static Runtime__V1__PsiData *psi_line(struct call *call, const Aspis__Agent__V1__PressureLine *l,
                                      struct err *err)
{
    Runtime__V1__PsiData *d =
        l != NULL ? call_message(call, &runtime__v1__psi_data__descriptor, err) : NULL;
    if (d == NULL)
        return NULL;
    d->total = l->total_us * 1000; /* nanoseconds here */
    d->avg10 = l->avg10;
    d->avg60 = l->avg60;
    d->avg300 = l->avg300;
    return d;
}

static Runtime__V1__PsiStats *psi(struct call *call, const Aspis__Agent__V1__Pressure *p,
                                  struct err *err)
{
    Runtime__V1__PsiStats *s =
        p != NULL ? call_message(call, &runtime__v1__psi_stats__descriptor, err) : NULL;
    if (s == NULL)
        return NULL;
    s->some = psi_line(call, p->some, err);
    s->full = psi_line(call, p->full, err);
    return s;
}

/* The rate is left out where there is none yet. */
static Runtime__V1__CpuUsage *cpu(struct call *call, const struct stats_sample *at, uint64_t ns,
                                  const uint64_t *rate, const Aspis__Agent__V1__Pressure *pressure,
                                  struct err *err)
{
    Runtime__V1__CpuUsage *c = call_message(call, &runtime__v1__cpu_usage__descriptor, err);
    if (c == NULL)
        return NULL;
    c->timestamp = at->wall;
    c->usage_core_nano_seconds = number(call, ns, err);
    if (rate != NULL)
        c->usage_nano_cores = number(call, *rate, err);
    c->psi = psi(call, pressure, err);
    return c;
}

static uint64_t working_set(const group *g)
{
    return g->memory_usage > g->memory_inactive_file ? g->memory_usage - g->memory_inactive_file
                                                     : 0;
}

static Runtime__V1__MemoryUsage *memory(struct call *call, const struct stats_sample *at,
                                        const group *g, struct err *err)
{
    Runtime__V1__MemoryUsage *m = call_message(call, &runtime__v1__memory_usage__descriptor, err);
    if (m == NULL)
        return NULL;
    uint64_t used = working_set(g);
    m->timestamp = at->wall;
    m->working_set_bytes = number(call, used, err);
    m->usage_bytes = number(call, g->memory_usage, err);
    m->rss_bytes = number(call, g->memory_anon, err);
    m->page_faults = number(call, g->page_faults, err);
    m->major_page_faults = number(call, g->major_faults, err);
    if (g->memory_max > 0)
        m->available_bytes = number(call, g->memory_max > used ? g->memory_max - used : 0, err);
    m->psi = psi(call, g->memory_pressure, err);
    return m;
}

static Runtime__V1__SwapUsage *swap(struct call *call, const struct stats_sample *at,
                                    const group *g, struct err *err)
{
    Runtime__V1__SwapUsage *s = call_message(call, &runtime__v1__swap_usage__descriptor, err);
    if (s == NULL)
        return NULL;
    s->timestamp = at->wall;
    s->swap_usage_bytes = number(call, g->swap_usage, err);
    s->swap_available_bytes =
        number(call, g->swap_max > g->swap_usage ? g->swap_max - g->swap_usage : 0, err);
    return s;
}

static Runtime__V1__IoUsage *io(struct call *call, const struct stats_sample *at, const group *g,
                                struct err *err)
{
    Runtime__V1__IoUsage *i = call_message(call, &runtime__v1__io_usage__descriptor, err);
    if (i == NULL)
        return NULL;
    i->timestamp = at->wall;
    i->psi = psi(call, g->io_pressure, err);
    return i;
}

/* The layer lies in the pod's scratch disk, a file on this file system of the host. */
static Runtime__V1__FilesystemUsage *layer(struct call *call, const struct stats_sample *at,
                                           const group *g, struct err *err)
{
    Runtime__V1__FilesystemUsage *f =
        call_message(call, &runtime__v1__filesystem_usage__descriptor, err);
    if (f == NULL)
        return NULL;
    f->timestamp = at->wall;
    f->fs_id = call_message(call, &runtime__v1__filesystem_identifier__descriptor, err);
    if (f->fs_id != NULL)
        f->fs_id->mountpoint = call_string(call, runtime_of(call)->deps.state_root, err);
    f->used_bytes = number(call, g->layer_bytes, err);
    f->inodes_used = number(call, g->layer_inodes, err);
    return f;
}

/* --- a container --- */

static Runtime__V1__ContainerAttributes *attributes(struct call *call, const struct container *c,
                                                    struct err *err)
{
    Runtime__V1__ContainerAttributes *a =
        call_message(call, &runtime__v1__container_attributes__descriptor, err);
    if (a == NULL)
        return NULL;
    const Runtime__V1__ContainerConfig *config = c->config;
    a->id = call_string(call, c->rec.id, err);
    a->metadata = convert_copy(call, &config->metadata->base, err);
    a->n_labels = config->n_labels;
    a->labels = convert_map(call, config->labels, config->n_labels,
                            &runtime__v1__container_attributes__labels_entry__descriptor, err);
    a->n_annotations = config->n_annotations;
    a->annotations =
        convert_map(call, config->annotations, config->n_annotations,
                    &runtime__v1__container_attributes__annotations_entry__descriptor, err);
    return a;
}

static Runtime__V1__ContainerStats *container_stats(struct call *call, const struct container *c,
                                                    const struct stats_view *v, struct err *err)
{
    Runtime__V1__ContainerStats *s =
        call_message(call, &runtime__v1__container_stats__descriptor, err);
    if (s == NULL)
        return NULL;
    s->attributes = attributes(call, c, err);
    const group *g = stats_group(v->last, c->rec.id);
    if (g != NULL) {
        const group *before = stats_group(v->base, c->rec.id);
        uint64_t rate = 0;
        if (before != NULL)
            rate = stats_rate(before->cpu_usage_us * 1000, g->cpu_usage_us * 1000,
                              (int64_t)v->base->guest->at_ns, (int64_t)v->last->guest->at_ns);
        s->cpu = cpu(call, v->last, g->cpu_usage_us * 1000, before != NULL ? &rate : NULL,
                     g->cpu_pressure, err);
        s->memory = memory(call, v->last, g, err);
        s->swap = swap(call, v->last, g, err);
        s->io = io(call, v->last, g, err);
        if (g->has_layer)
            s->writable_layer = layer(call, v->last, g, err);
    }
    return err->code == ERR_OK ? s : NULL;
}

/* --- a pod --- */

static Runtime__V1__NetworkInterfaceUsage *
interface(struct call *call, const Aspis__Agent__V1__LinkStats *l, struct err *err)
{
    Runtime__V1__NetworkInterfaceUsage *u =
        call_message(call, &runtime__v1__network_interface_usage__descriptor, err);
    if (u == NULL)
        return NULL;
    u->name = call_string(call, l->name, err);
    u->rx_bytes = number(call, l->rx_bytes, err);
    u->rx_errors = number(call, l->rx_errors, err);
    u->tx_bytes = number(call, l->tx_bytes, err);
    u->tx_errors = number(call, l->tx_errors, err);
    return u;
}

/* The first interface is the one with the pod's address. */
static Runtime__V1__NetworkUsage *network(struct call *call, const struct stats_sample *at,
                                          struct err *err)
{
    Runtime__V1__NetworkUsage *u = call_message(call, &runtime__v1__network_usage__descriptor, err);
    const Aspis__Agent__V1__StatsResponse *g = at->guest;
    if (u == NULL)
        return NULL;
    size_t n = g->n_links < LIMIT_POD_INTERFACES ? g->n_links : LIMIT_POD_INTERFACES;
    u->timestamp = at->wall;
    u->interfaces = call_array(call, n, sizeof(void *), err);
    for (size_t i = 0; u->interfaces != NULL && i < n; i++) {
        Runtime__V1__NetworkInterfaceUsage *one = interface(call, g->links[i], err);
        if (one == NULL)
            return NULL;
        if (strcmp(g->links[i]->name, "eth0") == 0)
            u->default_interface = one;
        else
            u->interfaces[u->n_interfaces++] = one;
    }
    return u;
}

/* See "Stats" in README.md for what the pod's numbers are. */
static void pod_numbers(struct call *call, Runtime__V1__LinuxPodSandboxStats *l,
                        const struct stats_view *v, struct err *err)
{
    const struct stats_sample *at = v->last;
    const group *pod = at->guest->pod;
    const struct machine_usage *vm = &at->vm;
    uint64_t rate = 0;
    bool rated = v->base != NULL && vm->has_cpu && v->base->vm.has_cpu;
    if (rated)
        rate = stats_rate(v->base->vm.cpu_ns, vm->cpu_ns, v->base->mono, at->mono);
    if (vm->has_cpu)
        l->cpu = cpu(call, at, vm->cpu_ns, rated ? &rate : NULL,
                     pod != NULL ? pod->cpu_pressure : NULL, err);
    if (vm->has_memory) {
        group host;
        aspis__agent__v1__group_stats__init(&host);
        host.memory_usage = vm->memory_usage;
        host.memory_inactive_file = vm->memory_usage - vm->memory_working_set;
        host.memory_anon = vm->memory_rss;
        host.page_faults = vm->page_faults;
        host.major_faults = vm->major_faults;
        host.memory_pressure = pod != NULL ? pod->memory_pressure : NULL;
        l->memory = memory(call, at, &host, err);
    }
    l->network = network(call, at, err);
    if (pod == NULL)
        return;
    l->process = call_message(call, &runtime__v1__process_usage__descriptor, err);
    if (l->process != NULL) {
        l->process->timestamp = at->wall;
        l->process->process_count = number(call, pod->processes, err);
    }
    l->io = io(call, at, pod, err);
}

static Runtime__V1__PodSandboxAttributes *pod_attributes(struct call *call, const struct sandbox *s,
                                                         struct err *err)
{
    Runtime__V1__PodSandboxAttributes *a =
        call_message(call, &runtime__v1__pod_sandbox_attributes__descriptor, err);
    if (a == NULL)
        return NULL;
    const Runtime__V1__PodSandboxConfig *c = s->config;
    a->id = call_string(call, s->rec.id, err);
    a->metadata = convert_copy(call, &c->metadata->base, err);
    a->n_labels = c->n_labels;
    a->labels = convert_map(call, c->labels, c->n_labels,
                            &runtime__v1__pod_sandbox_attributes__labels_entry__descriptor, err);
    a->n_annotations = c->n_annotations;
    a->annotations =
        convert_map(call, c->annotations, c->n_annotations,
                    &runtime__v1__pod_sandbox_attributes__annotations_entry__descriptor, err);
    return a;
}

static bool counts(struct container *c)
{
    enum container_phase phase = container_phase(c);
    return phase == CONTAINER_RUNNING || phase == CONTAINER_CREATED;
}

static Runtime__V1__PodSandboxStats *pod_stats(struct call *call, struct sandbox *s,
                                               struct err *err)
{
    auto_stats_view struct stats_view v = stats_view(s);
    Runtime__V1__PodSandboxStats *p =
        call_message(call, &runtime__v1__pod_sandbox_stats__descriptor, err);
    Runtime__V1__LinuxPodSandboxStats *l =
        call_message(call, &runtime__v1__linux_pod_sandbox_stats__descriptor, err);
    if (p == NULL || l == NULL)
        return NULL;
    p->attributes = pod_attributes(call, s, err);
    p->linux = l;
    if (v.last != NULL)
        pod_numbers(call, l, &v, err);
    size_t n = 0;
    struct container **list = model_containers_of(s, &n);
    l->containers = call_array(call, n, sizeof(void *), err);
    for (size_t i = 0; i < n; i++) {
        Runtime__V1__ContainerStats *c = NULL;
        if (l->containers != NULL && counts(list[i]))
            c = container_stats(call, list[i], &v, err);
        if (c != NULL)
            l->containers[l->n_containers++] = c;
        container_unref(list[i]);
    }
    free(list);
    return err->code == ERR_OK ? p : NULL;
}

/* --- choosing and refreshing --- */

struct choice {
    struct sandbox **sandboxes;
    struct container **containers;
    size_t n_sandboxes, n_containers;
};

static void choice_clear(struct choice *c)
{
    for (size_t i = 0; i < c->n_sandboxes; i++)
        sandbox_unref(c->sandboxes[i]);
    for (size_t i = 0; i < c->n_containers; i++)
        container_unref(c->containers[i]);
    free(c->sandboxes);
    free(c->containers);
}
#define auto_choice __attribute__((cleanup(choice_clear)))

static void choose_sandboxes(struct runtime *rt, const Runtime__V1__PodSandboxStatsFilter *f,
                             struct choice *out)
{
    (void)pthread_mutex_lock(&rt->lock);
    out->sandboxes = xcalloc(HASH_CNT(hh, rt->sandboxes) + 1, sizeof(struct sandbox *));
    for (struct sandbox *s = rt->sandboxes; s != NULL; s = s->hh.next) {
        if (s->rec.phase != SANDBOX_READY || s->stopping)
            continue;
        if (f != NULL && ((!str_empty(f->id) && !str_starts(s->rec.id, f->id)) ||
                          !convert_selector_matches(s->config->labels, s->config->n_labels,
                                                    f->label_selector, f->n_label_selector)))
            continue;
        out->sandboxes[out->n_sandboxes++] = sandbox_ref(s);
    }
    (void)pthread_mutex_unlock(&rt->lock);
    stats_refresh(rt->stats, out->sandboxes, out->n_sandboxes, false);
}

/* And their sandboxes, each once. */
static void choose_containers(struct runtime *rt, const Runtime__V1__ContainerStatsFilter *f,
                              struct choice *out)
{
    (void)pthread_mutex_lock(&rt->lock);
    size_t n = HASH_CNT(hh, rt->containers) + 1;
    out->containers = xcalloc(n, sizeof(struct container *));
    out->sandboxes = xcalloc(n, sizeof(struct sandbox *));
    for (struct sandbox *s = rt->sandboxes; s != NULL; s = s->hh.next) {
        struct container *c;
        size_t before = out->n_containers;
        if (f != NULL && !str_empty(f->pod_sandbox_id) && !str_starts(s->rec.id, f->pod_sandbox_id))
            continue;
        TAILQ_FOREACH(c, &s->containers, link)
        {
            if (c->rec.phase != CONTAINER_RUNNING && c->rec.phase != CONTAINER_CREATED)
                continue;
            if (f != NULL && ((!str_empty(f->id) && !str_starts(c->rec.id, f->id)) ||
                              !convert_selector_matches(c->config->labels, c->config->n_labels,
                                                        f->label_selector, f->n_label_selector)))
                continue;
            out->containers[out->n_containers++] = container_ref(c);
        }
        if (out->n_containers > before)
            out->sandboxes[out->n_sandboxes++] = sandbox_ref(s);
    }
    (void)pthread_mutex_unlock(&rt->lock);
    stats_refresh(rt->stats, out->sandboxes, out->n_sandboxes, false);
}

/* --- handlers --- */

int cri_container_stats(struct call *call, const ProtobufCMessage *message,
                        ProtobufCMessage **reply, struct err *err)
{
    const Runtime__V1__ContainerStatsRequest *req =
        (const Runtime__V1__ContainerStatsRequest *)message;
    struct runtime *rt = runtime_of(call);
    Runtime__V1__ContainerStatsResponse *r =
        call_message(call, &runtime__v1__container_stats_response__descriptor, err);
    auto_container struct container *c = model_find_container(rt, req->container_id, err);
    if (r == NULL || c == NULL)
        return -1;
    stats_refresh(rt->stats, &c->sandbox, 1, false);
    auto_stats_view struct stats_view v = stats_view(c->sandbox);
    r->stats = container_stats(call, c, &v, err);
    *reply = &r->base;
    return r->stats == NULL ? -1 : 0;
}

int cri_list_container_stats(struct call *call, const ProtobufCMessage *message,
                             ProtobufCMessage **reply, struct err *err)
{
    const Runtime__V1__ListContainerStatsRequest *req =
        (const Runtime__V1__ListContainerStatsRequest *)message;
    auto_choice struct choice all = {0};
    Runtime__V1__ListContainerStatsResponse *r =
        call_message(call, &runtime__v1__list_container_stats_response__descriptor, err);
    if (r == NULL)
        return -1;
    choose_containers(runtime_of(call), req->filter, &all);
    r->stats = call_array(call, all.n_containers, sizeof(void *), err);
    for (size_t i = 0; r->stats != NULL && i < all.n_containers; i++) {
        auto_stats_view struct stats_view v = stats_view(all.containers[i]->sandbox);
        Runtime__V1__ContainerStats *s = container_stats(call, all.containers[i], &v, err);
        if (s == NULL)
            return -1;
        r->stats[r->n_stats++] = s;
    }
    *reply = &r->base;
    return r->stats == NULL ? -1 : 0;
}

int cri_pod_sandbox_stats(struct call *call, const ProtobufCMessage *message,
                          ProtobufCMessage **reply, struct err *err)
{
    const Runtime__V1__PodSandboxStatsRequest *req =
        (const Runtime__V1__PodSandboxStatsRequest *)message;
    struct runtime *rt = runtime_of(call);
    Runtime__V1__PodSandboxStatsResponse *r =
        call_message(call, &runtime__v1__pod_sandbox_stats_response__descriptor, err);
    auto_sandbox struct sandbox *s = model_find_sandbox(rt, req->pod_sandbox_id, err);
    if (r == NULL || s == NULL)
        return -1;
    stats_refresh(rt->stats, &s, 1, false);
    r->stats = pod_stats(call, s, err);
    *reply = &r->base;
    return r->stats == NULL ? -1 : 0;
}

int cri_list_pod_sandbox_stats(struct call *call, const ProtobufCMessage *message,
                               ProtobufCMessage **reply, struct err *err)
{
    const Runtime__V1__ListPodSandboxStatsRequest *req =
        (const Runtime__V1__ListPodSandboxStatsRequest *)message;
    auto_choice struct choice all = {0};
    Runtime__V1__ListPodSandboxStatsResponse *r =
        call_message(call, &runtime__v1__list_pod_sandbox_stats_response__descriptor, err);
    if (r == NULL)
        return -1;
    choose_sandboxes(runtime_of(call), req->filter, &all);
    r->stats = call_array(call, all.n_sandboxes, sizeof(void *), err);
    for (size_t i = 0; r->stats != NULL && i < all.n_sandboxes; i++) {
        Runtime__V1__PodSandboxStats *s = pod_stats(call, all.sandboxes[i], err);
        if (s == NULL)
            return -1;
        r->stats[r->n_stats++] = s;
    }
    *reply = &r->base;
    return r->stats == NULL ? -1 : 0;
}

/* --- streams: a batch at a time, each with memory of its own --- */

static int send_containers(struct call *call, const struct choice *all, size_t at, struct err *err)
{
    auto_arena struct arena *arena = arena_new(LIMIT_CALL_ARENA);
    struct call part = *call;
    Runtime__V1__StreamContainerStatsResponse out =
        RUNTIME__V1__STREAM_CONTAINER_STATS_RESPONSE__INIT;
    Runtime__V1__ContainerStats *items[CRI_STREAM_BATCH];
    if (arena == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    part.arena = arena;
    out.container_stats = items;
    for (size_t i = at; i < all->n_containers && i < at + CRI_STREAM_BATCH; i++) {
        auto_stats_view struct stats_view v = stats_view(all->containers[i]->sandbox);
        items[out.n_container_stats] = container_stats(&part, all->containers[i], &v, err);
        if (items[out.n_container_stats++] == NULL)
            return -1;
    }
    return call_send(call, &out.base, err);
}

int cri_stream_container_stats(struct call *call, const ProtobufCMessage *message,
                               ProtobufCMessage **reply, struct err *err)
{
    const Runtime__V1__StreamContainerStatsRequest *req =
        (const Runtime__V1__StreamContainerStatsRequest *)message;
    auto_choice struct choice all = {0};
    (void)reply;
    choose_containers(runtime_of(call), req->filter, &all);
    int rc = 0;
    for (size_t at = 0; rc == 0 && at < all.n_containers; at += CRI_STREAM_BATCH)
        rc = send_containers(call, &all, at, err);
    return rc;
}

static int send_pods(struct call *call, const struct choice *all, size_t at, struct err *err)
{
    auto_arena struct arena *arena = arena_new(LIMIT_CALL_ARENA);
    struct call part = *call;
    Runtime__V1__StreamPodSandboxStatsResponse out =
        RUNTIME__V1__STREAM_POD_SANDBOX_STATS_RESPONSE__INIT;
    Runtime__V1__PodSandboxStats *items[CRI_STREAM_BATCH];
    if (arena == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    part.arena = arena;
    out.pod_sandbox_stats = items;
    for (size_t i = at; i < all->n_sandboxes && i < at + CRI_STREAM_BATCH; i++) {
        items[out.n_pod_sandbox_stats] = pod_stats(&part, all->sandboxes[i], err);
        if (items[out.n_pod_sandbox_stats++] == NULL)
            return -1;
    }
    return call_send(call, &out.base, err);
}

int cri_stream_pod_sandbox_stats(struct call *call, const ProtobufCMessage *message,
                                 ProtobufCMessage **reply, struct err *err)
{
    const Runtime__V1__StreamPodSandboxStatsRequest *req =
        (const Runtime__V1__StreamPodSandboxStatsRequest *)message;
    auto_choice struct choice all = {0};
    (void)reply;
    choose_sandboxes(runtime_of(call), req->filter, &all);
    int rc = 0;
    for (size_t at = 0; rc == 0 && at < all.n_sandboxes; at += CRI_STREAM_BATCH)
        rc = send_pods(call, &all, at, err);
    return rc;
}
