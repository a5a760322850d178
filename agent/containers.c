#include "agent/containers.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/container_cgroup.h"
#include "agent/container_table.h"
#include "agent/late_signal.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

struct container *container_find(struct containers *t, const char *id)
{
    struct container *c;

    TAILQ_FOREACH(c, &t->list, link)
    if (strcmp(c->name, id) == 0)
        return c;
    return NULL;
}

struct process *process_find(struct container *c, const char *exec_id)
{
    struct process *p;

    if (*exec_id == '\0')
        return c->init;
    TAILQ_FOREACH(p, &c->execs, link)
    if (strcmp(p->exec_id, exec_id) == 0)
        return p;
    return NULL;
}

/* Not starting with a dot: those names are the agent's own. */
bool container_id_valid(const char *id)
{
    static const char chars[] = "abcdefghijklmnopqrstuvwxyz"
                                "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.";
    size_t n = strlen(id);

    return n > 0 && n <= LIMIT_CONTAINER_ID && id[0] != '.' && strspn(id, chars) == n;
}

void fail_call(struct rpc_call *call, enum err_code code, const char *text)
{
    auto_err struct err err = ERR_INIT;

    err_set(&err, code, "%s", text);
    rpc_fail(call, &err);
}

void reply_empty(struct rpc_call *call)
{
    Aspis__Agent__V1__Empty empty;
    aspis__agent__v1__empty__init(&empty);
    rpc_reply(call, &empty.base);
}

Aspis__Agent__V1__Streams process_streams(const struct process *p)
{
    Aspis__Agent__V1__Streams s;
    aspis__agent__v1__streams__init(&s);

    s.stdin_id = p->stdin_id;
    s.stdout_id = p->out[0].id;
    s.stderr_id = p->out[1].id;
    return s;
}

void container_free(struct container *c)
{
    struct containers *t = c->table;
    struct process *p;

    container_oom_unwatch(c);
    loop_remove(c->patience);
    while ((p = TAILQ_FIRST(&c->execs)) != NULL) {
        TAILQ_REMOVE(&c->execs, p, link);
        t->n_processes--;
        if (p->remove_call != NULL && !t->closing)
            reply_empty(p->remove_call);
        process_free(p);
    }
    process_free(c->init);
    t->n_processes--;
    if (t->volumes != NULL && !t->closing)
        volumes_release(t->volumes, c->id);
    for (size_t i = 0; i < c->n_held; i++)
        pod_image_release(t->pod, c->images[i].serial);
    op_abandon(c->op);
    while (!STAILQ_EMPTY(&c->removers)) {
        struct waiting_call *w = STAILQ_FIRST(&c->removers);
        STAILQ_REMOVE_HEAD(&c->removers, link);
        free(w);
    }
    late_signal_free(&c->late);
    TAILQ_REMOVE(&t->list, c, link);
    t->n--;
    err_clear(&c->create_err);
    timeline_end(&c->timeline);
    for (size_t i = 0; i < c->n_images; i++) {
        free(c->images[i].serial);
        free(c->images[i].mountpoint);
    }
    free(c->images);
    free(c->name);
    free(c->id);
    free(c);
}

bool containers_claim(struct containers *t, pid_t pid, uint64_t since, int *status)
{
    for (size_t i = 0; i < RECENT_REAPS; i++) {
        if (t->recent[i].pid == pid && t->recent[i].seq > since) {
            t->recent[i].pid = 0;
            *status = t->recent[i].status;
            return true;
        }
    }
    return false;
}

/* Ends an operation if the pid is one's. */
static bool reap_op(struct containers *t, pid_t pid, int status)
{
    struct container *c;
    struct process *p;

    TAILQ_FOREACH(c, &t->list, link)
    {
        if (c->op != NULL && op_pid(c->op) == pid) {
            op_reaped(c->op, status);
            return true;
        }
        TAILQ_FOREACH(p, &c->execs, link)
        {
            if (p->op != NULL && op_pid(p->op) == pid) {
                op_reaped(p->op, status);
                return true;
            }
        }
    }
    return false;
}

static bool reap_process(struct containers *t, pid_t pid, int status)
{
    struct container *c;
    struct process *p;

    TAILQ_FOREACH(c, &t->list, link)
    {
        if (c->init->pid == pid && !c->init->reaped) {
            late_signal_free(&c->late);
            container_process_reaped(c->init, status);
            return true;
        }
        TAILQ_FOREACH(p, &c->execs, link)
        {
            if (p->pid == pid && !p->reaped) {
                container_process_reaped(p, status);
                return true;
            }
        }
    }
    return false;
}

void containers_reaped(struct containers *t, pid_t pid, int status)
{
    if (reap_op(t, pid, status) || reap_process(t, pid, status) || t->ops == 0)
        return;
    /* Perhaps an operation is about to tell that this was its process. */
    size_t at = (size_t)(t->reaps++ % RECENT_REAPS);
    t->recent[at].pid = pid;
    t->recent[at].status = status;
    t->recent[at].seq = t->reaps;
}

