/*
 * records - what the daemon must know again after it was killed: sandboxes and containers, in
 * SQLite.
 *
 * One file, <state root>/state.db, in WAL mode: a record is on its way to the disk before the reply
 * that depends on it, and a killed daemon loses nothing (a killed machine loses its VMs as well).
 * Lists are never served from here but from memory. A file that cannot be used is moved aside and a
 * new one begun; records_open() says so.
 *
 * Threads: any; one connection under one lock. Memory: records handed out belong to the caller.
 */
#ifndef ASPIS_CRI_RECORDS_H
#define ASPIS_CRI_RECORDS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

struct records;

/* Stored as numbers: never renumber. */
enum sandbox_phase {
    SANDBOX_CREATING = 0, /* RunPodSandbox has not answered yet */
    SANDBOX_READY = 1,
    SANDBOX_NOTREADY = 2,
    SANDBOX_REMOVING = 3,
};

enum container_phase {
    CONTAINER_CREATING = 0, /* CreateContainer has not answered yet */
    CONTAINER_CREATED = 1,
    CONTAINER_RUNNING = 2,
    CONTAINER_EXITED = 3,
    CONTAINER_REMOVING = 4,
};

struct sandbox_record {
    char *id;
    enum sandbox_phase phase;
    void *config; /* packed runtime.v1.PodSandboxConfig, as the client sent it */
    size_t config_len;
    char *handler;
    int64_t created_at; /* ns since the epoch */
    char *boot_id;      /* of the host when the VM was started */
    char *netns;        /* path; "" before it is made and after it is gone */
    char *net;          /* netinfo as JSON; "" for none */
    char *machine;      /* machine_record as JSON; "" for none */
    bool net_up;        /* CNI ADD was begun and DEL has not succeeded */
    char *reason;       /* why NOTREADY; "" */
};

struct container_record {
    char *id;
    char *sandbox_id;
    enum container_phase phase;
    void *config; /* packed runtime.v1.ContainerConfig */
    size_t config_len;
    char *image_id;
    char *image_ref; /* repo digest, or the id when there is none */
    char *stop_signal;
    int64_t created_at, started_at, finished_at;
    uint32_t exit_code;
    char *reason, *message;
    char *log_path; /* absolute; "" for none */
    uint32_t stdin_id, stdout_id, stderr_id;
    uint32_t uid, gid;
    char *groups; /* supplemental groups: "1 2 3" */
};

/* *moved_aside (owned by the caller) names where an unusable file went, else NULL. */
struct records *records_open(const char *path, char **moved_aside, struct err *err);
void records_close(struct records *r);

int records_put_sandbox(struct records *r, const struct sandbox_record *s, struct err *err);
int records_delete_sandbox(struct records *r, const char *id,
                           struct err *err); /* and its containers */
/* Deletes what nobody was told of: now, or, on a disk that is full, when there is room for other
 * records again. A daemon that ends before finds it as what it was on record. */
void records_forget_sandbox(struct records *r, const char *id);
int records_put_container(struct records *r, const struct container_record *c, struct err *err);
int records_delete_container(struct records *r, const char *id, struct err *err);

/* All of them, oldest first; free with the functions below. */
int records_load_sandboxes(struct records *r, struct sandbox_record **out, size_t *n,
                           struct err *err);
int records_load_containers(struct records *r, struct container_record **out, size_t *n,
                            struct err *err);

void sandbox_record_clear(struct sandbox_record *s);
void container_record_clear(struct container_record *c);

#endif
