#include "cri/image/stream.h"

#include <stdbool.h>
#include <string.h>
#include <zlib.h>
#include <zstd.h>

#include "base/limits.h"

#define IN_SIZE KiB(128)
#define OUT_SIZE KiB(256)
/* zstd's window, which the stream chooses and we have to allocate: the zstd program's own default.
 */
#define ZSTD_WINDOW_LOG 27

enum packing { PACKING_UNKNOWN, PACKING_NONE, PACKING_GZIP, PACKING_ZSTD };

struct stream {
    int fd;
    enum packing packing;
    uint64_t max, bytes;
    struct digest_ctx digest;
    unsigned char *in, *out;
    size_t in_at, in_len; /* unread input */
    bool in_eof;
    bool member_open; /* within a gzip member or zstd frame */
    bool ignore_rest; /* garbage behind the last gzip member */
    z_stream z;
    bool z_ready;
    ZSTD_DStream *zstd;
};

void stream_end(struct stream *s)
{
    if (s == NULL)
        return;
    if (s->z_ready)
        (void)inflateEnd(&s->z);
    ZSTD_freeDStream(s->zstd);
    digest_clear(&s->digest);
    free(s->in);
    free(s->out);
    free(s);
}

struct stream *stream_open(int fd, uint64_t max_bytes, struct err *err)
{
    auto_stream struct stream *s = calloc(1, sizeof(*s));
    if (s == NULL) {
        (void)err_set(err, ERR_EXHAUSTED, "out of memory");
        return NULL;
    }
    s->fd = fd;
    s->max = max_bytes;
    s->in = malloc(IN_SIZE);
    s->out = malloc(OUT_SIZE);
    if (s->in == NULL || s->out == NULL) {
        (void)err_set(err, ERR_EXHAUSTED, "out of memory");
        return NULL;
    }
    if (digest_init(&s->digest, "sha256", err) < 0)
        return NULL;
    return take(s);
}

