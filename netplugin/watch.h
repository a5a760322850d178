/*
 * watch - tells when the files of one directory may have changed, also when the directory comes and
 * goes.
 *
 * inotify on the event loop: finished writes, renames and removals count, half-written files and
 * chmod do not. Changes are gathered for a short while, then `fn` is called once, on the loop's
 * thread. While the directory is missing its nearest existing parent is watched instead.
 *
 * Memory: watch_new()/watch_free(). Threads: created and freed anywhere; all else happens on the
 * loop.
 */
#ifndef ASPIS_NETPLUGIN_WATCH_H
#define ASPIS_NETPLUGIN_WATCH_H

#include "base/err.h"
#include "base/loop.h"

struct watch;

/* The watch is in place when this returns: a change after it is seen. */
struct watch *watch_new(const char *dir, struct loop *loop, void (*fn)(void *arg), void *arg,
                        struct err *err);
/* No callback comes after this. Not from within fn. The loop, running or not, must outlive the
 * call; memory is released on its next turn or in loop_free(). */
void watch_free(struct watch *w);

#endif
