#include "cri/grpc.h"

#include <fcntl.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/compression.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/log.h>
#include <grpc/support/time.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "cri/message.h"
#include "cri/socket.h"
#include "cri/workers.h"

/* Calls that may arrive before the event thread has asked for more. */
#define REQUESTS_WAITING 16
#define WORKER_IDLE_NS (10LL * 1000000000)
/* How long running calls may take to answer when the server stops; after that they are cut off. */
#define STOP_GRACE_NS (2LL * 1000000000)

struct rpc;

/* The tag of one pending operation. Its memory outlives the operation: it is part of the rpc, and
 * every pending operation holds a reference on that. */
struct event {
    void (*fn)(struct rpc *r, bool ok);
    struct rpc *rpc;
};

/* A packed message of a stream that waits to be sent. */
struct out {
    grpc_byte_buffer *bytes;
    size_t len;
    STAILQ_ENTRY(out) link;
};

struct rpc {
    struct call call; /* what the handler sees */
    struct gserver *server;
    atomic_int refs;
    LIST_ENTRY(rpc) link; /* in server->live, under server->lock */

    grpc_call *handle;
    grpc_call_details details;
    grpc_metadata_array metadata;
    grpc_byte_buffer *in;
    int cancelled; /* written by gRPC; valid in on_close */
    struct event arrived, received, closed, sent, finished;

    pthread_mutex_t lock; /* for what follows: handler thread and event thread meet here */
    pthread_cond_t moved; /* a message has left, or `gone` was set */
    STAILQ_HEAD(, out) queue;
    size_t queued;     /* bytes */
    uint64_t departed; /* messages that have left */
    bool sending;      /* the head of the queue is in gRPC's hands */
    bool headers_sent;
    bool gone;    /* the client has left, or sending failed */
    bool stalled; /* the client was too slow once: enough */
};

struct gserver {
    struct gserver_opts opts;
    grpc_server *server;
    grpc_completion_queue *cq;
    pthread_t thread;
    bool thread_running;
    struct workers *workers;
    struct event shut_down;

    pthread_mutex_t lock;
    pthread_cond_t changed; /* live list empty, or shutdown_done */
    LIST_HEAD(, rpc) live;  /* under lock: calls, and requests for calls */
    bool stopping;          /* under lock */
    bool shutdown_done;     /* under lock */
};

static void on_arrived(struct rpc *r, bool ok);
static void on_received(struct rpc *r, bool ok);
static void on_closed(struct rpc *r, bool ok);
static void on_sent(struct rpc *r, bool ok);
static void on_finished(struct rpc *r, bool ok);
static int stream_send(struct call *call, const void *data, size_t len, struct err *err);

static struct timespec timespec_of(int64_t ns)
{
    return (struct timespec){.tv_sec = (time_t)(ns / 1000000000),
                             .tv_nsec = (long)(ns % 1000000000)};
}

static void cond_init_monotonic(pthread_cond_t *cond)
{
    pthread_condattr_t attr;
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(cond, &attr);
    (void)pthread_condattr_destroy(&attr);
}

static struct rpc *rpc_of(struct call *call)
{
    return (struct rpc *)(void *)call; /* its first member */
}

/* --- life of an rpc --- */

static void queue_clear(struct rpc *r)
{
    struct out *o;
    while ((o = STAILQ_FIRST(&r->queue)) != NULL) {
        STAILQ_REMOVE_HEAD(&r->queue, link);
        grpc_byte_buffer_destroy(o->bytes);
        free(o);
    }
    r->queued = 0;
}

static void rpc_unref(struct rpc *r)
{
    if (atomic_fetch_sub(&r->refs, 1) != 1)
        return;
    struct gserver *s = r->server;
    queue_clear(r);
    if (r->in != NULL)
        grpc_byte_buffer_destroy(r->in);
    grpc_call_details_destroy(&r->details);
    grpc_metadata_array_destroy(&r->metadata);
    if (r->handle != NULL)
        grpc_call_unref(r->handle);
    (void)pthread_cond_destroy(&r->moved);
    (void)pthread_mutex_destroy(&r->lock);

    (void)pthread_mutex_lock(&s->lock);
    LIST_REMOVE(r, link);
    /* Under the lock, since gserver_stop() fires the tokens of all that are in the list. */
    cancel_unref(r->call.cancel);
    arena_free(r->call.arena);
    free(r);
    (void)pthread_cond_broadcast(&s->changed);
    (void)pthread_mutex_unlock(&s->lock);
}

