/*
 * clock_watch - tells when somebody sets the machine's wall clock.
 *
 * A timer that never ends and that the kernel cancels at each discontinuous change
 * (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET); nothing is asked for meanwhile. A clock that merely
 * runs a little faster or slower, as time services let it, is no change in this sense. The callback
 * runs on the loop. From loop_remove() on it is not called; the descriptor is clock_watch_free()'s.
 */
#ifndef ASPIS_BASE_CLOCK_WATCH_H
#define ASPIS_BASE_CLOCK_WATCH_H

#include "base/err.h"
#include "base/loop.h"

struct clock_watch;

struct clock_watch *clock_watch_new(struct loop *loop, void (*fn)(void *arg), void *arg,
                                    struct err *err);
/* On the loop's thread, or when the loop does not run. NULL is fine. */
void clock_watch_free(struct clock_watch *w);

#endif
