/*
 * share_fs - one volume of the file server: a directory or file of the host as a FUSE file system,
 * through libfuse's low-level interface. Part of the program aspis-share only.
 *
 * What a guest names by number is looked up in a table (share_table.h), also that of an earlier
 * server; what it has changed already is not changed again (share_deed.h). Only
 * regular files and directories are opened, links are never followed, device nodes never made; what
 * is read-only is so by the mount that the volume is reached through.
 *
 * Memory: a volume owns its root. Threads: one.
 */
#ifndef ASPIS_SANDBOX_SHARE_FS_H
#define ASPIS_SANDBOX_SHARE_FS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "base/err.h"
#include "sandbox/machine.h"
#include "sandbox/share_deed.h"
#include "sandbox/share_table.h"

struct volume;

/* A whole FUSE message for the guest; -1 when it cannot be sent. */
typedef int (*volume_send_fn)(void *arg, const struct iovec *iov, int n);

struct volume_spec {
    uint32_t id;
    struct volume_ids ids;
    struct table *table; /* borrowed, like the next */
    struct deeds *deeds;
};

/* root: O_PATH descriptor, taken also on failure. */
struct volume *volume_new(const struct volume_spec *spec, int root, volume_send_fn send, void *arg,
                          struct err *err);
bool volume_started(const struct volume *v);
/* One request that share_check() passed. */
void volume_request(struct volume *v, void *message, size_t len);
/* Takes its root out of the table; what the guest knows of the volume stays there. */
void volume_free(struct volume *v);

#endif
