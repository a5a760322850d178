/*
 * mirror_watch - one inotify instance for the directories that all pods' mirrors look at: a kernel
 * gives root few instances (128 by default), so that one per pod would leave none to others.
 *
 * Threads: any; one of its own from the first directory on. Callbacks run on that thread under a
 * lock of the watch: they must not block nor call it.
 */
#ifndef ASPIS_SANDBOX_MIRROR_WATCH_H
#define ASPIS_SANDBOX_MIRROR_WATCH_H

#include "base/err.h"

struct mirror_watch;
struct mirror_dir;

struct mirror_watch *mirror_watch_new(struct err *err);
void mirror_watch_free(struct mirror_watch *w); /* all directories were removed; NULL is fine */

/* fn(arg) after something in the directory (not deeper), or it itself, has changed. NULL with *err.
 */
struct mirror_dir *mirror_watch_add(struct mirror_watch *w, const char *path, void (*fn)(void *arg),
                                    void *arg, struct err *err);
/* No callback comes once this has returned. NULL is fine. */
void mirror_watch_remove(struct mirror_watch *w, struct mirror_dir *d);

#endif
