#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "cri/container_ops.h"

/* A killed process gets this long to be reaped and its output to be drained. */
#define KILL_GRACE_NS (5LL * 1000000000)

/* Output of one stream, collected on the io loop. */
struct collector {
    pthread_mutex_t lock; /* guards buf, ended, stream */
    struct buf *buf;
    struct stream *stream;
    uint64_t seen;
    bool ended;
    int changed_fd; /* shared eventfd: something ended */
};

static void on_data(void *arg, uint64_t offset, const void *data, size_t len)
{
    struct collector *c = arg;
    (void)pthread_mutex_lock(&c->lock);
    size_t room = c->buf->max - c->buf->len;
    (void)buf_append(c->buf, data, len < room ? len : room);
    c->seen = offset + len;
    if (c->stream != NULL)
        stream_ack(c->stream, c->seen);
    (void)pthread_mutex_unlock(&c->lock);
}

static void on_end(struct collector *c)
{
    (void)pthread_mutex_lock(&c->lock);
    c->ended = true;
    (void)pthread_mutex_unlock(&c->lock);
    (void)eventfd_write(c->changed_fd, 1);
}

static void on_eof(void *arg, uint64_t offset)
{
    (void)offset;
    on_end(arg);
}

static void on_reset(void *arg, const char *reason)
{
    (void)reason;
    on_end(arg);
}

static int collect(struct collector *c, struct link *link, uint32_t id, struct buf *buf,
                   int changed_fd, struct err *err)
{
    (void)pthread_mutex_init(&c->lock, NULL);
    c->buf = buf;
    c->changed_fd = changed_fd;
    c->ended = id == 0;
    if (id == 0)
        return 0;
    struct stream_callbacks cb = {
        .on_data = on_data, .on_eof = on_eof, .on_reset = on_reset, .arg = c};
    struct stream *s = stream_open_output(link, id, 0, &cb, err);
    if (s == NULL)
        return -1;
    (void)pthread_mutex_lock(&c->lock);
    c->stream = s;
    if (c->seen > 0)
        stream_ack(s, c->seen);
    (void)pthread_mutex_unlock(&c->lock);
    return 0;
}

static bool ended(struct collector *c)
{
    (void)pthread_mutex_lock(&c->lock);
    bool e = c->ended;
    (void)pthread_mutex_unlock(&c->lock);
    return e;
}

/* What one exec consists of; `x` is known to the sandbox while it runs. */
struct run {
    struct container *c;
    struct exec x;
    struct collector out, errout;
    bool started;
};

static struct exec *exec_begin(struct run *r, struct container *c, struct err *err)
{
    struct sandbox *s = c->sandbox;
    char id[17];
    fs_random_hex(id, 16);
    r->c = c;
    r->x = (struct exec){.container_id = xstrdup(c->rec.id), .exec_id = xstrdup(id)};
    r->x.ended_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (r->x.ended_fd < 0) {
        (void)err_sys(err, errno, "exec");
        return NULL;
    }
    (void)pthread_mutex_lock(&s->rt->lock);
    TAILQ_INSERT_TAIL(&s->execs, &r->x, link);
    (void)pthread_mutex_unlock(&s->rt->lock);
    return &r->x;
}

static int call(struct run *r, const char *method, const ProtobufCMessage *req,
                struct cancel *cancel, struct err *err)
{
    struct machine *m = sandbox_use_machine(r->c->sandbox, err);
    if (m == NULL)
        return -1;
    auto_arena struct arena *a = arena_new(LIMIT_CALL_ARENA);
    const ProtobufCMessage *reply =
        a == NULL ? NULL
                  : link_call(machine_link(m), method, req, &aspis__agent__v1__empty__descriptor, a,
                              cancel, err);
    sandbox_release_machine(r->c->sandbox);
    return reply == NULL ? -1 : 0;
}

/* Leaves nothing in the guest, whatever happened; with a deadline of its own. */
static void exec_end(struct run *r)
{
    if (r->started) {
        Aspis__Agent__V1__RemoveProcessRequest req;
        aspis__agent__v1__remove_process_request__init(&req);
        auto_cancel struct cancel *own = cancel_new(mono_ns() + KILL_GRACE_NS, NULL);
        req.container_id = r->x.container_id;
        req.exec_id = r->x.exec_id;
        (void)call(r, "RemoveProcess", &req.base, own, NULL);
    }
    if (r->out.stream != NULL)
        stream_close(r->out.stream);
    if (r->errout.stream != NULL)
        stream_close(r->errout.stream);
    if (r->x.ended_fd >= 0 && r->x.exec_id != NULL) {
        (void)pthread_mutex_lock(&r->c->rt->lock);
        TAILQ_REMOVE(&r->c->sandbox->execs, &r->x, link);
        (void)pthread_mutex_unlock(&r->c->rt->lock);
    }
    cleanup_closep(&r->x.ended_fd);
    free(r->x.container_id);
    free(r->x.exec_id);
}

