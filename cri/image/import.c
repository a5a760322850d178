/*
 * image_import(): images of an OCI layout (image-spec image-layout.md) or of `docker save`, the
 * first where an archive is both. See image.h.
 */
#include <string.h>

#include <jansson.h>

#include "base/limits.h"
#include "cri/image/bundle.h"
#include "cri/image/image.h"
#include "cri/image/import_layer.h"
#include "cri/image/manifest.h"
#include "cri/image/reference.h"
#include "cri/image/store.h"

struct import {
    struct image_store *store;
    const struct bundle *bundle;
    struct store_lease *lease; /* of the image at hand */
    image_progress_fn progress;
    void *progress_arg;
    struct cancel *cancel;
};

/* One image of the archive, and the names it goes by. */
struct source {
    char top[DIGEST_MAX];  /* OCI: manifest or index */
    const json_t *docker;  /* docker archive: its entry in manifest.json */
    struct strv names;     /* normalised references, may be none */
    struct strv manifests; /* digests of blobs put into the store */
    char config[DIGEST_MAX];
    struct strv files;   /* of the layers, names in the bundle */
    struct strv digests; /* of the layers' files, "" when not known */
    struct strv diff_ids;
    uint64_t size;
};

static void source_clear(struct source *s)
{
    strv_clear(&s->names);
    strv_clear(&s->manifests);
    strv_clear(&s->files);
    strv_clear(&s->digests);
    strv_clear(&s->diff_ids);
}

struct sources {
    struct source *v;
    size_t n;
};

static struct source *sources_add(struct sources *l)
{
    l->v = xrealloc(l->v, l->n + 1, sizeof(*l->v));
    memset(&l->v[l->n], 0, sizeof(*l->v));
    return &l->v[l->n++];
}

static json_t *read_json(const struct bundle *b, const char *name, struct err *err)
{
    size_t len;
    auto_free char *text = bundle_read(b, name, LIMIT_MANIFEST, &len, err);
    if (text == NULL)
        return NULL;
    json_error_t e;
    json_t *j = json_loadb(text, len, JSON_REJECT_DUPLICATES, &e);
    if (j == NULL)
        (void)err_set(err, ERR_INVALID, "%s: line %d: %s", name, e.line, e.text);
    return j;
}

static char *blob_name(const char *digest)
{
    struct strv l = {0};
    strv_addf(&l, "blobs/%.*s/%s", (int)strcspn(digest, ":"), digest, digest_hex(digest));
    char *name = xstrdup(l.v[0]);
    strv_clear(&l);
    return name;
}

/* Adds a name that says at least which repository. A bare tag, as some tools write, says nothing.
 */
static int add_name(struct source *s, const char *text, struct err *err)
{
    auto_reference struct reference ref = {0};
    if (text == NULL || strpbrk(text, "/:") == NULL)
        return 0;
    if (reference_parse(text, &ref, err) < 0)
        return err_wrap(err, "a name in the archive");
    auto_free char *name = reference_string(&ref);
    if (ref.digest == NULL)
        strv_add(&s->names, name);
    return 0;
}

/* OCI layout */

static const char *annotated_name(const json_t *entry)
{
    const json_t *notes = json_object_get(entry, "annotations");
    const char *name = json_string_value(json_object_get(notes, "io.containerd.image.name"));
    if (name == NULL)
        name = json_string_value(json_object_get(notes, "org.opencontainers.image.ref.name"));
    return name;
}

static bool runs_here(const struct descriptor *d)
{
    struct platform here;
    struct descriptor one = *d;
    const struct descriptor *chosen;
    struct manifest m = {.kind = MANIFEST_INDEX, .entries = &one, .n_entries = 1};
    platform_host(&here);
    return manifest_choose(&m, &here, &chosen, NULL) == 0;
}

static int list_oci(const struct bundle *b, struct sources *out, struct err *err)
{
    size_t len;
    auto_manifest struct manifest *index = NULL;
    auto_free char *text = bundle_read(b, "index.json", LIMIT_MANIFEST, &len, err);
    if (text == NULL || manifest_parse(text, len, NULL, &index, err) < 0)
        return err_wrap(err, "index.json");
    json_t *j = read_json(b, "index.json", err);
    if (j == NULL)
        return -1;
    int rc =
        index->kind == MANIFEST_INDEX ? 0 : err_set(err, ERR_INVALID, "index.json is no index");
    const json_t *list = json_object_get(j, "manifests");
    for (size_t i = 0; i < index->n_entries && rc == 0; i++) {
        const struct descriptor *d = &index->entries[i];
        struct source *s = NULL;
        if (!runs_here(d))
            continue;
        for (size_t k = 0; k < out->n && s == NULL; k++)
            s = strcmp(out->v[k].top, d->digest) == 0 ? &out->v[k] : NULL;
        if (s == NULL) {
            s = sources_add(out);
            (void)snprintf(s->top, sizeof(s->top), "%s", d->digest);
        }
        rc = add_name(s, annotated_name(json_array_get(list, i)), err);
    }
    json_decref(j);
    return rc;
}

