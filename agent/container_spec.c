#include "agent/container_spec.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "agent/spec_devices.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/str.h"

/* jansson brings the cleanup function. */
#define auto_json __attribute__((cleanup(json_decrefp)))

#define DEFAULT_PATH "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static int out_of_memory(struct err *err)
{
    return err_set(err, ERR_EXHAUSTED, "out of memory");
}

/* Takes value, also on failure; NULL counts as out of memory. */
static int set(json_t *object, const char *key, json_t *value, struct err *err)
{
    if (value == NULL || json_object_set_new(object, key, value) < 0)
        return out_of_memory(err);
    return 0;
}

/* The member as an object, made when it is missing. NULL with *err when it is something else. */
static json_t *sub_object(json_t *object, const char *key, struct err *err)
{
    json_t *value = json_object_get(object, key);

    if (value == NULL) {
        if (set(object, key, json_object(), err) < 0)
            return NULL;
        return json_object_get(object, key);
    }
    if (!json_is_object(value)) {
        err_set(err, ERR_INVALID, "oci spec: %s is not an object", key);
        return NULL;
    }
    return value;
}

static json_t *parse(const void *json, size_t len, struct err *err)
{
    json_error_t at;
    json_t *root = json_loadb(json, len, JSON_REJECT_DUPLICATES, &at);

    if (root == NULL) {
        err_set(err, ERR_INVALID, "oci spec: line %d: %s", at.line, at.text);
        return NULL;
    }
    if (!json_is_object(root)) {
        json_decref(root);
        err_set(err, ERR_INVALID, "oci spec: not an object");
        return NULL;
    }
    return root;
}

static char *dump(const json_t *root, struct err *err)
{
    char *text = json_dumps(root, JSON_COMPACT);
    if (text == NULL)
        (void)out_of_memory(err);
    return text;
}

static bool env_has(const json_t *env, const char *name)
{
    size_t n = strlen(name);
    size_t i;
    json_t *v;

    json_array_foreach(env, i, v)
    {
        const char *s = json_string_value(v);
        if (s != NULL && strncmp(s, name, n) == 0 && s[n] == '=')
            return true;
    }
    return false;
}

static int env_add(json_t *env, const char *text, struct err *err)
{
    if (json_array_append_new(env, json_string(text)) < 0)
        return err_set(err, ERR_INVALID, "environment: not valid UTF-8, or out of memory");
    return 0;
}

static json_t *process_env(json_t *process, struct err *err)
{
    json_t *env = json_object_get(process, "env");

    if (env == NULL || json_is_null(env)) {
        if (set(process, "env", json_array(), err) < 0)
            return NULL;
        return json_object_get(process, "env");
    }
    if (!json_is_array(env)) {
        err_set(err, ERR_INVALID, "oci spec: process.env is not a list");
        return NULL;
    }
    return env;
}

/* libcrun looks a bare command up in PATH and does not survive its absence. */
static int ensure_path(json_t *env, struct err *err)
{
    return env_has(env, "PATH") ? 0 : env_add(env, DEFAULT_PATH, err);
}

static int set_terminal(json_t *process, bool tty, uint32_t rows, uint32_t cols, struct err *err)
{
    if (set(process, "terminal", json_boolean(tty), err) < 0)
        return -1;
    (void)json_object_del(process, "consoleSize");
    if (!tty || rows == 0 || cols == 0)
        return 0;
    return set(process, "consoleSize",
               json_pack("{s:I,s:I}", "height", (json_int_t)(rows & 0xffff), "width",
                         (json_int_t)(cols & 0xffff)),
               err);
}

static int set_user(json_t *process, const struct user_ids *ids, struct err *err)
{
    json_t *user = sub_object(process, "user", err);
    json_t *groups = json_array();
    char home[sizeof(ids->home) + sizeof("HOME=")];

    if (user == NULL || groups == NULL) {
        json_decref(groups);
        return user == NULL ? -1 : out_of_memory(err);
    }
    for (size_t i = 0; i < ids->n_groups; i++)
        (void)json_array_append_new(groups, json_integer(ids->groups[i]));
    (void)json_object_del(user, "username");
    if (set(user, "additionalGids", groups, err) < 0 ||
        set(user, "uid", json_integer(ids->uid), err) < 0 ||
        set(user, "gid", json_integer(ids->gid), err) < 0)
        return -1;

    json_t *env = process_env(process, err);
    if (env == NULL || ensure_path(env, err) < 0)
        return -1;
    if (env_has(env, "HOME"))
        return 0;
    /* The name in an image's passwd may be anything, JSON takes UTF-8 only. */
    const char *dir = str_is_utf8(ids->home, strlen(ids->home)) ? ids->home : "/";
    (void)snprintf(home, sizeof(home), "HOME=%s", dir);
    return env_add(env, home, err);
}

