/* Start and clean-up of the store: opening, loading, rebuilding the records from the files,
 * sweeping. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/failpoint.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "cri/image/image_tree.h"
#include "cri/image/layer.h"
#include "cri/image/login_tokens.h"
#include "cri/image/manifest.h"
#include "cri/image/reference.h"
#include "cri/image/store_internal.h"

/* Sweeping. */

static bool blob_used_locked(const struct image_store *s, const char *digest)
{
    const struct store_image *i;
    const struct store_lease *l;

    TAILQ_FOREACH(i, &s->images, link)
    if (strcmp(i->rec.id, digest) == 0 || store_strv_has(&i->rec.blobs, digest))
        return true;
    LIST_FOREACH(l, &s->leases, link)
    if (store_strv_has(&l->blobs, digest))
        return true;
    return false;
}

static bool layer_used_locked(const struct image_store *s, const char *diff_id)
{
    const struct store_image *i;
    const struct store_lease *l;

    TAILQ_FOREACH(i, &s->images, link)
    if (store_strv_has(&i->rec.layers, diff_id))
        return true;
    LIST_FOREACH(l, &s->leases, link)
    if (store_strv_has(&l->layers, diff_id))
        return true;
    return false;
}

static bool tree_used_locked(const struct image_store *s, const char *id)
{
    const struct store_image *i;
    const struct store_lease *l;

    TAILQ_FOREACH(i, &s->images, link)
    if (strcmp(i->rec.id, id) == 0)
        return true;
    LIST_FOREACH(l, &s->leases, link)
    if (store_strv_has(&l->images, id))
        return true;
    return false;
}

/* Removes the files of one directory that `used` does not want; a file's digest is prefix + name
 * without suffix. */
static void sweep_dir_locked(struct image_store *s, const char *sub, const char *prefix,
                             const char *suffix,
                             bool (*used)(const struct image_store *s, const char *digest))
{
    auto_free char *path = fs_format("%s/%s", s->opts.root, sub);
    auto_closedir DIR *d = opendir(path);
    const struct dirent *e;

    while (d != NULL && (e = readdir(d)) != NULL) {
        auto_free char *digest = NULL;
        size_t n = strlen(e->d_name), m = strlen(suffix);

        if (e->d_name[0] == '.')
            continue;
        if (n > m && strcmp(e->d_name + n - m, suffix) == 0) {
            digest = fs_format("%s%.*s", prefix, (int)(n - m), e->d_name);
            if (digest_valid(digest) && used(s, digest))
                continue;
        }
        if (FAILPOINT("image.sweep", NULL) == 0)
            (void)unlinkat(dirfd(d), e->d_name, 0);
    }
}

void store_sweep_locked(struct image_store *s)
{
    struct store_layer *l, *next;

    HASH_ITER(hh, s->layers, l, next)
    {
        auto_err struct err err = ERR_INIT;

        if (layer_used_locked(s, l->diff_id))
            continue;
        if (catalog_delete_layer(s->catalog, l->diff_id, &err) < 0)
            log_warn("image layer's record stays", LOG_STR("layer", l->diff_id),
                     LOG_STR("error", err_msg(&err)));
        HASH_DEL(s->layers, l);
        free(l);
    }
    sweep_dir_locked(s, "blobs/sha256", "sha256:", "", blob_used_locked);
    sweep_dir_locked(s, "blobs/sha512", "sha512:", "", blob_used_locked);
    sweep_dir_locked(s, "layers", "sha256:", ".erofs", layer_used_locked);
    sweep_dir_locked(s, "meta", "sha256:", ".erofs", tree_used_locked);
    image_trees_sweep_locked(s, tree_used_locked);
}

/* Loading. */

