#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/str.h"
#include "proto/ttrpc.pb-c.h"
#include "proto/version.h"
#include "sandbox/link_impl.h"

#define SERVICE "aspis.agent.v1.Agent"
/* Of the agent's unanswered calls some are the link's own. */
#define CALLS_MAX (LIMIT_RPC_CALLS - 8)
/* A refused Hello or an Events stream that ended is asked for again after this. */
#define AGAIN_NS 200000000
/* What the link itself unpacks on the loop. */
#define OWN_MESSAGE KiB(64)
#define OWN_ARENA MiB(1)

static atomic_ullong reconnects;

/* --- envelopes --- */

/* The request envelope around a message, to be freed; NULL with *err. */
static uint8_t *pack_request(const char *method, const ProtobufCMessage *request,
                             int64_t timeout_ns, size_t *len, struct err *err)
{
    Aspis__Ttrpc__Request env;
    size_t size = protobuf_c_message_get_packed_size(request);
    auto_free char *name = xstrdup(method);
    auto_free char *service = xstrdup(SERVICE);
    auto_free uint8_t *payload = NULL;
    auto_free uint8_t *out = NULL;

    if (size <= LIMIT_RPC_MESSAGE) {
        aspis__ttrpc__request__init(&env);
        payload = xcalloc(1, size + 1);
        env.service = service;
        env.method = name;
        env.payload.data = payload;
        env.payload.len = protobuf_c_message_pack(request, payload);
        env.timeout_nano = timeout_ns;
        size = aspis__ttrpc__request__get_packed_size(&env);
    }
    if (size > LIMIT_RPC_MESSAGE) {
        (void)err_set(err, ERR_EXHAUSTED, "request of %zu bytes is larger than %zu", size,
                      LIMIT_RPC_MESSAGE);
        return NULL;
    }
    out = xcalloc(1, size + 1);
    *len = aspis__ttrpc__request__pack(&env, out);
    if (preamble_find(out, *len) != NULL) {
        (void)err_set(err, ERR_INVALID, "request holds the link's own preamble");
        return NULL;
    }
    return take(out);
}

/* The status of a response: 0, or -1 with the agent's error. *env lives in arena. */
static int unpack_response(const uint8_t *data, size_t len, struct arena *arena,
                           Aspis__Ttrpc__Response **env, struct err *err)
{
    *env = arena == NULL ? NULL : aspis__ttrpc__response__unpack(arena_allocator(arena), len, data);
    if (*env == NULL)
        return err_set(err, ERR_DATA_LOSS, "the agent's answer cannot be read");
    if ((*env)->status != NULL && (*env)->status->code != 0) {
        const Aspis__Ttrpc__Status *st = (*env)->status;
        auto_free char *text = link_guest_text(st->message, strlen(st->message));
        bool known = st->code > 0 && st->code <= ERR_UNAUTHENTICATED;

        return err_set(err, known ? (enum err_code)st->code : ERR_UNKNOWN, "agent: %s", text);
    }
    return 0;
}

/* --- the table (under the lock) --- */

static bool is_user(const struct call *c)
{
    return c->kind == CALL_USER || c->kind == CALL_WAIT_UP;
}

static void drop_request(struct call *c)
{
    free(take(c->request));
    c->request_len = 0;
}

/* A user call is over; its owner may free it as soon as the lock is released. */
static void finish(struct link *l, struct call *c, const char *failure)
{
    drop_request(c);
    c->failure = failure;
    c->state = CALL_DONE;
    l->n_calls--;
    (void)eventfd_write(c->done, 1);
}

static void enqueue(struct link *l, struct call *c)
{
    c->state = CALL_QUEUED;
    if (is_user(c))
        TAILQ_INSERT_TAIL(&l->queue, c, queue);
}

static void unlist(struct link *l, struct call *c)
{
    if (c->state == CALL_QUEUED && is_user(c))
        TAILQ_REMOVE(&l->queue, c, queue);
    else if (c->state == CALL_SENT)
        HASH_DEL(l->sent, c);
    c->state = CALL_IDLE;
}

static struct call *find_sent(struct link *l, uint32_t stream)
{
    struct call *c = NULL;

    HASH_FIND(hh, l->sent, &stream, sizeof(stream), c);
    return c;
}

static uint32_t next_stream(struct link *l)
{
    do {
        l->last_stream += 2; /* odd for ever */
    } while (find_sent(l, l->last_stream) != NULL);
    return l->last_stream;
}

