#include "netplugin/chain.h"

#include <stdbool.h>
#include <string.h>

#include "base/limits.h"
#include "netplugin/exec.h"
#include "netplugin/json.h"
#include "netplugin/result.h"
#include "netplugin/version.h"

static struct cni_exec exec_of(const struct chain *c, const char *command)
{
    return (struct cni_exec){
        .command = command,
        .container_id = c->container_id,
        .netns = c->netns,
        .ifname = c->ifname,
        .args = c->args,
        .bin_dirs = c->bin_dirs,
        .timeout_ns = c->timeout_ns,
        .keep_fd = c->keep_fd,
    };
}

/* What plugin p reads on stdin: its own object, the list's name and version, the previous result,
 * and of the capability arguments those it declared. */
static json_t *plugin_conf(const struct chain *c, const json_t *p, const json_t *prev)
{
    json_t *o = json_deep_copy(p);
    json_t *caps = json_object_get(o, "capabilities");
    json_t *runtime = json_object();
    const char *name;
    json_t *on;

    json_object_foreach(caps, name, on)
    {
        const json_t *value = json_object_get(c->caps, name);

        if (json_is_true(on) && value != NULL)
            json_object_set_new(runtime, name, json_deep_copy(value));
    }
    if (json_object_size(runtime) > 0)
        json_object_set(o, "runtimeConfig", runtime);
    json_decref(runtime);
    json_object_del(o, "capabilities");
    json_object_set_new(o, "name", json_string(c->conf->name));
    json_object_set_new(o, "cniVersion", json_string(c->conf->version));
    if (prev != NULL)
        json_object_set_new(o, "prevResult", json_deep_copy(prev));
    return o;
}

static const char *type_of(const json_t *p)
{
    return json_get_string(p, "type");
}

int chain_add(const struct chain *c, json_t **result, size_t *n_done, struct cancel *cancel,
              struct err *err)
{
    struct cni_exec x = exec_of(c, "ADD");
    auto_json json_t *prev = NULL;
    const json_t *p;
    size_t i;

    *n_done = 0;
    json_array_foreach(c->conf->plugins, i, p)
    {
        auto_json json_t *in = plugin_conf(c, p, prev);
        auto_cni_result struct cni_result check = {0};
        json_t *out = NULL;

        if (cni_exec_run(&x, type_of(p), in, &out, NULL, cancel, err) < 0)
            return -1;
        json_decref(prev);
        prev = out;
        /* checked before the next plugin, and then we, act on it */
        if (cni_result_parse(prev, c->conf->version, &check, err) < 0)
            return err_wrap(err, "plugin %s: ADD", type_of(p));
        if (json_get_string(prev, "cniVersion") == NULL ||
            *json_get_string(prev, "cniVersion") == '\0')
            json_object_set_new(prev, "cniVersion", json_string(c->conf->version));
        *n_done = i + 1;
    }
    *result = take(prev);
    return 0;
}

/* A failure of plugin must_from and later ones is kept in *err, but the rest runs. */
static int del(const struct chain *c, const json_t *prev, size_t must_from, struct cancel *cancel,
               struct err *err)
{
    struct cni_exec x = exec_of(c, "DEL");
    auto_err struct err first = ERR_INIT;

    if (!cni_version_at_least(c->conf->version, "0.4.0"))
        prev = NULL;
    for (size_t i = json_array_size(c->conf->plugins); i-- > 0;) {
        const json_t *p = json_array_get(c->conf->plugins, i);
        auto_json json_t *in = plugin_conf(c, p, prev);
        auto_err struct err why = ERR_INIT;

        if (cni_exec_run(&x, type_of(p), in, NULL, NULL, cancel, &why) == 0)
            continue;
        if (first.code == ERR_OK)
            err_move(&first, &why);
        if (i < must_from)
            break;
    }
    return first.code == ERR_OK ? 0 : err_move(err, &first);
}

int chain_del(const struct chain *c, const json_t *prev, struct cancel *cancel, struct err *err)
{
    return del(c, prev, SIZE_MAX, cancel, err);
}

int chain_undo(const struct chain *c, size_t n_done, struct cancel *cancel, struct err *err)
{
    return del(c, NULL, n_done, cancel, err);
}

int chain_check(const struct chain *c, const json_t *prev, struct cancel *cancel, struct err *err)
{
    struct cni_exec x = exec_of(c, "CHECK");
    const json_t *p;
    size_t i;

    if (c->conf->disable_check)
        return 0;
    if (!cni_version_at_least(c->conf->version, "0.4.0"))
        return err_set(err, ERR_UNIMPLEMENTED, "CNI version %s has no CHECK", c->conf->version);
    if (prev == NULL)
        return err_set(err, ERR_NOT_FOUND, "no result of an earlier ADD");
    json_array_foreach(c->conf->plugins, i, p)
    {
        auto_json json_t *in = plugin_conf(c, p, prev);

        if (cni_exec_run(&x, type_of(p), in, NULL, NULL, cancel, err) < 0)
            return -1;
    }
    return 0;
}

