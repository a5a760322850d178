/*
 * sandbox_ops - the life of a sandbox: run, stop, remove, and what happens when its machine dies.
 *
 * A run is: record, netns, CNI ADD, tap, machine, ConfigurePod, record again, READY. Every step can
 * be undone, and is when a later one fails; undoing uses its own deadline, not the caller's. Stop
 * and remove may be repeated at any time and work on a machine that is already dead. Threads: any.
 */
#ifndef ASPIS_CRI_SANDBOX_OPS_H
#define ASPIS_CRI_SANDBOX_OPS_H

#include "base/cancel.h"
#include "base/err.h"
#include "cri/model.h"

/* Returns a reference to the running sandbox. The same metadata again, while the first call is at
 * work or after, gives the same sandbox. */
struct sandbox *sandbox_run(struct runtime *rt, const Runtime__V1__PodSandboxConfig *config,
                            const char *handler, struct cancel *cancel, struct err *err);
int sandbox_stop(struct sandbox *s, struct cancel *cancel, struct err *err);
int sandbox_remove(struct sandbox *s, struct cancel *cancel, struct err *err);

/* The machine's callbacks; arg is the sandbox, which must outlive the machine. */
extern const struct machine_callbacks sandbox_machine_callbacks;

/* The tap in a pod's network namespace. */
#define SANDBOX_TAP_NAME "tap0"

/* --- for whoever builds a sandbox in another way (restore.c) --- */
/* It owns the machine from now on. True when that is a clone. */
bool sandbox_set_machine(struct sandbox *s, struct machine *m);
/* Undoes a failed run with a deadline of its own. What cannot be undone stays as a NOTREADY
 * sandbox, which kubelet will stop and remove again. */
void sandbox_undo(struct sandbox *s, const struct err *cause);

/* The last step of making one: READY on disk, unless its machine died meanwhile. */
int sandbox_become_ready(struct sandbox *s, struct err *err);

/* For recovery. */
struct machine_spec sandbox_machine_spec(struct sandbox *s);
/* sandbox_config.c: what ConfigurePod says of the pod. */
int sandbox_configure_pod(struct sandbox *s, struct machine *m, struct cancel *cancel,
                          struct err *err);
/* Releases network, machine and files of a sandbox whatever its state; the record stays. */
int sandbox_teardown(struct sandbox *s, struct cancel *cancel, struct err *err);
/* Replaces an owned string of the record under the lock. */
void sandbox_set_text(struct sandbox *s, char **field, char *owned);
/* Tells the agent which events are dealt with. */
void sandbox_ack_events(struct sandbox *s);

#endif
