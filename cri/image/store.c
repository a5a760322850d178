#include "cri/image/store.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "cri/image/image_tree.h"
#include "cri/image/layer.h"
#include "cri/image/manifest.h"
#include "cri/image/store_internal.h"

bool store_strv_has(const struct strv *l, const char *s)
{
    for (size_t i = 0; i < l->n; i++)
        if (strcmp(l->v[i], s) == 0)
            return true;
    return false;
}

bool store_strv_remove(struct strv *l, const char *s)
{
    for (size_t i = 0; i < l->n; i++) {
        if (strcmp(l->v[i], s) != 0)
            continue;
        free(l->v[i]);
        memmove(&l->v[i], &l->v[i + 1], (l->n - i) * sizeof(*l->v)); /* with the NULL */
        l->n--;
        return true;
    }
    return false;
}

const struct image_options *store_options(const struct image_store *s)
{
    return &s->opts;
}

char *store_blob_path(const struct image_store *s, const char *digest)
{
    return fs_format("%s/blobs/%.6s/%s", s->opts.root, digest, digest_hex(digest));
}

char *store_layer_path(const struct image_store *s, const char *diff_id)
{
    return fs_format("%s/layers/%s.erofs", s->opts.root, digest_hex(diff_id));
}

char *store_meta_path(const struct image_store *s, const char *id)
{
    return fs_format("%s/meta/%s.erofs", s->opts.root, digest_hex(id));
}

char *store_tmp_path(struct image_store *s)
{
    return fs_format("%s/tmp/%llu", s->opts.root,
                     (unsigned long long)atomic_fetch_add(&s->tmp_serial, 1));
}

int store_install(const char *tmp, const char *path, struct err *err)
{
    const char *slash = strrchr(path, '/');
    auto_free char *dir = xstrndup(path, (size_t)(slash - path));
    auto_close int fd = -1;

    if (rename(tmp, path) < 0) {
        int saved = errno;

        (void)unlink(tmp);
        return err_sys(err, saved, "rename %s to %s", tmp, path);
    }
    fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        return err_sys(err, errno, "sync %s", dir);
    return 0;
}

/* Leases. */

struct store_lease *store_lease_begin(struct image_store *s)
{
    struct store_lease *l = xcalloc(1, sizeof(*l));

    l->store = s;
    pthread_mutex_lock(&s->lock);
    LIST_INSERT_HEAD(&s->leases, l, link);
    pthread_mutex_unlock(&s->lock);
    return l;
}

void store_lease_end(struct store_lease *lease)
{
    struct image_store *s;

    if (lease == NULL)
        return;
    s = lease->store;
    pthread_mutex_lock(&s->lock);
    LIST_REMOVE(lease, link);
    store_sweep_locked(s);
    pthread_mutex_unlock(&s->lock);
    image_trees_bury(s);
    strv_clear(&lease->blobs);
    strv_clear(&lease->layers);
    strv_clear(&lease->images);
    free(lease);
}

static void lease_add(struct strv *list, const char *name)
{
    if (!store_strv_has(list, name))
        strv_add(list, name);
}

/* Blobs. */

int store_blob_put(struct store_lease *lease, const char *digest, const void *data, size_t len,
                   struct err *err)
{
    struct image_store *s = lease->store;
    auto_free char *path = NULL;
    auto_free char *tmp = NULL;

    if (digest_check(data, len, digest, err) < 0)
        return -1;
    path = store_blob_path(s, digest);
    pthread_mutex_lock(&s->lock);
    lease_add(&lease->blobs, digest);
    pthread_mutex_unlock(&s->lock);
    if (fs_exists(path)) {
        auto_free char *there = store_read_blob(s, digest, len, NULL, NULL);

        if (there != NULL)
            return 0; /* else it is damaged, and is replaced */
    }
    tmp = store_tmp_path(s);
    if (FAILPOINT("image.blob", err) < 0 || fs_write_atomic(tmp, data, len, 0600, true, err) < 0 ||
        store_install(tmp, path, err) < 0)
        return err_wrap(err, "keep %s", digest);
    return 0;
}

char *store_read_blob(const struct image_store *s, const char *digest, size_t max, size_t *len,
                      struct err *err)
{
    auto_free char *path = NULL;
    auto_free char *data = NULL;
    size_t n = 0;