static int check_args(const json_t *args, struct err *err)
{
    size_t i;
    json_t *v;

    if (!json_is_array(args) || json_array_size(args) == 0)
        return err_set(err, ERR_INVALID, "no command specified");
    json_array_foreach(args, i, v)
    {
        if (!json_is_string(v))
            return err_set(err, ERR_INVALID, "oci spec: an argument is not a string");
    }
    if (*json_string_value(json_array_get(args, 0)) == '\0')
        return err_set(err, ERR_INVALID, "the command is empty");
    return 0;
}

static int set_pidns(json_t *linux_object, const char *path, struct err *err)
{
    json_t *list = json_object_get(linux_object, "namespaces");
    size_t i;
    json_t *ns;

    if (list == NULL) {
        if (set(linux_object, "namespaces", json_array(), err) < 0)
            return -1;
        list = json_object_get(linux_object, "namespaces");
    }
    if (!json_is_array(list))
        return err_set(err, ERR_INVALID, "oci spec: linux.namespaces is not a list");
    json_array_foreach(list, i, ns)
    {
        const char *type = json_string_value(json_object_get(ns, "type"));
        if (type != NULL && strcmp(type, "pid") == 0)
            return set(ns, "path", json_string(path), err);
    }
    if (json_array_append_new(list, json_pack("{s:s,s:s}", "type", "pid", "path", path)) < 0)
        return out_of_memory(err);
    return 0;
}

static int set_mounts(json_t *root, const struct spec_changes *c, struct err *err)
{
    json_t *mounts = json_object_get(root, "mounts");
    size_t i;
    json_t *m;

    if (mounts == NULL)
        return 0;
    if (!json_is_array(mounts))
        return err_set(err, ERR_INVALID, "oci spec: mounts is not a list");
    json_array_foreach(mounts, i, m)
    {
        const char *type = json_string_value(json_object_get(m, "type"));
        if (c->mqueue != NULL && type != NULL && strcmp(type, "mqueue") == 0) {
            if (set(m, "type", json_string("bind"), err) < 0 ||
                set(m, "source", json_string(c->mqueue), err) < 0 ||
                json_array_append_new(json_object_get(m, "options"), json_string("bind")) < 0)
                return err_set(err, ERR_INVALID, "oci spec: mount of message queues");
            continue;
        }
        const char *source = json_string_value(json_object_get(m, "source"));
        if (source == NULL || !str_starts(source, "aspis:"))
            continue;
        const char *name = source + strlen("aspis:");
        auto_err struct err why = ERR_INIT;
        const char *path = c->pod_file != NULL ? c->pod_file(c->pod_file_arg, name, &why) : NULL;
        if (path == NULL && why.code == ERR_OK)
            err_set(&why, ERR_INVALID, "mount source \"%s\": the pod has no such file", source);
        if (path == NULL) {
            const char *at = json_string_value(json_object_get(m, "destination"));
            (void)err_move(err, &why);
            /* The daemon tells image volumes by these words. */
            return err_wrap(err, "%s at %s", str_starts(name, "image:") ? "image volume" : "mount",
                            at != NULL ? at : "?");
        }
        if (set(m, "source", json_string(path), err) < 0)
            return -1;
    }
    return 0;
}

static json_t *id_list(Aspis__Agent__V1__IdMapping *const *map, size_t n)
{
    json_t *list = json_array();
    for (size_t i = 0; i < n; i++)
        (void)json_array_append_new(list, json_pack("{s:I, s:I, s:I}", "containerID",
                                                    (json_int_t)map[i]->container_id, "hostID",
                                                    (json_int_t)map[i]->host_id, "size",
                                                    (json_int_t)map[i]->length));
    return list;
}

/* One that is joined has its ids; libcrun wants to know them all the same. */
static int set_userns(json_t *linux_object, const Aspis__Agent__V1__CreateContainerRequest *req,
                      const char *path, struct err *err)
{
    json_t *list = json_object_get(linux_object, "namespaces");
    if (req->n_uids == 0)
        return 0;
    if (!json_is_array(list))
        return err_set(err, ERR_INVALID, "oci spec: linux.namespaces is not a list");
    if (json_array_append_new(list, json_pack("{s:s, s:s*}", "type", "user", "path", path)) < 0)
        return out_of_memory(err);
    return set(linux_object, "uidMappings", id_list(req->uids, req->n_uids), err) < 0
               ? -1
               : set(linux_object, "gidMappings", id_list(req->gids, req->n_gids), err);
}

static int set_request(json_t *linux_object, const Aspis__Agent__V1__CreateContainerRequest *req,
                       const char *userns, struct err *err)
{
    if (req == NULL)
        return 0;
    if (req->all_devices && spec_add_all_devices(linux_object, "/dev", err) < 0)
        return -1;
    for (size_t i = 0; i < req->n_devices; i++) {
        if (spec_add_device(linux_object, req->devices[i], err) < 0)
            return -1;
    }
    return set_userns(linux_object, req, userns, err);
}

static void drop_annotations(json_t *root)
{
    json_t *annotations = json_object_get(root, "annotations");
    const char *key;
    json_t *value;
    void *next;

    json_object_foreach_safe(annotations, next, key, value)
    {
        if (str_starts(key, "run.oci."))
            (void)json_object_del(annotations, key);
    }
}

