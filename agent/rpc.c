#include "agent/rpc.h"

#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "agent/older.h"
#include "agent/peer.h"
#include "base/cleanup.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "proto/arena.h"
#include "proto/ttrpc.pb-c.h"

#define SERVICE "aspis.agent.v1.Agent"
/* Replies that may wait to be written; errors have a little more, so that a caller always hears
 * something. */
#define QUEUE_REPLIES MiB(16)
#define QUEUE_ALL (QUEUE_REPLIES + MiB(1))
/* A stream's messages wait in the stream's handler when more than this is queued. */
#define QUEUE_STREAM KiB(256)
/* Calls whose caller is gone but whose operation still runs. */
#define ABANDONED_MAX (4 * LIMIT_RPC_CALLS)

struct rpc_call {
    struct rpc_server *server;
    uint32_t stream;
    bool gone;     /* cancelled, or its connection is over */
    bool notified; /* of that */
    bool want_writable;
    bool wake;
    struct arena *arena; /* holds the request */
    void (*gone_fn)(void *arg);
    void (*writable_fn)(void *arg);
    void *arg;
    TAILQ_ENTRY(rpc_call) link;
};

struct rpc_server {
    const struct rpc_method *methods;
    struct peer *peer;
    TAILQ_HEAD(, rpc_call) calls;
    unsigned n_live;
    unsigned n_gone;
};

static void call_free(struct rpc_call *c)
{
    struct rpc_server *s = c->server;

    TAILQ_REMOVE(&s->calls, c, link);
    if (c->gone)
        s->n_gone--;
    else
        s->n_live--;
    arena_free(c->arena);
    free(c);
}

static void mark_gone(struct rpc_call *c)
{
    if (c->gone)
        return;
    c->gone = true;
    c->server->n_live--;
    c->server->n_gone++;
}

/* Tells handlers, any of which may answer (and so free) any call meanwhile. */
static void notify_gone(struct rpc_server *s)
{
    struct rpc_call *c;

    do {
        TAILQ_FOREACH(c, &s->calls, link)
        {
            if (c->gone && !c->notified)
                break;
        }
        if (c != NULL) {
            c->notified = true;
            if (c->gone_fn != NULL)
                c->gone_fn(c->arg);
        }
    } while (c != NULL);
}

static void on_up(void *arg)
{
    (void)arg;
}

static void on_down(void *arg)
{
    struct rpc_server *s = arg;
    struct rpc_call *c;

    TAILQ_FOREACH(c, &s->calls, link)
    mark_gone(c);
    notify_gone(s);
}

static void on_writable(void *arg)
{
    struct rpc_server *s = arg;
    struct rpc_call *c;

    TAILQ_FOREACH(c, &s->calls, link)
    {
        c->wake = c->want_writable && !c->gone;
        c->want_writable = false;
    }
    do {
        TAILQ_FOREACH(c, &s->calls, link)
        {
            if (c->wake)
                break;
        }
        if (c != NULL) {
            c->wake = false;
            if (c->writable_fn != NULL)
                c->writable_fn(c->arg);
        }
    } while (c != NULL);
}

/* The packed message, to be freed; NULL with *err when it is larger than a frame may be. */
static uint8_t *pack(const ProtobufCMessage *m, size_t *len, struct err *err)
{
    size_t size = protobuf_c_message_get_packed_size(m);
    uint8_t *data;

    if (size > LIMIT_RPC_MESSAGE) {
        (void)err_set(err, ERR_EXHAUSTED, "%s of %zu bytes is larger than a message may be (%zu)",
                      m->descriptor->short_name, size, LIMIT_RPC_MESSAGE);
        return NULL;
    }
    data = malloc(size > 0 ? size : 1);
    if (data == NULL) {
        (void)err_set(err, ERR_EXHAUSTED, "out of memory for %s of %zu bytes",
                      m->descriptor->short_name, size);
        return NULL;
    }
    *len = protobuf_c_message_pack(m, data);
    return data;
}

