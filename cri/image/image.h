/*
 * image - the image service: references, store, pull, import, removal.
 *
 * What `cri` needs to know about images. A store lives below `root` (see cri/image/README.md for
 * its layout): blobs of manifests and configs, one erofs file per diff_id (layer), one erofs
 * metadata file per image that maps the layers' data into a single read-only file system, and the
 * records in SQLite. Image id = config digest "sha256:...".
 *
 * Threads: any. Pulls of one image join; layers are fetched and converted once at a time. Strings
 * in returned structs are owned by the struct; see each _clear function.
 */
#ifndef ASPIS_CRI_IMAGE_IMAGE_H
#define ASPIS_CRI_IMAGE_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/cancel.h"
#include "base/err.h"
#include "base/str.h"

struct image_store;

struct image_options {
    const char *root;           /* /var/lib/aspis/images */
    const char *jail_helper;    /* aspis-jail: confines the unpacker */
    const char *unpacker;       /* aspis-unpack */
    uint32_t unpack_uid;        /* unprivileged */
    const char *hosts_dir;      /* /etc/aspis/certs.d: containerd's hosts.toml layout */
    int64_t stall_timeout_ns;   /* give up on a registry that sends nothing for so long */
    uint32_t max_downloads;     /* connections for layers at once, on this node */
    uint32_t max_unpackers;     /* unpacker processes at once, on this node; 0: one per processor */
    uint64_t max_layer_bytes;   /* unpacked */
    uint32_t max_layer_entries; /* archive members of one layer */
    uint64_t max_manifest_bytes; /* of one manifest or index */
    uint64_t max_config_bytes;   /* of one image config */
    uint32_t max_layers;         /* of one image; at most LIMIT_IMAGE_LAYERS */
    /* References of images that garbage collection is to leave alone; ends with NULL; may be NULL.
     */
    const char *const *pinned;
};

struct image_store *image_store_open(const struct image_options *opts, struct err *err);
void image_store_close(struct image_store *s);

/* What a container needs from an image's config (already defaulted as Docker does). */
struct image_config {
    struct strv entrypoint, cmd, env, volumes;
    char *working_dir;  /* "" when the image has none */
    char *user;         /* verbatim, "" for root */
    char *stop_signal;  /* "" when unset */
    struct strv labels; /* key, value, ... */
};

struct image {
    char *id; /* sha256:<config digest> */
    struct strv repo_tags, repo_digests;
    uint64_t size;      /* compressed bytes of all blobs */
    uint64_t disk_size; /* bytes our files take on disk */
    bool pinned;
    struct image_config config;
    size_t n_layers;
};
void image_free(struct image *i);
DEFINE_AUTO(struct image *, image_free);
#define auto_image __attribute__((cleanup(image_freep)))

struct image_auth { /* any may be NULL; wiped by the caller */
    const char *username, *password, *auth, *server_address, *identity_token, *registry_token;
};

struct image_progress {
    const char *phase;  /* "resolving", "downloading", "unpacking", "done" */
    const char *digest; /* of the layer; NULL for the image as a whole */
    uint64_t done, total;
};
typedef void (*image_progress_fn)(
    void *arg, const struct image_progress *p); /* on worker threads; must not block */

/* Pulls (or refreshes) a reference; *id is the caller's. Codes: NOT_FOUND (no such image), INVALID
 * (bad reference or manifest), UNAUTHENTICATED/DENIED, UNAVAILABLE with the text
 * "RegistryUnavailable: ...", DATA_LOSS (digest mismatch), EXHAUSTED. */
int image_pull(struct image_store *s, const char *reference, const struct image_auth *auth,
               image_progress_fn progress, void *arg, struct cancel *cancel, char **id,
               struct err *err);
/* Loads every image of an OCI layout directory or tar, or of a docker archive; `name` overrides the
 * reference when there is exactly one image. Ids are added to *ids. */
int image_import(struct image_store *s, const char *path, const char *name,
                 image_progress_fn progress, void *arg, struct cancel *cancel, struct strv *ids,
                 struct err *err);

/* By id (with or without sha256:, or an unambiguous prefix), name, name:tag, name@digest, short or
 * full form. NULL with ERR_NOT_FOUND when absent. */
struct image *image_find(struct image_store *s, const char *reference, struct err *err);
/* All images; *n of them; free each and the array. */
int image_list(struct image_store *s, struct image ***images, size_t *n, struct err *err);
/* The same as image_find(), and the image is not removed before image_unhold(): for whoever is
 * about to become a user that in_use() knows of. Held for moments. */
struct image *image_hold(struct image_store *s, const char *reference, struct err *err);
void image_unhold(struct image_store *s, const char *id);
/* Removes the whole image that the reference names, and what only it used; absent: success.
 * in_use(arg, id) says whether a container uses the image: then, or while it is held,
 * PRECONDITION. */
int image_remove(struct image_store *s, const char *reference,
                 bool (*in_use)(void *arg, const char *id), void *arg, struct err *err);

struct image_fs {
    char *mountpoint; /* the store's root */
    uint64_t used_bytes, inodes_used;
};
int image_fs_info(struct image_store *s, struct image_fs *out, struct err *err);
/* The same of any directory; names below it that match `only` (all when NULL), down to `depth`
 * directories. */
void image_dir_usage(const char *path, const char *only, int depth, struct image_fs *out);

/* The image as one disk: descriptors to be concatenated in order (metadata, then each layer's
 * data). Close with image_disk_clear(). The files cannot be collected while the image exists; open
 * descriptors stay valid after. */
struct image_disk {
    struct {
        int fd;
        uint64_t size; /* multiple of 4096 */
    } * parts;
    size_t n_parts;
    char serial[21]; /* image_disk_serial() */
};
/* "img-" and 16 hex digits of the id, which is "sha256:...". */
static inline void image_disk_serial(const char *id, char out[21])
{
    const char *colon = strchr(id, ':');

    (void)snprintf(out, 21, "img-%.16s", colon != NULL ? colon + 1 : id);
}
int image_disk_open(struct image_store *s, const char *id, struct image_disk *out, struct err *err);
void image_disk_clear(struct image_disk *d);

/* The image's files as a directory of the host, for pods without a VM: made by the first call,
 * which takes as long as copying them, and removed with the image. Not to be written to. *dir is
 * the caller's. */
int image_tree_dir(struct image_store *s, const char *id, struct cancel *cancel, char **dir,
                   struct err *err);

/* Finishes or discards what a killed daemon left half done. At start, before serving. */
int image_recover(struct image_store *s, struct err *err);

#endif
