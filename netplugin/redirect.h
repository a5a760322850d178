/*
 * redirect - joins two links of one namespace like a wire: what arrives at one leaves by the other.
 *
 * An ingress qdisc on each and a filter that matches everything and redirects (mirred). u32 is used
 * because more kernels have it than matchall, which is the fallback. A plugin's own qdisc and
 * filters on the links stay, and see packets first. To be called on a thread inside the pod's
 * namespace (nsthread.h).
 */
#ifndef ASPIS_NETPLUGIN_REDIRECT_H
#define ASPIS_NETPLUGIN_REDIRECT_H

#include "base/err.h"

/* Repeatable; an earlier redirect of either link, perhaps to an index that is gone, is replaced. */
int redirect_join(int ifindex_a, int ifindex_b, struct err *err);

#endif
