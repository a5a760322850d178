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
/* Another cgroup, before the first volume. NULL is fine. */
void share_move(struct share *s, const char *cgroup);
/* Kills the server and waits for its end. Idempotent. */
void share_stop(struct share *s);
void share_free(struct share *s);

#endif
