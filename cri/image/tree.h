/*
 * tree - a file system's names and attributes in memory, of a layer or of a whole image.
 *
 * Inodes and directory entries are apart, so that hard links are two entries of one inode.
 * Everything lives in one arena with a ceiling and is freed with the tree; what is taken out of a
 * directory only becomes unreachable. File contents are not here: an inode knows the part (0: the
 * file that the tree itself is written to, n: the n-th layer file) and block where they begin.
 *
 * Directories are treaps with random priorities: look-ups cost O(log n) whatever names an image
 * chooses, and walking in order gives the order that erofs needs. Threads: one at a time.
 */
#ifndef ASPIS_CRI_IMAGE_TREE_H
#define ASPIS_CRI_IMAGE_TREE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/err.h"

struct tree;
struct tree_entry;

struct tree_xattr {
    struct tree_xattr *next; /* sorted by prefix and name */
    uint8_t prefix;          /* enum erofs_xattr_prefix */
    uint8_t name_len;
    uint16_t value_len;
    char data[]; /* the name without prefix, then the value */
};

enum tree_flag {
    TREE_IMPLIED = 1, /* directory known only from what is in it */
    TREE_OPAQUE = 2,  /* directory that hides the lower one's contents */
    TREE_LOWER = 4,   /* stands for a file of a lower layer: link.target is its path */
};

struct tree_inode {
    uint32_t mode; /* type and permissions; a character device 0:0 is a whiteout */
    uint32_t uid, gid;
    uint32_t rdev; /* encoded as Linux's new_encode_dev() */
    int64_t mtime;
    uint32_t mtime_ns;
    uint32_t nlink; /* set by the writer */
    uint64_t nid;   /* set by the writer */
    uint16_t flags;
    uint16_t depth; /* of a directory below its root */
    struct tree_xattr *xattrs;
    union {
        struct {
            uint64_t size;
            uint32_t block; /* of the part's file; meaningless when size is 0 */
            uint32_t part;
        } file;
        struct {
            struct tree_entry *top;
            struct tree_inode *parent; /* the root's own is itself */
            uint32_t n;
        } dir;
        struct {
            const char *target; /* NUL-terminated */
            uint32_t len;
        } link;
    };
};

struct tree_entry {
    struct tree_entry *left, *right;
    struct tree_inode *inode;
    uint32_t priority;
    uint16_t name_len;
    char name[]; /* NUL-terminated */
};

/* A tree with an empty root directory, 0755 of root, marked TREE_IMPLIED. */
struct tree *tree_new(size_t max_bytes, struct err *err);
void tree_free(struct tree *t);
DEFINE_AUTO(struct tree *, tree_free);
#define auto_tree __attribute__((cleanup(tree_freep)))

struct tree_inode *tree_root(struct tree *t);
size_t tree_bytes(const struct tree *t);

/* Bytes that live as long as the tree; NULL with EXHAUSTED past its ceiling. */
void *tree_alloc(struct tree *t, size_t len, struct err *err);
/* All zero but for the mode; in no directory yet. */
struct tree_inode *tree_inode_new(struct tree *t, uint32_t mode, struct err *err);
/* A new directory in parent under a name that is free or taken over; its depth is checked. */
struct tree_inode *tree_mkdir(struct tree *t, struct tree_inode *parent, const char *name,
                              size_t len, uint32_t mode, struct err *err);
/* The target is copied. */
int tree_set_target(struct tree *t, struct tree_inode *inode, const char *target, size_t len,
                    struct err *err);
/* Sets or replaces one; the whole of them is bounded by LIMIT_XATTR_BYTES. */
int tree_set_xattr(struct tree *t, struct tree_inode *inode, uint8_t prefix, const char *name,
                   size_t name_len, const void *value, size_t value_len, struct err *err);
const struct tree_xattr *tree_get_xattr(const struct tree_inode *inode, uint8_t prefix,
                                        const char *name);

struct tree_entry *tree_lookup(const struct tree_inode *dir, const char *name, size_t len);
/* Puts inode under the name (1..255 bytes, no '/'), in place of what was there; a directory gets
 * its parent and depth. */
int tree_put(struct tree *t, struct tree_inode *dir, const char *name, size_t len,
             struct tree_inode *inode, struct err *err);
/* The same with an entry of another directory whose own directory is not used any more. */
int tree_move(struct tree_inode *dir, struct tree_entry *entry, struct err *err);
void tree_remove(struct tree_inode *dir, const char *name, size_t len);
/* The entries in byte order of their names, dir->dir.n of them; free() the array. NULL only when
 * memory is out. */
struct tree_entry **tree_sorted(const struct tree_inode *dir);

static inline bool tree_is_dir(const struct tree_inode *i)
{
    return S_ISDIR(i->mode);
}
static inline bool tree_is_whiteout(const struct tree_inode *i)
{
    return S_ISCHR(i->mode) && i->rdev == 0;
}

struct tree_place {
    struct tree_inode *dir; /* where the last component belongs; NULL: a directory is missing */
    char name[256];         /* the last component; "" when the path is the root itself */
    size_t name_len;
    struct tree_entry *entry; /* NULL when there is none of that name */
    char *rest;               /* only when dir is NULL: the path from the root that symlinks led to;
                                 free() it */
};
/* Finds where a path leads, following symlinks (as seen from the tree's root; never above it) in
 * all but its last component. `create` makes missing directories, TREE_IMPLIED with mode 0755; a
 * whiteout in the way then becomes a directory that replaces the lower one. INVALID when a
 * component is no directory, a name is too long, or there are too many symlinks. */
int tree_walk(struct tree *t, const char *path, bool create, struct tree_place *place,
              struct err *err);

#endif
