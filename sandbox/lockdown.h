/*
 * lockdown - the last thing a helper process does before it looks at what others wrote: it gives up
 * every system call but those it needs, for good.
 *
 * A sanitizer's run-time makes calls of its own choice, so that such a build only sets
 * PR_SET_NO_NEW_PRIVS. Threads: the caller's only one.
 */
#ifndef ASPIS_SANDBOX_LOCKDOWN_H
#define ASPIS_SANDBOX_LOCKDOWN_H

#include <stddef.h>

#include "base/err.h"

/* Allowed beside what every program needs (memory, locks, clocks, signals' return, exit): `calls`,
 * by number. Looking for a file, if that is not among them, gives ENOENT; anything else kills the
 * process. */
int lock_down(const int *calls, size_t n, struct err *err);

#endif
