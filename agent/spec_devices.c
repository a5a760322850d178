#include "agent/spec_devices.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

/* Directories below /dev within one another. */
#define DEPTH 8

static bool is_device(const struct stat *st)
{
    return S_ISCHR(st->st_mode) || S_ISBLK(st->st_mode);
}

/* The member as a list, made when it is missing. */
static json_t *list_of(json_t *object, const char *key)
{
    if (!json_is_array(json_object_get(object, key)))
        (void)json_object_set_new(object, key, json_array());
    return json_object_get(object, key);
}

static int add_node(json_t *devices, const char *path, const struct stat *st, struct err *err)
{
    json_t *node = json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:I, s:I}", "path", path, "type",
        S_ISBLK(st->st_mode) ? "b" : "c", "major", (json_int_t)major(st->st_rdev), "minor",
        (json_int_t)minor(st->st_rdev), "fileMode", (json_int_t)(st->st_mode & 0777), "uid",
        (json_int_t)st->st_uid, "gid", (json_int_t)st->st_gid);
    if (json_array_append_new(devices, node) < 0)
        return err_set(err, ERR_INVALID, "device %.200s: not a path for a spec", path);
    return 0;
}

static int allow(json_t *linux_object, const struct stat *st, const char *access, struct err *err)
{
    json_t *resources = json_object_get(linux_object, "resources");
    if (!json_is_object(resources)) {
        (void)json_object_set_new(linux_object, "resources", json_object());
        resources = json_object_get(linux_object, "resources");
    }
    json_t *rule = json_pack(
        "{s:b, s:s, s:I, s:I, s:s}", "allow", 1, "type", S_ISBLK(st->st_mode) ? "b" : "c", "major",
        (json_int_t)major(st->st_rdev), "minor", (json_int_t)minor(st->st_rdev), "access", access);
    if (json_array_append_new(list_of(resources, "devices"), rule) < 0)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    return 0;
}

int spec_add_device(json_t *linux_object, const Aspis__Agent__V1__Device *d, struct err *err)
{
    struct stat st;
    const char *rest = d->path + strlen("/dev/");
    if (!str_starts(d->path, "/dev/") || strstr(rest, "..") != NULL ||
        strlen(d->path) >= LIMIT_PATH || d->container_path[0] != '/' ||
        strlen(d->container_path) >= LIMIT_PATH)
        return err_set(err, ERR_INVALID, "device %.200s: not a device's path", d->path);
    size_t n = strlen(d->permissions);
    if (n == 0 || n > 3 || strspn(d->permissions, "rwm") != n)
        return err_set(err, ERR_INVALID, "device %.200s: permissions \"%.16s\"", d->path,
                       d->permissions);
    auto_close int dev = open("/dev", O_PATH | O_DIRECTORY | O_CLOEXEC);
    auto_close int fd = dev >= 0 ? fs_open_in_root(dev, rest, O_PATH, 0, NULL) : -1;
    if (fd < 0 || fstat(fd, &st) < 0 || !is_device(&st))
        return err_set(err, ERR_NOT_FOUND, "there is no device %.200s", d->path);
    if (add_node(list_of(linux_object, "devices"), d->container_path, &st, err) < 0)
        return -1;
    return allow(linux_object, &st, d->permissions, err);
}

/* What the OCI runtime makes for every container, terminals of others, and the daemon's ports. */
static bool is_left_out(const char *name)
{
    static const char *const names[] = {"console", "fd",           "full",   "mqueue", "null",
                                        "ptmx",    "pts",          "random", "shm",    "tty",
                                        "urandom", "virtio-ports", "zero"};
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        if (strcmp(name, names[i]) == 0)
            return true;
    }
    return str_starts(name, "vport");
}

static int walk(json_t *devices, const char *dir, const char *as, int depth, struct err *err)
{
    auto_closedir DIR *d = opendir(dir);
    const struct dirent *e;
    while (d != NULL && depth < DEPTH && (e = readdir(d)) != NULL) {
        struct stat st;
        if (e->d_name[0] == '.' || (depth == 0 && is_left_out(e->d_name)) ||
            fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        auto_free char *path = fs_format("%s/%s", dir, e->d_name);
        auto_free char *name = fs_format("%s/%s", as, e->d_name);
        if (S_ISDIR(st.st_mode) && walk(devices, path, name, depth + 1, err) < 0)
            return -1;
        if (is_device(&st) && add_node(devices, name, &st, err) < 0)
            return -1;
    }
    return 0;
}

int spec_add_all_devices(json_t *linux_object, const char *dir, struct err *err)
{
    return walk(list_of(linux_object, "devices"), dir, "/dev", 0, err);
}
