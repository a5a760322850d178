/*
 * netinfo - the plain description of a pod's network: what CNI said and what the pod's netns really
 * holds.
 *
 * Pure data, shared with `sandbox` and `cri`. All strings are owned by the struct; netinfo_clear()
 * frees them. Everything in it has been parsed and normalised (addresses through inet_pton, MACs as
 * aa:bb:..).
 */
#ifndef ASPIS_NETPLUGIN_NETINFO_H
#define ASPIS_NETPLUGIN_NETINFO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct net_route {
    char *dst;     /* CIDR; "0.0.0.0/0" and "::/0" for defaults */
    char *gateway; /* NULL: direct */
    char *src;     /* NULL: none */
    uint32_t mtu, advmss, metric;
    uint32_t scope; /* RT_SCOPE_* */
    uint32_t table; /* 0 or RT_TABLE_MAIN: main */
    bool onlink;
};

struct net_neighbour {
    char *ip, *mac;
    uint32_t state; /* NUD_PERMANENT or NUD_NOARP only */
};

struct net_iface {
    char *name; /* in the netns and in the guest: "eth0" */
    char *mac;
    uint32_t mtu;
    char **addresses; /* CIDR, global and link scope but no kernel-made fe80:: */
    size_t n_addresses;
    struct net_route *routes;
    size_t n_routes;
    struct net_neighbour *neighbours;
    size_t n_neighbours;
};

struct netinfo {
    /* Pod addresses by the CNI result, preferred first, without mask. */
    char **ips;
    size_t n_ips;
    struct net_iface *ifaces; /* the CNI interface first */
    size_t n_ifaces;
};

void netinfo_clear(struct netinfo *n); /* leaves {0} */
#define auto_netinfo __attribute__((cleanup(netinfo_clear)))
void net_iface_clear(struct net_iface *f); /* leaves {0} */
/* Moves *iface into n->ifaces[0], replacing what was there; *iface becomes {0}. */
void netinfo_set_iface(struct netinfo *n, struct net_iface *iface);

/* JSON text for the daemon's records and back (bounded, validated). The text is the caller's.
 * Decoding replaces what *out holds, so it must be initialised ({0}); on failure it is left alone.
 */
char *netinfo_encode(const struct netinfo *n);
struct err;
int netinfo_decode(const char *text, struct netinfo *out, struct err *err);

#endif
