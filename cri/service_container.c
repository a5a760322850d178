#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/str.h"
#include "cri/container_images.h"
#include "cri/container_ops.h"
#include "cri/convert.h"
#include "cri/daemon.h"
#include "cri/inspect.h"
#include "cri/service_runtime.h"
#include "cri/spec.h"

static struct runtime *runtime_of(const struct call *call)
{
    return ((const struct daemon *)call->daemon)->runtime;
}

int cri_check_container_config(const Runtime__V1__ContainerConfig *c, struct err *err)
{
    if (c == NULL)
        return err_set(err, ERR_INVALID, "config is missing");
    if (c->metadata == NULL)
        return err_set(err, ERR_INVALID, "config.metadata is missing");
    if (str_empty(c->metadata->name))
        return err_set(err, ERR_INVALID, "config.metadata.name is empty");
    if (strlen(c->metadata->name) > LIMIT_NAME)
        return err_set(err, ERR_INVALID, "config.metadata.name is longer than %d bytes",
                       LIMIT_NAME);
    if (c->image == NULL || str_empty(c->image->image))
        return err_set(err, ERR_INVALID, "config.image.image is empty");
    return 0;
}

static int create_container(struct call *call, const ProtobufCMessage *message,
                            ProtobufCMessage **reply, struct err *err)
{
    const Runtime__V1__CreateContainerRequest *req =
        (const Runtime__V1__CreateContainerRequest *)message;
    Runtime__V1__CreateContainerResponse *r =
        call_message(call, &runtime__v1__create_container_response__descriptor, err);
    if (r == NULL || cri_check_container_config(req->config, err) < 0)
        return -1;
    auto_sandbox struct sandbox *s = model_find_sandbox(runtime_of(call), req->pod_sandbox_id, err);
    if (s == NULL)
        return -1;
    if (backend_check_container(s->backend.backend, req->config, s->config, err) < 0 ||
        spec_check_container(req->config, s->config, s->backend.backend, err) < 0)
        return err_wrap(err, "create container %.64s", req->config->metadata->name);
    auto_container struct container *c = container_create(s, req->config, call->cancel, err);
    if (c == NULL)
        return -1;
    r->container_id = call_string(call, c->rec.id, err);
    *reply = &r->base;
    return r->container_id == NULL ? -1 : 0;
}

int cri_create_container(struct call *call, const ProtobufCMessage *message,
                         ProtobufCMessage **reply, struct err *err)
{
    return create_container(call, message, reply, err) < 0 ? container_images_mark_error(err) : 0;
}

int cri_start_container(struct call *call, const ProtobufCMessage *message,
                        ProtobufCMessage **reply, struct err *err)
{
    const Runtime__V1__StartContainerRequest *req =
        (const Runtime__V1__StartContainerRequest *)message;
    *reply = call_message(call, &runtime__v1__start_container_response__descriptor, err);
    auto_container struct container *c =
        model_find_container(runtime_of(call), req->container_id, err);
    if (*reply == NULL || c == NULL)
        return -1;
    return container_start(c, call->cancel, err);
}

/* Stop and remove of what is not there are successes (critest's idempotence specs). */
static struct container *find_or_gone(struct call *call, const char *id, struct err *err)
{
    struct container *c = model_find_container(runtime_of(call), id, err);
    if (c == NULL && err->code == ERR_NOT_FOUND)
        err_clear(err);
    return c;
}

int cri_stop_container(struct call *call, const ProtobufCMessage *message, ProtobufCMessage **reply,
                       struct err *err)
{
    const Runtime__V1__StopContainerRequest *req =
        (const Runtime__V1__StopContainerRequest *)message;
    *reply = call_message(call, &runtime__v1__stop_container_response__descriptor, err);
    auto_container struct container *c = find_or_gone(call, req->container_id, err);
    if (err->code != ERR_OK)
        return -1;
    return c == NULL ? 0 : container_stop(c, req->timeout, call->cancel, err);
}

int cri_remove_container(struct call *call, const ProtobufCMessage *message,
                         ProtobufCMessage **reply, struct err *err)
{
    const Runtime__V1__RemoveContainerRequest *req =
        (const Runtime__V1__RemoveContainerRequest *)message;
    *reply = call_message(call, &runtime__v1__remove_container_response__descriptor, err);
    auto_container struct container *c = find_or_gone(call, req->container_id, err);
    if (err->code != ERR_OK)
        return -1;
    return c == NULL ? 0 : container_remove(c, call->cancel, err);
}

