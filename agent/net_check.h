/*
 * net_check - the network part of ConfigurePod as text: MACs, addresses, names; what can be refused
 * without looking at the machine. No state; any thread.
 */
#ifndef ASPIS_AGENT_NET_CHECK_H
#define ASPIS_AGENT_NET_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "proto/agent.pb-c.h"

#define NET_MAC_SIZE 6

/* "aa:bb:cc:dd:ee:ff"; -1 for anything else. */
int net_parse_mac(const char *text, uint8_t mac[NET_MAC_SIZE]);

/* An IPv4 or IPv6 address with an optional prefix length. */
struct net_addr {
    int family;        /* AF_INET, AF_INET6 */
    uint8_t bytes[16]; /* network order */
    unsigned size;     /* 4, 16 */
    unsigned prefix;   /* the whole address when none was given */
};
/* need_prefix: "10.0.0.2/24"; else "10.0.0.2" without one. */
int net_parse_addr(const char *text, bool need_prefix, struct net_addr *out);

/* Everything about the request's network that can be known without looking at the machine. */
int net_check(const Aspis__Agent__V1__ConfigurePodRequest *req, struct err *err);

#endif
