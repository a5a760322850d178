/*
 * apply - one layer's tar stream becomes a tree, and its files' contents go straight to the output.
 *
 * The rules are those of image-spec layer.md and of what containerd does: see README.md, "Layer
 * files". The tar bytes are hostile; so are names and link targets. Nothing is ever looked up or
 * made in a real file system.
 *
 * Threads: any, one per call.
 */
#ifndef ASPIS_CRI_IMAGE_APPLY_H
#define ASPIS_CRI_IMAGE_APPLY_H

#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"
#include "cri/image/erofs_write.h"
#include "cri/image/tree.h"

/* The next bytes of the tar, 0 at its end, -1 with *err; as stream_read(). */
typedef ssize_t (*apply_read_fn)(void *arg, const void **data, struct err *err);

/* Reads one archive to its end marker (what follows is left unread). *entries: members seen, at
 * most max_entries. The tree is fresh from tree_new(). Errors name the entry. */
int apply_tar(struct tree *t, struct erofs_out *out, apply_read_fn read_fn, void *arg,
              uint64_t max_entries, uint64_t *entries, struct err *err);

#endif
