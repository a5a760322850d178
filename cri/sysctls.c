#include "cri/sysctls.h"

#include <fnmatch.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/str.h"

/* As paths below /proc/sys; fnmatch patterns; * takes slashes, too. */
static const char *const allowed[] = {
    "net/*",
    "kernel/shm*",
    "kernel/msg*",
    "kernel/sem",
    "fs/mqueue/*",
    "user/max_*",
    "fs/aio-max-nr",
    "fs/epoll/*",
    "fs/file-max",
    "fs/inotify/*",
    "fs/lease*",
    "fs/nr_open",
    "fs/pipe-*",
    "fs/protected_*",
    "kernel/core_uses_pid",
    "kernel/dmesg_restrict",
    "kernel/io_uring_*",
    "kernel/keys/*",
    "kernel/kptr_restrict",
    "kernel/numa_balancing*",
    "kernel/perf_event_*",
    "kernel/pid_max",
    "kernel/randomize_va_space",
    "kernel/sched_*",
    "kernel/threads-max",
    "kernel/unprivileged_bpf_disabled",
    "kernel/unprivileged_userns_clone",
    "kernel/yama/ptrace_scope",
    "vm/compaction_proactiveness",
    "vm/dirty*",
    "vm/hugetlb_shm_group",
    "vm/max_map_count",
    "vm/mmap_rnd_*",
    "vm/nr_hugepages",
    "vm/nr_overcommit_hugepages",
    "vm/overcommit_*",
    "vm/page-cluster",
    "vm/stat_interval",
    "vm/swappiness",
    "vm/unprivileged_userfaultfd",
    "vm/vfs_cache_pressure",
    "vm/watermark_*",
    "vm/zone_reclaim_mode",
};

/* As sysctl(8) does it: whichever of dot and slash comes first separates, the other one is part of
 * a name ("net.ipv4.conf.eth0/7.forwarding"). NULL: no name. */
static char *as_path(const char *name)
{
    size_t n = strlen(name);
    if (n == 0 || n > LIMIT_NAME)
        return NULL;
    auto_free char *path = xstrdup(name);
    bool dots = name[strcspn(name, "./")] == '.';
    for (char *c = path; *c != '\0'; c++) {
        if (*c <= ' ' || *c > '~')
            return NULL;
        if (dots)
            *c = (char)(*c == '.' ? '/' : *c == '/' ? '.' : *c);
    }
    for (const char *part = path;; part++) {
        size_t len = strcspn(part, "/");
        if (len == 0 || (len <= 2 && strspn(part, ".") == len))
            return NULL;
        part += len;
        if (*part == '\0')
            return take(path);
    }
}

typedef Runtime__V1__LinuxPodSandboxConfig__SysctlsEntry Entry;

static int check(const Entry *kv, struct err *err)
{
    auto_free char *path = as_path(kv->key);
    if (path == NULL)
        return err_set(err, ERR_INVALID, "\"%.200s\" is no sysctl's name", kv->key);
    bool known = false;
    for (size_t i = 0; !known && i < ARRAY_LEN(allowed); i++)
        known = fnmatch(allowed[i], path, 0) == 0;
    if (!known)
        return err_set(err, ERR_PRECONDITION,
                       "sysctl %s may not be set for a pod; allowed are net.*, kernel.shm*, "
                       "kernel.msg*, kernel.sem, fs.mqueue.* and what tunes the pod's own kernel "
                       "(cri/README.md)",
                       kv->key);
    if (*kv->value == '\0' || strlen(kv->value) > LIMIT_SYSCTL_VALUE)
        return err_set(err, ERR_INVALID, "sysctl %s: a value of %zu bytes", kv->key,
                       strlen(kv->value));
    return 0;
}

int sysctls_check(const Runtime__V1__LinuxPodSandboxConfig *pod, struct err *err)
{
    if (pod == NULL)
        return 0;
    if (pod->n_sysctls > LIMIT_POD_SYSCTLS)
        return err_set(err, ERR_INVALID, "more than %d sysctls", LIMIT_POD_SYSCTLS);
    for (size_t i = 0; i < pod->n_sysctls; i++) {
        if (check(pod->sysctls[i], err) < 0)
            return -1;
    }
    return 0;
}