    if (!digest_valid(digest)) {
        (void)err_set(err, ERR_INVALID, "not a digest");
        return NULL;
    }
    path = store_blob_path(s, digest);
    data = fs_read(path, max, &n, err);
    if (data == NULL)
        return NULL;
    if (digest_check(data, n, digest, err) < 0) {
        (void)err_wrap(err, "%s is damaged", path);
        return NULL;
    }
    if (len != NULL)
        *len = n;
    return take(data);
}

char *store_blob_get(struct image_store *s, struct store_lease *lease, const char *digest,
                     size_t max, size_t *len, struct err *err)
{
    if (lease != NULL) {
        pthread_mutex_lock(&s->lock);
        lease_add(&lease->blobs, digest);
        pthread_mutex_unlock(&s->lock);
    }
    return store_read_blob(s, digest, max, len, err);
}

/* Layers. */

struct store_layer *store_find_layer_locked(struct image_store *s, const char *diff_id)
{
    struct store_layer *l;

    HASH_FIND_STR(s->layers, diff_id, l);
    return l;
}

void store_add_layer_locked(struct image_store *s, const char *diff_id, uint64_t bytes)
{
    struct store_layer *l = store_find_layer_locked(s, diff_id);

    if (l == NULL) {
        l = xcalloc(1, sizeof(*l));
        (void)snprintf(l->diff_id, sizeof(l->diff_id), "%s", diff_id);
        HASH_ADD_STR(s->layers, diff_id, l);
    }
    l->bytes = bytes;
}

static void making_unref_locked(struct store_making *m)
{
    if (--m->refs > 0)
        return;
    (void)close(m->efd);
    free(m);
}

static int making_begin_locked(struct image_store *s, const char *diff_id, struct err *err)
{
    struct store_making *m = xcalloc(1, sizeof(*m));

    m->efd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (m->efd < 0) {
        free(m);
        return err_sys(err, errno, "eventfd");
    }
    (void)snprintf(m->diff_id, sizeof(m->diff_id), "%s", diff_id);
    m->refs = 1;
    HASH_ADD_STR(s->making, diff_id, m);
    return 0;
}

static void making_end_locked(struct image_store *s, const char *diff_id)
{
    struct store_making *m;

    HASH_FIND_STR(s->making, diff_id, m);
    if (m == NULL)
        return;
    HASH_DEL(s->making, m);
    (void)eventfd_write(m->efd, 1);
    making_unref_locked(m);
}

int store_layer_claim(struct store_lease *lease, const char *diff_id, struct cancel *cancel,
                      enum store_claim *claim, struct err *err)
{
    struct image_store *s = lease->store;
    int ret = 0;

    if (!digest_valid(diff_id) || !str_starts(diff_id, "sha256:"))
        return err_set(err, ERR_INVALID, "not a diff_id");
    pthread_mutex_lock(&s->lock);
    lease_add(&lease->layers, diff_id);
    for (;;) {
        struct store_making *m;

        if (store_find_layer_locked(s, diff_id) != NULL) {
            *claim = STORE_LAYER_READY;
            break;
        }
        HASH_FIND_STR(s->making, diff_id, m);
        if (m == NULL) {
            *claim = STORE_LAYER_MINE;
            ret = making_begin_locked(s, diff_id, err);
            break;
        }
        m->refs++;
        pthread_mutex_unlock(&s->lock);
        ret = cancel_poll(cancel, m->efd, POLLIN, -1, err);
        pthread_mutex_lock(&s->lock);
        making_unref_locked(m);
        if (ret < 0)
            break;
        ret = 0;
    }
    pthread_mutex_unlock(&s->lock);
    return ret;
}

static int layer_install(struct image_store *s, const char *diff_id, const char *tmp_path,
                         uint64_t *bytes, struct err *err)
{
    auto_free char *path = store_layer_path(s, diff_id);
    struct stat st;

    if (stat(tmp_path, &st) < 0)
        return err_sys(err, errno, "stat %s", tmp_path);
    if (st.st_size == 0 || st.st_size % 4096 != 0) {
        (void)unlink(tmp_path);
        return err_set(err, ERR_INTERNAL, "layer file %s has the odd size %lld", tmp_path,
                       (long long)st.st_size);
    }
    *bytes = (uint64_t)st.st_size;
    if (FAILPOINT("image.layer", err) < 0) {
        (void)unlink(tmp_path);
        return -1;
    }
    return store_install(tmp_path, path, err);
}

