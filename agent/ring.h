/*
 * ring - a byte queue over a circular buffer that grows on demand to a ceiling and shrinks when
 * empty.
 *
 * Memory: lives with its owner, starts as RING_INIT(max) and owns its bytes until ring_clear().
 * Threads: one at a time.
 */
#ifndef ASPIS_AGENT_RING_H
#define ASPIS_AGENT_RING_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct ring {
    uint8_t *data;
    size_t cap;
    size_t head; /* index of the oldest byte */
    size_t len;
    size_t max;
};

#define RING_INIT(limit)                                                                           \
    {                                                                                              \
        .max = (limit)                                                                             \
    }

/* Free space as up to two pieces for readv(), growing the buffer first if need be; at most want
 * bytes. Returns how many bytes the pieces hold: 0 when full or memory is out. */
size_t ring_room(struct ring *r, size_t want, struct iovec iov[2]);
void ring_commit(struct ring *r, size_t n); /* n bytes of ring_room()'s pieces were filled */
int ring_append(struct ring *r, const void *data,
                size_t n); /* all or nothing: -1 when it does not fit */
/* Up to n bytes from `skip` bytes after the oldest one, as up to two pieces; returns their total.
 */
size_t ring_peek(const struct ring *r, size_t skip, size_t n, struct iovec iov[2]);
void ring_consume(struct ring *r, size_t n);
void ring_clear(struct ring *r);

#endif
