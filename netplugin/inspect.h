/*
 * inspect - reads what one link of the current namespace really has.
 *
 * The guest is given what the kernel says, not what the CNI result claims: addresses, routes with
 * MTU, scope and on-link gateways of every table, static neighbours. Left out is what a guest's
 * kernel makes by itself: link-local addresses and routes, local and multicast routes, and what
 * router advertisements taught. To be called on a thread inside the pod's namespace (nsthread.h).
 */
#ifndef ASPIS_NETPLUGIN_INSPECT_H
#define ASPIS_NETPLUGIN_INSPECT_H

#include "base/err.h"
#include "netplugin/netinfo.h"

/* *out must be {0}; it is the caller's to clear. Returns the link's index. Only links with an
 * Ethernet address can be a VM's NIC; others are an error. */
int inspect_link(const char *ifname, struct net_iface *out, struct err *err);

#endif
