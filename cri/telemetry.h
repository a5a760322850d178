/*
 * telemetry - the daemon's own counters, for Prometheus.
 *
 * One set per process, since what is counted happens in every corner. Counting takes a lock for an
 * instant and never fails. Threads: any.
 */
#ifndef ASPIS_CRI_TELEMETRY_H
#define ASPIS_CRI_TELEMETRY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"

/* A call of a client has ended. method: a string that lives for ever; ns: how long it took. */
void telemetry_call(const char *method, enum err_code code, int64_t ns);

/* FAILED stays last */
enum telemetry_start { TELEMETRY_BOOTED, TELEMETRY_CLONED, TELEMETRY_SPARE, TELEMETRY_FAILED };
void telemetry_machine_start(enum telemetry_start how, int64_t ns);
void telemetry_machine_death(void); /* that nobody asked for */
void telemetry_pull(bool ok, int64_t ns, uint64_t bytes);

/* Everything above in Prometheus' text format, version 0.0.4. */
void telemetry_write(struct buf *out);
/* One metric without or with labels ('state="ready"'; NULL for none). help NULL: a further line of
 * the metric written last. */
void telemetry_line(struct buf *out, const char *name, const char *type, const char *help,
                    const char *labels, double value);

#endif
