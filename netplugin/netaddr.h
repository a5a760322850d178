/*
 * netaddr - checks and normal forms of addresses, prefixes, MACs and interface names.
 *
 * Everything a plugin, netlink or a record says passes here before it is believed. All functions
 * return 0, or -1 when the text is not what they want (the output is then undefined). No memory is
 * owned. Threads: any.
 */
#ifndef ASPIS_NETPLUGIN_NETADDR_H
#define ASPIS_NETPLUGIN_NETADDR_H

#include <stdbool.h>
#include <stddef.h>

#define NETADDR_IP_LEN 46     /* INET6_ADDRSTRLEN */
#define NETADDR_CIDR_LEN 50   /* address, "/128", NUL */
#define NETADDR_MAC_LEN 18    /* aa:bb:cc:dd:ee:ff and NUL */
#define NETADDR_HWADDR_LEN 60 /* up to 20 bytes (InfiniBand) */

/* An IPv4 or IPv6 address without mask. family may be NULL. */
int netaddr_ip(const char *text, char out[NETADDR_IP_LEN], int *family);
/* "address/len". With mask_host the bits beyond len are cleared, as a route's destination needs. */
int netaddr_cidr(const char *text, bool mask_host, char out[NETADDR_CIDR_LEN], int *family);
/* From raw bytes of AF_INET (4) or AF_INET6 (16). */
int netaddr_format(int family, const void *bytes, unsigned prefix, char out[NETADDR_CIDR_LEN]);
/* Six bytes in lower-case hex, unicast and not all zero. */
int netaddr_mac(const char *text, char out[NETADDR_MAC_LEN]);
/* A hardware address of 6, 8 or 20 bytes, as a CNI result may carry one. */
int netaddr_hwaddr(const char *text, char out[NETADDR_HWADDR_LEN]);
/* 1 to 15 bytes, no '/', ':', blank or control character, not "." or ".." (the kernel's own rule
 * and CNI's). */
bool netaddr_ifname_ok(const char *name);
/* Unicast, and not the unspecified address: something a pod may have. */
bool netaddr_is_host(const char *ip);

#endif
