/*
 * userns - user namespaces, and mounts seen through their ids.
 *
 * Used in the forked children of operations. No state.
 */
#ifndef ASPIS_AGENT_USERNS_H
#define ASPIS_AGENT_USERNS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "proto/agent.pb-c.h"

/* Lengths, overlaps and that id 0 is there. */
int userns_check(Aspis__Agent__V1__IdMapping *const *map, size_t n, const char *what,
                 struct err *err);
/* The id outside of an id inside; false when it is not mapped. */
bool userns_id(Aspis__Agent__V1__IdMapping *const *map, size_t n, uint32_t id, uint32_t *outside);
/* A descriptor of a new namespace with these ids. */
int userns_open(const Aspis__Agent__V1__CreateContainerRequest *req, struct err *err);
/* Mounts a copy of the mount at `from` on the directory `to`, with the namespace's ids. */
int userns_mount(int userns, const char *from, const char *to, struct err *err);

#endif
