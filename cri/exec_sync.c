#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include "base/limits.h"
#include "base/str.h"
#include "cri/container_ops.h"
#include "cri/exec_process.h"

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

static void collector_init(struct collector *c, struct buf *buf)
{
    (void)pthread_mutex_init(&c->lock, NULL);
    c->buf = buf;
}

/* Before the process ends for us: its eventfd is written to until then. */
static void collector_clear(struct collector *c)
{
    stream_close(c->stream);
    (void)pthread_mutex_destroy(&c->lock);
}

static int collect(struct collector *c, struct link *link, uint32_t id, int changed_fd,
                   struct err *err)
{
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

/* One exec and what collects its output. */
struct run {
    struct exec_process p;
    struct collector out, errout;
};

static int start(struct run *r, struct container *c, const struct strv *cmd, struct cancel *cancel,
                 struct err *err)
{
    if (exec_start(&r->p, c, cmd, false, false, cancel, err) < 0)
        return -1;
    struct machine *m = sandbox_use_machine(c->sandbox, err);
    if (m == NULL)
        return -1;
    int fd = r->p.x.ended_fd;
    int rc = collect(&r->out, machine_link(m), r->p.stdout_id, fd, err);
    if (rc == 0)
        rc = collect(&r->errout, machine_link(m), r->p.stderr_id, fd, err);
    sandbox_release_machine(c->sandbox);
    return rc;
}

/* Until the process has ended and both its streams have, the machine is lost (1), or the token
 * fires (-1). */
static int wait_end(struct run *r, int32_t *exit_code, struct cancel *cancel, struct err *err)
{
    for (;;) {
        eventfd_t n;
        uint32_t code;
        (void)eventfd_read(r->p.x.ended_fd, &n);
        int over = exec_over(&r->p, &code);
        if (over < 0)
            return 1;
        if (over > 0 && ended(&r->out) && ended(&r->errout)) {
            *exit_code = (int32_t)code;
            return 0;
        }
        if (cancel_poll(cancel, r->p.x.ended_fd, POLLIN, -1, err) < 0)
            return -1;
    }
}

/* It is gone when the caller hears that its time was up. */
static void kill_process(struct run *r)
{
    int32_t code;
    auto_cancel struct cancel *own = cancel_new(mono_ns() + KILL_GRACE_NS, NULL);
    if (exec_kill(&r->p, own, NULL) == 0)
        (void)wait_end(r, &code, own, NULL);
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
    struct run r = {.p = EXEC_PROCESS_INIT};
    const struct strv args = {.v = (char **)(uintptr_t)cmd, .n = n_cmd};
    collector_init(&r.out, out);
    collector_init(&r.errout, errout);
    int rc = start(&r, c, &args, limit, err);
    if (rc == 0) {
        rc = wait_end(&r, exit_code, limit, err);
        if (rc < 0)
            kill_process(&r);
        else if (rc > 0)
            rc = err_set(err, ERR_UNAVAILABLE, "the machine died during the command");
    }
    if (rc < 0 && err != NULL && err->code == ERR_DEADLINE && end != 0 && mono_ns() >= end)
        (void)err_set(err, ERR_DEADLINE, "command \"%.100s\" timed out after %lld s and was killed",
                      cmd[0], (long long)timeout);
    collector_clear(&r.out);
    collector_clear(&r.errout);
    exec_end(&r.p);
    return rc < 0 ? err_wrap(err, "exec in %s", container_title(c, title)) : 0;
}
