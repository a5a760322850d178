#include "netplugin/cache.h"

#include <dirent.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/buf.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "netplugin/json.h"
#include "netplugin/netaddr.h"

#define CACHE_KIND "cniCacheV1"
/* A key of our own, which libcni passes over: GC must not take other runtimes' pods for leftovers.
 */
#define CACHE_OWNER "createdBy"
#define CACHE_OWNER_US "aspis"

void cache_entry_clear(struct cache_entry *e)
{
    free(e->file);
    free(e->network);
    free(e->container_id);
    free(e->ifname);
    free(e->netns);
    free(e->args);
    cni_conf_unref(e->conf);
    json_decref(e->caps);
    json_decref(e->result);
    *e = (struct cache_entry){0};
}

/* "A=1;B=2" as [["A","1"],["B","2"]]. */
static json_t *args_to_json(const char *args)
{
    json_t *a = json_array();

    while (!str_empty(args)) {
        size_t len = strcspn(args, ";"), key = strcspn(args, "=;");

        if (key < len)
            json_array_append_new(a,
                                  json_pack("[s%, s%]", args, key, args + key + 1, len - key - 1));
        args += len + (args[len] == ';');
    }
    return a;
}

static char *args_from_json(const json_t *a)
{
    auto_buf struct buf b = BUF_INIT(LIMIT_STRING);
    const json_t *pair;
    size_t i;

    json_array_foreach(a, i, pair)
    {
        const char *k = json_string_value(json_array_get(pair, 0));
        const char *v = json_string_value(json_array_get(pair, 1));

        if (k != NULL && v != NULL && strpbrk(k, "=;") == NULL && strchr(v, ';') == NULL)
            (void)buf_printf(&b, "%s%s=%s", b.len == 0 ? "" : ";", k, v);
    }
    return xstrdup(buf_str(&b));
}

static char *file_of(const char *dir, const struct cache_entry *e)
{
    return fs_format("%s/results/%s-%s-%s", dir, e->network, e->container_id, e->ifname);
}

int cache_write(const char *dir, const struct cache_entry *e, struct err *err)
{
    auto_free char *results = fs_format("%s/results", dir);
    auto_free char *file = file_of(dir, e);
    size_t len = strlen(e->conf->text);
    auto_free char *config = xcalloc(4 * ((len + 2) / 3) + 1, 1), *text = NULL;
    auto_json json_t *o = NULL;

    (void)EVP_EncodeBlock((unsigned char *)config, (const unsigned char *)e->conf->text, (int)len);
    o = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s}", "kind", CACHE_KIND, "containerId",
                  e->container_id, "config", config, "ifName", e->ifname, "networkName", e->network,
                  CACHE_OWNER, CACHE_OWNER_US);
    if (!str_empty(e->netns))
        json_object_set_new(o, "netns", json_string(e->netns));
    if (!str_empty(e->args))
        json_object_set_new(o, "cniArgs", args_to_json(e->args));
    if (json_object_size(e->caps) > 0)
        json_object_set_new(o, "capabilityArgs", json_deep_copy(e->caps));
    if (e->result != NULL)
        json_object_set_new(o, "result", json_deep_copy(e->result));
    text = json_dumps(o, JSON_COMPACT);
    if (text == NULL)
        return err_set(err, ERR_EXHAUSTED, "cache %s: does not fit in memory", file);
    if (fs_mkdir_p(results, 0700, err) < 0 ||
        fs_write_atomic(file, text, strlen(text), 0600, e->result != NULL, err) < 0)
        return err_wrap(err, "cache of CNI results");
    return 0;
}

int cache_forget(const char *dir, const struct cache_entry *e, struct err *err)
{
    auto_free char *file = file_of(dir, e);

    return cache_remove(file, err);
}

static struct cni_conf *parse_config(const char *b64, struct err *err)
{
    size_t len = b64 != NULL ? strlen(b64) : 0;
    auto_free char *text = NULL;
    int n;

    if (len == 0 || len % 4 != 0 || len > LIMIT_CNI_CACHE) {
        err_set(err, ERR_INVALID, "config: not base64");
        return NULL;
    }
    text = xcalloc(len / 4 * 3 + 1, 1);
    n = EVP_DecodeBlock((unsigned char *)text, (const unsigned char *)b64, (int)len);
    if (n < 0) {
        err_set(err, ERR_INVALID, "config: not base64");
        return NULL;
    }
    /* the decoder counts padding as bytes */
    for (size_t i = len; i > len - 2 && b64[i - 1] == '='; i--)
        n--;
    return cni_conf_parse(text, (size_t)n, true, NULL, err);
}