static void handle_signal(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    struct containers *t = arg;
    const Aspis__Agent__V1__SignalContainerRequest *req =
        (const Aspis__Agent__V1__SignalContainerRequest *)request;
    struct container *c = container_find(t, req->container_id);
    auto_err struct err err = ERR_INIT;

    if (c == NULL) {
        fail_call(call, ERR_NOT_FOUND, "no such container");
        return;
    }
    if (req->signal == 0 || req->signal > 64) {
        fail_call(call, ERR_INVALID, "signal number");
        return;
    }
    if (c->init->pid == 0) {
        fail_call(call, ERR_PRECONDITION, "the container has no process");
        return;
    }
    /* One that has ended needs no signal; until it is reaped its pid cannot be another's. */
    if (!c->init->reaped) {
        int r = 0;
        if (req->all)
            r = cgroup_signal(c->id, (int)req->signal, &err);
        else
            r = late_signal_send(t->loop, &c->late, c->init->pid, (int)req->signal, &err);
        if (r < 0) {
            rpc_fail(call, &err);
            return;
        }
    }
    reply_empty(call);
}

static void handle_signal_process(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    struct containers *t = arg;
    const Aspis__Agent__V1__SignalProcessRequest *req =
        (const Aspis__Agent__V1__SignalProcessRequest *)request;
    struct container *c = container_find(t, req->container_id);
    struct process *p = c != NULL ? process_find(c, req->exec_id) : NULL;
    auto_err struct err err = ERR_INIT;

    if (p == NULL) {
        fail_call(call, ERR_NOT_FOUND, "no such process");
        return;
    }
    if (req->signal == 0 || req->signal > 64) {
        fail_call(call, ERR_INVALID, "signal number");
        return;
    }
    if (p->pid == 0) {
        fail_call(call, ERR_PRECONDITION, "the process is still being made");
        return;
    }
    if (!p->reaped && kill(p->pid, (int)req->signal) < 0 && errno != ESRCH) {
        err_sys(&err, errno, "signal %u", req->signal);
        rpc_fail(call, &err);
        return;
    }
    reply_empty(call);
}

static void handle_resize(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    struct containers *t = arg;
    const Aspis__Agent__V1__ResizeTtyRequest *req =
        (const Aspis__Agent__V1__ResizeTtyRequest *)request;
    struct container *c = container_find(t, req->container_id);
    struct process *p = c != NULL ? process_find(c, req->exec_id) : NULL;
    auto_err struct err err = ERR_INIT;

    if (p == NULL)
        fail_call(call, ERR_NOT_FOUND, "no such process");
    else if (process_resize(p, req->rows, req->cols, &err) < 0)
        rpc_fail(call, &err);
    else
        reply_empty(call);
}

struct state_row {
    Aspis__Agent__V1__ProcessState state;
    Aspis__Agent__V1__Streams streams;
    Aspis__Agent__V1__Exit exit;
};

/* As the daemon has to show it: one that was let go runs, or will at any moment. */
static bool runs(const struct container *c, const struct process *p)
{
    if (p != c->init)
        return p->state == PROCESS_RUNNING;
    return !c->held && (p->state == PROCESS_RUNNING || c->phase == CONTAINER_STARTING);
}

static void fill_row(struct state_row *row, struct container *c, struct process *p)
{
    aspis__agent__v1__process_state__init(&row->state);
    aspis__agent__v1__exit__init(&row->exit);
    row->streams = process_streams(p);
    row->state.container_id = c->name;
    row->state.exec_id = p->exec_id;
    row->state.pid = (uint32_t)p->pid;
    row->state.streams = &row->streams;
    row->state.started_at_ns = (uint64_t)p->started_at_ns;
    if (p->state != PROCESS_EXITED) {
        row->state.state = runs(c, p) ? ASPIS__AGENT__V1__PROCESS_STATE__STATE__RUNNING
                                      : ASPIS__AGENT__V1__PROCESS_STATE__STATE__CREATED;
        c->told_running |= c->phase == CONTAINER_STARTING;
        return;
    }
    row->state.state = ASPIS__AGENT__V1__PROCESS_STATE__STATE__EXITED;
    row->exit.container_id = c->name;
    row->exit.exec_id = p->exec_id;
    row->exit.exit_code = p->exit_code;
    row->exit.signal = p->signal;
    row->exit.oom_killed = p->oom_killed;
    row->exit.exited_at_ns = (uint64_t)p->exited_at_ns;
    if (p->silent && *process_trace_text(p) != '\0')
        row->exit.start_error = p->trace.data;
    row->state.exit = &row->exit;
}

/* Known to the daemon: its Create or Exec was answered with success. */
static bool listed(const struct container *c, const struct process *p)
{
    if (p == c->init)
        return c->create_call == NULL && p->pid > 0;
    return p->call == NULL && p->pid > 0 && !p->silent;
}

