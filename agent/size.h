/*
 * size - the guest's memory and vCPUs while it runs: what the host adds is awaited and confirmed,
 * and the host is told before the containers have used up the memory.
 *
 * The watch is a memory.high below all of the pod's containers: the kernel slows down what goes
 * past it and says so (memory.events), so that there is time to get more before anything must be
 * killed, and nothing is polled. Caches count against memory.high too and are simply dropped there:
 * only when MemAvailable is low as well does the host hear of it.
 *
 * Single-threaded, on the agent's loop; owned by main.
 */
#ifndef ASPIS_AGENT_SIZE_H
#define ASPIS_AGENT_SIZE_H

#include <stdint.h>

#include "agent/events.h"
#include "agent/rpc.h"
#include "base/err.h"
#include "base/loop.h"

struct size;

/* events is borrowed. */
struct size *size_new(struct loop *loop, struct events *events, struct err *err);
void size_free(struct size *s); /* NULL is fine */

/* From main: memory or a CPU came online, or went. */
void size_changed(struct size *s);

/* Resize. Terminated by a NULL name; owned by s. */
const struct rpc_method *size_methods(struct size *s);

/* --- for tests --- */

/* Bytes of a line of /proc/meminfo ("MemFree"); 0 when it has none. */
uint64_t size_meminfo(const char *text, const char *name);
/* What the containers may use before they are slowed down, and the MemAvailable below which that is
 * more than a full cache. Bytes; used: by the containers. */
uint64_t size_high(uint64_t total, uint64_t free_bytes, uint64_t used);
uint64_t size_low_mark(uint64_t total);

#endif
