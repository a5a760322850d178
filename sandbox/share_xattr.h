/*
 * share_xattr - which extended attributes of the host's files a guest may see and set: `user.*` of
 * regular files and directories. Others have a meaning to the host's kernel (capabilities of files,
 * labels, ACLs).
 *
 * No state. Threads: any.
 */
#ifndef ASPIS_SANDBOX_SHARE_XATTR_H
#define ASPIS_SANDBOX_SHARE_XATTR_H

#include <stdbool.h>
#include <sys/types.h>

/* type: S_IFREG, ... */
bool xattr_is_served(const char *name, mode_t type);
/* Like listxattr(2), with the names that are served; the room is needed for all. */
ssize_t xattr_list(const char *path, mode_t type, char *names, size_t room);

#endif
