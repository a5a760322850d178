#include "cri/image/merge.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/queue.h>

#include "base/buf.h"
#include "base/limits.h"
#include "cri/image/erofs_format.h"
#include "cri/image/erofs_write.h"
#include "cri/image/layer.h"

/* A directory that the layer only implies, where the image has a symlink: what is in it belongs
 * where the symlink leads. That is done last, when the rest of the layer is in place. */
struct detour {
    STAILQ_ENTRY(detour) next;
    struct tree_inode *from;
    struct tree_inode *dir; /* the image's directory with the symlink */
    struct tree_entry *entry;
    char *path; /* of the symlink */
};

struct merge {
    struct tree *image;
    struct buf path; /* of the directory being merged, "/a/b" */
    STAILQ_HEAD(, detour) detours;
};

/* Hard links to lower layers: each such entry gets the inode that its path had before this layer.
 */

static int resolve_link(struct tree *image, struct tree_entry *e, struct err *err)
{
    const char *target = e->inode->link.target;
    struct tree_place to;
    if (tree_walk(image, target, false, &to, err) < 0)
        return err_wrap(err, "%s: hard link to %s", e->name, target);
    free(to.rest);
    if (to.dir == NULL || to.entry == NULL)
        return err_set(err, ERR_INVALID, "%s: hard link to %s, which no lower layer has", e->name,
                       target);
    if (tree_is_dir(to.entry->inode))
        return err_set(err, ERR_INVALID, "%s: hard link to the directory %s", e->name, target);
    e->inode = to.entry->inode;
    return 0;
}

