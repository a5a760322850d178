/*
 * service_runtime - the handlers of CRI's RuntimeService: translation between messages and
 * operations.
 *
 * Handlers (cri/call.h); call->daemon is a struct daemon. They validate what the client sent, call
 * sandbox_ops.h and container_ops.h, and build replies in the call's arena. Lists and statuses take
 * the runtime's lock for moments only.
 */
#ifndef ASPIS_CRI_SERVICE_RUNTIME_H
#define ASPIS_CRI_SERVICE_RUNTIME_H

#include "cri/call.h"
#include "proto/cri/v1/api.pb-c.h"

/* Items in one message of a streamed list. */
#define CRI_STREAM_BATCH 64

#define DECLARE_HANDLER(name)                                                                      \
    int name(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,             \
             struct err *err)

/* INVALID when there is no such runtime handler ("" is the default one). service_sandbox.c */
int cri_check_handler(const char *handler, struct err *err);
/* INVALID: no pod can be made of it. service_sandbox.c */
int cri_check_sandbox_config(const Runtime__V1__PodSandboxConfig *c, struct err *err);
/* The same of a container's. service_container.c */
int cri_check_container_config(const Runtime__V1__ContainerConfig *c, struct err *err);

/* For others who show sandboxes; the runtime's lock is held, results live in the call's arena.
 * service_sandbox.c */
struct sandbox;
struct container;
Runtime__V1__PodSandboxState cri_sandbox_state(const struct sandbox *s);
Runtime__V1__PodSandboxStatus *cri_sandbox_status(struct call *call, const struct sandbox *s,
                                                  struct err *err);
/* Of all containers but those still being made; *n of them. */
Runtime__V1__ContainerStatus **cri_container_statuses(struct call *call, struct sandbox *s,
                                                      size_t *n, struct err *err);

/* service_status.c */
DECLARE_HANDLER(cri_version);
DECLARE_HANDLER(cri_status);
DECLARE_HANDLER(cri_runtime_config);
DECLARE_HANDLER(cri_update_runtime_config);
/* service_sandbox.c */
DECLARE_HANDLER(cri_run_pod_sandbox);
DECLARE_HANDLER(cri_stop_pod_sandbox);
DECLARE_HANDLER(cri_remove_pod_sandbox);
DECLARE_HANDLER(cri_pod_sandbox_status);
DECLARE_HANDLER(cri_list_pod_sandbox);
DECLARE_HANDLER(cri_stream_pod_sandboxes);
/* service_checkpoint.c */
DECLARE_HANDLER(cri_checkpoint_pod);
DECLARE_HANDLER(cri_restore_pod);
/* service_resources.c */
DECLARE_HANDLER(cri_update_container_resources);
DECLARE_HANDLER(cri_update_pod_sandbox_resources);
/* service_container.c */
DECLARE_HANDLER(cri_create_container);
DECLARE_HANDLER(cri_start_container);
DECLARE_HANDLER(cri_stop_container);
DECLARE_HANDLER(cri_remove_container);
DECLARE_HANDLER(cri_container_status);
DECLARE_HANDLER(cri_list_containers);
DECLARE_HANDLER(cri_stream_containers);
DECLARE_HANDLER(cri_reopen_container_log);
DECLARE_HANDLER(cri_exec_sync);
/* service_streaming.c */
DECLARE_HANDLER(cri_exec);
DECLARE_HANDLER(cri_attach);
DECLARE_HANDLER(cri_port_forward);
/* service_stats.c */
DECLARE_HANDLER(cri_container_stats);
DECLARE_HANDLER(cri_list_container_stats);
DECLARE_HANDLER(cri_stream_container_stats);
DECLARE_HANDLER(cri_pod_sandbox_stats);
DECLARE_HANDLER(cri_list_pod_sandbox_stats);
DECLARE_HANDLER(cri_stream_pod_sandbox_stats);
/* metrics.c */
DECLARE_HANDLER(cri_list_metric_descriptors);
DECLARE_HANDLER(cri_list_pod_sandbox_metrics);
DECLARE_HANDLER(cri_stream_pod_sandbox_metrics);
/* events.c */
DECLARE_HANDLER(cri_get_container_events);

#endif
