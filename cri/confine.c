#include "cri/confine.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "cri/container_ops.h"
#include "cri/cpu_map.h"
#include "cri/resources.h"

typedef Runtime__V1__LinuxContainerResources Resources;

/* The living containers, referenced, and what they want; the strings are copies. */
struct wants {
    struct container **list;
    struct cpu_want *want;
    size_t n;
    bool any; /* has a cpuset */
    char *all;
};

static void wants_clear(struct wants *w)
{
    for (size_t i = 0; i < w->n; i++) {
        container_unref(w->list[i]);
        free(__extension__(char *)(uintptr_t) w->want[i].cpus);
    }
    free(w->list);
    free(w->want);
    free(w->all);
}
#define auto_wants __attribute__((cleanup(wants_clear)))

/* Thousandths of a CPU: the quota, else what the shares stand for. */
static uint64_t milli_of(const Resources *r)
{
    if (r == NULL)
        return 0;
    uint64_t quota = resources_cpu_milli(r);
    return quota > 0           ? quota
           : r->cpu_shares > 0 ? (uint64_t)r->cpu_shares % UINT32_MAX * 1000 / 1024
                               : 0;
}

/* CPUs that this daemon, and so a VM without a cpuset, may use. */
static char *all_cpus(void)
{
    auto_buf struct buf b = BUF_INIT(KiB(16));
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof(set), &set) < 0)
        CPU_SET(0, &set);
    for (unsigned i = 0; i < CPU_SETSIZE; i++) {
        if (CPU_ISSET(i, &set))
            (void)buf_printf(&b, "%s%u", b.len > 0 ? "," : "", i);
    }
    return xstrdup(buf_str(&b));
}

static void collect(struct sandbox *s, struct wants *w)
{
    struct container **list = model_containers_of(s, &w->n);
    size_t n = 0;
    w->list = list;
    w->want = xcalloc(w->n + 1, sizeof(*w->want));
    w->all = all_cpus();
    for (size_t i = 0; i < w->n; i++) {
        struct container *c = list[i];
        (void)pthread_mutex_lock(&s->rt->lock);
        const Resources *r = container_resources(c);
        bool lives = c->rec.phase <= CONTAINER_RUNNING;
        auto_free char *cpus = xstrdup(r != NULL ? r->cpuset_cpus : "");
        uint64_t milli = milli_of(r);
        (void)pthread_mutex_unlock(&s->rt->lock);
        if (!lives) {
            container_unref(c);
            continue;
        }
        w->any = w->any || cpus[0] != '\0';
        w->want[n] = (struct cpu_want){.cpus = take(cpus), .milli = milli};
        list[n++] = c;
    }
    w->n = n;
}

int confine_need(struct sandbox *s, uint32_t *vcpus, struct err *err)
{
    auto_wants struct wants w = {0};
    collect(s, &w);
    return cpu_map_need(w.want, w.n, w.all, vcpus, err);
}

/* In the guest, to which nothing is said that it has been told already. */
static int confine(struct container *c, struct machine *m, const struct cpu_map *map, size_t at,
                   struct cancel *cancel, struct err *err)
{
    auto_strv struct strv keys = {0};
    auto_strv struct strv values = {0};
    auto_err struct err why = ERR_INIT;
    const char *list = map->lists[at];
    bool all = list[0] == '\0';
    if (c->guest_cpus != NULL && strcmp(c->guest_cpus, list) == 0)
        return 0;
    /* a cpuset that has processes cannot become none again */
    auto_free char *every = map->n_vcpus > 1 ? fs_format("0-%zu", map->n_vcpus - 1) : xstrdup("0");
    if (all)
        list = every;
    if (c->guest_cpus != NULL && strcmp(c->guest_cpus, list) == 0)
        return 0;
    strv_add(&keys, "cpuset.cpus");
    strv_add(&values, list);
    /* an agent that cannot has not done it under an earlier daemon either */
    if (resources_set_limits(m, c->rec.id, &keys, &values, NULL, cancel, &why) < 0 &&
        (!all || why.code != ERR_UNIMPLEMENTED)) {
        (void)err_wrap(&why, "cpuset of container %.12s", c->rec.id);
        return err_move(err, &why);
    }
    free(c->guest_cpus);
    c->guest_cpus = xstrdup(list);
    return 0;
}

static int make(struct sandbox *s, struct machine *m, const struct wants *w, struct cpu_map *map,
                struct err *err)
{
    struct machine_record record = {0};
    (void)s;
    machine_get_record(m, &record);
    uint32_t vcpus = record.vcpus;
    machine_record_clear(&record);
    *map = (struct cpu_map){0};
    return cpu_map_make(w->want, w->n, w->all, vcpus, map, err);
}

int confine_apply(struct sandbox *s, struct machine *m, struct cancel *cancel, struct err *err)
{
    auto_wants struct wants w = {0};
    auto_cpu_map struct cpu_map map = {0};
    if (machine_backend(m) == BACKEND_HOST)
        return 0; /* each container's own control group */
    collect(s, &w);
    if (make(s, m, &w, &map, err) < 0 ||
        machine_pin_vcpus(m, map.pins, map.n_vcpus, cancel, err) < 0)
        return -1;
    for (size_t i = 0; i < w.n; i++) {
        enum container_phase phase = container_phase(w.list[i]);
        bool there = phase == CONTAINER_CREATED || phase == CONTAINER_RUNNING;
        /* nobody has a set, and an earlier daemon left no other behind */
        if (!w.any && w.list[i]->guest_cpus == NULL)
            continue;
        if (there && !container_start_is_doomed(w.list[i]) &&
            confine(w.list[i], m, &map, i, cancel, err) < 0)
            return -1;
    }
    return 0;
}

int confine_new(struct container *c, struct machine *m, struct cancel *cancel, struct err *err)
{
    auto_wants struct wants w = {0};
    auto_cpu_map struct cpu_map map = {0};
    if (machine_backend(m) == BACKEND_HOST || container_start_is_doomed(c))
        return 0;
    collect(c->sandbox, &w);
    c->guest_cpus = xstrdup("");
    if (!w.any)
        return 0;
    if (make(c->sandbox, m, &w, &map, err) < 0)
        return -1;
    for (size_t i = 0; i < w.n; i++) {
        if (w.list[i] == c)
            return confine(c, m, &map, i, cancel, err);
    }
    return 0;
}