int cache_parse(const char *text, size_t len, struct cache_entry *out, struct err *err)
{
    auto_json json_t *o = json_parse(text, len, LIMIT_CNI_CACHE, err);
    auto_cache_entry struct cache_entry e = {0};
    const char *kind, *id, *ifname, *network, *netns, *owner;
    json_t *caps, *result;

    if (o == NULL)
        return -1;
    kind = json_get_string(o, "kind");
    id = json_get_string(o, "containerId");
    ifname = json_get_string(o, "ifName");
    network = json_get_string(o, "networkName");
    netns = json_get_string(o, "netns");
    caps = json_object_get(o, "capabilityArgs");
    result = json_object_get(o, "result");
    if (kind == NULL || strcmp(kind, CACHE_KIND) != 0)
        return err_set(err, ERR_INVALID, "kind is not %s", CACHE_KIND);
    if (!cni_name_ok(id) || !netaddr_ifname_ok(ifname) || !cni_name_ok(network))
        return err_set(err, ERR_INVALID, "names no container, interface or network");
    if (netns != NULL && strlen(netns) >= LIMIT_PATH)
        return err_set(err, ERR_INVALID, "netns: too long");
    e.conf = parse_config(json_get_string(o, "config"), err);
    if (e.conf == NULL)
        return -1;
    if (strcmp(e.conf->name, network) != 0)
        return err_set(err, ERR_INVALID, "config is of another network");
    e.container_id = xstrdup(id);
    e.ifname = xstrdup(ifname);
    e.network = xstrdup(network);
    e.netns = xstrdup(netns != NULL ? netns : "");
    e.args = args_from_json(json_object_get(o, "cniArgs"));
    e.caps = json_is_object(caps) ? json_deep_copy(caps) : NULL;
    e.result = json_is_object(result) ? json_deep_copy(result) : NULL;
    owner = json_get_string(o, CACHE_OWNER);
    e.ours = owner != NULL && strcmp(owner, CACHE_OWNER_US) == 0;
    *out = e;
    memset(&e, 0, sizeof(e));
    return 0;
}

int cache_read(const char *file, struct cache_entry *out, struct err *err)
{
    size_t len;
    auto_free char *text = fs_read(file, LIMIT_CNI_CACHE, &len, err);

    if (text == NULL)
        return -1;
    if (cache_parse(text, len, out, err) < 0)
        return err_wrap(err, "%s", file);
    out->file = xstrdup(file);
    return 0;
}

int cache_remove(const char *file, struct err *err)
{
    if (unlink(file) < 0 && errno != ENOENT)
        return err_sys(err, errno, "remove %s", file);
    return 0;
}

int cache_remove_unfinished(const char *dir, const char *container_id, const char *ifname,
                            struct err *err)
{
    auto_free char *results = fs_format("%s/results", dir);
    auto_free char *middle = fs_format("-%s-%s.", container_id, ifname);
    auto_closedir DIR *d = opendir(results);
    const struct dirent *e;

    if (d == NULL)
        return errno == ENOENT ? 0 : err_sys(err, errno, "open %s", results);
    while ((errno = 0, e = readdir(d)) != NULL) {
        const char *at = strstr(e->d_name, middle);
        if (at != NULL && strlen(at) == strlen(middle) + strlen("XXXXXX") &&
            unlinkat(dirfd(d), e->d_name, 0) < 0 && errno != ENOENT)
            return err_sys(err, errno, "remove %s/%s", results, e->d_name);
    }
    return errno != 0 ? err_sys(err, errno, "read %s", results) : 0;
}

int cache_each(const char *dir, const char *container_id, const char *ifname,
               int (*fn)(const char *file, void *arg, struct err *err), void *arg, struct err *err)
{
    auto_free char *results = fs_format("%s/results", dir);
    auto_free char *tail =
        container_id != NULL ? fs_format("-%s-%s", container_id, ifname) : xstrdup("");
    auto_strv struct strv files = {0};
    auto_closedir DIR *d = opendir(results);
    const struct dirent *e;
    int ret = 0;

    if (d == NULL)
        return errno == ENOENT ? 0 : err_sys(err, errno, "open %s", results);
    while ((errno = 0, e = readdir(d)) != NULL) {
        if (e->d_name[0] != '.' && str_ends(e->d_name, tail) && strlen(e->d_name) > strlen(tail))
            strv_addf(&files, "%s/%s", results, e->d_name);
    }
    if (errno != 0)
        return err_sys(err, errno, "read %s", results);
    /* the directory is not being read any more: fn may remove what it is shown */
    for (size_t i = 0; i < files.n && ret == 0; i++)
        ret = fn(files.v[i], arg, err);
    return ret;
}
