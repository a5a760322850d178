/* A container's life: image, create, start, end, removal. */
#include <linux/filter.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/container_cgroup.h"
#include "agent/container_jobs.h"
#include "agent/container_table.h"
#include "agent/crun.h"
#include "agent/huge_pages.h"
#include "agent/userns.h"
#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"

/* Until a removal kills the operations that are in its way. */
#define PATIENCE_NS INT64_C(5000000000)
/* The highest field number of CreateContainerRequest, and of its Volume. */
#define KNOWS 940

static struct job_paths paths_of(const struct container *c)
{
    return (struct job_paths){.id = c->id,
                              .state_dir = c->table->state_dir,
                              .scratch_dir = pod_scratch_dir(c->table->pod)};
}

static void close_child_fds(int fds[3])
{
    for (int i = 0; i < 3; i++)
        cleanup_closep(&fds[i]);
}

/* The create call's answer is an error; what there is already is taken away first, so that the same
 * id works again at once. */
static void create_failed(struct container *c, const struct err *err)
{
    err_set(&c->create_err, err->code, "%s", err_msg(err));
    if (c->init != NULL)
        c->init->silent = true;
    c->phase = CONTAINER_ENDED;
    c->remove_wanted = true;
    container_progress(c);
}

/* libcrun's words for a command that is missing or may not be executed. */
static bool is_command_error(const char *text)
{
    return strstr(text, "executable file `") != NULL || strstr(text, "open executable") != NULL;
}

/* A command that cannot be executed is StartContainer's error to its clients: the daemon keeps it
 * until then (agent.proto). */
static void create_answer_error(struct rpc_call *call, struct err *err)
{
    if (!is_command_error(err_msg(err))) {
        rpc_fail(call, err);
        return;
    }
    Aspis__Agent__V1__CreateContainerResponse reply;
    aspis__agent__v1__create_container_response__init(&reply);
    reply.start_error = err->msg;
    rpc_reply(call, &reply.base);
}

static void create_reply(struct container *c, const struct op_result *res)
{
    struct rpc_call *call = take(c->create_call);
    Aspis__Agent__V1__CreateContainerResponse reply;
    aspis__agent__v1__create_container_response__init(&reply);
    Aspis__Agent__V1__ResolvedUser user;
    aspis__agent__v1__resolved_user__init(&user);
    Aspis__Agent__V1__Streams streams = process_streams(c->init);
    uint32_t groups[LIMIT_USER_GROUPS];

    memcpy(groups, res->groups, sizeof(groups));
    user.uid = res->uid;
    user.gid = res->gid;
    user.n_supplemental_groups = res->n_groups;
    user.supplemental_groups = groups;
    reply.user = &user;
    reply.streams = &streams;
    reply.pid = (uint32_t)res->pid;
    reply.knows = KNOWS;
    c->create_req = NULL;
    timeline_mark(&c->timeline, "made");
    rpc_reply(call, &reply.base);
    if (!timeline_older(&c->timeline, LIMIT_AGENT_SLOW_NS))
        return;
    auto_free char *steps = timeline_text(&c->timeline);
    log_info("created", LOG_STR("container", c->id), LOG_STR("ms", steps));
}

static void create_done(void *arg, const struct op_result *res, int fd, const struct err *err)
{
    struct container *c = arg;
    struct process *p = c->init;
    auto_err struct err local = ERR_INIT;
    auto_close int terminal = fd;
    int status;

    c->op = NULL;
    c->table->ops--;
    if (err != NULL && c->remove_wanted) {
        err_set(&local, ERR_ABORTED, "the container is being removed");
        create_failed(c, &local);
        return;
    }
    if (err != NULL) {
        err_set(&local, err->code, "%s", err_msg(err));
        const char *more = process_trace_text(p);
        if (*more != '\0' && strstr(err_msg(err), more) == NULL)
            err_append(&local, ": %s", more);
        create_failed(c, &local);
        return;
    }
    p->pid = res->pid;
    p->state = PROCESS_CREATED;
    c->phase = CONTAINER_CREATED;
    bool gone = containers_claim(c->table, p->pid, c->reaps_before, &status);
    if (c->create_req->tty &&
        process_attach_tty(p, take_fd(&terminal), c->create_req->stdin, c->create_req->tty_rows,
                           c->create_req->tty_cols, &local) < 0) {
        create_failed(c, &local);
    } else if (c->remove_wanted) {
        err_set(&local, ERR_ABORTED, "the container is being removed");
        create_failed(c, &local);
    } else {
        container_oom_watch(c);
        create_reply(c, res);
    }
    if (gone)
        container_process_reaped(p, status);
}