static struct event event_of(struct rpc *r, void (*fn)(struct rpc *, bool))
{
    return (struct event){.fn = fn, .rpc = r};
}

/* Asks gRPC for one more call. */
static void request_call(struct gserver *s)
{
    struct rpc *r = xcalloc(1, sizeof(*r));
    r->server = s;
    atomic_init(&r->refs, 1);
    r->arrived = event_of(r, on_arrived);
    r->received = event_of(r, on_received);
    r->closed = event_of(r, on_closed);
    r->sent = event_of(r, on_sent);
    r->finished = event_of(r, on_finished);
    grpc_call_details_init(&r->details);
    grpc_metadata_array_init(&r->metadata);
    STAILQ_INIT(&r->queue);
    (void)pthread_mutex_init(&r->lock, NULL);
    cond_init_monotonic(&r->moved);

    (void)pthread_mutex_lock(&s->lock);
    LIST_INSERT_HEAD(&s->live, r, link);
    bool stopping = s->stopping;
    (void)pthread_mutex_unlock(&s->lock);
    if (stopping || grpc_server_request_call(s->server, &r->handle, &r->details, &r->metadata,
                                             s->cq, s->cq, &r->arrived) != GRPC_CALL_OK)
        rpc_unref(r);
}

/* Starts operations whose completion is `e`. */
static bool start_batch(struct rpc *r, const grpc_op *ops, size_t n, struct event *e)
{
    atomic_fetch_add(&r->refs, 1);
    grpc_call_error rc = grpc_call_start_batch(r->handle, ops, n, e, NULL);
    if (rc == GRPC_CALL_OK)
        return true;
    /* No event will come for it. */
    log_error("gRPC refused an operation",
              LOG_STR("method", r->call.method != NULL ? r->call.method->name : ""),
              LOG_STR("error", grpc_call_error_to_string(rc)));
    rpc_unref(r);
    return false;
}

static grpc_byte_buffer *byte_buffer(const void *data, size_t len)
{
    grpc_slice slice = grpc_slice_from_copied_buffer(data, len);
    grpc_byte_buffer *b = grpc_raw_byte_buffer_create(&slice, 1);
    grpc_slice_unref(slice);
    return b;
}

/* Ends the call: with a reply (data may be NULL: a stream, or an error) and a status. */
static void finish(struct rpc *r, const void *data, size_t len, const struct err *err)
{
    grpc_op ops[3] = {{0}};
    size_t n = 0;
    grpc_byte_buffer *message = NULL;
    (void)pthread_mutex_lock(&r->lock);
    if (!r->headers_sent)
        ops[n++].op = GRPC_OP_SEND_INITIAL_METADATA;
    r->headers_sent = true;
    (void)pthread_mutex_unlock(&r->lock);
    if (data != NULL) {
        message = byte_buffer(data, len);
        ops[n].op = GRPC_OP_SEND_MESSAGE;
        ops[n++].data.send_message.send_message = message;
    }
    auto_free char *text =
        err->code == ERR_OK ? NULL : message_text(err_msg(err), LIMIT_STATUS_TEXT);
    grpc_slice details = grpc_slice_from_copied_string(text != NULL ? text : "");
    ops[n].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    ops[n].data.send_status_from_server.status = (grpc_status_code)err->code;
    ops[n++].data.send_status_from_server.status_details = text != NULL ? &details : NULL;
    (void)start_batch(r, ops, n, &r->finished); /* takes its own references */
    grpc_slice_unref(details);
    if (message != NULL)
        grpc_byte_buffer_destroy(message);
}

static void on_finished(struct rpc *r, bool ok)
{
    (void)ok; /* the client may have left meanwhile */
    rpc_unref(r);
}

static void refuse(struct rpc *r, enum err_code code, const char *text)
{
    auto_err struct err err = ERR_INIT;
    (void)err_set(&err, code, "%s", text);
    finish(r, NULL, 0, &err);
}

/* --- a call arrives (event thread) --- */

static int64_t deadline_of(const struct rpc *r)
{
    gpr_timespec d = r->details.deadline;
    if (gpr_time_cmp(d, gpr_inf_future(d.clock_type)) == 0)
        return 0;
    gpr_timespec left = gpr_time_sub(d, gpr_now(d.clock_type));
    int64_t ns = left.tv_sec * 1000000000 + left.tv_nsec;
    /* Not 0, which would mean none. Years ahead do not fit and do not matter. */
    if (left.tv_sec > 1000000000)
        return 0;
    ns += mono_ns();
    return ns > 0 ? ns : 1;
}

