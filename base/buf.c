#include "base/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Makes cap at least need + 1 (for the NUL). */
static int buf_grow(struct buf *b, size_t need)
{
    if (b->overflow || need > b->max) {
        b->overflow = true;
        return -1;
    }
    if (b->data != NULL && need < b->cap)
        return 0;
    size_t cap = b->cap < 64 ? 64 : b->cap;
    while (cap <= need)
        cap *= 2;
    if (cap > b->max + 1)
        cap = b->max + 1;
    char *data = realloc(b->data, cap);
    if (data == NULL) {
        b->overflow = true;
        return -1;
    }
    b->data = data;
    b->cap = cap;
    b->data[b->len] = '\0'; /* also when what is reserved now is never committed */
    return 0;
}

void *buf_reserve(struct buf *b, size_t len)
{
    if (len > b->max - b->len) {
        b->overflow = true;
        return NULL;
    }
    if (buf_grow(b, b->len + len) < 0)
        return NULL;
    return b->data + b->len;
}

void buf_commit(struct buf *b, size_t len)
{
    b->len += len;
    b->data[b->len] = '\0';
}

int buf_append(struct buf *b, const void *data, size_t len)
{
    void *to = buf_reserve(b, len);
    if (to == NULL)
        return -1;
    if (len > 0)
        memcpy(to, data, len);
    buf_commit(b, len);
    return 0;
}

int buf_puts(struct buf *b, const char *s)
{
    return buf_append(b, s, strlen(s));
}

int buf_putc(struct buf *b, char c)
{
    return buf_append(b, &c, 1);
}

int buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    va_list again;
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    int ret = -1;
    if (n < 0) {
        b->overflow = true;
    } else {
        /* buf_reserve() always leaves room for the NUL that vsnprintf writes */
        char *to = buf_reserve(b, (size_t)n);
        if (to != NULL) {
            (void)vsnprintf(to, (size_t)n + 1, fmt, again);
            buf_commit(b, (size_t)n);
            ret = 0;
        }
    }
    va_end(again);
    return ret;
}

void buf_consume(struct buf *b, size_t len)
{
    if (len >= b->len) {
        b->len = 0;
    } else {
        memmove(b->data, b->data + len, b->len - len);
        b->len -= len;
    }
    if (b->data != NULL)
        b->data[b->len] = '\0';
}

void buf_reset(struct buf *b)
{
    b->len = 0;
    b->overflow = false;
    if (b->data != NULL)
        b->data[0] = '\0';
}

void buf_clear(struct buf *b)
{
    free(b->data);
    *b = (struct buf)BUF_INIT(b->max);
}

bool buf_ok(const struct buf *b)
{
    return !b->overflow;
}

const char *buf_str(const struct buf *b)
{
    return b->data != NULL ? b->data : "";
}

char *buf_take(struct buf *b)
{
    char *data = b->data != NULL ? b->data : strdup("");
    *b = (struct buf)BUF_INIT(b->max);
    return data;
}
