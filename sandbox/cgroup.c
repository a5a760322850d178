#include "sandbox/cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/spawn.h"

#define PREFIX "aspis-"
#define MAX_DEPTH 16
#define REMOVE_ROUNDS 64
#define REAP_WAIT_MS 10

/* --- paths --- */

static int bad_parent(const char *parent, struct err *err)
{
    return err_set(err, ERR_INVALID, "cgroup parent \"%.100s\" is malformed", parent);
}

/* No empty, "." or ".." component, nothing but printable ASCII. */
static bool path_ok(const char *p)
{
    size_t len = strlen(p);
    if (p[0] != '/' || len >= LIMIT_PATH / 2)
        return false;
    for (const char *c = p; *c != '\0'; c++) {
        if (*c <= ' ' || *c > '~')
            return false;
        if (*c != '/')
            continue;
        if (c[1] == '/' || (c[1] == '.' && (c[2] == '/' || c[2] == '\0')) ||
            (c[1] == '.' && c[2] == '.' && (c[3] == '/' || c[3] == '\0')))
            return false;
    }
    return true;
}

/* systemd's rule: each dash in a slice's name is one more level (systemd.slice(5)). */
static char *expand_slice(const char *name, struct err *err)
{
    size_t len = strlen(name) - strlen(".slice");
    if (strcmp(name, "-.slice") == 0)
        return xstrdup("/");
    if (len == 0 || len > 200 || name[0] == '-' || name[len - 1] == '-' ||
        strstr(name, "--") != NULL || strchr(name, '/') != NULL) {
        (void)bad_parent(name, err);
        return NULL;
    }
    auto_buf struct buf out = BUF_INIT(LIMIT_PATH * 4);
    for (size_t i = 1; i <= len; i++) {
        if (i == len || name[i] == '-')
            (void)buf_printf(&out, "/%.*s.slice", (int)i, name);
    }
    return buf_take(&out);
}

static bool id_ok(const char *id)
{
    size_t n = strlen(id);
    return n > 0 && n <= 128 && id[0] != '.' &&
           strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == n;
}

char *cgroup_path(const char *parent, const char *default_parent, const char *id, struct err *err)
{
    if (!id_ok(id)) {
        (void)err_set(err, ERR_INVALID, "sandbox id \"%.100s\" is malformed", id);
        return NULL;
    }
    if (str_empty(parent))
        parent = default_parent;
    auto_free char *at = NULL;
    if (parent[0] != '/' && str_ends(parent, ".slice"))
        at = expand_slice(parent, err);
    else if (path_ok(parent))
        at = xstrdup(parent);
    else
        (void)bad_parent(parent, err);
    if (at == NULL)
        return NULL;
    if (!path_ok(at)) {
        (void)bad_parent(parent, err);
        return NULL;
    }
    size_t n = strlen(at);
    while (n > 0 && at[n - 1] == '/')
        at[--n] = '\0';
    return fs_format("%s/" PREFIX "%s", at, id);
}

/* --- hierarchies --- */

struct hierarchy {
    char *mount;
    bool v2;
    dev_t dev;
};

struct hierarchies {
    struct hierarchy v[64];
    size_t n;
};

static void hierarchies_clear(struct hierarchies *h)
{
    for (size_t i = 0; i < h->n; i++)
        free(h->v[i].mount);
    h->n = 0;
}
#define auto_hierarchies __attribute__((cleanup(hierarchies_clear)))

/* One line of proc_pid_mountinfo(5): "... mountpoint options [fields] - type source options". */
static void take_mount(struct hierarchies *h, char *line)
{
    char *dash = strstr(line, " - cgroup");
    if (dash == NULL || h->n == ARRAY_LEN(h->v))
        return;
    bool v2 = strncmp(dash + 3, "cgroup2 ", 8) == 0;
    if (!v2 && strncmp(dash + 3, "cgroup ", 7) != 0)
        return;
    char *save = NULL;
    char *field = strtok_r(line, " ", &save);
    for (int i = 1; field != NULL && i < 5; i++)
        field = strtok_r(NULL, " ", &save);
    struct stat st;
    if (field == NULL || strchr(field, '\\') != NULL || stat(field, &st) < 0)
        return;
    for (size_t i = 0; i < h->n; i++) {
        if (h->v[i].dev == st.st_dev) /* mounted twice */
            return;
    }
    h->v[h->n++] = (struct hierarchy){.mount = xstrdup(field), .v2 = v2, .dev = st.st_dev};
}