/* Makes what a handler needs. */
static int prepare(struct rpc *r, struct err *err)
{
    const struct gserver *s = r->server;
    r->call.arena = arena_new(s->opts.arena_bytes);
    if (r->call.arena == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    struct cancel *cancel = cancel_new(deadline_of(r), err);
    if (cancel == NULL)
        return -1;
    r->call.daemon = s->opts.daemon;
    r->call.send = stream_send;
    (void)pthread_mutex_lock(&r->server->lock);
    r->call.cancel = cancel;
    if (r->server->stopping)
        cancel_fire(cancel);
    (void)pthread_mutex_unlock(&r->server->lock);
    return 0;
}

static void on_arrived(struct rpc *r, bool ok)
{
    struct gserver *s = r->server;
    if (!ok) { /* the server is shutting down */
        rpc_unref(r);
        return;
    }
    request_call(s);
    auto_err struct err err = ERR_INIT;
    int rc = prepare(r, &err);

    /* First of all: it is how we hear of cancellation, and it completes for every call. */
    grpc_op close = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
    close.data.recv_close_on_server.cancelled = &r->cancelled;
    if (!start_batch(r, &close, 1, &r->closed)) {
        rpc_unref(r);
        return;
    }
    const char *path = (const char *)GRPC_SLICE_START_PTR(r->details.method);
    size_t path_len = GRPC_SLICE_LENGTH(r->details.method);
    r->call.method = dispatch_find(s->opts.methods, s->opts.n_methods, path, path_len);
    if (rc < 0) {
        finish(r, NULL, 0, &err);
    } else if (r->call.method == NULL) {
        (void)err_set(&err, ERR_UNIMPLEMENTED, "unknown method `%.*s`",
                      path_len > 256 ? 256 : (int)path_len, path);
        finish(r, NULL, 0, &err);
    } else {
        grpc_op receive = {.op = GRPC_OP_RECV_MESSAGE};
        receive.data.recv_message.recv_message = &r->in;
        (void)start_batch(r, &receive, 1, &r->received);
    }
    rpc_unref(r);
}

static void on_closed(struct rpc *r, bool ok)
{
    (void)ok;
    if (r->cancelled) {
        cancel_fire(r->call.cancel);
        (void)pthread_mutex_lock(&r->lock);
        r->gone = true;
        (void)pthread_cond_broadcast(&r->moved);
        (void)pthread_mutex_unlock(&r->lock);
    }
    rpc_unref(r);
}

/* --- a call is served (worker thread) --- */

static ProtobufCMessage *unpack(struct rpc *r, struct err *err)
{
    grpc_byte_buffer_reader reader;
    if (r->in->data.raw.compression != GRPC_COMPRESS_NONE ||
        !grpc_byte_buffer_reader_init(&reader, r->in)) {
        (void)err_set(err, ERR_UNIMPLEMENTED, "compressed requests are not supported");
        return NULL;
    }
    grpc_slice bytes = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    grpc_byte_buffer_destroy(take(r->in));
    ProtobufCMessage *req =
        message_unpack(r->call.method->request, GRPC_SLICE_START_PTR(bytes),
                       GRPC_SLICE_LENGTH(bytes), LIMIT_STRING, r->call.arena, err);
    grpc_slice_unref(bytes);
    return req;
}

/* Waits until everything queued has left, or ends the call when the client does not read. */
static int drain(struct rpc *r, struct err *err);

/* A call that was cancelled since we stop: clients try again after UNAVAILABLE. */
static int run_handler(struct rpc *r, const ProtobufCMessage *req, ProtobufCMessage **reply,
                       struct err *err)
{
    int rc = dispatch_run(&r->call, req, reply, err);
    (void)pthread_mutex_lock(&r->server->lock);
    bool stopping = r->server->stopping;
    (void)pthread_mutex_unlock(&r->server->lock);
    if (rc < 0 && stopping && err->code == ERR_CANCELLED)
        (void)err_set(err, ERR_UNAVAILABLE, "aspisd is stopping");
    return rc;
}

static void serve_stream(struct rpc *r, const ProtobufCMessage *req)
{
    auto_err struct err err = ERR_INIT;
    ProtobufCMessage *none = NULL;
    int rc = run_handler(r, req, &none, &err);
    /* What was sent before an error still belongs to the client. */
    auto_err struct err late = ERR_INIT;
    if (drain(r, &late) < 0) {
        /* A message may be stuck in gRPC's hands: only cancelling gets it back. */
        auto_free char *text = message_text(err_msg(rc < 0 ? &err : &late), LIMIT_STATUS_TEXT);
        (void)grpc_call_cancel_with_status(r->handle,
                                           (grpc_status_code)(rc < 0 ? err.code : late.code),
                                           text != NULL ? text : "", NULL);
        return;
    }
    finish(r, NULL, 0, &err);
}

static void serve_unary(struct rpc *r, const ProtobufCMessage *req)
{
    auto_err struct err err = ERR_INIT;
    ProtobufCMessage *reply = NULL;
    size_t len = 0;
    auto_free uint8_t *data = NULL;
    if (run_handler(r, req, &reply, &err) == 0)
        data = message_pack(reply, LIMIT_GRPC_MESSAGE, r->call.arena, &len, &err);
    finish(r, data, len, &err);
}

static void serve(void *arg)
{
    struct rpc *r = arg;
    auto_err struct err err = ERR_INIT;
    const ProtobufCMessage *req = unpack(r, &err);
    if (req == NULL) {
        log_warn("bad request", LOG_STR("method", r->call.method->name),
                 LOG_STR("error", err_msg(&err)));
        finish(r, NULL, 0, &err);
    } else if (r->call.method->streaming) {
        serve_stream(r, req);
    } else {
        serve_unary(r, req);
    }
    rpc_unref(r);
}

static void on_received(struct rpc *r, bool ok)
{
    if (!ok || r->in == NULL) {
        refuse(r, ERR_INVALID, "the call has no request message");
    } else {
        atomic_fetch_add(&r->refs, 1);
        if (workers_run(r->server->workers, serve, r) < 0) {
            rpc_unref(r);
            refuse(r, ERR_EXHAUSTED, "too many calls at once");
        }
    }
    rpc_unref(r);
}

/* --- streams --- */

/* Gives the head of the queue to gRPC if nothing is there yet. r->lock is held. */
static void send_next(struct rpc *r)
{
    const struct out *o = STAILQ_FIRST(&r->queue);
    if (r->sending || r->gone || o == NULL)
        return;
    grpc_op ops[2] = {{0}};
    size_t n = 0;
    if (!r->headers_sent)
        ops[n++].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[n].op = GRPC_OP_SEND_MESSAGE;
    ops[n++].data.send_message.send_message = o->bytes;
    r->headers_sent = true;
    r->sending = true;
    if (!start_batch(r, ops, n, &r->sent)) {
        r->sending = false;
        r->gone = true;
    }
}

static void on_sent(struct rpc *r, bool ok)
{
    (void)pthread_mutex_lock(&r->lock);
    struct out *o = STAILQ_FIRST(&r->queue);
    STAILQ_REMOVE_HEAD(&r->queue, link);
    r->queued -= o->len;
    r->departed++;
    r->sending = false;
    grpc_byte_buffer_destroy(o->bytes);
    free(o);
    if (!ok)
        r->gone = true;
    send_next(r);
    (void)pthread_cond_broadcast(&r->moved);
    (void)pthread_mutex_unlock(&r->lock);
    rpc_unref(r);
}

/* Waits until at most `room` bytes are queued. -1 when the client has left, or when not one message
 * has left for the stall time. r->lock is held. */
static int wait_room(struct rpc *r, size_t room, struct err *err)
{
    int64_t stall = r->server->opts.stream_stall_ns;
    uint64_t seen = r->departed;
    int64_t until = mono_ns() + stall;
    while (!r->gone && r->queued > room) {
        if (r->stalled)
            return err_set(err, ERR_EXHAUSTED, "the client reads its stream too slowly");
        struct timespec t = timespec_of(until);
        int rc = pthread_cond_timedwait(&r->moved, &r->lock, &t);
        if (r->departed != seen) {
            seen = r->departed;
            until = mono_ns() + stall;
        } else if (rc == ETIMEDOUT) {
            r->stalled = true;
        }
    }
    return r->gone ? err_set(err, ERR_CANCELLED, "the client has left") : 0;
}

static int stream_send(struct call *call, const void *data, size_t len, struct err *err)
{
    struct rpc *r = rpc_of(call);
    if (cancel_check(call->cancel, err) < 0)
        return -1;
    (void)pthread_mutex_lock(&r->lock);
    /* A message of any size may go alone. */
    int rc = wait_room(r, len < LIMIT_STREAM_QUEUE ? LIMIT_STREAM_QUEUE - len : 0, err);
    if (rc == 0) {
        struct out *o = xcalloc(1, sizeof(*o));
        o->bytes = byte_buffer(data, len);
        o->len = len > 0 ? len : 1; /* so that empty messages count */
        STAILQ_INSERT_TAIL(&r->queue, o, link);
        r->queued += o->len;
        send_next(r);
    }
    (void)pthread_mutex_unlock(&r->lock);
    return rc;
}

static int drain(struct rpc *r, struct err *err)
{
    (void)pthread_mutex_lock(&r->lock);
    int rc = wait_room(r, 0, err);
    (void)pthread_mutex_unlock(&r->lock);
    return rc;
}

/* --- the server --- */

static void *event_thread(void *arg)
{
    struct gserver *s = arg;
    for (;;) {
        grpc_event e = grpc_completion_queue_next(s->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        if (e.type == GRPC_QUEUE_SHUTDOWN)
            return NULL;
        struct event *event = e.tag;
        if (event == &s->shut_down) {
            (void)pthread_mutex_lock(&s->lock);
            s->shutdown_done = true;
            (void)pthread_cond_broadcast(&s->changed);
            (void)pthread_mutex_unlock(&s->lock);
        } else {
            event->fn(event->rpc, e.success != 0);
        }
    }
}

static void grpc_log_line(gpr_log_func_args *args)
{
    if (args->severity == GPR_LOG_SEVERITY_ERROR)
        log_warn("gRPC", LOG_STR("text", args->message));
    else
        log_debug("gRPC", LOG_STR("text", args->message));
}

static grpc_server *new_server(grpc_completion_queue *cq)
{
    grpc_arg args[] = {
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)(uintptr_t)GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH,
         .value.integer = (int)LIMIT_GRPC_MESSAGE},
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)(uintptr_t)GRPC_ARG_MAX_CONCURRENT_STREAMS,
         .value.integer = LIMIT_CALLS_AT_ONCE},
        /* Identity only: a compressed message may unpack to any size. */
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)(uintptr_t)GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET,
         .value.integer = 1},
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)(uintptr_t)GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION,
         .value.integer = 0},
    };
    grpc_channel_args list = {.num_args = ARRAY_LEN(args), .args = args};
    grpc_server *server = grpc_server_create(&list, NULL);
    grpc_server_register_completion_queue(server, cq, NULL);
    return server;
}

