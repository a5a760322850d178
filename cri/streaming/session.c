#include "cri/streaming/session.h"

#include <jansson.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "cri/container_input.h"
#include "cri/exec_process.h"
#include "cri/streaming/outlet.h"

/* --- outlet --- */

static void outlet_data(void *arg, uint64_t offset, const void *data, size_t len)
{
    struct outlet *o = arg;
    if (o->lane != NULL && lane_put(o->lane, data, len) == 0)
        return;
    (void)pthread_mutex_lock(&o->lock);
    o->done = offset + len;
    if (o->stream != NULL)
        stream_ack(o->stream, o->done);
    (void)pthread_mutex_unlock(&o->lock);
}

static void outlet_sent(void *arg, uint64_t total)
{
    struct outlet *o = arg;
    (void)pthread_mutex_lock(&o->lock);
    o->done = total;
    if (o->stream != NULL)
        stream_ack(o->stream, total);
    (void)pthread_mutex_unlock(&o->lock);
}

void outlet_stop(struct outlet *o)
{
    (void)pthread_mutex_lock(&o->lock);
    o->ended = true;
    (void)pthread_cond_broadcast(&o->changed);
    (void)pthread_mutex_unlock(&o->lock);
}

static void outlet_eof(void *arg, uint64_t offset)
{
    struct outlet *o = arg;
    (void)offset;
    outlet_stop(o);
    if (o->lane != NULL)
        lane_end(o->lane);
    conn_wake(o->conn);
}

static void outlet_reset(void *arg, const char *reason)
{
    (void)reason;
    outlet_eof(arg, 0);
}

int outlet_open(struct outlet *o, struct conn *conn, struct lane *lane, struct link *link,
                uint32_t id, struct err *err)
{
    const struct stream_callbacks cb = {
        .on_data = outlet_data, .on_eof = outlet_eof, .on_reset = outlet_reset, .arg = o};
    (void)pthread_mutex_init(&o->lock, NULL);
    (void)pthread_cond_init(&o->changed, NULL);
    o->up = true;
    o->conn = conn;
    o->lane = lane;
    if (lane != NULL) {
        lane->arg = o;
        lane->on_sent = outlet_sent;
    }
    if (id == 0) {
        outlet_eof(o, 0);
        return 0;
    }
    struct stream *s = stream_open_output(link, id, 0, &cb, err);
    if (s == NULL) {
        outlet_stop(o);
        return -1;
    }
    (void)pthread_mutex_lock(&o->lock);
    o->stream = s;
    stream_ack(s, o->done);
    (void)pthread_mutex_unlock(&o->lock);
    return 0;
}

bool outlet_ended(struct outlet *o)
{
    (void)pthread_mutex_lock(&o->lock);
    bool ended = o->ended;
    (void)pthread_mutex_unlock(&o->lock);
    return ended;
}

void outlet_wait(struct outlet *o)
{
    (void)pthread_mutex_lock(&o->lock);
    while (!o->ended)
        (void)pthread_cond_wait(&o->changed, &o->lock);
    (void)pthread_mutex_unlock(&o->lock);
}

void outlet_close(struct outlet *o)
{
    if (!o->up)
        return;
    o->up = false;
    (void)pthread_mutex_lock(&o->lock);
    struct stream *s = take(o->stream);
    (void)pthread_mutex_unlock(&o->lock);
    stream_close(s);
    (void)pthread_cond_destroy(&o->changed);
    (void)pthread_mutex_destroy(&o->lock);
}

/* --- session --- */

struct session {
    struct conn *conn;
    struct container *c;
    const struct stream_request *request;
    const struct protocol *protocol;
    struct cancel *work; /* fires at the end: for what the threads wait for */
    struct service service;
    struct lane *lanes[LANE_DATA]; /* by kind */
    int64_t open_deadline;
    enum { OPENING, RUNNING, OVER } state;

    struct exec_process exec;
    struct outlet out[2];
    struct stream *in;
    pthread_t pump, sizer;
    bool pump_runs, sizer_runs;

    /* attach */
    struct hub_listener listener;
    bool listening;
    atomic_bool ended[2], overflow, input_over;
};

static bool is_exec(const struct session *s)
{
    return s->request->kind == REQUEST_EXEC;
}