static int mount_volumes(struct container *c, struct err *err)
{
    const Aspis__Agent__V1__CreateContainerRequest *req = c->create_req;
    struct containers *t = c->table;

    if (t->on_host)
        return 0;
    if (req->n_volumes > 0 && t->volumes == NULL)
        return err_set(err, ERR_UNIMPLEMENTED, "this agent has no volumes");
    for (size_t i = 0; i < req->n_volumes; i++) {
        if (req->volumes[i]->mirrored)
            continue;
        if (req->volumes[i]->huge != NULL) {
            if (huge_pages_mount(t->state_dir, req->volumes[i]->huge, err) < 0)
                return -1;
            continue;
        }
        auto_free char *path = job_volume_path(t->state_dir, c->id, req->volumes[i]->id);
        if (volumes_mount(t->volumes, c->id, req->volumes[i]->id, req->volumes[i]->file, path,
                          err) < 0)
            return -1;
    }
    return 0;
}

/* The process namespace to join, if any. */
static int find_pidns(struct container *c, struct create_job *job, struct err *err)
{
    const Aspis__Agent__V1__CreateContainerRequest *req = c->create_req;

    if (req->shared_pid) {
        job->pidns = pod_shared_pidns(c->table->pod, err);
        return job->pidns != NULL ? 0 : -1;
    }
    if (*req->pid_target == '\0')
        return 0;
    const struct container *target = container_find(c->table, req->pid_target);
    if (target == NULL || target->init->pid == 0 || target->init->reaped)
        return err_set(err, ERR_PRECONDITION,
                       "container %.64s, whose processes it is to see, has no process",
                       req->pid_target);
    (void)snprintf(job->pidns_path, sizeof(job->pidns_path), "/proc/%d/ns/pid",
                   (int)target->init->pid);
    job->pidns = job->pidns_path;
    return 0;
}

static void create_run(struct container *c)
{
    const Aspis__Agent__V1__CreateContainerRequest *req = c->create_req;
    struct containers *t = c->table;
    auto_err struct err err = ERR_INIT;
    int child_fds[3] = {-1, -1, -1};
    int trace = -1;
    struct create_job job = {
        .at = paths_of(c), .req = req, .images = c->images, .n_images = c->n_images, .pod = t->pod};

    if (mount_volumes(c, &err) < 0) {
        create_failed(c, &err);
        return;
    }
    if (find_pidns(c, &job, &err) < 0) {
        create_failed(c, &err);
        return;
    }
    if (!req->tty && process_open_pipes(c->init, req->stdin, child_fds, &err) < 0) {
        close_child_fds(child_fds);
        create_failed(c, &err);
        return;
    }
    c->phase = CONTAINER_CREATING;
    c->reaps_before = t->reaps;
    c->op = op_start(child_fds, create_job_run, &job, create_done, c, &trace, &err);
    close_child_fds(child_fds);
    if (c->op == NULL) {
        create_failed(c, &err);
        return;
    }
    t->ops++;
    process_set_trace(c->init, trace);
    timeline_mark(&c->timeline, "forked");
}

