#include "cri/dispatch.h"

#include "cri/service_admin.h"
#include "cri/service_image.h"
#include "cri/service_runtime.h"
#include "proto/admin.pb-c.h"
#include "proto/cri/v1/api.pb-c.h"

#define RUNTIME "runtime.v1.RuntimeService"
#define IMAGE "runtime.v1.ImageService"
#define ADMIN "aspis.v1.Admin"

#define QUIET true
#define LOUD false
#define CRI(svc, camel, snake, fn, quietly)                                                        \
    {                                                                                              \
        svc, #camel, &runtime__v1__##snake##_request__descriptor,                                  \
            &runtime__v1__##snake##_response__descriptor, fn, .quiet = (quietly)                   \
    }
#define CRI_STREAM(svc, camel, snake, fn)                                                          \
    {                                                                                              \
        svc, #camel, &runtime__v1__##snake##_request__descriptor,                                  \
            &runtime__v1__##snake##_response__descriptor, fn, .streaming = true                    \
    }

/* NULL: not implemented. */
static const struct method methods[] = {
    CRI(RUNTIME, Version, version, cri_version, QUIET),
    CRI(RUNTIME, RunPodSandbox, run_pod_sandbox, cri_run_pod_sandbox, LOUD),
    CRI(RUNTIME, StopPodSandbox, stop_pod_sandbox, cri_stop_pod_sandbox, LOUD),
    CRI(RUNTIME, RemovePodSandbox, remove_pod_sandbox, cri_remove_pod_sandbox, LOUD),
    CRI(RUNTIME, PodSandboxStatus, pod_sandbox_status, cri_pod_sandbox_status, QUIET),
    CRI(RUNTIME, ListPodSandbox, list_pod_sandbox, cri_list_pod_sandbox, QUIET),
    CRI_STREAM(RUNTIME, StreamPodSandboxes, stream_pod_sandboxes, cri_stream_pod_sandboxes),
    CRI(RUNTIME, CreateContainer, create_container, cri_create_container, LOUD),
    CRI(RUNTIME, StartContainer, start_container, cri_start_container, LOUD),
    CRI(RUNTIME, StopContainer, stop_container, cri_stop_container, LOUD),
    CRI(RUNTIME, RemoveContainer, remove_container, cri_remove_container, LOUD),
    CRI(RUNTIME, ListContainers, list_containers, cri_list_containers, QUIET),
    CRI_STREAM(RUNTIME, StreamContainers, stream_containers, cri_stream_containers),
    CRI(RUNTIME, ContainerStatus, container_status, cri_container_status, QUIET),
    CRI(RUNTIME, UpdateContainerResources, update_container_resources,
        cri_update_container_resources, LOUD),
    CRI(RUNTIME, ReopenContainerLog, reopen_container_log, cri_reopen_container_log, LOUD),
    CRI(RUNTIME, ExecSync, exec_sync, cri_exec_sync, QUIET),
    CRI(RUNTIME, Exec, exec, cri_exec, QUIET),
    CRI(RUNTIME, Attach, attach, cri_attach, QUIET),
    CRI(RUNTIME, PortForward, port_forward, cri_port_forward, QUIET),
    CRI(RUNTIME, ContainerStats, container_stats, cri_container_stats, QUIET),
    CRI(RUNTIME, ListContainerStats, list_container_stats, cri_list_container_stats, QUIET),
    CRI_STREAM(RUNTIME, StreamContainerStats, stream_container_stats, cri_stream_container_stats),
    CRI(RUNTIME, PodSandboxStats, pod_sandbox_stats, cri_pod_sandbox_stats, QUIET),
    CRI(RUNTIME, ListPodSandboxStats, list_pod_sandbox_stats, cri_list_pod_sandbox_stats, QUIET),
    CRI_STREAM(RUNTIME, StreamPodSandboxStats, stream_pod_sandbox_stats,
               cri_stream_pod_sandbox_stats),
    CRI(RUNTIME, UpdateRuntimeConfig, update_runtime_config, cri_update_runtime_config, LOUD),
    CRI(RUNTIME, Status, status, cri_status, QUIET),
    CRI(RUNTIME, CheckpointContainer, checkpoint_container, NULL, LOUD),
    CRI(RUNTIME, CheckpointPod, checkpoint_pod, cri_checkpoint_pod, LOUD),
    CRI(RUNTIME, RestorePod, restore_pod, cri_restore_pod, LOUD),
    {RUNTIME, "GetContainerEvents", &runtime__v1__get_events_request__descriptor,
     &runtime__v1__container_event_response__descriptor, cri_get_container_events,
     .streaming = true},
    CRI(RUNTIME, ListMetricDescriptors, list_metric_descriptors, cri_list_metric_descriptors,
        QUIET),
    CRI(RUNTIME, ListPodSandboxMetrics, list_pod_sandbox_metrics, cri_list_pod_sandbox_metrics,
        QUIET),
    CRI_STREAM(RUNTIME, StreamPodSandboxMetrics, stream_pod_sandbox_metrics,
               cri_stream_pod_sandbox_metrics),
    CRI(RUNTIME, RuntimeConfig, runtime_config, cri_runtime_config, QUIET),
    CRI(RUNTIME, UpdatePodSandboxResources, update_pod_sandbox_resources,
        cri_update_pod_sandbox_resources, LOUD),
    CRI(IMAGE, ListImages, list_images, cri_list_images, QUIET),
    CRI_STREAM(IMAGE, StreamImages, stream_images, cri_stream_images),
    CRI(IMAGE, ImageStatus, image_status, cri_image_status, QUIET),
    CRI(IMAGE, PullImage, pull_image, cri_pull_image, LOUD),
    CRI(IMAGE, RemoveImage, remove_image, cri_remove_image, LOUD),
    CRI(IMAGE, ImageFsInfo, image_fs_info, cri_image_fs_info, QUIET),

    {ADMIN, "ImportImage", &aspis__v1__import_image_request__descriptor,
     &aspis__v1__import_image_event__descriptor, admin_import_image, .streaming = true},
    {ADMIN, "PullImage", &aspis__v1__pull_image_request__descriptor,
     &aspis__v1__pull_image_event__descriptor, admin_pull_image, .streaming = true},
    {ADMIN, "WaitContainer", &aspis__v1__wait_container_request__descriptor,
     &aspis__v1__wait_container_response__descriptor, admin_wait_container, .quiet = true},
};

const struct method *dispatch_methods(size_t *n)
{
    *n = ARRAY_LEN(methods);
    return methods;
}
