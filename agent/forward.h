/*
 * forward - TCP connections to ports on the guest's loopback, for port-forwarding: DialTcp and
 * HangUpTcp.
 *
 * The connection's two directions are stdio streams; this keeps only what is being dialled and
 * which streams belong together. Single-threaded, on the agent's loop. Owned by main.
 */
#ifndef ASPIS_AGENT_FORWARD_H
#define ASPIS_AGENT_FORWARD_H

#include "agent/rpc.h"
#include "agent/stdio.h"
#include "base/loop.h"

struct forwards;

struct forwards *forwards_new(struct loop *loop, struct stdio *io);
void forwards_free(struct forwards *f); /* before stdio; NULL is fine */
/* Terminated by a NULL name; owned by f. */
const struct rpc_method *forwards_methods(struct forwards *f);

#endif
