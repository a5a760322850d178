/*
 * mirror - small volumes that kubelet writes atomically (mirror_scan.h), copied into the memory of
 * one pod's guest and kept up to date there: reads cost nothing and inotify works, which no shared
 * file system gives.
 *
 * One copy per source, ids and pod, whoever of its containers uses it. A change seen by inotify is
 * sent as a whole (SyncVolume) by a thread of the pod's own; the guest brings it about in kubelet's
 * order. A volume that outgrows LIMIT_MIRROR_BYTES stays as it was. State is the file `mirror.json`
 * in run_dir, from which a later daemon goes on: it sends everything again, since it cannot know
 * what changed meanwhile.
 *
 * Threads: any but the loops' own; calls block.
 */
#ifndef ASPIS_SANDBOX_MIRROR_H
#define ASPIS_SANDBOX_MIRROR_H

#include <stdint.h>

#include "base/cancel.h"
#include "base/err.h"
#include "sandbox/link.h"
#include "sandbox/machine.h"
#include "sandbox/mirror_watch.h"

struct mirror;

/* Takes up what an earlier daemon left in run_dir, if anything. The watch and the link are
 * borrowed.
 */
struct mirror *mirror_new(const char *run_dir, struct mirror_watch *watch, struct link *link,
                          struct err *err);
/* Has the volume copied for one owner, a container's id. 1: done, v->id is what the agent calls it;
 * 0: it is none of that kind, or too large, or cannot be copied now. -1: cancelled. */
int mirror_add(struct mirror *m, const char *owner, struct machine_volume *v, struct cancel *cancel,
               struct err *err);
/* The guest gives back what nobody else uses, when it gets round to it. */
void mirror_remove(struct mirror *m, const char *owner);
/* Can a volume be one of these? PRECONDITION or NOT_FOUND when it has not their shape. */
int mirror_check_source(const char *source, struct err *err);
/* As share_find(). */
bool mirror_find(struct mirror *m, const char *owner, uint32_t nth, uint32_t *id);
/* The last that was given out. */
uint32_t mirror_last_id(struct mirror *m);
/* In a VM made from a saved one, before the first: the guest's copies, those of the list that are
 * mirrored, become what the sources hold now before it returns. After a failure the machine is to
 * be stopped. */
int mirror_restore(struct mirror *m, uint32_t last_id, const struct machine_owned_volume *list,
                   size_t n, struct cancel *cancel, struct err *err);
/* Ends its thread; the guest keeps what it has. Idempotent; NULL is fine. */
void mirror_stop(struct mirror *m);
void mirror_free(struct mirror *m);

#endif
