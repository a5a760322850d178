/*
 * machine_grow - a machine's size after its start: fitted to its pod, changed with the pod's
 * limits, and grown when a guest without a limit runs short. On the host there is none: nothing
 * changes.
 *
 * Threads: all block but machine_press(); m->sizing is held while a size changes, but for
 * machine_fit() and machine_learn_size(), whose callers are alone with the handle or hold it.
 * Memory: what is here belongs to struct machine (its "machine_grow.c" fields). Private to
 * machine*.c.
 */
#ifndef ASPIS_SANDBOX_MACHINE_GROW_H
#define ASPIS_SANDBOX_MACHINE_GROW_H

#include "sandbox/machine_internal.h"

int machine_grow_init(struct machine *m, struct err *err);
void machine_grow_free(struct machine *m); /* ends what is under way */
/* After Hello: what the VM did not start with. */
int machine_fit(struct machine *m, const struct machine_spec *spec, struct cancel *cancel,
                struct err *err);
/* Of an adopted VM: learns its size. */
int machine_learn_size(struct machine *m, const struct machine_spec *spec, struct cancel *cancel,
                       struct err *err);
/* Control loop: the guest runs short of memory. */
void machine_press(struct machine *m);

#endif
