/*
 * scratch - the pod's writable disk: a sparse file with an empty ext4 file system.
 *
 * mkfs runs once per size; pods get a sparse copy of the result. The master lies in
 * <state_root>/scratch and is named by size and format version, so a new release makes its own.
 *
 * Threads: any.
 */
#ifndef ASPIS_SANDBOX_SCRATCH_H
#define ASPIS_SANDBOX_SCRATCH_H

#include <stdint.h>

#include "base/cancel.h"
#include "base/err.h"

/* Makes the master if there is none yet, and gives its path, which is the caller's. */
char *scratch_master(const char *state_root, uint64_t bytes, struct cancel *cancel,
                     struct err *err);
/* Makes the file `path` and returns it opened for reading and writing; bytes is its virtual size.
 * On failure no file remains. */
int scratch_create(const char *state_root, const char *path, uint64_t bytes, struct cancel *cancel,
                   struct err *err);
/* The same as a copy of another pod's disk, which nobody writes to. */
int scratch_copy(int from, const char *path, struct err *err);

#endif