/* Listens. gRPC binds with the process's umask and replaces what is there, so the socket is made in
 * a directory that only we can enter, gets its mode, and is then moved to its name: at no time can
 * somebody else connect, or a client find a socket that does not answer. */
static int listen_at(struct gserver *s, struct err *err)
{
    const char *path = s->opts.socket_path;
    if (socket_check(path, err) < 0)
        return -1;
    auto_free char *dir = fs_format("%s.new", path);
    auto_free char *name = fs_format("%s.new/s", path);
    auto_free char *uri = fs_format("unix:%s", name);
    if (dir == NULL || name == NULL || uri == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    if (fs_rm_rf(dir, err) < 0)
        return -1;
    if (mkdir(dir, 0700) < 0)
        return err_sys(err, errno, "directory `%s`", dir);
    grpc_server_credentials *creds = grpc_insecure_server_credentials_create();
    int bound = grpc_server_add_http2_port(s->server, uri, creds);
    grpc_server_credentials_release(creds);
    if (bound == 0)
        (void)err_set(err, ERR_INTERNAL, "socket `%s`: gRPC cannot listen there", name);
    else if (chmod(name, 0600) < 0)
        (void)err_sys(err, errno, "mode of socket `%s`", name);
    else if (rename(name, path) < 0)
        (void)err_sys(err, errno, "move socket to `%s`", path);
    else {
        (void)rmdir(dir);
        return 0;
    }
    (void)fs_rm_rf(dir, NULL);
    return -1;
}

static void free_server(struct gserver *s)
{
    workers_free(s->workers);
    if (s->cq != NULL)
        grpc_completion_queue_shutdown(s->cq);
    if (s->thread_running)
        (void)pthread_join(s->thread, NULL);
    if (s->server != NULL)
        grpc_server_destroy(s->server);
    if (s->cq != NULL)
        grpc_completion_queue_destroy(s->cq);
    (void)pthread_cond_destroy(&s->changed);
    (void)pthread_mutex_destroy(&s->lock);
    free(s);
    grpc_shutdown();
}

static bool all_ended(const struct gserver *s)
{
    return s->shutdown_done && LIST_EMPTY(&s->live);
}

/* Shuts the server down and waits until no call is left. */
static void end_calls(struct gserver *s)
{
    (void)pthread_mutex_lock(&s->lock);
    s->stopping = true; /* first: from here on no call is asked for */
    struct rpc *r;
    LIST_FOREACH(r, &s->live, link)
    if (r->call.cancel != NULL)
        cancel_fire(r->call.cancel);
    (void)pthread_mutex_unlock(&s->lock);
    grpc_server_shutdown_and_notify(s->server, s->cq, &s->shut_down);
    struct timespec until = timespec_of(mono_ns() + STOP_GRACE_NS);
    (void)pthread_mutex_lock(&s->lock);
    int rc = 0;
    while (rc == 0 && !LIST_EMPTY(&s->live))
        rc = pthread_cond_timedwait(&s->changed, &s->lock, &until);
    (void)pthread_mutex_unlock(&s->lock);
    grpc_server_cancel_all_calls(s->server); /* and closes idle connections */
    (void)pthread_mutex_lock(&s->lock);
    while (!all_ended(s))
        (void)pthread_cond_wait(&s->changed, &s->lock);
    (void)pthread_mutex_unlock(&s->lock);
}

struct gserver *gserver_start(const struct gserver_opts *opts, struct err *err)
{
    struct gserver *s = xcalloc(1, sizeof(*s));
    s->opts = *opts;
    if (s->opts.max_calls == 0)
        s->opts.max_calls = LIMIT_CALLS_AT_ONCE;
    if (s->opts.arena_bytes == 0)
        s->opts.arena_bytes = LIMIT_CALL_ARENA;
    if (s->opts.stream_stall_ns == 0)
        s->opts.stream_stall_ns = LIMIT_STREAM_STALL_NS;
    LIST_INIT(&s->live);
    (void)pthread_mutex_init(&s->lock, NULL);
    cond_init_monotonic(&s->changed);
    gpr_set_log_function(grpc_log_line);
    grpc_init();
    s->cq = grpc_completion_queue_create_for_next(NULL);
    s->server = new_server(s->cq);
    s->workers = workers_new(s->opts.max_calls, WORKER_IDLE_NS, err);
    if (s->workers == NULL)
        goto fail;
    int rc = pthread_create(&s->thread, NULL, event_thread, s);
    if (rc != 0) {
        (void)err_sys(err, rc, "start gRPC's event thread");
        goto fail;
    }
    s->thread_running = true;
    if (listen_at(s, err) < 0) {
        /* A server that was never started may not be shut down, only destroyed, but needs its
         * ports closed: starting it with nobody asking for calls is the one way that works. */
        grpc_server_start(s->server);
        end_calls(s);
        goto fail;
    }
    grpc_server_start(s->server);
    for (int i = 0; i < REQUESTS_WAITING; i++)
        request_call(s);
    return s;
fail:
    free_server(s);
    return NULL;
}

void gserver_stop(struct gserver *s)
{
    if (s == NULL)
        return;
    (void)unlink(s->opts.socket_path);
    end_calls(s);
    free_server(s);
}

/* --- the client --- */

struct gclient {
    char *path;
    grpc_channel *channel;
    grpc_completion_queue *cq;
    pthread_mutex_t lock;
    grpc_call *call; /* the one in progress; under lock */
    bool cancelled;  /* under lock */
};

static void quiet_log_line(gpr_log_func_args *args)
{
    log_debug("gRPC", LOG_STR("text", args->message));
}

/* Does somebody listen? gRPC itself would only say "unavailable". */
static int probe(const char *path, struct err *err)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(a.sun_path))
        return err_set(err, ERR_INVALID, "socket `%s`: the path is too long", path);
    memcpy(a.sun_path, path, strlen(path) + 1);
    auto_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return err_sys(err, errno, "socket");
    if (connect(fd, (const struct sockaddr *)(const void *)&a, sizeof(a)) == 0)
        return 0;
    if (errno == EACCES || errno == EPERM)
        return err_set(err, ERR_DENIED, "socket `%s`: permission denied; are you root?", path);
    return err_set(err, ERR_UNAVAILABLE, "socket `%s`: %s; is aspisd running?", path,
                   strerror(errno));
}

