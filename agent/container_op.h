/*
 * container_op - one operation in a forked child of the agent.
 *
 * libcrun exits, waits for any child, changes limits, directory and signal masks of whoever calls
 * it, so nothing of it runs in PID 1. The child has three standard descriptors, a socket for its
 * result and the trace pipe; every other descriptor is closed, so that no process made here can
 * hold another one's stream open. Its result counts when the child has been reaped.
 *
 * The trace pipe is what `stderr` (the stdio stream, not descriptor 2) means in the child and in
 * everything libcrun clones from it, and it closes on exec. So its reader learns of an exec: end of
 * file without text is success, text says why not.
 *
 * Parent's side: single-threaded, on the agent's loop. An op is freed after its done callback.
 */
#ifndef ASPIS_AGENT_CONTAINER_OP_H
#define ASPIS_AGENT_CONTAINER_OP_H

#include <stdint.h>
#include <sys/types.h>

#include "agent/user.h"
#include "base/err.h"

/* Crosses the socket as it is. */
struct op_result {
    int32_t code; /* enum err_code; ERR_OK: done */
    int32_t sys_errno;
    int32_t pid;
    uint32_t uid;
    uint32_t gid;
    uint32_t n_groups;
    uint32_t groups[LIMIT_USER_GROUPS];
    char text[LIMIT_GUEST_ERROR];
};

struct op;

/* In the child. res is zeroed; *fd_out (-1) may be set to a descriptor for the parent. Negative
 * with *err on failure. */
typedef int (*op_fn)(void *arg, struct op_result *res, int *fd_out, struct err *err);
/* In the parent, once, when the child is gone. err is NULL or says what failed; fd (-1 or the
 * child's descriptor) is the callee's. */
typedef void (*op_done_fn)(void *arg, const struct op_result *res, int fd, const struct err *err);

/* stdio: what becomes 0, 1 and 2; -1 is /dev/null. Not taken. trace_fd: receives the read end of
 * the trace pipe, non-blocking, the caller's; NULL: the pipe has no reader and text gets lost. fn
 * and arg must stay valid in the child's copy only, done_arg until done. */
struct op *op_start(const int stdio[3], op_fn fn, void *arg, op_done_fn done, void *done_arg,
                    int *trace_fd, struct err *err);
pid_t op_pid(const struct op *op);
/* The child was reaped: collects the result, calls done, frees the op. */
void op_reaped(struct op *op, int status);
/* For one that hangs; done is called as ever. */
void op_kill(const struct op *op);
/* Without done: for the agent's end in tests. The child goes on. */
void op_abandon(struct op *op);

#endif
