/*
 * stream - a layer as it was packed: gzip (any number of members), zstd (any number of frames) or
 * plain, told apart by its first bytes and not by what a manifest says; hashed on the way.
 *
 * (RFC 1952, RFC 8878; registries' media types: image-spec layer.md.) Memory: the stream owns its
 * buffers, not the descriptor. Threads: one at a time.
 */
#ifndef ASPIS_CRI_IMAGE_STREAM_H
#define ASPIS_CRI_IMAGE_STREAM_H

#include <stdint.h>
#include <sys/types.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "cri/image/digest.h"

struct stream;

/* max_bytes: of the uncompressed stream; more is EXHAUSTED. */
struct stream *stream_open(int fd, uint64_t max_bytes, struct err *err);
void stream_end(struct stream *s);
DEFINE_AUTO(struct stream *, stream_end);
#define auto_stream __attribute__((cleanup(stream_endp)))

/* The next uncompressed bytes, valid until the next call; 0 at the end, -1 with *err. A compressed
 * stream that ends early is INVALID; what follows the last whole gzip member is ignored. */
ssize_t stream_read(struct stream *s, const void **data, struct err *err);
/* Reads what is left and gives the digest and number of all uncompressed bytes. */
int stream_finish(struct stream *s, char digest[DIGEST_MAX], uint64_t *bytes, struct err *err);

#endif
