#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "cri/convert.h"
#include "cri/daemon.h"
#include "cri/inspect.h"
#include "cri/sandbox_ops.h"
#include "cri/service_runtime.h"
#include "cri/spec.h"

#define HOSTNAME_MAX 64 /* the kernel's */

static struct runtime *runtime_of(const struct call *call)
{
    return ((const struct daemon *)call->daemon)->runtime;
}

static int check_name(const char *field, const char *value, struct err *err)
{
    if (str_empty(value))
        return err_set(err, ERR_INVALID, "%s is empty", field);
    if (strlen(value) > LIMIT_NAME)
        return err_set(err, ERR_INVALID, "%s is longer than %d bytes", field, LIMIT_NAME);
    /* It becomes part of CNI_ARGS, "NAME=VALUE;...": plugins refuse what they cannot take apart, a
     * DEL as well, and the pod could never be removed. */
    if (strpbrk(value, ";=\n") != NULL)
        return err_set(err, ERR_INVALID, "%s \"%.64s\" holds a semicolon, newline or equals sign",
                       field, value);
    return 0;
}

int cri_check_sandbox_config(const Runtime__V1__PodSandboxConfig *c, struct err *err)
{
    if (c == NULL)
        return err_set(err, ERR_INVALID, "config is missing");
    if (c->metadata == NULL)
        return err_set(err, ERR_INVALID, "config.metadata is missing");
    if (check_name("config.metadata.name", c->metadata->name, err) < 0 ||
        check_name("config.metadata.namespace", c->metadata->namespace_, err) < 0)
        return -1;
    if (!str_empty(c->metadata->uid) &&
        check_name("config.metadata.uid", c->metadata->uid, err) < 0)
        return -1;
    if (strlen(c->hostname) > HOSTNAME_MAX)
        return err_set(err, ERR_INVALID, "config.hostname is longer than %d bytes", HOSTNAME_MAX);
    if (strpbrk(c->hostname, " \t\n/") != NULL)
        return err_set(err, ERR_INVALID, "config.hostname \"%.64s\" is not a host name",
                       c->hostname);
    if (!str_empty(c->log_directory) && c->log_directory[0] != '/')
        return err_set(err, ERR_INVALID, "config.log_directory \"%.200s\" is not absolute",
                       c->log_directory);
    for (size_t i = 0; i < c->n_port_mappings; i++) {
        const Runtime__V1__PortMapping *p = c->port_mappings[i];
        if (p->host_port < 0 || p->host_port > 65535 || p->container_port < 0 ||
            p->container_port > 65535)
            return err_set(err, ERR_INVALID, "config.port_mappings[%zu] is out of range", i);
    }
    if (c->linux != NULL && c->linux->resources != NULL &&
        spec_check_resources(c->linux->resources, err) < 0)
        return -1;
    return spec_check_sandbox(c, err);
}

int cri_check_handler(const char *handler, struct err *err)
{
    return backend_check_handler(handler, err);
}

int cri_run_pod_sandbox(struct call *call, const ProtobufCMessage *message,
                        ProtobufCMessage **reply, struct err *err)
{
    const Runtime__V1__RunPodSandboxRequest *req =
        (const Runtime__V1__RunPodSandboxRequest *)message;
    Runtime__V1__RunPodSandboxResponse *r =
        call_message(call, &runtime__v1__run_pod_sandbox_response__descriptor, err);
    if (r == NULL || cri_check_sandbox_config(req->config, err) < 0 ||
        cri_check_handler(req->runtime_handler, err) < 0)
        return -1;
    auto_sandbox struct sandbox *s =
        sandbox_run(runtime_of(call), req->config, req->runtime_handler, call->cancel, err);
    if (s == NULL)
        return -1;
    r->pod_sandbox_id = call_string(call, s->rec.id, err);
    *reply = &r->base;
    return r->pod_sandbox_id == NULL ? -1 : 0;
}