/* Moves one call to the channel's output; false when it does not fit. */
static bool send_call(struct link *l, struct call *c)
{
    uint32_t stream = next_stream(l);

    if (frame_append(&l->rpc.out, stream, FRAME_REQUEST, 0, c->request, c->request_len) < 0) {
        l->rpc.out.overflow = false;
        return false;
    }
    unlist(l, c);
    drop_request(c);
    c->stream = stream;
    c->state = CALL_SENT;
    HASH_ADD(hh, l->sent, stream, sizeof(c->stream), c);
    return true;
}

/* Fills one of the link's own calls. These messages are small and cannot fail. */
static void prepare(struct call *c, const char *method, const ProtobufCMessage *request)
{
    drop_request(c);
    c->request = pack_request(method, request, 0, &c->request_len, NULL);
}

static void queue_hello(struct link *l)
{
    Aspis__Agent__V1__HelloRequest req;
    static char version[] = ASPIS_VERSION;

    aspis__agent__v1__hello_request__init(&req);
    req.major = PROTOCOL_MAJOR;
    req.minor = PROTOCOL_MINOR;
    req.daemon_version = version;
    prepare(&l->hello, "Hello", &req.base);
    enqueue(l, &l->hello);
}

static void queue_events(struct link *l)
{
    Aspis__Agent__V1__EventsRequest req;

    aspis__agent__v1__events_request__init(&req);
    req.after_seq = l->last_event;
    prepare(&l->events, "Events", &req.base);
    enqueue(l, &l->events);
}

static void queue_ack(struct link *l)
{
    Aspis__Agent__V1__AckEventsRequest req;

    if (l->ack.state != CALL_IDLE || l->ack_want <= l->ack_sent)
        return;
    aspis__agent__v1__ack_events_request__init(&req);
    req.seq = l->ack_sent = l->ack_want;
    prepare(&l->ack, "AckEvents", &req.base);
    enqueue(l, &l->ack);
}

static bool rpc_fill(struct link *l)
{
    struct call *c;

    if (l->hello.state == CALL_QUEUED)
        return send_call(l, &l->hello);
    if (!l->up)
        return false;
    if (l->events.state == CALL_QUEUED)
        return send_call(l, &l->events);
    if (l->ack.state == CALL_QUEUED)
        return send_call(l, &l->ack);
    if (l->ping.state == CALL_QUEUED)
        return send_call(l, &l->ping);
    c = TAILQ_FIRST(&l->queue);
    if (c == NULL)
        return false;
    if (c->kind == CALL_WAIT_UP) {
        unlist(l, c);
        finish(l, c, NULL);
        return true;
    }
    if (c->since > l->minor) {
        unlist(l, c);
        c->agent_minor = l->minor;
        finish(l, c, "the agent is too old");
        return true;
    }
    return send_call(l, c);
}

/* Fails everything that was sent, since the agent may or may not have run it. */
static void fail_sent(struct link *l, const char *why)
{
    struct call *c;
    struct call *next;

    HASH_ITER(hh, l->sent, c, next)
    {
        unlist(l, c);
        if (is_user(c))
            finish(l, c, why);
    }
    drop_request(&l->hello);
    drop_request(&l->events);
    drop_request(&l->ack);
    drop_request(&l->ping);
    l->hello.state = l->events.state = l->ack.state = l->ping.state = CALL_IDLE;
    l->ack_sent = 0;
    l->up = false;
}

/* --- the channel's callbacks (loop) --- */

static void rpc_up(struct link *l)
{
    (void)pthread_mutex_lock(&l->rpc.lock);
    fail_sent(l, "the connection to the agent began anew");
    queue_hello(l);
    link_chan_flush(&l->rpc);
    (void)pthread_mutex_unlock(&l->rpc.lock);
}

static void rpc_down(struct link *l)
{
    (void)pthread_mutex_lock(&l->rpc.lock);
    fail_sent(l, "the connection to the agent broke");
    (void)pthread_mutex_unlock(&l->rpc.lock);
}

static void on_again(struct loop_source *src, void *arg)
{
    struct link *l = arg;

    (void)src;
    (void)pthread_mutex_lock(&l->rpc.lock);
    if (l->rpc.synced && !l->up && l->hello.state == CALL_IDLE)
        queue_hello(l);
    else if (l->up && l->events.state == CALL_IDLE)
        queue_events(l);
    link_chan_flush(&l->rpc);
    (void)pthread_mutex_unlock(&l->rpc.lock);
}

static void again(struct link *l)
{
    (void)loop_set_timer(l->again, AGAIN_NS);
}

