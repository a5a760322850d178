/*
 * container_table - the table behind containers.h, shared by the files container_*.c that handle
 * calls; nobody else includes this.
 *
 * A container goes through its phases in one direction; at most one operation works on it, besides
 * execs. A call that comes while it is being made or removed waits in it. Single-threaded.
 */
#ifndef ASPIS_AGENT_CONTAINER_TABLE_H
#define ASPIS_AGENT_CONTAINER_TABLE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "agent/container_op.h"
#include "agent/containers.h"
#include "agent/events.h"
#include "agent/image_volume.h"
#include "agent/process.h"
#include "agent/volumes.h"
#include "base/timeline.h"
#include "proto/agent.pb-c.h"

enum container_phase {
    CONTAINER_IMAGE,    /* waits for its image disks */
    CONTAINER_CREATING, /* create operation */
    CONTAINER_CREATED,
    CONTAINER_STARTING, /* released, exec not seen yet */
    CONTAINER_RUNNING,
    CONTAINER_ENDED,    /* its init is gone, or never came to be */
    CONTAINER_REMOVING, /* remove operation */
};

struct waiting_call {
    STAILQ_ENTRY(waiting_call) link;
    struct rpc_call *call;
};

struct container {
    TAILQ_ENTRY(container) link;
    struct containers *table;
    char *id;   /* its files, groups and state are called so */
    char *name; /* what the daemon calls it: the id, but in a VM that was made from a saved one */
    bool held;  /* saved while it ran: frozen until StartContainer (container_freeze.c) */
    enum container_phase phase;
    bool told_running; /* ListState said so before it was known: a failed start is an Exit then */
    struct image_mount *images; /* the root's first, then those of image volumes */
    size_t n_images, n_held;    /* of the first n_held a reference is held */
    struct process *init;
    TAILQ_HEAD(, process) execs;
    struct op *op; /* create or remove */
    struct rpc_call *create_call;
    const Aspis__Agent__V1__CreateContainerRequest *create_req; /* lives with create_call */
    struct err create_err;
    struct timeline timeline; /* of its create call */
    bool remove_wanted;
    STAILQ_HEAD(, waiting_call) removers;
    struct loop_source *patience; /* while a removal waits for operations and processes */
    uint64_t reaps_before;        /* when its operation began */
    uint64_t oom_seen;
    int oom_watch; /* inotify, -1 */
    struct late_signal *late;
};

#define RECENT_REAPS 256

struct containers {
    struct loop *loop;
    struct pod *pod;
    struct stdio *io;
    struct volumes *volumes; /* NULL: no volumes, or: */
    bool on_host;            /* they are there already */
    char *state_dir;
    struct events *events;
    TAILQ_HEAD(, container) list;
    size_t n;
    size_t n_processes;
    unsigned ops; /* under way */
    uint64_t next_tag;
    bool closing;

    /* Strangers reaped lately: a process may end before its operation has told us its pid. */
    struct {
        pid_t pid;
        int status;
        uint64_t seq;
    } recent[RECENT_REAPS];
    uint64_t reaps;

    int inotify_fd;
    struct loop_source *inotify_source;
    struct freezer *freezer;
    struct rpc_method methods[16];
};

/* Table. */
struct container *container_find(struct containers *t, const char *id);
struct process *process_find(struct container *c, const char *exec_id); /* "" is the init */
void container_free(struct container *c);
/* container and exec ids become file names. */
bool container_id_valid(const char *id);
/* The status of a process that was reaped after `since` (a value of t->reaps), once. */
bool containers_claim(struct containers *t, pid_t pid, uint64_t since, int *status);
void fail_call(struct rpc_call *call, enum err_code code, const char *text);
void reply_empty(struct rpc_call *call);
Aspis__Agent__V1__Streams process_streams(const struct process *p);

/* A process of the container was reaped. */
void container_process_reaped(struct process *p, int status);

/* container_life.c */
void handle_create(struct rpc_call *call, const ProtobufCMessage *request, void *arg);
void handle_start(struct rpc_call *call, const ProtobufCMessage *request, void *arg);
void handle_remove(struct rpc_call *call, const ProtobufCMessage *request, void *arg);
/* Goes on with a wanted removal if nothing is in its way any more; may free the container. */
void container_progress(struct container *c);

/* container_exec.c */
void handle_exec(struct rpc_call *call, const ProtobufCMessage *request, void *arg);
void handle_remove_process(struct rpc_call *call, const ProtobufCMessage *request, void *arg);
/* Frees an exec's record and answers who waits for that. */
void exec_forget(struct process *p);

/* container_limits.c */
void handle_set_limits(struct rpc_call *call, const ProtobufCMessage *request, void *arg);

/* container_freeze.c */
struct freezer *freezer_new(struct containers *t, struct err *err);
void freezer_free(struct freezer *f);
/* Nothing can be made now. */
bool freezer_is_on(const struct freezer *f);
void handle_freeze(struct rpc_call *call, const ProtobufCMessage *request, void *arg);
void handle_thaw(struct rpc_call *call, const ProtobufCMessage *request, void *arg);
void handle_become(struct rpc_call *call, const ProtobufCMessage *request, void *arg);
/* StartContainer of one that is held. */
void container_let_go(struct container *c, struct rpc_call *call);

/* container_oom.c */
int container_oom_init(struct containers *t, struct err *err);
/* Tells the daemon of new OOM kills; returns how many there were so far. */
uint64_t container_oom_look(struct container *c);
void container_oom_watch(struct container *c);
void container_oom_unwatch(struct container *c);

#endif
