/*
 * wait - waits for a container's end on a connection of its own, while its log is followed here.
 *
 * Threads: the wait runs on its own; the rest is the caller's.
 */
#ifndef ASPIS_CRI_CTL_WAIT_H
#define ASPIS_CRI_CTL_WAIT_H

#include <stdint.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "cri/ctl/follow.h"

struct wait;

struct wait *wait_start(const char *socket, const char *container_id, struct err *err);
/* Readable once the container has ended (or waiting failed). */
int wait_fd(const struct wait *w);
/* The end. 0 with the exit code, or why waiting failed. Only once wait_fd() is readable. */
int wait_result(const struct wait *w, int32_t *exit_code, struct err *err);
void wait_free(struct wait *w); /* ends the wait if need be */

DEFINE_AUTO(struct wait *, wait_free);
#define auto_wait __attribute__((cleanup(wait_freep)))

/* What to do when a signal interrupts following; n counts them from 1. */
struct wait_signals {
    int fd; /* eventfd with EFD_SEMAPHORE, counted up by each signal */
    int (*on_signal)(void *arg, unsigned n, struct err *err);
    void *arg;
};

/* Prints the log until the container has ended and all of it is printed. Returns the exit code, or
 * -1 with *err. */
int wait_following(struct wait *w, struct follow *f, const struct wait_signals *signals,
                   struct err *err);

#endif
