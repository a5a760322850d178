/*
 * catalog - the image store's records in one SQLite file (WAL): images, their layers, blobs and
 * names.
 *
 * Every change is one transaction and on disk when the function returns. The store keeps the same
 * in memory and asks here only at start. The schema has a number (PRAGMA user_version).
 *
 * Threads: one at a time (the store's lock). Memory: structs own their strings.
 */
#ifndef ASPIS_CRI_IMAGE_CATALOG_H
#define ASPIS_CRI_IMAGE_CATALOG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/str.h"

struct catalog;

struct catalog_image {
    char *id; /* sha256:... */
    uint64_t size;
    bool pinned;
    struct strv layers;  /* diff_ids, bottom first */
    struct strv blobs;   /* digests of manifests and indexes */
    struct strv tags;    /* registry/repository:tag */
    struct strv digests; /* registry/repository@digest */
};
void catalog_image_clear(struct catalog_image *i);

/* Opens or makes the file. ERR_DATA_LOSS when it is damaged or of an unknown version: then it is of
 * no use and can be moved aside. */
int catalog_open(const char *path, struct catalog **out, struct err *err);
void catalog_close(struct catalog *c);

/* fn is called for each; a negative return stops. The struct is fn's to keep (and clear). */
int catalog_images(struct catalog *c, int (*fn)(void *arg, struct catalog_image *i), void *arg,
                   struct err *err);
int catalog_layers(struct catalog *c, void (*fn)(void *arg, const char *diff_id, uint64_t bytes),
                   void *arg, struct err *err);

/* Writes the image as it is given, over what was there. Its names are taken from other images. */
int catalog_put_image(struct catalog *c, const struct catalog_image *i, struct err *err);
int catalog_delete_image(struct catalog *c, const char *id, struct err *err);
int catalog_put_layer(struct catalog *c, const char *diff_id, uint64_t bytes, struct err *err);
int catalog_delete_layer(struct catalog *c, const char *diff_id, struct err *err);

/* What can still be read of the names in a damaged catalog at path: fn gets each; never fails. */
void catalog_salvage_names(const char *path,
                           void (*fn)(void *arg, const char *name, bool tag, const char *id),
                           void *arg);

#endif
