/*
 * ns_mount - steps that host_ns and share_ns both take to put a mount of the host into another
 * process's mount namespace.
 *
 * Threads: any. Needs root. Private to host_ns.c, share_ns.c and userns_probe.c.
 */
#ifndef ASPIS_SANDBOX_NS_MOUNT_H
#define ASPIS_SANDBOX_NS_MOUNT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

/* What is done in the namespace: 0, or -1 with errno set and *step, a constant, saying at what. */
typedef int (*ns_mount_fn)(void *arg, const char **step);

/* Runs fn on a thread that has entered the mount namespace of the process, and waits for it. entry:
 * the name of the step that enters it. */
int ns_mount_run(int pidfd, const char *entry, ns_mount_fn fn, void *arg, struct err *err);

/* Makes an empty file, not there before, to mount a file on. -1 with errno. */
int ns_mount_make_file(const char *path);
/* Attaches a tree that hangs nowhere. -1 with errno. */
int ns_mount_attach(int tree, const char *path);
/* Takes out what is mounted there, and the mount point. None is fine. */
void ns_mount_detach(const char *path);

/* The name of the file system that a descriptor is on, cut off at NS_MOUNT_TYPE - 1 characters;
 * "unknown" when the kernel does not tell. */
#define NS_MOUNT_TYPE 32
void ns_mount_type(int fd, char out[NS_MOUNT_TYPE]);

/* Of a tree that hangs nowhere: read-only with or without what is mounted below; before that, to
 * all of it, the attributes and propagation in *all, NULL for none. */
struct mount_attr;
int ns_mount_set(int tree, struct mount_attr *all, bool readonly, bool recursive, struct err *err);

#endif
