#include "cri/backend.h"

#include <string.h>

#include "base/str.h"
#include "cri/userns.h"

#define VM_HANDLER "aspis-vm"
#define HOST_HANDLER "aspis-host"

const char *const BACKEND_HANDLERS[] = {"", VM_HANDLER, HOST_HANDLER, NULL};

int backend_check_handler(const char *handler, struct err *err)
{
    for (size_t i = 0; BACKEND_HANDLERS[i] != NULL; i++) {
        if (strcmp(handler, BACKEND_HANDLERS[i]) == 0)
            return 0;
    }
    return err_set(err, ERR_INVALID,
                   "unknown runtime handler \"%.64s\"; this runtime has \"\", \"" VM_HANDLER
                   "\" and \"" HOST_HANDLER "\"",
                   handler);
}

static const Runtime__V1__LinuxSandboxSecurityContext *
security(const Runtime__V1__PodSandboxConfig *pod)
{
    return pod->linux != NULL ? pod->linux->security_context : NULL;
}

const Runtime__V1__NamespaceOption *backend_namespaces(const Runtime__V1__PodSandboxConfig *pod)
{
    const Runtime__V1__LinuxSandboxSecurityContext *s = security(pod);
    return s != NULL ? s->namespace_options : NULL;
}

bool backend_host_network(const Runtime__V1__PodSandboxConfig *pod)
{
    const Runtime__V1__NamespaceOption *n = backend_namespaces(pod);
    return n != NULL && n->network == RUNTIME__V1__NAMESPACE_MODE__NODE;
}

bool backend_host_ipc(const Runtime__V1__PodSandboxConfig *pod)
{
    const Runtime__V1__NamespaceOption *n = backend_namespaces(pod);
    return n != NULL && n->ipc == RUNTIME__V1__NAMESPACE_MODE__NODE;
}

static const struct host_namespace {
    const char *name, *why;
} namespaces[] = {{"network", "its network namespace is the host's"},
                  {"pid", "its pid namespace is the host's"},
                  {"ipc", "its ipc namespace is the host's"}};

/* The first namespace of the host that is asked for; NULL: none. */
static const struct host_namespace *host_namespace(const Runtime__V1__NamespaceOption *n)
{
    if (n == NULL)
        return NULL;
    const Runtime__V1__NamespaceMode modes[] = {n->network, n->pid, n->ipc};
    for (size_t i = 0; i < ARRAY_LEN(modes); i++) {
        if (modes[i] == RUNTIME__V1__NAMESPACE_MODE__NODE)
            return &namespaces[i];
    }
    return NULL;
}

int backend_choose(const Runtime__V1__PodSandboxConfig *pod, const char *handler,
                   bool privileged_on_host, struct backend_choice *out, struct err *err)
{
    const struct host_namespace *ns = host_namespace(backend_namespaces(pod));
    const Runtime__V1__LinuxSandboxSecurityContext *s = security(pod);
    if (backend_check_handler(handler, err) < 0)
        return -1;
    if (strcmp(handler, HOST_HANDLER) == 0) {
        *out = (struct backend_choice){BACKEND_HOST, "the runtime handler " HOST_HANDLER};
    } else if (strcmp(handler, VM_HANDLER) == 0) {
        if (ns != NULL)
            return err_set(err, ERR_PRECONDITION,
                           "%s namespace NODE is asked for; a VM cannot share the host's "
                           "namespaces: it takes the runtime handler " HOST_HANDLER,
                           ns->name);
        *out = (struct backend_choice){BACKEND_VM, "the runtime handler " VM_HANDLER};
    } else if (ns != NULL) {
        *out = (struct backend_choice){BACKEND_HOST, ns->why};
    } else if (s != NULL && s->privileged && privileged_on_host) {
        *out = (struct backend_choice){BACKEND_HOST, "it is privileged"};
    } else {
        *out = (struct backend_choice){BACKEND_VM, "it needs nothing of the host"};
    }
    /* as kubelet has it; such a namespace would be nobody's that the container's root is */
    if (ns != NULL && userns_wanted(backend_namespaces(pod)))
        return err_set(
            err, ERR_PRECONDITION,
            "a user namespace is asked for, and the host's %s namespace: one without the "
            "other",
            ns->name);
    return 0;
}

static bool bidirectional(const Runtime__V1__Mount *m)
{
    return m->propagation == RUNTIME__V1__MOUNT_PROPAGATION__PROPAGATION_BIDIRECTIONAL;
}

static int check_host(const Runtime__V1__ContainerConfig *c,
                      const Runtime__V1__PodSandboxConfig *pod, struct err *err)
{
    bool userns = userns_wanted(backend_namespaces(pod));
    for (size_t i = 0; userns && i < c->n_mounts; i++) {
        if (bidirectional(c->mounts[i]))
            return err_set(
                err, ERR_PRECONDITION,
                "mount of %.200s at %.200s: propagation BIDIRECTIONAL is asked for; what "
                "is mounted in a user namespace does not appear on the host",
                c->mounts[i]->host_path, c->mounts[i]->container_path);
    }
    return 0;
}

static int check_vm(const Runtime__V1__ContainerConfig *c, struct err *err)
{
    for (size_t i = 0; i < c->n_mounts; i++) {
        if (bidirectional(c->mounts[i]))
            return err_set(err, ERR_PRECONDITION,
                           "mount of %.200s at %.200s: propagation BIDIRECTIONAL is asked for; a "
                           "mount made in a VM's kernel cannot appear on the host: it takes the "
                           "runtime handler " HOST_HANDLER,
                           c->mounts[i]->host_path, c->mounts[i]->container_path);
    }
    return 0;
}

int backend_check_mounts(enum backend backend, const Runtime__V1__ContainerConfig *c,
                         const Runtime__V1__PodSandboxConfig *pod, struct err *err)
{
    return backend == BACKEND_VM ? check_vm(c, err) : check_host(c, pod, err);
}

/* The namespaces are the pod's; a container that says otherwise is a mistake. */
static int check_namespaces(const Runtime__V1__NamespaceOption *c,
                            const Runtime__V1__NamespaceOption *pod, struct err *err)
{
    const Runtime__V1__NamespaceMode node = RUNTIME__V1__NAMESPACE_MODE__NODE;
    const Runtime__V1__NamespaceMode pod_modes[] = {
        pod != NULL ? pod->network : 0, pod != NULL ? pod->pid : 0, pod != NULL ? pod->ipc : 0};
    if (c == NULL)
        return 0;
    const Runtime__V1__NamespaceMode modes[] = {c->network, c->pid, c->ipc};
    for (size_t i = 0; i < ARRAY_LEN(modes); i++) {
        if (modes[i] == node && pod_modes[i] != node)
            return err_set(err, ERR_PRECONDITION,
                           "%s namespace NODE is asked for; its pod was made without",
                           namespaces[i].name);
    }
    return 0;
}

int backend_check_container(enum backend backend, const Runtime__V1__ContainerConfig *c,
                            const Runtime__V1__PodSandboxConfig *pod, struct err *err)
{
    const Runtime__V1__LinuxContainerSecurityContext *s =
        c->linux != NULL ? c->linux->security_context : NULL;
    const Runtime__V1__LinuxSandboxSecurityContext *p = security(pod);
    bool privileged = s != NULL && s->privileged;
    /* containerd's rule and words */
    if (privileged && (p == NULL || !p->privileged))
        return err_set(err, ERR_PRECONDITION, "no privileged container allowed in sandbox");
    if (s != NULL && check_namespaces(s->namespace_options, backend_namespaces(pod), err) < 0)
        return -1;
    return backend_check_mounts(backend, c, pod, err);
}
