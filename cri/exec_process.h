/*
 * exec_process - one more process in a running container, for as long as somebody is interested in
 * it: started, resized, waited for, removed.
 *
 * The struct lives with the caller and is known to the sandbox between exec_start() and
 * exec_end(). Threads: exec_over() and exec_resize() any; the rest the owner's.
 */
#ifndef ASPIS_CRI_EXEC_PROCESS_H
#define ASPIS_CRI_EXEC_PROCESS_H

#include "base/str.h"
#include "cri/model.h"

struct exec_process {
    struct container *c; /* the caller's reference */
    struct exec x;       /* x.ended_fd: readable when exec_over() may have changed */
    bool started;
    uint32_t stdin_id, stdout_id, stderr_id;
};

#define EXEC_PROCESS_INIT                                                                          \
    {                                                                                              \
        .x = {.ended_fd = -1 }                                                                     \
    }

/* exec_end() is due whatever comes back. */
int exec_start(struct exec_process *p, struct container *c, const struct strv *cmd, bool tty,
               bool with_stdin, struct cancel *cancel, struct err *err);
/* 0: runs; 1: ended, with *code; -1: its machine is gone. */
int exec_over(struct exec_process *p, uint32_t *code);
/* exec_id "" is the container's own terminal. */
int exec_resize(struct container *c, const char *exec_id, uint32_t cols, uint32_t rows,
                struct cancel *cancel, struct err *err);
int exec_kill(struct exec_process *p, struct cancel *cancel, struct err *err);
/* Kills it if it runs, and leaves nothing of it in the guest. */
void exec_end(struct exec_process *p);

#endif
