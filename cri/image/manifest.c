#include "cri/image/manifest.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

#include "base/limits.h"
#include "base/str.h"

#define auto_json __attribute__((cleanup(json_decrefp))) /* jansson brings the function */

#define OCI_INDEX "application/vnd.oci.image.index.v1+json"
#define OCI_MANIFEST "application/vnd.oci.image.manifest.v1+json"
#define DOCKER_LIST "application/vnd.docker.distribution.manifest.list.v2+json"
#define DOCKER_MANIFEST "application/vnd.docker.distribution.manifest.v2+json"

void platform_host(struct platform *p)
{
    static const struct {
        const char *machine, *architecture, *variant;
    } names[] = {
        {"x86_64", "amd64", ""},    {"aarch64", "arm64", "v8"},     {"armv7l", "arm", "v7"},
        {"ppc64le", "ppc64le", ""}, {"s390x", "s390x", ""},         {"riscv64", "riscv64", ""},
        {"i686", "386", ""},        {"loongarch64", "loong64", ""},
    };
    struct utsname u;

    *p = (struct platform){.os = "linux"};
    if (uname(&u) < 0)
        return;
    (void)snprintf(p->architecture, sizeof(p->architecture), "%.15s", u.machine);
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        if (strcmp(u.machine, names[i].machine) == 0) {
            (void)strcpy(p->architecture, names[i].architecture);
            (void)strcpy(p->variant, names[i].variant);
        }
}

/* jansson bounds nesting at 2048 levels by itself; duplicate keys could make two readers of one
 * document disagree, so they are refused. */
static json_t *load(const char *json, size_t len, size_t max, const char *what, struct err *err)
{
    json_error_t je;
    json_t *root;

    if (len > max) {
        (void)err_set(err, ERR_INVALID, "%s is larger than %zu bytes", what, max);
        return NULL;
    }
    root = json_loadb(json, len, JSON_REJECT_DUPLICATES, &je);
    if (root == NULL) {
        (void)err_set(err, ERR_INVALID, "%s is not valid JSON (line %d, column %d)", what, je.line,
                      je.column);
        return NULL;
    }
    if (!json_is_object(root)) {
        json_decref(root);
        (void)err_set(err, ERR_INVALID, "%s is not a JSON object", what);
        return NULL;
    }
    return root;
}

static const char *string_of(const json_t *object, const char *key)
{
    const char *s = json_string_value(json_object_get(object, key));

    return s != NULL ? s : "";
}

/* Copies into a small field; what does not fit can match nothing we look for. */
static void copy_name(char *out, size_t size, const char *s)
{
    if (strlen(s) >= size)
        s = "?";
    (void)snprintf(out, size, "%s", s);
}

static int parse_descriptor(const json_t *j, struct descriptor *d, const char *what,
                            struct err *err)
{
    const json_t *size = json_object_get(j, "size");
    const char *digest = string_of(j, "digest");

    if (!json_is_object(j))
        return err_set(err, ERR_INVALID, "%s is not an object", what);
    if (!digest_valid(digest))
        return err_set(err, ERR_INVALID, "%s has no valid digest", what);
    if (!json_is_integer(size) || json_integer_value(size) < 0)
        return err_set(err, ERR_INVALID, "%s has no valid size", what);
    *d = (struct descriptor){.size = (uint64_t)json_integer_value(size)};
    (void)strcpy(d->digest, digest);
    return 0;
}

static int check_layer_type(const json_t *j, size_t i, struct err *err)
{
    static const char *const known[] = {
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        /* Deprecated names for layers kept elsewhere; many registries serve them all the same. */
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    };
    const char *type = string_of(j, "mediaType");

    for (size_t k = 0; k < ARRAY_LEN(known); k++)
        if (strcmp(type, known[k]) == 0)
            return 0;
    return err_set(err, ERR_INVALID, "layer %zu has the unsupported media type \"%.128s\"", i,
                   type);
}

static bool is_foreign(const json_t *layer)
{
    const char *type = string_of(layer, "mediaType");

    return strstr(type, ".nondistributable.") != NULL || strstr(type, ".foreign.") != NULL;
}

