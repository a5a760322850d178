/*
 * stats_check - a guest's numbers made fit for clients.
 *
 * A guest may say anything: a million devices, names of a megabyte, pressures that are no numbers
 * (which Go cannot put into JSON, so one pod would spoil the answer about all). What is out of
 * bounds is left out or 0; plain numbers are the guest's own business. Threads: any.
 */
#ifndef ASPIS_CRI_STATS_CHECK_H
#define ASPIS_CRI_STATS_CHECK_H

#include <stdint.h>

#include "proto/agent.pb-c.h"

#define STATS_DEVICES 16 /* of one control group */

/* Changes the message in place. */
void stats_check(Aspis__Agent__V1__StatsResponse *r);
/* Nanoseconds of CPU per second between two totals (ns) taken at two times (ns); 0 when that makes
 * no sense. */
uint64_t stats_rate(uint64_t before, uint64_t after, int64_t from, int64_t to);

#endif
