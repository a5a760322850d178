#include <ctype.h>
#include <stdarg.h>
#include <string.h>

#include "base/cancel.h"
#include "base/fs.h"
#include "base/str.h"
#include "cri/ctl/ctl.h"

const ProtobufCMessage *ctl_call(struct ctl *ctl, const char *path, const ProtobufCMessage *req,
                                 const ProtobufCMessageDescriptor *reply, struct err *err)
{
    return gclient_call(ctl->client, path, req, reply, ctl->arena, 0, err);
}

int ctl_usage(struct err *err, const char *fmt, ...)
{
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    return err_set(err, ERR_INVALID, "%s; see aspisctl --help", text);
}

/* --- from what a user writes to an id --- */

struct match {
    const char *arg;
    const char *id; /* the first that matched */
    size_t n;       /* how many different ids did */
    bool exact;
};

static void consider(struct match *m, const char *id, bool name_matches)
{
    if (m->exact)
        return;
    if (strcmp(id, m->arg) == 0) {
        *m = (struct match){.arg = m->arg, .id = id, .n = 1, .exact = true};
    } else if (name_matches || str_starts(id, m->arg)) {
        m->n++;
        m->id = id;
    }
}

static const char *result(const struct match *m, const char *what, struct err *err)
{
    if (m->n == 1)
        return m->id;
    if (m->n == 0)
        (void)err_set(err, ERR_NOT_FOUND, "no %s `%s`", what, m->arg);
    else
        (void)err_set(err, ERR_INVALID, "`%s` means %zu different %ss; write more of the id",
                      m->arg, m->n, what);
    return NULL;
}

static const Runtime__V1__ListPodSandboxResponse *list_pods(struct ctl *ctl, struct err *err)
{
    Runtime__V1__ListPodSandboxRequest r = RUNTIME__V1__LIST_POD_SANDBOX_REQUEST__INIT;
    return (const Runtime__V1__ListPodSandboxResponse *)ctl_call(
        ctl, RUNTIME_SERVICE "ListPodSandbox", &r.base,
        &runtime__v1__list_pod_sandbox_response__descriptor, err);
}

const char *ctl_pod(struct ctl *ctl, const char *arg, struct err *err)
{
    const Runtime__V1__ListPodSandboxResponse *list = list_pods(ctl, err);
    if (list == NULL)
        return NULL;
    struct match m = {.arg = arg};
    for (size_t i = 0; i < list->n_items && arg[0] != '\0'; i++) {
        const Runtime__V1__PodSandboxMetadata *meta = list->items[i]->metadata;
        consider(&m, list->items[i]->id, meta != NULL && strcmp(meta->name, arg) == 0);
    }
    return result(&m, "pod", err);
}

static bool pod_is_called(const Runtime__V1__ListPodSandboxResponse *pods, const char *id,
                          const char *name)
{
    for (size_t i = 0; i < pods->n_items; i++)
        if (strcmp(pods->items[i]->id, id) == 0)
            return pods->items[i]->metadata != NULL &&
                   strcmp(pods->items[i]->metadata->name, name) == 0;
    return false;
}

const char *ctl_container(struct ctl *ctl, const char *arg, struct err *err)
{
    Runtime__V1__ListContainersRequest r = RUNTIME__V1__LIST_CONTAINERS_REQUEST__INIT;
    const Runtime__V1__ListContainersResponse *list =
        (const Runtime__V1__ListContainersResponse *)ctl_call(
            ctl, RUNTIME_SERVICE "ListContainers", &r.base,
            &runtime__v1__list_containers_response__descriptor, err);
    const Runtime__V1__ListPodSandboxResponse *pods = list != NULL ? list_pods(ctl, err) : NULL;
    if (pods == NULL)
        return NULL;
    struct match m = {.arg = arg};
    for (size_t i = 0; i < list->n_containers && arg[0] != '\0'; i++) {
        const Runtime__V1__Container *c = list->containers[i];
        bool name = (c->metadata != NULL && strcmp(c->metadata->name, arg) == 0) ||
                    pod_is_called(pods, c->pod_sandbox_id, arg);
        consider(&m, c->id, name);
    }
    return result(&m, "container", err);
}

/* --- calls that several commands make --- */

const Runtime__V1__ContainerStatus *ctl_container_status(struct ctl *ctl, const char *id,
                                                         struct err *err)
{
    Runtime__V1__ContainerStatusRequest r = RUNTIME__V1__CONTAINER_STATUS_REQUEST__INIT;
    r.container_id = (char *)(uintptr_t)id;
    const Runtime__V1__ContainerStatusResponse *out =
        (const Runtime__V1__ContainerStatusResponse *)ctl_call(
            ctl, RUNTIME_SERVICE "ContainerStatus", &r.base,
            &runtime__v1__container_status_response__descriptor, err);
    if (out != NULL && out->status == NULL)
        (void)err_set(err, ERR_INTERNAL, "container `%s`: the daemon sent no status", id);
    return out != NULL ? out->status : NULL;
}

