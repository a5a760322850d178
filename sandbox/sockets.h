/*
 * sockets - the unix sockets of a pod's run directory: the daemon makes them all, hands the
 * listening ends on, and connects to them, before or after a restart.
 *
 * The directory is reached by descriptor, so that its length does not count against sun_path.
 * Threads: any. Descriptors are the caller's.
 */
#ifndef ASPIS_SANDBOX_SOCKETS_H
#define ASPIS_SANDBOX_SOCKETS_H

#include "base/err.h"

/* Replaces what has the name. */
int socket_listen_at(const char *dir, const char *name, struct err *err);
/* Does not wait; the socket is non-blocking. */
int socket_connect_at(const char *dir, const char *name, struct err *err);

#endif
