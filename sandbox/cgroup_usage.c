#include "sandbox/cgroup_usage.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"

static char *read_file(const char *dir, const char *name)
{
    auto_free char *path = fs_format("%s/%s", dir, name);
    return path != NULL ? fs_read(path, KiB(64), NULL, NULL) : NULL;
}

static bool read_number(const char *dir, const char *name, uint64_t *n)
{
    auto_free char *text = read_file(dir, name);
    if (text == NULL)
        return false;
    text[strcspn(text, "\n")] = '\0';
    return str_to_u64(text, n) == 0;
}

struct wanted {
    const char *key;
    uint64_t *to;
};

/* A file of lines "key number". */
static bool read_keyed(const char *dir, const char *name, const struct wanted *w, size_t n)
{
    auto_free char *text = read_file(dir, name);
    char *save = NULL;
    if (text == NULL)
        return false;
    for (char *line = strtok_r(text, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        char *value = strchr(line, ' ');
        if (value == NULL)
            continue;
        *value++ = '\0';
        for (size_t i = 0; i < n; i++) {
            if (strcmp(line, w[i].key) == 0)
                (void)str_to_u64(value, w[i].to);
        }
    }
    return true;
}

static void take_cpu(const char *dir, struct machine_usage *u)
{
    uint64_t us = 0;
    const struct wanted v2[] = {{"usage_usec", &us}};
    uint64_t ns = 0;
    if (read_number(dir, "cpuacct.usage", &ns)) { /* version 1: nanoseconds */
        u->cpu_ns = ns;
        u->has_cpu = true;
    } else if (!u->has_cpu && read_keyed(dir, "cpu.stat", v2, ARRAY_LEN(v2)) && us > 0) {
        u->cpu_ns = us * 1000;
        u->has_cpu = true;
    }
}

static void take_memory(const char *dir, struct machine_usage *u)
{
    uint64_t inactive = 0;
    const struct wanted v1[] = {{"total_inactive_file", &inactive},
                                {"total_rss", &u->memory_rss},
                                {"total_pgfault", &u->page_faults},
                                {"total_pgmajfault", &u->major_faults}};
    const struct wanted v2[] = {{"inactive_file", &inactive},
                                {"anon", &u->memory_rss},
                                {"pgfault", &u->page_faults},
                                {"pgmajfault", &u->major_faults}};
    if (read_number(dir, "memory.usage_in_bytes", &u->memory_usage))
        (void)read_keyed(dir, "memory.stat", v1, ARRAY_LEN(v1));
    else if (read_number(dir, "memory.current", &u->memory_usage))
        (void)read_keyed(dir, "memory.stat", v2, ARRAY_LEN(v2));
    else
        return;
    u->has_memory = true;
    u->memory_working_set = u->memory_usage > inactive ? u->memory_usage - inactive : 0;
}

void cgroup_usage(const struct strv *dirs, struct machine_usage *u)
{
    *u = (struct machine_usage){0};
    for (size_t i = 0; i < dirs->n; i++) {
        take_cpu(dirs->v[i], u);
        take_memory(dirs->v[i], u);
    }
}
