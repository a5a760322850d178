/*
 * buf - a growing byte buffer with a ceiling.
 *
 * Every buffer knows the most it may hold: an append past that fails and sets `overflow`, and the
 * buffer stays as it was. Data is always followed by a NUL that does not count, so a buffer of
 * text can be used as a C string. After a failed append later ones fail too, so a sequence of
 * appends can be checked once at the end with buf_ok().
 *
 * Memory: the struct lives with the caller, starts as BUF_INIT(max), and owns its bytes until
 * buf_clear() or buf_take(). Threads: one at a time.
 */
#ifndef ASPIS_BASE_BUF_H
#define ASPIS_BASE_BUF_H

#include <stdbool.h>
#include <stddef.h>

struct buf {
    char *data; /* NULL while empty and never grown */
    size_t len;
    size_t cap;
    size_t max;
    bool overflow; /* an append did not fit below max, or memory ran out */
};

#define BUF_INIT(limit)                                                                            \
    {                                                                                              \
        .max = (limit)                                                                             \
    }

int buf_append(struct buf *b, const void *data, size_t len);
int buf_puts(struct buf *b, const char *s);
int buf_putc(struct buf *b, char c);
int buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Makes room for len more bytes and returns where they go; the caller fills them and then calls
 * buf_commit() with how many it filled. NULL when it would pass max. */
void *buf_reserve(struct buf *b, size_t len);
void buf_commit(struct buf *b, size_t len);
/* Drops the first len bytes. */
void buf_consume(struct buf *b, size_t len);
void buf_reset(struct buf *b); /* empty, memory kept, overflow forgotten */
void buf_clear(struct buf *b); /* memory freed */
bool buf_ok(const struct buf *b);
/* The text so far, "" when empty; valid until the next change. */
const char *buf_str(const struct buf *b);
/* Gives the bytes away (never NULL unless memory ran out) and leaves the buffer empty. */
char *buf_take(struct buf *b);

#define auto_buf __attribute__((cleanup(buf_clear)))

#endif