/* What the client will open. */
static bool expected(const struct session *s, enum lane_kind kind)
{
    const struct stream_request *r = s->request;
    switch (kind) {
    case LANE_ERROR:
        return true;
    case LANE_STDIN:
        return r->in;
    case LANE_STDOUT:
        return r->out;
    case LANE_STDERR:
        return r->err && !r->tty;
    case LANE_RESIZE:
        return r->tty && s->protocol->version >= 3;
    case LANE_UNKNOWN:
    case LANE_DATA:
        break;
    }
    return false;
}

static int on_open(void *arg, struct lane *l)
{
    struct session *s = arg;
    if (!expected(s, l->kind) || s->lanes[l->kind] != NULL || s->state != OPENING) {
        lane_discard(l);
        return 0;
    }
    s->lanes[l->kind] = l;
    if (l->kind != LANE_STDIN && l->kind != LANE_RESIZE)
        lane_discard(l); /* clients only read these */
    if (!is_exec(s) && (l->kind == LANE_STDOUT || l->kind == LANE_STDERR))
        l->out.max = l->turn.max = LIMIT_ATTACH_BUFFER;
    return 0;
}

/* --- the end --- */

static char *status_json(int code, const char *failure)
{
    if (failure == NULL && code == 0)
        return xstrdup("{\"metadata\":{},\"status\":\"Success\"}");
    char text[LIMIT_GUEST_ERROR * 2];
    json_auto_t *j = NULL;
    if (failure != NULL) {
        (void)snprintf(text, sizeof(text), "Internal error occurred: %s", failure);
        j = json_pack("{s:{},s:s,s:s,s:s,s:{s:[{s:s}]},s:i}", "metadata", "status", "Failure",
                      "message", text, "reason", "InternalError", "details", "causes", "message",
                      failure, "code", 500);
    } else {
        char digits[16];
        (void)snprintf(digits, sizeof(digits), "%d", code);
        (void)snprintf(text, sizeof(text),
                       "command terminated with non-zero exit code: exit code %d", code);
        j = json_pack("{s:{},s:s,s:s,s:s,s:{s:[{s:s,s:s}]}}", "metadata", "status", "Failure",
                      "message", text, "reason", "NonZeroExitCode", "details", "causes", "reason",
                      "ExitCode", "message", digits);
    }
    char *json = j != NULL ? json_dumps(j, JSON_COMPACT) : NULL;
    return json != NULL ? json : xstrdup("{\"status\":\"Failure\",\"reason\":\"InternalError\"}");
}

static char *status_text(int code, const char *failure)
{
    char text[LIMIT_GUEST_ERROR * 2];
    if (failure == NULL && code == 0)
        return NULL;
    if (failure != NULL)
        (void)snprintf(text, sizeof(text), "%s", failure);
    else
        (void)snprintf(text, sizeof(text),
                       "command terminated with non-zero exit code: exit code %d", code);
    return xstrdup(text);
}

/* The status, the ends of all streams; then the client is waited for. failure NULL: it ended by
 * itself with this code. */
static void finish(struct session *s, int code, const char *failure)
{
    auto_free char *status =
        s->protocol->version >= 4 ? status_json(code, failure) : status_text(code, failure);
    s->state = OVER;
    struct lane *error = s->lanes[LANE_ERROR];
    if (error != NULL && status != NULL)
        (void)lane_put(error, status, strlen(status));
    for (unsigned k = LANE_ERROR; k < LANE_DATA; k++) {
        struct lane *l = s->lanes[k];
        if (l == NULL)
            continue;
        if (k == LANE_STDIN || k == LANE_RESIZE) {
            lane_discard(l);
            lane_reset(l);
        } else {
            lane_end(l);
        }
    }
    cancel_fire(s->work);
    conn_close(s->conn);
}

/* --- stdin and the terminal's size, each on a thread --- */

static int write_input(struct session *s, const void *data, size_t len, bool eof)
{
    auto_err struct err err = ERR_INIT;
    int rc = is_exec(s) ? stream_write(s->in, data, len, eof, s->work, &err)
                        : container_input_write(s->c, data, len, eof, s->work, &err);
    if (rc < 0)
        log_debug("stdin ends early", LOG_STR("container", s->c->rec.id),
                  LOG_STR("error", err_msg(&err)));
    return rc;
}

