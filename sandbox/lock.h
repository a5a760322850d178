/*
 * lock - taking a mutex that may be held across blocking work, for no longer than the caller's
 * deadline.
 *
 * Threads: any.
 */
#ifndef ASPIS_SANDBOX_LOCK_H
#define ASPIS_SANDBOX_LOCK_H

#include <pthread.h>

#include "base/cancel.h"
#include "base/err.h"

/* `what` completes "wait for ...". A token fired by hand is noticed only once the mutex is had. */
int lock_within(pthread_mutex_t *lock, struct cancel *cancel, const char *what, struct err *err);

#endif
