/*
 * layer_usage - what containers have written over their images: bytes and inodes of directories.
 *
 * Counting walks whole trees, so it runs in a forked child of low priority, one at a time; the last
 * results are kept. What a container builds to make the walk long is cut off (LAYER_*): then the
 * numbers are those of what was seen.
 *
 * Single-threaded, on the agent's loop. The child is reaped with the agent's other children; only
 * its pipe is watched.
 */
#ifndef ASPIS_AGENT_LAYER_USAGE_H
#define ASPIS_AGENT_LAYER_USAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/loop.h"

/* Bounds of one walk. */
#define LAYER_ENTRIES 2000000
#define LAYER_DEPTH 64
#define LAYER_WALK_NS INT64_C(20000000000)

struct layer_usage;

struct layer {
    char *id; /* of the container */
    char *dir;
    uint64_t bytes, inodes; /* filled in */
};

/* done: called on the loop after each walk. */
struct layer_usage *layer_usage_new(struct loop *loop, void (*done)(void *arg), void *arg);
void layer_usage_free(struct layer_usage *u);
bool layer_usage_walking(const struct layer_usage *u);
/* When the last walk was finished, CLOCK_MONOTONIC; 0: never. */
int64_t layer_usage_at(const struct layer_usage *u);
/* Begins to walk n directories; id and dir are copied. Not while another is under way. */
int layer_usage_start(struct layer_usage *u, const struct layer *layers, size_t n, struct err *err);
/* The last known; NULL when it was never seen. */
const struct layer *layer_usage_find(const struct layer_usage *u, const char *id);

/* In this process: for the child, and for tests. */
void layer_usage_count(struct layer *l);

#endif
