/*
 * container_spec - the OCI runtime spec as the daemon sent it, turned into the one libcrun gets.
 *
 * Changed: root, process.user, process.terminal and console size, HOME when the environment has
 * none, the pid namespace's path, cgroupsPath, devices and user namespace of the request, and mount
 * sources "aspis:<name>". Refused: what is
 * no valid JSON object, hooks but startContainer (they would run in the guest's own namespaces), an
 * empty command.
 * Annotations "run.oci.*" steer libcrun and are dropped.
 *
 * No state; strings returned are the caller's to free.
 */
#ifndef ASPIS_AGENT_CONTAINER_SPEC_H
#define ASPIS_AGENT_CONTAINER_SPEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "agent/user.h"
#include "base/err.h"
#include "proto/agent.pb-c.h"

struct spec_changes {
    const char *root_path;
    bool readonly_rootfs;
    const struct user_ids *user;
    bool tty;
    uint32_t rows; /* 0 with cols 0: no size */
    uint32_t cols;
    const char *pidns;        /* path of the namespace to join; NULL: as the spec says */
    const char *cgroups_path; /* "/pod/<id>" */
    const char *userns;       /* path of the user namespace to join; NULL: a new one */
    /* The request's devices and user namespace; NULL: none. */
    const Aspis__Agent__V1__CreateContainerRequest *request;
    /* Where the pod's message queues are mounted, for a user namespace; else NULL. */
    const char *mqueue;
    /* Path of a file of the pod; NULL when unknown, then with or without *err. */
    const char *(*pod_file)(void *arg, const char *name, struct err *err);
    void *pod_file_arg;
};

/* JSON text for libcrun. *kept, unless NULL: what is still needed of it while the container runs,
 * without the long lists that only its creation looks at; each exec reads it, twice. */
char *spec_for_create(const void *json, size_t len, const struct spec_changes *changes, char **kept,
                      struct err *err);

/* Of what spec_for_create() made: the same with this oom_score_adj; *before is what it had. */
char *spec_set_oom_score(const char *json, size_t len, int32_t adj, int64_t *before,
                         struct err *err);

struct spec_exec {
    char *const *args;
    size_t n_args;
    char *const *env; /* none: as the container's process */
    size_t n_env;
    const char *cwd; /* "": as the container's process */
    bool tty;
    uint32_t rows;
    uint32_t cols;
    int64_t *oom_score_adj; /* gets the container's, which libcrun does not set here; or NULL */
};

/* json: what spec_for_create() kept. Returns a spec of nothing but `process`, which is the new
 * process: same user, capabilities, limits and no_new_privileges. */
char *spec_for_exec(const char *json, size_t len, const struct spec_exec *exec, struct err *err);

#endif
