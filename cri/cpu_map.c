#include "cri/cpu_map.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/limits.h"
#include "base/str.h"

#define MAX_PARTS CPU_SETSIZE

struct part {
    cpu_set_t cpus;
    size_t owner; /* index of the group */
    unsigned room;
    unsigned vcpus;
};

/* Containers with the same set. */
struct group {
    cpu_set_t cpus;
    unsigned size;
    size_t first; /* container that has it */
    uint64_t milli;
};

struct work {
    struct group *groups; /* the smallest first, of the same size the youngest */
    size_t n_groups;
    struct part *parts;
    size_t n_parts;
    size_t *group_of; /* of each container */
};

static void work_clear(struct work *w)
{
    free(w->groups);
    free(w->parts);
    free(w->group_of);
}
#define auto_work __attribute__((cleanup(work_clear)))

/* --- lists --- */

static int parse(const char *list, cpu_set_t *out, struct err *err)
{
    CPU_ZERO(out);
    for (const char *p = list; *p != '\0';) {
        char *end;
        unsigned long from = strtoul(p, &end, 10);
        unsigned long to = from;
        bool ok = end != p && *p >= '0' && *p <= '9';
        if (ok && *end == '-') {
            p = end + 1;
            to = strtoul(p, &end, 10);
            ok = end != p && *p >= '0' && *p <= '9';
        }
        if (!ok || to < from || to >= CPU_SETSIZE || (*end != ',' && *end != '\0'))
            return err_set(err, ERR_INVALID, "cpuset \"%.64s\" names no CPUs of the host", list);
        for (unsigned long i = from; i <= to; i++)
            CPU_SET(i, out);
        p = *end == ',' ? end + 1 : end;
    }
    return 0;
}

/* The kernel's way of writing one; the caller's. */
static char *print(const cpu_set_t *set)
{
    auto_buf struct buf b = BUF_INIT(KiB(16));
    for (unsigned i = 0; i < CPU_SETSIZE; i++) {
        unsigned last = i;
        if (!CPU_ISSET(i, set))
            continue;
        while (last + 1 < CPU_SETSIZE && CPU_ISSET(last + 1, set))
            last++;
        (void)buf_printf(&b, last > i ? "%s%u-%u" : "%s%u", b.len > 0 ? "," : "", i, last);
        i = last;
    }
    return xstrdup(buf_str(&b));
}

bool cpu_map_same(const char *a, const char *b)
{
    cpu_set_t x;
    cpu_set_t y;
    return parse(a, &x, NULL) == 0 && parse(b, &y, NULL) == 0 && CPU_EQUAL(&x, &y);
}

static bool within(const cpu_set_t *part, const cpu_set_t *set)
{
    cpu_set_t both;
    CPU_AND(&both, part, set);
    return CPU_EQUAL(&both, part);
}

/* --- parts and their owners --- */

static int smaller(const void *a, const void *b)
{
    const struct group *x = a;
    const struct group *y = b;
    if (x->size != y->size)
        return x->size < y->size ? -1 : 1;
    return x->first > y->first ? -1 : 1;
}

static size_t find_group(const struct work *w, const cpu_set_t *set)
{
    size_t i = 0;
    while (i < w->n_groups && !CPU_EQUAL(&w->groups[i].cpus, set))
        i++;
    return i;
}

static int group_all(struct work *w, const struct cpu_want *want, size_t n, const char *all,
                     struct err *err)
{
    cpu_set_t any;
    cpu_set_t set;
    if (parse(all, &any, err) < 0)
        return -1;
    for (size_t i = 0; i < n; i++) { /* what is asked for counts as there */
        if (parse(want[i].cpus, &set, err) < 0)
            return -1;
        CPU_OR(&any, &any, &set);
    }
    w->groups = xcalloc(n + 1, sizeof(*w->groups));
    w->group_of = xcalloc(n + 1, sizeof(*w->group_of));
    for (size_t i = 0; i < n; i++) {
        (void)parse(want[i].cpus, &set, NULL);
        if (want[i].cpus[0] == '\0')
            set = any;
        size_t k = find_group(w, &set);
        if (k == w->n_groups)
            w->groups[w->n_groups++] =
                (struct group){.cpus = set, .size = (unsigned)CPU_COUNT(&set), .first = i};
        w->groups[k].milli += want[i].milli % UINT32_MAX;
    }
    qsort(w->groups, w->n_groups, sizeof(*w->groups), smaller);
    for (size_t i = 0; i < n; i++) {
        (void)parse(want[i].cpus, &set, NULL);
        w->group_of[i] = find_group(w, want[i].cpus[0] == '\0' ? &any : &set);
    }
    return 0;
}

static void split(struct work *w, const cpu_set_t *by)
{
    for (size_t i = 0, n = w->n_parts; i < n; i++) {
        cpu_set_t in;
        cpu_set_t out;
        CPU_AND(&in, &w->parts[i].cpus, by);
        CPU_XOR(&out, &in, &w->parts[i].cpus);
        if (CPU_COUNT(&in) == 0 || CPU_COUNT(&out) == 0)
            continue;
        w->parts[i].cpus = in;
        w->parts[w->n_parts++].cpus = out;
    }
}

static void cut(struct work *w)
{
    cpu_set_t used;
    CPU_ZERO(&used);
    for (size_t g = 0; g < w->n_groups; g++)
        CPU_OR(&used, &used, &w->groups[g].cpus);
    w->parts = xcalloc(MAX_PARTS, sizeof(*w->parts));
    w->parts[w->n_parts++].cpus = used;
    for (size_t g = 0; g < w->n_groups; g++)
        split(w, &w->groups[g].cpus);
    for (size_t i = 0; i < w->n_parts; i++) {
        struct part *p = &w->parts[i];
        p->room = (unsigned)CPU_COUNT(&p->cpus);
        while (!within(&p->cpus, &w->groups[p->owner].cpus))
            p->owner++;
    }
}

