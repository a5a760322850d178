/*
 * tap - the tap device that QEMU gets, and the few link settings made by ioctl.
 *
 * To be called on a thread inside the pod's namespace (nsthread.h). A tap lives as long as a
 * descriptor of it is open; nothing here makes it persistent.
 */
#ifndef ASPIS_NETPLUGIN_TAP_H
#define ASPIS_NETPLUGIN_TAP_H

#include <stdint.h>

#include "base/err.h"

/* Makes tap `name` with virtio-net headers, one queue, and the given MTU, up, and without IPv6 of
 * its own. A tap of that name that is there is deleted first; another kind of link is an error.
 * Returns the descriptor (close-on-exec, non-blocking). */
int tap_create(const char *name, uint32_t mtu, struct err *err);

int tap_set_mtu(const char *name, uint32_t mtu, struct err *err);

/* Brings a link up. */
int tap_link_up(const char *name, struct err *err);

#endif