int cri_reopen_container_log(struct call *call, const ProtobufCMessage *message,
                             ProtobufCMessage **reply, struct err *err)
{
    const Runtime__V1__ReopenContainerLogRequest *req =
        (const Runtime__V1__ReopenContainerLogRequest *)message;
    *reply = call_message(call, &runtime__v1__reopen_container_log_response__descriptor, err);
    auto_container struct container *c =
        model_find_container(runtime_of(call), req->container_id, err);
    if (*reply == NULL || c == NULL)
        return -1;
    return container_reopen_log(c, call->cancel, err);
}

int cri_exec_sync(struct call *call, const ProtobufCMessage *message, ProtobufCMessage **reply,
                  struct err *err)
{
    const Runtime__V1__ExecSyncRequest *req = (const Runtime__V1__ExecSyncRequest *)message;
    Runtime__V1__ExecSyncResponse *r =
        call_message(call, &runtime__v1__exec_sync_response__descriptor, err);
    auto_container struct container *c =
        model_find_container(runtime_of(call), req->container_id, err);
    if (r == NULL || c == NULL)
        return -1;
    /* both together fit into one reply */
    auto_buf struct buf out = BUF_INIT(LIMIT_EXEC_SYNC_OUTPUT / 2);
    auto_buf struct buf errout = BUF_INIT(LIMIT_EXEC_SYNC_OUTPUT / 2);
    if (container_exec_sync(c, req->cmd, req->n_cmd, req->timeout, &out, &errout, &r->exit_code,
                            call->cancel, err) < 0)
        return -1;
    r->stdout.len = out.len;
    r->stdout.data = arena_memdup(call->arena, buf_str(&out), out.len);
    r->stderr.len = errout.len;
    r->stderr.data = arena_memdup(call->arena, buf_str(&errout), errout.len);
    if (r->stdout.data == NULL || r->stderr.data == NULL)
        return err_set(err, ERR_EXHAUSTED, "exec output does not fit into the call's memory");
    *reply = &r->base;
    return 0;
}

/* --- status and list --- */

/* The image's tag as people know it; kubelet hands CreateContainer an image id. */
static int name_image(struct call *call, Runtime__V1__ContainerStatus *s, struct err *err)
{
    const struct daemon *d = call->daemon;
    if (!str_starts(s->image->image, "sha256:"))
        return 0;
    auto_image struct image *image = image_find(d->images, s->image_id, NULL);
    if (image != NULL && image->repo_tags.n > 0)
        s->image->image = call_string(call, image->repo_tags.v[0], err);
    return s->image->image == NULL ? -1 : 0;
}

static int add_info(struct call *call, struct container *c, Runtime__V1__ContainerStatusResponse *r,
                    struct err *err)
{
    auto_free char *text = inspect_container(c);
    const char *pairs[] = {"info", text != NULL ? text : "{}"};
    r->n_info = 1;
    r->info = convert_pairs(call, pairs, 1,
                            &runtime__v1__container_status_response__info_entry__descriptor, err);
    return r->info == NULL ? -1 : 0;
}

int cri_container_status(struct call *call, const ProtobufCMessage *message,
                         ProtobufCMessage **reply, struct err *err)
{
    const Runtime__V1__ContainerStatusRequest *req =
        (const Runtime__V1__ContainerStatusRequest *)message;
    struct runtime *rt = runtime_of(call);
    Runtime__V1__ContainerStatusResponse *r =
        call_message(call, &runtime__v1__container_status_response__descriptor, err);
    auto_container struct container *c = model_find_container(rt, req->container_id, err);
    if (r == NULL || c == NULL)
        return -1;
    (void)pthread_mutex_lock(&rt->lock);
    r->status = convert_container_status(call, c, err);
    int rc = r->status == NULL ? -1 : 0;
    (void)pthread_mutex_unlock(&rt->lock);
    if (rc == 0 && req->verbose)
        rc = add_info(call, c, r, err);
    *reply = &r->base;
    return rc < 0 ? -1 : name_image(call, r->status, err);
}

