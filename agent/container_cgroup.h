/*
 * container_cgroup - a container's cgroup, made and removed by libcrun: /sys/fs/cgroup/pod/<id> in
 * a guest; on the host <id> below the pod's group, in each hierarchy of version 1 or in version 2.
 *
 * No state but where that is. Nothing but cgroup_remove() waits.
 */
#ifndef ASPIS_AGENT_CONTAINER_CGROUP_H
#define ASPIS_AGENT_CONTAINER_CGROUP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

/* On the host: the pod's group below each hierarchy. Once, at the start. */
void cgroup_use_host(const char *pod_group);
/* "/pod/<id>" as the spec names it. The caller's to free. */
char *cgroup_spec_path(const char *id);
/* Path of a file of the group; "": the group's directory; id "": the group above all containers'.
 * The caller's to free. */
char *cgroup_file(const char *id, const char *name);
/* Whether the host has cgroup version 1; never in a guest. */
bool cgroup_is_v1(void);
/* Directory of the group in that hierarchy of version 1 ("cpuacct"). The caller's to free. */
char *cgroup_v1_dir(const char *hierarchy, const char *id);
/* SIGKILL to every process in it and below. A missing cgroup is fine. */
int cgroup_kill(const char *id, struct err *err);
/* Any signal to every process in it and below. */
int cgroup_signal(const char *id, int sig, struct err *err);
/* Processes that the kernel's OOM killer ended in it so far; 0 when unknown. */
uint64_t cgroup_oom_kills(const char *id);
/* Path of its memory.events, where inotify tells of changes; NULL with version 1, which does not
 * tell. The caller's to free. */
char *cgroup_memory_events(const char *id);
/* In an operation's child: kills what is left, waits for its end (at most 5 s), removes the
 * cgroups, children first. */
void cgroup_remove(const char *id);

#endif
