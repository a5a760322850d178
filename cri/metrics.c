/*
 * ListMetricDescriptors and ListPodSandboxMetrics: cAdvisor's metrics by their names, which kubelet
 * passes on at /metrics/cadvisor (KEP-2371; the list is the one critest's conformance specs want).
 *
 * A row of the table says name, help, type and the labels beside the common ones, so what is
 * described and what is sent cannot differ. Totals in seconds are whole seconds: CRI's values are
 * integers.
 */
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/str.h"
#include "cri/daemon.h"
#include "cri/model.h"
#include "cri/service_runtime.h"

typedef Aspis__Agent__V1__GroupStats group;

#define EXTRA_MAX 4
#define C RUNTIME__V1__METRIC_TYPE__COUNTER
#define G RUNTIME__V1__METRIC_TYPE__GAUGE

/* Labels of every metric. */
static const char *const base_labels[] = {"id", "name", "image", "container", "pod", "namespace"};
#define N_BASE ARRAY_LEN(base_labels)

enum metric {
    CPU_USAGE,
    CPU_USER,
    CPU_SYSTEM,
    CFS_PERIODS,
    CFS_THROTTLED,
    CFS_THROTTLED_SECONDS,
    MEMORY_USAGE,
    MEMORY_MAX_USAGE,
    MEMORY_WORKING_SET,
    MEMORY_RSS,
    MEMORY_CACHE,
    MEMORY_MAPPED,
    MEMORY_KERNEL,
    MEMORY_SWAP,
    MEMORY_FAILCNT,
    MEMORY_FAILURES,
    OOM_EVENTS,
    PROCESSES,
    THREADS,
    THREADS_MAX,
    DESCRIPTORS,
    SOCKETS,
    ULIMITS,
    FS_USAGE,
    FS_LIMIT,
    FS_INODES_TOTAL,
    FS_INODES_FREE,
    FS_READS,
    FS_READ_BYTES,
    FS_WRITES,
    FS_WRITE_BYTES,
    BLKIO,
    RX_BYTES,
    RX_PACKETS,
    RX_ERRORS,
    RX_DROPPED,
    TX_BYTES,
    TX_PACKETS,
    TX_ERRORS,
    TX_DROPPED,
    CPU_WAITING,
    CPU_STALLED,
    MEMORY_WAITING,
    MEMORY_STALLED,
    IO_WAITING,
    IO_STALLED,
    SPEC_PERIOD,
    SPEC_QUOTA,
    SPEC_SHARES,
    SPEC_MEMORY,
    SPEC_RESERVATION,
    SPEC_SWAP,
    START_TIME,
    LAST_SEEN,
};

