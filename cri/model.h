/*
 * model - sandboxes and containers in memory, and their records on disk.
 *
 * Lists and statuses are answered from here and never wait for a VM. Locks, outermost first:
 *   sandbox->op, container->op   one long operation at a time on the object (oplock.h); sandbox
 * before container container->save, sandbox->save   orders the writes of one record runtime->lock
 * guards the maps and every field not marked otherwise; held for moments, never over I/O
 *
 * Memory: objects are reference counted; the maps hold one reference, each container holds its
 * sandbox. config messages are unpacked once and constant.
 */
#ifndef ASPIS_CRI_MODEL_H
#define ASPIS_CRI_MODEL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>
#define HASH_FUNCTION HASH_FNV /* clang warns of the default one */
#include <uthash.h>

#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "base/loop.h"
#include "cri/backend.h"
#include "cri/container_log.h"
#include "cri/hub.h"
#include "cri/oplock.h"
#include "cri/records.h"
#include "cri/runtime.h"
#include "cri/spare/spare.h"
#include "cri/stats.h"
#include "netplugin/netinfo.h"
#include "proto/cri/v1/api.pb-c.h"
#include "sandbox/machine.h"

struct sandbox;
struct events;
struct heartbeat;

/* A process started by ExecSync or Exec: waits for its Exit event. */
struct exec {
    char *container_id, *exec_id;
    int ended_fd; /* eventfd: readable once the exit is known or the machine is gone */
    bool ended, lost;
    uint32_t exit_code;
    TAILQ_ENTRY(exec) link; /* in sandbox->execs */
};

struct container {
    atomic_uint refs;
    struct runtime *rt;                              /* constant */
    struct sandbox *sandbox;                         /* constant, counted */
    Runtime__V1__ContainerConfig *config;            /* constant */
    Runtime__V1__LinuxContainerResources *resources; /* NULL: config's (resources.h) */
    struct container_record rec;
    struct oplock op;
    pthread_mutex_t save;
    bool deleted;              /* under save: the record is gone and stays gone */
    struct container_log *log; /* from create to remove; changed under op and lock */
    struct hub hub;            /* its output, for those attached */
    struct oplock input_turn;  /* guards input */
    struct stream *input;      /* its stdin (container_input.h) */
    int exited_fd;             /* eventfd: readable once EXITED is visible */
    bool stopping;    /* a StopContainer was asked for: tells a kill from a crash in the log */
    char *guest_cpus; /* its cpuset in the guest (confine.h), under sandbox->fit; NULL: not known */
    uint32_t pid;     /* of its init in the guest; 0: not known */
    bool starting, told_started; /* StartContainer was sent; GetContainerEvents said so */
    bool start_unsure; /* the call was given up and the guest has not said yet what became of it */
    bool disks_left;   /* it uses its images' disks no more (container_images.h) */
    /* the end, put together from the exit event and the log's completion */
    bool exit_seen, log_done, finishing;
    struct loop_source *late; /* worker loop: the log takes too long to complete */
    uint64_t exit_seq;
    uint32_t exit_code;
    bool oom_killed;
    char *start_error; /* its command was never executed; NULL: it was */
    int64_t exited_at;
    UT_hash_handle hh;
    TAILQ_ENTRY(container) link; /* in sandbox->containers */
};

struct sandbox {
    atomic_uint refs;
    struct runtime *rt;                              /* constant */
    Runtime__V1__PodSandboxConfig *config;           /* constant */
    char *name_key;                                  /* constant: namespace/name/uid/attempt */
    Runtime__V1__LinuxContainerResources *resources; /* NULL: config's (resources.h) */
    struct backend_choice backend;                   /* constant */
    struct sandbox_record rec;
    struct oplock op;
    struct oplock disks; /* one change to the VM's image disks at a time; innermost but for lock */
    struct oplock fit;   /* one change to the VM's size and CPUs at a time; innermost as disks */
    char *idle_image;    /* under disks: id of one that stays plugged in though nobody uses it */
    pthread_mutex_t save;
    bool deleted; /* under save: the record is gone and stays gone */
    bool undoing; /* under save: it comes to nothing, so a record that cannot be written is no harm
                   */
    struct netinfo net;
    struct machine *machine; /* see sandbox_use_machine() */
    unsigned machine_users;
    bool stopping;
    char *timeline;    /* of RunPodSandbox, in this daemon's memory only; NULL: not known */
    uint64_t last_seq; /* of the agent's events */
    struct stats_cache stats;
    char *silence;    /* the guest does not answer: why it is shown as not ready; else NULL */
    unsigned unheard; /* heartbeats in a row without an answer; control loop */
    int settled_fd;   /* eventfd: readable once RunPodSandbox has ended, either way */
    TAILQ_HEAD(, container) containers;
    TAILQ_HEAD(, exec) execs;
    UT_hash_handle hh;
    UT_hash_handle hh_name; /* in runtime->names */
};