static void load_layer(void *arg, const char *diff_id, uint64_t bytes)
{
    struct image_store *s = arg;
    auto_free char *path = NULL;
    struct stat st;

    if (!digest_valid(diff_id))
        return;
    path = store_layer_path(s, diff_id);
    if (stat(path, &st) < 0 || (uint64_t)st.st_size != bytes) {
        log_warn("image layer is gone or damaged", LOG_STR("layer", diff_id));
        return; /* the images that need it go, too */
    }
    store_add_layer_locked(s, diff_id, bytes);
}

static int whole(struct image_store *s, struct store_image *i, struct err *err)
{
    auto_strv struct strv diff_ids = {0};
    auto_free char *json = NULL, *meta = NULL, *tmp = NULL;
    auto_strv struct strv paths = {0};
    size_t len = 0;

    json = store_read_blob(s, i->rec.id, LIMIT_IMAGE_CONFIG, &len, err);
    if (json == NULL || image_config_parse(json, len, &i->config, &diff_ids, NULL, err) < 0)
        return -1;
    for (size_t k = 0; k < diff_ids.n; k++) {
        auto_free char *path = store_layer_path(s, diff_ids.v[k]);

        if (store_find_layer_locked(s, diff_ids.v[k]) == NULL)
            return err_set(err, ERR_DATA_LOSS, "layer %s is missing", diff_ids.v[k]);
        strv_add(&paths, path);
    }
    strv_clear(&i->rec.layers);
    i->rec.layers = diff_ids;
    diff_ids = (struct strv){0};
    meta = store_meta_path(s, i->rec.id);
    if (fs_exists(meta))
        return 0;
    tmp = store_tmp_path(s);
    if (image_meta_build((const char *const *)paths.v, paths.n, tmp, err) < 0)
        return -1;
    return store_install(tmp, meta, err);
}

static int load_image(void *arg, struct catalog_image *rec)
{
    struct image_store *s = arg;
    auto_err struct err err = ERR_INIT;
    struct store_image *i = xcalloc(1, sizeof(*i));

    i->rec = *rec;
    if (whole(s, i, &err) < 0) {
        /* Its record goes with the next sweep's view of the world: see drop_broken(). */
        log_warn("image is damaged and was dropped; pull it again", LOG_STR("image", i->rec.id),
                 LOG_STR("name", i->rec.tags.n > 0 ? i->rec.tags.v[0] : ""),
                 LOG_STR("error", err_msg(&err)));
        store_image_free(i);
        return 0;
    }
    i->disk_size = store_disk_size_locked(s, i);
    TAILQ_INSERT_TAIL(&s->images, i, link);
    return 0;
}

static int collect_id(void *arg, struct catalog_image *rec)
{
    strv_add(arg, rec->id);
    catalog_image_clear(rec);
    return 0;
}

/* Records of images that could not be loaded. */
static int drop_broken(struct image_store *s, struct err *err)
{
    auto_strv struct strv ids = {0};

    if (catalog_images(s->catalog, collect_id, &ids, err) < 0)
        return -1;
    for (size_t k = 0; k < ids.n; k++)
        if (store_find_id_locked(s, ids.v[k]) == NULL &&
            catalog_delete_image(s->catalog, ids.v[k], err) < 0)
            return -1;
    return 0;
}

static int load(struct image_store *s, struct err *err)
{
    if (catalog_layers(s->catalog, load_layer, s, err) < 0 ||
        catalog_images(s->catalog, load_image, s, err) < 0)
        return -1;
    return drop_broken(s, err);
}

static void unload(struct image_store *s)
{
    struct store_image *i;
    struct store_layer *l, *next;

    while ((i = TAILQ_FIRST(&s->images)) != NULL) {
        TAILQ_REMOVE(&s->images, i, link);
        store_image_free(i);
    }
    HASH_ITER(hh, s->layers, l, next)
    {
        HASH_DEL(s->layers, l);
        free(l);
    }
}

