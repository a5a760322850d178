/*
 * erofs_read - reads the tree of a layer file that erofs_write made.
 *
 * The unpacker that made the file has handled an attacker's bytes, so the file is hostile too:
 * every number is checked against the file's size before it is used, directories may be reached
 * once only, names must be in order, and counts, depth and memory are bounded. Only the features
 * that our writer uses are read; anything else is an error.
 *
 * Threads: any, one per tree.
 */
#ifndef ASPIS_CRI_IMAGE_EROFS_READ_H
#define ASPIS_CRI_IMAGE_EROFS_READ_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "cri/image/tree.h"

struct erofs_layer {
    struct tree_inode *root; /* in the arena of the tree given; in none of its directories */
    uint32_t blocks;         /* of the whole file */
    uint64_t entries;
    uint64_t lower_links; /* inodes marked TREE_LOWER */
};

/* data: the whole file. Files' inodes get `part`. Flags come from the layer's marks, which are then
 * no longer among the xattrs. All errors are DATA_LOSS, or EXHAUSTED. */
int erofs_read(struct tree *t, const void *data, uint64_t len, uint32_t part,
               struct erofs_layer *out, struct err *err);

#endif
