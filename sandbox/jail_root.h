/*
 * jail_root - the file system of a jail: a tmpfs with binds, device nodes, /proc and /tmp.
 *
 * Part of the helper aspis-jail only. Single-threaded; the strings are the caller's.
 */
#ifndef ASPIS_SANDBOX_JAIL_ROOT_H
#define ASPIS_SANDBOX_JAIL_ROOT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

struct root_bind {
    char *src, *dst;
    bool writable;
    bool optional;
    int tree; /* detached copy of the mount, taken before anything is covered */
};

struct root_plan {
    struct root_bind *binds;
    size_t n_binds;
    const char **devices;
    size_t n_devices;
    uint64_t tmp_bytes;
    bool proc;
    bool proc_self; /* of proc: processes only */
    uid_t uid;
};

/* In a fresh mount namespace: builds the root and makes it "/". What was there before is gone.
 * Mounts everything but /proc. */
int root_enter(struct root_plan *plan, struct err *err);
/* In the new pid namespace: mounts /proc when planned, then makes the root read-only. */
int root_finish(const struct root_plan *plan, struct err *err);

#endif
