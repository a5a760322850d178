/*
 * spec_devices - devices of the guest in a container's OCI spec.
 *
 * The daemon says which; what they are (numbers, mode) only this kernel knows. No state.
 */
#ifndef ASPIS_AGENT_SPEC_DEVICES_H
#define ASPIS_AGENT_SPEC_DEVICES_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "proto/agent.pb-c.h"

/* Adds to linux.devices and allows in linux.resources.devices. NOT_FOUND names a device that this
 * kernel does not have. */
int spec_add_device(json_t *linux_object, const Aspis__Agent__V1__Device *d, struct err *err);
/* Every device below dir ("/dev") but terminals and the link's ports, which stay allowed or not as
 * the spec says. */
int spec_add_all_devices(json_t *linux_object, const char *dir, struct err *err);

#endif