/* Moves a damaged catalog aside (an older one that lies there is replaced). */
static int move_aside(struct image_store *s, const char *path, struct err *err)
{
    static const char *const parts[] = {"", "-wal", "-shm"};

    free(s->damaged);
    s->damaged = fs_format("%s.damaged", path);
    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        auto_free char *from = fs_format("%s%s", path, parts[i]);
        auto_free char *to = fs_format("%s%s", s->damaged, parts[i]);

        (void)unlink(to);
        if (rename(from, to) < 0 && errno != ENOENT)
            return err_sys(err, errno, "move %s aside", from);
    }
    return 0;
}

static int open_catalog(struct image_store *s, struct err *err)
{
    auto_free char *path = fs_format("%s/images.db", s->opts.root);
    auto_err struct err why = ERR_INIT;

    if (catalog_open(path, &s->catalog, &why) == 0) {
        if (load(s, &why) == 0)
            return 0;
        unload(s);
        catalog_close(s->catalog);
        s->catalog = NULL;
    }
    if (why.code != ERR_DATA_LOSS)
        return err_move(err, &why);
    if (move_aside(s, path, err) < 0)
        return -1;
    log_error("image records are damaged; making them anew from the files",
              LOG_STR("error", err_msg(&why)), LOG_STR("kept", s->damaged));
    s->rebuild = true;
    return catalog_open(path, &s->catalog, err);
}

/* Rebuilding from the files. */

static void adopt_layers(struct image_store *s)
{
    auto_free char *path = fs_format("%s/layers", s->opts.root);
    auto_closedir DIR *d = opendir(path);
    const struct dirent *e;

    while (d != NULL && (e = readdir(d)) != NULL) {
        auto_err struct err err = ERR_INIT;
        auto_free char *diff_id = NULL;
        struct stat st;

        if (!str_ends(e->d_name, ".erofs"))
            continue;
        diff_id = fs_format("sha256:%.*s", (int)(strlen(e->d_name) - 6), e->d_name);
        if (!digest_valid(diff_id) || fstatat(dirfd(d), e->d_name, &st, 0) < 0 || st.st_size == 0 ||
            st.st_size % 4096 != 0)
            continue;
        if (catalog_put_layer(s->catalog, diff_id, (uint64_t)st.st_size, &err) == 0)
            store_add_layer_locked(s, diff_id, (uint64_t)st.st_size);
        else
            log_warn("image layer not recovered", LOG_STR("error", err_msg(&err)));
    }
}

static void adopt_image(struct image_store *s, const char *id, const char *manifest, uint64_t size)
{
    auto_err struct err err = ERR_INIT;
    struct store_image *i = store_find_id_locked(s, id);
    bool known = i != NULL;

    if (!known) {
        i = xcalloc(1, sizeof(*i));
        i->rec.id = xstrdup(id);
        i->rec.size = size;
        if (whole(s, i, &err) < 0) {
            store_image_free(i);
            return;
        }
    }
    if (manifest != NULL && !store_strv_has(&i->rec.blobs, manifest))
        strv_add(&i->rec.blobs, manifest);
    if (catalog_put_image(s->catalog, &i->rec, &err) < 0) {
        log_warn("image not recovered", LOG_STR("image", id), LOG_STR("error", err_msg(&err)));
        if (!known)
            store_image_free(i);
        return;
    }
    i->disk_size = store_disk_size_locked(s, i);
    if (!known)
        TAILQ_INSERT_TAIL(&s->images, i, link);
}

/* First every manifest, then (configs == true) configs that came without one. */
static void adopt_blobs(struct image_store *s, bool configs)
{
    auto_free char *path = fs_format("%s/blobs/sha256", s->opts.root);
    auto_closedir DIR *d = opendir(path);
    const struct dirent *e;

    while (d != NULL && (e = readdir(d)) != NULL) {
        auto_free char *digest = fs_format("sha256:%s", e->d_name);
        auto_manifest struct manifest *m = NULL;
        auto_free char *json = NULL;
        size_t len = 0;

        if (!digest_valid(digest) || (configs && store_find_id_locked(s, digest) != NULL))
            continue;
        json = store_read_blob(s, digest, LIMIT_IMAGE_CONFIG, &len, NULL);
        if (json == NULL)
            continue;
        if (configs)
            adopt_image(s, digest, NULL, len);
        else if (manifest_parse(json, len, NULL, &m, NULL) == 0 && m->kind == MANIFEST_IMAGE)
            adopt_image(s, m->config.digest, digest, manifest_total(m, len));
    }
}