static int parse_image(const json_t *root, struct manifest *m, struct err *err)
{
    const json_t *config = json_object_get(root, "config");
    const json_t *layers = json_object_get(root, "layers");
    const char *type = string_of(config, "mediaType");

    if (parse_descriptor(config, &m->config, "the manifest's config", err) < 0)
        return -1;
    if (strcmp(type, "application/vnd.oci.image.config.v1+json") != 0 &&
        strcmp(type, "application/vnd.docker.container.image.v1+json") != 0)
        return err_set(err, ERR_INVALID,
                       "this is not a container image: its config has the media type \"%.128s\"",
                       type);
    if (!str_starts(m->config.digest, "sha256:"))
        return err_set(err, ERR_INVALID, "the manifest's config has no sha256 digest");
    if (m->config.size > LIMIT_IMAGE_CONFIG)
        return err_set(err, ERR_INVALID, "the image config is larger than %zu bytes",
                       LIMIT_IMAGE_CONFIG);
    if (!json_is_array(layers))
        return err_set(err, ERR_INVALID, "the manifest has no list of layers");
    if (json_array_size(layers) > LIMIT_IMAGE_LAYERS)
        return err_set(err, ERR_INVALID, "the manifest has %zu layers; at most %d are allowed",
                       json_array_size(layers), LIMIT_IMAGE_LAYERS);
    m->entries = xcalloc(json_array_size(layers) + 1, sizeof(*m->entries));
    for (size_t i = 0; i < json_array_size(layers); i++) {
        const json_t *layer = json_array_get(layers, i);
        char what[48];

        (void)snprintf(what, sizeof(what), "layer %zu", i);
        if (parse_descriptor(layer, &m->entries[i], what, err) < 0 ||
            check_layer_type(layer, i, err) < 0)
            return -1;
        m->entries[i].foreign = is_foreign(layer);
        m->n_entries++;
    }
    return 0;
}

static int parse_index(const json_t *root, struct manifest *m, struct err *err)
{
    const json_t *list = json_object_get(root, "manifests");

    if (!json_is_array(list))
        return err_set(err, ERR_INVALID, "the index has no list of manifests");
    if (json_array_size(list) > LIMIT_INDEX_ENTRIES)
        return err_set(err, ERR_INVALID, "the index has %zu entries; at most %d are allowed",
                       json_array_size(list), LIMIT_INDEX_ENTRIES);
    m->entries = xcalloc(json_array_size(list) + 1, sizeof(*m->entries));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *entry = json_array_get(list, i);
        const json_t *platform = json_object_get(entry, "platform");
        struct descriptor *d = &m->entries[i];
        const char *type = string_of(entry, "mediaType");
        char what[48];

        (void)snprintf(what, sizeof(what), "index entry %zu", i);
        if (parse_descriptor(entry, d, what, err) < 0)
            return -1;
        copy_name(d->platform.os, sizeof(d->platform.os), string_of(platform, "os"));
        copy_name(d->platform.architecture, sizeof(d->platform.architecture),
                  string_of(platform, "architecture"));
        copy_name(d->platform.variant, sizeof(d->platform.variant), string_of(platform, "variant"));
        d->skip = strcmp(d->platform.os, "unknown") == 0 ||
                  json_object_get(json_object_get(entry, "annotations"),
                                  "vnd.docker.reference.type") != NULL ||
                  (strcmp(type, OCI_INDEX) != 0 && strcmp(type, OCI_MANIFEST) != 0 &&
                   strcmp(type, DOCKER_LIST) != 0 && strcmp(type, DOCKER_MANIFEST) != 0);
        m->n_entries++;
    }
    return 0;
}

/* The media type without parameters, or "" when it is none that decides anything. */
static void known_type(const char *content_type, char *out, size_t size)
{
    size_t n = content_type != NULL ? strcspn(content_type, "; \t") : 0;

    out[0] = '\0';
    if (n > 0 && n < size) {
        memcpy(out, content_type, n);
        out[n] = '\0';
    }
    if (!str_starts(out, "application/vnd."))
        out[0] = '\0'; /* application/json and the like */
}

static int decide_kind(const json_t *root, const char *content_type, struct manifest *m,
                       struct err *err)
{
    const json_t *version = json_object_get(root, "schemaVersion");
    const char *own = string_of(root, "mediaType");
    char type[128];

    known_type(content_type, type, sizeof(type));
    if (json_integer_value(version) == 1 || strstr(type, "manifest.v1+") != NULL)
        if (strcmp(type, OCI_MANIFEST) != 0)
            return err_set(err, ERR_INVALID,
                           "the image is in Docker's schema 1 format, which is obsolete and not "
                           "supported; push it again with a current tool");
    if (!json_is_integer(version) || json_integer_value(version) != 2)
        return err_set(err, ERR_INVALID, "the manifest has no schemaVersion 2");
    if (type[0] != '\0' && own[0] != '\0' && strcmp(type, own) != 0)
        return err_set(err, ERR_INVALID,
                       "the manifest says it is \"%.128s\", the registry says \"%s\"", own, type);
    if (own[0] == '\0')
        own = type;
    if (strcmp(own, OCI_INDEX) == 0 || strcmp(own, DOCKER_LIST) == 0)
        m->kind = MANIFEST_INDEX;
    else if (strcmp(own, OCI_MANIFEST) == 0 || strcmp(own, DOCKER_MANIFEST) == 0)
        m->kind = MANIFEST_IMAGE;
    else if (own[0] != '\0')
        return err_set(err, ERR_INVALID, "unsupported manifest type \"%.128s\"", own);
    else if (json_object_get(root, "manifests") != NULL)
        m->kind = MANIFEST_INDEX;
    else
        m->kind = MANIFEST_IMAGE;
    /* A document that can be read both ways is an attack on whoever reads it the other way. */
    if (json_object_get(root, "manifests") != NULL &&
        (json_object_get(root, "layers") != NULL || json_object_get(root, "config") != NULL))
        return err_set(err, ERR_INVALID, "the manifest is an index and an image at once");
    return 0;
}