int store_layer_done(struct store_lease *lease, const char *diff_id, const char *tmp_path,
                     struct err *err)
{
    struct image_store *s = lease->store;
    uint64_t bytes = 0;
    int ret = layer_install(s, diff_id, tmp_path, &bytes, err);

    pthread_mutex_lock(&s->lock);
    if (ret == 0)
        ret = catalog_put_layer(s->catalog, diff_id, bytes, err);
    if (ret == 0)
        store_add_layer_locked(s, diff_id, bytes);
    making_end_locked(s, diff_id);
    pthread_mutex_unlock(&s->lock);
    return ret < 0 ? err_wrap(err, "keep layer %s", diff_id) : 0;
}

void store_layer_abandon(struct store_lease *lease, const char *diff_id)
{
    struct image_store *s = lease->store;

    pthread_mutex_lock(&s->lock);
    making_end_locked(s, diff_id);
    pthread_mutex_unlock(&s->lock);
}

/* Images. */

struct store_image *store_find_id_locked(struct image_store *s, const char *id)
{
    struct store_image *i;

    TAILQ_FOREACH(i, &s->images, link)
    if (strcmp(i->rec.id, id) == 0)
        return i;
    return NULL;
}

void store_image_free(struct store_image *i)
{
    if (i == NULL)
        return;
    catalog_image_clear(&i->rec);
    image_config_clear(&i->config);
    free(i);
}

static uint64_t file_size(char *path)
{
    struct stat st;
    uint64_t n = stat(path, &st) == 0 ? (uint64_t)st.st_size : 0;

    free(path);
    return n;
}

uint64_t store_disk_size_locked(struct image_store *s, const struct store_image *i)
{
    uint64_t total =
        file_size(store_meta_path(s, i->rec.id)) + file_size(store_blob_path(s, i->rec.id));

    for (size_t k = 0; k < i->rec.blobs.n; k++)
        total += file_size(store_blob_path(s, i->rec.blobs.v[k]));
    for (size_t k = 0; k < i->rec.layers.n; k++) {
        struct store_layer *l = store_find_layer_locked(s, i->rec.layers.v[k]);

        total += l != NULL ? l->bytes : 0;
    }
    uint64_t bytes;
    uint64_t inodes;
    image_tree_usage(s, i->rec.id, &bytes, &inodes);
    return total + bytes;
}

bool store_image_hold(struct store_lease *lease, const char *id)
{
    struct image_store *s = lease->store;
    struct store_image *i;

    pthread_mutex_lock(&s->lock);
    i = store_find_id_locked(s, id);
    if (i != NULL) {
        lease_add(&lease->images, id);
        lease_add(&lease->blobs, id);
        for (size_t k = 0; k < i->rec.layers.n; k++)
            lease_add(&lease->layers, i->rec.layers.v[k]);
    }
    pthread_mutex_unlock(&s->lock);
    return i != NULL;
}

/* Merges the layers' trees into meta/, unless that has been done before. Without the lock: the
 * lease keeps the layers. */
static int make_tree(struct image_store *s, const char *id, const struct strv *layers,
                     struct err *err)
{
    auto_free char *meta = store_meta_path(s, id);
    auto_free char *tmp = NULL;
    auto_strv struct strv paths = {0};

    if (fs_exists(meta))
        return 0;
    for (size_t k = 0; k < layers->n; k++) {
        auto_free char *p = store_layer_path(s, layers->v[k]);

        strv_add(&paths, p);
    }
    tmp = store_tmp_path(s);
    if (FAILPOINT("image.tree", err) < 0 ||
        image_meta_build((const char *const *)paths.v, paths.n, tmp, err) < 0)
        return err_wrap(err, "merge the layers");
    return store_install(tmp, meta, err);
}

static int check_layers(struct image_store *s, const struct strv *layers, struct err *err)
{
    const char *missing = NULL;

    pthread_mutex_lock(&s->lock);
    for (size_t k = 0; k < layers->n && missing == NULL; k++)
        if (store_find_layer_locked(s, layers->v[k]) == NULL)
            missing = layers->v[k];
    pthread_mutex_unlock(&s->lock);
    if (missing != NULL)
        return err_set(err, ERR_INTERNAL, "layer %s is not in the store", missing);
    return 0;
}

static void add_once(struct strv *to, const char *s)
{
    if (s != NULL && !store_strv_has(to, s))
        strv_add(to, s);
}

static void add_all(struct strv *to, const struct strv *from)
{
    for (size_t k = 0; k < from->n; k++)
        add_once(to, from->v[k]);
}