/* A document that is put into the store and listed among the image's manifests. */
static int read_document(struct import *im, struct source *s, const char *digest,
                         struct manifest **m, uint64_t *size, struct err *err)
{
    size_t len;
    auto_free char *name = blob_name(digest);
    auto_free char *text = bundle_read(im->bundle, name, LIMIT_MANIFEST, &len, err);
    if (text == NULL || digest_check(text, len, digest, err) < 0 ||
        manifest_parse(text, len, NULL, m, err) < 0 ||
        store_blob_put(im->lease, digest, text, len, err) < 0)
        return err_wrap(err, "%s", name);
    strv_add(&s->manifests, digest);
    *size = len;
    return 0;
}

/* Follows indexes to the manifest of our platform and takes the layers from it. */
static int open_oci(struct import *im, struct source *s, struct err *err)
{
    struct platform here;
    char digest[DIGEST_MAX];
    platform_host(&here);
    memcpy(digest, s->top, sizeof(digest));
    for (int depth = 0; depth <= LIMIT_INDEX_DEPTH; depth++) {
        auto_manifest struct manifest *m = NULL;
        const struct descriptor *next;
        uint64_t len = 0;
        if (read_document(im, s, digest, &m, &len, err) < 0)
            return -1;
        if (m->kind == MANIFEST_INDEX) {
            if (manifest_choose(m, &here, &next, err) < 0)
                return -1;
            memcpy(digest, next->digest, sizeof(digest));
            continue;
        }
        memcpy(s->config, m->config.digest, sizeof(s->config));
        s->size = manifest_total(m, (size_t)len);
        for (size_t i = 0; i < m->n_entries; i++) {
            auto_free char *name = blob_name(m->entries[i].digest);
            strv_add(&s->files, name);
            strv_add(&s->digests, m->entries[i].digest);
        }
        return 0;
    }
    return err_set(err, ERR_INVALID, "indexes nested deeper than %d", LIMIT_INDEX_DEPTH);
}

/* Docker archive */

static int list_docker(const json_t *list, struct sources *out, struct err *err)
{
    size_t i;
    json_t *entry;
    if (!json_is_array(list) || json_array_size(list) > LIMIT_INDEX_ENTRIES)
        return err_set(err, ERR_INVALID, "manifest.json is not a list of images");
    json_array_foreach(list, i, entry)
    {
        struct source *s = sources_add(out);
        const json_t *tags = json_object_get(entry, "RepoTags");
        s->docker = entry;
        if (json_array_size(tags) > LIMIT_INDEX_ENTRIES)
            return err_set(err, ERR_INVALID, "manifest.json has too many names");
        for (size_t k = 0; k < json_array_size(tags); k++) {
            if (add_name(s, json_string_value(json_array_get(tags, k)), err) < 0)
                return -1;
        }
    }
    return 0;
}

static int add_layer_size(struct import *im, struct source *s, const char *name, struct err *err)
{
    struct bundle_file f;
    if (bundle_file(im->bundle, name, &f, err) < 0)
        return -1;
    (void)close(f.fd);
    s->size += f.size;
    return 0;
}

static int open_docker(struct import *im, struct source *s, struct err *err)
{
    const json_t *layers = json_object_get(s->docker, "Layers");
    const char *config = json_string_value(json_object_get(s->docker, "Config"));
    size_t len;
    if (config == NULL || !json_is_array(layers) || json_array_size(layers) > LIMIT_IMAGE_LAYERS)
        return err_set(err, ERR_INVALID, "manifest.json has no good Config or Layers");
    auto_free char *text = bundle_read(im->bundle, config, LIMIT_IMAGE_CONFIG, &len, err);
    if (text == NULL || digest_of(text, len, "sha256", s->config, err) < 0 ||
        store_blob_put(im->lease, s->config, text, len, err) < 0)
        return -1;
    s->size = len;
    for (size_t i = 0; i < json_array_size(layers); i++) {
        const char *name = json_string_value(json_array_get(layers, i));
        if (name == NULL)
            return err_set(err, ERR_INVALID, "manifest.json has a layer without a name");
        if (add_layer_size(im, s, name, err) < 0)
            return -1;
        strv_add(&s->files, name);
        strv_add(&s->digests, "");
    }
    return 0;
}

/* Both */