int manifest_parse(const char *json, size_t len, const char *content_type, struct manifest **out,
                   struct err *err)
{
    auto_json json_t *root = load(json, len, LIMIT_MANIFEST, "the manifest", err);
    auto_manifest struct manifest *m = NULL;

    if (root == NULL)
        return -1;
    m = xcalloc(1, sizeof(*m));
    if (decide_kind(root, content_type, m, err) < 0)
        return -1;
    if ((m->kind == MANIFEST_INDEX ? parse_index(root, m, err) : parse_image(root, m, err)) < 0)
        return -1;
    *out = take(m);
    return 0;
}

void manifest_free(struct manifest *m)
{
    if (m == NULL)
        return;
    free(m->entries);
    free(m);
}

static int variant_number(const char *v)
{
    if (v[0] != 'v' || v[1] < '1' || v[1] > '9' || v[2] != '\0')
        return -1;
    return v[1] - '0';
}

/* The variant that an architecture has when none is named. */
static int default_variant(const char *architecture)
{
    if (strcmp(architecture, "arm64") == 0)
        return 8;
    if (strcmp(architecture, "arm") == 0)
        return 7;
    if (strcmp(architecture, "amd64") == 0)
        return 1;
    return 0;
}

/* How well an entry fits, higher is better; -1: not at all. Newer variants run older code. */
static int fit(const struct platform *have, const struct platform *want)
{
    int hv, wv;

    if (strcmp(have->os, want->os) != 0 || strcmp(have->architecture, want->architecture) != 0)
        return -1;
    hv = have->variant[0] != '\0' ? variant_number(have->variant)
                                  : default_variant(have->architecture);
    wv = want->variant[0] != '\0' ? variant_number(want->variant)
                                  : default_variant(want->architecture);
    if (hv < 0 || wv < 0)
        return strcmp(have->variant, want->variant) == 0 ? 0 : -1;
    return hv <= wv ? hv : -1;
}

int manifest_choose(const struct manifest *index, const struct platform *want,
                    const struct descriptor **out, struct err *err)
{
    int best = -1;

    for (size_t i = 0; i < index->n_entries; i++) {
        const struct descriptor *d = &index->entries[i];
        int f = d->skip ? -1 : fit(&d->platform, want);

        if (f > best) {
            best = f;
            *out = d;
        }
    }
    if (best >= 0)
        return 0;
    /* One image that names no platform: all that the index can mean. */
    if (index->n_entries == 1 && !index->entries[0].skip &&
        index->entries[0].platform.architecture[0] == '\0') {
        *out = &index->entries[0];
        return 0;
    }
    return err_set(err, ERR_NOT_FOUND, "the image has no variant for %s/%s%s%s", want->os,
                   want->architecture, want->variant[0] != '\0' ? "/" : "", want->variant);
}

uint64_t manifest_total(const struct manifest *m, size_t manifest_len)
{
    uint64_t total = manifest_len;

    if (__builtin_add_overflow(total, m->config.size, &total))
        return UINT64_MAX;
    for (size_t i = 0; i < m->n_entries; i++)
        if (__builtin_add_overflow(total, m->entries[i].size, &total))
            return UINT64_MAX;
    return total;
}

/* null and absent are an empty list. Strings with NUL bytes never get this far: jansson refuses
 * them. */
static int string_list(const json_t *object, const char *key, struct strv *out, struct err *err)
{
    const json_t *list = json_object_get(object, key);

    if (list == NULL || json_is_null(list))
        return 0;
    if (!json_is_array(list))
        return err_set(err, ERR_INVALID, "the image config's %s is not a list", key);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *s = json_string_value(json_array_get(list, i));

        if (s == NULL)
            return err_set(err, ERR_INVALID, "the image config's %s holds something else than text",
                           key);
        strv_add(out, s);
    }
    return 0;
}

static int text(const json_t *object, const char *key, char **out, struct err *err)
{
    const json_t *j = json_object_get(object, key);

    if (j != NULL && !json_is_null(j) && !json_is_string(j))
        return err_set(err, ERR_INVALID, "the image config's %s is not text", key);
    *out = xstrdup(json_is_string(j) ? json_string_value(j) : "");
    return 0;
}

