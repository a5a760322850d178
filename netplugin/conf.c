#include "netplugin/conf.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "netplugin/json.h"
#include "netplugin/version.h"

bool cni_name_ok(const char *name)
{
    if (str_empty(name) || !isalnum((unsigned char)*name) || strlen(name) > LIMIT_NAME)
        return false;
    for (; *name != '\0'; name++) {
        if (!isalnum((unsigned char)*name) && strchr("_.-", *name) == NULL)
            return false;
    }
    return true;
}

/* ---- directories ---- */

static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Names in dir that end in one of `ends` (NULL-terminated), sorted. A missing directory is an empty
 * one. */
static int list_files(const char *dir, const char *const *ends, struct strv *out, struct err *err)
{
    auto_closedir DIR *d = opendir(dir);
    const struct dirent *e;

    if (d == NULL)
        return errno == ENOENT ? 0 : err_sys(err, errno, "open %s", dir);
    while ((errno = 0, e = readdir(d)) != NULL) {
        for (size_t i = 0; ends[i] != NULL; i++) {
            if (!str_ends(e->d_name, ends[i]))
                continue;
            if (out->n == LIMIT_CNI_FILES)
                return err_set(err, ERR_EXHAUSTED, "%s: more than %d files", dir, LIMIT_CNI_FILES);
            strv_add(out, e->d_name);
            break;
        }
    }
    if (errno != 0)
        return err_sys(err, errno, "read %s", dir);
    if (out->n > 1)
        qsort(out->v, out->n, sizeof(*out->v), by_bytes);
    return 0;
}

/* Non-blocking open: a FIFO in the directory must not hang the daemon. NULL without error: not a
 * file. */
static char *read_file(const char *path, size_t *len, struct err *err)
{
    auto_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0) {
        err_sys(err, errno, "open");
        return NULL;
    }
    if (!S_ISREG(st.st_mode)) {
        if (!S_ISDIR(st.st_mode))
            err_set(err, ERR_INVALID, "not a regular file");
        return NULL;
    }
    return fs_read_fd(fd, LIMIT_CNI_CONF, len, err);
}

/* ---- one list ---- */

static int check_plugin(json_t *p, struct err *err)
{
    const char *type = json_get_string(p, "type");
    json_t *caps = json_object_get(p, "capabilities"), *v;
    const char *key;

    if (!json_is_object(p))
        return err_set(err, ERR_INVALID, "not an object");
    if (str_empty(type))
        return err_set(err, ERR_INVALID, "no `type`");
    if (strchr(type, '/') != NULL || strcmp(type, ".") == 0 || strcmp(type, "..") == 0 ||
        strlen(type) > LIMIT_NAME)
        return err_set(err, ERR_INVALID, "`type` is no program name");
    if (caps == NULL || json_is_null(caps))
        return 0;
    if (!json_is_object(caps))
        return err_set(err, ERR_INVALID, "%s: `capabilities` is not an object", type);
    json_object_foreach(caps, key, v)
    {
        if (!json_is_boolean(v))
            return err_set(err, ERR_INVALID, "%s: capability %s is not a boolean", type, key);
    }
    return 0;
}

/* true/false, or the strings "true"/"false", which libcni takes too. */
static int get_bool(const json_t *o, const char *key, bool *out, struct err *err)
{
    const json_t *v = json_object_get(o, key);
    const char *s = json_string_value(v);

    *out = false;
    if (v == NULL || json_is_null(v))
        return 0;
    if (!json_is_boolean(v) &&
        (s == NULL || (strcasecmp(s, "true") != 0 && strcasecmp(s, "false") != 0)))
        return err_set(err, ERR_INVALID, "%s: not a boolean", key);
    *out = json_is_true(v) || (s != NULL && strcasecmp(s, "true") == 0);
    return 0;
}