static const struct definition {
    const char *name, *help;
    Runtime__V1__MetricType type;
    const char *extra[EXTRA_MAX];
} definitions[] = {
    [CPU_USAGE] = {"container_cpu_usage_seconds_total", "CPU time used, in seconds", C, {"cpu"}},
    [CPU_USER] = {"container_cpu_user_seconds_total",
                  "CPU time used in user mode, in seconds",
                  C,
                  {0}},
    [CPU_SYSTEM] = {"container_cpu_system_seconds_total",
                    "CPU time used in the kernel, in seconds",
                    C,
                    {0}},
    [CFS_PERIODS] = {"container_cpu_cfs_periods_total", "Periods of CPU quota enforcement", C, {0}},
    [CFS_THROTTLED] = {"container_cpu_cfs_throttled_periods_total",
                       "Periods in which the CPU quota was used up",
                       C,
                       {0}},
    [CFS_THROTTLED_SECONDS] = {"container_cpu_cfs_throttled_seconds_total",
                               "Time spent waiting for CPU quota, in seconds",
                               C,
                               {0}},
    [MEMORY_USAGE] = {"container_memory_usage_bytes", "Memory in use, page cache included", G, {0}},
    [MEMORY_MAX_USAGE] = {"container_memory_max_usage_bytes",
                          "Most memory that was in use",
                          G,
                          {0}},
    [MEMORY_WORKING_SET] = {"container_memory_working_set_bytes",
                            "Memory in use without inactive page cache",
                            G,
                            {0}},
    [MEMORY_RSS] = {"container_memory_rss", "Anonymous memory", G, {0}},
    [MEMORY_CACHE] = {"container_memory_cache", "Page cache", G, {0}},
    [MEMORY_MAPPED] = {"container_memory_mapped_file", "Page cache that is mapped", G, {0}},
    [MEMORY_KERNEL] = {"container_memory_kernel_usage", "Memory the kernel uses for it", G, {0}},
    [MEMORY_SWAP] = {"container_memory_swap", "Swap in use", G, {0}},
    [MEMORY_FAILCNT] = {"container_memory_failcnt", "Times the memory limit was hit", C, {0}},
    [MEMORY_FAILURES] = {"container_memory_failures_total",
                         "Page faults",
                         C,
                         {"failure_type", "scope"}},
    [OOM_EVENTS] = {"container_oom_events_total", "Processes ended for want of memory", C, {0}},
    [PROCESSES] = {"container_processes", "Processes running", G, {0}},
    [THREADS] = {"container_threads", "Threads running", G, {0}},
    [THREADS_MAX] = {"container_threads_max", "Threads allowed; 0: no limit", G, {0}},
    [DESCRIPTORS] = {"container_file_descriptors", "Open file descriptors", G, {0}},
    [SOCKETS] = {"container_sockets", "Open sockets", G, {0}},
    [ULIMITS] = {"container_ulimits_soft", "Soft limits of the first process", G, {"ulimit"}},
    [FS_USAGE] = {"container_fs_usage_bytes", "Bytes written over the image", G, {"device"}},
    [FS_LIMIT] = {"container_fs_limit_bytes", "Size of the pod's writable disk", G, {"device"}},
    [FS_INODES_TOTAL] = {"container_fs_inodes_total",
                         "Inodes of the pod's writable disk",
                         G,
                         {"device"}},
    [FS_INODES_FREE] = {"container_fs_inodes_free",
                        "Free inodes of the pod's writable disk",
                        G,
                        {"device"}},
    [FS_READS] = {"container_fs_reads_total", "Reads completed", C, {"device"}},
    [FS_READ_BYTES] = {"container_fs_reads_bytes_total", "Bytes read", C, {"device"}},
    [FS_WRITES] = {"container_fs_writes_total", "Writes completed", C, {"device"}},
    [FS_WRITE_BYTES] = {"container_fs_writes_bytes_total", "Bytes written", C, {"device"}},
    [BLKIO] = {"container_blkio_device_usage_total",
               "Bytes moved to and from a block device",
               C,
               {"device", "major", "minor", "operation"}},
    [RX_BYTES] = {"container_network_receive_bytes_total", "Bytes received", C, {"interface"}},
    [RX_PACKETS] = {"container_network_receive_packets_total",
                    "Packets received",
                    C,
                    {"interface"}},
    [RX_ERRORS] = {"container_network_receive_errors_total",
                   "Errors while receiving",
                   C,
                   {"interface"}},
    [RX_DROPPED] = {"container_network_receive_packets_dropped_total",
                    "Packets dropped while receiving",
                    C,
                    {"interface"}},
    [TX_BYTES] = {"container_network_transmit_bytes_total", "Bytes sent", C, {"interface"}},
    [TX_PACKETS] = {"container_network_transmit_packets_total", "Packets sent", C, {"interface"}},
    [TX_ERRORS] = {"container_network_transmit_errors_total",
                   "Errors while sending",
                   C,
                   {"interface"}},
    [TX_DROPPED] = {"container_network_transmit_packets_dropped_total",
                    "Packets dropped while sending",
                    C,
                    {"interface"}},
    [CPU_WAITING] = {"container_pressure_cpu_waiting_seconds_total",
                     "Time in which some task waited for CPU, in seconds",
                     C,
                     {0}},
    [CPU_STALLED] = {"container_pressure_cpu_stalled_seconds_total",
                     "Time in which all tasks waited for CPU, in seconds",
                     C,
                     {0}},
    [MEMORY_WAITING] = {"container_pressure_memory_waiting_seconds_total",
                        "Time in which some task waited for memory, in seconds",
                        C,
                        {0}},
    [MEMORY_STALLED] = {"container_pressure_memory_stalled_seconds_total",
                        "Time in which all tasks waited for memory, in seconds",
                        C,
                        {0}},
    [IO_WAITING] = {"container_pressure_io_waiting_seconds_total",
                    "Time in which some task waited for I/O, in seconds",
                    C,
                    {0}},
    [IO_STALLED] = {"container_pressure_io_stalled_seconds_total",
                    "Time in which all tasks waited for I/O, in seconds",
                    C,
                    {0}},
    [SPEC_PERIOD] = {"container_spec_cpu_period",
                     "Period of the CPU quota, in microseconds",
                     G,
                     {0}},
    [SPEC_QUOTA] = {"container_spec_cpu_quota", "CPU quota in a period, in microseconds", G, {0}},
    [SPEC_SHARES] = {"container_spec_cpu_shares", "CPU shares", G, {0}},
    [SPEC_MEMORY] = {"container_spec_memory_limit_bytes", "Memory limit; 0: none", G, {0}},
    [SPEC_RESERVATION] = {"container_spec_memory_reservation_limit_bytes",
                          "Memory reserved; 0: none",
                          G,
                          {0}},
    [SPEC_SWAP] = {"container_spec_memory_swap_limit_bytes",
                   "Limit of memory and swap together; 0: none",
                   G,
                   {0}},
    [START_TIME] = {"container_start_time_seconds", "Start, in seconds since the epoch", G, {0}},
    [LAST_SEEN] = {"container_last_seen",
                   "When these numbers were taken, in seconds since the epoch",
                   G,
                   {0}},
};

