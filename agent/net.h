/*
 * net - the guest's network as the pod's network namespace on the host has it: links, addresses,
 * routes, neighbours.
 *
 * Works through rtnetlink (libnl) in the caller's network namespace. The host's words are checked
 * like anybody else's; an error names the object and the step. Threads: the loop's; calls do not
 * wait for anything but the kernel.
 */
#ifndef ASPIS_AGENT_NET_H
#define ASPIS_AGENT_NET_H

#include "base/err.h"
#include "proto/agent.pb-c.h"

/* 1: all NICs of the request are there; 0: not yet, and *err (may be NULL) says which is missing;
 * -1: error. */
int net_ready(const Aspis__Agent__V1__ConfigurePodRequest *req, struct err *err);

/* Makes it so: loopback and links up, addresses, routes (direct ones first, since gateways need
 * them), neighbours. Repeatable: addresses of these links, and routes that an earlier call made,
 * that are not in the request are removed. */
int net_apply(const Aspis__Agent__V1__ConfigurePodRequest *req, struct err *err);
/* The same where no call came before, so that nothing need be looked for and removed. */
int net_apply_first(const Aspis__Agent__V1__ConfigurePodRequest *req, struct err *err);
/* What of it is the same for all pods: the loopback. */
int net_prepare(struct err *err);

#endif