struct runtime {
    struct runtime_deps deps; /* strings owned */
    struct records *records;
    struct loop *worker; /* finishes containers, handles machine deaths: may write records */
    pthread_t worker_thread;
    pthread_mutex_t lock;
    pthread_cond_t machine_free;  /* machine_users went to 0 */
    struct sandbox *sandboxes;    /* by id */
    struct sandbox *names;        /* by name_key */
    struct container *containers; /* by id */
    char *boot_id;
    struct spares *spares; /* NULL: none are wanted */
    struct stats *stats;
    struct events *events;
    struct heartbeat *heartbeat;
};

/* --- sandboxes --- */
/* Not yet in the maps. Takes nothing: record fields and config are copied from what is given. */
struct sandbox *sandbox_new(struct runtime *rt, const char *id,
                            const Runtime__V1__PodSandboxConfig *config, const char *handler,
                            struct err *err);
struct sandbox *sandbox_from_record(struct runtime *rt, struct sandbox_record *rec,
                                    struct err *err);
struct sandbox *sandbox_ref(struct sandbox *s);
void sandbox_unref(struct sandbox *s);
DEFINE_AUTO(struct sandbox *, sandbox_unref);
#define auto_sandbox __attribute__((cleanup(sandbox_unrefp)))

/* Puts it into the maps unless its name is taken: then a reference to the holder comes back and
 * nothing changes. */
struct sandbox *model_add_sandbox(struct runtime *rt, struct sandbox *s);
void model_remove_sandbox(struct runtime *rt, struct sandbox *s);
/* By id or unambiguous prefix; a sandbox still being created does not count. NULL with NOT_FOUND.
 */
struct sandbox *model_find_sandbox(struct runtime *rt, const char *id, struct err *err);
int sandbox_save(struct sandbox *s, struct err *err);
/* Deletes the record; later saves do nothing. */
int sandbox_delete(struct sandbox *s, struct err *err);
/* For one that failed before anybody was told of it: from now on saves may fail in silence... */
void sandbox_set_undoing(struct sandbox *s, bool undoing);
/* ...and its record goes, if only when there is room to write that. */
void sandbox_forget(struct sandbox *s);
/* Phase and reason at once, then saved. */
int sandbox_set_phase(struct sandbox *s, enum sandbox_phase phase, const char *reason,
                      struct err *err);

/* The machine, kept from being freed until sandbox_release_machine(); NULL with PRECONDITION when
 * there is none. */
struct machine *sandbox_use_machine(struct sandbox *s, struct err *err);
void sandbox_release_machine(struct sandbox *s);
/* Takes it out for good: waits until nobody uses it, frees the handle. The VM must have been
 * destroyed, or shall run on. */
void sandbox_drop_machine(struct sandbox *s);

/* --- containers --- */
struct container *container_new(struct sandbox *s, const char *id,
                                const Runtime__V1__ContainerConfig *config, struct err *err);
struct container *container_from_record(struct sandbox *s, struct container_record *rec,
                                        struct err *err);
struct container *container_ref(struct container *c);
void container_unref(struct container *c);
DEFINE_AUTO(struct container *, container_unref);
#define auto_container __attribute__((cleanup(container_unrefp)))

/* ALREADY_EXISTS when the sandbox has one of that name and attempt, PRECONDITION when it is
 * stopping. */
int model_add_container(struct runtime *rt, struct container *c, struct err *err);
void model_remove_container(struct runtime *rt, struct container *c);
struct container *model_find_container(struct runtime *rt, const char *id, struct err *err);
/* References to all of a sandbox; the array is the caller's. */
struct container **model_containers_of(struct sandbox *s, size_t *n);
int container_save(struct container *c, struct err *err);
int container_delete(struct container *c, struct err *err);
enum container_phase container_phase(struct container *c);

/* Paths; the caller's. */
char *container_log_state_path(const struct container *c);
char *sandbox_run_dir(const struct sandbox *s);
char *netns_notes_dir(const struct runtime *rt); /* netplugin/netns_note.h */

/* "sandbox 0123456789ab (namespace/name)", for errors; valid as long as s. */
const char *sandbox_title(const struct sandbox *s, char out[200]);
const char *container_title(const struct container *c, char out[200]);

/* Copies a protobuf message (malloc); free with protobuf_c_message_free_unpacked(m, NULL). */
ProtobufCMessage *message_clone(const ProtobufCMessage *m);

#endif
