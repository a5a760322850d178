/*
 * checkpoint - a pod is saved into a directory, and a new pod made from one: CheckpointPod and
 * RestorePod.
 *
 * Saving: the agent freezes the pod's processes, QEMU writes the stopped VM (RAM, devices), the
 * scratch disk is copied, and the pod goes on; then the manifest is written. Containers that do not
 * run are not part of it.
 *
 * Restoring: a sandbox with a network of its own whose VM is loaded from the files. Its processes
 * are frozen still. The agent gets the new ids, clock, entropy, names and addresses, and each
 * container is CREATED, with its log in the new place: StartContainer lets it go on. Until
 * RestorePod has answered nobody knows the sandbox, and a daemon that is killed meanwhile leaves
 * nothing of it.
 *
 * What cannot be saved or restored is refused before anything is touched (PRECONDITION), by name.
 * Threads: any.
 */
#ifndef ASPIS_CRI_CHECKPOINT_H
#define ASPIS_CRI_CHECKPOINT_H

#include "cri/checkpoint_manifest.h"
#include "cri/model.h"

struct checkpoint_options {
    const char *path;
    char **containers; /* ids: all that run, if any is named */
    size_t n_containers;
    bool leave_running; /* else the pod is stopped once it is saved */
};
int sandbox_checkpoint(struct sandbox *s, const struct checkpoint_options *o, struct cancel *cancel,
                       struct err *err);

struct restore_options {
    const char *path;
    const Runtime__V1__PodSandboxConfig *pod; /* NULL: as it was saved */
    const char *handler;
    Runtime__V1__ContainerConfig **containers; /* one for each, or none: as they were saved */
    size_t n_containers;
};
/* Returns a reference to the sandbox, which is ready. */
struct sandbox *sandbox_restore(struct runtime *rt, const struct restore_options *o,
                                struct cancel *cancel, struct err *err);

/* After adoption: pods that a killed daemon was saving go on. */
void checkpoint_recover(struct runtime *rt);

/* How the image's disk is laid out, as a digest. */
int checkpoint_layout(struct runtime *rt, const char *image_id, char out[DIGEST_MAX],
                      struct err *err);

/* PRECONDITION: two of its volumes are in one place. */
int checkpoint_check_places(const Runtime__V1__ContainerConfig *c, struct err *err);

/* The volumes of a pod that is being restored. */
struct restore_volumes {
    struct machine_owned_volume *list; /* owner: not yet */
    size_t *container;                 /* whose: its place in the checkpoint */
    size_t n;
};
/* restore_volumes.c: finds where the volumes of the saved container i are now, and adds them.
 * PRECONDITION, by name: one that is not there, or not of its kind. wanted: borrowed as long as the
 * list. */
int restore_volumes_find(const struct checkpoint *c, size_t i,
                         const Runtime__V1__ContainerConfig *wanted, struct restore_volumes *out,
                         struct err *err);
void restore_volumes_clear(struct restore_volumes *v);

/* restore_config.c: PRECONDITION when one of them says what the saved processes do not know. */
int restore_check_pod(const Runtime__V1__PodSandboxConfig *saved,
                      const Runtime__V1__PodSandboxConfig *wanted, struct err *err);
int restore_check_container(const Runtime__V1__ContainerConfig *saved,
                            const Runtime__V1__ContainerConfig *wanted, struct err *err);

#endif
