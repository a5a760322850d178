/* Port-forwards of one client: each pair of a data and an error stream is one TCP connection that
 * the agent makes on the guest's loopback. */
#include <stdatomic.h>
#include <string.h>

#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "cri/agent_call.h"
#include "cri/streaming/outlet.h"
#include "cri/streaming/session.h"

#define HANG_UP_NS (5LL * 1000000000)

struct forwarder;

struct pair {
    struct forwarder *f;
    int64_t request, deadline;
    struct lane *data, *error;
    pthread_t thread;
    bool started, failed;
    atomic_bool finished; /* the thread is about to end */
    struct outlet out;
    atomic_bool out_up;
    TAILQ_ENTRY(pair) link;
};

struct forwarder {
    struct conn *conn;
    struct sandbox *sandbox;
    const char *owner;
    struct cancel *work;
    struct service service;
    TAILQ_HEAD(, pair) pairs;
};

static atomic_uint forwards; /* of all clients */

/* --- one connection, on a thread of its own --- */

static void tell(struct pair *p, const char *text)
{
    char message[LIMIT_GUEST_ERROR + 256];
    (void)snprintf(message, sizeof(message), "error forwarding port %u to pod %s, uid : %s",
                   p->data->port, p->f->sandbox->rec.id, text);
    (void)lane_put(p->error, message, strlen(message));
    p->failed = true;
}

static int dial(struct pair *p, uint32_t *in_id, uint32_t *out_id, struct err *err)
{
    auto_arena struct arena *a = arena_new(LIMIT_CALL_ARENA);
    auto_free char *owner = xstrdup(p->f->owner);
    Aspis__Agent__V1__DialTcpRequest req;
    aspis__agent__v1__dial_tcp_request__init(&req);
    req.port = p->data->port;
    req.owner = owner;
    const Aspis__Agent__V1__DialTcpResponse *r =
        a == NULL ? NULL
                  : (const Aspis__Agent__V1__DialTcpResponse *)agent_ask(
                        p->f->sandbox, "DialTcp", &req.base,
                        &aspis__agent__v1__dial_tcp_response__descriptor, a, p->f->work, err);
    if (r == NULL)
        return -1;
    if (r->streams == NULL)
        return err_set(err, ERR_INTERNAL, "the agent named no streams");
    *in_id = r->streams->stdin_id;
    *out_id = r->streams->stdout_id;
    return 0;
}

static void hang_up(struct pair *p, uint32_t in_id, uint32_t out_id)
{
    Aspis__Agent__V1__Streams streams;
    aspis__agent__v1__streams__init(&streams);
    Aspis__Agent__V1__HangUpTcpRequest req;
    aspis__agent__v1__hang_up_tcp_request__init(&req);
    streams.stdin_id = in_id;
    streams.stdout_id = out_id;
    req.streams = &streams;
    (void)agent_tell(p->f->sandbox, "HangUpTcp", &req.base, HANG_UP_NS, NULL, NULL);
}

/* Client to guest until one of them ends it; then the other direction runs to its end, unless the
 * client has dropped that too. */
static void pump(struct pair *p, struct stream *in)
{
    auto_buf struct buf data = BUF_INIT(MiB(1));
    int rc;
    while ((rc = lane_take(p->data, &data)) == 1) {
        if (stream_write(in, data.data, data.len, false, p->f->work, NULL) < 0) {
            lane_discard(p->data);
            break;
        }
        buf_reset(&data);
    }
    if (rc == 0 && !lane_was_reset(p->data))
        (void)stream_write(in, NULL, 0, true, p->f->work, NULL);
    if (!lane_was_reset(p->data))
        outlet_wait(&p->out);
}

static int carry(struct pair *p, uint32_t in_id, uint32_t out_id, struct err *err)
{
    struct machine *m = sandbox_use_machine(p->f->sandbox, err);
    if (m == NULL)
        return -1;
    struct stream *in = stream_open_input(machine_link(m), in_id, err);
    int rc =
        in == NULL ? -1 : outlet_open(&p->out, p->f->conn, p->data, machine_link(m), out_id, err);
    sandbox_release_machine(p->f->sandbox);
    if (rc == 0) {
        atomic_store(&p->out_up, true);
        conn_wake(p->f->conn);
        pump(p, in);
    }
    stream_close(in);
    return rc;
}

static void *forward(void *arg)
{
    struct pair *p = arg;
    auto_err struct err err = ERR_INIT;
    uint32_t in_id = 0;
    uint32_t out_id = 0;
    if (dial(p, &in_id, &out_id, &err) < 0) {
        tell(p, err_msg(&err));
    } else {
        if (carry(p, in_id, out_id, &err) < 0)
            tell(p, err_msg(&err));
        hang_up(p, in_id, out_id);
    }
    lane_discard(p->data);
    if (p->failed)
        lane_reset(p->data);
    else
        lane_end(p->data);
    lane_end(p->error);
    atomic_store(&p->finished, true);
    conn_wake(p->f->conn);
    return NULL;
}

/* --- pairs, on the connection's thread --- */

