/*
 * spec_fixture - a pod and a container of it as a client would send them, with every message wired
 * that a test may want to change.
 */
#ifndef TEST_CRI_SPEC_FIXTURE_H
#define TEST_CRI_SPEC_FIXTURE_H

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "cri/spec.h"

#define OWN(s) ((char *)(uintptr_t)(s))

/* Everything a test may want to change, wired together. */
struct box {
    Runtime__V1__PodSandboxConfig pod;
    Runtime__V1__LinuxPodSandboxConfig pod_linux;
    Runtime__V1__LinuxSandboxSecurityContext pod_security;
    Runtime__V1__ContainerConfig c;
    Runtime__V1__LinuxContainerConfig linux_;
    Runtime__V1__LinuxContainerSecurityContext security;
    Runtime__V1__LinuxContainerResources resources;
    Runtime__V1__NamespaceOption pod_ns, ns;
    Runtime__V1__Capability caps;
    Runtime__V1__Int64Value user, group;
    struct image_config image;
    struct err err;
};

static inline void init(struct box *b)
{
    memset(b, 0, sizeof(*b));
    runtime__v1__pod_sandbox_config__init(&b->pod);
    runtime__v1__linux_pod_sandbox_config__init(&b->pod_linux);
    runtime__v1__linux_sandbox_security_context__init(&b->pod_security);
    runtime__v1__container_config__init(&b->c);
    runtime__v1__linux_container_config__init(&b->linux_);
    runtime__v1__linux_container_security_context__init(&b->security);
    runtime__v1__linux_container_resources__init(&b->resources);
    runtime__v1__namespace_option__init(&b->pod_ns);
    runtime__v1__namespace_option__init(&b->ns);
    runtime__v1__capability__init(&b->caps);
    runtime__v1__int64_value__init(&b->user);
    runtime__v1__int64_value__init(&b->group);
    b->pod.hostname = OWN("pod");
    b->pod.linux = &b->pod_linux;
    b->pod_linux.security_context = &b->pod_security;
    b->pod_security.namespace_options = &b->pod_ns;
    b->c.linux = &b->linux_;
    b->linux_.security_context = &b->security;
    b->linux_.resources = &b->resources;
    b->ns.pid = b->pod_ns.pid = RUNTIME__V1__NAMESPACE_MODE__CONTAINER;
    b->security.namespace_options = &b->ns;
    b->image.working_dir = b->image.user = b->image.stop_signal = OWN("");
    strv_add(&b->image.entrypoint, "/entry");
    strv_add(&b->image.cmd, "default");
}

static inline void clear(struct box *b)
{
    strv_clear(&b->image.entrypoint);
    strv_clear(&b->image.cmd);
    strv_clear(&b->image.env);
    err_clear(&b->err);
}

/* Makes m the container's mounts, each as a client's decoder starts it; list is room for them. */
static inline void give_mounts(struct box *b, Runtime__V1__Mount *m, Runtime__V1__Mount **list,
                               size_t n)
{
    for (size_t i = 0; i < n; i++) {
        runtime__v1__mount__init(&m[i]);
        list[i] = &m[i];
    }
    b->c.mounts = list;
    b->c.n_mounts = n;
}

/* The container's volumes, numbered as a machine would; the caller's. */
static inline struct machine_volume *volumes_of(struct box *b, size_t *n)
{
    struct machine_volume *v = spec_volumes(&b->c, n);
    for (size_t i = 0; i < *n; i++)
        v[i].id = (uint32_t)i + 1;
    return v;
}

/* "process.args" etc.; NULL: not there. */
static inline const json_t *at(const json_t *spec, const char *path)
{
    auto_free char *copy = xstrdup(path);
    char *save = NULL;
    for (char *k = strtok_r(copy, ".", &save); k != NULL; k = strtok_r(NULL, ".", &save))
        spec = json_object_get(spec, k);
    return spec;
}

#endif
