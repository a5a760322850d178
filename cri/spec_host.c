#include "cri/spec_host.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "cri/spec_internal.h"

#define MAX_DEVICES 4096
#define MAX_DEPTH 16

/* --- devices --- */

static int add_device(json_t *devices, const char *path, const struct stat *st, struct err *err)
{
    if (json_array_size(devices) >= MAX_DEVICES)
        return err_set(err, ERR_EXHAUSTED, "more than %d devices", MAX_DEVICES);
    json_t *d = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "path", path, "type",
                          S_ISBLK(st->st_mode) ? "b" : "c", "major", (json_int_t)major(st->st_rdev),
                          "minor", (json_int_t)minor(st->st_rdev), "fileMode",
                          (json_int_t)(st->st_mode & 07777), "uid", (json_int_t)st->st_uid, "gid",
                          (json_int_t)st->st_gid);
    return json_array_append_new(devices, d) < 0
               ? err_set(err, ERR_INVALID, "device %.200s cannot be put into a spec", path)
               : 0;
}

static bool is_device(const struct stat *st)
{
    return S_ISBLK(st->st_mode) || S_ISCHR(st->st_mode);
}

static int add_rule(json_t *rules, const struct stat *st, const char *access, struct err *err)
{
    json_t *rule = json_pack(
        "{s:b, s:s, s:I, s:I, s:s}", "allow", 1, "type", S_ISBLK(st->st_mode) ? "b" : "c", "major",
        (json_int_t)major(st->st_rdev), "minor", (json_int_t)minor(st->st_rdev), "access", access);
    return json_array_append_new(rules, rule) < 0 ? err_set(err, ERR_EXHAUSTED, "out of memory")
                                                  : 0;
}

/* What is the container's own, as in other runtimes. */
static bool is_private(const char *name)
{
    static const char *const names[] = {"pts",         "shm",   "fd",      "mqueue", ".lxc",
                                        ".lxd-mounts", ".udev", "console", "ptmx"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        if (strcmp(name, names[i]) == 0)
            return true;
    }
    return false;
}

struct walk {
    json_t *devices;
    json_t *rules; /* NULL: none wanted */
    const char *access;
};

static int walk_dir(const struct walk *w, const char *from, const char *to, int depth,
                    struct err *err)
{
    auto_closedir DIR *d = opendir(from);
    const struct dirent *e;
    while (d != NULL && depth < MAX_DEPTH && (e = readdir(d)) != NULL) {
        struct stat st;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 ||
            (depth == 0 && is_private(e->d_name)) ||
            fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        auto_free char *sub_from = fs_format("%s/%s", from, e->d_name);
        auto_free char *sub_to = fs_format("%s/%s", to, e->d_name);
        if (S_ISDIR(st.st_mode) && walk_dir(w, sub_from, sub_to, depth + 1, err) < 0)
            return -1;
        if (is_device(&st) && (add_device(w->devices, sub_to, &st, err) < 0 ||
                               (w->rules != NULL && add_rule(w->rules, &st, w->access, err) < 0)))
            return -1;
    }
    return 0;
}

int spec_host_all_devices(json_t *devices, struct err *err)
{
    struct walk w = {.devices = devices};
    return walk_dir(&w, "/dev", "/dev", 0, err);
}

int spec_host_device(const Runtime__V1__Device *d, json_t *devices, json_t *rules, struct err *err)
{
    struct stat st;
    const char *access = d->permissions;
    if (str_empty(access) || strlen(access) > 3 || strspn(access, "rwm") != strlen(access))
        return err_set(err, ERR_INVALID, "device %.200s: permissions \"%.16s\" are not of r, w, m",
                       d->host_path, access);
    if (d->host_path[0] != '/' || d->container_path[0] != '/')
        return err_set(err, ERR_INVALID, "device %.200s: paths must be absolute", d->host_path);
    if (stat(d->host_path, &st) < 0)
        return err_sys(err, errno, "device %.200s", d->host_path);
    struct walk w = {.devices = devices, .rules = rules, .access = access};
    if (S_ISDIR(st.st_mode))
        return walk_dir(&w, d->host_path, d->container_path, 1, err);
    if (!is_device(&st))
        return err_set(err, ERR_INVALID, "device %.200s: it is no device", d->host_path);
    return add_device(devices, d->container_path, &st, err) < 0 ? -1
                                                                : add_rule(rules, &st, access, err);
}

/* --- what can be given --- */

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
        int n = spec_capability_number(json_string_value(json_array_get(set, i - 1)));
        if (n >= 0 && (own & (UINT64_C(1) << n)) == 0)
            (void)json_array_remove(set, i - 1);
    }
}

void spec_host_clamp(json_t *process)
{
    uint64_t own = own_capabilities();
    const char *key;
    json_t *set;
    json_object_foreach(json_object_get(process, "capabilities"), key, set) keep_own(set, own);
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
