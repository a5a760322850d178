#include "cri/stats_check.h"

#include <net/if.h>
#include <stdbool.h>
#include <string.h>

#include "base/limits.h"

/* More CPUs than any machine has. */
#define RATE_MAX 1e15

static void check_percent(double *p)
{
    if (!(*p >= 0 && *p <= 100)) /* also what is no number */
        *p = 0;
}

static void check_line(Aspis__Agent__V1__PressureLine *l)
{
    if (l == NULL)
        return;
    check_percent(&l->avg10);
    check_percent(&l->avg60);
    check_percent(&l->avg300);
}

static void check_pressure(Aspis__Agent__V1__Pressure *p)
{
    if (p == NULL)
        return;
    check_line(p->some);
    check_line(p->full);
}

static void check_group(Aspis__Agent__V1__GroupStats *g)
{
    if (g == NULL)
        return;
    if (g->n_io > STATS_DEVICES)
        g->n_io = STATS_DEVICES;
    check_pressure(g->cpu_pressure);
    check_pressure(g->memory_pressure);
    check_pressure(g->io_pressure);
}

/* As the kernel allows them, less what would be odd in a label. */
static bool name_ok(const char *name)
{
    size_t n = strnlen(name, IFNAMSIZ);
    return n > 0 && n < IFNAMSIZ &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.@:") == n;
}

void stats_check(Aspis__Agent__V1__StatsResponse *r)
{
    size_t n = 0;
    for (size_t i = 0; i < r->n_links && n < LIMIT_POD_INTERFACES; i++) {
        if (name_ok(r->links[i]->name))
            r->links[n++] = r->links[i];
    }
    r->n_links = n;
    if (r->n_containers > LIMIT_AGENT_CONTAINERS)
        r->n_containers = LIMIT_AGENT_CONTAINERS;
    for (size_t i = 0; i < r->n_containers; i++)
        check_group(r->containers[i]);
    check_group(r->pod);
    if (r->at_ns > INT64_MAX)
        r->at_ns = 0;
}

uint64_t stats_rate(uint64_t before, uint64_t after, int64_t from, int64_t to)
{
    if (to <= from || after < before)
        return 0;
    double rate = (double)(after - before) * 1e9 / (double)(to - from);
    return rate < RATE_MAX ? (uint64_t)rate : 0;
}
