/*
 * share - a pod's volumes on the host: starts the file server (aspis-share) with the first one,
 * replaces it when it ends, and finds it again after a restart of the daemon.
 *
 * State is the file `share.json` in run_dir: the server's pid and start time, and what each volume
 * is. The server waits until it is on record, so none is ever lost. It holds the pod's `fs` channel
 * and ends with the VM; killed, it is started again within milliseconds and the guest goes on
 * (proto/README.md). It runs in a jail as the pod's uid with the few capabilities that acting for
 * any user of the guest takes: CHOWN, DAC_OVERRIDE, FOWNER, FSETID.
 *
 * Threads: any but the loops' own; calls block. Memory: share_free() lets go and the server runs
 * on; share_stop() ends it.
 */
#ifndef ASPIS_SANDBOX_SHARE_H
#define ASPIS_SANDBOX_SHARE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cancel.h"
#include "base/err.h"
#include "sandbox/link.h"
#include "sandbox/machine.h"

struct share;

/* Copied. */
struct share_config {
    const char *server;      /* aspis-share */
    const char *jail_helper; /* aspis-jail */
    const char *run_dir;     /* the machine's */
    const char *cgroup;      /* path below each hierarchy */
    uint32_t uid;
    const struct link_transport *transport;
};

/* Takes up what an earlier daemon left in run_dir, if anything. */
struct share *share_new(const struct share_config *config, struct err *err);
/* Makes the volumes of one owner reachable; all or none. Fills in their ids and kinds. */
int share_add(struct share *s, const char *owner, struct machine_volume *v, size_t n,
              struct cancel *cancel, struct err *err);
/* Unknown owner: success. The guest must have unmounted them. */
int share_remove(struct share *s, const char *owner, struct cancel *cancel, struct err *err);
/* Where a volume of the owner's is, by its place in the owner's list; false: nowhere, or an older
 * daemon did not note it. */
bool share_find(struct share *s, const char *owner, uint32_t nth, uint32_t *id, bool *file);
/* While the VM stands still: what the guest knows of all volumes into an empty file, which stays
 * empty if there are none; and the last id that was given out. The server is replaced by another
 * one, as when it is killed. */
int share_save(struct share *s, int fd, uint32_t *last_id, struct cancel *cancel, struct err *err);
/* Before the first volume, in a VM made from a saved one: those of the list that are not mirrored
 * get the ids that they say, and are served as that guest knows them. fd: what share_save() wrote,
 * at its beginning. A source that is missing is an error. After a failure the machine is to be
 * stopped. */
int share_restore(struct share *s, int fd, uint32_t last_id,
                  const struct machine_owned_volume *list, size_t n, struct cancel *cancel,
                  struct err *err);
/* Another cgroup, before the first volume. NULL is fine. */
void share_move(struct share *s, const char *cgroup);
/* Kills the server and waits for its end. Idempotent. */
void share_stop(struct share *s);
void share_free(struct share *s);

#endif
