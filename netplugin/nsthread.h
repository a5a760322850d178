/*
 * nsthread - runs a function inside a network namespace, on a thread that lives no longer than the
 * call.
 *
 * setns(2) and unshare(2) change the calling thread only; a thread of its own keeps the caller's
 * namespace what it was, whatever goes wrong. Signals are blocked in it. Threads: any.
 */
#ifndef ASPIS_NETPLUGIN_NSTHREAD_H
#define ASPIS_NETPLUGIN_NSTHREAD_H

#include "base/err.h"

typedef int (*nsthread_fn)(void *arg, struct err *err);

/* In the namespace pinned at `path`; NULL: in a new one. Returns what fn does. */
int nsthread_run(const char *path, nsthread_fn fn, void *arg, struct err *err);

#endif