static struct runtime *runtime_of(const struct call *call)
{
    return ((const struct daemon *)call->daemon)->runtime;
}

static size_t n_extra(const struct definition *d)
{
    size_t n = 0;
    while (n < EXTRA_MAX && d->extra[n] != NULL)
        n++;
    return n;
}

/* --- putting together --- */

struct list {
    struct call *call;
    struct err *err;
    char *base[N_BASE];
    int64_t at;
    Runtime__V1__Metric **v;
    size_t n, room;
};

static int list_init(struct list *l, struct call *call, const char *const labels[N_BASE],
                     int64_t at, struct err *err)
{
    *l = (struct list){.call = call, .err = err, .at = at};
    for (size_t i = 0; i < N_BASE; i++) {
        l->base[i] = call_string(call, labels[i], err);
        if (l->base[i] == NULL)
            return -1;
    }
    return 0;
}

/* Appends; the array in the arena doubles. */
static Runtime__V1__Metric *append(struct list *l)
{
    if (l->n == l->room) {
        size_t room = l->room == 0 ? 64 : 2 * l->room;
        Runtime__V1__Metric **v = call_array(l->call, room, sizeof(*v), l->err);
        if (v == NULL)
            return NULL;
        for (size_t i = 0; i < l->n; i++)
            v[i] = l->v[i];
        l->v = v;
        l->room = room;
    }
    Runtime__V1__Metric *m = call_message(l->call, &runtime__v1__metric__descriptor, l->err);
    if (m != NULL)
        l->v[l->n++] = m;
    return m;
}

/* The values of the definition's extra labels follow, as strings. */
static void put(struct list *l, enum metric which, uint64_t value, ...)
{
    const struct definition *d = &definitions[which];
    Runtime__V1__Metric *m = append(l);
    size_t extra = n_extra(d);
    if (m == NULL)
        return;
    m->name = __extension__(char *)(uintptr_t) d->name;
    m->timestamp = l->at;
    m->metric_type = d->type;
    m->value = call_message(l->call, &runtime__v1__uint64_value__descriptor, l->err);
    m->label_values = call_array(l->call, N_BASE + extra, sizeof(char *), l->err);
    if (m->value == NULL || m->label_values == NULL)
        return;
    m->value->value = value;
    for (size_t i = 0; i < N_BASE; i++)
        m->label_values[m->n_label_values++] = l->base[i];
    va_list ap;
    va_start(ap, value);
    for (size_t i = 0; i < extra; i++)
        m->label_values[m->n_label_values++] =
            call_string(l->call, va_arg(ap, const char *), l->err);
    va_end(ap);
}

/* --- a container --- */

static void put_cpu(struct list *l, const group *g)
{
    put(l, CPU_USAGE, g->cpu_usage_us / 1000000, "total");
    put(l, CPU_USER, g->cpu_user_us / 1000000);
    put(l, CPU_SYSTEM, g->cpu_system_us / 1000000);
    put(l, CFS_PERIODS, g->cpu_periods);
    put(l, CFS_THROTTLED, g->cpu_throttled_periods);
    put(l, CFS_THROTTLED_SECONDS, g->cpu_throttled_us / 1000000);
}