static int read_config(struct import *im, struct source *s, struct err *err)
{
    size_t len;
    auto_free char *text = NULL;
    if (s->docker != NULL) {
        text = store_blob_get(im->store, im->lease, s->config, LIMIT_IMAGE_CONFIG, &len, err);
    } else {
        auto_free char *name = blob_name(s->config);
        text = bundle_read(im->bundle, name, LIMIT_IMAGE_CONFIG, &len, err);
    }
    if (text == NULL || store_blob_put(im->lease, s->config, text, len, err) < 0 ||
        image_config_parse(text, len, NULL, &s->diff_ids, NULL, err) < 0)
        return err_wrap(err, "image config");
    if (s->diff_ids.n != s->files.n)
        return err_set(err, ERR_INVALID, "the manifest has %zu layers, the image config %zu",
                       s->files.n, s->diff_ids.n);
    return 0;
}

static void tell(const struct import *im, const char *phase, const char *digest, uint64_t done,
                 uint64_t total)
{
    const struct image_progress p = {phase, digest, done, total};
    if (im->progress != NULL)
        im->progress(im->progress_arg, &p);
}

static int commit(struct import *im, const struct source *s, const char *name, struct err *err)
{
    auto_reference struct reference ref = {0};
    auto_free char *digest = NULL;
    if (name != NULL && s->top[0] != '\0') {
        if (reference_parse(name, &ref, err) < 0)
            return -1;
        digest = reference_with_digest(&ref, s->top);
    }
    const struct store_new_image img = {
        .config_digest = s->config,
        .manifest_digests = (const char *const *)s->manifests.v,
        .n_manifests = s->manifests.n,
        .size = s->size,
        .tag = name,
        .digest = digest,
    };
    return store_image_commit(im->lease, &img, err);
}

static int import_source(struct import *im, struct source *s, struct err *err)
{
    if ((s->docker != NULL ? open_docker(im, s, err) : open_oci(im, s, err)) < 0 ||
        read_config(im, s, err) < 0)
        return -1;
    for (size_t i = 0; i < s->files.n && !store_image_hold(im->lease, s->config); i++) {
        tell(im, "unpacking", s->diff_ids.v[i], i, s->files.n);
        if (import_layer(im->store, im->lease, im->bundle, s->files.v[i], s->digests.v[i],
                         s->diff_ids.v[i], im->cancel, err) < 0)
            return -1;
    }
    if (cancel_check(im->cancel, err) < 0)
        return -1;
    if (s->names.n == 0)
        return commit(im, s, NULL, err);
    for (size_t i = 0; i < s->names.n; i++) {
        if (commit(im, s, s->names.v[i], err) < 0)
            return -1;
    }
    return 0;
}

static int use_name(struct sources *l, const char *name, struct err *err)
{
    auto_reference struct reference ref = {0};
    if (l->n != 1)
        return err_set(err, ERR_INVALID, "a name for an archive of %zu images", l->n);
    if (reference_parse(name, &ref, err) < 0)
        return -1;
    if (ref.tag == NULL)
        return err_set(err, ERR_INVALID, "%s is not a name with a tag", name);
    strv_clear(&l->v[0].names);
    auto_free char *full = reference_string(&ref);
    strv_add(&l->v[0].names, full);
    return 0;
}

static int import_all(struct import *im, struct sources *l, const char *name, struct strv *ids,
                      struct err *err)
{
    if (l->n == 0)
        return err_set(err, ERR_NOT_FOUND, "the archive has no image for this machine");
    if (name != NULL && name[0] != '\0' && use_name(l, name, err) < 0)
        return -1;
    for (size_t i = 0; i < l->n; i++) {
        im->lease = store_lease_begin(im->store);
        int rc = import_source(im, &l->v[i], err);
        store_lease_end(im->lease);
        if (rc < 0)
            return -1;
        strv_add(ids, l->v[i].config);
        tell(im, "done", NULL, i + 1, l->n);
    }
    return 0;
}

int image_import(struct image_store *s, const char *path, const char *name,
                 image_progress_fn progress, void *arg, struct cancel *cancel, struct strv *ids,
                 struct err *err)
{
    auto_bundle struct bundle *b = bundle_open(path, err);
    if (b == NULL)
        return err_wrap(err, "import");
    struct import im = {
        .store = s, .bundle = b, .progress = progress, .progress_arg = arg, .cancel = cancel};
    struct sources l = {0};
    json_t *docker = NULL;
    int rc;
    if (bundle_has(b, "index.json")) {
        rc = list_oci(b, &l, err);
    } else if (bundle_has(b, "manifest.json")) {
        docker = read_json(b, "manifest.json", err);
        rc = docker == NULL ? -1 : list_docker(docker, &l, err);
    } else {
        rc = err_set(err, ERR_INVALID,
                     "neither an OCI layout nor a docker archive: no index.json, no manifest.json");
    }
    if (rc == 0)
        rc = import_all(&im, &l, name, ids, err);
    for (size_t i = 0; i < l.n; i++)
        source_clear(&l.v[i]);
    free(l.v);
    json_decref(docker);
    return rc < 0 ? err_wrap(err, "import %s", path) : 0;
}
