/*
 * container_jobs - what runs in the forked child of an operation: the file work around each call of
 * libcrun.
 *
 * A job struct is filled by the agent before the fork and read by the child's copy of memory; its
 * pointers need to live until op_start() returned. Paths of a container:
 *     <state_dir>/<id>/rootfs        overlay mount: image below, <scratch>/<id>/upper above
 *     <state_dir>/.volumes/<id>/<volume>  its volumes; of images: image-<n>
 *     <state_dir>/.mirrors/<volume>  mirrored volumes, the pod's (mirror.h)
 *     <state_dir>/.crun/<id>/        libcrun's own state; config.json: what spec_for_create() kept
 */
#ifndef ASPIS_AGENT_CONTAINER_JOBS_H
#define ASPIS_AGENT_CONTAINER_JOBS_H

#include "agent/container_op.h"
#include "agent/image_volume.h"
#include "agent/pod.h"
#include "base/err.h"
#include "proto/agent.pb-c.h"

struct job_paths {
    const char *id;
    const char *state_dir;
    const char *scratch_dir; /* NULL or "": the pod has none yet */
};

struct create_job {
    struct job_paths at;
    const Aspis__Agent__V1__CreateContainerRequest *req;
    const struct image_mount *images; /* the root's, then those of image volumes */
    size_t n_images;
    const char *pidns; /* NULL: the container's own */
    char pidns_path[40];
    struct pod *pod;
    char *volume_path;    /* for the child's own use, as the next */
    unsigned image_binds; /* made so far */
};

struct exec_job {
    struct job_paths at;
    const Aspis__Agent__V1__ExecRequest *req;
    const char *tag; /* unique among running operations, for file names */
};

/* op_fn's; arg is the job. */
int create_job_run(void *arg, struct op_result *res, int *fd_out, struct err *err);
int exec_job_run(void *arg, struct op_result *res, int *fd_out, struct err *err);
/* arg is a struct job_paths. Removes everything of the container in any state short of running. */
int remove_job_run(void *arg, struct op_result *res, int *fd_out, struct err *err);

/* Where a volume of a container is mounted; the caller's to free. */
char *job_volume_path(const char *state_dir, const char *container_id, uint32_t id);
/* Where a mirrored volume of the pod is; the caller's to free. */
char *job_mirror_path(const char *state_dir, uint32_t id);
/* Where libcrun keeps its state; the caller's to free. */
char *job_state_root(const char *state_dir);

#endif