static void *pump_input(void *arg)
{
    struct session *s = arg;
    struct lane *l = s->lanes[LANE_STDIN];
    auto_buf struct buf data = BUF_INIT(MiB(1));
    int rc;
    while ((rc = lane_take(l, &data)) == 1) {
        if (write_input(s, data.data, data.len, false) < 0) {
            lane_discard(l); /* nobody reads it: what still comes is thrown away */
            return NULL;
        }
        buf_reset(&data);
    }
    if (rc < 0)
        return NULL;
    if (is_exec(s)) {
        (void)write_input(s, NULL, 0, true);
    } else if (s->c->config->stdin_once && !s->request->tty) {
        (void)write_input(s, NULL, 0, true);
    } else {
        /* as containerd: who has no more to say to a container that listens on is let go */
        atomic_store(&s->input_over, true);
        conn_wake(s->conn);
    }
    return NULL;
}

/* The last complete size in `text`, whose objects may be cut anywhere. 1 when there is one. */
static int last_size(struct buf *text, uint32_t *cols, uint32_t *rows)
{
    int found = 0;
    char *end;
    while (text->len > 0 && (end = memchr(text->data, '}', text->len)) != NULL) {
        size_t n = (size_t)(end - text->data) + 1;
        json_auto_t *j = json_loadb(text->data, n, 0, NULL);
        json_int_t w = json_integer_value(json_object_get(j, "Width"));
        json_int_t h = json_integer_value(json_object_get(j, "Height"));
        if (w > 0 && h > 0 && w <= UINT16_MAX && h <= UINT16_MAX) {
            *cols = (uint32_t)w;
            *rows = (uint32_t)h;
            found = 1;
        }
        buf_consume(text, n);
    }
    if (text->len > KiB(1))
        buf_reset(text);
    return found;
}

static void *follow_size(void *arg)
{
    struct session *s = arg;
    struct lane *l = s->lanes[LANE_RESIZE];
    auto_buf struct buf text = BUF_INIT(MiB(2));
    auto_buf struct buf data = BUF_INIT(MiB(1));
    while (lane_take(l, &data) == 1) {
        uint32_t cols;
        uint32_t rows;
        (void)buf_append(&text, data.data, data.len);
        buf_reset(&data);
        if (last_size(&text, &cols, &rows) != 0)
            (void)exec_resize(s->c, is_exec(s) ? s->exec.x.exec_id : "", cols, rows, s->work, NULL);
    }
    return NULL;
}

/* --- begin --- */

static int begin_exec(struct session *s, struct err *err)
{
    const struct stream_request *r = s->request;
    if (exec_start(&s->exec, s->c, &r->cmd, r->tty, r->in, s->work, err) < 0)
        return -1;
    s->service.event_fd = s->exec.x.ended_fd;
    struct machine *m = sandbox_use_machine(s->c->sandbox, err);
    if (m == NULL)
        return -1;
    struct link *link = machine_link(m);
    int rc = outlet_open(&s->out[0], s->conn, s->lanes[LANE_STDOUT], link, s->exec.stdout_id, err);
    if (rc == 0)
        rc = outlet_open(&s->out[1], s->conn, s->lanes[LANE_STDERR], link, s->exec.stderr_id, err);
    if (rc == 0 && s->exec.stdin_id != 0) {
        s->in = stream_open_input(link, s->exec.stdin_id, err);
        rc = s->in != NULL ? 0 : -1;
    }
    sandbox_release_machine(s->c->sandbox);
    return rc;
}

static void heard_data(void *arg, unsigned stream, const void *data, size_t len)
{
    struct session *s = arg;
    struct lane *l = s->lanes[stream == 0 ? LANE_STDOUT : LANE_STDERR];
    if (l == NULL || atomic_load(&s->overflow))
        return;
    if (lane_put(l, data, len) < 0) {
        atomic_store(&s->overflow, true);
        conn_wake(s->conn);
    }
}

static void heard_end(void *arg, unsigned stream)
{
    struct session *s = arg;
    atomic_store(&s->ended[stream], true);
    conn_wake(s->conn);
}

static int begin_attach(struct session *s, struct err *err)
{
    if (container_phase(s->c) != CONTAINER_RUNNING && container_phase(s->c) != CONTAINER_CREATED)
        return err_set(err, ERR_PRECONDITION, "the container is not running");
    s->listener = (struct hub_listener){.on_data = heard_data, .on_end = heard_end, .arg = s};
    hub_listen(&s->c->hub, &s->listener);
    s->listening = true;
    return 0;
}

