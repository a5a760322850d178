#include "cri/cdi.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "cri/cdi_yaml.h"

void cdi_edits_clear(struct cdi_edits *edits)
{
    for (size_t i = 0; i < edits->n_nodes; i++) {
        free(edits->nodes[i].path);
        free(edits->nodes[i].host_path);
        free(edits->nodes[i].permissions);
    }
    free(edits->nodes);
    for (size_t i = 0; i < edits->n_mounts; i++) {
        free(edits->mounts[i].host_path);
        free(edits->mounts[i].container_path);
        strv_clear(&edits->mounts[i].options);
    }
    free(edits->mounts);
    for (size_t i = 0; i < edits->n_hooks; i++) {
        free(edits->hooks[i].path);
        strv_clear(&edits->hooks[i].args);
        strv_clear(&edits->hooks[i].env);
    }
    free(edits->hooks);
    free(edits->gids);
    strv_clear(&edits->env);
    *edits = (struct cdi_edits){0};
}

/* --- one file --- */

static int add_node(const json_t *o, struct cdi_edits *edits, struct err *err)
{
    const char *path = json_string_value(json_object_get(o, "path"));
    const char *host = json_string_value(json_object_get(o, "hostPath"));
    const char *permissions = json_string_value(json_object_get(o, "permissions"));
    if (path == NULL || path[0] != '/' || strlen(path) >= LIMIT_PATH ||
        (host != NULL && strlen(host) >= LIMIT_PATH))
        return err_set(err, ERR_INVALID, "a device node without an absolute path");
    if (permissions == NULL || *permissions == '\0')
        permissions = "rwm";
    if (strlen(permissions) > 3 || strspn(permissions, "rwm") != strlen(permissions))
        return err_set(err, ERR_INVALID, "device node %.200s: permissions \"%.16s\"", path,
                       permissions);
    if (edits->n_nodes >= LIMIT_CDI_EDITS)
        return err_set(err, ERR_EXHAUSTED, "more than %d device nodes", LIMIT_CDI_EDITS);
    edits->nodes = xrealloc(edits->nodes, edits->n_nodes + 1, sizeof(*edits->nodes));
    edits->nodes[edits->n_nodes++] =
        (struct cdi_node){.path = xstrdup(path),
                          .host_path = xstrdup(str_empty(host) ? path : host),
                          .permissions = xstrdup(permissions)};
    return 0;
}

static int add_env(const json_t *v, struct cdi_edits *edits, struct err *err)
{
    const char *text = json_string_value(v);
    if (text == NULL || text[0] == '=' || strchr(text, '=') == NULL || strlen(text) > LIMIT_STRING)
        return err_set(err, ERR_INVALID, "an environment variable that is none");
    if (edits->env.n >= LIMIT_CDI_EDITS)
        return err_set(err, ERR_EXHAUSTED, "more than %d environment variables", LIMIT_CDI_EDITS);
    strv_add(&edits->env, text);
    return 0;
}

/* Strings of an array, at most LIMIT_CDI_EDITS; none: none. */
static int strings(const json_t *list, struct strv *out, const char *what, struct err *err)
{
    const json_t *item;
    size_t i;
    if (json_array_size(list) > LIMIT_CDI_EDITS)
        return err_set(err, ERR_EXHAUSTED, "more than %d %s", LIMIT_CDI_EDITS, what);
    json_array_foreach(list, i, item)
    {
        if (!json_is_string(item) || json_string_length(item) > LIMIT_STRING)
            return err_set(err, ERR_INVALID, "%s that are none", what);
        strv_add(out, json_string_value(item));
    }
    return 0;
}

static bool is_path(const char *path)
{
    return path != NULL && path[0] == '/' && strlen(path) < LIMIT_PATH;
}

static int check_option(const char *option, struct err *err)
{
    static const char *const known[] = {"bind",   "rbind",  "ro",         "rw",       "nosuid",
                                        "nodev",  "noexec", "noatime",    "private",  "slave",
                                        "shared", "suid",   "nodiratime", "relatime", "strictatime",
                                        "dev",    "rslave", "rshared",    "exec",     "rprivate"};
    for (size_t i = 0; i < ARRAY_LEN(known); i++) {
        if (strcmp(option, known[i]) == 0)
            return 0;
    }
    return err_set(err, ERR_PRECONDITION, "its option %.64s is not one of a bind mount", option);
}