static void image_ready(void *arg, const char *mountpoint, const struct err *err)
{
    struct container *c = arg;
    auto_err struct err local = ERR_INIT;

    if (err != NULL) {
        create_failed(c, err);
        return;
    }
    c->images[c->n_held++].mountpoint = xstrdup(mountpoint);
    timeline_mark(&c->timeline, "image");
    if (c->remove_wanted) {
        err_set(&local, ERR_ABORTED, "the container is being removed");
        create_failed(c, &local);
    } else if (c->n_held < c->n_images) {
        pod_image_acquire(c->table->pod, c->images[c->n_held].serial, image_ready, c);
    } else {
        create_run(c);
    }
}

void handle_create(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    struct containers *t = arg;
    const Aspis__Agent__V1__CreateContainerRequest *req =
        (const Aspis__Agent__V1__CreateContainerRequest *)request;
    auto_err struct err err = ERR_INIT;

    if (!container_id_valid(req->container_id)) {
        fail_call(call, ERR_INVALID, "container id");
        return;
    }
    if (req->seccomp_filter.len > BPF_MAXINSNS * sizeof(struct sock_filter) ||
        req->seccomp_filter.len % sizeof(struct sock_filter) != 0) {
        fail_call(call, ERR_INVALID, "seccomp filter");
        return;
    }
    if (userns_check(req->uids, req->n_uids, "uids", &err) < 0 ||
        userns_check(req->gids, req->n_gids, "gids", &err) < 0) {
        rpc_fail(call, &err);
        return;
    }
    if ((req->n_uids == 0) != (req->n_gids == 0)) {
        fail_call(call, ERR_INVALID, "a user namespace takes both uids and gids");
        return;
    }
    if (container_find(t, req->container_id) != NULL) {
        fail_call(call, ERR_EXISTS, "the container exists");
        return;
    }
    if (freezer_is_on(t->freezer)) {
        fail_call(call, ERR_UNAVAILABLE, "the pod is being saved");
        return;
    }
    if (t->n >= LIMIT_AGENT_CONTAINERS || t->n_processes >= LIMIT_AGENT_PROCESSES) {
        fail_call(call, ERR_EXHAUSTED, "too many containers in one pod");
        return;
    }
    if (req->n_volume_disks > LIMIT_IMAGE_VOLUMES || req->n_raw_disks > LIMIT_IMAGE_VOLUMES) {
        fail_call(call, ERR_INVALID, "too many image volumes or disks");
        return;
    }
    struct container *c = xcalloc(1, sizeof(*c));
    c->table = t;
    c->id = xstrdup(req->container_id);
    c->name = xstrdup(req->container_id);
    c->n_images = 1 + req->n_volume_disks + req->n_raw_disks;
    c->images = xcalloc(c->n_images, sizeof(*c->images));
    c->images[0].serial = xstrdup(req->image_disk);
    for (size_t i = 0; i < req->n_volume_disks; i++)
        c->images[1 + i].serial = xstrdup(req->volume_disks[i]);
    for (size_t i = 0; i < req->n_raw_disks; i++)
        c->images[1 + req->n_volume_disks + i].serial = xstrdup(req->raw_disks[i]);
    c->oom_watch = -1;
    timeline_begin(&c->timeline);
    c->create_call = call;
    c->create_req = req;
    TAILQ_INIT(&c->execs);
    STAILQ_INIT(&c->removers);
    c->init = process_new(t->loop, t->io, "", c);
    TAILQ_INSERT_TAIL(&t->list, c, link);
    t->n++;
    t->n_processes++;
    pod_image_acquire(t->pod, c->images[0].serial, image_ready, c);
}

/* The init either executed its command or said why not. */
static void init_executed(struct process *p, const char *text, void *arg)
{
    struct container *c = arg;
    struct rpc_call *call = take(p->call);

    if (*text != '\0') {
        p->silent = true;
        fail_call(call, ERR_UNKNOWN, text);
        return;
    }
    Aspis__Agent__V1__StartContainerResponse reply;
    aspis__agent__v1__start_container_response__init(&reply);
    p->started_at_ns = wall_ns();
    p->state = PROCESS_RUNNING;
    c->phase = CONTAINER_RUNNING;
    reply.started_at_ns = (uint64_t)p->started_at_ns;
    rpc_reply(call, &reply.base);
}

