/*
 * layer - a layer's tar stream becomes one erofs file, and the layers' files become one image.
 *
 * layer_convert() runs the unpacker (`aspis-unpack`) in the jail: an unprivileged uid without any
 * capability, without network and with nothing of the host's file system, which is enough since
 * nothing is unpacked into a file system: it reads the (gzip, zstd or plain) tar from a pipe and
 * writes an erofs file through a descriptor. What it writes is not trusted afterwards either:
 * image_meta_build() validates every structure that it reads from a layer file.
 *
 * A layer file by itself is a valid read-only erofs, and a valid lower layer of an overlayfs, but
 * for two things that only the merge resolves (see README.md, "Layer files").
 *
 * Threads: any. Memory: results are plain structs.
 */
#ifndef ASPIS_CRI_IMAGE_LAYER_H
#define ASPIS_CRI_IMAGE_LAYER_H

#include <stddef.h>
#include <stdint.h>

#include "base/cancel.h"
#include "base/err.h"
#include "cri/image/image.h"

struct layer_result {
    char diff_id[sizeof("sha256:") + 64]; /* of the uncompressed bytes, all of them up to EOF */
    uint64_t uncompressed_bytes;          /* of the tar stream */
    uint64_t entries;                     /* tar members */
    uint64_t file_bytes;                  /* size of the file at out_path, a multiple of 4096 */
};

/* Converts what comes from in_fd, up to its EOF, into a new file at out_path (which must not
 * exist), and syncs the file. The caller compares diff_id with the one it expects, and holds the
 * stream's own digest: this function only knows that the stream was a whole archive.
 *
 * in_fd is taken over and closed in every case, early when the unpacker has died, so that whoever
 * feeds the pipe gets EPIPE (SIGPIPE must be ignored) and not a pipe that is never emptied. A
 * feeder that fails closes its end; that gives an error here, or a diff_id that does not fit.
 *
 * Uses unpacker, jail_helper (NULL: unconfined, for tests), unpack_uid and max_layer_bytes of the
 * options. On failure nothing is left at out_path. Codes: INVALID (not a valid archive; the text
 * names the entry), EXHAUSTED (a bound, or the disk is full), CANCELLED, DEADLINE, INTERNAL. */
int layer_convert(const struct image_options *o, int in_fd, const char *out_path,
                  struct layer_result *res, struct cancel *cancel, struct err *err);

/* Merges the layers, bottom first, into the metadata file of their image, at out_path (which must
 * not exist), synced. Its inodes point into the concatenation of this file and the layer files in
 * the order given, so the layer files may not change afterwards, and the disk is
 * [out_path][layer_paths[0]][layer_paths[1]]... A layer may be listed more than once.
 *
 * Needs memory in proportion to the number of files, none for their contents. On failure nothing is
 * left at out_path. Codes: DATA_LOSS (a layer file is damaged), INVALID (the layers do not fit
 * together: a hard link without target), EXHAUSTED. */
int image_meta_build(const char *const *layer_paths, size_t n, const char *out_path,
                     struct err *err);

#endif