static int respond(struct rpc_server *s, uint32_t stream, const Aspis__Ttrpc__Response *r,
                   size_t queue_max, struct err *err)
{
    size_t len = 0;
    auto_free uint8_t *data = pack(&r->base, &len, err);

    if (data == NULL)
        return -1;
    if (peer_queued(s->peer) + len > queue_max ||
        peer_send(s->peer, stream, FRAME_RESPONSE, 0, data, len) < 0)
        return err_set(err, ERR_EXHAUSTED, "too many replies wait for the host");
    peer_flush(s->peer);
    return 0;
}

static void respond_error(struct rpc_server *s, uint32_t stream, const struct err *err)
{
    Aspis__Ttrpc__Response r;
    Aspis__Ttrpc__Status status;
    auto_free char *text = strndup(err_msg(err), LIMIT_GUEST_ERROR);
    static char no_text[] = "";

    aspis__ttrpc__response__init(&r);
    aspis__ttrpc__status__init(&status);
    status.code = err->code == ERR_OK ? ERR_UNKNOWN : (int32_t)err->code;
    status.message = text != NULL ? text : no_text;
    r.status = &status;
    (void)respond(s, stream, &r, QUEUE_ALL, NULL);
}

void rpc_reply(struct rpc_call *call, const ProtobufCMessage *reply)
{
    struct rpc_server *s = call->server;

    if (!call->gone) {
        auto_err struct err err = ERR_INIT;
        Aspis__Ttrpc__Response r;
        size_t len = 0;
        auto_free uint8_t *data = pack(reply, &len, &err);

        aspis__ttrpc__response__init(&r);
        r.payload.data = data;
        r.payload.len = len;
        if (data == NULL || respond(s, call->stream, &r, QUEUE_REPLIES, &err) < 0)
            respond_error(s, call->stream, &err);
    }
    call_free(call);
}

void rpc_fail(struct rpc_call *call, const struct err *err)
{
    if (!call->gone)
        respond_error(call->server, call->stream, err);
    call_free(call);
}

int rpc_stream_send(struct rpc_call *call, const ProtobufCMessage *message)
{
    struct peer *peer = call->server->peer;
    size_t len = 0;

    if (call->gone)
        return -1;
    auto_free uint8_t *data = pack(message, &len, NULL);
    if (data == NULL)
        return -1;
    if (peer_queued(peer) > QUEUE_STREAM ||
        peer_send(peer, call->stream, FRAME_DATA, 0, data, len) < 0) {
        call->want_writable = true;
        peer_want_writable(peer);
        return -1;
    }
    peer_flush(peer);
    return 0;
}

void rpc_call_notify(struct rpc_call *call, void (*gone)(void *arg), void (*writable)(void *arg),
                     void *arg)
{
    call->gone_fn = gone;
    call->writable_fn = writable;
    call->arg = arg;
}

static struct rpc_call *find_live(struct rpc_server *s, uint32_t stream)
{
    struct rpc_call *c;

    TAILQ_FOREACH(c, &s->calls, link)
    {
        if (c->stream == stream && !c->gone)
            return c;
    }
    return NULL;
}

static const struct rpc_method *find_method(const struct rpc_server *s, const char *name)
{
    const struct rpc_method *m;

    for (m = s->methods; m->name != NULL; m++)
        if (strcmp(m->name, name) == 0)
            return m;
    return NULL;
}

/* Unpacks the envelope and the request in it; the request lives in *arena. */
static const ProtobufCMessage *decode(struct rpc_server *s, const struct frame *f,
                                      const struct rpc_method **method, struct arena *arena,
                                      struct err *err)
{
    auto_arena struct arena *tmp = arena_new(LIMIT_AGENT_CALL_ARENA);
    const Aspis__Ttrpc__Request *env;
    ProtobufCMessage *req;

