/*
 * arena - a bump allocator with a cap, as a ProtobufCAllocator: one per call.
 *
 * A small protobuf can ask for fifty times its size in memory (2 MiB of empty map entries unpack
 * to 117 MB), so unpacking goes through an arena whose cap makes it fail instead. Nothing is freed
 * one by one; arena_free() drops everything. Allocation past the cap returns NULL and sets
 * `exhausted`.
 *
 * Threads: one at a time.
 */
#ifndef ASPIS_PROTO_ARENA_H
#define ASPIS_PROTO_ARENA_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/cleanup.h"

struct arena;

struct arena *arena_new(size_t cap);             /* NULL when memory is out */
void arena_free(struct arena *a);                /* NULL is fine */
void *arena_alloc(struct arena *a, size_t size); /* zeroed, 16-byte aligned */
char *arena_strdup(struct arena *a, const char *s);
char *arena_strndup(struct arena *a, const char *s, size_t n);
char *arena_printf(struct arena *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void *arena_memdup(struct arena *a, const void *p, size_t n);
bool arena_exhausted(const struct arena *a);
size_t arena_used(const struct arena *a);
/* Lives as long as the arena; its free is a no-op. */
ProtobufCAllocator *arena_allocator(struct arena *a);

DEFINE_AUTO(struct arena *, arena_free);
#define auto_arena __attribute__((cleanup(arena_freep)))

#endif