static int prepare(struct work *w, const struct cpu_want *want, size_t n, const char *all,
                   struct err *err)
{
    if (group_all(w, want, n, all, err) < 0)
        return -1;
    if (w->n_groups > 0)
        cut(w);
    return 0;
}

/* --- handing out vCPUs --- */

static unsigned vcpus_of(const struct work *w, size_t g)
{
    unsigned n = 0;
    for (size_t i = 0; i < w->n_parts; i++)
        n += within(&w->parts[i].cpus, &w->groups[g].cpus) ? w->parts[i].vcpus : 0;
    return n;
}

/* The part with the most CPUs that have no vCPU yet, of those that `owner` owns (n_groups: of all),
 * or of those in the set of `in`. */
static struct part *roomiest(struct work *w, size_t owner, size_t in)
{
    struct part *best = NULL;
    for (size_t i = 0; i < w->n_parts; i++) {
        struct part *p = &w->parts[i];
        if ((owner < w->n_groups && p->owner != owner) ||
            (in < w->n_groups && !within(&p->cpus, &w->groups[in].cpus)))
            continue;
        if (best == NULL || (int64_t)p->room - p->vcpus > (int64_t)best->room - best->vcpus)
            best = p;
    }
    return best;
}

/* What the sets ask for; returns how many vCPUs that is. */
static uint32_t hand_out(struct work *w)
{
    uint32_t n = 0;
    for (size_t g = 0; g < w->n_groups; g++) {
        uint64_t demand = (w->groups[g].milli + 999) / 1000;
        struct part *p;
        for (uint64_t k = 0; (k == 0 || k < demand) && (p = roomiest(w, g, w->n_groups)) != NULL &&
                             p->vcpus < p->room;
             k++, n++)
            p->vcpus++;
    }
    for (size_t g = 0; g < w->n_groups; g++) {
        if (vcpus_of(w, g) > 0)
            continue;
        roomiest(w, w->n_groups, g)->vcpus++;
        n++;
    }
    return n;
}

/* As few as will do: one for each set that has none yet, the smallest sets first. */
static uint32_t hand_out_least(struct work *w)
{
    uint32_t n = 0;
    for (size_t i = 0; i < w->n_parts; i++)
        w->parts[i].vcpus = 0;
    for (size_t g = 0; g < w->n_groups; g++) {
        if (vcpus_of(w, g) > 0)
            continue;
        roomiest(w, w->n_groups, g)->vcpus++;
        n++;
    }
    return n;
}

int cpu_map_need(const struct cpu_want *want, size_t n, const char *all, uint32_t *vcpus,
                 struct err *err)
{
    auto_work struct work w = {0};
    bool any = true;
    *vcpus = 0;
    for (size_t i = 0; i < n; i++)
        any = any && want[i].cpus[0] == '\0';
    if (any)
        return 0;
    if (prepare(&w, want, n, all, err) < 0)
        return -1;
    *vcpus = hand_out(&w);
    return 0;
}

static void write_pins(struct work *w, struct cpu_map *out)
{
    out->pins = xcalloc(out->n_vcpus + 1, sizeof(*out->pins));
    cpu_set_t *mine = xcalloc(w->n_groups + 1, sizeof(*mine));
    size_t at = 0;
    for (size_t owner = w->n_groups; owner-- > 0;) {
        for (size_t i = 0; i < w->n_parts; i++) {
            for (unsigned k = 0; w->parts[i].owner == owner && k < w->parts[i].vcpus; k++, at++) {
                out->pins[at] = print(&w->parts[i].cpus);
                for (size_t g = 0; g < w->n_groups; g++) {
                    if (within(&w->parts[i].cpus, &w->groups[g].cpus))
                        CPU_SET(at, &mine[g]);
                }
            }
        }
    }
    for (size_t i = 0; i < out->n; i++) {
        const cpu_set_t *m = &mine[w->group_of[i]];
        free(out->lists[i]);
        out->lists[i] = (size_t)CPU_COUNT(m) == out->n_vcpus ? xstrdup("") : print(m);
    }
    free(mine);
}

int cpu_map_make(const struct cpu_want *want, size_t n, const char *all, uint32_t vcpus,
                 struct cpu_map *out, struct err *err)
{
    auto_work struct work w = {0};
    *out = (struct cpu_map){.n_vcpus = vcpus, .n = n};
    if (prepare(&w, want, n, all, err) < 0)
        return -1;
    out->lists = xcalloc(n + 1, sizeof(*out->lists));
    for (size_t i = 0; i < n; i++)
        out->lists[i] = xstrdup("");
    if (w.n_parts < 2)
        return 0;
    uint32_t used = hand_out(&w);
    if (used > vcpus)
        used = hand_out_least(&w);
    if (used > vcpus || vcpus > CPU_SETSIZE)
        return err_set(err, ERR_PRECONDITION,
                       "the cpusets of the pod's containers take %u vcpus, the vm can have %u",
                       (unsigned)used, (unsigned)vcpus);
    for (; used < vcpus; used++)
        roomiest(&w, w.n_groups, w.n_groups)->vcpus++;
    write_pins(&w, out);
    return 0;
}

void cpu_map_clear(struct cpu_map *m)
{
    for (size_t i = 0; m->pins != NULL && i < m->n_vcpus; i++)
        free(m->pins[i]);
    for (size_t i = 0; m->lists != NULL && i < m->n; i++)
        free(m->lists[i]);
    free(m->pins);
    free(m->lists);
    *m = (struct cpu_map){0};
}
