/* UpdateContainerResources, UpdatePodSandboxResources. */
#include "cri/daemon.h"
#include "cri/resources.h"
#include "cri/service_runtime.h"

static struct runtime *runtime_of(const struct call *call)
{
    return ((const struct daemon *)call->daemon)->runtime;
}

int cri_update_container_resources(struct call *call, const ProtobufCMessage *message,
                                   ProtobufCMessage **reply, struct err *err)
{
    const Runtime__V1__UpdateContainerResourcesRequest *req =
        (const Runtime__V1__UpdateContainerResourcesRequest *)message;
    *reply = call_message(call, &runtime__v1__update_container_resources_response__descriptor, err);
    auto_container struct container *c =
        *reply != NULL ? model_find_container(runtime_of(call), req->container_id, err) : NULL;
    if (c == NULL)
        return -1;
    if (req->linux == NULL)
        return err_set(err, ERR_INVALID, "linux is missing");
    return container_update_resources(c, req->linux, call->cancel, err);
}

int cri_update_pod_sandbox_resources(struct call *call, const ProtobufCMessage *message,
                                     ProtobufCMessage **reply, struct err *err)
{
    const Runtime__V1__UpdatePodSandboxResourcesRequest *req =
        (const Runtime__V1__UpdatePodSandboxResourcesRequest *)message;
    *reply =
        call_message(call, &runtime__v1__update_pod_sandbox_resources_response__descriptor, err);
    auto_sandbox struct sandbox *s =
        *reply != NULL ? model_find_sandbox(runtime_of(call), req->pod_sandbox_id, err) : NULL;
    if (s == NULL)
        return -1;
    return sandbox_update_resources(s, req->overhead, req->resources, call->cancel, err);
}
