/* aspisctl stats */
#include <inttypes.h>
#include <stdio.h>

#include "base/fs.h"
#include "base/str.h"
#include "cri/ctl/ctl.h"

static void cell_cpu(struct table *t, const Runtime__V1__CpuUsage *c)
{
    auto_free char *text = c != NULL && c->usage_nano_cores != NULL
                               ? fs_format("%.1f %%", (double)c->usage_nano_cores->value / 1e7)
                               : NULL;
    table_cell(t, text != NULL ? text : "-");
}

static void cell_seconds(struct table *t, const Runtime__V1__CpuUsage *c)
{
    auto_free char *text =
        c != NULL && c->usage_core_nano_seconds != NULL
            ? fs_format("%.1f s", (double)c->usage_core_nano_seconds->value / 1e9)
            : NULL;
    table_cell(t, text != NULL ? text : "-");
}

static void cell_size(struct table *t, const Runtime__V1__UInt64Value *v)
{
    char text[32];
    table_cell(t, v != NULL ? ctl_size(v->value, text) : "-");
}

static void row(struct table *t, const char *pod, const char *container,
                const Runtime__V1__CpuUsage *cpu, const Runtime__V1__MemoryUsage *memory,
                const Runtime__V1__UInt64Value *disk)
{
    table_cell(t, pod);
    table_cell(t, container);
    cell_cpu(t, cpu);
    cell_seconds(t, cpu);
    cell_size(t, memory != NULL ? memory->working_set_bytes : NULL);
    cell_size(t, disk);
}

static void pod_rows(struct table *t, const Runtime__V1__PodSandboxStats *p)
{
    const char *name = p->attributes != NULL && p->attributes->metadata != NULL
                           ? p->attributes->metadata->name
                           : "";
    const Runtime__V1__LinuxPodSandboxStats *l = p->linux;
    if (l == NULL)
        return;
    row(t, name, "(vm)", l->cpu, l->memory, NULL);
    for (size_t i = 0; i < l->n_containers; i++) {
        const Runtime__V1__ContainerStats *c = l->containers[i];
        const char *container = c->attributes != NULL && c->attributes->metadata != NULL
                                    ? c->attributes->metadata->name
                                    : "";
        row(t, name, container, c->cpu, c->memory,
            c->writable_layer != NULL ? c->writable_layer->used_bytes : NULL);
    }
}

int cmd_stats(struct ctl *ctl, int argc, char **argv, struct err *err)
{
    if (argc > 1)
        return ctl_usage(err, "stats takes no argument `%s`", argv[1]);
    Runtime__V1__ListPodSandboxStatsRequest r = RUNTIME__V1__LIST_POD_SANDBOX_STATS_REQUEST__INIT;
    const Runtime__V1__ListPodSandboxStatsResponse *list =
        (const Runtime__V1__ListPodSandboxStatsResponse *)ctl_call(
            ctl, RUNTIME_SERVICE "ListPodSandboxStats", &r.base,
            &runtime__v1__list_pod_sandbox_stats_response__descriptor, err);
    if (list == NULL)
        return -1;
    static const char *const heads[] = {"POD", "CONTAINER", "CPU", "CPU TIME", "MEMORY", "WRITTEN"};
    struct table t = {.n_columns = ARRAY_LEN(heads)};
    for (size_t i = 0; i < ARRAY_LEN(heads); i++)
        table_cell(&t, heads[i]);
    for (size_t i = 0; i < list->n_stats; i++)
        pod_rows(&t, list->stats[i]);
    table_print(&t, stdout);
    return 0;
}
