#include "agent/pod_cgroup.h"

#include <stdlib.h>
#include <string.h>

#include "agent/container_cgroup.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"

#define CGROUP_MOUNT "/sys/fs/cgroup"

void cgroup_make_pod(void)
{
    static const char *const wanted[] = {"+cpuset", "+cpu", "+io", "+memory", "+hugetlb", "+pids"};
    static const char control[] = CGROUP_MOUNT "/cgroup.subtree_control";
    auto_err struct err err = ERR_INIT;
    for (size_t i = 0; i < ARRAY_LEN(wanted); i++)
        (void)fs_write_str(control, wanted[i], NULL); /* what the kernel has */
    if (fs_mkdir_p(CGROUP_MOUNT "/pod", 0755, &err) < 0)
        log_error("cannot make the pod's control group", LOG_STR("error", err_msg(&err)));
}

uint64_t cgroup_memory_current(const char *id)
{
    auto_free char *path = cgroup_file(id, "memory.current");
    auto_free char *text = fs_read(path, 64, NULL, NULL);
    uint64_t n = 0;
    if (text != NULL)
        text[strcspn(text, "\n")] = '\0';
    return text != NULL && str_to_u64(text, &n) == 0 ? n : 0;
}

static uint64_t stat_value(const char *text, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = text; p != NULL; p = strchr(p, '\n')) {
        if (*p == '\n')
            p++;
        if (strncmp(p, name, n) == 0 && p[n] == ' ')
            return (uint64_t)strtoull(p + n, NULL, 10);
    }
    return 0;
}

uint64_t cgroup_memory_used(const char *id)
{
    auto_free char *path = cgroup_file(id, "memory.stat");
    auto_free char *text = fs_read(path, KiB(16), NULL, NULL);
    uint64_t all = cgroup_memory_current(id);
    uint64_t cache = stat_value(text, "inactive_file") + stat_value(text, "active_file") +
                     stat_value(text, "slab_reclaimable");
    return all > cache ? all - cache : 0;
}
