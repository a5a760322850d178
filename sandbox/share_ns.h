/*
 * share_ns - puts directories and files of the host into the mount namespace of a pod's file
 * server, and takes them out again.
 *
 * The daemon makes the copy of the mount (with what is mounted below it, read-only and propagation
 * as asked for), enters the server's namespace on a thread of its own and attaches it at /tmp/<id>:
 * the server needs no privilege for it, and sees nothing of the host but these.
 *
 * Threads: any. Needs root.
 */
#ifndef ASPIS_SANDBOX_SHARE_NS_H
#define ASPIS_SANDBOX_SHARE_NS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "sandbox/machine.h"

/* Where it finds a volume. */
#define SHARE_VOLUME "/tmp/%u"
/* What the server reads a volume's ids from, a text of four numbers; missing: as they are. */
#define SHARE_IDS_FILE "/tmp/%u.ids"

/* server: pidfd. source: absolute, links are followed. *file: whether it is no directory. */
int share_ns_attach(int server, uint32_t id, const char *source, bool readonly, bool recursive,
                    bool slave, const struct volume_ids *ids, bool *file, struct err *err);
/* Not attached, or the server is gone: success. */
void share_ns_detach(int server, uint32_t id);

#endif
