/*
 * image_tree - directories of images for pods without a VM, one for each image, made when the first
 * container asks and removed with the image.
 *
 * <root>/trees/HEX/root is the tree and <root>/trees/HEX/usage what it takes on disk and in which
 * boot of the host it was made. It is not synced, so one of another boot is dropped at the start.
 * Locks and threads: as the store's (store_internal.h).
 */
#ifndef ASPIS_CRI_IMAGE_IMAGE_TREE_H
#define ASPIS_CRI_IMAGE_IMAGE_TREE_H

#include "cri/image/store_internal.h"

/* At the start, before images are loaded: drops the trees of earlier boots. */
int image_trees_begin(struct image_store *s, struct err *err);
/* What the image's tree takes; 0 when there is none. */
void image_tree_usage(const struct image_store *s, const char *id, uint64_t *bytes,
                      uint64_t *inodes);
/* Takes the trees that `used` does not want out of the way; image_trees_bury() removes them later,
 * without the lock, since that takes time. */
void image_trees_sweep_locked(struct image_store *s,
                              bool (*used)(const struct image_store *s, const char *id));
void image_trees_bury(struct image_store *s);

#endif