    if (tmp == NULL || arena == NULL) {
        (void)err_set(err, ERR_EXHAUSTED, "out of memory");
        return NULL;
    }
    env = aspis__ttrpc__request__unpack(arena_allocator(tmp), f->len, f->payload);
    if (env == NULL) {
        (void)err_set(err, ERR_INVALID, "request envelope cannot be read");
        return NULL;
    }
    *method = strcmp(env->service, SERVICE) == 0 ? find_method(s, env->method) : NULL;
    if (*method == NULL) {
        (void)err_set(err, ERR_UNIMPLEMENTED, "no method %.64s of %.64s", env->method,
                      env->service);
        return NULL;
    }
    req = protobuf_c_message_unpack((*method)->request, arena_allocator(arena), env->payload.len,
                                    env->payload.data);
    if (req == NULL)
        (void)err_set(err, arena_exhausted(arena) ? ERR_EXHAUSTED : ERR_INVALID,
                      "request of %s cannot be unpacked", (*method)->name);
#if AGENT_MINOR < PROTOCOL_MINOR
    else
        protocol_forget((*method)->name, req, AGENT_MINOR);
#endif
    return req;
}

static void on_request(struct rpc_server *s, const struct frame *f)
{
    auto_err struct err err = ERR_INIT;
    const struct rpc_method *method = NULL;
    const ProtobufCMessage *req;
    struct rpc_call *c;

    /* An even id is no client's (ttrpc), and one in use cannot be answered twice. */
    if (f->stream % 2 == 0 || find_live(s, f->stream) != NULL) {
        log_warn("request with a bad stream id", LOG_INT("stream", f->stream));
        return;
    }
    if (s->n_live >= LIMIT_RPC_CALLS || s->n_gone >= ABANDONED_MAX) {
        (void)err_set(&err, ERR_EXHAUSTED, "%u calls are running and %u abandoned", s->n_live,
                      s->n_gone);
        respond_error(s, f->stream, &err);
        return;
    }
    auto_arena struct arena *arena = arena_new(LIMIT_AGENT_CALL_ARENA);
    req = decode(s, f, &method, arena, &err);
    if (req == NULL) {
        respond_error(s, f->stream, &err);
        return;
    }
    c = calloc(1, sizeof(*c));
    if (c == NULL) {
        (void)err_set(&err, ERR_EXHAUSTED, "out of memory");
        respond_error(s, f->stream, &err);
        return;
    }
    c->server = s;
    c->stream = f->stream;
    c->arena = take(arena);
    TAILQ_INSERT_TAIL(&s->calls, c, link);
    s->n_live++;
    method->handler(c, req, method->arg);
}

static void on_frame(void *arg, const struct frame *f)
{
    struct rpc_server *s = arg;
    struct rpc_call *c;

    switch (f->type) {
    case FRAME_REQUEST:
        on_request(s, f);
        break;
    case FRAME_CANCEL:
        c = find_live(s, f->stream);
        if (c != NULL) {
            mark_gone(c);
            notify_gone(s);
        }
        break;
    default: /* client streams do not exist */
        break;
    }
}

struct rpc_server *rpc_server_new(struct loop *loop, const struct rpc_method *methods,
                                  struct err *err)
{
    struct rpc_server *s = xcalloc(1, sizeof(*s));
    const struct peer_user user = {
        .up = on_up, .down = on_down, .frame = on_frame, .writable = on_writable, .arg = s};

    (void)err;
    s->methods = methods;
    TAILQ_INIT(&s->calls);
    s->peer = peer_new(loop, LINK_RPC, LIMIT_RPC_MESSAGE, QUEUE_ALL, &user);
    return s;
}

void rpc_server_free(struct rpc_server *s)
{
    struct rpc_call *c;

    if (s == NULL)
        return;
    peer_free(s->peer);
    while ((c = TAILQ_FIRST(&s->calls)) != NULL)
        call_free(c);
    free(s);
}

struct peer *rpc_server_peer(struct rpc_server *s)
{
    return s->peer;
}