int ctl_stop_container(struct ctl *ctl, const char *id, int64_t timeout_s, struct err *err)
{
    Runtime__V1__StopContainerRequest r = RUNTIME__V1__STOP_CONTAINER_REQUEST__INIT;
    r.container_id = (char *)(uintptr_t)id;
    r.timeout = timeout_s;
    return ctl_call(ctl, RUNTIME_SERVICE "StopContainer", &r.base,
                    &runtime__v1__stop_container_response__descriptor, err) != NULL
               ? 0
               : -1;
}

int ctl_remove_container(struct ctl *ctl, const char *id, struct err *err)
{
    Runtime__V1__RemoveContainerRequest r = RUNTIME__V1__REMOVE_CONTAINER_REQUEST__INIT;
    r.container_id = (char *)(uintptr_t)id;
    return ctl_call(ctl, RUNTIME_SERVICE "RemoveContainer", &r.base,
                    &runtime__v1__remove_container_response__descriptor, err) != NULL
               ? 0
               : -1;
}

int ctl_stop_pod(struct ctl *ctl, const char *id, struct err *err)
{
    Runtime__V1__StopPodSandboxRequest r = RUNTIME__V1__STOP_POD_SANDBOX_REQUEST__INIT;
    r.pod_sandbox_id = (char *)(uintptr_t)id;
    return ctl_call(ctl, RUNTIME_SERVICE "StopPodSandbox", &r.base,
                    &runtime__v1__stop_pod_sandbox_response__descriptor, err) != NULL
               ? 0
               : -1;
}

int ctl_remove_pod(struct ctl *ctl, const char *id, struct err *err)
{
    Runtime__V1__RemovePodSandboxRequest r = RUNTIME__V1__REMOVE_POD_SANDBOX_REQUEST__INIT;
    r.pod_sandbox_id = (char *)(uintptr_t)id;
    return ctl_call(ctl, RUNTIME_SERVICE "RemovePodSandbox", &r.base,
                    &runtime__v1__remove_pod_sandbox_response__descriptor, err) != NULL
               ? 0
               : -1;
}

char *ctl_log_dir(const char *name, const char *uid)
{
    if (str_empty(name) || str_empty(uid) || strchr(name, '/') != NULL || strchr(uid, '/') != NULL)
        return NULL;
    return fs_format("/var/log/aspis/%s-%s", name, uid);
}

/* --- printing --- */

void ctl_puts(FILE *out, const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p != '\0'; p++)
        (void)fputc((*p < 0x20 && *p != '\n' && *p != '\t') || *p == 0x7f ? '?' : *p, out);
}

const char *ctl_age(int64_t wall, char out[32])
{
    static const struct {
        int64_t seconds;
        const char *unit;
    } units[] = {{86400, "day"}, {3600, "hour"}, {60, "minute"}, {1, "second"}};
    int64_t s = (wall_ns() - wall) / 1000000000;
    for (size_t i = 0; i < ARRAY_LEN(units); i++) {
        int64_t n = s / units[i].seconds;
        if (n >= 2 || units[i].seconds == 1) {
            (void)snprintf(out, 32, "%lld %s%s", (long long)(n > 0 ? n : 0), units[i].unit,
                           n == 1 ? "" : "s");
            break;
        }
    }
    return out;
}

const char *ctl_size(uint64_t bytes, char out[32])
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    double v = (double)bytes;
    size_t i = 0;
    while (v >= 1000 && i + 1 < ARRAY_LEN(units)) {
        v /= 1000;
        i++;
    }
    (void)snprintf(out, 32, i == 0 ? "%.0f %s" : "%.1f %s", v, units[i]);
    return out;
}

const char *ctl_short_id(const char *id, char out[16])
{
    if (str_starts(id, "sha256:"))
        id += strlen("sha256:");
    (void)snprintf(out, 16, "%.12s", id);
    return out;
}

void table_cell(struct table *t, const char *text)
{
    strv_add(&t->cells, text);
}

void table_print(struct table *t, FILE *out)
{
    for (size_t i = 0; i < t->cells.n; i++) {
        size_t column = i % t->n_columns, width = 0;
        for (size_t k = column; k < t->cells.n; k += t->n_columns)
            width = strlen(t->cells.v[k]) > width ? strlen(t->cells.v[k]) : width;
        ctl_puts(out, t->cells.v[i]);
        if (column + 1 == t->n_columns)
            (void)fputc('\n', out);
        else
            (void)fprintf(out, "%*s", (int)(width - strlen(t->cells.v[i]) + 2), "");
    }
    strv_clear(&t->cells);
}
