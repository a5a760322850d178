/*
 * userns - user namespaces of pods, as CRI asks for them. Threads: any; no state.
 */
#ifndef ASPIS_CRI_USERNS_H
#define ASPIS_CRI_USERNS_H

#include <stdbool.h>

#include "base/err.h"
#include "proto/cri/v1/api.pb-c.h"

/* Whether a namespace of its own is asked for; n may be NULL. */
bool userns_wanted(const Runtime__V1__NamespaceOption *n);
/* Kubernetes' rules: modes POD and NODE only, one mapping each, from id 0 on. */
int userns_check_options(const Runtime__V1__NamespaceOption *n, struct err *err);
/* A container's namespace is its pod's. */
int userns_check_same(const Runtime__V1__NamespaceOption *pod,
                      const Runtime__V1__NamespaceOption *container, struct err *err);

#endif
