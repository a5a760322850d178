/*
 * sandbox_net - a sandbox's network namespace, CNI attachment and tap.
 *
 * What is made is in the sandbox's record before it is made, so that whoever comes after a killed
 * daemon can undo it. Called with the sandbox's operation lock held. Threads: any.
 */
#ifndef ASPIS_CRI_SANDBOX_NET_H
#define ASPIS_CRI_SANDBOX_NET_H

#include "base/timeline.h"
#include "cri/model.h"

/* The namespace, and for a VM a tap in it, which is the caller's. Nothing for a pod with the host's
 * network. */
int sandbox_namespace_up(struct sandbox *s, int *tap, struct err *err);
/* CNI ADD, and the tap joined to what that made; fills s->net. */
int sandbox_network_up(struct sandbox *s, struct timeline *t, struct cancel *cancel,
                       struct err *err);
/* CNI DEL and the namespace; may be repeated. */
int sandbox_network_down(struct sandbox *s, struct cancel *cancel, struct err *err);

#endif