static void adopt_name(void *arg, const char *name, bool tag, const char *id)
{
    struct image_store *s = arg;
    struct store_image *i = store_find_id_locked(s, id);
    struct strv *list;

    if (i == NULL || strlen(name) > LIMIT_REFERENCE)
        return;
    list = tag ? &i->rec.tags : &i->rec.digests;
    if (!store_strv_has(list, name))
        strv_add(list, name);
}

static void rebuild_locked(struct image_store *s)
{
    struct store_image *i;
    size_t n = 0, names = 0;

    adopt_layers(s);
    adopt_blobs(s, false);
    adopt_blobs(s, true);
    catalog_salvage_names(s->damaged, adopt_name, s);
    TAILQ_FOREACH(i, &s->images, link)
    {
        auto_err struct err err = ERR_INIT;

        n++;
        names += i->rec.tags.n;
        if (catalog_put_image(s->catalog, &i->rec, &err) < 0)
            log_warn("image not recovered", LOG_STR("error", err_msg(&err)));
    }
    log_warn("image records made anew", LOG_INT("images", n), LOG_INT("tags", names));
    s->rebuild = false;
}

int image_recover(struct image_store *s, struct err *err)
{
    (void)err;
    pthread_mutex_lock(&s->lock);
    if (s->rebuild)
        rebuild_locked(s);
    store_sweep_locked(s);
    pthread_mutex_unlock(&s->lock);
    image_trees_bury(s);
    return 0;
}

/* Opening. */

static void copy_options(struct image_options *to, const struct image_options *from)
{
    *to = *from;
    to->root = xstrdup(from->root);
    to->jail_helper = xstrdup(from->jail_helper);
    to->unpacker = xstrdup(from->unpacker);
    to->hosts_dir = xstrdup(from->hosts_dir);
    to->pinned = NULL; /* kept as s->pinned */
    if (to->max_downloads == 0)
        to->max_downloads = 3;
    if (to->max_unpackers == 0) {
        long n = sysconf(_SC_NPROCESSORS_ONLN);

        to->max_unpackers = n > 0 ? (uint32_t)n : 1;
    }
    if (to->max_layer_entries == 0)
        to->max_layer_entries = LIMIT_LAYER_ENTRIES;
    if (to->max_manifest_bytes == 0)
        to->max_manifest_bytes = LIMIT_MANIFEST;
    if (to->max_config_bytes == 0)
        to->max_config_bytes = LIMIT_IMAGE_CONFIG;
    if (to->max_layers == 0)
        to->max_layers = LIMIT_IMAGE_LAYERS;
    if (to->max_layer_bytes == 0)
        to->max_layer_bytes = LIMIT_LAYER_UNPACKED;
    if (to->stall_timeout_ns <= 0)
        to->stall_timeout_ns = INT64_C(300) * 1000000000;
}

static int normalise_pinned(struct image_store *s, const char *const *list, struct err *err)
{
    for (; list != NULL && *list != NULL; list++) {
        auto_reference struct reference ref = {0};
        auto_free char *name = NULL;

        if (reference_parse(*list, &ref, err) < 0)
            return err_wrap(err, "pinned image");
        name = reference_string(&ref);
        strv_add(&s->pinned, name);
    }
    return 0;
}

static int make_slots(struct image_store *s, struct err *err)
{
    const int flags = EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE;

    s->download_slots = eventfd(s->opts.max_downloads, flags);
    s->unpack_slots = eventfd(s->opts.max_unpackers, flags);
    if (s->download_slots < 0 || s->unpack_slots < 0)
        return err_sys(err, errno, "eventfd");
    return 0;
}

