#include "cri/spec_host.h"

#include <linux/capability.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "cri/caps.h"

/* CapPrm and CapBnd of this process: what a child of ours can have. */
static uint64_t own_capabilities(void)
{
    auto_free char *text = fs_read("/proc/self/status", KiB(16), NULL, NULL);
    const char *permitted = text != NULL ? strstr(text, "\nCapPrm:") : NULL;
    const char *bounding = text != NULL ? strstr(text, "\nCapBnd:") : NULL;
    if (permitted == NULL || bounding == NULL)
        return UINT64_MAX;
    return strtoull(permitted + 8, NULL, 16) & strtoull(bounding + 8, NULL, 16);
}

static void keep_own(json_t *set, uint64_t own)
{
    for (size_t i = json_array_size(set); i > 0; i--) {
        int n = caps_index(json_string_value(json_array_get(set, i - 1)));
        if (n >= 0 && (own & (UINT64_C(1) << n)) == 0)
            (void)json_array_remove(set, i - 1);
    }
}

void spec_host_clamp(json_t *process)
{
    uint64_t own = own_capabilities();
    const char *key;
    json_t *set;
    json_object_foreach(json_object_get(process, "capabilities"), key, set)
    {
        keep_own(set, own);
    }
    if ((own & (UINT64_C(1) << CAP_SYS_RESOURCE)) != 0)
        return;
    struct rlimit files;
    size_t i;
    json_t *limit;
    json_array_foreach(json_object_get(process, "rlimits"), i, limit)
    {
        const char *type = json_string_value(json_object_get(limit, "type"));
        if (type == NULL || strcmp(type, "RLIMIT_NOFILE") != 0 ||
            getrlimit(RLIMIT_NOFILE, &files) < 0 ||
            (rlim_t)json_integer_value(json_object_get(limit, "hard")) <= files.rlim_max)
            continue;
        (void)json_object_set_new(limit, "hard", json_integer((json_int_t)files.rlim_max));
        (void)json_object_set_new(limit, "soft", json_integer((json_int_t)files.rlim_max));
    }
    auto_free char *text = fs_read("/proc/self/oom_score_adj", 32, NULL, NULL);
    long ours = text != NULL ? strtol(text, NULL, 10) : 0;
    json_t *adj = json_object_get(process, "oomScoreAdj");
    if (adj != NULL && json_integer_value(adj) < ours)
        (void)json_integer_set(adj, ours);
}
