/*
 * timeline - where the time of one call goes: named steps, each with the moment it was done.
 *
 * Steps of one timeline may be marked by several threads at once (what runs in parallel ends in any
 * order); more than fit are dropped. Names are literals: they are not copied. NULL for a timeline
 * means that nobody wants to know. Times are milliseconds since the timeline began.
 */
#ifndef ASPIS_BASE_TIMELINE_H
#define ASPIS_BASE_TIMELINE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TIMELINE_STEPS 24

struct timeline {
    pthread_mutex_t lock;
    int64_t begin; /* CLOCK_MONOTONIC ns */
    size_t n;
    struct {
        const char *name;
        int64_t at; /* ns since begin */
    } steps[TIMELINE_STEPS];
};

void timeline_begin(struct timeline *t);
void timeline_mark(struct timeline *t, const char *step);
/* "record 0.4, network namespace 2.1, ..."; the caller's. */
char *timeline_text(struct timeline *t);
/* Whether it began at least `ns` ago. */
bool timeline_older(const struct timeline *t, int64_t ns);
void timeline_end(struct timeline *t);

#endif
