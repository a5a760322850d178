/*
 * backend - does a pod get a VM, or does it run on the host; and what each can and cannot give.
 *
 * The runtime handler decides: "aspis-vm" and "aspis-host" say it themselves; without one a pod
 * gets a VM unless it asks for a namespace of the host (NamespaceMode NODE for network, pid or ipc)
 * or, where so configured, is privileged. What a VM cannot give is refused by a sentence that names
 * the handler that can.
 *
 * Threads: any; nothing is kept. Texts are constant.
 */
#ifndef ASPIS_CRI_BACKEND_H
#define ASPIS_CRI_BACKEND_H

#include <stdbool.h>

#include "base/err.h"
#include "proto/cri/v1/api.pb-c.h"
#include "sandbox/machine.h"

struct backend_choice {
    enum backend backend;
    const char *why; /* "the runtime handler aspis-host", "its network namespace is the host's" */
};

/* The handlers' names, "" among them; NULL-terminated. */
extern const char *const BACKEND_HANDLERS[];

/* INVALID: no such handler. */
int backend_check_handler(const char *handler, struct err *err);
/* PRECONDITION: the handler's backend cannot run this pod. */
int backend_choose(const Runtime__V1__PodSandboxConfig *pod, const char *handler,
                   bool privileged_on_host, struct backend_choice *out, struct err *err);
/* PRECONDITION: a mount that the backend cannot make. */
int backend_check_mounts(enum backend backend, const Runtime__V1__ContainerConfig *c,
                         const Runtime__V1__PodSandboxConfig *pod, struct err *err);
/* Whether the backend, and what the pod was made as, allow this container. */
int backend_check_container(enum backend backend, const Runtime__V1__ContainerConfig *c,
                            const Runtime__V1__PodSandboxConfig *pod, struct err *err);

/* NULL where the client sent none. */
const Runtime__V1__NamespaceOption *backend_namespaces(const Runtime__V1__PodSandboxConfig *pod);
bool backend_host_network(const Runtime__V1__PodSandboxConfig *pod);
bool backend_host_ipc(const Runtime__V1__PodSandboxConfig *pod);

#endif
