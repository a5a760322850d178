/*
 * store - what is on this node: blobs (manifests, configs), layers as erofs files, images, names.
 *
 * Below image_options.root:
 *     lock              held (flock) while a daemon uses the store
 *     images.db         the records (cri/image/catalog.h)
 *     blobs/sha256/HEX  manifests, indexes, configs, byte for byte
 *     layers/HEX.erofs  one layer's data, HEX is the diff_id
 *     meta/HEX.erofs    one image's merged tree, HEX is the image id
 *     tmp/              unfinished files; emptied at start
 * A file gets its final name only when it is whole and synced; a record is written only when all
 * its files have theirs; files are removed only when no record and no lease names them.
 *
 * Making an image (pull and import alike):
 *     lease = store_lease_begin(s)
 *     store_blob_put() of config and manifest
 *     for each layer: store_layer_claim(); when it says MINE: make the file at a store_tmp_path(),
 *         then store_layer_done(), or store_layer_abandon()
 *     store_image_commit() merges the trees into meta/ and writes the record and names
 *     store_lease_end() in every case: what no image came to use is removed
 *
 * Threads: any; each function locks for itself. A lease may be used by several threads at once.
 * Strings returned are the caller's to free.
 */
#ifndef ASPIS_CRI_IMAGE_STORE_H
#define ASPIS_CRI_IMAGE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"
#include "cri/image/image.h"

struct store_lease;

const struct image_options *store_options(const struct image_store *s);

/* Protects from removal what is put or claimed under it. Never NULL. */
struct store_lease *store_lease_begin(struct image_store *s);
/* Ends it and removes what nothing refers to any more. NULL is fine. */
void store_lease_end(struct store_lease *lease);
DEFINE_AUTO(struct store_lease *, store_lease_end);
#define auto_lease __attribute__((cleanup(store_lease_endp)))

/* A name below tmp/ that nothing uses; no file is made. */
char *store_tmp_path(struct image_store *s);

/* Keeps a blob; its digest is checked (ERR_DATA_LOSS). Present already: fine. */
int store_blob_put(struct store_lease *lease, const char *digest, const void *data, size_t len,
                   struct err *err);
/* Reads a blob back, at most max bytes, and checks its digest; NUL-terminated. The lease may be
 * NULL; else the blob is kept as long as it. ERR_NOT_FOUND when absent. */
char *store_blob_get(struct image_store *s, struct store_lease *lease, const char *digest,
                     size_t max, size_t *len, struct err *err);

enum store_claim {
    STORE_LAYER_READY, /* it is there, and stays while the lease lives */
    STORE_LAYER_MINE,  /* the caller makes it and must end with _done or _abandon */
};
/* Waits while somebody else makes this layer. -1 when the token fires. */
int store_layer_claim(struct store_lease *lease, const char *diff_id, struct cancel *cancel,
                      enum store_claim *claim, struct err *err);
/* Takes the finished, synced file at tmp_path (same file system) as the layer. On failure the file
 * is removed and the claim has ended as well. */
int store_layer_done(struct store_lease *lease, const char *diff_id, const char *tmp_path,
                     struct err *err);
void store_layer_abandon(struct store_lease *lease, const char *diff_id);

struct store_new_image {
    const char *config_digest; /* its id; blob already put */
    const char *const
        *manifest_digests; /* blobs already put: the manifest, and indexes that led to it */
    size_t n_manifests;
    uint64_t size;      /* compressed bytes of all blobs */
    const char *tag;    /* "registry/repository:tag", or NULL */
    const char *digest; /* "registry/repository@digest", or NULL */
    bool pinned;
};
/* Reads the config blob, checks that every layer is there, merges the trees, writes the record. The
 * tag moves here from another image that had it. An image that exists gets the new names. */
int store_image_commit(struct store_lease *lease, const struct store_new_image *img,
                       struct err *err);

/* Whether the image is there whole; it then stays while the lease lives. */
bool store_image_hold(struct store_lease *lease, const char *id);

/* Node-wide bound on downloads: waits for a free place. */
int store_download_begin(struct image_store *s, struct cancel *cancel, struct err *err);
void store_download_end(struct image_store *s);
/* The same for unpackers. Taken before a download's place, never while holding one. */
int store_unpack_begin(struct image_store *s, struct cancel *cancel, struct err *err);
void store_unpack_end(struct image_store *s);

#endif
