/*
 * erofs_write - writes an EROFS file: contents first, as they come, then the tree, then the
 * superblock.
 *
 * Block 0 holds the superblock, file contents follow in whole blocks, then come the inodes, then
 * what of directories and long symlinks does not fit behind their inodes. The same calls give the
 * same bytes. A file is no valid file system before erofs_finish() has returned.
 *
 * Memory: a struct erofs_out lives with the caller and owns its buffer, not the descriptor.
 * Threads: one at a time.
 */
#ifndef ASPIS_CRI_IMAGE_EROFS_WRITE_H
#define ASPIS_CRI_IMAGE_EROFS_WRITE_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "cri/image/tree.h"

struct erofs_out {
    int fd;
    uint64_t pos;       /* of the next byte */
    uint64_t max_bytes; /* the contents may not go past this */
    uint64_t flushed;   /* what is below is in the file, or a hole of it */
    char *buf;
    size_t used;
};

/* fd: an empty regular file, open for writing. */
int erofs_out_init(struct erofs_out *o, int fd, uint64_t max_bytes, struct err *err);
void erofs_out_clear(struct erofs_out *o);
#define auto_erofs_out __attribute__((cleanup(erofs_out_clear)))

/* One file's contents: begin, any number of write and hole (zeros that take no space), end. */
uint32_t erofs_data_begin(const struct erofs_out *o);
int erofs_data_write(struct erofs_out *o, const void *data, size_t len, struct err *err);
int erofs_data_hole(struct erofs_out *o, uint64_t len, struct err *err);
int erofs_data_end(struct erofs_out *o, struct err *err);

/* Writes the tree and makes the file whole. part_blocks[k - 1] is the size, in blocks, of part k;
 * the parts follow this file on the device, in order. part_blocks NULL: the tree is a layer by
 * itself, whose directories get the marks that tell their flags. *size: bytes of this file. */
int erofs_finish(struct erofs_out *o, struct tree *t, const uint64_t *part_blocks, size_t n_parts,
                 uint64_t *size, struct err *err);

#endif
