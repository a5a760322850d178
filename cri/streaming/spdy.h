/*
 * spdy - the frames of SPDY/3.1 as Kubernetes' clients use them: a reader that is fed bytes as they
 * come, and functions that append one frame to a buffer. No I/O.
 *
 * Facts: draft-mbelshe-httpbis-spdy-00 for the framing, moby/spdystream for what clients do with
 * it: no flow control, headers compressed with one zlib stream per direction. Whatever is fed is
 * hostile: control frames, header blocks and their contents are bounded, and any breach ends the
 * connection (feed fails).
 *
 * Memory: the reader owns its state; what callbacks are given lives until they return. Threads: one
 * at a time.
 */
#ifndef ASPIS_CRI_STREAMING_SPDY_H
#define ASPIS_CRI_STREAMING_SPDY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/err.h"

enum spdy_status {
    SPDY_PROTOCOL_ERROR = 1,
    SPDY_INVALID_STREAM = 2,
    SPDY_REFUSED_STREAM = 3,
    SPDY_CANCEL = 5,
    SPDY_INTERNAL_ERROR = 6,
};

#define SPDY_MAX_DATA 0xffffff /* bytes of one DATA frame */

struct spdy_header {
    const char *name, *value; /* name in lower case */
};

/* Each returns 0, or -1 with *err to end the connection. Those left NULL are skipped. */
struct spdy_callbacks {
    int (*syn_stream)(void *arg, uint32_t id, bool fin, const struct spdy_header *headers, size_t n,
                      struct err *err);
    int (*syn_reply)(void *arg, uint32_t id, bool fin, struct err *err);
    /* A piece of a DATA frame; fin with the last piece (which may be empty). */
    int (*data)(void *arg, uint32_t id, const void *data, size_t len, bool fin, struct err *err);
    int (*rst_stream)(void *arg, uint32_t id, uint32_t status, struct err *err);
    int (*ping)(void *arg, uint32_t id, struct err *err);
    int (*goaway)(void *arg, struct err *err);
    void *arg;
};

struct spdy_reader;

struct spdy_reader *spdy_reader_new(const struct spdy_callbacks *cb);
void spdy_reader_free(struct spdy_reader *r);
/* -1 with DATA_LOSS (or a callback's error): nothing more may be fed. */
int spdy_feed(struct spdy_reader *r, const void *data, size_t len, struct err *err);

DEFINE_AUTO(struct spdy_reader *, spdy_reader_free);
#define auto_spdy_reader __attribute__((cleanup(spdy_reader_freep)))

/* --- writing; -1 when the buffer is full --- */
int spdy_append_data(struct buf *out, uint32_t id, const void *data, size_t len, bool fin);
int spdy_append_rst(struct buf *out, uint32_t id, enum spdy_status status);
int spdy_append_ping(struct buf *out, uint32_t id);
int spdy_append_goaway(struct buf *out, uint32_t last_good_id);
/* An answer without headers; `first`: nothing was sent compressed on this connection before. */
int spdy_append_reply(struct buf *out, uint32_t id, bool first);

/* A client's side: its compressor. */
struct spdy_writer;
struct spdy_writer *spdy_writer_new(void);
void spdy_writer_free(struct spdy_writer *w);
int spdy_append_syn(struct spdy_writer *w, struct buf *out, uint32_t id, bool fin,
                    const struct spdy_header *headers, size_t n);

DEFINE_AUTO(struct spdy_writer *, spdy_writer_free);
#define auto_spdy_writer __attribute__((cleanup(spdy_writer_freep)))

/* The dictionary of SPDY/3, for tests. */
const void *spdy_dictionary(size_t *len);

#endif