void handle_start(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    struct containers *t = arg;
    const Aspis__Agent__V1__StartContainerRequest *req =
        (const Aspis__Agent__V1__StartContainerRequest *)request;
    struct container *c = container_find(t, req->container_id);
    auto_err struct err err = ERR_INIT;
    auto_free char *state_root = job_state_root(t->state_dir);

    if (c == NULL) {
        fail_call(call, ERR_NOT_FOUND, "no such container");
        return;
    }
    if (freezer_is_on(t->freezer)) {
        fail_call(call, ERR_UNAVAILABLE, "the pod is being saved");
        return;
    }
    if (c->held) {
        container_let_go(c, call);
        return;
    }
    if (c->phase != CONTAINER_CREATED || c->remove_wanted || c->init->reaped) {
        fail_call(call, ERR_PRECONDITION, "the container is not waiting to be started");
        return;
    }
    if (crun_release(state_root, c->id, &err) < 0) {
        rpc_fail(call, &err);
        return;
    }
    c->phase = CONTAINER_STARTING;
    c->init->call = call;
    if (process_watch_exec(c->init, init_executed, c, &err) < 0) {
        c->init->call = NULL;
        rpc_fail(call, &err);
    }
}

static void exit_event(struct container *c, struct process *p)
{
    Aspis__Agent__V1__Exit ev;
    aspis__agent__v1__exit__init(&ev);

    ev.container_id = c->name;
    ev.exec_id = p->exec_id;
    ev.exit_code = p->exit_code;
    ev.signal = p->signal;
    ev.oom_killed = p->oom_killed;
    ev.exited_at_ns = (uint64_t)p->exited_at_ns;
    auto_free char *why = p->silent ? xstrdup(process_trace_text(p)) : NULL;
    if (why != NULL)
        ev.start_error = why;
    (void)events_exit(c->table->events, &ev);
}

static void init_ended(struct process *p, void *arg)
{
    struct container *c = arg;

    if (p->silent)
        p->exit_code = 128; /* never ran its command: as the daemon reports a start error */
    if (c->phase < CONTAINER_ENDED)
        c->phase = CONTAINER_ENDED;
    if (!p->silent || c->told_running)
        exit_event(c, p);
    container_progress(c);
}

static void exec_ended(struct process *p, void *arg)
{
    struct container *c = arg;

    if (!p->silent)
        exit_event(c, p);
    if (p->silent || p->remove_wanted)
        exec_forget(p);
    container_progress(c);
}

void container_process_reaped(struct process *p, int status)
{
    struct container *c = p->owner;
    auto_err struct err err = ERR_INIT;
    bool is_init = p == c->init;

    if (p->reaped)
        return;
    /* The notice may come later than the end. */
    uint64_t oom = container_oom_look(c);
    process_settle_exec(p); /* answers a start that is waiting */
    if (is_init) {
        /* The rest of the container goes with its init, also where they share the pod's pid
         * namespace. */
        if (cgroup_kill(c->id, &err) < 0)
            log_warn("cannot kill what is left of a container", LOG_STR("container", c->id),
                     LOG_STR("error", err_msg(&err)));
        process_ended(p, status, oom > 0, init_ended, c);
    } else {
        bool killed = WIFSIGNALED(status) && oom > p->oom_before;
        process_ended(p, status, killed, exec_ended, c);
    }
}

static void answer_removers(struct container *c, const struct err *err)
{
    while (!STAILQ_EMPTY(&c->removers)) {
        struct waiting_call *w = STAILQ_FIRST(&c->removers);
        STAILQ_REMOVE_HEAD(&c->removers, link);
        if (err != NULL)
            rpc_fail(w->call, err);
        else
            reply_empty(w->call);
        free(w);
    }
}

