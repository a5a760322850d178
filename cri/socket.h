/*
 * socket - the daemon's claim on its unix socket: one daemon per path.
 *
 * gRPC core would let a second daemon replace the socket of a living one without a word, so a lock
 * file beside the socket is taken first, before any state is touched. Threads: startup only.
 */
#ifndef ASPIS_CRI_SOCKET_H
#define ASPIS_CRI_SOCKET_H

#include "base/err.h"

/* Makes the directory (0711) if need be, takes <path>.lock and writes our pid into it. Returns the
 * lock's descriptor; closing it (or dying) gives the lock up. PRECONDITION naming the other
 * daemon's pid when it is held. */
int socket_lock(const char *path, struct err *err);
/* May the socket be put at path? INVALID when it is too long or not absolute; EXISTS when something
 * that is no socket is there. A left-over socket is fine: it will be replaced. */
int socket_check(const char *path, struct err *err);

#endif
