/*
 * confine - the CPUs of the host that each container of a VM pod may use: its cpuset_cpus, kept
 * inside of the VM by the guest's cpuset controller and outside by pinning vCPUs (cpu_map.h has the
 * rule). The VM as a whole is kept to the union of all sets by its control group.
 *
 * Threads: any, one at a time for a sandbox: the caller holds its `fit` lock.
 */
#ifndef ASPIS_CRI_CONFINE_H
#define ASPIS_CRI_CONFINE_H

#include "base/cancel.h"
#include "base/err.h"
#include "cri/model.h"

/* vCPUs that the sets of all living containers ask for. */
int confine_need(struct sandbox *s, uint32_t *vcpus, struct err *err);
/* Once the VM has its size and cpuset: pins its vCPUs and confines each container that is in the
 * guest. */
int confine_apply(struct sandbox *s, struct machine *m, struct cancel *cancel, struct err *err);
/* A container is in the guest now, made without a cpuset. */
int confine_new(struct container *c, struct machine *m, struct cancel *cancel, struct err *err);

#endif