static void put_memory(struct list *l, const group *g)
{
    put(l, MEMORY_USAGE, g->memory_usage);
    put(l, MEMORY_MAX_USAGE, g->memory_peak > 0 ? g->memory_peak : g->memory_usage);
    put(l, MEMORY_WORKING_SET,
        g->memory_usage > g->memory_inactive_file ? g->memory_usage - g->memory_inactive_file : 0);
    put(l, MEMORY_RSS, g->memory_anon);
    put(l, MEMORY_CACHE, g->memory_file);
    put(l, MEMORY_MAPPED, g->memory_mapped);
    put(l, MEMORY_KERNEL, g->memory_kernel);
    put(l, MEMORY_SWAP, g->swap_usage);
    put(l, MEMORY_FAILCNT, g->memory_failures);
    put(l, MEMORY_FAILURES, g->page_faults, "pgfault", "container");
    put(l, MEMORY_FAILURES, g->major_faults, "pgmajfault", "container");
    put(l, OOM_EVENTS, g->oom_events);
}

static void put_processes(struct list *l, const group *g)
{
    put(l, PROCESSES, g->processes);
    put(l, THREADS, g->threads);
    put(l, THREADS_MAX, g->threads_max);
    put(l, DESCRIPTORS, g->descriptors);
    put(l, SOCKETS, g->sockets);
    put(l, ULIMITS, g->open_files_soft, "max_open_files");
}

static void put_disk(struct list *l, const group *g, const Aspis__Agent__V1__GuestStats *guest)
{
    static const char scratch[] = "scratch";
    put(l, FS_USAGE, g->layer_bytes, scratch);
    if (guest != NULL) {
        put(l, FS_LIMIT, guest->scratch_bytes, scratch);
        put(l, FS_INODES_TOTAL, guest->scratch_inodes, scratch);
        put(l, FS_INODES_FREE, guest->scratch_inodes_free, scratch);
    }
    for (size_t i = 0; i < g->n_io; i++) {
        const Aspis__Agent__V1__DeviceIo *d = g->io[i];
        const char *device =
            arena_printf(l->call->arena, "%" PRIu32 ":%" PRIu32, d->major, d->minor);
        const char *major = arena_printf(l->call->arena, "%" PRIu32, d->major);
        const char *minor = arena_printf(l->call->arena, "%" PRIu32, d->minor);
        put(l, FS_READS, d->reads, device);
        put(l, FS_READ_BYTES, d->read_bytes, device);
        put(l, FS_WRITES, d->writes, device);
        put(l, FS_WRITE_BYTES, d->write_bytes, device);
        put(l, BLKIO, d->read_bytes, device, major, minor, "Read");
        put(l, BLKIO, d->write_bytes, device, major, minor, "Write");
    }
}

static void put_pressure(struct list *l, const Aspis__Agent__V1__Pressure *p, enum metric waiting,
                         enum metric stalled)
{
    if (p != NULL && p->some != NULL)
        put(l, waiting, p->some->total_us / 1000000);
    if (p != NULL && p->full != NULL)
        put(l, stalled, p->full->total_us / 1000000);
}

static uint64_t positive(int64_t n)
{
    return n > 0 ? (uint64_t)n : 0;
}

/* What was asked for; where nothing was, the kernel's defaults. */
static void put_spec(struct list *l, const struct container *c, const group *g)
{
    static const Runtime__V1__LinuxContainerResources none =
        RUNTIME__V1__LINUX_CONTAINER_RESOURCES__INIT;
    const Runtime__V1__LinuxContainerResources *r = &none;
    if (c->config->linux != NULL && c->config->linux->resources != NULL)
        r = c->config->linux->resources;
    put(l, SPEC_PERIOD, r->cpu_period > 0 ? positive(r->cpu_period) : 100000);
    if (r->cpu_quota > 0)
        put(l, SPEC_QUOTA, positive(r->cpu_quota));
    put(l, SPEC_SHARES, r->cpu_shares > 0 ? positive(r->cpu_shares) : 1024);
    put(l, SPEC_MEMORY, g->memory_max);
    put(l, SPEC_RESERVATION, 0);
    put(l, SPEC_SWAP, positive(r->memory_swap_limit_in_bytes));
}

static const char *image_of(const struct container *c)
{
    const Runtime__V1__ImageSpec *i = c->config->image;
    return !str_empty(i->user_specified_image) ? i->user_specified_image : i->image;
}

