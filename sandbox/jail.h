/*
 * jail - runs a program as an unprivileged uid in namespaces and a file system of its own.
 *
 * jail_spawn() starts the helper `aspis-jail`, which joins the cgroups, makes new mount, pid, ipc,
 * net, uts and cgroup namespaces, builds a root of read-only binds on a tmpfs, and starts the
 * program in it: no capabilities but those listed, PR_SET_NO_NEW_PRIVS, no supplementary
 * groups, umask 077, no descriptor but those listed, empty environment but for `env`. The program
 * is PID 1 of its pid namespace (its death kills what it started) and a child of the caller's
 * process, not of the helper: spawn_wait() gets its exit status, and it outlives the caller.
 *
 * The helper by hand:
 *     aspis-jail [option...] -- PROGRAM [ARG...]     PROGRAM is a path inside the jail
 *     --uid N             user id and group id to run as; required, not 0
 *     --cgroup DIR        cgroup directory to join; repeatable
 *     --ro-bind SRC:DST   bind SRC (file or directory, links followed) read-only at DST; repeatable
 *     --bind SRC:DST      the same, writable
 *     --try-bind SRC:DST  read-only, skipped when SRC does not exist
 *     --dev PATH          a copy of this device node, owned by the uid; null, zero, full and
 * urandom always exist
 *     --proc              mount /proc of the new pid namespace
 *     --proc-self         the same with the processes' directories only
 *     --tmp BYTES         a writable /tmp of this size, owned by the uid
 *     --cap NAME          keep this capability: chown, dac_override, fowner, fsetid, setgid,
 *                         setpcap, setuid or sys_admin; repeatable
 *     --share-pid         stay in the caller's pid namespace (default: a new one)
 *     --share-net         stay in the caller's network namespace (default: an empty one)
 *     --rlimit NAME=N     as, core, cpu, data, fsize, memlock, nofile, nproc or stack; core=0
 * unless given
 *     --oom-score-adj N   as in /proc/<pid>/oom_score_adj
 *     --setenv K=V        repeatable
 *     --chdir DIR         default /
 *     --keep-fd N         a descriptor the program keeps, beside 0, 1 and 2; repeatable
 *     --status-fd N       where "pid N" and, on failure, "error TEXT" are written, one a line;
 * closed by the program's start Exit status of the helper: 0 when the program's process was made, 1
 * otherwise.
 *
 * Threads: any. Needs root.
 */
#ifndef ASPIS_SANDBOX_JAIL_H
#define ASPIS_SANDBOX_JAIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cancel.h"
#include "base/err.h"
#include "base/spawn.h"

struct jail_bind {
    const char *src;
    const char *dst; /* NULL: the same path; no ':' in it */
    bool writable;
    bool optional; /* skipped when src is missing (read-only only) */
};

struct jail_rlimit {
    const char *name; /* "nofile", "as", ... */
    uint64_t value;   /* soft and hard */
};

/* Everything is borrowed for the call. */
struct jail_opts {
    const char *helper;         /* path of aspis-jail */
    uint32_t uid;               /* and the gid of the same number; not 0 */
    const char *const *cgroups; /* NULL-terminated list of cgroup directories; NULL: none */
    const struct jail_bind *binds;
    size_t n_binds;
    const char *const *devices; /* NULL-terminated; NULL: none beside the standard four */
    const struct jail_rlimit *rlimits;
    size_t n_rlimits;
    bool set_oom_score_adj;
    int oom_score_adj;
    const char *const *caps; /* capabilities the program keeps, "chown"; NULL-terminated, or NULL */
    bool proc;
    bool proc_self; /* a /proc of processes only, without what it says of the host */
    bool share_net;
    bool share_pid;             /* stay in the caller's pid namespace */
    uint64_t tmp_bytes;         /* 0: no /tmp */
    const char *const *argv;    /* argv[0] is the program's path inside the jail */
    const char *const *env;     /* NULL: empty */
    const char *cwd;            /* inside; NULL: / */
    const struct spawn_fd *fds; /* what the program gets; 0..2 default to /dev/null */
    size_t n_fds;
};

/* Binds that a dynamically linked Debian program needs: libraries and the linker's cache. */
extern const struct jail_bind JAIL_LIBRARIES[];
extern const size_t JAIL_LIBRARIES_N;

/* Returns once the program has been executed (its own failure comes later, as its exit). *proc is
 * the program: spawn_wait(), spawn_kill(), spawn_clear(). On failure nothing is left running. */
int jail_spawn(const struct jail_opts *opts, struct cancel *cancel, struct spawn_proc *proc,
               struct err *err);

#endif
