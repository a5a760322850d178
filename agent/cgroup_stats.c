#include "agent/cgroup_stats.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/cgroup_file.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

/* A container with its own cgroup namespace may build a tree; we follow it this deep. */
#define MAX_DEPTH 16
/* How much of the processes' /proc is read in one call. */
#define MAX_PIDS 512
#define MAX_DESCRIPTORS 8192

typedef Aspis__Agent__V1__GroupStats group;

struct key {
    const char *name;
    size_t offset; /* of a uint64_t in the message */
};

#define AT(field) offsetof(group, field)

/* A file of lines "key number". */
static void read_keyed(group *g, const char *dir, const char *file, const struct key *keys,
                       size_t n_keys)
{
    auto_free char *text = cgroup_file_text(dir, file);
    char *save = NULL;
    char *line = text != NULL ? strtok_r(text, "\n", &save) : NULL;
    for (; line != NULL; line = strtok_r(NULL, "\n", &save)) {
        char *value = strchr(line, ' ');
        uint64_t n;
        if (value == NULL)
            continue;
        *value++ = '\0';
        for (size_t i = 0; i < n_keys; i++) {
            if (strcmp(line, keys[i].name) == 0 && str_to_u64(value, &n) == 0)
                memcpy((char *)g + keys[i].offset, &n, sizeof(n));
        }
    }
}

/* "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0" */
static bool parse_device(char *line, Aspis__Agent__V1__DeviceIo *d)
{
    char *save = NULL;
    const char *word = strtok_r(line, " ", &save);
    aspis__agent__v1__device_io__init(d);
    if (word == NULL || sscanf(word, "%" SCNu32 ":%" SCNu32, &d->major, &d->minor) != 2)
        return false;
    while ((word = strtok_r(NULL, " ", &save)) != NULL) {
        uint64_t n;
        const char *eq = strchr(word, '=');
        if (eq == NULL || str_to_u64(eq + 1, &n) < 0)
            continue;
        if (str_starts(word, "rbytes="))
            d->read_bytes = n;
        else if (str_starts(word, "wbytes="))
            d->write_bytes = n;
        else if (str_starts(word, "rios="))
            d->reads = n;
        else if (str_starts(word, "wios="))
            d->writes = n;
    }
    return true;
}

static void read_io(struct cgroup_stats *s, const char *dir)
{
    auto_free char *text = cgroup_file_text(dir, "io.stat");
    char *save = NULL;
    char *line = text != NULL ? strtok_r(text, "\n", &save) : NULL;
    s->msg.io = s->device_list;
    for (; line != NULL && s->msg.n_io < CGROUP_STATS_DEVICES; line = strtok_r(NULL, "\n", &save)) {
        Aspis__Agent__V1__DeviceIo *d = &s->devices[s->msg.n_io];
        if (parse_device(line, d))
            s->device_list[s->msg.n_io++] = d;
    }
}

/* "some avg10=0.00 avg60=0.00 avg300=0.00 total=0", and the same for "full" */
static Aspis__Agent__V1__Pressure *read_pressure(struct cgroup_stats *s, int which, const char *dir,
                                                 const char *file)
{
    auto_free char *text = cgroup_file_text(dir, file);
    Aspis__Agent__V1__Pressure *p = &s->pressure[which];
    char *save = NULL;
    char *line = text != NULL ? strtok_r(text, "\n", &save) : NULL;
    if (line == NULL)
        return NULL;
    aspis__agent__v1__pressure__init(p);
    for (; line != NULL; line = strtok_r(NULL, "\n", &save)) {
        bool full = str_starts(line, "full ");
        Aspis__Agent__V1__PressureLine *l = &s->lines[which][full];
        aspis__agent__v1__pressure_line__init(l);
        if (!full && !str_starts(line, "some "))
            continue;
        if (sscanf(line + strlen("some "), "avg10=%lf avg60=%lf avg300=%lf total=%" SCNu64,
                   &l->avg10, &l->avg60, &l->avg300, &l->total_us) != 4)
            continue;
        if (full)
            p->full = l;
        else
            p->some = l;
    }
    return p;
}

/* Pids of the group and those below it, as many as fit; returns how many there are. */
static uint64_t list_pids(const char *dir, int depth, int64_t *pids, size_t max)
{
    auto_free char *path = fs_format("%s/cgroup.procs", dir);
    auto_free char *text = path != NULL ? fs_read(path, MiB(1), NULL, NULL) : NULL;
    char *save = NULL;
    uint64_t n = 0;
    for (char *line = text != NULL ? strtok_r(text, "\n", &save) : NULL; line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        int64_t pid;
        if (str_to_i64(line, &pid) < 0)
            continue;
        if (n < max)
            pids[n] = pid;
        n++;
    }
    auto_closedir DIR *d = opendir(dir);
    for (struct dirent *e = d != NULL ? readdir(d) : NULL; e != NULL && depth < MAX_DEPTH;
         e = readdir(d)) {
        if (e->d_type != DT_DIR || e->d_name[0] == '.')
            continue;
        auto_free char *sub = fs_format("%s/%s", dir, e->d_name);
        size_t used = n < max ? (size_t)n : max;
        n += list_pids(sub, depth + 1, pids + used, max - used);
    }
    return n;
}

uint64_t cgroup_stats_count(const char *dir)
{
    return list_pids(dir, 0, NULL, 0);
}