static int find_hierarchies(struct hierarchies *h, struct err *err)
{
    auto_free char *text = fs_read("/proc/self/mountinfo", MiB(4), NULL, err);
    if (text == NULL)
        return -1;
    char *save = NULL;
    for (char *line = strtok_r(text, "\n", &save); line != NULL; line = strtok_r(NULL, "\n", &save))
        take_mount(h, line);
    if (h->n == 0)
        return err_set(err, ERR_PRECONDITION, "no cgroup file system is mounted");
    return 0;
}

/* --- making --- */

/* Version 1's cpuset takes no process before it has cpus and memory nodes: the parent's. */
static int fill_cpuset(const char *parent, const char *dir, struct err *err)
{
    static const char *const files[] = {"cpuset.cpus", "cpuset.mems"};
    for (size_t i = 0; i < ARRAY_LEN(files); i++) {
        auto_free char *mine = fs_format("%s/%s", dir, files[i]);
        auto_free char *theirs = fs_format("%s/%s", parent, files[i]);
        if (!fs_exists(mine))
            return 0;
        auto_free char *now = fs_read(mine, KiB(16), NULL, err);
        if (now == NULL)
            return -1;
        if (now[0] != '\0' && now[0] != '\n')
            continue;
        auto_free char *value = fs_read(theirs, KiB(16), NULL, err);
        if (value == NULL || fs_write_str(mine, value, err) < 0)
            return -1;
    }
    return 0;
}

/* So that the new group can be accounted by itself. A controller that cannot be passed on
 * (another's choice, or threads in the parent) only costs detail: the parent's limits hold all the
 * same. */
static void pass_controllers(const char *dir)
{
    static const char *const wanted[] = {"+cpu", "+memory", "+pids", "+io", "+cpuset", "+hugetlb"};
    auto_free char *file = fs_format("%s/cgroup.subtree_control", dir);
    for (size_t i = 0; i < ARRAY_LEN(wanted); i++)
        (void)fs_write_str(file, wanted[i], NULL);
}

static int make_level(const struct hierarchy *h, const char *parent, const char *dir,
                      struct err *err)
{
    if (h->v2)
        pass_controllers(parent);
    if (mkdir(dir, 0755) < 0 && errno != EEXIST)
        return err_sys(err, errno, "make cgroup %s", dir);
    return h->v2 ? 0 : fill_cpuset(parent, dir, err);
}

static int make_in(const struct hierarchy *h, const char *path, struct strv *dirs, struct err *err)
{
    auto_free char *dir = fs_format("%s%s", h->mount, path);
    auto_free char *parent = xstrdup(h->mount);
    size_t base = strlen(h->mount);
    for (size_t i = base + 1;; i++) {
        if (dir[i] != '/' && dir[i] != '\0')
            continue;
        char end = dir[i];
        dir[i] = '\0';
        if (make_level(h, parent, dir, err) < 0)
            return -1;
        free(parent);
        parent = xstrdup(dir);
        dir[i] = end;
        if (end == '\0')
            break;
    }
    strv_add(dirs, dir);
    return 0;
}

int cgroup_create(const char *path, struct strv *dirs, struct err *err)
{
    auto_hierarchies struct hierarchies h = {.n = 0};
    if (find_hierarchies(&h, err) < 0)
        return -1;
    for (size_t i = 0; i < h.n; i++) {
        auto_err struct err e = ERR_INIT;
        int ret = make_in(&h.v[i], path, dirs, &e);
        /* a concurrent removal of the common parent can come between two levels: once more */
        if (ret < 0 && e.code == ERR_NOT_FOUND) {
            err_clear(&e);
            ret = make_in(&h.v[i], path, dirs, &e);
        }
        if (ret < 0) {
            (void)cgroup_remove(path, NULL, NULL, NULL);
            strv_clear(dirs);
            return err_move(err, &e);
        }
    }
    return 0;
}

