/*
 * result - what a CNI ADD answered, in any version of the format.
 *
 * A result is parsed into one struct whatever its version (0.1 to 1.1), checked on the way, and can
 * be written again in any version, dropping what the version has no word for. Chains hand results
 * from plugin to plugin as the plugin wrote them; conversion is for a cached result that meets a
 * list of another version.
 *
 * Memory: the struct owns everything in it; starts as {0}. Threads: one at a time.
 */
#ifndef ASPIS_NETPLUGIN_RESULT_H
#define ASPIS_NETPLUGIN_RESULT_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "netplugin/netinfo.h"

struct cni_result_iface {
    char *name, *mac, *sandbox, *socket_path, *pci_id; /* NULL: not said */
    uint32_t mtu;
};

struct cni_result_ip {
    char *address; /* CIDR */
    char *gateway; /* or NULL */
    int iface;     /* index into ifaces, -1: not said */
};

struct cni_result_route {
    char *dst; /* CIDR */
    char *gateway;
    int64_t mtu, advmss, priority, table, scope; /* -1: not said */
};

struct cni_result {
    struct cni_result_iface *ifaces;
    size_t n_ifaces;
    struct cni_result_ip *ips;
    size_t n_ips;
    struct cni_result_route *routes;
    size_t n_routes;
    json_t *dns; /* as the plugin wrote it, or NULL */
};

void cni_result_clear(struct cni_result *r);
#define auto_cni_result __attribute__((cleanup(cni_result_clear)))

/* `version` is the list's, for results that do not name theirs. *out must be {0}. */
int cni_result_parse(const json_t *o, const char *version, struct cni_result *out, struct err *err);
/* The tree is the caller's. `version` must be a known one. */
json_t *cni_result_encode(const struct cni_result *r, const char *version);
/* The result as `version` words it: a deep copy when it already is of that version. NULL with *err.
 */
json_t *cni_result_convert(const json_t *o, const char *version, struct err *err);

/* The pod's addresses without mask: those of `ifname` inside a sandbox and those of no named
 * interface, IPv4 before IPv6, else in the result's order. Replaces out->ips. */
void cni_result_pod_ips(const struct cni_result *r, const char *ifname, struct netinfo *out);

#endif
