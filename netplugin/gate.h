/*
 * gate - who may run a CNI operation now.
 *
 * Operations with the same key (a sandbox id) run one at a time, in the order they came; different
 * keys run in parallel, at most `max` at once; an operation without key (GC) runs alone. Waiting
 * honours the caller's token. Threads: any.
 */
#ifndef ASPIS_NETPLUGIN_GATE_H
#define ASPIS_NETPLUGIN_GATE_H

#include <stddef.h>

#include "base/cancel.h"
#include "base/err.h"

struct gate;
struct gate_pass;

struct gate *gate_new(size_t max);
void gate_free(struct gate *g); /* nobody may be inside or waiting */

/* Waits until the operation may run; the pass goes back with gate_leave(). key NULL: alone. NULL
 * with *err when the token fired first. */
struct gate_pass *gate_enter(struct gate *g, const char *key, struct cancel *cancel,
                             struct err *err);
void gate_leave(struct gate_pass *p);

DEFINE_AUTO(struct gate_pass *, gate_leave);
#define auto_gate_pass __attribute__((cleanup(gate_leavep)))

#endif
