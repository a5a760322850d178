/*
 * merge - puts a layer's tree on top of an image's, as image-spec layer.md says.
 *
 * Directories merge, everything else replaces; whiteouts and opaque directories take effect and are
 * gone; hard links to lower layers find their inode. No contents are touched. image_meta_build()
 * (layer.h) is made of this. Threads: one per image tree.
 */
#ifndef ASPIS_CRI_IMAGE_MERGE_H
#define ASPIS_CRI_IMAGE_MERGE_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "cri/image/erofs_read.h"
#include "cri/image/tree.h"

/* The layer was read with the same tree as its arena; its directories cannot be used afterwards. */
int merge_layer(struct tree *image, struct erofs_layer *layer, struct err *err);
/* All layer files, bottom first, onto an empty tree; contents are in part k + 1 for the k-th.
 * blocks (NULL, or n of them) gets the files' lengths. */
int merge_layers(struct tree *image, const char *const *layer_paths, size_t n, uint64_t *blocks,
                 struct err *err);

#endif
