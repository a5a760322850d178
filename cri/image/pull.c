#include "cri/image/pull.h"

#include <string.h>

#include "base/failpoint.h"
#include "base/limits.h"
#include "base/log.h"
#include "cri/image/manifest.h"
#include "cri/image/pull_layers.h"
#include "cri/image/store.h"

/* One pull under way. */
struct pull {
    struct image_store *store;
    struct registry *registry;
    const struct reference *ref;
    struct store_lease *lease;
    struct http_client *http;
    image_progress_fn progress;
    void *progress_arg;
    struct cancel *cancel;
    struct strv manifests; /* digests, outermost first */
    char resolved[DIGEST_MAX];
};

static void tell(const struct pull *p, const char *phase)
{
    struct image_progress pr = {.phase = phase};

    if (p->progress != NULL)
        p->progress(p->progress_arg, &pr);
}

/* The document with this digest, from the store or the registry, kept as a blob either way. */
static int get_document(struct pull *p, const char *digest, struct registry_document *doc,
                        struct err *err)
{
    size_t len = 0;
    char *there = store_blob_get(p->store, p->lease, digest, LIMIT_MANIFEST, &len, NULL);

    if (there != NULL) {
        doc->body = (struct buf){.data = there, .len = len, .cap = len + 1, .max = LIMIT_MANIFEST};
        (void)snprintf(doc->digest, sizeof(doc->digest), "%s", digest);
        return 0;
    }
    return registry_manifest(p->registry, p->http, digest, p->cancel, doc, err);
}

/* What the reference names: an index or a manifest. */
static int get_top(struct pull *p, struct registry_document *doc, struct err *err)
{
    if (p->ref->digest != NULL)
        return get_document(p, p->ref->digest, doc, err);
    if (registry_resolve(p->registry, p->http, p->ref->tag, p->cancel, doc, err) < 0)
        return -1;
    if (doc->body.len > 0)
        return 0;
    {
        char digest[DIGEST_MAX];

        (void)memcpy(digest, doc->digest, sizeof(digest));
        return get_document(p, digest, doc, err);
    }
}

static int parse_document(struct pull *p, struct registry_document *doc, struct manifest **m,
                          struct err *err)
{
    const struct image_options *o = store_options(p->store);

    if (doc->body.len > o->max_manifest_bytes)
        return err_set(err, ERR_EXHAUSTED, "manifest %s is larger than %llu bytes", doc->digest,
                       (unsigned long long)o->max_manifest_bytes);
    if (manifest_parse(buf_str(&doc->body), doc->body.len, doc->content_type, m, err) < 0)
        return err_wrap(err, "%s", doc->digest);
    if ((*m)->kind == MANIFEST_IMAGE && (*m)->n_entries > o->max_layers)
        return err_set(err, ERR_EXHAUSTED, "%s has %zu layers; at most %u are allowed", doc->digest,
                       (*m)->n_entries, o->max_layers);
    if (store_blob_put(p->lease, doc->digest, buf_str(&doc->body), doc->body.len, err) < 0)
        return -1;
    strv_add(&p->manifests, doc->digest);
    return 0;
}

/* Down from the top to the manifest of our platform. *total: compressed bytes of the image. */
static int get_manifest(struct pull *p, struct manifest **out, uint64_t *total, struct err *err)
{
    auto_document struct registry_document doc = {0};
    struct platform here;

    platform_host(&here);
    if (get_top(p, &doc, err) < 0)
        return -1;
    (void)memcpy(p->resolved, doc.digest, sizeof(p->resolved));
    for (int depth = 0;; depth++) {
        auto_manifest struct manifest *m = NULL;
        const struct descriptor *next = NULL;
        struct descriptor chosen;

        if (parse_document(p, &doc, &m, err) < 0)
            return -1;
        if (m->kind == MANIFEST_IMAGE) {
            *total = manifest_total(m, doc.body.len);
            *out = take(m);
            return 0;
        }
        if (depth >= LIMIT_INDEX_DEPTH)
            return err_set(err, ERR_INVALID, "indexes nested deeper than %d", LIMIT_INDEX_DEPTH);
        if (manifest_choose(m, &here, &next, err) < 0)
            return -1;
        chosen = *next;
        registry_document_clear(&doc);
        if (get_document(p, chosen.digest, &doc, err) < 0)
            return -1;
        if (doc.body.len != chosen.size)
            return err_set(err, ERR_DATA_LOSS, "manifest %s has %zu bytes, but the index says %llu",
                           chosen.digest, doc.body.len, (unsigned long long)chosen.size);
    }
}

