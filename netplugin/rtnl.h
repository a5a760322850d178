/*
 * rtnl - what this folder's users of libnl share: a socket, errors, cleanup, and bounded dumps.
 *
 * To be called on a thread inside the pod's namespace (nsthread.h): a socket belongs to the
 * namespace it was opened in.
 */
#ifndef ASPIS_NETPLUGIN_RTNL_H
#define ASPIS_NETPLUGIN_RTNL_H

#include <netlink/netlink.h>
#include <netlink/object.h>
#include <netlink/route/link.h>

#include "base/cleanup.h"
#include "base/err.h"

/* A NETLINK_ROUTE socket, the caller's; NULL with *err. */
struct nl_sock *rtnl_open(struct err *err);
/* A libnl error number (negative) as an error: "<text>: <libnl's words>". Returns -1. */
int rtnl_err(struct err *err, int nle, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Dumps all objects of a message type (RTM_GETADDR, ...) and family, and shows each to fn. At most
 * LIMIT_NETLINK_OBJECTS, else EXHAUSTED. fn returns negative, with *err set, to stop. A dump that
 * the kernel calls inconsistent is begun again: `begin` is called at each beginning. */
struct rtnl_dump {
    void (*begin)(void *arg);
    int (*fn)(struct nl_object *obj, void *arg, struct err *err);
    void *arg;
};
int rtnl_dump(struct nl_sock *sk, int type, int family, const struct rtnl_dump *d, struct err *err);

DEFINE_AUTO(struct nl_sock *, nl_socket_free);
#define auto_nl_sock __attribute__((cleanup(nl_socket_freep)))
DEFINE_AUTO(struct rtnl_link *, rtnl_link_put);
#define auto_rtnl_link __attribute__((cleanup(rtnl_link_putp)))

#endif