static Runtime__V1__ContainerMetrics *container_metrics(struct call *call,
                                                        const struct container *c,
                                                        const struct stats_sample *at,
                                                        struct err *err)
{
    const group *g = stats_group(at, c->rec.id);
    const Runtime__V1__PodSandboxMetadata *pod = c->sandbox->config->metadata;
    const char *const labels[N_BASE] = {
        c->rec.id, c->rec.id, image_of(c), c->config->metadata->name, pod->name, pod->namespace_};
    Runtime__V1__ContainerMetrics *m =
        call_message(call, &runtime__v1__container_metrics__descriptor, err);
    struct list l;
    if (m == NULL || list_init(&l, call, labels, at->wall, err) < 0)
        return NULL;
    m->container_id = l.base[0];
    if (g != NULL) {
        put_cpu(&l, g);
        put_memory(&l, g);
        put_processes(&l, g);
        put_disk(&l, g, at->guest->guest);
        put_pressure(&l, g->cpu_pressure, CPU_WAITING, CPU_STALLED);
        put_pressure(&l, g->memory_pressure, MEMORY_WAITING, MEMORY_STALLED);
        put_pressure(&l, g->io_pressure, IO_WAITING, IO_STALLED);
        put_spec(&l, c, g);
        put(&l, START_TIME, positive(c->rec.started_at) / 1000000000);
        put(&l, LAST_SEEN, positive(at->wall) / 1000000000);
    }
    m->metrics = l.v;
    m->n_metrics = l.n;
    return err->code == ERR_OK ? m : NULL;
}

/* --- a pod: its network, and what its VM costs the host --- */

static void put_network(struct list *l, const Aspis__Agent__V1__StatsResponse *g)
{
    for (size_t i = 0; i < g->n_links && i < LIMIT_POD_INTERFACES; i++) {
        const Aspis__Agent__V1__LinkStats *s = g->links[i];
        put(l, RX_BYTES, s->rx_bytes, s->name);
        put(l, RX_PACKETS, s->rx_packets, s->name);
        put(l, RX_ERRORS, s->rx_errors, s->name);
        put(l, RX_DROPPED, s->rx_dropped, s->name);
        put(l, TX_BYTES, s->tx_bytes, s->name);
        put(l, TX_PACKETS, s->tx_packets, s->name);
        put(l, TX_ERRORS, s->tx_errors, s->name);
        put(l, TX_DROPPED, s->tx_dropped, s->name);
    }
}

static void put_vm(struct list *l, const struct machine_usage *vm)
{
    if (vm->has_cpu)
        put(l, CPU_USAGE, vm->cpu_ns / 1000000000, "total");
    if (!vm->has_memory)
        return;
    put(l, MEMORY_USAGE, vm->memory_usage);
    put(l, MEMORY_WORKING_SET, vm->memory_working_set);
    put(l, MEMORY_RSS, vm->memory_rss);
}

static int add_containers(struct call *call, struct sandbox *s, const struct stats_sample *at,
                          Runtime__V1__PodSandboxMetrics *m, struct err *err)
{
    size_t n = 0;
    struct container **list = model_containers_of(s, &n);
    m->container_metrics = call_array(call, n, sizeof(void *), err);
    for (size_t i = 0; i < n; i++) {
        if (m->container_metrics != NULL && container_phase(list[i]) == CONTAINER_RUNNING) {
            Runtime__V1__ContainerMetrics *c = container_metrics(call, list[i], at, err);
            if (c != NULL)
                m->container_metrics[m->n_container_metrics++] = c;
        }
        container_unref(list[i]);
    }
    free(list);
    return err->code == ERR_OK ? 0 : -1;
}

static Runtime__V1__PodSandboxMetrics *pod_metrics(struct call *call, struct sandbox *s,
                                                   struct err *err)
{
    auto_stats_view struct stats_view v = stats_view(s);
    const Runtime__V1__PodSandboxMetadata *pod = s->config->metadata;
    const char *const labels[N_BASE] = {s->rec.id, s->rec.id, "", "", pod->name, pod->namespace_};
    Runtime__V1__PodSandboxMetrics *m =
        call_message(call, &runtime__v1__pod_sandbox_metrics__descriptor, err);
    struct list l;
    if (m == NULL || list_init(&l, call, labels, v.last != NULL ? v.last->wall : 0, err) < 0)
        return NULL;
    m->pod_sandbox_id = l.base[0];
    if (v.last == NULL)
        return m;
    put_network(&l, v.last->guest);
    put_vm(&l, &v.last->vm);
    m->metrics = l.v;
    m->n_metrics = l.n;
    return add_containers(call, s, v.last, m, err) < 0 ? NULL : m;
}