static int hello_answered(struct link *l, const struct frame *f, struct err *err)
{
    auto_arena struct arena *arena = arena_new(OWN_ARENA);
    auto_err struct err refused = ERR_INIT;
    Aspis__Ttrpc__Response *env;
    const Aspis__Agent__V1__HelloResponse *hello;

    if (f->len > OWN_MESSAGE)
        return err_set(err, ERR_DATA_LOSS, "answer to Hello of %zu bytes", f->len);
    if (unpack_response(f->payload, f->len, arena, &env, &refused) < 0) {
        /* UNIMPLEMENTED: an agent of another major version */
        if (refused.code == ERR_DATA_LOSS || refused.code == ERR_UNIMPLEMENTED)
            return err_move(err, &refused);
        again(l); /* an agent that is out of calls or memory for the moment */
        return 0;
    }
    hello = aspis__agent__v1__hello_response__unpack(arena_allocator(arena), env->payload.len,
                                                     env->payload.data);
    if (hello == NULL)
        return err_set(err, ERR_DATA_LOSS, "answer to Hello cannot be read");
    /* The minor version only adds: the lower one of both is what may be used. */
    if (hello->major != PROTOCOL_MAJOR)
        return err_set(err, ERR_PRECONDITION,
                       "the agent speaks version %u.%u of the protocol, the daemon %d.%d",
                       hello->major, hello->minor, PROTOCOL_MAJOR, PROTOCOL_MINOR);
    (void)pthread_mutex_lock(&l->rpc.lock);
    if (l->boot_id != NULL)
        atomic_fetch_add(&reconnects, 1);
    if (l->boot_id == NULL || strcmp(l->boot_id, hello->boot_id) != 0) {
        /* another boot counts its events from 1 */
        free(l->boot_id);
        l->boot_id = xstrdup(hello->boot_id);
        l->last_event = l->n_unacked = l->ack_want = 0;
    }
    l->minor = hello->minor;
    l->up = true;
    queue_events(l);
    queue_ack(l);
    link_chan_flush(&l->rpc);
    (void)pthread_mutex_unlock(&l->rpc.lock);
    if (l->cb.on_up != NULL)
        l->cb.on_up(l->cb.arg, hello);
    return 0;
}

static int event_came(struct link *l, const struct frame *f, struct err *err)
{
    auto_arena struct arena *arena = arena_new(OWN_ARENA);
    const Aspis__Agent__V1__Event *ev = NULL;
    bool old;
    bool flood;

    if (f->len <= OWN_MESSAGE && arena != NULL)
        ev = aspis__agent__v1__event__unpack(arena_allocator(arena), f->len, f->payload);
    if (ev == NULL)
        return err_set(err, ERR_DATA_LOSS, "an event of %zu bytes cannot be read", f->len);
    (void)pthread_mutex_lock(&l->rpc.lock);
    old = ev->seq <= l->last_event;
    flood = !old && l->n_unacked >= 2 * LIMIT_AGENT_EVENTS; /* it keeps fewer than half */
    if (!old && !flood) {
        l->last_event = ev->seq;
        l->n_unacked++;
    }
    (void)pthread_mutex_unlock(&l->rpc.lock);
    if (flood)
        return err_set(err, ERR_EXHAUSTED,
                       "the guest sent more than %d events that nobody "
                       "acknowledged",
                       2 * LIMIT_AGENT_EVENTS);
    if (old)
        return link_chan_junk(&l->rpc, err);
    if (l->cb.on_event != NULL)
        l->cb.on_event(l->cb.arg, ev);
    return 0;
}

static void user_answered(struct link *l, struct call *c, const struct frame *f)
{
    c->response = malloc(f->len + 1);
    if (c->response != NULL) {
        if (f->len > 0)
            memcpy(c->response, f->payload, f->len);
        c->response_len = f->len;
    }
    finish(l, c, c->response == NULL ? "out of memory for the answer" : NULL);
}

/* A heartbeat; agents that know no Clock are asked for nothing. */
static void queue_ping(struct link *l)
{
    Aspis__Agent__V1__Empty empty;
    Aspis__Agent__V1__ClockRequest req;

    aspis__agent__v1__empty__init(&empty);
    aspis__agent__v1__clock_request__init(&req);
    if (l->minor >= protocol_call_minor("Clock")) {
        link_clock_ask(l, &req);
        prepare(&l->ping, "Clock", &req.base);
    } else {
        prepare(&l->ping, "Ping", &empty.base);
    }
    enqueue(l, &l->ping);
}

