/*
 * ctl - aspisctl: a small client of aspisd for people, without kubelet and crictl.
 *
 * It speaks CRI plus proto/admin.proto over the daemon's socket, and reads container logs and
 * consoles as files, so it runs on the daemon's machine. Commands are functions in a table
 * (main.c); each returns the program's exit status, or -1 with *err.
 *
 * Memory: what a command unpacks lives in ctl->arena until the program ends. Threads: the gRPC
 * client and the arena are main's; a thread that waits for a container opens a connection of its
 * own, those of port-forward make no calls.
 */
#ifndef ASPIS_CRI_CTL_CTL_H
#define ASPIS_CRI_CTL_CTL_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"
#include "base/str.h"
#include "cri/grpc.h"
#include "proto/arena.h"
#include "proto/cri/v1/api.pb-c.h"

#define RUNTIME_SERVICE "/runtime.v1.RuntimeService/"
#define IMAGE_SERVICE "/runtime.v1.ImageService/"
#define ADMIN_SERVICE "/aspis.v1.Admin/"

#define EXIT_USAGE 2

struct ctl {
    const char *socket;
    struct gclient *client;
    struct arena *arena;
};

/* One unary call without deadline. The reply lives in the arena. */
const ProtobufCMessage *ctl_call(struct ctl *ctl, const char *path, const ProtobufCMessage *req,
                                 const ProtobufCMessageDescriptor *reply, struct err *err);

/* A full id for what a user wrote: an id or an unambiguous prefix of one, or a name (of the pod; of
 * a container also its pod's when that has one container). NOT_FOUND, or INVALID when several
 * match. */
const char *ctl_pod(struct ctl *ctl, const char *arg, struct err *err);
const char *ctl_container(struct ctl *ctl, const char *arg, struct err *err);

const Runtime__V1__ContainerStatus *ctl_container_status(struct ctl *ctl, const char *id,
                                                         struct err *err);
int ctl_stop_container(struct ctl *ctl, const char *id, int64_t timeout_s, struct err *err);
int ctl_remove_container(struct ctl *ctl, const char *id, struct err *err);
int ctl_stop_pod(struct ctl *ctl, const char *id, struct err *err);
int ctl_remove_pod(struct ctl *ctl, const char *id, struct err *err);

/* Where `run` keeps the logs of a pod; the caller's. NULL when name or uid cannot be ours. */
char *ctl_log_dir(const char *name, const char *uid);

/* Pulls with progress on stderr; the image's id. */
const char *ctl_pull(struct ctl *ctl, const char *image, struct err *err);

/* --- printing --- */
/* Text from elsewhere: control characters become '?', so that no name moves the terminal's cursor.
 */
void ctl_puts(FILE *out, const char *text);
/* "3 minutes": how long ago a wall clock time is. */
const char *ctl_age(int64_t wall, char out[32]);
const char *ctl_size(uint64_t bytes, char out[32]);     /* "12.3 MB" */
const char *ctl_short_id(const char *id, char out[16]); /* without "sha256:", 12 characters */

/* A table whose columns fit their contents. */
struct table {
    size_t n_columns;
    struct strv cells; /* row by row, the headings first */
};
void table_cell(struct table *t, const char *text);
void table_print(struct table *t, FILE *out); /* and empties it */

/* --- commands --- */
int cmd_run(struct ctl *ctl, int argc, char **argv, struct err *err);
int cmd_pods(struct ctl *ctl, int argc, char **argv, struct err *err);
int cmd_ps(struct ctl *ctl, int argc, char **argv, struct err *err);
int cmd_exec(struct ctl *ctl, int argc, char **argv, struct err *err);
int cmd_attach(struct ctl *ctl, int argc, char **argv, struct err *err);
int cmd_port_forward(struct ctl *ctl, int argc, char **argv, struct err *err);
int cmd_logs(struct ctl *ctl, int argc, char **argv, struct err *err);
int cmd_stop(struct ctl *ctl, int argc, char **argv, struct err *err);
int cmd_rm(struct ctl *ctl, int argc, char **argv, struct err *err);
int cmd_stopp(struct ctl *ctl, int argc, char **argv, struct err *err);
int cmd_rmp(struct ctl *ctl, int argc, char **argv, struct err *err);
int cmd_checkpoint(struct ctl *ctl, int argc, char **argv, struct err *err);
int cmd_restore(struct ctl *ctl, int argc, char **argv, struct err *err);
int cmd_image(struct ctl *ctl, int argc, char **argv, struct err *err);
int cmd_stats(struct ctl *ctl, int argc, char **argv, struct err *err);
int cmd_info(struct ctl *ctl, int argc, char **argv, struct err *err);
int cmd_console(struct ctl *ctl, int argc, char **argv, struct err *err);

/* A usage mistake: INVALID with this text; main() adds how to get help. */
int ctl_usage(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