/* --- setting --- */

/* Version 1 knows no "as the parent": its value is copied. */
static int set_cpuset_in(const struct hierarchy *h, const char *dir, const char *file,
                         const char *value, struct err *err)
{
    auto_err struct err e = ERR_INIT;
    auto_free char *path = fs_format("%s/%s", dir, file);
    auto_free char *above = NULL;
    const char *text = value[0] != '\0' ? value : "\n";
    if (!h->v2 && value[0] == '\0') {
        auto_free char *parent = xstrdup(dir);
        *strrchr(parent, '/') = '\0';
        auto_free char *theirs = fs_format("%s/%s", parent, file);
        if ((above = fs_read(theirs, KiB(16), NULL, err)) == NULL)
            return -1;
        text = above;
    }
    if (fs_write_str(path, text, &e) == 0)
        return 0;
    if (e.sys_errno == EINVAL || e.sys_errno == ERANGE || e.sys_errno == EACCES)
        return err_set(err, ERR_INVALID, "the host refuses %s = \"%.64s\": %s", file, value,
                       strerror(e.sys_errno));
    return err_move(err, &e);
}

int cgroup_set_cpuset(const char *path, const char *file, const char *value, struct err *err)
{
    auto_hierarchies struct hierarchies h = {.n = 0};
    if (find_hierarchies(&h, err) < 0)
        return -1;
    for (size_t i = 0; i < h.n; i++) {
        auto_free char *dir = fs_format("%s%s", h.v[i].mount, path);
        auto_free char *at = fs_format("%s/%s", dir, file);
        if (!fs_exists(at))
            continue;
        /* untouched as long as nobody asks for something else */
        auto_free char *now = fs_read(at, KiB(16), NULL, err);
        if (now == NULL)
            return -1;
        now[strcspn(now, "\n")] = '\0';
        return strcmp(now, value) == 0 ? 0 : set_cpuset_in(&h.v[i], dir, file, value, err);
    }
    return value[0] == '\0'
               ? 0
               : err_set(err, ERR_PRECONDITION, "the host has no cpuset controller for pods");
}

/* "max" in version 2, a number beyond all memory in version 1: none. */
static uint64_t limit_of(const char *dir, bool v2)
{
    uint64_t n = 0;
    auto_free char *file = fs_format("%s/%s", dir, v2 ? "memory.max" : "memory.limit_in_bytes");
    auto_free char *text = fs_read(file, 64, NULL, NULL);
    if (text == NULL)
        return UINT64_MAX;
    text[strcspn(text, "\n")] = '\0';
    return str_to_u64(text, &n) == 0 ? n : UINT64_MAX;
}

uint64_t cgroup_memory_limit(const char *path)
{
    auto_hierarchies struct hierarchies h = {.n = 0};
    uint64_t least = UINT64_MAX;
    if (find_hierarchies(&h, NULL) < 0)
        return least;
    for (size_t i = 0; i < h.n; i++) {
        auto_free char *dir = fs_format("%s%s", h.v[i].mount, path);
        size_t base = strlen(h.v[i].mount);
        for (char *slash = strrchr(dir, '/'); slash != NULL && (size_t)(slash - dir) > base;
             slash = strrchr(dir, '/')) {
            *slash = '\0';
            uint64_t n = limit_of(dir, h.v[i].v2);
            if (n < least)
                least = n;
        }
    }
    return least;
}

/* --- removing --- */

