#include "cri/image/tree.h"

#include <string.h>
#include <sys/random.h>

#include "base/buf.h"
#include "base/limits.h"
#include "cri/image/erofs_format.h"

#define CHUNK KiB(256)
#define MAX_SYMLINKS 40 /* as Linux */

struct chunk {
    struct chunk *next;
    size_t used, size;
    char data[];
};

struct tree {
    struct chunk *chunks;
    size_t bytes, max;
    uint64_t random;
    struct tree_inode *root;
};

void *tree_alloc(struct tree *t, size_t len, struct err *err)
{
    if (len > t->max) {
        (void)err_set(err, ERR_EXHAUSTED, "the file tree needs more than %zu bytes", t->max);
        return NULL;
    }
    len = (len + 7) & ~(size_t)7;
    struct chunk *c = t->chunks;
    if (c == NULL || c->size - c->used < len) {
        size_t size = len > CHUNK ? len : CHUNK;
        if (t->bytes + size > t->max) {
            (void)err_set(err, ERR_EXHAUSTED, "the file tree needs more than %zu bytes", t->max);
            return NULL;
        }
        c = malloc(sizeof(*c) + size);
        if (c == NULL) {
            (void)err_set(err, ERR_EXHAUSTED, "out of memory for the file tree");
            return NULL;
        }
        c->used = 0;
        c->size = size;
        c->next = t->chunks;
        t->chunks = c;
        t->bytes += size;
    }
    void *p = c->data + c->used;
    c->used += len;
    return p;
}

struct tree *tree_new(size_t max_bytes, struct err *err)
{
    auto_tree struct tree *t = calloc(1, sizeof(*t));
    if (t == NULL) {
        (void)err_set(err, ERR_EXHAUSTED, "out of memory for the file tree");
        return NULL;
    }
    t->max = max_bytes;
    if (getrandom(&t->random, sizeof(t->random), 0) != (ssize_t)sizeof(t->random)) {
        (void)err_sys(err, errno, "get random bytes");
        return NULL;
    }
    t->random |= 1; /* the generator's only bad state is 0 */
    t->root = tree_inode_new(t, S_IFDIR | 0755, err);
    if (t->root == NULL)
        return NULL;
    t->root->dir.parent = t->root;
    t->root->flags = TREE_IMPLIED;
    return take(t);
}

void tree_free(struct tree *t)
{
    if (t == NULL)
        return;
    for (struct chunk *c = t->chunks; c != NULL;) {
        struct chunk *next = c->next;
        free(c);
        c = next;
    }
    free(t);
}

struct tree_inode *tree_root(struct tree *t)
{
    return t->root;
}

size_t tree_bytes(const struct tree *t)
{
    return t->bytes;
}

struct tree_inode *tree_inode_new(struct tree *t, uint32_t mode, struct err *err)
{
    struct tree_inode *i = tree_alloc(t, sizeof(*i), err);
    if (i == NULL)
        return NULL;
    memset(i, 0, sizeof(*i));
    i->mode = mode;
    return i;
}

int tree_set_target(struct tree *t, struct tree_inode *inode, const char *target, size_t len,
                    struct err *err)
{
    char *copy = tree_alloc(t, len + 1, err);
    if (copy == NULL)
        return -1;
    memcpy(copy, target, len);
    copy[len] = '\0';
    inode->link.target = copy;
    inode->link.len = (uint32_t)len;
    return 0;
}

/* Extended attributes */

static int xattr_compare(const struct tree_xattr *x, uint8_t prefix, const char *name, size_t len)
{
    if (x->prefix != prefix)
        return x->prefix < prefix ? -1 : 1;
    int c = memcmp(x->data, name, x->name_len < len ? x->name_len : len);
    if (c != 0)
        return c;
    return x->name_len < len ? -1 : x->name_len > len;
}