struct gclient *gclient_open(const char *socket_path, struct err *err)
{
    auto_free char *absolute = realpath(socket_path, NULL);
    const char *path = absolute != NULL ? absolute : socket_path;
    if (probe(path, err) < 0)
        return NULL;
    struct gclient *c = xcalloc(1, sizeof(*c));
    c->path = xstrdup(path);
    (void)pthread_mutex_init(&c->lock, NULL);
    gpr_set_log_function(quiet_log_line);
    grpc_init();
    grpc_arg args[] = {
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)(uintptr_t)GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH,
         .value.integer = (int)LIMIT_GRPC_MESSAGE},
        {.type = GRPC_ARG_INTEGER,
         .key = (char *)(uintptr_t)GRPC_ARG_MAX_METADATA_SIZE,
         .value.integer = (int)KiB(64)}, /* a long error text */
        {.type = GRPC_ARG_STRING,
         .key = (char *)(uintptr_t)GRPC_ARG_DEFAULT_AUTHORITY,
         .value.string = (char *)(uintptr_t) "localhost"},
    };
    grpc_channel_args list = {.num_args = ARRAY_LEN(args), .args = args};
    auto_free char *uri = fs_format("unix:%s", path);
    grpc_channel_credentials *creds = grpc_insecure_credentials_create();
    c->channel = grpc_channel_create(uri != NULL ? uri : "", creds, &list);
    grpc_channel_credentials_release(creds);
    c->cq = grpc_completion_queue_create_for_next(NULL);
    return c;
}

