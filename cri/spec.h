/*
 * spec - the OCI runtime spec of a container, made from what CRI and the image say.
 *
 * The spec is complete but for what only the guest knows (root path, resolved user, namespace
 * paths, cgroup path), which the agent fills in (proto/agent.proto,
 * CreateContainerRequest.oci_spec). What this release cannot honour is refused here by name, never
 * ignored. Threads: any; nothing is kept.
 */
#ifndef ASPIS_CRI_SPEC_H
#define ASPIS_CRI_SPEC_H

#include "base/err.h"
#include "cri/image/image.h"
#include "cri/seccomp.h"
#include "proto/agent.pb-c.h"
#include "proto/arena.h"
#include "proto/cri/v1/api.pb-c.h"
#include "sandbox/machine.h"

/* PRECONDITION/UNIMPLEMENTED/INVALID naming the field that cannot be served by a VM pod. */
int spec_check_resources(const Runtime__V1__LinuxContainerResources *r, struct err *err);
int spec_check_sandbox(const Runtime__V1__PodSandboxConfig *pod, struct err *err);
int spec_check_container(const Runtime__V1__ContainerConfig *c,
                         const Runtime__V1__PodSandboxConfig *pod, enum backend backend,
                         struct err *err);

/* A mount of an image instead of a path of the host. */
static inline bool spec_is_image_volume(const Runtime__V1__Mount *m)
{
    return m->image != NULL && m->image->image[0] != '\0';
}

/* The container's mounts of the host's files as the machine takes them, *n of them in the same
 * order; sources are borrowed. The caller's to free; NULL when there are none. */
struct machine_volume *spec_volumes(const Runtime__V1__ContainerConfig *c, size_t *n);
/* JSON text, the caller's. `hostname` is the pod's; volumes are spec_volumes(), filled in; image
 * volumes name their images by id (container_images.h). */
char *spec_make(const Runtime__V1__ContainerConfig *c, const Runtime__V1__PodSandboxConfig *pod,
                const struct image_config *image, const struct machine_volume *volumes,
                struct err *err);

/* What the backend and a privileged container change in the text of spec_make(); the caller's. */
char *spec_adapt(const char *text, const Runtime__V1__ContainerConfig *c,
                 const Runtime__V1__PodSandboxConfig *pod, const struct machine_volume *volumes,
                 size_t n_volumes, enum backend backend, struct err *err);

/* Fills the message's fields; strings are borrowed from c or image. */
int spec_user(const Runtime__V1__ContainerConfig *c, const struct image_config *image,
              Aspis__Agent__V1__User *user, struct err *err);

/* The container's seccomp filter (seccomp.h), which the agent gets beside the spec: ten kilobytes
 * less for everybody in the guest who reads that. */
int spec_seccomp(const Runtime__V1__ContainerConfig *c, struct seccomp_filter *f, struct err *err);

/* Fills in what the agent gets beside the spec; the filter is borrowed. */
int spec_guest(const Runtime__V1__ContainerConfig *c, enum backend backend,
               const struct seccomp_filter *filter, Aspis__Agent__V1__CreateContainerRequest *req,
               struct arena *a, struct err *err);
/* PRECONDITION when the agent ignored something of it, since it is older; knows: from its reply. */
int spec_guest_understood(const Aspis__Agent__V1__CreateContainerRequest *req, uint32_t knows,
                          struct err *err);

/* Whether the container shares the pod's process namespace. */
bool spec_shared_pid(const Runtime__V1__ContainerConfig *c);

/* The effective stop signal: the container's, else the image's, else SIGTERM; as a number and its
 * name ("SIGTERM"). */
int spec_stop_signal(const Runtime__V1__ContainerConfig *c, const struct image_config *image,
                     char name[16]);
/* The number of "SIGTERM", "TERM", "15", "SIGRTMIN+3"; -1 when it is none. */
int spec_signal_number(const char *name);

/* Devices that are block devices of the host become disks of the VM (container_disks.h). */
bool spec_is_disk(const char *host_path); /* now */
/* Of the container's device number `index`. */
void spec_disk_serial(const char *container_id, size_t index, char out[21]);

#endif