int chain_gc(const struct chain *c, const json_t *attachments, struct cancel *cancel,
             struct err *err)
{
    struct cni_exec x = exec_of(c, "GC");
    auto_err struct err first = ERR_INIT;
    const json_t *p;
    size_t i;

    if (c->conf->disable_gc || !cni_version_at_least(c->conf->version, "1.1.0"))
        return 0;
    json_array_foreach(c->conf->plugins, i, p)
    {
        auto_json json_t *in = plugin_conf(c, p, NULL);
        auto_err struct err why = ERR_INIT;

        json_object_set_new(in, "cni.dev/valid-attachments", json_deep_copy(attachments));
        /* the name libcni used before the specification settled; plugins in the field read it */
        json_object_set_new(in, "cni.dev/attachments", json_deep_copy(attachments));
        if (cni_exec_run(&x, type_of(p), in, NULL, NULL, cancel, &why) < 0 && first.code == ERR_OK)
            err_move(&first, &why);
    }
    return first.code == ERR_OK ? 0 : err_move(err, &first);
}

int chain_status(const struct chain *c, struct cancel *cancel, struct err *err)
{
    struct cni_exec x = exec_of(c, "STATUS");
    const json_t *p;
    size_t i;

    if (!cni_version_at_least(c->conf->version, "1.1.0"))
        return 0;
    json_array_foreach(c->conf->plugins, i, p)
    {
        auto_json json_t *in = plugin_conf(c, p, NULL);

        if (cni_exec_run(&x, type_of(p), in, NULL, NULL, cancel, err) < 0)
            return -1;
    }
    return 0;
}

/* The versions in a VERSION reply; plugins older than the verb answer with an error and mean 0.1.0.
 */
static json_t *versions_of(const struct chain *c, const char *type, struct cancel *cancel,
                           struct err *err)
{
    struct cni_exec x = exec_of(c, "VERSION");
    auto_err struct err why = ERR_INIT;
    auto_json json_t *in = NULL, *reply = NULL;
    json_t *list;

    /* what plugins built on old versions of the plugin library insist on */
    x.container_id = NULL;
    x.netns = x.ifname = "dummy";
    x.args = NULL;
    in = json_pack("{s:s}", "cniVersion", c->conf->version);
    if (cni_exec_run(&x, type, in, &reply, NULL, cancel, &why) < 0) {
        if (strstr(err_msg(&why), "unknown CNI_COMMAND: VERSION") != NULL)
            return json_pack("[s]", "0.1.0");
        err_move(err, &why);
        return NULL;
    }
    list = json_object_get(reply, "supportedVersions");
    if (!json_is_array(list) || json_array_size(list) > LIMIT_CNI_PLUGINS) {
        err_set(err, ERR_INVALID, "plugin %s: VERSION: no list of versions", type);
        return NULL;
    }
    return json_incref(list);
}

static bool lists(const json_t *versions, const char *version)
{
    const json_t *v;
    size_t i;

    json_array_foreach(versions, i, v)
    {
        if (json_is_string(v) && strcmp(json_string_value(v), version) == 0)
            return true;
    }
    return false;
}

int chain_versions(const struct chain *c, json_t **info, struct cancel *cancel, struct err *err)
{
    auto_json json_t *all = json_array();
    auto_err struct err first = ERR_INIT;
    const json_t *p;
    size_t i;

    json_array_foreach(c->conf->plugins, i, p)
    {
        auto_err struct err why = ERR_INIT;
        auto_free char *path = cni_exec_find(type_of(p), c->bin_dirs, &why);
        auto_json json_t *versions = NULL;
        json_t *e = json_object();

        json_object_set_new(e, "type", json_string(type_of(p)));
        json_array_append_new(all, e);
        if (path != NULL) {
            json_object_set_new(e, "path", json_string(path));
            versions = versions_of(c, type_of(p), cancel, &why);
        }
        if (versions != NULL) {
            json_object_set_new(e, "versions", json_deep_copy(versions));
            if (!lists(versions, c->conf->version))
                err_set(&why, ERR_PRECONDITION,
                        "plugin %s does not speak CNI %s, the version of network %s", type_of(p),
                        c->conf->version, c->conf->name);
        }
        if (why.code != ERR_OK && first.code == ERR_OK)
            err_move(&first, &why);
    }
    if (info != NULL)
        *info = take(all);
    return first.code == ERR_OK ? 0 : err_move(err, &first);
}
