/*
 * share_fs - one volume of the file server: a directory or file of the host as a FUSE file system,
 * through libfuse's low-level interface. Part of the program aspis-share only.
 *
 * What a guest names by number is looked up in tables: node ids and handles carry the volume's
 * epoch in their upper half, so those of an earlier server or volume lead to ESTALE and EBADF. Only
 * regular files and directories are opened, links are never followed, device nodes never made; what
 * is read-only is so by the mount that the volume is reached through.
 *
 * Memory: a volume owns its descriptors. Threads: one.
 */
#ifndef ASPIS_SANDBOX_SHARE_FS_H
#define ASPIS_SANDBOX_SHARE_FS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"
#include "sandbox/machine.h"

struct volume;

/* A whole FUSE message for the guest; -1 when it cannot be sent. */
typedef int (*volume_send_fn)(void *arg, const struct iovec *iov, int n);

/* root: O_PATH descriptor, taken also on failure. */
struct volume *volume_new(int root, const struct volume_ids *ids, volume_send_fn send, void *arg,
                          struct err *err);
bool volume_started(const struct volume *v);
/* One request that share_check() passed. */
void volume_request(struct volume *v, void *message, size_t len);
void volume_free(struct volume *v);

#endif
