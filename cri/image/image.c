/* The questions that the daemon asks of the store: find, list, remove, sizes, the disk of an image.
 */
#include "cri/image/image.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/log.h"
#include "cri/image/image_tree.h"
#include "cri/image/manifest.h"
#include "cri/image/reference.h"
#include "cri/image/store_internal.h"

void image_free(struct image *i)
{
    if (i == NULL)
        return;
    free(i->id);
    strv_clear(&i->repo_tags);
    strv_clear(&i->repo_digests);
    image_config_clear(&i->config);
    free(i);
}

/* Pinned by what the configuration says now, not when the image was pulled. */
static bool is_pinned(const struct image_store *s, const struct store_image *i)
{
    for (size_t k = 0; k < s->pinned.n; k++)
        if (store_strv_has(&i->rec.tags, s->pinned.v[k]) ||
            store_strv_has(&i->rec.digests, s->pinned.v[k]))
            return true;
    return i->rec.pinned;
}

static struct image *snapshot(const struct image_store *s, const struct store_image *i)
{
    struct image *out = xcalloc(1, sizeof(*out));

    out->id = xstrdup(i->rec.id);
    for (size_t k = 0; k < i->rec.tags.n; k++)
        strv_add(&out->repo_tags, i->rec.tags.v[k]);
    for (size_t k = 0; k < i->rec.digests.n; k++)
        strv_add(&out->repo_digests, i->rec.digests.v[k]);
    out->size = i->rec.size;
    out->disk_size = i->disk_size;
    out->pinned = is_pinned(s, i);
    image_config_copy(&out->config, &i->config);
    out->n_layers = i->rec.layers.n;
    return out;
}

static struct store_image *find_name_locked(struct image_store *s, const struct reference *ref)
{
    auto_free char *name = reference_string(ref);
    struct store_image *i;

    TAILQ_FOREACH(i, &s->images, link)
    if (store_strv_has(ref->digest != NULL ? &i->rec.digests : &i->rec.tags, name))
        return i;
    return NULL;
}

/* By id or its beginning; *several is set when more than one image fits. */
static struct store_image *find_hex_locked(struct image_store *s, const char *hex, bool *several)
{
    struct store_image *i, *found = NULL;

    TAILQ_FOREACH(i, &s->images, link)
    {
        if (!str_starts(digest_hex(i->rec.id), hex))
            continue;
        *several = found != NULL;
        if (found != NULL)
            return NULL;
        found = i;
    }
    return found;
}

static struct store_image *find_locked(struct image_store *s, const char *text, struct err *err)
{
    auto_err struct err bad = ERR_INIT;
    auto_reference struct reference ref = {0};
    struct store_image *found = NULL;
    const char *hex = NULL;
    bool whole = false, several = false, is_id;

    is_id = text != NULL && reference_is_id(text, &hex, &whole);
    /* Names go first, but for a whole id, which is never a name. */
    if (!whole && reference_parse(text, &ref, &bad) == 0)
        found = find_name_locked(s, &ref);
    if (found == NULL && is_id)
        found = find_hex_locked(s, hex, &several);
    if (found != NULL)
        return found;
    if (several)
        (void)err_set(err, ERR_INVALID, "image id \"%s\" is ambiguous", text);
    else if (bad.code != ERR_OK && !is_id)
        (void)err_move(err, &bad);
    else
        (void)err_set(err, ERR_NOT_FOUND, "image \"%s\" not found", text);
    return NULL;
}

static struct image *find(struct image_store *s, const char *reference, bool hold, struct err *err)
{
    struct image *out = NULL;
    struct store_image *i;

    pthread_mutex_lock(&s->lock);
    i = find_locked(s, reference, err);
    if (i != NULL)
        out = snapshot(s, i);
    if (i != NULL && hold) {
        i->holds++;
        i->last_hold = ++s->hold_serial;
    }
    pthread_mutex_unlock(&s->lock);
    return out;
}

