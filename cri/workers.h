/*
 * workers - threads made on demand, for work that blocks.
 *
 * A job goes to an idle thread or to a new one, up to a maximum; a thread that stays idle for a
 * while ends. There is no queue: past the maximum workers_run() says no, and the caller tells its
 * client.
 *
 * Threads: any. Memory: workers_free() waits for all jobs.
 */
#ifndef ASPIS_CRI_WORKERS_H
#define ASPIS_CRI_WORKERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct workers;

/* idle_ns: how long a thread waits for its next job before it ends. */
struct workers *workers_new(size_t max, int64_t idle_ns, struct err *err);
/* 0, or -1 when `max` jobs are running or no thread could be made. */
int workers_run(struct workers *w, void (*fn)(void *arg), void *arg);
size_t workers_running(struct workers *w);
void workers_free(struct workers *w);

#endif