int tree_set_xattr(struct tree *t, struct tree_inode *inode, uint8_t prefix, const char *name,
                   size_t name_len, const void *value, size_t value_len, struct err *err)
{
    if (name_len > 255 || value_len > LIMIT_XATTR_BYTES - 1)
        return err_set(err, ERR_INVALID, "extended attribute is too large");
    size_t sum = sizeof(struct erofs_xattr) + name_len + value_len;
    for (const struct tree_xattr *x = inode->xattrs; x != NULL; x = x->next) {
        if (xattr_compare(x, prefix, name, name_len) != 0)
            sum += sizeof(struct erofs_xattr) + x->name_len + x->value_len;
    }
    if (sum > LIMIT_XATTR_BYTES)
        return err_set(err, ERR_INVALID, "more than %zu bytes of extended attributes",
                       LIMIT_XATTR_BYTES);

    struct tree_xattr *fresh = tree_alloc(t, sizeof(*fresh) + name_len + value_len, err);
    if (fresh == NULL)
        return -1;
    fresh->prefix = prefix;
    fresh->name_len = (uint8_t)name_len;
    fresh->value_len = (uint16_t)value_len;
    if (name_len > 0)
        memcpy(fresh->data, name, name_len);
    if (value_len > 0)
        memcpy(fresh->data + name_len, value, value_len);

    struct tree_xattr **at = &inode->xattrs;
    while (*at != NULL && xattr_compare(*at, prefix, name, name_len) < 0)
        at = &(*at)->next;
    bool same = *at != NULL && xattr_compare(*at, prefix, name, name_len) == 0;
    fresh->next = same ? (*at)->next : *at;
    *at = fresh;
    return 0;
}

const struct tree_xattr *tree_get_xattr(const struct tree_inode *inode, uint8_t prefix,
                                        const char *name)
{
    for (const struct tree_xattr *x = inode->xattrs; x != NULL; x = x->next) {
        if (xattr_compare(x, prefix, name, strlen(name)) == 0)
            return x;
    }
    return NULL;
}

/* Directories */

static int name_compare(const struct tree_entry *e, const char *name, size_t len)
{
    int c = memcmp(e->name, name, e->name_len < len ? e->name_len : len);
    if (c != 0)
        return c;
    return e->name_len < len ? -1 : e->name_len > len;
}

struct tree_entry *tree_lookup(const struct tree_inode *dir, const char *name, size_t len)
{
    struct tree_entry *e = dir->dir.top;
    while (e != NULL) {
        int c = name_compare(e, name, len);
        if (c == 0)
            return e;
        e = c > 0 ? e->left : e->right;
    }
    return NULL;
}

/* Everything below `name` goes to *left, the rest to *right. */
static void split(struct tree_entry *e, const char *name, size_t len, struct tree_entry **left,
                  struct tree_entry **right)
{
    while (e != NULL) {
        if (name_compare(e, name, len) < 0) {
            *left = e;
            left = &e->right;
            e = e->right;
        } else {
            *right = e;
            right = &e->left;
            e = e->left;
        }
    }
    *left = NULL;
    *right = NULL;
}

/* All of a is below all of b. */
static void join(struct tree_entry **to, struct tree_entry *a, struct tree_entry *b)
{
    while (a != NULL && b != NULL) {
        if (a->priority >= b->priority) {
            *to = a;
            to = &a->right;
            a = a->right;
        } else {
            *to = b;
            to = &b->left;
            b = b->left;
        }
    }
    *to = a != NULL ? a : b;
}

/* The name must not be there yet. */
static void insert(struct tree_inode *dir, struct tree_entry *e)
{
    struct tree_entry **at = &dir->dir.top;
    while (*at != NULL && (*at)->priority >= e->priority)
        at = name_compare(*at, e->name, e->name_len) > 0 ? &(*at)->left : &(*at)->right;
    split(*at, e->name, e->name_len, &e->left, &e->right);
    *at = e;
    dir->dir.n++;
}

