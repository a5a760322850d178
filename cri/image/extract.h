/*
 * extract - an image's files as a directory of the host, for pods without a VM: overlayfs needs a
 * mounted tree, and not every host's kernel mounts erofs, or a disk of several parts.
 *
 * The layers' trees come from erofs_read(), which trusts nothing; names are single components and
 * nothing is opened through a link of the image. Owners, modes, times, extended attributes, device
 * nodes, hard links and holes are kept. The result is root's alone: its parent must be closed to
 * others, since it holds setuid files and device nodes.
 *
 * Threads: any.
 */
#ifndef ASPIS_CRI_IMAGE_EXTRACT_H
#define ASPIS_CRI_IMAGE_EXTRACT_H

#include <stddef.h>
#include <stdint.h>

#include "base/cancel.h"
#include "base/err.h"

struct extract_usage {
    uint64_t bytes, inodes;
};

/* Makes <dir>/root; dir exists and is empty, and is the caller's to remove on failure. Not synced.
 */
int extract_image(const char *const *layer_paths, size_t n, const char *dir,
                  struct extract_usage *usage, struct cancel *cancel, struct err *err);

#endif
