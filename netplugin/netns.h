/*
 * netns - a pod's network namespace, and the tap in it that QEMU gets.
 *
 * The namespace is pinned as /run/netns/<name>. The tap is joined to the CNI interface by tc
 * ingress mirred redirects both ways (libnl, u32 match-all where the kernel lacks matchall); the
 * CNI interface keeps its address and MAC, so that CNI DEL and CHECK find what they made.
 *
 * Threads: any; work inside a namespace is done on a short-lived thread of its own, so the caller's
 * namespace never changes. All calls may be repeated.
 */
#ifndef ASPIS_NETPLUGIN_NETNS_H
#define ASPIS_NETPLUGIN_NETNS_H

#include "base/err.h"
#include "netplugin/netinfo.h"

/* Makes and pins a new namespace with lo up; *path is the caller's. name: "cni-<random>". */
int netns_create(const char *name, char **path, struct err *err);
/* The same, but the namespace belongs to the user namespace `userns` (base/idmap.h), whose root
 * then has power over it. */
int netns_create_in(const char *name, int userns, char **path, struct err *err);
/* Unpins; missing is fine, also a leftover plain file. */
int netns_remove(const char *path, struct err *err);

/* In namespace `path`: makes tap `tap_name` (vnet_hdr, MTU and queue as `ifname`'s), up, redirected
 * both ways to `ifname`; reads what `ifname` really has (MAC, MTU, addresses, routes, static
 * neighbours) into out->ifaces[0]. Returns the tap's fd (close-on-exec, non-blocking). A tap of
 * that name left by an earlier try is replaced. */
int netns_attach_tap(const char *path, const char *ifname, const char *tap_name,
                     struct netinfo *out, struct err *err);

/* The same in two steps, so that a VM can start while the plugins still run: makes the tap, which
 * leads nowhere yet, in a namespace that need not have `ifname` ... */
int netns_make_tap(const char *path, const char *tap_name, struct err *err);
/* ... and joins it to `ifname`, with the MTU of that. */
int netns_join_tap(const char *path, const char *ifname, const char *tap_name, struct netinfo *out,
                   struct err *err);

#endif
