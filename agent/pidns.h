/*
 * pidns - a process namespace that containers of the pod share, and the init that keeps it alive.
 *
 * The init is this same program, executed anew so that nothing of the agent's memory is in it, with
 * no open descriptors. It reaps what is orphaned in its namespace and does nothing else.
 */
#ifndef ASPIS_AGENT_PIDNS_H
#define ASPIS_AGENT_PIDNS_H

#include <sys/types.h>

#include "base/err.h"

/* argv[0] that makes main() call pidns_init_main() and nothing else. */
#define PIDNS_INIT_NAME "aspis-pidns-init"

/* Starts a namespace; returns the pid of its init (a child of the caller), -1 on error. It ends by
 * SIGKILL only. */
pid_t pidns_start(struct err *err);
/* The init's whole life. */
_Noreturn void pidns_init_main(void);

#endif