/* --- handlers --- */

int cri_list_metric_descriptors(struct call *call, const ProtobufCMessage *message,
                                ProtobufCMessage **reply, struct err *err)
{
    (void)message;
    Runtime__V1__ListMetricDescriptorsResponse *r =
        call_message(call, &runtime__v1__list_metric_descriptors_response__descriptor, err);
    if (r == NULL)
        return -1;
    r->descriptors = call_array(call, ARRAY_LEN(definitions), sizeof(void *), err);
    for (size_t i = 0; r->descriptors != NULL && i < ARRAY_LEN(definitions); i++) {
        const struct definition *d = &definitions[i];
        Runtime__V1__MetricDescriptor *m =
            call_message(call, &runtime__v1__metric_descriptor__descriptor, err);
        if (m == NULL)
            return -1;
        m->name = call_string(call, d->name, err);
        m->help = call_string(call, d->help, err);
        m->label_keys = call_array(call, N_BASE + EXTRA_MAX, sizeof(char *), err);
        for (size_t k = 0; m->label_keys != NULL && k < N_BASE + n_extra(d); k++)
            m->label_keys[m->n_label_keys++] =
                call_string(call, k < N_BASE ? base_labels[k] : d->extra[k - N_BASE], err);
        r->descriptors[r->n_descriptors++] = m;
    }
    *reply = &r->base;
    return err->code == ERR_OK ? 0 : -1;
}

/* All that run, brought up to date; references, the caller's with the array. */
static struct sandbox **ready_sandboxes(struct runtime *rt, size_t *n)
{
    *n = 0;
    (void)pthread_mutex_lock(&rt->lock);
    struct sandbox **list = xcalloc(HASH_CNT(hh, rt->sandboxes) + 1, sizeof(struct sandbox *));
    for (struct sandbox *s = rt->sandboxes; s != NULL; s = s->hh.next) {
        if (s->rec.phase == SANDBOX_READY && !s->stopping)
            list[(*n)++] = sandbox_ref(s);
    }
    (void)pthread_mutex_unlock(&rt->lock);
    stats_refresh(rt->stats, list, *n, true);
    return list;
}

static void free_sandboxes(struct sandbox **list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        sandbox_unref(list[i]);
    free(list);
}

int cri_list_pod_sandbox_metrics(struct call *call, const ProtobufCMessage *message,
                                 ProtobufCMessage **reply, struct err *err)
{
    (void)message;
    Runtime__V1__ListPodSandboxMetricsResponse *r =
        call_message(call, &runtime__v1__list_pod_sandbox_metrics_response__descriptor, err);
    if (r == NULL)
        return -1;
    size_t n = 0;
    struct sandbox **list = ready_sandboxes(runtime_of(call), &n);
    r->pod_metrics = call_array(call, n, sizeof(void *), err);
    for (size_t i = 0; err->code == ERR_OK && i < n; i++)
        r->pod_metrics[r->n_pod_metrics++] = pod_metrics(call, list[i], err);
    free_sandboxes(list, n);
    *reply = &r->base;
    return err->code == ERR_OK ? 0 : -1;
}

/* One pod to a message, with memory of its own: there are some sixty metrics per container. */
int cri_stream_pod_sandbox_metrics(struct call *call, const ProtobufCMessage *message,
                                   ProtobufCMessage **reply, struct err *err)
{
    (void)message;
    (void)reply;
    size_t n = 0;
    struct sandbox **list = ready_sandboxes(runtime_of(call), &n);
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < n; i++) {
        auto_arena struct arena *arena = arena_new(LIMIT_CALL_ARENA);
        struct call part = *call;
        Runtime__V1__StreamPodSandboxMetricsResponse out =
            RUNTIME__V1__STREAM_POD_SANDBOX_METRICS_RESPONSE__INIT;
        Runtime__V1__PodSandboxMetrics *one = NULL;
        part.arena = arena;
        if (arena == NULL)
            rc = err_set(err, ERR_EXHAUSTED, "out of memory");
        else if ((one = pod_metrics(&part, list[i], err)) == NULL)
            rc = -1;
        out.pod_sandbox_metrics = &one;
        out.n_pod_sandbox_metrics = 1;
        if (rc == 0)
            rc = call_send(call, &out.base, err);
    }
    free_sandboxes(list, n);
    return rc;
}
