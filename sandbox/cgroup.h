/*
 * cgroup - the control group of one pod's machine, on version 1 (every mounted hierarchy), version
 * 2, or both.
 *
 * A group is named by one path below each hierarchy's root: "<parent>/aspis-<id>". Nothing is kept
 * in memory: every call finds the mounted hierarchies anew, so that a restarted daemon needs only
 * the path.
 *
 * Threads: any. Needs root.
 */
#ifndef ASPIS_SANDBOX_CGROUP_H
#define ASPIS_SANDBOX_CGROUP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/cancel.h"
#include "base/err.h"
#include "base/str.h"

/* The path for a pod. parent is CRI's cgroup_parent: "" (then default_parent, an absolute path), an
 * absolute path ("/kubepods/burstable/podX", cgroupfs driver), or a systemd slice name
 * ("kubepods-burstable-podX.slice" is
 * /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podX.slice). INVALID on anything that
 * could lead elsewhere. The caller's string. */
char *cgroup_path(const char *parent, const char *default_parent, const char *id, struct err *err);

/* Creates the group everywhere (parents too when missing) and appends its directories to dirs: what
 * jail_opts.cgroups takes. On failure nothing of the group remains. */
int cgroup_create(const char *path, struct strv *dirs, struct err *err);

/* "cpuset.cpus" or "cpuset.mems" of the group; "": as its parent. Nothing where there is no such
 * controller and nothing is asked for. */
int cgroup_set_cpuset(const char *path, const char *file, const char *value, struct err *err);

/* Bytes that the group's parents let it use: the least of their limits, UINT64_MAX for none. */
uint64_t cgroup_memory_limit(const char *path);

/* Kills what is in the group and in those below it, waits for its end, and removes the directories;
 * default_parent is removed too when it is empty. A missing group is fine. */
int cgroup_remove(const char *path, const char *default_parent, struct cancel *cancel,
                  struct err *err);

/* SIGKILL to everything in the group and below it. Does not wait. */
void cgroup_kill(const char *path);

/* Where processors are short, the group gets a tenth of what another of the same level gets.
 * Without a cpu controller nothing changes. */
void cgroup_make_modest(const char *path);

/* Makes `to`, moves the processes of `from` there, and removes `from` as cgroup_remove() does. What
 * they had touched stays charged to from's parent, but for kernels that move charges (version 1, up
 * to Linux 6.12): *left (may be NULL) is how many bytes that is. */
int cgroup_move(const char *from, const char *to, const char *default_parent, uint64_t *left,
                struct cancel *cancel, struct err *err);
/* Appends the directories of the group that exist, one for each hierarchy. */
int cgroup_dirs(const char *path, struct strv *dirs, struct err *err);

/* Is there a process in the group or below it, in any hierarchy? */
bool cgroup_populated(const char *path);

/* Appends the paths of all groups "aspis-*" below `under` (one path, as above), in any hierarchy.
 */
int cgroup_find(const char *under, struct strv *paths, struct err *err);

#endif