static int add_mount(const json_t *o, struct cdi_edits *edits, struct err *err)
{
    const char *host = json_string_value(json_object_get(o, "hostPath"));
    const char *path = json_string_value(json_object_get(o, "containerPath"));
    const char *type = json_string_value(json_object_get(o, "type"));
    if (!is_path(host) || !is_path(path))
        return err_set(err, ERR_INVALID, "a mount without absolute paths");
    if (strstr(path, "//") != NULL || strstr(path, "/./") != NULL || str_ends(path, "/") ||
        str_ends(path, "/."))
        return err_set(err, ERR_INVALID,
                       "mount at %.200s: write its path without \".\" and empty "
                       "parts",
                       path);
    if (!str_empty(type) && strcmp(type, "bind") != 0 && strcmp(type, "none") != 0)
        return err_set(err, ERR_PRECONDITION, "mount at %.200s: type %.32s; only bind can be given",
                       path, type);
    if (edits->n_mounts >= LIMIT_CDI_EDITS)
        return err_set(err, ERR_EXHAUSTED, "more than %d mounts", LIMIT_CDI_EDITS);
    edits->mounts = xrealloc(edits->mounts, edits->n_mounts + 1, sizeof(*edits->mounts));
    struct cdi_mount *m = &edits->mounts[edits->n_mounts++];
    *m = (struct cdi_mount){.host_path = xstrdup(host), .container_path = xstrdup(path)};
    if (strings(json_object_get(o, "options"), &m->options, "options", err) < 0)
        return err_wrap(err, "mount at %.200s", path);
    for (size_t i = 0; i < m->options.n; i++) {
        if (check_option(m->options.v[i], err) < 0)
            return err_wrap(err, "mount at %.200s", path);
    }
    return 0;
}

static int add_hook(const json_t *o, struct cdi_edits *edits, struct err *err)
{
    const char *name = json_string_value(json_object_get(o, "hookName"));
    const char *path = json_string_value(json_object_get(o, "path"));
    if (name == NULL || !is_path(path))
        return err_set(err, ERR_INVALID, "hooks without a name and an absolute path");
    if (strcmp(name, "startContainer") != 0)
        return err_set(err, ERR_PRECONDITION,
                       "it asks for hooks: %.32s runs a program of the host (%.200s), which is not "
                       "where containers are made; only startContainer, in the container, can be "
                       "given",
                       name, path);
    if (edits->n_hooks >= LIMIT_CDI_EDITS)
        return err_set(err, ERR_EXHAUSTED, "more than %d hooks", LIMIT_CDI_EDITS);
    edits->hooks = xrealloc(edits->hooks, edits->n_hooks + 1, sizeof(*edits->hooks));
    struct cdi_hook *h = &edits->hooks[edits->n_hooks++];
    *h = (struct cdi_hook){.path = xstrdup(path),
                           .timeout = json_integer_value(json_object_get(o, "timeout"))};
    if (h->timeout < 0 || h->timeout > 3600)
        return err_set(err, ERR_INVALID, "hook %.200s: its timeout", path);
    return strings(json_object_get(o, "args"), &h->args, "arguments of hooks", err) < 0
               ? -1
               : strings(json_object_get(o, "env"), &h->env, "environment variables of hooks", err);
}

static int add_gid(const json_t *v, struct cdi_edits *edits, struct err *err)
{
    json_int_t gid = json_integer_value(v);
    if (!json_is_integer(v) || gid < 0 || gid >= UINT32_MAX)
        return err_set(err, ERR_INVALID, "an additional group that is none");
    if (edits->n_gids >= LIMIT_USER_GROUPS)
        return err_set(err, ERR_EXHAUSTED, "more than %d additional groups", LIMIT_USER_GROUPS);
    edits->gids = xrealloc(edits->gids, edits->n_gids + 1, sizeof(*edits->gids));
    if (gid != 0) /* as the specification says: ignored */
        edits->gids[edits->n_gids++] = (uint32_t)gid;
    return 0;
}

static int add_edits(const json_t *o, struct cdi_edits *edits, struct err *err)
{
    static const char *const refused[] = {"intelRdt", "netDevices"};
    static const struct {
        const char *key;
        int (*add)(const json_t *v, struct cdi_edits *edits, struct err *err);
    } lists[] = {{"env", add_env},
                 {"deviceNodes", add_node},
                 {"mounts", add_mount},
                 {"hooks", add_hook},
                 {"additionalGids", add_gid}};
    const json_t *item;
    size_t i;
    if (o == NULL || json_is_null(o))
        return 0;
    if (!json_is_object(o))
        return err_set(err, ERR_INVALID, "containerEdits is no object");
    for (i = 0; i < ARRAY_LEN(refused); i++) {
        const json_t *v = json_object_get(o, refused[i]);
        if (v != NULL && !json_is_null(v) && (json_array_size(v) > 0 || json_object_size(v) > 0))
            return err_set(err, ERR_PRECONDITION, "it asks for %s, which cannot be given",
                           refused[i]);
    }
    for (size_t k = 0; k < ARRAY_LEN(lists); k++) {
        const json_t *list = json_object_get(o, lists[k].key);
        if (list != NULL && !json_is_null(list) && !json_is_array(list))
            return err_set(err, ERR_INVALID, "%s is no list", lists[k].key);
        json_array_foreach(list, i, item)
        {
            if (lists[k].add(item, edits, err) < 0)
                return -1;
        }
    }
    return 0;
}