static int start(struct run *r, char *const *cmd, size_t n_cmd, struct buf *out, struct buf *errout,
                 struct cancel *cancel, struct err *err)
{
    struct machine *m = sandbox_use_machine(r->c->sandbox, err);
    if (m == NULL)
        return -1;
    auto_arena struct arena *a = arena_new(LIMIT_CALL_ARENA);
    Aspis__Agent__V1__ExecRequest req;
    aspis__agent__v1__exec_request__init(&req);
    req.container_id = r->x.container_id;
    req.exec_id = r->x.exec_id;
    req.n_args = n_cmd;
    char **args = xcalloc(n_cmd, sizeof(*args));
    for (size_t i = 0; i < n_cmd; i++)
        args[i] = cmd[i];
    req.args = args;
    r->started = true; /* even a failed call may have started something */
    const ProtobufCMessage *reply =
        a == NULL ? NULL
                  : link_call(machine_link(m), "Exec", &req.base,
                              &aspis__agent__v1__exec_response__descriptor, a, cancel, err);
    free(args);
    int rc = reply == NULL ? -1 : 0;
    const Aspis__Agent__V1__ExecResponse *er = (const Aspis__Agent__V1__ExecResponse *)reply;
    uint32_t ids[2] = {0, 0};
    if (rc == 0 && er->streams != NULL) {
        ids[0] = er->streams->stdout_id;
        ids[1] = er->streams->stderr_id;
    }
    if (rc == 0)
        rc = collect(&r->out, machine_link(m), ids[0], out, r->x.ended_fd, err);
    if (rc == 0)
        rc = collect(&r->errout, machine_link(m), ids[1], errout, r->x.ended_fd, err);
    sandbox_release_machine(r->c->sandbox);
    return rc;
}

/* Until the process has ended and both its streams have, the machine is lost (1), or the token
 * fires (-1). */
static int wait_end(struct run *r, struct cancel *cancel, struct err *err)
{
    for (;;) {
        eventfd_t n;
        (void)eventfd_read(r->x.ended_fd, &n);
        (void)pthread_mutex_lock(&r->c->rt->lock);
        bool over = r->x.ended;
        bool lost = r->x.lost;
        (void)pthread_mutex_unlock(&r->c->rt->lock);
        if (lost)
            return 1;
        if (over && ended(&r->out) && ended(&r->errout))
            return 0;
        if (cancel_poll(cancel, r->x.ended_fd, POLLIN, -1, err) < 0)
            return -1;
    }
}

static void kill_process(struct run *r)
{
    auto_cancel struct cancel *own = cancel_new(mono_ns() + KILL_GRACE_NS, NULL);
    Aspis__Agent__V1__SignalProcessRequest req;
    aspis__agent__v1__signal_process_request__init(&req);
    req.container_id = r->x.container_id;
    req.exec_id = r->x.exec_id;
    req.signal = SIGKILL;
    if (call(r, "SignalProcess", &req.base, own, NULL) == 0)
        (void)wait_end(r, own, NULL);
}

int container_exec_sync(struct container *c, char *const *cmd, size_t n_cmd, int64_t timeout,
                        struct buf *out, struct buf *errout, int32_t *exit_code,
                        struct cancel *cancel, struct err *err)
{
    char title[200];
    if (n_cmd == 0 || str_empty(cmd[0]))
        return err_set(err, ERR_INVALID, "exec in %s: cmd is empty", container_title(c, title));
    if (container_phase(c) != CONTAINER_RUNNING)
        return err_set(err, ERR_PRECONDITION, "exec in %s: it is not running",
                       container_title(c, title));
    int64_t end = timeout > 0 && timeout < INT32_MAX ? mono_ns() + timeout * 1000000000 : 0;
    auto_cancel struct cancel *limit = cancel_child(cancel, end, err);
    if (limit == NULL)
        return -1;
    struct run r = {.x = {.ended_fd = -1}};
    int rc = exec_begin(&r, c, err) == NULL ? -1 : start(&r, cmd, n_cmd, out, errout, limit, err);
    if (rc == 0) {
        rc = wait_end(&r, limit, err);
        if (rc < 0)
            kill_process(&r);
        else if (rc > 0)
            rc = err_set(err, ERR_UNAVAILABLE, "the machine died during the command");
        else
            *exit_code = (int32_t)r.x.exit_code;
    }
    if (rc < 0 && err != NULL && err->code == ERR_DEADLINE && end != 0 && mono_ns() >= end)
        (void)err_set(err, ERR_DEADLINE, "command \"%.100s\" timed out after %lld s and was killed",
                      cmd[0], (long long)timeout);
    exec_end(&r);
    return rc < 0 ? err_wrap(err, "exec in %s", container_title(c, title)) : 0;
}