void cgroup_stats_read(struct cgroup_stats *s, const char *dir)
{
    static const struct key cpu[] = {
        {"usage_usec", AT(cpu_usage_us)},
        {"user_usec", AT(cpu_user_us)},
        {"system_usec", AT(cpu_system_us)},
        {"nr_periods", AT(cpu_periods)},
        {"nr_throttled", AT(cpu_throttled_periods)},
        {"throttled_usec", AT(cpu_throttled_us)},
    };
    static const struct key memory[] = {
        {"anon", AT(memory_anon)},
        {"file", AT(memory_file)},
        {"inactive_file", AT(memory_inactive_file)},
        {"file_mapped", AT(memory_mapped)},
        {"kernel", AT(memory_kernel)},
        {"shmem", AT(memory_shmem)},
        {"pgfault", AT(page_faults)},
        {"pgmajfault", AT(major_faults)},
    };
    static const struct key events[] = {
        {"max", AT(memory_failures)},
        {"oom_kill", AT(oom_events)},
    };
    group *g = &s->msg;
    memset(s, 0, sizeof(*s));
    aspis__agent__v1__group_stats__init(g);
    read_keyed(g, dir, "cpu.stat", cpu, ARRAY_LEN(cpu));
    read_keyed(g, dir, "memory.stat", memory, ARRAY_LEN(memory));
    read_keyed(g, dir, "memory.events", events, ARRAY_LEN(events));
    g->memory_usage = cgroup_file_number(dir, "memory.current");
    g->memory_peak = cgroup_file_number(dir, "memory.peak");
    g->memory_max = cgroup_file_number(dir, "memory.max");
    g->swap_usage = cgroup_file_number(dir, "memory.swap.current");
    g->swap_max = cgroup_file_number(dir, "memory.swap.max");
    g->threads = cgroup_file_number(dir, "pids.current");
    g->threads_max = cgroup_file_number(dir, "pids.max");
    g->processes = list_pids(dir, 0, NULL, 0);
    read_io(s, dir);
    g->cpu_pressure = read_pressure(s, 0, dir, "cpu.pressure");
    g->memory_pressure = read_pressure(s, 1, dir, "memory.pressure");
    g->io_pressure = read_pressure(s, 2, dir, "io.pressure");
}

static void count_descriptors(group *g, const char *proc, int64_t pid)
{
    auto_free char *path = fs_format("%s/%" PRId64 "/fd", proc, pid);
    auto_closedir DIR *d = opendir(path);
    char target[16];
    for (struct dirent *e = d != NULL ? readdir(d) : NULL;
         e != NULL && g->descriptors < MAX_DESCRIPTORS; e = readdir(d)) {
        if (e->d_name[0] == '.')
            continue;
        g->descriptors++;
        ssize_t n = readlinkat(dirfd(d), e->d_name, target, sizeof(target));
        if (n >= (ssize_t)strlen("socket:") && memcmp(target, "socket:", strlen("socket:")) == 0)
            g->sockets++;
    }
}

/* "Max open files            1024                 4096                 files" */
static uint64_t open_files_limit(const char *proc, int64_t pid)
{
    static const char name[] = "Max open files";
    auto_free char *path = fs_format("%s/%" PRId64 "/limits", proc, pid);
    auto_free char *text = fs_read(path, KiB(16), NULL, NULL);
    const char *line = text != NULL ? strstr(text, name) : NULL;
    char soft[24] = "";
    uint64_t n = 0;
    if (line == NULL || sscanf(line + strlen(name), "%23s", soft) != 1)
        return 0;
    if (strcmp(soft, "unlimited") == 0)
        return UINT64_MAX;
    return str_to_u64(soft, &n) == 0 ? n : 0;
}

void cgroup_stats_add_processes(struct cgroup_stats *s, const char *dir, const char *proc,
                                int64_t init)
{
    int64_t pids[MAX_PIDS];
    uint64_t n = list_pids(dir, 0, pids, MAX_PIDS);
    for (size_t i = 0; i < n && i < MAX_PIDS; i++)
        count_descriptors(&s->msg, proc, pids[i]);
    s->msg.open_files_soft = open_files_limit(proc, init);
}

size_t cgroup_stats_links(char *text, Aspis__Agent__V1__LinkStats *rows, size_t n)
{
    char *save = NULL;
    size_t used = 0;
    for (char *line = strtok_r(text, "\n", &save); line != NULL && used < n;
         line = strtok_r(NULL, "\n", &save)) {
        Aspis__Agent__V1__LinkStats *r = &rows[used];
        char *colon = strrchr(line, ':');
        aspis__agent__v1__link_stats__init(r);
        /* bytes packets errs drop fifo frame compressed multicast, twice */
        if (colon == NULL ||
            sscanf(colon + 1,
                   "%" SCNu64 " %" SCNu64 " %" SCNu64 " %" SCNu64 " %*u %*u %*u %*u %" SCNu64
                   " %" SCNu64 " %" SCNu64 " %" SCNu64,
                   &r->rx_bytes, &r->rx_packets, &r->rx_errors, &r->rx_dropped, &r->tx_bytes,
                   &r->tx_packets, &r->tx_errors, &r->tx_dropped) != 8)
            continue;
        *colon = '\0';
        r->name = line + strspn(line, " ");
        if (strcmp(r->name, "lo") != 0)
            used++;
    }
    return used;
}