static int resolve_links(struct tree *image, struct tree_inode *dir, struct err *err)
{
    auto_free struct tree_entry **list = tree_sorted(dir);
    if (list == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    for (uint32_t i = 0; i < dir->dir.n; i++) {
        struct tree_inode *in = list[i]->inode;
        if (tree_is_dir(in)) {
            if (resolve_links(image, in, err) < 0)
                return -1;
        } else if (S_ISREG(in->mode) && (in->flags & TREE_LOWER) != 0) {
            if (resolve_link(image, list[i], err) < 0)
                return -1;
        }
    }
    return 0;
}

/* Directories */

static int merge_entries(struct merge *m, struct tree_inode *dir, struct tree_entry **list,
                         uint32_t n, struct err *err);

/* Puts what `from` holds, and what it says about itself, onto the image's `dir`; `from` may be dir.
 */
static int merge_dir(struct merge *m, struct tree_inode *dir, struct tree_inode *from,
                     struct err *err)
{
    auto_free struct tree_entry **list = tree_sorted(from);
    if (list == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    uint32_t n = from->dir.n;
    if (from == dir || (from->flags & TREE_OPAQUE) != 0) {
        dir->dir.top = NULL;
        dir->dir.n = 0;
    }
    if ((from->flags & TREE_IMPLIED) == 0) {
        dir->mode = from->mode;
        dir->uid = from->uid;
        dir->gid = from->gid;
        dir->mtime = from->mtime;
        dir->mtime_ns = from->mtime_ns;
        dir->xattrs = from->xattrs;
    }
    return merge_entries(m, dir, list, n, err);
}

static int add_detour(struct merge *m, struct tree_inode *dir, struct tree_entry *entry,
                      struct tree_inode *from, struct err *err)
{
    struct detour *d = calloc(1, sizeof(*d));
    char *path = strdup(buf_str(&m->path));
    if (d == NULL || path == NULL) {
        free(d);
        free(path);
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    }
    *d = (struct detour){.from = from, .dir = dir, .entry = entry, .path = path};
    STAILQ_INSERT_TAIL(&m->detours, d, next);
    return 0;
}

static int merge_subdir(struct merge *m, struct tree_inode *dir, struct tree_entry *e,
                        struct err *err)
{
    struct tree_entry *there = tree_lookup(dir, e->name, e->name_len);
    size_t path_len = m->path.len;
    if (buf_putc(&m->path, '/') < 0 || buf_append(&m->path, e->name, e->name_len) < 0)
        return err_set(err, ERR_EXHAUSTED, "out of memory for a path");
    int rc;
    if (there != NULL && tree_is_dir(there->inode)) {
        rc = merge_dir(m, there->inode, e->inode, err);
    } else if (there != NULL && S_ISLNK(there->inode->mode) &&
               (e->inode->flags & TREE_IMPLIED) != 0) {
        rc = add_detour(m, dir, e, e->inode, err);
    } else {
        rc = tree_move(dir, e, err);
        if (rc == 0)
            rc = merge_dir(m, e->inode, e->inode, err);
    }
    m->path.len = path_len;
    m->path.data[path_len] = '\0';
    return rc;
}

static int merge_entries(struct merge *m, struct tree_inode *dir, struct tree_entry **list,
                         uint32_t n, struct err *err)
{
    for (uint32_t i = 0; i < n; i++) {
        struct tree_entry *e = list[i];
        int rc = 0;
        if (tree_is_whiteout(e->inode))
            tree_remove(dir, e->name, e->name_len);
        else if (tree_is_dir(e->inode))
            rc = merge_subdir(m, dir, e, err);
        else
            rc = tree_move(dir, e, err);
        if (rc < 0)
            return -1;
    }
    return 0;
}

/* Where the symlink leads, made if it leads nowhere; NULL without *err when it cannot lead to a
 * directory. */
static struct tree_inode *detour_target(struct merge *m, const struct detour *d, struct err *err)
{
    char *path = NULL;
    if (asprintf(&path, "%s/.", d->path) < 0) {
        (void)err_set(err, ERR_EXHAUSTED, "out of memory");
        return NULL;
    }
    auto_err struct err e = ERR_INIT;
    struct tree_place to;
    int rc = tree_walk(m->image, path, true, &to, &e);
    free(path);
    if (rc == 0)
        return to.dir;
    if (e.code != ERR_INVALID)
        (void)err_move(err, &e);
    return NULL;
}

static int merge_detour(struct merge *m, const struct detour *d, struct err *err)
{
    auto_err struct err e = ERR_INIT;
    buf_reset(&m->path);
    if (buf_puts(&m->path, d->path) < 0)
        return err_set(err, ERR_EXHAUSTED, "out of memory for a path");
    struct tree_inode *target = detour_target(m, d, &e);
    if (target != NULL)
        return merge_dir(m, target, d->from, err);
    if (e.code != ERR_OK)
        return err_move(err, &e);
    /* As where the image has a file: the layer's directory takes the name. */
    if (tree_move(d->dir, d->entry, err) < 0)
        return -1;
    return merge_dir(m, d->from, d->from, err);
}

int merge_layer(struct tree *image, struct erofs_layer *layer, struct err *err)
{
    if (layer->lower_links > 0 && resolve_links(image, layer->root, err) < 0)
        return -1;
    struct merge m = {.image = image, .path = BUF_INIT(MiB(1))};
    STAILQ_INIT(&m.detours);
    int rc = merge_dir(&m, tree_root(image), layer->root, err);
    while (!STAILQ_EMPTY(&m.detours)) {
        struct detour *d = STAILQ_FIRST(&m.detours);
        STAILQ_REMOVE_HEAD(&m.detours, next);
        if (rc == 0)
            rc = merge_detour(&m, d, err);
        free(d->path);
        free(d);
    }
    buf_clear(&m.path);
    return rc;
}

/* Image files */

/* The file is one of ours under its final name: nothing makes it shorter while we look at it. */
static int merge_file(struct tree *image, const char *path, uint32_t part, uint64_t *blocks,
                      struct err *err)
{
    auto_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_sys(err, errno, "open");
    if (!S_ISREG(st.st_mode) || st.st_size <= 0)
        return err_set(err, ERR_DATA_LOSS, "damaged erofs file: empty");
    size_t len = (size_t)st.st_size;
    void *data = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED)
        return err_sys(err, errno, "map");
    struct erofs_layer layer;
    int rc = erofs_read(image, data, len, part, &layer, err);
    (void)munmap(data, len);
    if (rc == 0)
        rc = merge_layer(image, &layer, err);
    *blocks = rc == 0 ? layer.blocks : 0;
    return rc;
}

static int write_image(struct tree *image, const uint64_t *blocks, size_t n, int fd,
                       struct err *err)
{
    auto_erofs_out struct erofs_out out = {0};
    uint64_t size;
    if (erofs_out_init(&out, fd, UINT64_MAX, err) < 0 ||
        erofs_finish(&out, image, blocks, n, &size, err) < 0)
        return -1;
    return fsync(fd) < 0 ? err_sys(err, errno, "sync") : 0;
}

int merge_layers(struct tree *image, const char *const *layer_paths, size_t n, uint64_t *blocks,
                 struct err *err)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t length = 0;
        if (merge_file(image, layer_paths[i], (uint32_t)i + 1, &length, err) < 0)
            return err_wrap(err, "merge layer %s", layer_paths[i]);
        if (blocks != NULL)
            blocks[i] = length;
    }
    return 0;
}

int image_meta_build(const char *const *layer_paths, size_t n, const char *out_path,
                     struct err *err)
{
    if (n > LIMIT_IMAGE_LAYERS)
        return err_set(err, ERR_EXHAUSTED, "an image of %zu layers", n);
    auto_tree struct tree *image = tree_new(LIMIT_TREE_BYTES, err);
    auto_free uint64_t *blocks = calloc(n + 1, sizeof(*blocks));
    if (image == NULL)
        return -1;
    if (blocks == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    if (merge_layers(image, layer_paths, n, blocks, err) < 0)
        return -1;
    auto_close int fd = open(out_path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_sys(err, errno, "create %s", out_path);
    if (write_image(image, blocks, n, fd, err) < 0) {
        (void)unlink(out_path);
        return err_wrap(err, "write %s", out_path);
    }
    return 0;
}
