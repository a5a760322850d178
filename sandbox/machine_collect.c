/*
 * Leftovers of earlier daemons: what no sandbox of the caller's list owns. QEMU is told by the uid
 * range together with its -name, which is its run directory, so that the VMs of a daemon with other
 * roots are left alone.
 */
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/spawn.h"
#include "base/str.h"
#include "proto/host_agent.h"
#include "sandbox/cgroup.h"
#include "sandbox/machine_internal.h"
#include "sandbox/qemu_argv.h"

#define KILL_WAIT_NS INT64_C(10000000000)

static bool listed(const char *id, const char *const *ids, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (strcmp(ids[i], id) == 0)
            return true;
    }
    return false;
}

/* "aspis-agent --host RUN_DIR ...", of root: the agent of a pod on the host (proto/host_agent.h).
 */
static char *host_sandbox_of(const struct machine_factory *f, const char *proc_dir)
{
    struct stat st;
    if (stat(proc_dir, &st) < 0 || st.st_uid != 0)
        return NULL;
    auto_free char *path = fs_format("%s/cmdline", proc_dir);
    size_t len = 0;
    auto_free char *args = fs_read(path, MiB(1), &len, NULL);
    static const char start[] = HOST_AGENT_NAME "\0--host";
    if (args == NULL || len <= sizeof(start) || memcmp(args, start, sizeof(start)) != 0)
        return NULL;
    auto_free char *base = fs_format("%s/sandboxes/", f->config.run_root);
    const char *dir = args + sizeof(start); /* terminated by fs_read() if by nothing else */
    return str_starts(dir, base) && strchr(dir + strlen(base), '/') == NULL
               ? xstrdup(dir + strlen(base))
               : NULL;
}

/* The id of the sandbox whose VM this process is; NULL when it is none of ours. The caller's. */
static char *sandbox_of(const struct machine_factory *f, const char *proc_dir)
{
    struct stat st;
    if (stat(proc_dir, &st) < 0 || st.st_uid < f->config.uid_base ||
        st.st_uid - f->config.uid_base >= f->config.uid_count)
        return NULL;
    auto_free char *path = fs_format("%s/cmdline", proc_dir);
    size_t len = 0;
    auto_free char *args = fs_read(path, MiB(1), &len, NULL);
    auto_free char *base = fs_format("%s/sandboxes/", f->config.run_root);
    auto_free char *escaped = qemu_escape(base);
    auto_free char *want = fs_format("guest=%s", escaped);
    for (char *p = args; p != NULL && p < args + len; p += strlen(p) + 1) {
        if (str_starts(p, want) && strchr(p + strlen(want), '/') == NULL)
            return xstrdup(p + strlen(want));
    }
    return NULL;
}

/* Kills the VMs of ours that the list does not name; with `only` those of that one sandbox. *killed
 * gets their ids. */
static int kill_strays(struct machine_factory *f, const char *const *ids, size_t n,
                       const char *only, struct strv *killed, struct cancel *cancel,
                       struct err *err)
{
    auto_closedir DIR *d = opendir("/proc");
    struct dirent *e;
    while (d != NULL && (e = readdir(d)) != NULL) {
        int64_t pid;
        if (str_to_i64(e->d_name, &pid) < 0 || pid <= 1)
            continue;
        auto_close int fd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0);
        auto_free char *dir = fs_format("/proc/%s", e->d_name);
        auto_free char *id = fd >= 0 ? sandbox_of(f, dir) : NULL;
        if (id == NULL && fd >= 0)
            id = host_sandbox_of(f, dir);
        if (id == NULL || (only != NULL ? strcmp(id, only) != 0 : listed(id, ids, n)))
            continue;
        spawn_kill_pidfd(fd);
        if (cancel_poll(cancel, fd, POLLIN, -1, err) < 0)
            return err_wrap(err, "kill stray vm %s", id);
        strv_add(killed, id);
    }
    return 0;
}

static int remove_dirs(const char *root, const char *const *ids, size_t n, struct err *err)
{
    auto_free char *base = fs_format("%s/sandboxes", root);
    auto_closedir DIR *d = opendir(base);
    struct dirent *e;
    int ret = 0;
    while (d != NULL && (e = readdir(d)) != NULL) {
        if (e->d_name[0] == '.' || listed(e->d_name, ids, n))
            continue;
        auto_free char *path = fs_format("%s/%s", base, e->d_name);
        if (fs_rm_rf(path, err) < 0)
            ret = -1;
    }
    return ret;
}

/* Groups of ours below the places pods have theirs. A group with a process in it is another
 * daemon's, unless we just killed that process and nobody has reaped it yet. */
static int remove_cgroups(struct machine_factory *f, const char *const *ids, size_t n,
                          const char *only, const struct strv *killed, struct cancel *cancel,
                          struct err *err)
{
    const char *places[] = {f->config.cgroup_root, f->spare_cgroup_root, "/kubepods",
                            "/kubepods.slice"};
    auto_strv struct strv found = {0};
    int ret = 0;
    for (size_t i = 0; i < ARRAY_LEN(places); i++)
        (void)cgroup_find(places[i], &found, NULL);
    for (size_t i = 0; i < found.n; i++) {
        const char *name = strrchr(found.v[i], '/') + 1 + strlen("aspis-");
        if ((only != NULL ? strcmp(name, only) != 0 : listed(name, ids, n)) ||
            (!listed(name, (const char *const *)killed->v, killed->n) &&
             cgroup_populated(found.v[i])))
            continue;
        if (cgroup_remove(found.v[i], machine_cgroup_root(f, found.v[i]), cancel, err) < 0)
            ret = -1;
    }
    return ret;
}

int machine_kill_stray(struct machine_factory *f, const char *id, struct cancel *cancel,
                       struct err *err)
{
    auto_strv struct strv killed = {0};
    if (kill_strays(f, NULL, 0, id, &killed, cancel, err) < 0)
        return -1;
    return remove_cgroups(f, NULL, 0, id, &killed, cancel, err);
}

int machine_collect(struct machine_factory *f, const char *const *ids, size_t n_ids,
                    struct err *err)
{
    auto_cancel struct cancel *c = cancel_new(mono_ns() + KILL_WAIT_NS, err);
    auto_strv struct strv killed = {0};
    if (c == NULL)
        return -1;
    if (kill_strays(f, ids, n_ids, NULL, &killed, c, err) < 0 ||
        remove_dirs(f->config.run_root, ids, n_ids, err) < 0 ||
        remove_dirs(f->config.state_root, ids, n_ids, err) < 0 ||
        remove_cgroups(f, ids, n_ids, NULL, &killed, c, err) < 0)
        return err_wrap(err, "collect leftovers");
    return 0;
}
