/*
 * version - the CNI specification versions the runtime speaks.
 *
 * Source: CNI SPEC 1.1.0. No memory is owned. Threads: any.
 */
#ifndef ASPIS_NETPLUGIN_VERSION_H
#define ASPIS_NETPLUGIN_VERSION_H

#include <stdbool.h>

#define CNI_VERSION_OLDEST "0.1.0" /* what a missing cniVersion means */
#define CNI_VERSION_NEWEST "1.1.0"

/* The known version of that text (a static string), NULL when we do not speak it. */
const char *cni_version_known(const char *v);
/* Both must be known versions. */
bool cni_version_at_least(const char *v, const char *other);

#endif
