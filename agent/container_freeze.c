/*
 * FreezePod, ThawPod, BecomePod: the pod's processes stand still while its VM is saved, and in a VM
 * made from it until StartContainer asks for each container. Nothing of a saved pod runs in its
 * copy before that, so the copy's clock, addresses and entropy are renewed unseen.
 *
 * The group above all containers is frozen, which the kernel reports in its cgroup.events; a
 * container of a copy is frozen by its own group.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "agent/container_cgroup.h"
#include "agent/container_table.h"
#include "agent/identity.h"
#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"

#define MAX_LIMIT_MS 600000

struct freezer {
    struct containers *table;
    bool on;
    struct rpc_call *call; /* FreezePod, until all is still */
    int inotify_fd, watch; /* of cgroup.events; watch -1: none */
    struct loop_source *source;
    struct loop_source *limit; /* the pod goes on by itself */
};

bool freezer_is_on(const struct freezer *f)
{
    return f->on;
}

static int set(const char *id, bool frozen, struct err *err)
{
    auto_free char *path = cgroup_file(id, "cgroup.freeze");
    return fs_write_str(path, frozen ? "1" : "0", err);
}

static bool is_still(void)
{
    auto_free char *path = cgroup_file("", "cgroup.events");
    auto_free char *text = fs_read(path, KiB(4), NULL, NULL);
    return text != NULL && strstr(text, "frozen 1") != NULL;
}

static void stop_waiting(struct freezer *f, enum err_code code, const char *why)
{
    if (f->watch >= 0)
        (void)inotify_rm_watch(f->inotify_fd, f->watch);
    f->watch = -1;
    struct rpc_call *call = take(f->call);
    if (call == NULL)
        return;
    if (why != NULL)
        fail_call(call, code, why);
    else
        reply_empty(call);
}

static void look(struct freezer *f)
{
    if (f->call != NULL && is_still())
        stop_waiting(f, ERR_OK, NULL);
}

static void on_change(struct loop_source *src, uint32_t events, void *arg)
{
    struct freezer *f = arg;
    char buf[1024];

    (void)src;
    (void)events;
    while (read(f->inotify_fd, buf, sizeof(buf)) > 0)
        ;
    look(f);
}

static int go_on(struct freezer *f, struct err *err)
{
    f->on = false;
    loop_set_timer(f->limit, -1);
    return set("", false, err);
}

static void on_limit(struct loop_source *src, void *arg)
{
    struct freezer *f = arg;
    auto_err struct err err = ERR_INIT;

    (void)src;
    stop_waiting(f, ERR_DEADLINE, "a process does not stand still");
    if (go_on(f, &err) < 0)
        log_error("cannot thaw the pod", LOG_STR("error", err_msg(&err)));
    else
        log_warn("nobody came back to thaw the pod: it goes on");
}

struct freezer *freezer_new(struct containers *t, struct err *err)
{
    struct freezer *f = xcalloc(1, sizeof(*f));

    f->table = t;
    f->watch = -1;
    f->inotify_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (f->inotify_fd < 0)
        (void)err_sys(err, errno, "inotify");
    else
        f->source = loop_add_fd(t->loop, f->inotify_fd, EPOLLIN, on_change, f, err);
    if (f->source != NULL)
        f->limit = loop_add_timer(t->loop, -1, on_limit, f, err);
    if (f->limit == NULL) {
        freezer_free(f);
        return NULL;
    }
    return f;
}

void freezer_free(struct freezer *f)
{
    if (f == NULL)
        return;
    loop_remove(f->limit);
    loop_remove(f->source);
    cleanup_closep(&f->inotify_fd);
    free(f);
}

/* A process that is being made would be half in the saved VM. */
static bool is_busy(const struct containers *t)
{
    const struct container *c;

    if (t->ops > 0)
        return true;
    TAILQ_FOREACH(c, &t->list, link)
    if (c->create_call != NULL || c->phase == CONTAINER_IMAGE || c->phase == CONTAINER_CREATING ||
        c->phase == CONTAINER_STARTING || c->phase == CONTAINER_REMOVING)
        return true;
    return false;
}

