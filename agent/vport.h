/*
 * vport - virtio-serial ports of the guest by name.
 *
 * Their numbers move with the order of devices, so a port is looked up in sysfs each time. The name
 * appears there a moment after the device node, and the node can refuse to open (ENXIO) a moment
 * longer.
 */
#ifndef ASPIS_AGENT_VPORT_H
#define ASPIS_AGENT_VPORT_H

#include "base/err.h"

/* Opens the port called `name` read-write and non-blocking. sysfs: "/sys/class/virtio-ports", dev:
 * "/dev". Returns the descriptor; -1 with NOT_FOUND when there is no such port (yet), UNAVAILABLE
 * when it is there but cannot be opened now. */
int vport_open(const char *sysfs, const char *dev, const char *name, struct err *err);

#endif