static bool wanted(const struct container *c, Runtime__V1__ContainerState state,
                   const Runtime__V1__ContainerFilter *f)
{
    if (c->rec.phase == CONTAINER_CREATING)
        return false;
    if (f == NULL)
        return true;
    if (!str_empty(f->id) && !str_starts(c->rec.id, f->id))
        return false;
    if (!str_empty(f->pod_sandbox_id) && !str_starts(c->rec.sandbox_id, f->pod_sandbox_id))
        return false;
    if (f->state != NULL && f->state->state != state)
        return false;
    return convert_selector_matches(c->config->labels, c->config->n_labels, f->label_selector,
                                    f->n_label_selector);
}

static Runtime__V1__Container *item_of(struct call *call, const struct container *c,
                                       Runtime__V1__ContainerState state, struct err *err)
{
    Runtime__V1__Container *i = call_message(call, &runtime__v1__container__descriptor, err);
    if (i == NULL)
        return NULL;
    const Runtime__V1__ContainerConfig *config = c->config;
    i->id = call_string(call, c->rec.id, err);
    i->pod_sandbox_id = call_string(call, c->rec.sandbox_id, err);
    i->metadata = convert_copy(call, &config->metadata->base, err);
    i->image = convert_copy(call, &config->image->base, err);
    i->image_ref = call_string(call, c->rec.image_ref, err);
    i->image_id = call_string(call, c->rec.image_id, err);
    i->state = state;
    i->created_at = c->rec.created_at;
    i->n_labels = config->n_labels;
    i->labels = convert_map(call, config->labels, config->n_labels,
                            &runtime__v1__container__labels_entry__descriptor, err);
    i->n_annotations = config->n_annotations;
    i->annotations = convert_map(call, config->annotations, config->n_annotations,
                                 &runtime__v1__container__annotations_entry__descriptor, err);
    return err->code == ERR_OK ? i : NULL;
}

int cri_stream_containers(struct call *call, const ProtobufCMessage *message,
                          ProtobufCMessage **reply, struct err *err)
{
    const Runtime__V1__StreamContainersRequest *req =
        (const Runtime__V1__StreamContainersRequest *)message;
    Runtime__V1__ListContainersRequest all = RUNTIME__V1__LIST_CONTAINERS_REQUEST__INIT;
    all.filter = req->filter;
    if (cri_list_containers(call, &all.base, reply, err) < 0)
        return -1;
    const Runtime__V1__ListContainersResponse *r =
        (const Runtime__V1__ListContainersResponse *)*reply;
    *reply = NULL;
    for (size_t at = 0; at < r->n_containers; at += CRI_STREAM_BATCH) {
        Runtime__V1__StreamContainersResponse out = RUNTIME__V1__STREAM_CONTAINERS_RESPONSE__INIT;
        out.containers = r->containers + at;
        out.n_containers =
            r->n_containers - at < CRI_STREAM_BATCH ? r->n_containers - at : CRI_STREAM_BATCH;
        if (call_send(call, &out.base, err) < 0)
            return -1;
    }
    return 0;
}

int cri_list_containers(struct call *call, const ProtobufCMessage *message,
                        ProtobufCMessage **reply, struct err *err)
{
    const Runtime__V1__ListContainersRequest *req =
        (const Runtime__V1__ListContainersRequest *)message;
    struct runtime *rt = runtime_of(call);
    Runtime__V1__ListContainersResponse *r =
        call_message(call, &runtime__v1__list_containers_response__descriptor, err);
    if (r == NULL)
        return -1;
    *reply = &r->base;
    int rc = 0;
    (void)pthread_mutex_lock(&rt->lock);
    r->containers = call_array(call, HASH_CNT(hh, rt->containers), sizeof(void *), err);
    for (struct container *c = rt->containers; r->containers != NULL && c != NULL; c = c->hh.next) {
        Runtime__V1__ContainerState state = convert_container_state(c);
        if (!wanted(c, state, req->filter))
            continue;
        Runtime__V1__Container *i = item_of(call, c, state, err);
        if (i == NULL) {
            rc = -1;
            break;
        }
        r->containers[r->n_containers++] = i;
    }
    (void)pthread_mutex_unlock(&rt->lock);
    return r->containers == NULL ? -1 : rc;
}
