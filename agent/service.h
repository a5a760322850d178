/*
 * service - the calls about the guest as a whole: Hello, Ping, ConfigurePod, disks, Shutdown.
 *
 * Owned by main; on the agent's loop.
 */
#ifndef ASPIS_AGENT_SERVICE_H
#define ASPIS_AGENT_SERVICE_H

#include "agent/pod.h"
#include "agent/rpc.h"
#include "base/err.h"
#include "base/loop.h"

struct service;

/* shutdown runs on the loop shortly after Shutdown was answered. */
struct service *service_new(struct loop *loop, struct pod *pod, void (*shutdown)(void *arg),
                            void *arg, struct err *err);
void service_free(struct service *s); /* NULL is fine */

/* Terminated by a NULL name; owned by s. */
const struct rpc_method *service_methods(struct service *s);

#endif
