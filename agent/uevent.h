/*
 * uevent - the kernel's announcements of devices that come and go (netlink NETLINK_KOBJECT_UEVENT,
 * what udev listens to).
 *
 * Memory: the listener is the caller's; an event's strings point into the received message and live
 * until the callback returns. Threads: the loop's.
 */
#ifndef ASPIS_AGENT_UEVENT_H
#define ASPIS_AGENT_UEVENT_H

#include <stddef.h>

#include "base/err.h"
#include "base/loop.h"

struct uevent {
    const char *action;    /* "add", "change", "remove", ... */
    const char *devpath;   /* "/devices/pci0000:00/.../block/vdb", below /sys */
    const char *subsystem; /* "block", "net", "virtio-ports", "cpu", ... */
};

struct uevent_listener;

/* event NULL: messages were lost, so look at everything again. */
typedef void (*uevent_fn)(void *arg, const struct uevent *event);

struct uevent_listener *uevent_listen(struct loop *loop, uevent_fn fn, void *arg, struct err *err);
void uevent_listener_free(struct uevent_listener *l); /* NULL is fine */

/* Reads a kernel message: "add@/devices/...\0KEY=value\0...". buf[len - 1] need not be NUL. -1 when
 * it is none. */
int uevent_parse(char *buf, size_t len, struct uevent *out);

#endif
