/*
 * idmap - user namespaces as descriptors: namespaces of other kinds that belong to one, and mounts
 * seen through its ids (user_namespaces(7), mount_setattr(2)).
 *
 * A namespace is made by a forked child that does nothing but system calls and ends before the call
 * returns; whoever holds the descriptor keeps the namespace. Threads: any; no state. Needs root.
 */
#ifndef ASPIS_BASE_IDMAP_H
#define ASPIS_BASE_IDMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

/* `length` ids from `inside` on are, outside, those from `outside` on. */
struct idmap_range {
    uint32_t inside, outside, length;
};
#define IDMAP_RANGES 340 /* the kernel's own limit */

/* A descriptor of a new user namespace with these ids, the caller's to close. */
int idmap_userns(const struct idmap_range *uids, size_t n_uids, const struct idmap_range *gids,
                 size_t n_gids, struct err *err);
/* A descriptor of a new namespace that belongs to the user namespace; flag: CLONE_NEWNET,
 * CLONE_NEWIPC or CLONE_NEWUTS. */
int idmap_namespace(int userns, int flag, struct err *err);
/* The user namespace that the namespace `fd` belongs to; -1 without *err when it is the caller's
 * own. */
int idmap_owner(int fd, struct err *err);
/* Runs fn in a forked child that is root in the user namespace, and nobody outside; waits for it.
 * For processes with one thread. */
int idmap_run(int userns, int (*fn)(void *arg, struct err *err), void *arg, struct err *err);

/* Gives a tree that hangs nowhere (open_tree(2)) the namespace's ids; 0, or an errno: EINVAL where
 * the file system cannot have it. */
int idmap_set(int tree, int userns, bool recursive);

#endif