void handle_freeze(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    struct containers *t = arg;
    struct freezer *f = t->freezer;
    const Aspis__Agent__V1__FreezePodRequest *req =
        (const Aspis__Agent__V1__FreezePodRequest *)request;
    auto_err struct err err = ERR_INIT;
    auto_free char *events = cgroup_file("", "cgroup.events");

    if (t->on_host) {
        fail_call(call, ERR_UNIMPLEMENTED, "a pod on the host cannot be saved");
        return;
    }
    if (req->limit_ms == 0 || req->limit_ms > MAX_LIMIT_MS) {
        fail_call(call, ERR_INVALID, "limit_ms");
        return;
    }
    if (is_busy(t)) {
        fail_call(call, ERR_UNAVAILABLE, "a process of the pod is just being made or removed");
        return;
    }
    stop_waiting(f, ERR_ABORTED, "another FreezePod came");
    f->watch = inotify_add_watch(f->inotify_fd, events, IN_MODIFY);
    if (f->watch < 0)
        (void)err_sys(&err, errno, "watch %s", events);
    if (f->watch < 0 || loop_set_timer(f->limit, req->limit_ms * INT64_C(1000000)) < 0 ||
        set("", true, &err) < 0) {
        loop_set_timer(f->limit, -1);
        if (err.code == ERR_OK)
            (void)err_set(&err, ERR_INTERNAL, "set a timer");
        rpc_fail(call, &err);
        return;
    }
    f->on = true;
    f->call = call;
    look(f);
}

void handle_thaw(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    struct freezer *f = ((struct containers *)arg)->freezer;
    const Aspis__Agent__V1__ThawPodRequest *req = (const Aspis__Agent__V1__ThawPodRequest *)request;
    auto_err struct err err = ERR_INIT;

    stop_waiting(f, ERR_ABORTED, "ThawPod came");
    /* the guest's clock stood still with its VM */
    if ((f->on && req->wall_clock_ns != 0 && identity_set_clock(req->wall_clock_ns, &err) < 0) ||
        (f->on && go_on(f, &err) < 0))
        rpc_fail(call, &err);
    else
        reply_empty(call);
}

/* All or none. */
static int check_become(struct containers *t, const Aspis__Agent__V1__BecomePodRequest *req,
                        struct err *err)
{
    if (!t->freezer->on)
        return err_set(err, ERR_PRECONDITION, "this pod was not saved");
    if (req->n_containers > LIMIT_AGENT_CONTAINERS)
        return err_set(err, ERR_INVALID, "%zu containers", req->n_containers);
    for (size_t i = 0; i < req->n_containers; i++) {
        const struct container *c = container_find(t, req->containers[i]->key);
        if (c == NULL || c->phase != CONTAINER_RUNNING)
            return err_set(err, ERR_NOT_FOUND, "container %.64s does not run",
                           req->containers[i]->key);
        if (!container_id_valid(req->containers[i]->value) ||
            container_find(t, req->containers[i]->value) != NULL)
            return err_set(err, ERR_INVALID, "container id \"%.64s\"", req->containers[i]->value);
    }
    return 0;
}

void handle_become(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    struct containers *t = arg;
    const Aspis__Agent__V1__BecomePodRequest *req =
        (const Aspis__Agent__V1__BecomePodRequest *)request;
    auto_err struct err err = ERR_INIT;
    int r = check_become(t, req, &err);

    for (size_t i = 0; r == 0 && i < req->n_containers; i++) {
        struct container *c = container_find(t, req->containers[i]->key);
        r = set(c->id, true, &err);
        if (r < 0)
            break;
        free(c->name);
        c->name = xstrdup(req->containers[i]->value);
        c->held = true;
    }
    if (r == 0)
        r = pod_become(t->pod, req->from_id, req->sandbox_id, &err);
    if (r == 0)
        r = go_on(t->freezer, &err);
    if (r < 0)
        rpc_fail(call, &err);
    else
        reply_empty(call);
}

void container_let_go(struct container *c, struct rpc_call *call)
{
    auto_err struct err err = ERR_INIT;
    Aspis__Agent__V1__StartContainerResponse reply;

    if (c->init->reaped || c->remove_wanted) {
        fail_call(call, ERR_PRECONDITION, "the container is not waiting to be started");
        return;
    }
    if (set(c->id, false, &err) < 0) {
        rpc_fail(call, &err);
        return;
    }
    c->held = false;
    c->init->started_at_ns = wall_ns();
    aspis__agent__v1__start_container_response__init(&reply);
    reply.started_at_ns = (uint64_t)c->init->started_at_ns;
    rpc_reply(call, &reply.base);
}
