/* Exec, Attach, PortForward: checked here, done where their URL leads. */
#include "base/limits.h"
#include "base/str.h"
#include "cri/daemon.h"
#include "cri/model.h"
#include "cri/service_runtime.h"
#include "cri/streaming/server.h"

static const struct daemon *daemon_of(const struct call *call)
{
    return call->daemon;
}

static int check_streams(bool tty, bool in, bool out, bool errout, struct err *err)
{
    if (tty && errout)
        return err_set(err, ERR_INVALID, "tty and stderr cannot both be true");
    if (!in && !out && !errout)
        return err_set(err, ERR_INVALID, "one of stdin, stdout, or stderr must be set");
    return 0;
}

static int check_running(const struct call *call, const char *id, const char *what,
                         struct stream_request *r, struct err *err)
{
    char title[200];
    if (str_empty(id))
        return err_set(err, ERR_INVALID, "container_id is empty");
    auto_container struct container *c = model_find_container(daemon_of(call)->runtime, id, err);
    if (c == NULL)
        return -1;
    if (container_phase(c) != CONTAINER_RUNNING)
        return err_set(err, ERR_PRECONDITION, "%s %s: it is not running", what,
                       container_title(c, title));
    r->id = xstrdup(c->rec.id);
    return 0;
}

static int offer(struct call *call, struct stream_request **r, char **url, struct err *err)
{
    auto_free char *text = stream_server_offer(daemon_of(call)->streams, take(*r), err);
    if (text == NULL)
        return -1;
    *url = call_string(call, text, err);
    return *url == NULL ? -1 : 0;
}

int cri_exec(struct call *call, const ProtobufCMessage *message, ProtobufCMessage **reply,
             struct err *err)
{
    const Runtime__V1__ExecRequest *req = (const Runtime__V1__ExecRequest *)message;
    Runtime__V1__ExecResponse *out =
        call_message(call, &runtime__v1__exec_response__descriptor, err);
    auto_stream_request struct stream_request *r = xcalloc(1, sizeof(*r));
    r->kind = REQUEST_EXEC;
    if (out == NULL || check_streams(req->tty, req->stdin, req->stdout, req->stderr, err) < 0)
        return -1;
    if (req->n_cmd == 0 || str_empty(req->cmd[0]))
        return err_set(err, ERR_INVALID, "cmd is empty");
    if (check_running(call, req->container_id, "exec in", r, err) < 0)
        return -1;
    for (size_t i = 0; i < req->n_cmd; i++)
        strv_add(&r->cmd, req->cmd[i]);
    r->tty = req->tty;
    r->in = req->stdin;
    r->out = req->stdout;
    r->err = req->stderr;
    *reply = &out->base;
    return offer(call, &r, &out->url, err);
}

int cri_attach(struct call *call, const ProtobufCMessage *message, ProtobufCMessage **reply,
               struct err *err)
{
    const Runtime__V1__AttachRequest *req = (const Runtime__V1__AttachRequest *)message;
    Runtime__V1__AttachResponse *out =
        call_message(call, &runtime__v1__attach_response__descriptor, err);
    auto_stream_request struct stream_request *r = xcalloc(1, sizeof(*r));
    r->kind = REQUEST_ATTACH;
    if (out == NULL || check_streams(req->tty, req->stdin, req->stdout, req->stderr, err) < 0 ||
        check_running(call, req->container_id, "attach to", r, err) < 0)
        return -1;
    r->tty = req->tty;
    r->in = req->stdin;
    r->out = req->stdout;
    r->err = req->stderr;
    *reply = &out->base;
    return offer(call, &r, &out->url, err);
}

int cri_port_forward(struct call *call, const ProtobufCMessage *message, ProtobufCMessage **reply,
                     struct err *err)
{
    const Runtime__V1__PortForwardRequest *req = (const Runtime__V1__PortForwardRequest *)message;
    Runtime__V1__PortForwardResponse *out =
        call_message(call, &runtime__v1__port_forward_response__descriptor, err);
    char title[200];
    auto_stream_request struct stream_request *r = xcalloc(1, sizeof(*r));
    r->kind = REQUEST_PORT_FORWARD;
    if (out == NULL)
        return -1;
    if (str_empty(req->pod_sandbox_id))
        return err_set(err, ERR_INVALID, "pod_sandbox_id is empty");
    if (req->n_port > LIMIT_STREAM_PORTS)
        return err_set(err, ERR_INVALID, "more than %d ports", LIMIT_STREAM_PORTS);
    auto_sandbox struct sandbox *s =
        model_find_sandbox(daemon_of(call)->runtime, req->pod_sandbox_id, err);
    if (s == NULL)
        return -1;
    if (sandbox_use_machine(s, err) == NULL)
        return err_wrap(err, "forward ports of %s", sandbox_title(s, title));
    sandbox_release_machine(s);
    r->id = xstrdup(s->rec.id);
    r->ports = xcalloc(req->n_port + 1, sizeof(*r->ports));
    for (size_t i = 0; i < req->n_port; i++) {
        if (req->port[i] < 1 || req->port[i] > UINT16_MAX)
            return err_set(err, ERR_INVALID, "port %d", req->port[i]);
        r->ports[r->n_ports++] = (uint16_t)req->port[i];
    }
    *reply = &out->base;
    return offer(call, &r, &out->url, err);
}
