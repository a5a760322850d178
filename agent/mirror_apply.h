/*
 * mirror_apply - makes a directory what a SyncVolumeRequest says, in the order of kubelet's atomic
 * writer: the files of the new version, the rename of `..data`, the names at the top, and then what
 * is left over goes. What is right already is not touched, so that nobody's inotify tells of it.
 *
 * Threads: any.
 */
#ifndef ASPIS_AGENT_MIRROR_APPLY_H
#define ASPIS_AGENT_MIRROR_APPLY_H

#include "base/err.h"
#include "proto/agent.pb-c.h"

/* INVALID for what no daemon sends: names that lead elsewhere, children before their parents, ...
 */
int mirror_check(const Aspis__Agent__V1__SyncVolumeRequest *req, struct err *err);
/* After a failure `..data` is the old version or the whole of the new one. */
int mirror_apply(const char *path, const Aspis__Agent__V1__SyncVolumeRequest *req, struct err *err);

#endif
