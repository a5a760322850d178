/*
 * spawn - run a program: argv array, no shell, posix_spawn, every fd closed but the ones named.
 *
 * Memory: the process handle is the caller's. Threads: any. The caller's process must not reap with
 * waitpid(-1) elsewhere.
 */
#ifndef ASPIS_BASE_SPAWN_H
#define ASPIS_BASE_SPAWN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/buf.h"
#include "base/cancel.h"
#include "base/err.h"

struct spawn_fd {
    int child; /* the number in the child */
    int here;  /* our descriptor; -1: /dev/null */
};

struct spawn_opts {
    const char *path;           /* the program; NULL: argv[0] looked up in PATH */
    const char *const *argv;    /* NULL-terminated */
    const char *const *env;     /* NULL-terminated; NULL: our own environment */
    const char *cwd;            /* NULL: / */
    const struct spawn_fd *fds; /* 0..2 default to /dev/null */
    size_t n_fds;
    bool new_group; /* own process group, so that spawn_kill() reaches grandchildren */
    int64_t
        grace_ns; /* spawn_run(): may run on for so long after the token fired, then is killed */
};

struct spawn_proc {
    pid_t pid;
    int pidfd;
    bool group;
};
#define SPAWN_PROC_INIT                                                                            \
    {                                                                                              \
        .pid = -1, .pidfd = -1                                                                     \
    }

int spawn_start(const struct spawn_opts *opts, struct spawn_proc *proc, struct err *err);
/* Waits for the end (wait(2) status in *status); -1 when the token fired first (the process goes
 * on). */
int spawn_wait(struct spawn_proc *proc, struct cancel *cancel, int *status, struct err *err);
/* SIGKILL to whoever a pidfd stands for; one that is gone already is fine. Does not reap. */
void spawn_kill_pidfd(int pidfd);
/* SIGKILL to the process or its group, then reaps. Idempotent. */
void spawn_kill(struct spawn_proc *proc);
/* Releases the handle; kills and reaps what still runs. */
void spawn_clear(struct spawn_proc *proc);

/* Runs to the end: feeds `in` to stdin, collects stdout and stderr into bounded buffers (either may
 * be NULL; output past a buffer's max is an error for stdout and dropped for stderr). The process
 * group is killed when the token fires or a bound is hit. Returns 0 with the wait status in
 * *status. */
int spawn_run(const struct spawn_opts *opts, const void *in, size_t in_len, struct buf *out,
              struct buf *errout, struct cancel *cancel, int *status, struct err *err);

/* "exit status 3" or "signal 9 (Killed)" for a wait status; the text is in the caller's buffer. */
const char *spawn_status_text(int status, char *out, size_t size);

#endif
