/* CheckpointPod, RestorePod. */
#include <string.h>

#include "base/limits.h"
#include "base/str.h"
#include "cri/checkpoint.h"
#include "cri/daemon.h"
#include "cri/service_runtime.h"

static struct runtime *runtime_of(const struct call *call)
{
    return ((const struct daemon *)call->daemon)->runtime;
}

static int bad_option(const char *key, struct err *err)
{
    return err_set(err, ERR_INVALID, "options: \"%.64s\" is not known", key);
}

int cri_checkpoint_pod(struct call *call, const ProtobufCMessage *message, ProtobufCMessage **reply,
                       struct err *err)
{
    const Runtime__V1__CheckpointPodRequest *req =
        (const Runtime__V1__CheckpointPodRequest *)message;
    struct checkpoint_options o = {.path = req->output_path,
                                   .containers = req->container_ids,
                                   .n_containers = req->n_container_ids,
                                   .leave_running = true};
    *reply = call_message(call, &runtime__v1__checkpoint_pod_response__descriptor, err);
    if (*reply == NULL)
        return -1;
    if (str_empty(o.path))
        return err_set(err, ERR_INVALID, "output_path is empty");
    for (size_t i = 0; i < req->n_options; i++) {
        const char *value = req->options[i]->value;
        bool yes = strcmp(value, "true") == 0;
        if (strcmp(req->options[i]->key, "leave-running") != 0)
            return bad_option(req->options[i]->key, err);
        if (!yes && strcmp(value, "false") != 0)
            return err_set(err, ERR_INVALID, "options: leave-running is true or false");
        o.leave_running = yes;
    }
    auto_sandbox struct sandbox *s = model_find_sandbox(runtime_of(call), req->pod_sandbox_id, err);
    return s == NULL ? -1 : sandbox_checkpoint(s, &o, call->cancel, err);
}

static int put_containers(struct call *call, struct sandbox *s, Runtime__V1__RestorePodResponse *r,
                          struct err *err)
{
    size_t n = 0;
    struct container **list = model_containers_of(s, &n);
    int rc = 0;
    r->restored_containers = arena_alloc(call->arena, (n + 1) * sizeof(void *));
    for (size_t i = 0; i < n; i++) {
        Runtime__V1__RestoredContainer *c =
            rc == 0 && r->restored_containers != NULL
                ? (Runtime__V1__RestoredContainer *)call_message(
                      call, &runtime__v1__restored_container__descriptor, err)
                : NULL;
        if (c == NULL ||
            (c->name = call_string(call, list[i]->config->metadata->name, err)) == NULL ||
            (c->container_id = call_string(call, list[i]->rec.id, err)) == NULL)
            rc = -1;
        else
            r->restored_containers[r->n_restored_containers++] = c;
        container_unref(list[i]);
    }
    free(list);
    return rc;
}

int cri_restore_pod(struct call *call, const ProtobufCMessage *message, ProtobufCMessage **reply,
                    struct err *err)
{
    const Runtime__V1__RestorePodRequest *req = (const Runtime__V1__RestorePodRequest *)message;
    struct restore_options o = {.path = req->checkpoint_path,
                                .pod = req->config,
                                .handler = req->runtime_handler,
                                .containers = req->container_configs,
                                .n_containers = req->n_container_configs};
    Runtime__V1__RestorePodResponse *r =
        call_message(call, &runtime__v1__restore_pod_response__descriptor, err);
    if (r == NULL || cri_check_handler(req->runtime_handler, err) < 0)
        return -1;
    if (str_empty(o.path))
        return err_set(err, ERR_INVALID, "checkpoint_path is empty");
    if (req->n_options > 0)
        return bad_option(req->options[0]->key, err);
    if (req->config != NULL && cri_check_sandbox_config(req->config, err) < 0)
        return -1;
    for (size_t i = 0; i < req->n_container_configs; i++) {
        if (cri_check_container_config(req->container_configs[i], err) < 0)
            return err_wrap(err, "container_configs[%zu]", i);
    }
    auto_sandbox struct sandbox *s = sandbox_restore(runtime_of(call), &o, call->cancel, err);
    if (s == NULL)
        return -1;
    r->pod_sandbox_id = call_string(call, s->rec.id, err);
    *reply = &r->base;
    return r->pod_sandbox_id == NULL ? -1 : put_containers(call, s, r, err);
}
