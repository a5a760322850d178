/*
 * share_internal - what share.c and share_checkpoint.c know of a pod's file server. Private to
 * them.
 *
 * Threads: everything but share_new() to share_free() under the share's lock.
 */
#ifndef ASPIS_SANDBOX_SHARE_INTERNAL_H
#define ASPIS_SANDBOX_SHARE_INTERNAL_H

#include <pthread.h>
#include <sys/queue.h>

#include "base/spawn.h"
#include "sandbox/share.h"

#define SHARE_NODES_FILE "share.nodes" /* one server's to the next: share_state.h */

struct share_entry {
    uint32_t id;
    char *owner, *source;
    int32_t nth; /* of the owner's volumes; -1: an older daemon did not say */
    bool file;   /* no directory */
    bool readonly, recursive, slave;
    struct volume_ids ids;
    STAILQ_ENTRY(share_entry) link;
};

struct share {
    char *server, *jail_helper, *run_dir, *cgroup, *state_path;
    uint32_t uid;
    struct link_transport transport;
    int stop_fd; /* eventfd: the watcher is to end */
    int wake_fd; /* eventfd: the watcher is to look anew */
    bool watched;
    pthread_t watcher;

    pthread_mutex_t lock; /* guards the rest */
    bool stopping;
    pid_t pid; /* 0: no server */
    uint64_t start_time;
    int pidfd;
    int64_t started_ns;
    uint32_t last_id;
    STAILQ_HEAD(, share_entry) entries;
};

int share_write_record(struct share *s, struct err *err);
/* The program, in its jail, with one argument and these descriptors from 3 on; at most three. log:
 * a file in run_dir. */
int share_spawn(struct share *s, const char *argument, const char *log, const int *fds,
                size_t n_fds, struct spawn_proc *proc, struct cancel *cancel, struct err *err);
/* All volumes on record into the namespace of a process. Each is tried; *err is the first's. */
int share_attach_all(struct share *s, int pidfd, struct err *err);
/* all: one that cannot be attached is an error, not a loss. */
int share_start_server(struct share *s, bool all, struct cancel *cancel, struct err *err);
int share_start_watcher(struct share *s, struct err *err);
/* Kills it and waits; the watcher starts another one. */
void share_end_server(struct share *s);
/* Takes source, a path without links. */
void share_add_entry(struct share *s, const char *owner, char *source,
                     const struct machine_volume *v);

#endif
