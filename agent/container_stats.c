#include "agent/container_stats.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <time.h>

#include "agent/cgroup_stats.h"
#include "agent/container_cgroup.h"
#include "agent/container_table.h"
#include "agent/layer_usage.h"
#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"

#define LAYER_FRESH_NS INT64_C(30000000000)
#define LAYER_WAIT_NS INT64_C(500000000)
#define MAX_WAITING 16

struct container_stats {
    struct loop *loop;
    struct containers *table;
    struct pod *pod;
    struct layer_usage *layers;
    struct loop_source *patience;
    struct waiter {
        struct rpc_call *call;
        bool processes;
    } waiting[MAX_WAITING]; /* for the first walk */
    size_t n_waiting;
    struct rpc_method methods[2];
};

static bool has_group(const struct container *c)
{
    return c->init->pid > 0 && c->phase != CONTAINER_IMAGE && c->phase != CONTAINER_CREATING &&
           c->phase != CONTAINER_REMOVING;
}

/* --- the guest --- */

static uint64_t meminfo(const char *text, const char *key)
{
    const char *at = strstr(text, key);
    uint64_t kib = 0;
    if (at == NULL || sscanf(at + strlen(key), ": %" SCNu64, &kib) != 1)
        return 0;
    return kib * 1024;
}

static void fill_guest(const struct container_stats *s, Aspis__Agent__V1__GuestStats *g)
{
    aspis__agent__v1__guest_stats__init(g);
    auto_free char *mem = fs_read("/proc/meminfo", KiB(64), NULL, NULL);
    auto_free char *cpu = fs_read("/proc/stat", KiB(256), NULL, NULL);
    struct statvfs v;
    if (mem != NULL) {
        g->memory_total = meminfo(mem, "MemTotal");
        g->memory_available = meminfo(mem, "MemAvailable");
    }
    /* user nice system idle iowait irq softirq, in hundredths of a second */
    uint64_t t[7] = {0};
    if (cpu != NULL && sscanf(cpu,
                              "cpu %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64
                              " %" SCNu64 " %" SCNu64,
                              &t[0], &t[1], &t[2], &t[3], &t[4], &t[5], &t[6]) == 7)
        g->cpu_usage_us = (t[0] + t[1] + t[2] + t[5] + t[6]) * 10000;
    if (statvfs(pod_scratch_dir(s->pod), &v) == 0) {
        g->scratch_bytes = (uint64_t)v.f_blocks * v.f_frsize;
        g->scratch_free = (uint64_t)v.f_bavail * v.f_frsize;
        g->scratch_inodes = v.f_files;
        g->scratch_inodes_free = v.f_ffree;
    }
}

/* --- the answer --- */

static void fill_group(const struct container_stats *s, struct cgroup_stats *row,
                       struct container *c, bool processes)
{
    auto_free char *dir = cgroup_file(c != NULL ? c->id : "", "");
    if (cgroup_is_v1())
        cgroup_stats_read_v1(row, c != NULL ? c->id : "", cgroup_v1_dir);
    else
        cgroup_stats_read(row, dir);
    if (c == NULL)
        return;
    row->msg.container_id = c->name;
    const struct layer *l = layer_usage_find(s->layers, c->id);
    if (l != NULL) {
        row->msg.has_layer = true;
        row->msg.layer_bytes = l->bytes;
        row->msg.layer_inodes = l->inodes;
    }
    if (processes && c->phase != CONTAINER_ENDED)
        cgroup_stats_add_processes(row, dir, "/proc", c->init->pid);
}