/* Kills each process of the group and waits until it is gone. *any tells whether there was one. */
static int kill_members(const char *dir, bool *any, struct cancel *cancel, struct err *err)
{
    auto_free char *file = fs_format("%s/cgroup.procs", dir);
    size_t len = 0;
    auto_free char *text = fs_read(file, MiB(1), &len, NULL);
    char *save = NULL;
    *any = false;
    for (char *line = len > 0 ? strtok_r(text, "\n", &save) : NULL; line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        int64_t pid;
        if (str_to_i64(line, &pid) < 0 || pid <= 1 || pid == getpid())
            continue;
        *any = true;
        auto_close int fd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0);
        if (fd < 0)
            continue;
        spawn_kill_pidfd(fd);
        if (cancel_poll(cancel, fd, POLLIN, -1, err) < 0)
            return -1;
    }
    return 0;
}

typedef int (*dir_fn)(const char *dir, void *arg);

/* Calls fn for each directory in `dir`, stops at its first failure. */
static int each_sub(const char *dir, dir_fn fn, void *arg)
{
    auto_closedir DIR *d = opendir(dir);
    const struct dirent *e;
    int ret = 0;
    while (ret == 0 && d != NULL && (e = readdir(d)) != NULL) {
        if (e->d_type != DT_DIR || e->d_name[0] == '.')
            continue;
        auto_free char *sub = fs_format("%s/%s", dir, e->d_name);
        ret = fn(sub, arg);
    }
    return ret;
}

struct removal {
    struct cancel *cancel;
    struct err *err;
    int depth;
};

static int remove_one(const char *dir, struct cancel *cancel, struct err *err);

/* Children first: a container makes groups below its own as deep as it likes. */
static int remove_sub(const char *dir, void *arg)
{
    const struct removal *r = arg;
    struct removal below = {.cancel = r->cancel, .err = r->err, .depth = r->depth + 1};
    if (below.depth > MAX_DEPTH)
        return err_set(r->err, ERR_EXHAUSTED, "cgroup %s lies too deep", dir);
    return each_sub(dir, remove_sub, &below) < 0 ? -1 : remove_one(dir, r->cancel, r->err);
}

static int remove_dir(const char *dir, struct cancel *cancel, struct err *err)
{
    struct removal top = {.cancel = cancel, .err = err};
    return remove_sub(dir, &top);
}

static int remove_one(const char *dir, struct cancel *cancel, struct err *err)
{
    for (int i = 0; i < REMOVE_ROUNDS; i++) {
        if (rmdir(dir) == 0 || errno == ENOENT)
            return 0;
        int why = errno;
        bool any = false;
        if (kill_members(dir, &any, cancel, err) < 0)
            return err_wrap(err, "empty cgroup %s", dir);
        if (!any && rmdir(dir) < 0 && errno != ENOENT && i > 0)
            return err_sys(err, why, "remove cgroup %s", dir);
        /* a killed process stays a member until its parent, which may be init, has reaped it;
         * no kernel of Debian 12 tells us when that happened */
        if (any && i > 0 && cancel_poll(cancel, -1, 0, REAP_WAIT_MS, err) < 0)
            return err_wrap(err, "empty cgroup %s", dir);
    }
    return err_set(err, ERR_UNAVAILABLE, "cgroup %s does not become empty", dir);
}

int cgroup_remove(const char *path, const char *default_parent, struct cancel *cancel,
                  struct err *err)
{
    auto_hierarchies struct hierarchies h = {.n = 0};
    if (strstr(path, "/" PREFIX) == NULL || !path_ok(path))
        return err_set(err, ERR_INVALID, "\"%.100s\" is no cgroup of ours", path);
    if (find_hierarchies(&h, err) < 0)
        return -1;
    int ret = 0;
    for (size_t i = 0; i < h.n; i++) {
        auto_free char *dir = fs_format("%s%s", h.v[i].mount, path);
        auto_err struct err e = ERR_INIT;
        if (remove_dir(dir, cancel, &e) < 0)
            ret = err_move(err, &e);
        if (default_parent != NULL && strlen(default_parent) > 1 &&
            str_starts(path, default_parent)) {
            auto_free char *parent = fs_format("%s%s", h.v[i].mount, default_parent);
            (void)rmdir(parent);
        }
    }
    return ret;
}

/* --- killing --- */

