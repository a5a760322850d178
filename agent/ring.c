#include "agent/ring.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_CAP 4096U
/* An empty buffer larger than this goes back to the system. */
#define KEEP_CAP 16384U

static void copy_out(const struct ring *r, uint8_t *to)
{
    struct iovec iov[2];
    size_t n = ring_peek(r, 0, r->len, iov);

    if (n > 0)
        memcpy(to, iov[0].iov_base, iov[0].iov_len);
    if (n > iov[0].iov_len)
        memcpy(to + iov[0].iov_len, iov[1].iov_base, iov[1].iov_len);
}

/* Room for need bytes in all, if that is allowed and there is memory. */
static void grow(struct ring *r, size_t need)
{
    size_t cap = r->cap == 0 ? FIRST_CAP : r->cap;
    uint8_t *data;

    if (need > r->max)
        need = r->max;
    if (need <= r->cap)
        return;
    while (cap < need)
        cap *= 2;
    if (cap > r->max)
        cap = r->max;
    data = malloc(cap);
    if (data == NULL)
        return;
    copy_out(r, data);
    free(r->data);
    r->data = data;
    r->cap = cap;
    r->head = 0;
}

size_t ring_room(struct ring *r, size_t want, struct iovec iov[2])
{
    size_t room;
    size_t tail;

    iov[0] = iov[1] = (struct iovec){0};
    grow(r, r->len + want);
    room = r->cap - r->len;
    if (room > want)
        room = want;
    if (room == 0)
        return 0;
    tail = (r->head + r->len) % r->cap;
    iov[0].iov_base = r->data + tail;
    iov[0].iov_len = r->cap - tail < room ? r->cap - tail : room;
    iov[1].iov_base = r->data;
    iov[1].iov_len = room - iov[0].iov_len;
    return room;
}

void ring_commit(struct ring *r, size_t n)
{
    r->len += n;
}

int ring_append(struct ring *r, const void *data, size_t n)
{
    struct iovec iov[2];
    const uint8_t *p = data;

    if (n == 0)
        return 0;
    if (ring_room(r, n, iov) < n)
        return -1;
    memcpy(iov[0].iov_base, p, iov[0].iov_len);
    if (iov[1].iov_len > 0)
        memcpy(iov[1].iov_base, p + iov[0].iov_len, iov[1].iov_len);
    ring_commit(r, n);
    return 0;
}

size_t ring_peek(const struct ring *r, size_t skip, size_t n, struct iovec iov[2])
{
    size_t at;

    iov[0] = iov[1] = (struct iovec){0};
    if (skip >= r->len)
        return 0;
    if (n > r->len - skip)
        n = r->len - skip;
    at = (r->head + skip) % r->cap;
    iov[0].iov_base = r->data + at;
    iov[0].iov_len = r->cap - at < n ? r->cap - at : n;
    iov[1].iov_base = r->data;
    iov[1].iov_len = n - iov[0].iov_len;
    return n;
}

void ring_consume(struct ring *r, size_t n)
{
    if (n >= r->len) {
        r->len = 0;
        r->head = 0;
        if (r->cap > KEEP_CAP)
            ring_clear(r);
        return;
    }
    r->head = (r->head + n) % r->cap;
    r->len -= n;
}

void ring_clear(struct ring *r)
{
    free(r->data);
    *r = (struct ring)RING_INIT(r->max);
}