static int response_came(struct link *l, const struct frame *f, struct err *err)
{
    struct call *c;

    (void)pthread_mutex_lock(&l->rpc.lock);
    c = find_sent(l, f->stream);
    if (c != NULL) {
        unlist(l, c);
        l->heard = true;
        if (is_user(c)) {
            user_answered(l, c, f);
        } else if (c->kind == CALL_ACK) {
            queue_ack(l);
            link_chan_flush(&l->rpc);
        } else if (c->kind == CALL_PING && link_clock_answered(l, f)) {
            queue_ping(l);
            link_chan_flush(&l->rpc);
        }
    }
    (void)pthread_mutex_unlock(&l->rpc.lock);
    if (c == NULL)
        return link_chan_junk(&l->rpc, err);
    if (c == &l->hello)
        return hello_answered(l, f, err);
    if (c == &l->events)
        again(l);
    return 0;
}

static int rpc_frame(struct link *l, const struct frame *f, struct err *err)
{
    bool event;

    if (f->type == FRAME_RESPONSE)
        return response_came(l, f, err);
    (void)pthread_mutex_lock(&l->rpc.lock);
    event = f->type == FRAME_DATA && l->events.state == CALL_SENT && l->events.stream == f->stream;
    (void)pthread_mutex_unlock(&l->rpc.lock);
    return event ? event_came(l, f, err) : link_chan_junk(&l->rpc, err);
}

/* --- life --- */

void link_rpc_init(struct link *l, struct loop *control)
{
    static const struct link_chan_ops ops = {
        .up = rpc_up, .down = rpc_down, .frame = rpc_frame, .fill = rpc_fill};

    TAILQ_INIT(&l->queue);
    l->hello.kind = CALL_HELLO;
    l->events.kind = CALL_EVENTS;
    l->ack.kind = CALL_ACK;
    l->ping.kind = CALL_PING;
    l->last_stream = UINT32_MAX;
    link_chan_init(&l->rpc, l, LINK_RPC, control, LIMIT_RPC_MESSAGE, LIMIT_RPC_MESSAGE + MiB(1),
                   &ops);
}

void link_rpc_start(struct link *l)
{
    auto_err struct err err = ERR_INIT;

    l->again = loop_add_timer(l->rpc.loop, -1, on_again, l, &err);
    if (l->again == NULL)
        link_broken(l, err_msg(&err));
    else
        link_chan_start(&l->rpc);
}

void link_rpc_end(struct link *l)
{
    struct call *c;

    link_chan_stop(&l->rpc);
    loop_remove(take(l->again));
    (void)pthread_mutex_lock(&l->rpc.lock);
    fail_sent(l, l->reason);
    while ((c = TAILQ_FIRST(&l->queue)) != NULL) {
        unlist(l, c);
        finish(l, c, l->reason);
    }
    (void)pthread_mutex_unlock(&l->rpc.lock);
}

void link_rpc_clear(struct link *l)
{
    drop_request(&l->hello);
    drop_request(&l->events);
    drop_request(&l->ack);
    drop_request(&l->ping);
    free(l->boot_id);
    link_chan_clear(&l->rpc);
}

/* --- for callers --- */

static int too_old(const struct call *c, struct err *err)
{
    return err_set(
        err, ERR_UNIMPLEMENTED,
        "the pod's agent speaks version %d.%u of the protocol, and %s needs %d.%u: a pod "
        "that is started now has it",
        PROTOCOL_MAJOR, c->agent_minor, c->needs, PROTOCOL_MAJOR, c->since);
}