void gclient_close(struct gclient *c)
{
    if (c == NULL)
        return;
    grpc_completion_queue_shutdown(c->cq);
    while (grpc_completion_queue_next(c->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
           GRPC_QUEUE_SHUTDOWN)
        ;
    grpc_completion_queue_destroy(c->cq);
    grpc_channel_destroy(c->channel);
    (void)pthread_mutex_destroy(&c->lock);
    free(c->path);
    free(c);
    grpc_shutdown();
}

void gclient_cancel(struct gclient *c)
{
    (void)pthread_mutex_lock(&c->lock);
    c->cancelled = true;
    if (c->call != NULL)
        (void)grpc_call_cancel(c->call, NULL);
    (void)pthread_mutex_unlock(&c->lock);
}

typedef int (*bytes_fn)(void *arg, const void *data, size_t len, struct err *err);

/* Runs operations to their end. */
static bool client_batch(struct gclient *c, const grpc_op *ops, size_t n)
{
    if (grpc_call_start_batch(c->call, ops, n, c, NULL) != GRPC_CALL_OK)
        return false;
    return grpc_completion_queue_next(c->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).success !=
           0;
}

/* Receives every message of the call. on_bytes may end it with a negative return. */
static int receive_all(struct gclient *c, bytes_fn on_bytes, void *arg, struct err *err)
{
    for (;;) {
        grpc_byte_buffer *in = NULL;
        // cppcheck-suppress legacyUninitvar ; it takes the member for the variable
        grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
        op.data.recv_message.recv_message = &in;
        if (!client_batch(c, &op, 1) || in == NULL)
            return 0; /* the status says why */
        grpc_byte_buffer_reader reader;
        int rc = -1;
        if (grpc_byte_buffer_reader_init(&reader, in)) {
            grpc_slice bytes = grpc_byte_buffer_reader_readall(&reader);
            grpc_byte_buffer_reader_destroy(&reader);
            rc = on_bytes(arg, GRPC_SLICE_START_PTR(bytes), GRPC_SLICE_LENGTH(bytes), err);
            grpc_slice_unref(bytes);
        } else {
            (void)err_set(err, ERR_INTERNAL, "unreadable reply");
        }
        grpc_byte_buffer_destroy(in);
        if (rc < 0) {
            (void)grpc_call_cancel(c->call, NULL);
            return rc;
        }
    }
}

static int client_call(struct gclient *c, const char *path, const ProtobufCMessage *req,
                       bytes_fn on_bytes, void *arg, int64_t timeout_ns, struct err *err)
{
    size_t len = protobuf_c_message_get_packed_size(req);
    auto_free uint8_t *data = malloc(len + 1);
    if (data == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    (void)protobuf_c_message_pack(req, data);
    gpr_timespec deadline = gpr_inf_future(GPR_CLOCK_MONOTONIC);
    if (timeout_ns > 0)
        deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                                gpr_time_from_nanos(timeout_ns, GPR_TIMESPAN));
    grpc_slice method = grpc_slice_from_copied_string(path);
    (void)pthread_mutex_lock(&c->lock);
    c->call = grpc_channel_create_call(c->channel, NULL, GRPC_PROPAGATE_DEFAULTS, c->cq, method,
                                       NULL, deadline, NULL);
    if (c->cancelled)
        (void)grpc_call_cancel(c->call, NULL);
    (void)pthread_mutex_unlock(&c->lock);
    grpc_slice_unref(method);

    grpc_metadata_array headers, trailers;
    grpc_metadata_array_init(&headers);
    grpc_metadata_array_init(&trailers);
    grpc_byte_buffer *message = byte_buffer(data, len);
    grpc_op start[4] = {{.op = GRPC_OP_SEND_INITIAL_METADATA},
                        {.op = GRPC_OP_SEND_MESSAGE},
                        {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT},
                        {.op = GRPC_OP_RECV_INITIAL_METADATA}};
    start[1].data.send_message.send_message = message;
    start[3].data.recv_initial_metadata.recv_initial_metadata = &headers;
    int rc = 0;
    if (client_batch(c, start, ARRAY_LEN(start)))
        rc = receive_all(c, on_bytes, arg, err);
    grpc_byte_buffer_destroy(message);

    grpc_status_code code = GRPC_STATUS_UNKNOWN;
    grpc_slice details = grpc_empty_slice();
    grpc_op end = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT};
    end.data.recv_status_on_client.trailing_metadata = &trailers;
    end.data.recv_status_on_client.status = &code;
    end.data.recv_status_on_client.status_details = &details;
    (void)client_batch(c, &end, 1);
    if (rc == 0 && code != GRPC_STATUS_OK)
        rc = err_set(err, (enum err_code)code, "%.*s", (int)GRPC_SLICE_LENGTH(details),
                     (const char *)GRPC_SLICE_START_PTR(details));
    grpc_slice_unref(details);
    grpc_metadata_array_destroy(&headers);
    grpc_metadata_array_destroy(&trailers);
    (void)pthread_mutex_lock(&c->lock);
    grpc_call_unref(c->call);
    c->call = NULL;
    (void)pthread_mutex_unlock(&c->lock);
    return rc;
}