/* Stop and remove of what is not there are successes (critest's idempotence specs). */
static struct sandbox *find_or_gone(struct call *call, const char *id, struct err *err)
{
    struct sandbox *s = model_find_sandbox(runtime_of(call), id, err);
    if (s == NULL && err->code == ERR_NOT_FOUND)
        err_clear(err);
    return s;
}

int cri_stop_pod_sandbox(struct call *call, const ProtobufCMessage *message,
                         ProtobufCMessage **reply, struct err *err)
{
    const Runtime__V1__StopPodSandboxRequest *req =
        (const Runtime__V1__StopPodSandboxRequest *)message;
    *reply = call_message(call, &runtime__v1__stop_pod_sandbox_response__descriptor, err);
    auto_sandbox struct sandbox *s = find_or_gone(call, req->pod_sandbox_id, err);
    if (err->code != ERR_OK)
        return -1;
    return s == NULL ? 0 : sandbox_stop(s, call->cancel, err);
}

int cri_remove_pod_sandbox(struct call *call, const ProtobufCMessage *message,
                           ProtobufCMessage **reply, struct err *err)
{
    const Runtime__V1__RemovePodSandboxRequest *req =
        (const Runtime__V1__RemovePodSandboxRequest *)message;
    *reply = call_message(call, &runtime__v1__remove_pod_sandbox_response__descriptor, err);
    auto_sandbox struct sandbox *s = find_or_gone(call, req->pod_sandbox_id, err);
    if (err->code != ERR_OK)
        return -1;
    return s == NULL ? 0 : sandbox_remove(s, call->cancel, err);
}

Runtime__V1__PodSandboxState cri_sandbox_state(const struct sandbox *s)
{
    return s->rec.phase == SANDBOX_READY && !s->stopping && s->silence == NULL
               ? RUNTIME__V1__POD_SANDBOX_STATE__SANDBOX_READY
               : RUNTIME__V1__POD_SANDBOX_STATE__SANDBOX_NOTREADY;
}

/* --- status --- */

static Runtime__V1__PodSandboxNetworkStatus *network_of(struct call *call, const struct sandbox *s,
                                                        struct err *err)
{
    Runtime__V1__PodSandboxNetworkStatus *n =
        call_message(call, &runtime__v1__pod_sandbox_network_status__descriptor, err);
    if (n == NULL || s->net.n_ips == 0)
        return n;
    n->ip = call_string(call, s->net.ips[0], err);
    n->additional_ips = call_array(call, s->net.n_ips, sizeof(void *), err);
    for (size_t i = 1; n->additional_ips != NULL && i < s->net.n_ips; i++) {
        Runtime__V1__PodIP *ip = call_message(call, &runtime__v1__pod_ip__descriptor, err);
        if (ip == NULL)
            return NULL;
        ip->ip = call_string(call, s->net.ips[i], err);
        n->additional_ips[n->n_additional_ips++] = ip;
    }
    return n;
}

static Runtime__V1__LinuxPodSandboxStatus *linux_of(struct call *call, const struct sandbox *s,
                                                    struct err *err)
{
    Runtime__V1__LinuxPodSandboxStatus *l =
        call_message(call, &runtime__v1__linux_pod_sandbox_status__descriptor, err);
    Runtime__V1__Namespace *n = call_message(call, &runtime__v1__namespace__descriptor, err);
    if (l == NULL || n == NULL)
        return NULL;
    const Runtime__V1__LinuxPodSandboxConfig *c = s->config->linux;
    if (c != NULL && c->security_context != NULL && c->security_context->namespace_options != NULL)
        n->options = convert_copy(call, &c->security_context->namespace_options->base, err);
    else
        n->options = call_message(call, &runtime__v1__namespace_option__descriptor, err);
    l->namespaces = n;
    return l;
}

