/* Processes besides a container's init: Exec and RemoveProcess. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/container_cgroup.h"
#include "agent/container_jobs.h"
#include "agent/container_table.h"
#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/limits.h"
#include "base/str.h"

void exec_forget(struct process *p)
{
    struct container *c = p->owner;

    TAILQ_REMOVE(&c->execs, p, link);
    c->table->n_processes--;
    if (p->remove_call != NULL)
        reply_empty(take(p->remove_call));
    process_free(p);
}

/* libcrun says it in words only. */
static enum err_code code_of_text(const char *text)
{
    if (strstr(text, strerror(ENOENT)) != NULL || strstr(text, "not found in $PATH") != NULL)
        return ERR_NOT_FOUND;
    if (strstr(text, strerror(EACCES)) != NULL)
        return ERR_DENIED;
    return ERR_UNKNOWN;
}

static void fail_exec(struct process *p, enum err_code code, const char *text)
{
    const Aspis__Agent__V1__ExecRequest *req = p->request;
    auto_err struct err err = ERR_INIT;

    err_set(&err, code, "%s", text);
    if (req->n_args > 0 && strstr(text, req->args[0]) == NULL)
        err_wrap(&err, "exec \"%.256s\"", req->args[0]);
    p->request = NULL;
    rpc_fail(take(p->call), &err);
}

static void exec_executed(struct process *p, const char *text, void *arg)
{
    (void)arg;
    if (*text != '\0') {
        p->silent = true; /* forgotten when it is reaped, which is about to happen */
        fail_exec(p, code_of_text(text), text);
        return;
    }
    Aspis__Agent__V1__ExecResponse reply;
    aspis__agent__v1__exec_response__init(&reply);
    Aspis__Agent__V1__Streams streams = process_streams(p);
    p->state = PROCESS_RUNNING;
    p->started_at_ns = wall_ns();
    p->request = NULL;
    reply.streams = &streams;
    reply.pid = (uint32_t)p->pid;
    rpc_reply(take(p->call), &reply.base);
}

static void exec_failed(struct process *p, enum err_code code, const char *text)
{
    struct container *c = p->owner;

    fail_exec(p, code, text);
    exec_forget(p);
    container_progress(c);
}

static void exec_done(void *arg, const struct op_result *res, int fd, const struct err *err)
{
    struct process *p = arg;
    struct container *c = p->owner;
    const Aspis__Agent__V1__ExecRequest *req = p->request;
    auto_close int terminal = fd;
    auto_err struct err local = ERR_INIT;
    int status;

    p->op = NULL;
    c->table->ops--;
    if (err != NULL) {
        /* What the new process wrote says more than the operation's own error. */
        const char *text = process_trace_text(p);
        if (*text != '\0')
            exec_failed(p, code_of_text(text), text);
        else
            exec_failed(p, err->code, err_msg(err));
        return;
    }
    p->pid = res->pid;
    bool gone = containers_claim(c->table, p->pid, p->reaps_before, &status);
    if ((req->tty && process_attach_tty(p, take_fd(&terminal), req->stdin, req->tty_rows,
                                        req->tty_cols, &local) < 0) ||
        process_watch_exec(p, exec_executed, NULL, &local) < 0) {
        p->silent = true;
        fail_exec(p, local.code, err_msg(&local));
        if (!gone)
            (void)kill(p->pid, SIGKILL);
    }
    if (gone)
        container_process_reaped(p, status);
    else if (p->remove_wanted)
        (void)kill(p->pid, SIGKILL);
    container_progress(c);
}

void handle_exec(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    struct containers *t = arg;
    const Aspis__Agent__V1__ExecRequest *req = (const Aspis__Agent__V1__ExecRequest *)request;
    struct container *c = container_find(t, req->container_id);
    auto_err struct err err = ERR_INIT;
    int child_fds[3] = {-1, -1, -1};
    char tag[24];
    int trace = -1;

    if (c == NULL) {
        fail_call(call, ERR_NOT_FOUND, "no such container");
        return;
    }
    if (!container_id_valid(req->exec_id)) {
        fail_call(call, ERR_INVALID, "exec id");
        return;
    }
    if (freezer_is_on(t->freezer)) {
        fail_call(call, ERR_UNAVAILABLE, "the pod is being saved");
        return;
    }
    if (c->phase != CONTAINER_RUNNING || c->held || c->remove_wanted || c->init->reaped) {
        fail_call(call, ERR_PRECONDITION, "the container is not running");
        return;
    }
    if (process_find(c, req->exec_id) != NULL) {
        fail_call(call, ERR_EXISTS, "the exec id is in use");
        return;
    }
    if (t->n_processes >= LIMIT_AGENT_PROCESSES) {
        fail_call(call, ERR_EXHAUSTED, "too many processes in one pod");
        return;
    }
    struct process *p = process_new(t->loop, t->io, req->exec_id, c);
    TAILQ_INSERT_TAIL(&c->execs, p, link);
    t->n_processes++;
    p->call = call;
    p->request = req;
    p->oom_before = cgroup_oom_kills(c->id);
    p->reaps_before = t->reaps;
    (void)snprintf(tag, sizeof(tag), "%llu", (unsigned long long)t->next_tag++);
    struct exec_job job = {.at = {.id = c->id, .state_dir = t->state_dir}, .req = req, .tag = tag};
    if (req->tty || process_open_pipes(p, req->stdin, child_fds, &err) == 0)
        p->op = op_start(child_fds, exec_job_run, &job, exec_done, p, &trace, &err);
    for (int i = 0; i < 3; i++)
        cleanup_closep(&child_fds[i]);
    if (p->op == NULL) {
        exec_failed(p, err.code, err_msg(&err));
        return;
    }
    t->ops++;
    process_set_trace(p, trace);
}

void handle_remove_process(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    struct containers *t = arg;
    const Aspis__Agent__V1__RemoveProcessRequest *req =
        (const Aspis__Agent__V1__RemoveProcessRequest *)request;
    struct container *c = container_find(t, req->container_id);

    if (*req->exec_id == '\0') {
        fail_call(call, ERR_INVALID, "exec id");
        return;
    }
    struct process *p = c != NULL ? process_find(c, req->exec_id) : NULL;
    if (p == NULL) {
        reply_empty(call);
        return;
    }
    if (p->remove_call != NULL)
        reply_empty(p->remove_call); /* the later call waits for both */
    p->remove_call = call;
    p->remove_wanted = true;
    if (p->state == PROCESS_EXITED)
        exec_forget(p);
    else if (p->reaped)
        process_end_now(p);
    else if (p->pid > 0)
        (void)kill(p->pid, SIGKILL);
}
