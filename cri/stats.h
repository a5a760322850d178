/*
 * stats - what pods use: asked of their agents and of the host's control groups, and kept.
 *
 * A caller names the sandboxes it wants to know about; those whose numbers are old are asked at the
 * same time, each on a worker thread, and waited for at most STATS_PATIENCE_NS. A guest that did
 * not answer the last time, or that the heartbeat calls silent, is not waited for at all: its last
 * known numbers are shown, with the time they were taken. Nothing is asked while nobody wants to
 * know.
 *
 * Rates need two samples: the newest is compared with one that is at least a second older.
 *
 * Threads: any. Memory: a sample is reference counted and constant; its messages are the guest's
 * own words, so every number in it is to be taken with care.
 */
#ifndef ASPIS_CRI_STATS_H
#define ASPIS_CRI_STATS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "proto/agent.pb-c.h"
#include "proto/arena.h"
#include "sandbox/machine.h"

#define STATS_FRESH_NS (250LL * 1000000)
#define STATS_PATIENCE_NS (2LL * 1000000000)
#define STATS_RATE_NS (1LL * 1000000000)

struct runtime;
struct sandbox;
struct stats;

struct stats_sample {
    atomic_uint refs;
    int64_t mono, wall; /* when it was taken, on the host's clocks */
    bool processes;     /* what has to be read per process is in it */
    struct arena *arena;
    const Aspis__Agent__V1__StatsResponse *guest;
    struct machine_usage vm;
};

/* What a sandbox keeps; all under the runtime's lock. Starts as {0}. */
struct stats_cache {
    struct stats_sample *last, *base;
    bool asking; /* a worker is at it */
    bool slow;   /* the last question was not answered in time */
};

/* What a reader gets: references, to be given back. */
struct stats_view {
    struct stats_sample *last; /* NULL: nothing is known */
    struct stats_sample *base; /* NULL: no rate can be told yet */
};

struct stats *stats_new(struct runtime *rt, struct err *err);
/* Ends questions under way. Before the sandboxes go. */
void stats_free(struct stats *s);

/* Brings the numbers of n sandboxes up to date as far as that goes. */
void stats_refresh(struct stats *s, struct sandbox *const *list, size_t n, bool processes);
struct stats_view stats_view(struct sandbox *s);
void stats_view_clear(struct stats_view *v);
void stats_cache_clear(struct stats_cache *c);
#define auto_stats_view __attribute__((cleanup(stats_view_clear)))

/* The group of a container in a sample; NULL when there is none. */
const Aspis__Agent__V1__GroupStats *stats_group(const struct stats_sample *s, const char *id);

#endif