Runtime__V1__PodSandboxStatus *cri_sandbox_status(struct call *call, const struct sandbox *s,
                                                  struct err *err)
{
    Runtime__V1__PodSandboxStatus *st =
        call_message(call, &runtime__v1__pod_sandbox_status__descriptor, err);
    if (st == NULL)
        return NULL;
    const Runtime__V1__PodSandboxConfig *c = s->config;
    st->id = call_string(call, s->rec.id, err);
    st->metadata = convert_copy(call, &c->metadata->base, err);
    st->state = cri_sandbox_state(s);
    st->created_at = s->rec.created_at;
    st->network = network_of(call, s, err);
    st->linux = linux_of(call, s, err);
    st->n_labels = c->n_labels;
    st->labels = convert_map(call, c->labels, c->n_labels,
                             &runtime__v1__pod_sandbox_status__labels_entry__descriptor, err);
    st->n_annotations = c->n_annotations;
    st->annotations =
        convert_map(call, c->annotations, c->n_annotations,
                    &runtime__v1__pod_sandbox_status__annotations_entry__descriptor, err);
    st->runtime_handler = call_string(call, s->rec.handler, err);
    return err->code == ERR_OK ? st : NULL;
}

static int add_info(struct call *call, struct sandbox *s, Runtime__V1__PodSandboxStatusResponse *r,
                    struct err *err)
{
    auto_free char *console = inspect_console_path(s);
    auto_free char *text = inspect_sandbox(s);
    const char *pairs[] = {"info", text != NULL ? text : "{}", "console", console};
    r->n_info = 2;
    r->info = convert_pairs(call, pairs, 2,
                            &runtime__v1__pod_sandbox_status_response__info_entry__descriptor, err);
    return r->info == NULL ? -1 : 0;
}

Runtime__V1__ContainerStatus **cri_container_statuses(struct call *call, struct sandbox *s,
                                                      size_t *n, struct err *err)
{
    struct container *c;
    size_t room = 0;
    *n = 0;
    TAILQ_FOREACH(c, &s->containers, link)
    room++;
    Runtime__V1__ContainerStatus **list = call_array(call, room, sizeof(*list), err);
    if (list == NULL)
        return NULL;
    TAILQ_FOREACH(c, &s->containers, link)
    {
        if (c->rec.phase == CONTAINER_CREATING)
            continue;
        Runtime__V1__ContainerStatus *cs = convert_container_status(call, c, err);
        if (cs == NULL)
            return NULL;
        list[(*n)++] = cs;
    }
    return list;
}

int cri_pod_sandbox_status(struct call *call, const ProtobufCMessage *message,
                           ProtobufCMessage **reply, struct err *err)
{
    const Runtime__V1__PodSandboxStatusRequest *req =
        (const Runtime__V1__PodSandboxStatusRequest *)message;
    struct runtime *rt = runtime_of(call);
    Runtime__V1__PodSandboxStatusResponse *r =
        call_message(call, &runtime__v1__pod_sandbox_status_response__descriptor, err);
    auto_sandbox struct sandbox *s = model_find_sandbox(rt, req->pod_sandbox_id, err);
    if (r == NULL || s == NULL)
        return -1;
    (void)pthread_mutex_lock(&rt->lock);
    r->status = cri_sandbox_status(call, s, err);
    r->timestamp = wall_ns();
    r->containers_statuses = cri_container_statuses(call, s, &r->n_containers_statuses, err);
    int rc = r->status == NULL || r->containers_statuses == NULL ? -1 : 0;
    (void)pthread_mutex_unlock(&rt->lock);
    if (rc == 0 && req->verbose)
        rc = add_info(call, s, r, err);
    *reply = &r->base;
    return rc;
}

/* --- list --- */

static bool wanted(const struct sandbox *s, const Runtime__V1__PodSandboxFilter *f)
{
    if (s->rec.phase == SANDBOX_CREATING)
        return false;
    if (f == NULL)
        return true;
    if (!str_empty(f->id) && !str_starts(s->rec.id, f->id))
        return false;
    if (f->state != NULL && f->state->state != cri_sandbox_state(s))
        return false;
    return convert_selector_matches(s->config->labels, s->config->n_labels, f->label_selector,
                                    f->n_label_selector);
}