static void remove_done(void *arg, const struct op_result *res, int fd, const struct err *err)
{
    struct container *c = arg;

    (void)res;
    (void)fd;
    c->op = NULL;
    c->table->ops--;
    if (c->create_call != NULL) {
        if (err != NULL)
            log_warn("cannot clean up after a failed create", LOG_STR("container", c->id),
                     LOG_STR("error", err_msg(err)));
        create_answer_error(take(c->create_call), &c->create_err);
        c->create_req = NULL;
    }
    if (err != NULL) {
        /* Kept, so that removing can be tried again. */
        c->phase = CONTAINER_ENDED;
        c->remove_wanted = false;
        answer_removers(c, err);
        return;
    }
    answer_removers(c, NULL);
    container_free(c);
}

/* True when the process is no longer in a removal's way. */
static bool out_of_the_way(struct process *p)
{
    if (p->op != NULL)
        return false;
    if (p->pid == 0)
        return true;
    if (!p->reaped)
        return false;
    if (p->state != PROCESS_EXITED)
        process_end_now(p);
    return true;
}

/* What a removal waits for takes too long, perhaps a volume that nobody serves any more. */
static void out_of_patience(struct loop_source *src, void *arg)
{
    struct container *c = arg;
    struct process *p;

    (void)src;
    log_warn("an operation hangs and is killed", LOG_STR("container", c->id));
    if (c->op != NULL && c->phase == CONTAINER_CREATING)
        op_kill(c->op);
    TAILQ_FOREACH(p, &c->execs, link)
    if (p->op != NULL)
        op_kill(p->op);
    (void)cgroup_kill(c->id, NULL);
}

static void wait_patiently(struct container *c)
{
    if (c->patience == NULL)
        c->patience = loop_add_timer(c->table->loop, PATIENCE_NS, out_of_patience, c, NULL);
}

void container_progress(struct container *c)
{
    struct process *p;
    struct process *next;
    auto_err struct err err = ERR_INIT;

    if (!c->remove_wanted || c->phase == CONTAINER_IMAGE || c->phase == CONTAINER_REMOVING)
        return;
    if (c->op != NULL) {
        wait_patiently(c);
        return;
    }
    /* From here on the ends of processes must not come back here. */
    c->remove_wanted = false;
    bool clear = out_of_the_way(c->init);
    for (p = TAILQ_FIRST(&c->execs); p != NULL; p = next) {
        next = TAILQ_NEXT(p, link);
        clear = out_of_the_way(p) && clear;
    }
    c->remove_wanted = true;
    if (!clear) {
        wait_patiently(c);
        if (cgroup_kill(c->id, &err) < 0)
            log_warn("cannot kill a container", LOG_STR("container", c->id),
                     LOG_STR("error", err_msg(&err)));
        if (c->init->pid > 0 && !c->init->reaped)
            (void)kill(c->init->pid, SIGKILL);
        return;
    }
    loop_remove(take(c->patience));
    struct job_paths paths = paths_of(c);
    container_oom_unwatch(c);
    c->phase = CONTAINER_REMOVING;
    int none[3] = {-1, -1, -1};
    c->op = op_start(none, remove_job_run, &paths, remove_done, c, NULL, &err);
    c->table->ops++;
    if (c->op == NULL)
        remove_done(c, NULL, -1, &err);
}

void handle_remove(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    struct containers *t = arg;
    const Aspis__Agent__V1__RemoveContainerRequest *req =
        (const Aspis__Agent__V1__RemoveContainerRequest *)request;
    struct container *c = container_find(t, req->container_id);

    if (c == NULL) {
        reply_empty(call);
        return;
    }
    struct waiting_call *w = xcalloc(1, sizeof(*w));
    w->call = call;
    STAILQ_INSERT_TAIL(&c->removers, w, link);
    c->remove_wanted = true;
    if (c->phase == CONTAINER_IMAGE)
        pod_image_give_up(t->pod, c); /* which ends the creation, and goes on from there */
    else
        container_progress(c);
}