/* Takes out of the spec what libcrun does not look at any more once the container is made. */
static void drop_made(json_t *root)
{
    static const char *const of_linux[] = {"devices", "resources", "maskedPaths", "readonlyPaths",
                                           "sysctl"};
    json_t *linux_object = json_object_get(root, "linux");

    (void)json_object_del(root, "mounts");
    for (size_t i = 0; i < ARRAY_LEN(of_linux); i++)
        (void)json_object_del(linux_object, of_linux[i]);
}

char *spec_for_create(const void *json, size_t len, const struct spec_changes *c, char **kept,
                      struct err *err)
{
    auto_json json_t *root = parse(json, len, err);
    if (root == NULL)
        return NULL;
    /* in the container, as its own programs; all others would run as the agent */
    const json_t *hooks = json_object_get(root, "hooks");
    if (json_object_size(hooks) > (json_object_get(hooks, "startContainer") != NULL)) {
        err_set(err, ERR_INVALID, "oci spec: hooks but startContainer are not supported");
        return NULL;
    }
    json_t *process = sub_object(root, "process", err);
    json_t *linux_object = process != NULL ? sub_object(root, "linux", err) : NULL;
    json_t *rootfs = linux_object != NULL ? sub_object(root, "root", err) : NULL;
    if (rootfs == NULL)
        return NULL;
    if (check_args(json_object_get(process, "args"), err) < 0 ||
        set(rootfs, "path", json_string(c->root_path), err) < 0 ||
        set(rootfs, "readonly", json_boolean(c->readonly_rootfs), err) < 0 ||
        set_user(process, c->user, err) < 0 ||
        set_terminal(process, c->tty, c->rows, c->cols, err) < 0 ||
        (c->pidns != NULL && set_pidns(linux_object, c->pidns, err) < 0) ||
        set(linux_object, "cgroupsPath", json_string(c->cgroups_path), err) < 0 ||
        set_request(linux_object, c->request, c->userns, err) < 0 || set_mounts(root, c, err) < 0)
        return NULL;
    drop_annotations(root);
    auto_free char *whole = dump(root, err);
    if (whole != NULL && kept != NULL) {
        drop_made(root);
        *kept = dump(root, err);
        if (*kept == NULL)
            return NULL;
    }
    return take(whole);
}

static json_t *string_list(char *const *v, size_t n, const char *what, struct err *err)
{
    json_t *list = json_array();

    if (list == NULL) {
        (void)out_of_memory(err);
        return NULL;
    }
    for (size_t i = 0; i < n; i++) {
        if (json_array_append_new(list, json_string(v[i])) < 0) {
            json_decref(list);
            err_set(err, ERR_INVALID, "%s %zu is not valid UTF-8", what, i);
            return NULL;
        }
    }
    return list;
}

char *spec_for_exec(const char *json, size_t len, const struct spec_exec *x, struct err *err)
{
    auto_json json_t *root = parse(json, len, err);
    if (root == NULL)
        return NULL;
    json_t *process = sub_object(root, "process", err);
    if (process == NULL)
        return NULL;

    json_t *args = string_list(x->args, x->n_args, "argument", err);
    if (args == NULL || set(process, "args", args, err) < 0 || check_args(args, err) < 0)
        return NULL;
    if (x->n_env > 0) {
        json_t *list = string_list(x->env, x->n_env, "environment variable", err);
        if (list == NULL || set(process, "env", list, err) < 0)
            return NULL;
    }
    json_t *env = process_env(process, err);
    if (env == NULL || ensure_path(env, err) < 0)
        return NULL;
    if (x->tty && !env_has(env, "TERM") && env_add(env, "TERM=xterm", err) < 0)
        return NULL;
    if (!str_empty(x->cwd) && set(process, "cwd", json_string(x->cwd), err) < 0)
        return NULL;
    if (set_terminal(process, x->tty, x->rows, x->cols, err) < 0)
        return NULL;
    if (x->oom_score_adj != NULL)
        *x->oom_score_adj = json_integer_value(json_object_get(process, "oomScoreAdj"));
    auto_json json_t *of_exec = json_pack("{s:O*, s:O}", "ociVersion",
                                          json_object_get(root, "ociVersion"), "process", process);
    if (of_exec == NULL) {
        (void)out_of_memory(err);
        return NULL;
    }
    return dump(of_exec, err);
}

char *spec_set_oom_score(const char *json, size_t len, int32_t adj, int64_t *before,
                         struct err *err)
{
    auto_json json_t *root = parse(json, len, err);
    json_t *process = root != NULL ? sub_object(root, "process", err) : NULL;
    if (process == NULL)
        return NULL;
    *before = json_integer_value(json_object_get(process, "oomScoreAdj"));
    if (set(process, "oomScoreAdj", json_integer(adj), err) < 0)
        return NULL;
    return dump(root, err);
}