struct unary {
    const ProtobufCMessageDescriptor *desc;
    struct arena *arena;
    ProtobufCMessage *reply;
};

static int on_unary(void *arg, const void *data, size_t len, struct err *err)
{
    struct unary *u = arg;
    u->reply = protobuf_c_message_unpack(u->desc, arena_allocator(u->arena), len, data);
    return u->reply != NULL ? 0 : err_set(err, ERR_INTERNAL, "cannot read the server's reply");
}

ProtobufCMessage *gclient_call(struct gclient *c, const char *path, const ProtobufCMessage *req,
                               const ProtobufCMessageDescriptor *reply, struct arena *arena,
                               int64_t timeout_ns, struct err *err)
{
    struct unary u = {.desc = reply, .arena = arena};
    if (client_call(c, path, req, on_unary, &u, timeout_ns, err) < 0)
        return NULL;
    if (u.reply == NULL)
        (void)err_set(err, ERR_INTERNAL, "the server sent no reply");
    return u.reply;
}

struct stream {
    const ProtobufCMessageDescriptor *desc;
    gclient_message_fn on_message;
    void *arg;
};

static int on_stream(void *arg, const void *data, size_t len, struct err *err)
{
    const struct stream *s = arg;
    ProtobufCMessage *m = protobuf_c_message_unpack(s->desc, NULL, len, data);
    if (m == NULL)
        return err_set(err, ERR_INTERNAL, "cannot read the server's reply");
    int rc = s->on_message(s->arg, m, err);
    protobuf_c_message_free_unpacked(m, NULL);
    return rc;
}

int gclient_stream(struct gclient *c, const char *path, const ProtobufCMessage *req,
                   const ProtobufCMessageDescriptor *reply, gclient_message_fn on_message,
                   void *arg, int64_t timeout_ns, struct err *err)
{
    struct stream s = {.desc = reply, .on_message = on_message, .arg = arg};
    return client_call(c, path, req, on_stream, &s, timeout_ns, err);
}