static int collect(void *arg, const void *data, size_t len, struct err *err)
{
    if (buf_append(arg, data, len) < 0)
        return err_set(err, ERR_EXHAUSTED, "the image config is too large");
    return 0;
}

static int get_config(struct pull *p, const struct manifest *m, struct strv *diff_ids,
                      struct err *err)
{
    auto_buf struct buf body = BUF_INIT(LIMIT_IMAGE_CONFIG);
    auto_free char *there = NULL;
    struct platform is, here;
    size_t len = 0;

    if (m->config.size > store_options(p->store)->max_config_bytes)
        return err_set(err, ERR_EXHAUSTED, "the image config is larger than %llu bytes",
                       (unsigned long long)store_options(p->store)->max_config_bytes);
    there = store_blob_get(p->store, p->lease, m->config.digest, LIMIT_IMAGE_CONFIG, &len, NULL);
    if (there == NULL) {
        if (registry_blob(p->registry, p->http, m->config.digest, m->config.size, collect, &body,
                          p->cancel, err) < 0)
            return err_wrap(err, "image config");
        len = body.len;
    }
    if (image_config_parse(there != NULL ? there : buf_str(&body), len, NULL, diff_ids, &is, err) <
        0)
        return err_wrap(err, "%s", m->config.digest);
    if (diff_ids->n != m->n_entries)
        return err_set(err, ERR_INVALID, "the manifest has %zu layers, the image config %zu",
                       m->n_entries, diff_ids->n);
    platform_host(&here);
    if (strcmp(is.architecture, here.architecture) != 0)
        log_warn("image is for another architecture", LOG_STR("image", m->config.digest),
                 LOG_STR("architecture", is.architecture));
    if (there != NULL)
        return 0;
    return store_blob_put(p->lease, m->config.digest, buf_str(&body), body.len, err);
}

static int commit(struct pull *p, const struct manifest *m, uint64_t total, struct err *err)
{
    auto_free char *name = p->ref->digest == NULL ? reference_string(p->ref) : NULL;
    auto_free char *digest = reference_with_digest(p->ref, p->resolved);
    struct store_new_image img = {
        .config_digest = m->config.digest,
        .manifest_digests = (const char *const *)p->manifests.v,
        .n_manifests = p->manifests.n,
        .size = total,
        .tag = name,
        .digest = digest,
    };

    /* Past this point a cancelled call would leave an image that nobody was told of. */
    if (cancel_check(p->cancel, err) < 0)
        return -1;
    return store_image_commit(p->lease, &img, err);
}

static int run(struct pull *p, char **id, struct err *err)
{
    auto_manifest struct manifest *m = NULL;
    auto_strv struct strv diff_ids = {0};
    uint64_t total = 0;

    tell(p, "resolving");
    if (FAILPOINT("image.resolve", err) < 0 || get_manifest(p, &m, &total, err) < 0 ||
        get_config(p, m, &diff_ids, err) < 0)
        return -1;
    if (!store_image_hold(p->lease, m->config.digest) &&
        pull_layers(p->store, p->lease, p->registry, m, &diff_ids, p->progress, p->progress_arg,
                    p->cancel, err) < 0)
        return -1;
    if (commit(p, m, total, err) < 0)
        return -1;
    tell(p, "done");
    *id = xstrdup(m->config.digest);
    return 0;
}

int pull_image(struct image_store *s, struct registry *registry, const struct reference *ref,
               image_progress_fn progress, void *arg, struct cancel *cancel, char **id,
               struct err *err)
{
    auto_http struct http_client *http = http_new(err);
    struct pull p = {
        .store = s,
        .registry = registry,
        .ref = ref,
        .http = http,
        .progress = progress,
        .progress_arg = arg,
        .cancel = cancel,
    };
    int ret;

    if (http == NULL)
        return -1;
    p.lease = store_lease_begin(s);
    ret = run(&p, id, err);
    store_lease_end(p.lease);
    strv_clear(&p.manifests);
    return ret;
}