static json_t *load_json(const char *text, size_t len, struct err *err)
{
    json_error_t at;
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &at);
    if (root == NULL)
        (void)err_set(err, ERR_INVALID, "line %d: %s", at.line, at.text);
    return root;
}

int cdi_parse(const char *text, size_t len, bool yaml, const char *kind, const char *name,
              struct cdi_edits *edits, struct err *err)
{
    const json_t *device;
    size_t i;
    json_auto_t *root = yaml ? cdi_yaml_load(text, len, err) : load_json(text, len, err);
    if (root == NULL)
        return -1;
    const char *its = json_string_value(json_object_get(root, "kind"));
    if (its == NULL)
        return err_set(err, ERR_INVALID, "it has no \"kind\"");
    if (strcmp(its, kind) != 0)
        return 0;
    json_array_foreach(json_object_get(root, "devices"), i, device)
    {
        const char *n = json_string_value(json_object_get(device, "name"));
        if (n == NULL || strcmp(n, name) != 0)
            continue;
        /* those of the whole kind first, as the specification says */
        if (add_edits(json_object_get(root, "containerEdits"), edits, err) < 0 ||
            add_edits(json_object_get(device, "containerEdits"), edits, err) < 0)
            return -1;
        return 1;
    }
    return 0;
}

/* --- all files --- */

static int try_file(const char *path, const char *kind, const char *name, struct cdi_edits *edits,
                    struct err *err)
{
    struct stat st;
    size_t len = 0;
    auto_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return 0;
    auto_free char *text = fs_read_fd(fd, LIMIT_CDI_FILE, &len, err);
    int rc =
        text != NULL ? cdi_parse(text, len, !str_ends(path, ".json"), kind, name, edits, err) : -1;
    return rc < 0 ? err_wrap(err, "%s", path) : rc;
}

/* A broken file is an error only if the device is not found in another one. */
static int try_dir(const char *dir, const char *kind, const char *name, struct cdi_edits *edits,
                   struct err *err)
{
    struct dirent **list = NULL;
    int n = scandir(dir, &list, NULL, alphasort);
    int found = 0;
    for (int i = 0; i < n; i++) {
        if (found <= 0 && i < LIMIT_CDI_FILES &&
            (str_ends(list[i]->d_name, ".json") || str_ends(list[i]->d_name, ".yaml"))) {
            auto_free char *path = fs_format("%s/%s", dir, list[i]->d_name);
            auto_err struct err why = ERR_INIT;
            int rc = try_file(path, kind, name, edits, &why);
            if (rc < 0)
                (void)err_move(err, &why);
            found = rc != 0 ? rc : found;
        }
        free(list[i]);
    }
    free(list);
    return found;
}

static int resolve_one(const char *const *dirs, const char *full, struct cdi_edits *edits,
                       struct err *err)
{
    const char *eq = strchr(full, '=');
    const char *slash = strchr(full, '/');
    if (strlen(full) > LIMIT_NAME * 2 || eq == NULL || slash == NULL || slash > eq ||
        slash == full || eq == slash + 1 || eq[1] == '\0')
        return err_set(err, ERR_INVALID, "a name is vendor/class=device");
    auto_free char *kind = xstrndup(full, (size_t)(eq - full));
    size_t n = 0;
    while (dirs[n] != NULL)
        n++;
    int rc = 0;
    while (n > 0 && rc <= 0) {
        int r = try_dir(dirs[--n], kind, eq + 1, edits, err);
        rc = r != 0 ? r : rc;
    }
    if (rc == 0)
        return err_set(err, ERR_NOT_FOUND, "no file in %s or %s describes it", dirs[0],
                       dirs[1] != NULL ? dirs[1] : dirs[0]);
    return rc < 0 ? -1 : 0;
}

int cdi_resolve(const char *const *dirs, const char *const *names, size_t n,
                struct cdi_edits *edits, struct err *err)
{
    static const char *const standard[] = {"/etc/cdi", "/var/run/cdi", NULL};
    for (size_t i = 0; i < n; i++) {
        bool twice = false;
        for (size_t k = 0; k < i; k++)
            twice = twice || strcmp(names[k], names[i]) == 0;
        auto_err struct err why = ERR_INIT;
        if (!twice && resolve_one(dirs != NULL ? dirs : standard, names[i], edits, &why) < 0) {
            (void)err_move(err, &why);
            return err_wrap(err, "CDI device %.200s", names[i]);
        }
    }
    return 0;
}