/* Runs c to its end; -1 with *err when it was cancelled or the link failed. */
static int run(struct link *l, struct call *c, struct cancel *cancel, struct err *err)
{
    int ret = 0;
    auto_close int done = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    if (done < 0)
        return err_sys(err, errno, "make eventfd");
    c->done = done;
    (void)pthread_mutex_lock(&l->rpc.lock);
    if (atomic_load(&l->ended)) {
        ret = err_set(err, ERR_UNAVAILABLE, "%s", l->reason);
    } else if (l->n_calls >= CALLS_MAX) {
        ret = err_set(err, ERR_EXHAUSTED, "%u calls are waiting for this agent", l->n_calls);
    } else {
        l->n_calls++;
        enqueue(l, c);
        link_chan_flush(&l->rpc);
    }
    (void)pthread_mutex_unlock(&l->rpc.lock);
    if (ret < 0)
        return ret;

    ret = cancel_poll(cancel, done, POLLIN, -1, err) < 0 ? -1 : 0;
    (void)pthread_mutex_lock(&l->rpc.lock);
    if (c->state == CALL_DONE) {
        if (ret < 0)
            err_clear(err); /* the answer came first after all */
        ret = c->failure == NULL          ? 0
              : c->agent_minor < c->since ? too_old(c, err)
                                          : err_set(err, ERR_UNAVAILABLE, "%s", c->failure);
    } else {
        bool sent = c->state == CALL_SENT;

        unlist(l, c);
        l->n_calls--;
        if (sent && l->rpc.synced) {
            if (frame_append(&l->rpc.out, c->stream, FRAME_CANCEL, 0, NULL, 0) < 0)
                l->rpc.out.overflow = false;
            link_chan_flush(&l->rpc);
        }
    }
    (void)pthread_mutex_unlock(&l->rpc.lock);
    return ret;
}

int link_wait_up(struct link *l, struct cancel *cancel, struct err *err)
{
    struct call c = {.kind = CALL_WAIT_UP};

    return run(l, &c, cancel, err) < 0 ? err_wrap(err, "wait for the agent") : 0;
}

static const ProtobufCMessage *decode_reply(const struct call *c,
                                            const ProtobufCMessageDescriptor *reply,
                                            struct arena *arena, struct err *err)
{
    auto_arena struct arena *tmp = arena_new(2 * LIMIT_RPC_MESSAGE);
    Aspis__Ttrpc__Response *env;
    const ProtobufCMessage *m;

    if (unpack_response(c->response, c->response_len, tmp, &env, err) < 0)
        return NULL;
    m = protobuf_c_message_unpack(reply, arena_allocator(arena), env->payload.len,
                                  env->payload.data);
    if (m == NULL)
        (void)err_set(err, arena_exhausted(arena) ? ERR_EXHAUSTED : ERR_DATA_LOSS,
                      "the agent's %s cannot be unpacked", reply->short_name);
    return m;
}

const ProtobufCMessage *link_call(struct link *l, const char *method,
                                  const ProtobufCMessage *request,
                                  const ProtobufCMessageDescriptor *reply, struct arena *arena,
                                  struct cancel *cancel, struct err *err)
{
    const struct protocol_addition *newest = protocol_newest(method, request);
    struct call c = {.kind = CALL_USER, .agent_minor = UINT32_MAX};
    const ProtobufCMessage *m = NULL;
    int64_t deadline = cancel_deadline(cancel);
    int64_t left = deadline == 0 ? 0 : deadline - mono_ns();

    if (deadline != 0 && left <= 0)
        left = 1;
    if (newest != NULL) {
        c.since = newest->minor;
        c.needs = newest->field != NULL ? newest->field : method;
    }
    c.request = pack_request(method, request, left, &c.request_len, err);
    if (c.request != NULL && run(l, &c, cancel, err) == 0)
        m = decode_reply(&c, reply, arena, err);
    drop_request(&c);
    free(c.response);
    if (m == NULL)
        (void)err_wrap(err, "%s", method);
    return m;
}

uint64_t link_reconnects(void)
{
    return atomic_load(&reconnects);
}

static void ask_clock(struct link *l)
{
    link_clock_begin(l);
    if (l->up && l->ping.state == CALL_IDLE) {
        queue_ping(l);
        link_chan_flush(&l->rpc);
    }
}

void link_clock_changed(struct link *l)
{
    (void)pthread_mutex_lock(&l->rpc.lock);
    if (l->minor >= protocol_call_minor("Clock"))
        ask_clock(l);
    (void)pthread_mutex_unlock(&l->rpc.lock);
}

bool link_probe(struct link *l)
{
    (void)pthread_mutex_lock(&l->rpc.lock);
    bool heard = l->heard;
    l->heard = false;
    ask_clock(l);
    (void)pthread_mutex_unlock(&l->rpc.lock);
    return heard;
}

void link_ack_events(struct link *l, uint64_t seq)
{
    (void)pthread_mutex_lock(&l->rpc.lock);
    if (seq > l->last_event)
        seq = l->last_event;
    if (seq > l->ack_want) {
        l->ack_want = seq;
        if (l->n_unacked > l->last_event - seq)
            l->n_unacked = l->last_event - seq;
        if (l->up) {
            queue_ack(l);
            link_chan_flush(&l->rpc);
        }
    }
    (void)pthread_mutex_unlock(&l->rpc.lock);
}
