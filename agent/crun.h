/*
 * crun - libcrun, behind one door: no other file of Aspis includes its headers.
 *
 * libcrun is linked from the archive that deploy/guest/prepare builds (LGPL-2.1+). All functions
 * but crun_release() run in the forked child of an operation (container_op.h) and may leave that
 * process in any state. Errors carry libcrun's own text.
 */
#ifndef ASPIS_AGENT_CRUN_H
#define ASPIS_AGENT_CRUN_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

struct crun_ctx {
    const char *state_root; /* libcrun keeps <state_root>/<id>/ while the container exists */
    const char *id;
    const char *bundle;
    const char *pid_file;       /* receives the decimal pid */
    const char *console_socket; /* where a terminal's master is sent; NULL without one */
    const void *seccomp;        /* create: struct sock_filter[]; NULL: no filter */
    size_t seccomp_len;         /* in bytes */
};

/* Creates the container and leaves its init waiting for crun_release(). spec: JSON. kept: the part
 * of it that libcrun puts into <state_root>/<id>/config.json and reads there for an exec or a
 * removal. Finds out here whether the command exists and may be executed. */
int crun_create(const struct crun_ctx *ctx, const char *spec, const char *kept, struct err *err);

/* Agent's side, does not block: lets the waiting init execute its command. PRECONDITION when it no
 * longer waits. */
int crun_release(const char *state_root, const char *id, struct err *err);

/* Starts the process that spec describes in a running container, detached. What fails after the
 * process exists is written to stderr (the trace pipe). */
int crun_exec(const struct crun_ctx *ctx, const char *spec, struct err *err);

/* Removes the cgroup and libcrun's state of a container whose processes have ended, or whose init
 * still waits; an unknown id is fine. */
int crun_delete(const struct crun_ctx *ctx, struct err *err);

#endif