static void signal_all(const char *dir)
{
    auto_free char *file = fs_format("%s/cgroup.procs", dir);
    auto_free char *text = fs_read(file, MiB(1), NULL, NULL);
    char *save = NULL;
    for (char *line = text != NULL ? strtok_r(text, "\n", &save) : NULL; line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        int64_t pid;
        if (str_to_i64(line, &pid) == 0 && pid > 1 && pid != getpid())
            (void)kill((pid_t)pid, SIGKILL);
    }
}

static int kill_tree(const char *dir, void *arg)
{
    int depth = *(const int *)arg + 1;
    signal_all(dir);
    return depth < MAX_DEPTH ? each_sub(dir, kill_tree, &depth) : 0;
}

static int set_frozen(const char *dir, void *arg)
{
    auto_free char *file = fs_format("%s/freezer.state", dir);
    (void)fs_write_str(file, arg, NULL);
    return 0;
}

/* Version 1 has no kill file. What is frozen cannot fork away from the signal, which it gets when
 * it is thawed; a child born just before is met by the second round. */
static void kill_v1(const char *dir)
{
    char frozen[] = "FROZEN";
    char thawed[] = "THAWED";
    int depth = 0;
    (void)set_frozen(dir, frozen);
    (void)kill_tree(dir, &depth);
    (void)kill_tree(dir, &depth);
    (void)set_frozen(dir, thawed);
}

void cgroup_kill(const char *path)
{
    auto_hierarchies struct hierarchies h = {.n = 0};
    if (!path_ok(path) || find_hierarchies(&h, NULL) < 0)
        return;
    for (size_t i = 0; i < h.n; i++) {
        auto_free char *dir = fs_format("%s%s", h.v[i].mount, path);
        auto_free char *file = fs_format("%s/cgroup.kill", dir);
        if (!fs_exists(dir))
            continue;
        if (!h.v[i].v2 || fs_write_str(file, "1", NULL) < 0)
            kill_v1(dir);
    }
}

/* --- spare VMs --- */

void cgroup_make_modest(const char *path)
{
    static const char *const files[][2] = {{"cpu.weight", "10"}, {"cpu.shares", "102"}};
    auto_hierarchies struct hierarchies h = {.n = 0};
    if (!path_ok(path) || find_hierarchies(&h, NULL) < 0)
        return;
    for (size_t i = 0; i < h.n; i++) {
        bool done = false;
        for (size_t k = 0; k < ARRAY_LEN(files) && !done; k++) {
            auto_free char *file = fs_format("%s%s/%s", h.v[i].mount, path, files[k][0]);
            done = fs_exists(file) && fs_write_str(file, files[k][1], NULL) == 0;
        }
    }
}

/* A process that ends meanwhile need not be moved, and one that is born is its parent's like. */
static int move_members(const char *from, const char *to, struct err *err)
{
    auto_free char *source = fs_format("%s/cgroup.procs", from);
    auto_free char *target = fs_format("%s/cgroup.procs", to);
    for (int i = 0; i < REMOVE_ROUNDS; i++) {
        size_t len = 0;
        auto_free char *text = fs_read(source, MiB(1), &len, err);
        if (text == NULL)
            return -1;
        if (len == 0)
            return 0;
        char *save = NULL;
        for (char *line = strtok_r(text, "\n", &save); line != NULL;
             line = strtok_r(NULL, "\n", &save)) {
            auto_err struct err why = ERR_INIT;
            if (fs_write_str(target, line, &why) < 0 && why.sys_errno != ESRCH)
                return err_move(err, &why);
        }
    }
    return err_set(err, ERR_UNAVAILABLE, "cgroup %s does not become empty", from);
}

/* Bytes charged to a group, if this is the hierarchy that knows. */
static uint64_t charged(const char *dir)
{
    static const char *const files[] = {"memory.usage_in_bytes", "memory.current"};
    uint64_t bytes = 0;
    for (size_t i = 0; i < ARRAY_LEN(files); i++) {
        auto_free char *file = fs_format("%s/%s", dir, files[i]);
        auto_free char *text = fs_exists(file) ? fs_read(file, 64, NULL, NULL) : NULL;
        if (text != NULL) {
            text[strcspn(text, "\n")] = '\0';
            (void)str_to_u64(text, &bytes);
        }
    }
    return bytes;
}