static int key_list(const json_t *object, const char *key, bool values, struct strv *out,
                    struct err *err)
{
    json_t *map = json_object_get(object, key);
    const char *k;
    json_t *v;

    if (map == NULL || json_is_null(map))
        return 0;
    if (!json_is_object(map))
        return err_set(err, ERR_INVALID, "the image config's %s is not an object", key);
    json_object_foreach(map, k, v)
    {
        if (values && !json_is_string(v))
            return err_set(err, ERR_INVALID, "the image config's %s holds something else than text",
                           key);
        strv_add(out, k);
        if (values)
            strv_add(out, json_string_value(v));
    }
    return 0;
}

static int parse_config(const json_t *root, struct image_config *cfg, struct err *err)
{
    const json_t *c = json_object_get(root, "config");

    if (c != NULL && !json_is_null(c) && !json_is_object(c))
        return err_set(err, ERR_INVALID, "the image config's config is not an object");
    if (string_list(c, "Entrypoint", &cfg->entrypoint, err) < 0 ||
        string_list(c, "Cmd", &cfg->cmd, err) < 0 || string_list(c, "Env", &cfg->env, err) < 0 ||
        key_list(c, "Volumes", false, &cfg->volumes, err) < 0 ||
        key_list(c, "Labels", true, &cfg->labels, err) < 0 ||
        text(c, "WorkingDir", &cfg->working_dir, err) < 0 || text(c, "User", &cfg->user, err) < 0 ||
        text(c, "StopSignal", &cfg->stop_signal, err) < 0)
        return -1;
    return 0;
}

static int parse_rootfs(const json_t *root, struct strv *diff_ids, struct err *err)
{
    const json_t *rootfs = json_object_get(root, "rootfs");

    if (strcmp(string_of(rootfs, "type"), "layers") != 0)
        return err_set(err, ERR_INVALID, "the image config's rootfs is not of type \"layers\"");
    if (string_list(rootfs, "diff_ids", diff_ids, err) < 0)
        return -1;
    if (diff_ids->n > LIMIT_IMAGE_LAYERS)
        return err_set(err, ERR_INVALID, "the image config has %zu layers; at most %d are allowed",
                       diff_ids->n, LIMIT_IMAGE_LAYERS);
    for (size_t i = 0; i < diff_ids->n; i++)
        if (!digest_valid(diff_ids->v[i]) || !str_starts(diff_ids->v[i], "sha256:"))
            return err_set(err, ERR_INVALID, "diff_id %zu of the image config is no sha256 digest",
                           i);
    return 0;
}

int image_config_parse(const char *json, size_t len, struct image_config *cfg,
                       struct strv *diff_ids, struct platform *platform, struct err *err)
{
    auto_json json_t *root = load(json, len, LIMIT_IMAGE_CONFIG, "the image config", err);
    auto_strv struct strv ids = {0};
    struct image_config parsed = {0};

    if (root == NULL)
        return -1;
    if (parse_config(root, &parsed, err) < 0 || parse_rootfs(root, &ids, err) < 0) {
        image_config_clear(&parsed);
        return -1;
    }
    if (platform != NULL) {
        *platform = (struct platform){0};
        copy_name(platform->os, sizeof(platform->os), string_of(root, "os"));
        copy_name(platform->architecture, sizeof(platform->architecture),
                  string_of(root, "architecture"));
        copy_name(platform->variant, sizeof(platform->variant), string_of(root, "variant"));
    }
    *diff_ids = ids;
    ids = (struct strv){0};
    if (cfg != NULL)
        *cfg = parsed;
    else
        image_config_clear(&parsed);
    return 0;
}

void image_config_clear(struct image_config *cfg)
{
    strv_clear(&cfg->entrypoint);
    strv_clear(&cfg->cmd);
    strv_clear(&cfg->env);
    strv_clear(&cfg->volumes);
    strv_clear(&cfg->labels);
    free(cfg->working_dir);
    free(cfg->user);
    free(cfg->stop_signal);
    *cfg = (struct image_config){0};
}

static void copy_list(struct strv *to, const struct strv *from)
{
    for (size_t i = 0; i < from->n; i++)
        strv_add(to, from->v[i]);
}

void image_config_copy(struct image_config *to, const struct image_config *from)
{
    *to = (struct image_config){0};
    copy_list(&to->entrypoint, &from->entrypoint);
    copy_list(&to->cmd, &from->cmd);
    copy_list(&to->env, &from->env);
    copy_list(&to->volumes, &from->volumes);
    copy_list(&to->labels, &from->labels);
    to->working_dir = xstrdup(from->working_dir);
    to->user = xstrdup(from->user);
    to->stop_signal = xstrdup(from->stop_signal);
}