static Runtime__V1__PodSandbox *item_of(struct call *call, const struct sandbox *s, struct err *err)
{
    Runtime__V1__PodSandbox *p = call_message(call, &runtime__v1__pod_sandbox__descriptor, err);
    if (p == NULL)
        return NULL;
    const Runtime__V1__PodSandboxConfig *c = s->config;
    p->id = call_string(call, s->rec.id, err);
    p->metadata = convert_copy(call, &c->metadata->base, err);
    p->state = cri_sandbox_state(s);
    p->created_at = s->rec.created_at;
    p->n_labels = c->n_labels;
    p->labels = convert_map(call, c->labels, c->n_labels,
                            &runtime__v1__pod_sandbox__labels_entry__descriptor, err);
    p->n_annotations = c->n_annotations;
    p->annotations = convert_map(call, c->annotations, c->n_annotations,
                                 &runtime__v1__pod_sandbox__annotations_entry__descriptor, err);
    p->runtime_handler = call_string(call, s->rec.handler, err);
    return err->code == ERR_OK ? p : NULL;
}

/* StreamPodSandboxes: as many as fit well into one message at a time. The list is made once, so
 * that every sandbox comes once. */
int cri_stream_pod_sandboxes(struct call *call, const ProtobufCMessage *message,
                             ProtobufCMessage **reply, struct err *err)
{
    const Runtime__V1__StreamPodSandboxesRequest *req =
        (const Runtime__V1__StreamPodSandboxesRequest *)message;
    Runtime__V1__ListPodSandboxRequest all = RUNTIME__V1__LIST_POD_SANDBOX_REQUEST__INIT;
    all.filter = req->filter;
    if (cri_list_pod_sandbox(call, &all.base, reply, err) < 0)
        return -1;
    const Runtime__V1__ListPodSandboxResponse *r =
        (const Runtime__V1__ListPodSandboxResponse *)*reply;
    *reply = NULL;
    for (size_t at = 0; at < r->n_items; at += CRI_STREAM_BATCH) {
        Runtime__V1__StreamPodSandboxesResponse out =
            RUNTIME__V1__STREAM_POD_SANDBOXES_RESPONSE__INIT;
        out.pod_sandboxes = r->items + at;
        out.n_pod_sandboxes =
            r->n_items - at < CRI_STREAM_BATCH ? r->n_items - at : CRI_STREAM_BATCH;
        if (call_send(call, &out.base, err) < 0)
            return -1;
    }
    return 0;
}

int cri_list_pod_sandbox(struct call *call, const ProtobufCMessage *message,
                         ProtobufCMessage **reply, struct err *err)
{
    const Runtime__V1__ListPodSandboxRequest *req =
        (const Runtime__V1__ListPodSandboxRequest *)message;
    struct runtime *rt = runtime_of(call);
    Runtime__V1__ListPodSandboxResponse *r =
        call_message(call, &runtime__v1__list_pod_sandbox_response__descriptor, err);
    if (r == NULL)
        return -1;
    *reply = &r->base;
    int rc = 0;
    (void)pthread_mutex_lock(&rt->lock);
    r->items = call_array(call, HASH_CNT(hh, rt->sandboxes), sizeof(void *), err);
    for (struct sandbox *s = rt->sandboxes; r->items != NULL && s != NULL; s = s->hh.next) {
        if (!wanted(s, req->filter))
            continue;
        Runtime__V1__PodSandbox *p = item_of(call, s, err);
        if (p == NULL) {
            rc = -1;
            break;
        }
        r->items[r->n_items++] = p;
    }
    (void)pthread_mutex_unlock(&rt->lock);
    return r->items == NULL ? -1 : rc;
}