/* The highest version we know among cniVersion and cniVersions. */
static int choose_version(const json_t *list, const char **out, struct err *err)
{
    const json_t *one = json_object_get(list, "cniVersion");
    const json_t *many = json_object_get(list, "cniVersions"), *e;
    const char *best = NULL;
    bool offered = false;
    size_t i;

    if (one != NULL && !json_is_string(one))
        return err_set(err, ERR_INVALID, "cniVersion: not a string");
    if (one != NULL && *json_string_value(one) != '\0') {
        offered = true;
        best = cni_version_known(json_string_value(one));
    }
    if (many != NULL && !json_is_array(many))
        return err_set(err, ERR_INVALID, "cniVersions: not an array");
    json_array_foreach(many, i, e)
    {
        const char *v = cni_version_known(json_string_value(e));

        if (!json_is_string(e))
            return err_set(err, ERR_INVALID, "cniVersions[%zu]: not a string", i);
        offered = true;
        if (v != NULL && (best == NULL || cni_version_at_least(v, best)))
            best = v;
    }
    if (best == NULL && offered)
        return err_set(err, ERR_INVALID, "no CNI version that we know (newest: %s)",
                       CNI_VERSION_NEWEST);
    *out = best != NULL ? best : CNI_VERSION_OLDEST;
    return 0;
}

/* Takes the plugin files beside the list into it, as libcni 1.3 does. */
static int add_folder_plugins(json_t *list, const char *file, const char *name, struct err *err)
{
    static const char *const ends[] = {".conf", NULL};
    json_t *plugins = json_object_get(list, "plugins");
    auto_strv struct strv names = {0};
    auto_free char *dir = NULL;
    const char *slash = strrchr(file, '/');
    bool inlined_only;

    if (get_bool(list, "loadOnlyInlinedPlugins", &inlined_only, err) < 0)
        return -1;
    if (inlined_only || slash == NULL)
        return 0;
    dir = fs_format("%.*s/%s", (int)(slash - file), file, name);
    if (list_files(dir, ends, &names, err) < 0)
        return -1;
    for (size_t i = 0; i < names.n; i++) {
        auto_free char *path = fs_format("%s/%s", dir, names.v[i]), *text = NULL;
        auto_err struct err why = ERR_INIT;
        json_t *p;
        size_t len;

        text = read_file(path, &len, &why);
        if (text == NULL && why.code == ERR_OK)
            continue;
        p = text != NULL ? json_parse(text, len, LIMIT_CNI_CONF, &why) : NULL;
        if (p == NULL) {
            err_wrap(&why, "%s", path);
            return err_move(err, &why);
        }
        json_array_append_new(plugins, p);
    }
    /* The list as it goes into the cache is complete: do not look there again. */
    if (names.n > 0)
        json_object_set_new(list, "loadOnlyInlinedPlugins", json_true());
    return 0;
}

static struct cni_conf *from_tree(json_t *list, const char *file, struct err *err)
{
    auto_cni_conf struct cni_conf *c = xcalloc(1, sizeof(*c));
    const char *name = json_get_string(list, "name");
    json_t *plugins = json_object_get(list, "plugins");
    json_t *p;
    size_t i;

