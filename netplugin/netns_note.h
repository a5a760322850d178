/*
 * netns_note - which network namespace is whose, on disk before the namespace exists, so that the
 * successor of a daemon that was killed finds those that no record tells of.
 *
 * A note is a file, in a directory that holds nothing else, with the owner's id for a name and the
 * namespace's path in it.
 *
 * Threads: any, also for one note; but netns_notes_collect() is for the time before anybody writes
 * any.
 */
#ifndef ASPIS_NETPLUGIN_NETNS_NOTE_H
#define ASPIS_NETPLUGIN_NETNS_NOTE_H

#include <stdbool.h>

#include "base/err.h"

/* Makes the directory too. */
int netns_note_write(const char *dir, const char *id, const char *path, struct err *err);
/* After netns_remove(); missing is fine. */
void netns_note_drop(const char *dir, const char *id);
/* Removes the notes of those that `known` does not know, and their namespaces if they were made by
 * us ("cni-" in /run/netns). Whose namespace cannot be removed keeps its note; *err then says of
 * one why, and -1 is returned. */
int netns_notes_collect(const char *dir, bool (*known)(void *arg, const char *id), void *arg,
                        struct err *err);

#endif