struct image *image_find(struct image_store *s, const char *reference, struct err *err)
{
    return find(s, reference, false, err);
}

struct image *image_hold(struct image_store *s, const char *reference, struct err *err)
{
    return find(s, reference, true, err);
}

void image_unhold(struct image_store *s, const char *id)
{
    struct store_image *i;

    pthread_mutex_lock(&s->lock);
    i = store_find_id_locked(s, id);
    if (i != NULL && i->holds > 0)
        i->holds--;
    pthread_mutex_unlock(&s->lock);
}

int image_list(struct image_store *s, struct image ***images, size_t *n, struct err *err)
{
    const struct store_image *i;
    size_t count = 0;

    (void)err;
    pthread_mutex_lock(&s->lock);
    TAILQ_FOREACH(i, &s->images, link)
    count++;
    *images = xcalloc(count + 1, sizeof(**images));
    *n = 0;
    TAILQ_FOREACH(i, &s->images, link)
    (*images)[(*n)++] = snapshot(s, i);
    pthread_mutex_unlock(&s->lock);
    return 0;
}

/* The id of what a reference names; NULL without an error when there is no such image. */
static char *id_of(struct image_store *s, const char *reference, struct err *err)
{
    auto_err struct err e = ERR_INIT;
    const struct store_image *i;
    char *id = NULL;

    pthread_mutex_lock(&s->lock);
    i = find_locked(s, reference, &e);
    if (i != NULL)
        id = xstrdup(i->rec.id);
    pthread_mutex_unlock(&s->lock);
    if (id == NULL && e.code != ERR_NOT_FOUND)
        (void)err_move(err, &e);
    return id;
}

/* The record goes first, so that a crash leaves files without a record and not the other way round.
 * But when it cannot be written, as on a full disk, the files go: kubelet removes images to make
 * room. A record that stays is dropped at the next start, since its files are missing. */
static void remove_locked(struct image_store *s, struct store_image *i)
{
    auto_err struct err err = ERR_INIT;
    auto_free char *id = xstrdup(i->rec.id);
    bool recorded = catalog_delete_image(s->catalog, id, &err) == 0;

    TAILQ_REMOVE(&s->images, i, link);
    store_image_free(i);
    store_sweep_locked(s);
    if (!recorded && catalog_delete_image(s->catalog, id, &err) < 0)
        log_warn("image removed, but not its record", LOG_STR("image", id),
                 LOG_STR("error", err_msg(&err)));
}

enum removal { REMOVED, HELD, NEW_HOLDER };

/* Unless somebody holds the image, or has held it since the hold `seen`. */
static enum removal remove_unless_held(struct image_store *s, const char *id, uint64_t seen)
{
    enum removal what = REMOVED;
    struct store_image *i;

    pthread_mutex_lock(&s->lock);
    i = store_find_id_locked(s, id);
    if (i != NULL && i->holds > 0)
        what = HELD;
    else if (i != NULL && i->last_hold != seen)
        what = NEW_HOLDER;
    else if (i != NULL)
        remove_locked(s, i);
    pthread_mutex_unlock(&s->lock);
    return what;
}

static uint64_t last_hold(struct image_store *s, const char *id)
{
    const struct store_image *i;
    uint64_t serial = 0;

    pthread_mutex_lock(&s->lock);
    i = store_find_id_locked(s, id);
    if (i != NULL)
        serial = i->last_hold;
    pthread_mutex_unlock(&s->lock);
    return serial;
}

int image_remove(struct image_store *s, const char *reference,
                 bool (*in_use)(void *arg, const char *id), void *arg, struct err *err)
{
    auto_err struct err e = ERR_INIT;
    auto_free char *id = id_of(s, reference, &e);
    enum removal what;

    if (id == NULL)
        return e.code != ERR_OK ? err_move(err, &e) : 0;
    do {
        uint64_t seen = last_hold(s, id);
        /* Asked without our lock: the answer takes locks of the daemon's own. Every user comes by
         * way of a hold, so the answer counts as long as there was no new one. */
        bool used = in_use != NULL && in_use(arg, id);
        what = used ? HELD : remove_unless_held(s, id, seen);
    } while (what == NEW_HOLDER);
    if (what == HELD)
        return err_set(err, ERR_PRECONDITION, "image %s is in use by a container", id);
    image_trees_bury(s);
    return 0;
}