static void handle_list(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    struct containers *t = arg;
    Aspis__Agent__V1__ListStateResponse reply;
    aspis__agent__v1__list_state_response__init(&reply);
    auto_free struct state_row *rows = xcalloc(t->n_processes + 1, sizeof(*rows));
    auto_free Aspis__Agent__V1__ProcessState **list =
        xcalloc(t->n_processes + 1, sizeof(*list)); // NOLINT(bugprone-sizeof-expression)
    const char *const *disks = pod_images(t->pod);
    auto_free char *id = xstrdup(pod_id(t->pod));
    auto_strv struct strv names = {0};
    struct container *c;
    struct process *p;
    size_t n = 0;

    (void)request;
    TAILQ_FOREACH(c, &t->list, link)
    {
        if (listed(c, c->init))
            fill_row(&rows[n++], c, c->init);
        TAILQ_FOREACH(p, &c->execs, link)
        if (listed(c, p))
            fill_row(&rows[n++], c, p);
    }
    for (size_t i = 0; i < n; i++)
        list[i] = &rows[i].state;
    for (size_t i = 0; disks != NULL && disks[i] != NULL; i++)
        strv_add(&names, disks[i]);
    reply.sandbox_id = id;
    reply.n_processes = n;
    reply.processes = list;
    reply.last_event_seq = events_last_seq(t->events);
    reply.n_disks = names.n;
    reply.disks = names.v;
    rpc_reply(call, &reply.base);
}

static void handle_events(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    struct containers *t = arg;

    events_subscribe(t->events, call,
                     ((const Aspis__Agent__V1__EventsRequest *)request)->after_seq);
}

static void handle_ack(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    struct containers *t = arg;

    events_ack(t->events, ((const Aspis__Agent__V1__AckEventsRequest *)request)->seq);
    reply_empty(call);
}

const struct rpc_method *containers_methods(struct containers *t)
{
    const struct rpc_method methods[] = {
        {"CreateContainer", &aspis__agent__v1__create_container_request__descriptor, handle_create,
         t},
        {"StartContainer", &aspis__agent__v1__start_container_request__descriptor, handle_start, t},
        {"SignalContainer", &aspis__agent__v1__signal_container_request__descriptor, handle_signal,
         t},
        {"RemoveContainer", &aspis__agent__v1__remove_container_request__descriptor, handle_remove,
         t},
        {"Exec", &aspis__agent__v1__exec_request__descriptor, handle_exec, t},
        {"SignalProcess", &aspis__agent__v1__signal_process_request__descriptor,
         handle_signal_process, t},
        {"RemoveProcess", &aspis__agent__v1__remove_process_request__descriptor,
         handle_remove_process, t},
        {"ResizeTty", &aspis__agent__v1__resize_tty_request__descriptor, handle_resize, t},
        {"SetLimits", &aspis__agent__v1__set_limits_request__descriptor, handle_set_limits, t},
        {"ListState", &aspis__agent__v1__empty__descriptor, handle_list, t},
        {"Events", &aspis__agent__v1__events_request__descriptor, handle_events, t},
        {"AckEvents", &aspis__agent__v1__ack_events_request__descriptor, handle_ack, t},
        {"FreezePod", &aspis__agent__v1__freeze_pod_request__descriptor, handle_freeze, t},
        {"ThawPod", &aspis__agent__v1__thaw_pod_request__descriptor, handle_thaw, t},
        {"BecomePod", &aspis__agent__v1__become_pod_request__descriptor, handle_become, t},
        {0},
    };

    _Static_assert(sizeof(methods) == sizeof(t->methods), "size of the method table");
    memcpy(t->methods, methods, sizeof(methods));
    return t->methods;
}

struct containers *containers_new(struct loop *loop, struct pod *pod, struct stdio *io,
                                  const char *state_dir, struct err *err)
{
    struct containers *t = xcalloc(1, sizeof(*t));

    t->loop = loop;
    t->pod = pod;
    t->io = io;
    t->inotify_fd = -1;
    TAILQ_INIT(&t->list);
    t->state_dir = xstrdup(state_dir);
    t->events = events_new();
    if (fs_mkdir_p(state_dir, 0700, err) < 0 || container_oom_init(t, err) < 0 ||
        (t->freezer = freezer_new(t, err)) == NULL) {
        containers_free(t);
        return NULL;
    }
    return t;
}

void containers_use_volumes(struct containers *t, struct volumes *volumes)
{
    t->volumes = volumes;
}

void containers_use_host(struct containers *t)
{
    t->on_host = true;
}

struct events *containers_events(struct containers *t)
{
    return t->events;
}

void containers_free(struct containers *t)
{
    struct container *c;
    struct container *next;

    if (t == NULL)
        return;
    t->closing = true; /* calls went with their server */
    for (c = TAILQ_FIRST(&t->list); c != NULL; c = next) {
        next = TAILQ_NEXT(c, link);
        container_free(c);
    }
    freezer_free(t->freezer);
    events_free(t->events);
    loop_remove(t->inotify_source);
    cleanup_closep(&t->inotify_fd);
    free(t->state_dir);
    free(t);
}