    __atomic_store_n(&c->refs, 1, __ATOMIC_RELAXED);
    if (!cni_name_ok(name)) {
        err_set(err, ERR_INVALID, "no valid network `name`");
        return NULL;
    }
    c->name = xstrdup(name);
    // cppcheck-suppress nullPointerRedundantCheck ; xstrdup(NULL) is NULL
    c->file = xstrdup(file);
    if (choose_version(list, &c->version, err) < 0 ||
        get_bool(list, "disableCheck", &c->disable_check, err) < 0 ||
        get_bool(list, "disableGC", &c->disable_gc, err) < 0)
        return NULL;
    if (plugins == NULL || json_is_null(plugins)) {
        plugins = json_array();
        json_object_set_new(list, "plugins", plugins);
    }
    if (!json_is_array(plugins)) {
        err_set(err, ERR_INVALID, "plugins: not an array");
        return NULL;
    }
    if (file != NULL && add_folder_plugins(list, file, c->name, err) < 0)
        return NULL;
    if (json_array_size(plugins) == 0 || json_array_size(plugins) > LIMIT_CNI_PLUGINS) {
        err_set(err, ERR_INVALID, "%zu plugins; 1 to %d expected", json_array_size(plugins),
                LIMIT_CNI_PLUGINS);
        return NULL;
    }
    json_array_foreach(plugins, i, p)
    {
        if (check_plugin(p, err) < 0) {
            err_wrap(err, "plugins[%zu]", i);
            return NULL;
        }
    }
    c->plugins = json_deep_copy(plugins);
    c->text = json_dumps(list, JSON_COMPACT);
    if (c->plugins == NULL || c->text == NULL) {
        err_set(err, ERR_EXHAUSTED, "out of memory");
        return NULL;
    }
    return take(c);
}

struct cni_conf *cni_conf_parse(const char *text, size_t len, bool is_list, const char *file,
                                struct err *err)
{
    auto_json json_t *root = json_parse(text, len, LIMIT_CNI_CONF, err);
    auto_json json_t *list = NULL;

    if (root == NULL)
        return NULL;
    if (is_list)
        return from_tree(root, file, err);
    /* A plugin file that has `plugins` is a list with the wrong ending: libcni refuses it as well.
     */
    if (json_object_get(root, "plugins") != NULL && json_object_get(root, "type") == NULL) {
        err_set(err, ERR_INVALID, "a network list; name the file .conflist");
        return NULL;
    }
    list = json_object();
    if (json_object_get(root, "cniVersion") != NULL)
        json_object_set(list, "cniVersion", json_object_get(root, "cniVersion"));
    json_object_set(list, "name", json_object_get(root, "name"));
    json_object_set_new(list, "plugins", json_pack("[O]", root));
    json_object_set_new(list, "loadOnlyInlinedPlugins", json_true());
    return from_tree(list, file, err);
}

struct cni_conf *cni_conf_ref(struct cni_conf *c)
{
    if (c != NULL)
        (void)__atomic_add_fetch(&c->refs, 1, __ATOMIC_RELAXED);
    return c;
}

void cni_conf_unref(struct cni_conf *c)
{
    if (c == NULL || __atomic_sub_fetch(&c->refs, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    free(c->file);
    free(c->name);
    free(c->text);
    json_decref(c->plugins);
    free(c);
}

struct cni_conf *cni_conf_load(const char *dir, char **problem, struct err *err)
{
    static const char *const ends[] = {".conflist", ".conf", ".json", NULL};
    auto_strv struct strv names = {0};
    auto_err struct err first = ERR_INIT;
    struct cni_conf *found = NULL;

    *problem = NULL;
    if (list_files(dir, ends, &names, err) < 0)
        return NULL;
    for (size_t i = 0; i < names.n && found == NULL; i++) {
        auto_free char *path = fs_format("%s/%s", dir, names.v[i]), *text = NULL;
        auto_err struct err why = ERR_INIT;
        size_t len;

        text = read_file(path, &len, &why);
        if (text != NULL)
            found = cni_conf_parse(text, len, str_ends(names.v[i], ".conflist"), path, &why);
        if (found == NULL && why.code != ERR_OK && first.code == ERR_OK) {
            err_wrap(&why, "%s", path);
            err_move(&first, &why);
        }
    }
    if (first.code != ERR_OK)
        *problem = xstrdup(err_msg(&first));
    if (found == NULL) {
        if (first.code != ERR_OK)
            err_set(err, first.code, "no usable network in %s: %s", dir, err_msg(&first));
        else
            err_set(err, ERR_NOT_FOUND, "no network configuration in %s", dir);
    }
    return found;
}
