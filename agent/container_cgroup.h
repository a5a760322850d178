/*
 * container_cgroup - a container's cgroup: /sys/fs/cgroup/pod/<id>, made and removed by libcrun.
 *
 * No state. Nothing but cgroup_remove() waits.
 */
#ifndef ASPIS_AGENT_CONTAINER_CGROUP_H
#define ASPIS_AGENT_CONTAINER_CGROUP_H

#include <stdint.h>

#include "base/err.h"

/* "/pod/<id>" as the spec names it. The caller's to free. */
char *cgroup_spec_path(const char *id);
/* Path of a file of the group; "": the group's directory; id "": the group above all containers'.
 * The caller's to free. */
char *cgroup_file(const char *id, const char *name);
/* SIGKILL to every process in it and below. A missing cgroup is fine. */
int cgroup_kill(const char *id, struct err *err);
/* Any signal to every process in it and below. */
int cgroup_signal(const char *id, int sig, struct err *err);
/* Processes that the kernel's OOM killer ended in it so far; 0 when unknown. */
uint64_t cgroup_oom_kills(const char *id);
/* Path of its memory.events. The caller's to free. */
char *cgroup_memory_events(const char *id);
/* In an operation's child: kills what is left, waits for its end (at most 5 s), removes the
 * cgroups, children first. */
void cgroup_remove(const char *id);

#endif
