/*
 * container_ops - the life of a container: create, start, stop, remove, its end, and synchronous
 * execs.
 *
 * A container's end is put together from two things that arrive on different loops: the agent's
 * Exit event and the completion of its log. Only when both are there is EXITED recorded, shown, and
 * the event acknowledged, in that order; so nobody sees EXITED before the whole log, and no exit is
 * lost with the daemon. Threads: any, unless a function says otherwise.
 */
#ifndef ASPIS_CRI_CONTAINER_OPS_H
#define ASPIS_CRI_CONTAINER_OPS_H

#include "base/buf.h"
#include "base/cancel.h"
#include "base/err.h"
#include "cri/model.h"

struct container *container_create(struct sandbox *s, const Runtime__V1__ContainerConfig *config,
                                   struct cancel *cancel, struct err *err);
int container_start(struct container *c, struct cancel *cancel, struct err *err);
/* timeout in seconds: grace between the stop signal and SIGKILL; 0 kills at once. */
int container_stop(struct container *c, int64_t timeout, struct cancel *cancel, struct err *err);
/* Kills a running one first, as CRI asks. */
int container_remove(struct container *c, struct cancel *cancel, struct err *err);
int container_reopen_log(struct container *c, struct cancel *cancel, struct err *err);

/* Runs a command to its end; stdout and stderr are collected up to their bounds, the rest is read
 * and dropped. timeout in seconds, 0: none; when it passes the process is killed and the error is
 * DEADLINE. */
int container_exec_sync(struct container *c, char *const *cmd, size_t n_cmd, int64_t timeout,
                        struct buf *out, struct buf *errout, int32_t *exit_code,
                        struct cancel *cancel, struct err *err);

/* --- for the sandbox --- */
/* An event of the agent; on the control loop. */
void container_on_event(struct sandbox *s, const Aspis__Agent__V1__Event *event);
/* The machine is gone: running containers become EXITED (255, Unknown, reason), execs end. */
void containers_lost(struct sandbox *s, const char *reason);
/* SIGKILL to every running container and a bounded wait for their ends to be recorded; best effort.
 */
void containers_kill_all(struct sandbox *s, struct cancel *cancel);

/* The reason clients know from containerd for a command that could not be executed. In a record of
 * phase CREATED it means that the guest has refused the command already and StartContainer will say
 * so. */
#define START_ERROR "StartError"
bool container_start_is_doomed(struct container *c);

/* --- for whoever makes a container in another way (restore.c) --- */
/* Phase at once, then saved. */
int container_set_phase(struct container *c, enum container_phase phase, struct err *err);
/* Where its log goes, as its pod's and its own configuration say; makes the directory. */
int container_resolve_log_path(struct container *c, struct err *err);

/* --- for recovery --- */
/* Opens the log and attaches it to the streams on record. */
int container_resume_log(struct container *c, struct link *link, struct err *err);
/* Closes the log handle; forget: also the state that a later daemon would resume from. */
void container_close_log(struct container *c, bool forget);

#endif
