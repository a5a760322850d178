/*
 * spec_internal - what the parts of the spec share (spec.c, spec_security.c, spec_mounts.c,
 * spec_resources.c).
 *
 * Each part checks its own fields of the container's configuration and makes its own sections of
 * the OCI spec. JSON values returned are the caller's. Threads: any; nothing is kept.
 */
#ifndef ASPIS_CRI_SPEC_INTERNAL_H
#define ASPIS_CRI_SPEC_INTERNAL_H

#include <jansson.h>

#include "cri/spec.h"

typedef Runtime__V1__ContainerConfig Container;
typedef Runtime__V1__PodSandboxConfig Pod;
typedef Runtime__V1__LinuxContainerSecurityContext Security;
typedef Runtime__V1__LinuxContainerResources Resources;

/* NULL where the client sent none. */
static inline const Security *security_of(const Container *c)
{
    return c->linux != NULL ? c->linux->security_context : NULL;
}

static inline const Resources *resources_of(const Container *c)
{
    return c->linux != NULL ? c->linux->resources : NULL;
}

static inline const Runtime__V1__NamespaceOption *namespaces_of(const Container *c)
{
    const Security *s = security_of(c);
    return s != NULL ? s->namespace_options : NULL;
}

/* --- spec_security.c --- */
int spec_check_security(const Container *c, const Pod *pod, struct err *err);
/* process.capabilities; NULL with *err. */
json_t *spec_capabilities(const Security *s, struct err *err);
/* All there are. */
json_t *spec_all_capabilities(void);
/* What the OCI runtime needs to know of the seccomp filter besides the filter itself. */
int spec_add_seccomp_flags(json_t *spec, const Container *c, struct err *err);
/* linux.maskedPaths, linux.readonlyPaths. */
json_t *spec_masked_paths(const Security *s);
json_t *spec_readonly_paths(const Security *s);

/* --- spec_guest.c --- */
int spec_check_devices(const Container *c, enum backend backend, struct err *err);
/* Environment that CDI devices bring. */
int spec_cdi_env(const Container *c, struct strv *env, struct err *err);

/* --- spec_mounts.c --- */
int spec_check_mounts(const Container *c, struct err *err);
/* mounts; volumes are spec_volumes(), filled in. */
json_t *spec_mounts(const Container *c, const struct machine_volume *volumes);

/* --- spec_resources.c --- */
int spec_check_limits(const Container *c, enum backend backend, struct err *err);
/* linux.resources; r may be NULL. */
json_t *spec_resources(const Resources *r);

#endif