static void answer(const struct container_stats *s, struct rpc_call *call, bool processes)
{
    Aspis__Agent__V1__StatsResponse r;
    Aspis__Agent__V1__GuestStats guest;
    Aspis__Agent__V1__LinkStats links[LIMIT_POD_INTERFACES];
    Aspis__Agent__V1__LinkStats *link_list[LIMIT_POD_INTERFACES];
    size_t room = s->table->n + 1;
    auto_free struct cgroup_stats *rows = xcalloc(room, sizeof(*rows));
    auto_free Aspis__Agent__V1__GroupStats **list =
        xcalloc(room, sizeof(*list)); // NOLINT(bugprone-sizeof-expression)
    struct timespec now = {0};
    struct container *c;

    aspis__agent__v1__stats_response__init(&r);
    (void)clock_gettime(CLOCK_BOOTTIME, &now);
    r.at_ns = (uint64_t)now.tv_sec * 1000000000U + (uint64_t)now.tv_nsec;
    fill_group(s, &rows[0], NULL, false);
    r.pod = &rows[0].msg;
    r.containers = list;
    TAILQ_FOREACH(c, &s->table->list, link)
    {
        if (!has_group(c) || r.n_containers + 1 >= room)
            continue;
        struct cgroup_stats *row = &rows[r.n_containers + 1];
        fill_group(s, row, c, processes);
        list[r.n_containers++] = &row->msg;
    }
    fill_guest(s, &guest);
    r.guest = &guest;
    /* the host's own links are not the pod's */
    auto_free char *dev =
        pod_has_host_network(s->pod) ? NULL : fs_read("/proc/net/dev", KiB(64), NULL, NULL);
    r.n_links = dev != NULL ? cgroup_stats_links(dev, links, LIMIT_POD_INTERFACES) : 0;
    for (size_t i = 0; i < r.n_links; i++)
        link_list[i] = &links[i];
    r.links = link_list;
    rpc_reply(call, &r.base);
}

static void answer_waiting(struct container_stats *s)
{
    (void)loop_set_timer(s->patience, -1);
    while (s->n_waiting > 0) {
        struct waiter w = s->waiting[--s->n_waiting];
        answer(s, w.call, w.processes);
    }
}

static void on_patience(struct loop_source *src, void *arg)
{
    (void)src;
    answer_waiting(arg);
}

static void on_walked(void *arg)
{
    answer_waiting(arg);
}

/* --- the call --- */

static void start_walk(struct container_stats *s)
{
    auto_err struct err err = ERR_INIT;
    auto_free struct layer *list = xcalloc(s->table->n + 1, sizeof(*list));
    struct container *c;
    size_t n = 0;
    TAILQ_FOREACH(c, &s->table->list, link)
    {
        if (!has_group(c) || n >= s->table->n)
            continue;
        list[n++] = (struct layer){.id = c->id,
                                   .dir = fs_format("%s/%s/upper", pod_scratch_dir(s->pod), c->id)};
    }
    if (n > 0 && layer_usage_start(s->layers, list, n, &err) < 0)
        log_warn("cannot count what containers have written", LOG_STR("error", err_msg(&err)));
    for (size_t i = 0; i < n; i++)
        free(list[i].dir);
}

static bool layer_missing(const struct container_stats *s)
{
    struct container *c;
    TAILQ_FOREACH(c, &s->table->list, link)
    {
        if (has_group(c) && layer_usage_find(s->layers, c->id) == NULL)
            return true;
    }
    return false;
}

static void handle_stats(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    struct container_stats *s = arg;
    bool processes = ((const Aspis__Agent__V1__StatsRequest *)request)->processes;
    bool missing = layer_missing(s);
    int64_t at = layer_usage_at(s->layers);
    if (!layer_usage_walking(s->layers) && (missing || at == 0 || mono_ns() - at > LAYER_FRESH_NS))
        start_walk(s);
    if (missing && layer_usage_walking(s->layers) && s->n_waiting < MAX_WAITING) {
        s->waiting[s->n_waiting++] = (struct waiter){call, processes};
        (void)loop_set_timer(s->patience, LAYER_WAIT_NS);
        return;
    }
    answer(s, call, processes);
}

const struct rpc_method *container_stats_methods(struct container_stats *s)
{
    s->methods[0] =
        (struct rpc_method){"Stats", &aspis__agent__v1__stats_request__descriptor, handle_stats, s};
    return s->methods;
}

struct container_stats *container_stats_new(struct loop *loop, struct containers *t,
                                            struct pod *pod, struct err *err)
{
    struct container_stats *s = xcalloc(1, sizeof(*s));
    s->loop = loop;
    s->table = t;
    s->pod = pod;
    s->layers = layer_usage_new(loop, on_walked, s);
    s->patience = loop_add_timer(loop, -1, on_patience, s, err);
    if (s->patience == NULL) {
        container_stats_free(s);
        return NULL;
    }
    return s;
}

void container_stats_free(struct container_stats *s)
{
    if (s == NULL)
        return;
    loop_remove(s->patience);
    layer_usage_free(s->layers);
    free(s);
}