static void begin(struct session *s)
{
    auto_err struct err err = ERR_INIT;
    s->state = RUNNING;
    if ((is_exec(s) ? begin_exec(s, &err) : begin_attach(s, &err)) < 0) {
        (void)err_wrap(&err, is_exec(s) ? "error executing command in container"
                                        : "error attaching to container");
        finish(s, 0, err_msg(&err));
        return;
    }
    bool takes = is_exec(s) ? s->in != NULL : s->c->rec.stdin_id != 0;
    if (s->lanes[LANE_STDIN] != NULL && takes)
        s->pump_runs = pthread_create(&s->pump, NULL, pump_input, s) == 0;
    if (s->lanes[LANE_STDIN] != NULL && !s->pump_runs)
        lane_discard(s->lanes[LANE_STDIN]);
    if (s->lanes[LANE_RESIZE] != NULL)
        s->sizer_runs = pthread_create(&s->sizer, NULL, follow_size, s) == 0;
}

/* --- turns --- */

static int64_t turn_opening(struct session *s)
{
    bool all = true;
    for (unsigned k = LANE_ERROR; k < LANE_DATA; k++)
        all = all && (!expected(s, (enum lane_kind)k) || s->lanes[k] != NULL);
    if (conn_gone(s->conn) || conn_stopping(s->conn) || mono_ns() >= s->open_deadline) {
        conn_abort(s->conn);
        return 0;
    }
    if (!all)
        return s->open_deadline;
    conn_flush(s->conn); /* the answers to the streams, before anything takes time */
    begin(s);
    return 0;
}

static void turn_exec(struct session *s)
{
    eventfd_t n;
    uint32_t code;
    (void)eventfd_read(s->exec.x.ended_fd, &n);
    int over = exec_over(&s->exec, &code);
    if (over < 0)
        finish(s, 0, "error executing command in container: the pod's machine is gone");
    else if (over > 0 && outlet_ended(&s->out[0]) && outlet_ended(&s->out[1]))
        finish(s, (int)code, NULL);
}

static void turn_attach(struct session *s)
{
    if (conn_gone(s->conn) && !(s->pump_runs && s->c->config->stdin_once && !s->request->tty))
        conn_abort(s->conn);
    else if (conn_gone(s->conn))
        conn_close(s->conn); /* its input's end is on its way */
    else if (atomic_load(&s->overflow))
        finish(s, 0, "error attaching to container: the client reads too slowly");
    else if ((atomic_load(&s->ended[0]) && atomic_load(&s->ended[1])) ||
             atomic_load(&s->input_over))
        finish(s, 0, NULL);
}

static int64_t on_turn(void *arg)
{
    struct session *s = arg;
    if (s->state == OPENING)
        return turn_opening(s);
    if (s->state == OVER)
        return 0;
    if (conn_stopping(s->conn))
        conn_abort(s->conn);
    else if (is_exec(s))
        turn_exec(s);
    else
        turn_attach(s);
    return 0;
}

static void tear_down(struct session *s)
{
    if (s->listening)
        hub_unlisten(&s->c->hub, &s->listener);
    /* an attached client that is gone leaves its input's end to a container that reads it once */
    if (s->state == RUNNING && !is_exec(s) && s->pump_runs && s->c->config->stdin_once &&
        !s->request->tty && !conn_stopping(s->conn)) {
        auto_cancel struct cancel *patience = cancel_new(mono_ns() + 1000000000LL, NULL);
        (void)container_input_write(s->c, NULL, 0, true, patience, NULL);
    }
    cancel_fire(s->work);
    if (s->lanes[LANE_STDIN] != NULL)
        lane_discard(s->lanes[LANE_STDIN]);
    if (s->lanes[LANE_RESIZE] != NULL)
        lane_discard(s->lanes[LANE_RESIZE]);
    if (s->pump_runs)
        (void)pthread_join(s->pump, NULL);
    if (s->sizer_runs)
        (void)pthread_join(s->sizer, NULL);
    stream_close(s->in);
    outlet_close(&s->out[0]);
    outlet_close(&s->out[1]);
    if (is_exec(s))
        exec_end(&s->exec);
}

void session_run(struct conn *conn, struct container *c, const struct stream_request *r,
                 const struct protocol *p, struct cancel *stop)
{
    auto_cancel struct cancel *work = cancel_child(stop, 0, NULL);
    struct session s = {.conn = conn,
                        .c = c,
                        .request = r,
                        .protocol = p,
                        .work = work,
                        .open_deadline = mono_ns() + LIMIT_STREAM_OPEN_NS,
                        .exec = EXEC_PROCESS_INIT};
    if (work == NULL)
        return;
    s.service = (struct service){.open = on_open, .turn = on_turn, .event_fd = -1, .arg = &s};
    conn_run(conn, &s.service);
    tear_down(&s);
}
