/*
 * manifest - the three JSON documents of an image: index, manifest, config.
 *
 * Strict and bounded: sizes, counts and digests are checked before they are believed, and nothing
 * in a document is followed that the caller did not ask for. Docker schema 2 and OCI 1.1 forms;
 * schema 1 is refused with a sentence. (image-spec 1.1.1 manifest.md, image-index.md, config.md.)
 *
 * Memory: each struct owns its strings until its _clear or _free. Threads: any.
 */
#ifndef ASPIS_CRI_IMAGE_MANIFEST_H
#define ASPIS_CRI_IMAGE_MANIFEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "cri/image/digest.h"
#include "cri/image/image.h"

struct platform {
    char os[16], architecture[16], variant[16]; /* GOOS, GOARCH, "v8" or "" */
};
/* The one that this machine's guests run. */
void platform_host(struct platform *p);

struct descriptor {
    char digest[DIGEST_MAX];
    uint64_t size;
    struct platform platform; /* of an index entry; empty strings when it names none */
    bool skip;                /* an index entry that is no image (attestation) */
    bool foreign; /* a layer that the registry need not have; its `urls` are not followed */
};

enum manifest_kind { MANIFEST_IMAGE, MANIFEST_INDEX };

struct manifest {
    enum manifest_kind kind;
    struct descriptor config;   /* MANIFEST_IMAGE */
    struct descriptor *entries; /* layers, bottom first; or the images of an index */
    size_t n_entries;
};

/* content_type: what the registry said (parameters are ignored), NULL when unknown; it must agree
 * with the document's own mediaType. */
int manifest_parse(const char *json, size_t len, const char *content_type, struct manifest **out,
                   struct err *err);
void manifest_free(struct manifest *m);
DEFINE_AUTO(struct manifest *, manifest_free);
#define auto_manifest __attribute__((cleanup(manifest_freep)))

/* The entry of an index that fits the platform best; ERR_NOT_FOUND naming the platform. */
int manifest_choose(const struct manifest *index, const struct platform *want,
                    const struct descriptor **out, struct err *err);

/* Compressed bytes of the whole image: manifest, config and layers. */
uint64_t manifest_total(const struct manifest *m, size_t manifest_len);

/* diff_ids: one per layer, bottom first, all "sha256:...". Either of cfg and platform may be NULL.
 */
int image_config_parse(const char *json, size_t len, struct image_config *cfg,
                       struct strv *diff_ids, struct platform *platform, struct err *err);
void image_config_clear(struct image_config *cfg);
void image_config_copy(struct image_config *to, const struct image_config *from);

#endif
