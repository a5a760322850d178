/*
 * process - one process of a container, its init or an exec: streams, terminal, the moment of exec,
 * and the end.
 *
 * A process has ended when it was reaped *and* its output streams are complete. A stranger that
 * still holds an output pipe (a background child, another container's process) delays the end by
 * DRAIN_NS only; output that waits for the host to take it is never given up for that.
 *
 * Single-threaded, on the agent's loop. process_free() is allowed in every callback.
 */
#ifndef ASPIS_AGENT_PROCESS_H
#define ASPIS_AGENT_PROCESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/types.h>

#include "agent/container_op.h"
#include "agent/rpc.h"
#include "agent/stdio.h"
#include "base/buf.h"
#include "base/err.h"
#include "base/loop.h"

struct process;

typedef void (*process_fn)(struct process *p, void *arg);
/* text: "" when the command was executed, else why not. */
typedef void (*process_exec_fn)(struct process *p, const char *text, void *arg);

enum process_state {
    PROCESS_NEW,     /* an operation is making it */
    PROCESS_CREATED, /* waits to execute its command */
    PROCESS_RUNNING,
    PROCESS_EXITED,
};

struct process_output {
    struct process *p;
    uint32_t id;
    bool open; /* its end was not read yet */
};

struct process {
    TAILQ_ENTRY(process) link;
    struct loop *loop;
    struct stdio *io;
    char *exec_id; /* "" for the container's init */
    enum process_state state;
    pid_t pid; /* 0 while unknown */
    int64_t started_at_ns;

    bool tty;
    int tty_fd; /* the terminal's master, for its size */
    uint32_t stdin_id;
    struct process_output out[2]; /* stdout (or the terminal), stderr */

    bool reaped;
    bool silent; /* its start failed and was answered so: no event */
    uint32_t exit_code;
    uint32_t signal;
    bool oom_killed;
    int64_t exited_at_ns;

    /* The owner's. */
    void *owner;
    struct op *op;
    struct rpc_call *call; /* Exec or StartContainer */
    struct rpc_call *remove_call;
    bool remove_wanted;
    const void *request; /* of Exec; lives with call */
    uint64_t oom_before;
    uint64_t reaps_before;

    /* Private. */
    int trace_fd;
    struct loop_source *trace_source;
    struct buf trace;
    process_exec_fn on_exec;
    struct loop_source *drain_timer;
    process_fn on_end;
    void *arg;
};

struct process *process_new(struct loop *loop, struct stdio *io, const char *exec_id, void *owner);
void process_free(struct process *p);

/* Pipes for a process without terminal. child_fds receives its 0, 1 and 2 (0 is -1 without stdin),
 * which the caller closes after the fork. */
int process_open_pipes(struct process *p, bool with_stdin, int child_fds[3], struct err *err);
/* Takes the master of a terminal. */
int process_attach_tty(struct process *p, int fd, bool with_stdin, uint32_t rows, uint32_t cols,
                       struct err *err);
int process_resize(struct process *p, uint32_t rows, uint32_t cols, struct err *err);

/* Takes the trace pipe (container_op.h). Text collected so far, "" when none; reads what is there.
 */
void process_set_trace(struct process *p, int fd);
const char *process_trace_text(struct process *p);
/* Calls fn once when the pipe reports the exec or its failure. */
int process_watch_exec(struct process *p, process_exec_fn fn, void *arg, struct err *err);
/* The process is known to be gone: what the pipe holds now is all; calls the watcher if there is
 * one. */
void process_settle_exec(struct process *p);

/* Records the wait status and calls fn once the streams are complete, maybe before it returns. */
void process_ended(struct process *p, int status, bool oom_killed, process_fn fn, void *arg);
/* Waits for the streams no longer. */
void process_end_now(struct process *p);

#endif
