/*
 * mirror_scan - recognises directories that kubelet's atomic writer keeps (ConfigMap, Secret,
 * projected and downward-API volumes) by their shape, and reads them.
 *
 * The shape: `..data`, a link to a directory `..*` beside it, further directories `..*` (being made
 * or removed), and links NAME to ..data/NAME; in the data directory regular files and directories
 * only, all on one file system.
 */
#ifndef ASPIS_SANDBOX_MIRROR_SCAN_H
#define ASPIS_SANDBOX_MIRROR_SCAN_H

#include <stddef.h>

#include "base/err.h"
#include "proto/agent.pb-c.h"
#include "proto/arena.h"

/* Fills req (initialised; its id is the caller's) with memory of the arena; *bytes: what the files
 * hold. PRECONDITION when the directory has not that shape, EXHAUSTED when it holds more than
 * max_bytes or too many files, NOT_FOUND when it changed meanwhile or is not there. */
int mirror_scan(const char *path, size_t max_bytes, struct arena *a,
                Aspis__Agent__V1__SyncVolumeRequest *req, size_t *bytes, struct err *err);

#endif