int cgroup_move(const char *from, const char *to, const char *default_parent, uint64_t *left,
                struct cancel *cancel, struct err *err)
{
    auto_hierarchies struct hierarchies h = {.n = 0};
    auto_strv struct strv dirs = {0};
    if (left != NULL)
        *left = 0;
    if (strcmp(from, to) == 0)
        return 0;
    if (strstr(to, "/" PREFIX) == NULL || !path_ok(to))
        return err_set(err, ERR_INVALID, "\"%.100s\" is no cgroup of ours", to);
    if (find_hierarchies(&h, err) < 0 || cgroup_create(to, &dirs, err) < 0)
        return -1;
    for (size_t i = 0; i < h.n; i++) {
        auto_free char *source = fs_format("%s%s", h.v[i].mount, from);
        auto_free char *target = fs_format("%s%s", h.v[i].mount, to);
        auto_free char *charges = fs_format("%s/memory.move_charge_at_immigrate", target);
        /* 1: their own memory, 2: of files */
        if (fs_exists(charges))
            (void)fs_write_str(charges, "3", NULL);
        if (move_members(source, target, err) < 0)
            return err_wrap(err, "move cgroup %s to %s", from, to);
        if (left != NULL)
            *left += charged(source);
    }
    return cgroup_remove(from, default_parent, cancel, err);
}

/* --- finding --- */

/* 1: a process is there; as each_sub() wants it, that stops the search. */
static int populated(const char *dir, void *arg)
{
    int depth = *(const int *)arg + 1;
    auto_free char *procs = fs_format("%s/cgroup.procs", dir);
    size_t len = 0;
    auto_free char *text = fs_read(procs, MiB(1), &len, NULL);
    if (text != NULL && len > 0)
        return 1;
    return depth < MAX_DEPTH ? each_sub(dir, populated, &depth) : 0;
}

int cgroup_dirs(const char *path, struct strv *dirs, struct err *err)
{
    auto_hierarchies struct hierarchies h = {.n = 0};
    if (find_hierarchies(&h, err) < 0)
        return -1;
    for (size_t i = 0; i < h.n; i++) {
        auto_free char *dir = fs_format("%s%s", h.v[i].mount, path);
        if (fs_exists(dir))
            strv_add(dirs, dir);
    }
    return 0;
}

bool cgroup_populated(const char *path)
{
    auto_hierarchies struct hierarchies h = {.n = 0};
    if (find_hierarchies(&h, NULL) < 0)
        return false;
    for (size_t i = 0; i < h.n; i++) {
        auto_free char *dir = fs_format("%s%s", h.v[i].mount, path);
        int depth = 0;
        if (populated(dir, &depth) != 0)
            return true;
    }
    return false;
}

static void walk(const char *mount, const char *path, int depth, struct strv *out)
{
    auto_free char *dir = fs_format("%s%s", mount, path);
    auto_closedir DIR *d = opendir(dir);
    struct dirent *e;
    while (d != NULL && (e = readdir(d)) != NULL) {
        if (e->d_type != DT_DIR || e->d_name[0] == '.')
            continue;
        auto_free char *sub = fs_format("%s/%s", strcmp(path, "/") == 0 ? "" : path, e->d_name);
        if (!str_starts(e->d_name, PREFIX)) {
            if (depth < MAX_DEPTH)
                walk(mount, sub, depth + 1, out);
            continue;
        }
        bool known = false;
        for (size_t i = 0; i < out->n && !known; i++)
            known = strcmp(out->v[i], sub) == 0;
        if (!known)
            strv_add(out, sub);
    }
}

int cgroup_find(const char *under, struct strv *paths, struct err *err)
{
    auto_hierarchies struct hierarchies h = {.n = 0};
    if (!path_ok(under) || find_hierarchies(&h, err) < 0)
        return -1;
    for (size_t i = 0; i < h.n; i++)
        walk(h.v[i].mount, under, 0, paths);
    return 0;
}