static void add_dir(int at, const char *name, const char *only, struct image_fs *out, int depth)
{
    auto_close int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    auto_closedir DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    const struct dirent *e;
    struct stat st;

    if (d == NULL)
        return;
    (void)take_fd(&fd);
    while ((e = readdir(d)) != NULL) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0 ||
            fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        if (only == NULL || strcmp(e->d_name, only) == 0) {
            out->used_bytes += (uint64_t)st.st_blocks * 512;
            out->inodes_used++;
        }
        if (S_ISDIR(st.st_mode) && depth > 0)
            add_dir(dirfd(d), e->d_name, only, out, depth - 1);
    }
}

void image_dir_usage(const char *path, const char *only, int depth, struct image_fs *out)
{
    *out = (struct image_fs){.mountpoint = xstrdup(path)};
    add_dir(AT_FDCWD, path, only, out, depth);
}

int image_fs_info(struct image_store *s, struct image_fs *out, struct err *err)
{
    (void)err;
    image_dir_usage(s->opts.root, NULL, 2, out);
    const struct store_image *i;
    pthread_mutex_lock(&s->lock);
    TAILQ_FOREACH(i, &s->images, link)
    {
        uint64_t bytes, inodes;

        image_tree_usage(s, i->rec.id, &bytes, &inodes);
        out->used_bytes += bytes;
        out->inodes_used += inodes;
    }
    pthread_mutex_unlock(&s->lock);
    return 0;
}

/* The image's disk. */

static int add_part(struct image_disk *d, char *path, struct err *err)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0 || fstat(fd, &st) < 0) {
        (void)err_sys(err, errno, "open %s", path);
        free(path);
        if (fd >= 0)
            (void)close(fd);
        return -1;
    }
    d->parts[d->n_parts].fd = fd;
    d->parts[d->n_parts++].size = (uint64_t)st.st_size;
    if (st.st_size == 0 || st.st_size % 4096 != 0)
        (void)err_set(err, ERR_DATA_LOSS, "%s has the odd size %lld", path, (long long)st.st_size);
    free(path);
    return st.st_size == 0 || st.st_size % 4096 != 0 ? -1 : 0;
}

static int open_parts_locked(struct image_store *s, const struct store_image *i,
                             struct image_disk *d, struct err *err)
{
    d->parts = xcalloc(i->rec.layers.n + 1, sizeof(*d->parts));
    image_disk_serial(i->rec.id, d->serial);
    if (add_part(d, store_meta_path(s, i->rec.id), err) < 0)
        return -1;
    for (size_t k = 0; k < i->rec.layers.n; k++)
        if (add_part(d, store_layer_path(s, i->rec.layers.v[k]), err) < 0)
            return -1;
    return 0;
}

int image_disk_open(struct image_store *s, const char *id, struct image_disk *out, struct err *err)
{
    const struct store_image *i;
    int ret;

    *out = (struct image_disk){0};
    pthread_mutex_lock(&s->lock);
    i = store_find_id_locked(s, id);
    ret = i != NULL ? open_parts_locked(s, i, out, err)
                    : err_set(err, ERR_NOT_FOUND, "image %s not found", id);
    pthread_mutex_unlock(&s->lock);
    if (ret < 0)
        image_disk_clear(out);
    return ret < 0 ? err_wrap(err, "disk of image %s", id) : 0;
}

void image_disk_clear(struct image_disk *d)
{
    for (size_t k = 0; k < d->n_parts; k++)
        (void)close(d->parts[k].fd);
    free(d->parts);
    *d = (struct image_disk){0};
}