/* Adds input behind what is unread; sets in_eof at the end. */
static int fill(struct stream *s, struct err *err)
{
    if (s->in_at > 0) {
        memmove(s->in, s->in + s->in_at, s->in_len);
        s->in_at = 0;
    }
    while (!s->in_eof && s->in_len < IN_SIZE) {
        ssize_t n = read(s->fd, s->in + s->in_len, IN_SIZE - s->in_len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_sys(err, errno, "read the layer");
        if (n == 0)
            s->in_eof = true;
        s->in_len += (size_t)n;
        if (s->in_len >= 4) /* enough to tell by */
            break;
    }
    return 0;
}

static bool is_gzip(const unsigned char *p, size_t n)
{
    return n >= 3 && p[0] == 0x1f && p[1] == 0x8b && p[2] == 8;
}

static bool is_zstd(const unsigned char *p, size_t n)
{
    if (n < 4)
        return false;
    if (p[0] == 0x28 && p[1] == 0xb5 && p[2] == 0x2f && p[3] == 0xfd)
        return true;
    return (p[0] & 0xf0) == 0x50 && p[1] == 0x2a && p[2] == 0x4d && p[3] == 0x18; /* skippable */
}

static int detect(struct stream *s, struct err *err)
{
    if (fill(s, err) < 0)
        return -1;
    if (is_gzip(s->in, s->in_len)) {
        s->packing = PACKING_GZIP;
        if (inflateInit2(&s->z, 15 + 16) != Z_OK)
            return err_set(err, ERR_EXHAUSTED, "out of memory for gzip");
        s->z_ready = true;
        s->member_open = true;
    } else if (is_zstd(s->in, s->in_len)) {
        s->packing = PACKING_ZSTD;
        s->zstd = ZSTD_createDStream();
        if (s->zstd == NULL ||
            ZSTD_isError(ZSTD_DCtx_setParameter(s->zstd, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG)))
            return err_set(err, ERR_EXHAUSTED, "out of memory for zstd");
    } else {
        s->packing = PACKING_NONE;
    }
    return 0;
}

/* Each unpacker fills `out` once: bytes made, 0 at the end, -1. */

static ssize_t next_gzip(struct stream *s, struct err *err)
{
    for (;;) {
        if (s->ignore_rest)
            s->in_len = 0;
        if (s->in_len < 4 && fill(s, err) < 0)
            return -1;
        if (s->in_len == 0 && s->in_eof) {
            if (s->member_open)
                return err_set(err, ERR_INVALID, "the gzip stream ends too early");
            return 0;
        }
        if (s->ignore_rest)
            continue;
        if (!s->member_open) {
            if (!is_gzip(s->in + s->in_at, s->in_len)) {
                s->ignore_rest = true;
                continue;
            }
            (void)inflateReset(&s->z);
            s->member_open = true;
        }
        s->z.next_in = s->in + s->in_at;
        s->z.avail_in = (uInt)s->in_len;
        s->z.next_out = s->out;
        s->z.avail_out = (uInt)OUT_SIZE;
        int rc = inflate(&s->z, Z_NO_FLUSH);
        size_t eaten = s->in_len - s->z.avail_in;
        size_t made = OUT_SIZE - s->z.avail_out;
        s->in_at += eaten;
        s->in_len -= eaten;
        if (rc == Z_STREAM_END)
            s->member_open = false;
        else if (rc != Z_OK && rc != Z_BUF_ERROR)
            return err_set(err, rc == Z_MEM_ERROR ? ERR_EXHAUSTED : ERR_INVALID,
                           "the gzip stream is damaged: %s", s->z.msg != NULL ? s->z.msg : "?");
        if (made > 0)
            return (ssize_t)made;
        if (eaten == 0 && s->member_open) {
            if (s->in_eof)
                return err_set(err, ERR_INVALID, "the gzip stream ends too early");
            if (fill(s, err) < 0)
                return -1;
        }
    }
}

static ssize_t next_zstd(struct stream *s, struct err *err)
{
    for (;;) {
        if (s->in_len == 0 && fill(s, err) < 0)
            return -1;
        ZSTD_inBuffer in = {s->in + s->in_at, s->in_len, 0};
        ZSTD_outBuffer out = {s->out, OUT_SIZE, 0};
        size_t rc = 0;
        if (s->in_len > 0 || s->member_open)
            rc = ZSTD_decompressStream(s->zstd, &out, &in);
        else
            return 0;
        if (ZSTD_isError(rc))
            return err_set(err, ERR_INVALID, "the zstd stream is damaged: %s",
                           ZSTD_getErrorName(rc));
        s->in_at += in.pos;
        s->in_len -= in.pos;
        s->member_open = rc != 0;
        if (out.pos > 0)
            return (ssize_t)out.pos;
        if (in.pos == 0 && s->in_len == 0 && s->in_eof) {
            if (s->member_open)
                return err_set(err, ERR_INVALID, "the zstd stream ends too early");
            return 0;
        }
    }
}

static ssize_t next_plain(struct stream *s, struct err *err)
{
    if (s->in_len == 0 && fill(s, err) < 0)
        return -1;
    size_t n = s->in_len;
    memcpy(s->out, s->in + s->in_at, n);
    s->in_at = 0;
    s->in_len = 0;
    return (ssize_t)n;
}

ssize_t stream_read(struct stream *s, const void **data, struct err *err)
{
    if (s->packing == PACKING_UNKNOWN && detect(s, err) < 0)
        return -1;
    ssize_t n = s->packing == PACKING_GZIP   ? next_gzip(s, err)
                : s->packing == PACKING_ZSTD ? next_zstd(s, err)
                                             : next_plain(s, err);
    if (n <= 0)
        return n;
    if ((uint64_t)n > s->max - s->bytes)
        return err_set(err, ERR_EXHAUSTED, "the layer unpacks to more than %llu bytes",
                       (unsigned long long)s->max);
    s->bytes += (uint64_t)n;
    if (digest_update(&s->digest, s->out, (size_t)n, err) < 0)
        return -1;
    *data = s->out;
    return n;
}

int stream_finish(struct stream *s, char digest[DIGEST_MAX], uint64_t *bytes, struct err *err)
{
    const void *ignored;
    ssize_t n;
    while ((n = stream_read(s, &ignored, err)) > 0)
        ;
    if (n < 0)
        return -1;
    *bytes = s->bytes;
    return digest_final(&s->digest, digest, err);
}
