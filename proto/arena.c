#include "proto/arena.h"

#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#define FIRST_CHUNK 4096U
#define LARGEST_CHUNK (1024U * 1024U)

struct chunk {
    struct chunk *next;
    size_t size; /* of data */
    size_t used;
    _Alignas(16) unsigned char data[];
};

struct arena {
    struct chunk *chunks; /* the one being filled first */
    size_t cap;
    size_t used; /* bytes handed out, rounded up */
    size_t next_chunk;
    bool exhausted;
    ProtobufCAllocator allocator;
};

static void *alloc_cb(void *arena, size_t size)
{
    return arena_alloc(arena, size);
}

static void free_cb(void *arena, void *p)
{
    (void)arena;
    (void)p;
}

struct arena *arena_new(size_t cap)
{
    struct arena *a = calloc(1, sizeof(*a));
    if (a == NULL)
        return NULL;
    a->cap = cap;
    a->next_chunk = FIRST_CHUNK;
    a->allocator = (ProtobufCAllocator){
        .alloc = alloc_cb,
        .free = free_cb,
        .allocator_data = a,
    };
    return a;
}

void arena_free(struct arena *a)
{
    if (a == NULL)
        return;
    while (a->chunks != NULL) {
        struct chunk *next = a->chunks->next;
        free(a->chunks);
        a->chunks = next;
    }
    free(a);
}

/* A chunk with room for `size` bytes at the head of the list. */
static struct chunk *add_chunk(struct arena *a, size_t size)
{
    size_t data = size > a->next_chunk ? size : a->next_chunk;
    /* calloc: fresh pages come zeroed from the kernel, so nothing is cleared twice. */
    struct chunk *c = calloc(1, sizeof(*c) + data);
    if (c == NULL)
        return NULL;
    c->size = data;
    if (a->chunks != NULL && size > a->next_chunk) {
        /* A single large block: the current chunk keeps its free rest. */
        c->next = a->chunks->next;
        a->chunks->next = c;
        return c;
    }
    c->next = a->chunks;
    a->chunks = c;
    if (a->next_chunk < LARGEST_CHUNK)
        a->next_chunk *= 2;
    return c;
}

void *arena_alloc(struct arena *a, size_t size)
{
    if (size == 0)
        size = 1;
    if (size > SIZE_MAX - 15 || a->exhausted)
        goto exhausted;
    size = (size + 15) & ~(size_t)15;
    if (size > a->cap - a->used)
        goto exhausted;
    struct chunk *c = a->chunks;
    if (c == NULL || c->size - c->used < size)
        c = add_chunk(a, size);
    if (c == NULL)
        goto exhausted;
    void *p = c->data + c->used;
    c->used += size;
    a->used += size;
    return p;
exhausted:
    a->exhausted = true;
    return NULL;
}

void *arena_memdup(struct arena *a, const void *p, size_t n)
{
    void *out = arena_alloc(a, n);
    if (out != NULL && n > 0)
        memcpy(out, p, n);
    return out;
}

char *arena_strndup(struct arena *a, const char *s, size_t n)
{
    size_t len = strnlen(s, n);
    if (len == SIZE_MAX)
        return NULL;
    char *out = arena_alloc(a, len + 1);
    if (out != NULL)
        memcpy(out, s, len);
    return out;
}

char *arena_strdup(struct arena *a, const char *s)
{
    return s == NULL ? NULL : arena_strndup(a, s, strlen(s));
}

char *arena_printf(struct arena *a, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int len = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    if (len < 0)
        return NULL;
    char *out = arena_alloc(a, (size_t)len + 1);
    if (out == NULL)
        return NULL;
    va_start(ap, fmt);
    (void)vsnprintf(out, (size_t)len + 1, fmt, ap);
    va_end(ap);
    return out;
}

bool arena_exhausted(const struct arena *a)
{
    return a->exhausted;
}

size_t arena_used(const struct arena *a)
{
    return a->used;
}

ProtobufCAllocator *arena_allocator(struct arena *a)
{
    return &a->allocator;
}