static int adopt(struct tree_inode *dir, struct tree_inode *inode, struct err *err)
{
    if (!tree_is_dir(inode))
        return 0;
    if (dir->depth >= LIMIT_TREE_DEPTH)
        return err_set(err, ERR_INVALID, "directories are nested more than %d deep",
                       LIMIT_TREE_DEPTH);
    inode->dir.parent = dir;
    inode->depth = (uint16_t)(dir->depth + 1);
    return 0;
}

int tree_put(struct tree *t, struct tree_inode *dir, const char *name, size_t len,
             struct tree_inode *inode, struct err *err)
{
    if (len == 0 || len > EROFS_NAME_MAX)
        return err_set(err, ERR_INVALID, "a name of %zu bytes", len);
    if (adopt(dir, inode, err) < 0)
        return -1;
    struct tree_entry *e = tree_lookup(dir, name, len);
    if (e != NULL) {
        e->inode = inode;
        return 0;
    }
    e = tree_alloc(t, sizeof(*e) + len + 1, err);
    if (e == NULL)
        return -1;
    t->random ^= t->random << 13; /* xorshift64 */
    t->random ^= t->random >> 7;
    t->random ^= t->random << 17;
    e->priority = (uint32_t)(t->random >> 32);
    e->inode = inode;
    e->name_len = (uint16_t)len;
    memcpy(e->name, name, len);
    e->name[len] = '\0';
    insert(dir, e);
    return 0;
}

int tree_move(struct tree_inode *dir, struct tree_entry *entry, struct err *err)
{
    if (adopt(dir, entry->inode, err) < 0)
        return -1;
    struct tree_entry *there = tree_lookup(dir, entry->name, entry->name_len);
    if (there != NULL)
        there->inode = entry->inode;
    else
        insert(dir, entry);
    return 0;
}

void tree_remove(struct tree_inode *dir, const char *name, size_t len)
{
    struct tree_entry **at = &dir->dir.top;
    while (*at != NULL) {
        int c = name_compare(*at, name, len);
        if (c == 0) {
            join(at, (*at)->left, (*at)->right);
            dir->dir.n--;
            return;
        }
        at = c > 0 ? &(*at)->left : &(*at)->right;
    }
}

static void in_order(struct tree_entry *e, struct tree_entry ***out)
{
    while (e != NULL) {
        in_order(e->left, out);
        *(*out)++ = e;
        e = e->right;
    }
}

struct tree_entry **tree_sorted(const struct tree_inode *dir)
{
    struct tree_entry **all = malloc(((size_t)dir->dir.n + 1) * sizeof(struct tree_entry *));
    if (all == NULL)
        return NULL;
    struct tree_entry **end = all;
    in_order(dir->dir.top, &end);
    return all;
}

struct tree_inode *tree_mkdir(struct tree *t, struct tree_inode *parent, const char *name,
                              size_t len, uint32_t mode, struct err *err)
{
    struct tree_inode *d = tree_inode_new(t, S_IFDIR | mode, err);
    if (d == NULL || tree_put(t, parent, name, len, d, err) < 0)
        return NULL;
    return d;
}

/* Paths */

/* State of a walk: what is still to be walked is todo + at; done is where we are. */
struct walk {
    char *todo;
    size_t at;
    struct buf done;
    unsigned symlinks;
};

static void walk_clear(struct walk *w)
{
    free(w->todo);
    buf_clear(&w->done);
}