static struct pair *pair_of(struct forwarder *f, int64_t request)
{
    struct pair *p;
    TAILQ_FOREACH(p, &f->pairs, link)
    {
        if (p->request == request)
            return p;
    }
    p = xcalloc(1, sizeof(*p));
    p->f = f;
    p->request = request;
    p->deadline = mono_ns() + LIMIT_STREAM_OPEN_NS;
    TAILQ_INSERT_TAIL(&f->pairs, p, link);
    return p;
}

static int on_open(void *arg, struct lane *l)
{
    struct forwarder *f = arg;
    if ((l->kind != LANE_ERROR && l->kind != LANE_DATA) || l->port == 0)
        return -1;
    int64_t request = l->request;
    if (request < 0) /* old clients: the error stream comes right before its data stream */
        request = -(int64_t)(l->kind == LANE_ERROR ? l->id : l->id - 2) - 1;
    struct pair *p = pair_of(f, request);
    struct lane **at = l->kind == LANE_ERROR ? &p->error : &p->data;
    if (*at != NULL)
        return -1;
    *at = l;
    l->owner = p;
    if (l->kind == LANE_ERROR)
        lane_discard(l);
    return 0;
}

static void begin(struct pair *p)
{
    p->started = true;
    if (p->data->port != p->error->port)
        tell(p, "its two streams name different ports");
    else if (atomic_fetch_add(&forwards, 1) >= LIMIT_STREAM_FORWARDS)
        tell(p, "too many forwarded connections");
    else if (pthread_create(&p->thread, NULL, forward, p) != 0)
        tell(p, "cannot start a thread");
    else
        return;
    if (p->data->port == p->error->port)
        (void)atomic_fetch_sub(&forwards, 1);
    p->thread = pthread_self(); /* none to join */
    lane_discard(p->data);
    lane_reset(p->data);
    lane_end(p->error);
    atomic_store(&p->finished, true);
}

static bool said(const struct lane *l)
{
    return l == NULL || l->ended;
}

static void reap(struct pair *p)
{
    if (p->started && !pthread_equal(p->thread, pthread_self())) {
        (void)pthread_join(p->thread, NULL);
        (void)atomic_fetch_sub(&forwards, 1);
    }
    outlet_close(&p->out);
    if (p->data != NULL)
        conn_drop(p->f->conn, p->data);
    if (p->error != NULL)
        conn_drop(p->f->conn, p->error);
    TAILQ_REMOVE(&p->f->pairs, p, link);
    free(p);
}

/* Half a pair whose other half did not come. */
static void give_up(struct pair *p)
{
    struct lane *l = p->data != NULL ? p->data : p->error;
    static const char text[] = "the other stream of this port-forward did not come";
    lane_discard(l);
    if (l == p->error)
        (void)lane_put(l, text, sizeof(text) - 1);
    lane_end(l);
    p->started = true;
    p->thread = pthread_self();
    atomic_store(&p->finished, true);
}

static int64_t turn_pair(struct pair *p)
{
    if (!p->started && p->data != NULL && p->error != NULL)
        begin(p);
    if (!p->started && mono_ns() >= p->deadline)
        give_up(p);
    if (!p->started)
        return p->deadline;
    if (p->data != NULL && lane_was_reset(p->data) && atomic_load(&p->out_up))
        outlet_stop(&p->out);
    /* clients wait for the error stream's end before they close their half of the data */
    if (atomic_load(&p->out_up) && outlet_ended(&p->out))
        lane_end(p->error);
    if (atomic_load(&p->finished) && said(p->data) && said(p->error))
        reap(p);
    return 0;
}

static int64_t on_turn(void *arg)
{
    struct forwarder *f = arg;
    struct pair *p = TAILQ_FIRST(&f->pairs);
    int64_t next_deadline = 0;
    if (conn_gone(f->conn) || conn_stopping(f->conn)) {
        conn_abort(f->conn);
        return 0;
    }
    while (p != NULL) {
        struct pair *next = TAILQ_NEXT(p, link);
        int64_t at = turn_pair(p);
        if (at != 0 && (next_deadline == 0 || at < next_deadline))
            next_deadline = at;
        p = next;
    }
    return next_deadline;
}

void portforward_run(struct conn *conn, struct sandbox *s, const char *owner, struct cancel *stop)
{
    auto_cancel struct cancel *work = cancel_child(stop, 0, NULL);
    struct forwarder f = {.conn = conn, .sandbox = s, .owner = owner, .work = work};
    struct pair *p;
    if (work == NULL)
        return;
    TAILQ_INIT(&f.pairs);
    f.service = (struct service){.open = on_open, .turn = on_turn, .event_fd = -1, .arg = &f};
    conn_run(conn, &f.service);
    cancel_fire(work);
    TAILQ_FOREACH(p, &f.pairs, link)
    {
        if (p->data != NULL) {
            conn_lane_peer_reset(p->data);
            lane_discard(p->data);
        }
    }
    while ((p = TAILQ_FIRST(&f.pairs)) != NULL) {
        /* a thread that is still dialling opens its outlet only to find the reset */
        if (atomic_load(&p->out_up))
            outlet_stop(&p->out);
        reap(p);
    }
}
