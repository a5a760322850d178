/*
 * store_internal - the inside of struct image_store, for store.c, image.c, image_tree.c, recover.c
 * and pull.c only.
 *
 * `lock` guards everything below it and is held for short steps: no network, no conversion, no
 * waiting, no callback of the caller's runs under it. Functions named *_locked want it held.
 */
#ifndef ASPIS_CRI_IMAGE_STORE_INTERNAL_H
#define ASPIS_CRI_IMAGE_STORE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/queue.h>
/* The default hash function falls through switch labels in a way that clang warns about. */
#define HASH_FUNCTION(keyptr, keylen, hashv) HASH_SAX(keyptr, keylen, hashv)
#include <uthash.h>

#include "cri/image/catalog.h"
#include "cri/image/digest.h"
#include "cri/image/image.h"
#include "cri/image/store.h"

/* An image as it is kept in memory. */
struct store_image {
    struct catalog_image rec;
    struct image_config config;
    uint64_t disk_size;
    unsigned holds;     /* image_hold() */
    uint64_t last_hold; /* serial of the latest; 0: none yet */
    TAILQ_ENTRY(store_image) link;
};

struct store_layer {
    char diff_id[DIGEST_MAX];
    uint64_t bytes;
    UT_hash_handle hh;
};

/* A layer that somebody is making. Waiters hold references and poll efd, which stays readable once
 * the work has ended. */
struct store_making {
    char diff_id[DIGEST_MAX];
    int efd;
    unsigned refs;
    UT_hash_handle hh;
};

struct store_lease {
    struct image_store *store;
    struct strv blobs, layers, images;
    LIST_ENTRY(store_lease) link;
};

struct pull_job;
struct login_tokens;

struct image_store {
    struct image_options opts; /* strings owned */
    int lock_fd;
    struct strv pinned;               /* of the options, normalised */
    struct login_tokens *tokens;      /* locks itself */
    int download_slots, unpack_slots; /* eventfds, semaphores */
    atomic_uint_fast64_t tmp_serial;
    bool rebuild;  /* the catalog was damaged: image_recover() makes it anew from the files */
    char *damaged; /* where the damaged one is */

    pthread_mutex_t lock;
    struct catalog *catalog;
    TAILQ_HEAD(, store_image) images;
    struct store_layer *layers;  /* hash */
    struct store_making *making; /* hash */
    LIST_HEAD(, store_lease) leases;
    uint64_t hold_serial;

    struct strv dead_trees;     /* image_tree.c: to be removed without the lock */
    pthread_mutex_t extracting; /* held while an image's tree is made; outside of `lock` */

    pthread_mutex_t pulls_lock; /* guards the rest; pull_jobs.c */
    pthread_cond_t pulls_idle;  /* pull_threads fell to 0 */
    unsigned pull_threads;
    LIST_HEAD(, pull_job) pulls;
};

char *store_blob_path(const struct image_store *s, const char *digest);
char *store_layer_path(const struct image_store *s, const char *diff_id);
char *store_meta_path(const struct image_store *s, const char *id);

/* Gives the finished, synced file at tmp its final name and syncs the directory. */
int store_install(const char *tmp, const char *path, struct err *err);
/* The blob's bytes from disk, checked; no lock needed. */
char *store_read_blob(const struct image_store *s, const char *digest, size_t max, size_t *len,
                      struct err *err);

struct store_image *store_find_id_locked(struct image_store *s, const char *id);
struct store_layer *store_find_layer_locked(struct image_store *s, const char *diff_id);
void store_add_layer_locked(struct image_store *s, const char *diff_id, uint64_t bytes);
void store_image_free(struct store_image *i);
/* What the image's files take: its tree, its layers, its blobs. */
uint64_t store_disk_size_locked(struct image_store *s, const struct store_image *i);
/* Removes every blob, layer and tree that neither an image nor a lease names. */
void store_sweep_locked(struct image_store *s);

bool store_strv_has(const struct strv *l, const char *s);
bool store_strv_remove(struct strv *l, const char *s); /* true when it was there */

#endif
