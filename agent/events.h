/*
 * events - what happened in the guest, numbered, kept until the daemon acknowledges it.
 *
 * At most LIMIT_AGENT_EVENTS are kept. When a daemon stays away longer than that, the oldest are
 * given up: the reader sees the gap in the numbers and asks ListState, which still knows every
 * process. One reader at a time; a new one ends the one before it.
 *
 * Single-threaded, on the agent's loop.
 */
#ifndef ASPIS_AGENT_EVENTS_H
#define ASPIS_AGENT_EVENTS_H

#include <stdint.h>

#include "agent/rpc.h"
#include "proto/agent.pb-c.h"

struct events;

struct events *events_new(void);
void events_free(struct events *e); /* the reader's call is the server's to free */

/* All copy what they are given and return the event's number. */
uint64_t events_exit(struct events *e, const Aspis__Agent__V1__Exit *exit);
uint64_t events_oom(struct events *e, const char *container_id);
uint64_t events_memory_low(struct events *e, uint64_t total_bytes, uint64_t available_bytes);

/* The handler of Events: takes the call. */
void events_subscribe(struct events *e, struct rpc_call *call, uint64_t after_seq);
void events_ack(struct events *e, uint64_t seq);
uint64_t events_last_seq(const struct events *e);

#endif
