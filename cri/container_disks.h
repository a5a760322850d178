/*
 * container_disks - block devices of the host that a container is given (Container.devices whose
 * path is one: kubelet's volumeDevices): plugged into the pod's VM as disks of their own.
 *
 * A disk's serial follows from container and index, so that any later daemon can unplug it. The
 * host's size is the guest's from the start; one that grows later does so in new containers only.
 * Threads: any that may block.
 */
#ifndef ASPIS_CRI_CONTAINER_DISKS_H
#define ASPIS_CRI_CONTAINER_DISKS_H

#include "cri/model.h"

/* Plugs in all of c's. */
int container_disks_attach(struct container *c, struct machine *m, struct cancel *cancel,
                           struct err *err);
/* The guest has let go of c. What cannot be unplugged stays until the pod ends. */
void container_disks_detach(struct container *c, struct cancel *cancel);

#endif
