/*
 * attachment - what a pod brings to its network, in CNI's words: CNI_ARGS and capability arguments.
 *
 * Source: the CNI conventions and what containerd sends, which plugins in the field rely on.
 * Memory: results are the caller's. Threads: any.
 */
#ifndef ASPIS_NETPLUGIN_ATTACHMENT_H
#define ASPIS_NETPLUGIN_ATTACHMENT_H

#include <jansson.h>

#include "base/err.h"
#include "netplugin/cni.h"

/* Checks ids, names and paths; netns may only be empty with netns_optional. */
int attachment_check(const struct cni_attachment *a, bool netns_optional, struct err *err);
/* "IgnoreUnknown=1;K8S_POD_NAMESPACE=...;..."; attachment_check() passed. */
char *attachment_args(const struct cni_attachment *a);
/* All capability arguments there is a value for, as an object. NULL with *err. */
json_t *attachment_caps(const struct cni_attachment *a, struct err *err);

#endif