static int walk_symlink(struct walk *w, const struct tree_inode *link, struct tree_inode *root,
                        struct tree_inode **dir, struct err *err)
{
    if (++w->symlinks > MAX_SYMLINKS)
        return err_set(err, ERR_INVALID, "too many symbolic links in the path");
    const char *rest = w->todo + w->at;
    size_t rest_len = strlen(rest);
    if (link->link.len + rest_len > 2 * (size_t)LIMIT_PATH)
        return err_set(err, ERR_INVALID, "symbolic links make the path too long");
    char *todo = malloc(link->link.len + rest_len + 2);
    if (todo == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    memcpy(todo, link->link.target, link->link.len);
    todo[link->link.len] = '/';
    memcpy(todo + link->link.len + 1, rest, rest_len + 1);
    if (todo[0] == '/') {
        *dir = root;
        buf_reset(&w->done);
    }
    free(w->todo);
    w->todo = todo;
    w->at = 0;
    return 0;
}

static void walk_up(struct walk *w, struct tree_inode **dir)
{
    *dir = (*dir)->dir.parent;
    while (w->done.len > 0 && w->done.data[w->done.len - 1] != '/')
        w->done.len--;
    if (w->done.len > 0)
        w->done.len--;
    if (w->done.data != NULL)
        w->done.data[w->done.len] = '\0';
}

/* One component that is not the last. Returns 1 when it is missing and may not be made. */
static int walk_down(struct tree *t, struct walk *w, const char *name, size_t len, bool create,
                     struct tree_inode **dir, struct err *err)
{
    struct tree_entry *e = tree_lookup(*dir, name, len);
    bool hidden = e != NULL && tree_is_whiteout(e->inode);
    if (e == NULL || hidden) {
        if (!create)
            return 1;
        struct tree_inode *d = tree_mkdir(t, *dir, name, len, 0755, err);
        if (d == NULL)
            return -1;
        d->flags = hidden ? TREE_OPAQUE : TREE_IMPLIED;
        *dir = d;
    } else if (S_ISLNK(e->inode->mode)) {
        return walk_symlink(w, e->inode, t->root, dir, err);
    } else if (tree_is_dir(e->inode)) {
        *dir = e->inode;
    } else {
        return err_set(err, ERR_INVALID, "%.*s is not a directory", (int)len, name);
    }
    (void)buf_putc(&w->done, '/');
    (void)buf_append(&w->done, name, len);
    return 0;
}

static int walk(struct tree *t, struct walk *w, bool create, struct tree_place *p, struct err *err)
{
    struct tree_inode *dir = t->root;
    p->name_len = 0;
    for (;;) {
        w->at += strspn(w->todo + w->at, "/");
        char name[EROFS_NAME_MAX + 1];
        size_t len = strcspn(w->todo + w->at, "/");
        if (len > EROFS_NAME_MAX)
            return err_set(err, ERR_INVALID, "a name in the path is longer than %u bytes",
                           EROFS_NAME_MAX);
        memcpy(name, w->todo + w->at, len);
        name[len] = '\0';
        w->at += len;
        if (len == 0) /* the path led to a directory itself: the root, or by "." and ".." */
            break;
        if (strcmp(name, ".") == 0)
            continue;
        if (strcmp(name, "..") == 0) {
            walk_up(w, &dir);
            continue;
        }
        if (w->todo[w->at + strspn(w->todo + w->at, "/")] == '\0') {
            memcpy(p->name, name, len + 1);
            p->name_len = len;
            p->dir = dir;
            p->entry = tree_lookup(dir, name, len);
            return 0;
        }
        int rc = walk_down(t, w, name, len, create, &dir, err);
        if (rc < 0)
            return -1;
        if (rc > 0) {
            (void)buf_putc(&w->done, '/');
            (void)buf_append(&w->done, name, len);
            (void)buf_puts(&w->done, w->todo + w->at);
            p->rest = buf_take(&w->done);
            if (p->rest == NULL)
                return err_set(err, ERR_INVALID, "symbolic links make the path too long");
            return 0;
        }
    }
    p->dir = dir;
    return 0;
}

int tree_walk(struct tree *t, const char *path, bool create, struct tree_place *place,
              struct err *err)
{
    memset(place, 0, sizeof(*place));
    struct walk w = {.todo = strdup(path), .done = BUF_INIT(4 * (size_t)LIMIT_PATH)};
    int rc = w.todo == NULL ? err_set(err, ERR_EXHAUSTED, "out of memory")
                            : walk(t, &w, create, place, err);
    walk_clear(&w);
    return rc;
}