static int make_dirs(struct image_store *s, struct err *err)
{
    static const char *const dirs[] = {"blobs/sha256", "blobs/sha512", "layers", "meta"};
    auto_free char *tmp = fs_format("%s/tmp", s->opts.root);

    for (size_t i = 0; i < ARRAY_LEN(dirs); i++) {
        auto_free char *path = fs_format("%s/%s", s->opts.root, dirs[i]);

        if (fs_mkdir_p(path, 0700, err) < 0)
            return -1;
    }
    if (fs_rm_rf(tmp, err) < 0)
        return -1;
    return fs_mkdir_p(tmp, 0700, err);
}

static int lock_root(struct image_store *s, struct err *err)
{
    auto_free char *path = fs_format("%s/lock", s->opts.root);

    if (fs_mkdir_p(s->opts.root, 0700, err) < 0)
        return -1;
    s->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (s->lock_fd < 0)
        return err_sys(err, errno, "open %s", path);
    pid_t holder = 0;
    int held = fs_lock(s->lock_fd, &holder, err);
    if (held > 0)
        return err_set(err, ERR_PRECONDITION, "%s is in use by another process (%d)", s->opts.root,
                       (int)holder);
    return held < 0 ? err_wrap(err, "%s", path) : 0;
}

struct image_store *image_store_open(const struct image_options *opts, struct err *err)
{
    struct image_store *s = xcalloc(1, sizeof(*s));

    copy_options(&s->opts, opts);
    s->tokens = login_tokens_new();
    s->lock_fd = -1;
    s->download_slots = s->unpack_slots = -1;
    TAILQ_INIT(&s->images);
    LIST_INIT(&s->leases);
    LIST_INIT(&s->pulls);
    (void)pthread_mutex_init(&s->lock, NULL);
    (void)pthread_mutex_init(&s->pulls_lock, NULL);
    (void)pthread_mutex_init(&s->extracting, NULL);
    (void)pthread_cond_init(&s->pulls_idle, NULL);
    if (make_slots(s, err) < 0 || normalise_pinned(s, opts->pinned, err) < 0 ||
        lock_root(s, err) < 0 || make_dirs(s, err) < 0 || image_trees_begin(s, err) < 0 ||
        open_catalog(s, err) < 0)
        goto failed;
    return s;
failed:
    (void)err_wrap(err, "image store");
    image_store_close(s);
    return NULL;
}

void image_store_close(struct image_store *s)
{
    if (s == NULL)
        return;
    /* A pull's caller can be back a moment before its thread is out of here. */
    pthread_mutex_lock(&s->pulls_lock);
    while (s->pull_threads > 0)
        (void)pthread_cond_wait(&s->pulls_idle, &s->pulls_lock);
    pthread_mutex_unlock(&s->pulls_lock);
    unload(s);
    catalog_close(s->catalog);
    if (s->download_slots >= 0)
        (void)close(s->download_slots);
    if (s->unpack_slots >= 0)
        (void)close(s->unpack_slots);
    if (s->lock_fd >= 0)
        (void)close(s->lock_fd);
    (void)pthread_mutex_destroy(&s->lock);
    (void)pthread_mutex_destroy(&s->pulls_lock);
    (void)pthread_mutex_destroy(&s->extracting);
    strv_clear(&s->dead_trees);
    (void)pthread_cond_destroy(&s->pulls_idle);
    free((void *)(uintptr_t)s->opts.root);
    free((void *)(uintptr_t)s->opts.jail_helper);
    free((void *)(uintptr_t)s->opts.unpacker);
    free((void *)(uintptr_t)s->opts.hosts_dir);
    strv_clear(&s->pinned);
    login_tokens_free(s->tokens);
    free(s->damaged);
    free(s);
}
