/*
 * spec_cdi - what CDI devices (cdi.h) add to a container's configuration and spec.
 *
 * Their mounts become mounts of the container like kubelet's, behind its own: the same checks, the
 * same ways into the guest. Threads: any; nothing is kept.
 */
#ifndef ASPIS_CRI_SPEC_CDI_H
#define ASPIS_CRI_SPEC_CDI_H

#include <jansson.h>

#include "base/err.h"
#include "cri/cdi.h"
#include "proto/cri/v1/api.pb-c.h"

/* Of all the container's devices. */
int spec_cdi_resolve(const Runtime__V1__ContainerConfig *c, struct cdi_edits *edits,
                     struct err *err);
/* The configuration with their mounts and groups; free with protobuf_c_message_free_unpacked(m,
 * NULL). */
Runtime__V1__ContainerConfig *spec_cdi_apply(const Runtime__V1__ContainerConfig *c,
                                             struct err *err);
/* The mounts' further options, into the mounts of a spec; and hooks. */
int spec_cdi_finish(const Runtime__V1__ContainerConfig *c, json_t *spec, struct err *err);

#endif