/* Puts *fresh into memory in the place of what had its id, and takes its names from the others. */
static void publish_locked(struct image_store *s, struct store_image *fresh)
{
    struct store_image *i, *old = store_find_id_locked(s, fresh->rec.id);

    if (old != NULL) {
        TAILQ_REMOVE(&s->images, old, link);
        store_image_free(old);
    }
    TAILQ_FOREACH(i, &s->images, link)
    {
        for (size_t k = 0; k < fresh->rec.tags.n; k++)
            (void)store_strv_remove(&i->rec.tags, fresh->rec.tags.v[k]);
        for (size_t k = 0; k < fresh->rec.digests.n; k++)
            (void)store_strv_remove(&i->rec.digests, fresh->rec.digests.v[k]);
    }
    fresh->disk_size = store_disk_size_locked(s, fresh);
    TAILQ_INSERT_TAIL(&s->images, fresh, link);
}

static int commit_locked(struct image_store *s, const struct store_new_image *img,
                         struct store_image *fresh, struct err *err)
{
    const struct store_image *old = store_find_id_locked(s, fresh->rec.id);

    fresh->rec.size = old != NULL ? old->rec.size : img->size;
    fresh->rec.pinned = img->pinned || (old != NULL && old->rec.pinned);
    if (old != NULL) {
        fresh->holds = old->holds;
        fresh->last_hold = old->last_hold;
        add_all(&fresh->rec.tags, &old->rec.tags);
        add_all(&fresh->rec.digests, &old->rec.digests);
        add_all(&fresh->rec.blobs, &old->rec.blobs);
    }
    add_once(&fresh->rec.tags, img->tag);
    add_once(&fresh->rec.digests, img->digest);
    for (size_t k = 0; k < img->n_manifests; k++)
        add_once(&fresh->rec.blobs, img->manifest_digests[k]);
    if (FAILPOINT("image.record", err) < 0 || catalog_put_image(s->catalog, &fresh->rec, err) < 0)
        return -1;
    publish_locked(s, fresh);
    return 0;
}

int store_image_commit(struct store_lease *lease, const struct store_new_image *img,
                       struct err *err)
{
    struct image_store *s = lease->store;
    auto_free char *json = NULL;
    struct store_image *fresh = NULL;
    size_t len = 0;
    int ret;

    json = store_blob_get(s, lease, img->config_digest, LIMIT_IMAGE_CONFIG, &len, err);
    if (json == NULL)
        return -1;
    fresh = xcalloc(1, sizeof(*fresh));
    fresh->rec.id = xstrdup(img->config_digest);
    pthread_mutex_lock(&s->lock);
    lease_add(&lease->images, fresh->rec.id);
    pthread_mutex_unlock(&s->lock);
    if (image_config_parse(json, len, &fresh->config, &fresh->rec.layers, NULL, err) < 0 ||
        check_layers(s, &fresh->rec.layers, err) < 0 ||
        make_tree(s, fresh->rec.id, &fresh->rec.layers, err) < 0) {
        store_image_free(fresh);
        return err_wrap(err, "image %s", img->config_digest);
    }
    pthread_mutex_lock(&s->lock);
    ret = commit_locked(s, img, fresh, err);
    pthread_mutex_unlock(&s->lock);
    if (ret < 0) {
        store_image_free(fresh);
        return err_wrap(err, "image %s", img->config_digest);
    }
    return 0;
}

/* Downloads and unpackers. */

static int slot_take(int slots, struct cancel *cancel, struct err *err)
{
    for (;;) {
        eventfd_t one;

        if (cancel_check(cancel, err) < 0 || cancel_poll(cancel, slots, POLLIN, -1, err) < 0)
            return -1;
        if (eventfd_read(slots, &one) == 0)
            return 0;
        if (errno != EAGAIN && errno != EINTR)
            return err_sys(err, errno, "wait for one's turn");
    }
}

int store_download_begin(struct image_store *s, struct cancel *cancel, struct err *err)
{
    return slot_take(s->download_slots, cancel, err);
}

void store_download_end(struct image_store *s)
{
    (void)eventfd_write(s->download_slots, 1);
}

int store_unpack_begin(struct image_store *s, struct cancel *cancel, struct err *err)
{
    return slot_take(s->unpack_slots, cancel, err);
}

void store_unpack_end(struct image_store *s)
{
    (void)eventfd_write(s->unpack_slots, 1);
}
