/*
 * resources - limits of containers and pods that run: UpdateContainerResources and
 * UpdatePodSandboxResources.
 *
 * Three things follow a container's limits: its control group in the guest (set and read back by
 * the agent), the size of the VM (grown to what the pod's containers may use together), and the
 * host's CPUs (confine.h), by the pod's control group there and by pinning. What was applied is
 * recorded in the container's and sandbox's configuration, so a restarted daemon knows it too.
 *
 * Threads: any. The setters take the object's operation lock.
 */
#ifndef ASPIS_CRI_RESOURCES_H
#define ASPIS_CRI_RESOURCES_H

#include "base/cancel.h"
#include "base/err.h"
#include "base/str.h"
#include "cri/model.h"

/* What is not 0 or empty changes; `unified` keys are added to those before. A container that has
 * ended only has it recorded. */
int container_update_resources(struct container *c, const Runtime__V1__LinuxContainerResources *r,
                               struct cancel *cancel, struct err *err);
/* Either may be NULL. */
int sandbox_update_resources(struct sandbox *s,
                             const Runtime__V1__LinuxContainerResources *overhead,
                             const Runtime__V1__LinuxContainerResources *resources,
                             struct cancel *cancel, struct err *err);

/* Writes limits of a container (files of cgroup v2) in the guest, all or none, and looks what they
 * have become. oom_score_adj: the new one of its processes too, unless NULL. */
int resources_set_limits(struct machine *m, const char *id, const struct strv *keys,
                         const struct strv *values, const int64_t *oom_score_adj,
                         struct cancel *cancel, struct err *err);
/* Thousandths of a CPU of the quota; 0: none. */
uint64_t resources_cpu_milli(const Runtime__V1__LinuxContainerResources *r);

/* Before a container is made: the VM and the pod's cpuset as this and the others need them. */
int resources_fit(struct sandbox *s, struct machine *m, struct cancel *cancel, struct err *err);
/* It is in the guest now: its cpuset, before it runs. */
int resources_created(struct container *c, struct machine *m, struct cancel *cancel,
                      struct err *err);
/* Once it is gone from the guest, or was never made: what the VM reserved for it alone. */
void resources_give_back(struct container *c, struct cancel *cancel);

/* What a container has now; NULL: nothing was ever asked for. Under rt->lock. */
static inline const Runtime__V1__LinuxContainerResources *
container_resources(const struct container *c)
{
    if (c->resources != NULL)
        return c->resources;
    return c->config->linux != NULL ? c->config->linux->resources : NULL;
}
/* The pod's needs as machine_spec says them. Takes rt->lock. */
void resources_of_pod(struct sandbox *s, struct machine_spec *spec);

#endif
