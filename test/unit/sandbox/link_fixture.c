#include "link_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/cancel.h"
#include "base/limits.h"
#include "base/str.h"

#define MUST(x)                                                                                    \
    do {                                                                                           \
        if (!(x)) {                                                                                \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);                                \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static void *run_loop(void *arg)
{
    loop_run(arg);
    return NULL;
}

void runner_start(struct runner *r)
{
    r->loop = loop_new(NULL);
    MUST(r->loop != NULL);
    MUST(pthread_create(&r->thread, NULL, run_loop, r->loop) == 0);
}

void runner_stop(struct runner *r)
{
    loop_stop(r->loop);
    MUST(pthread_join(r->thread, NULL) == 0);
    loop_free(r->loop);
}

static void tick(void)
{
    struct pollfd none = {.fd = -1};

    (void)poll(&none, 0, 2);
}

bool eventually(bool (*cond)(void *arg), void *arg)
{
    int64_t end = mono_ns() + 20000000000;

    while (!cond(arg)) {
        if (mono_ns() > end)
            return false;
        tick();
    }
    return true;
}

struct int_cond {
    atomic_int *v;
    int at_least;
};

static bool int_reached(void *arg)
{
    struct int_cond *c = arg;

    return atomic_load(c->v) >= c->at_least;
}

bool eventually_int(atomic_int *v, int at_least)
{
    struct int_cond c = {v, at_least};

    return eventually(int_reached, &c);
}

/* --- guest --- */

static void h_empty(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    Aspis__Agent__V1__Empty e;
    struct guest *g = arg;

    (void)req;
    atomic_fetch_add(&g->pings, 1);
    aspis__agent__v1__empty__init(&e);
    rpc_reply(call, &e.base);
}

static void h_clock(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    const Aspis__Agent__V1__ClockRequest *r = (const void *)req;
    Aspis__Agent__V1__ClockResponse out;
    struct guest *g = arg;

    int n = atomic_fetch_add(&g->clocks, 1);
    atomic_fetch_add(&g->adjusted, r->adjust_ns);
    aspis__agent__v1__clock_response__init(&out);
    if (g->liar) {
        out.wall_clock_ns = n % 2 == 0 ? UINT64_MAX : 1;
    } else {
        long long off = atomic_fetch_add(&g->clock_off, r->adjust_ns) + r->adjust_ns;
        out.wall_clock_ns = (uint64_t)(wall_ns() + off);
    }
    rpc_reply(call, &out.base);
}

static void h_hello(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    Aspis__Agent__V1__HelloResponse r;
    static char boot[] = "boot-1";

    (void)req;
    aspis__agent__v1__hello_response__init(&r);
    r.major = 1;
    r.minor = ((const struct guest *)arg)->minor;
    r.boot_id = boot;
    rpc_reply(call, &r.base);
}

struct late {
    struct rpc_call *call;
    uint32_t pid;
    struct loop_source *timer;
};

static void answer_exec(struct rpc_call *call, uint32_t pid)
{
    Aspis__Agent__V1__ExecResponse r;

    aspis__agent__v1__exec_response__init(&r);
    r.pid = pid;
    rpc_reply(call, &r.base);
}

static void on_late(struct loop_source *src, void *arg)
{
    struct late *l = arg;

    answer_exec(l->call, l->pid);
    loop_remove(src);
    free(l);
}

static void h_exec(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    const Aspis__Agent__V1__ExecRequest *r = (const void *)req;
    struct guest *g = arg;
    uint32_t pid = (uint32_t)atoi(r->exec_id);

    if (pid % 3 != 0) {
        answer_exec(call, pid);
        return;
    }
    struct late *l = xcalloc(1, sizeof(*l));
    l->call = call;
    l->pid = pid;
    l->timer = loop_add_timer(g->run.loop, (int64_t)(pid % 7) * 300000, on_late, l, NULL);
    MUST(l->timer != NULL);
}

static void h_start(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    auto_err struct err err = ERR_INIT;

    (void)req;
    (void)arg;
    (void)err_set(&err, ERR_NOT_FOUND, "no such container\nreally \xff");
    rpc_fail(call, &err);
}

static void slow_gone(void *arg)
{
    atomic_fetch_add(&((struct guest *)arg)->gone, 1);
}

static void h_slow(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    struct guest *g = arg;

    (void)req;
    atomic_fetch_add(&g->slow, 1);
    rpc_call_notify(call, slow_gone, NULL, g);
}

static void h_list(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    Aspis__Agent__V1__ListStateResponse r;
    char *big = malloc(6000001);

    (void)req;
    (void)arg;
    memset(big, 'x', 6000000);
    big[6000000] = '\0';
    aspis__agent__v1__list_state_response__init(&r);
    r.sandbox_id = big;
    rpc_reply(call, &r.base);
    free(big);
}

static void push_events(void *arg)
{
    struct guest *g = arg;

    while (g->events != NULL && g->streamed < g->n_events) {
        Aspis__Agent__V1__Event ev;

        aspis__agent__v1__event__init(&ev);
        ev.seq = g->streamed + 1;
        if (rpc_stream_send(g->events, &ev.base) < 0)
            return;
        g->streamed++;
    }
}

static void events_gone(void *arg)
{
    struct guest *g = arg;
    Aspis__Agent__V1__Empty e;

    aspis__agent__v1__empty__init(&e);
    rpc_reply(take(g->events), &e.base);
}

static void h_events(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    const Aspis__Agent__V1__EventsRequest *r = (const void *)req;
    struct guest *g = arg;

    MUST(g->events == NULL);
    g->events = call;
    g->streamed = r->after_seq > g->acked ? r->after_seq : g->acked;
    rpc_call_notify(call, events_gone, push_events, g);
    push_events(g);
}

static void h_ack(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    const Aspis__Agent__V1__AckEventsRequest *r = (const void *)req;
    struct guest *g = arg;

    if (r->seq > g->acked)
        g->acked = r->seq;
    h_empty(call, req, arg);
}

static void guest_up(void *arg)
{
    struct guest *g = arg;
    struct rpc_method methods[] = {
        {"Hello", &aspis__agent__v1__hello_request__descriptor, h_hello, g},
        {"Ping", &aspis__agent__v1__empty__descriptor, h_empty, g},
        {"Clock", &aspis__agent__v1__clock_request__descriptor, h_clock, g},
        {"Exec", &aspis__agent__v1__exec_request__descriptor, h_exec, g},
        {"StartContainer", &aspis__agent__v1__start_container_request__descriptor, h_start, g},
        {"SignalContainer", &aspis__agent__v1__signal_container_request__descriptor, h_slow, g},
        {"ListState", &aspis__agent__v1__empty__descriptor, h_list, g},
        {"ConfigurePod", &aspis__agent__v1__configure_pod_request__descriptor, h_empty, g},
        {"Events", &aspis__agent__v1__events_request__descriptor, h_events, g},
        {"AckEvents", &aspis__agent__v1__ack_events_request__descriptor, h_ack, g},
        {0},
    };
    static struct rpc_method table[ARRAY_LEN(methods)];
    auto_err struct err err = ERR_INIT;

    memcpy(table, methods, sizeof(methods));
    g->rpc = rpc_server_new(g->run.loop, table, &err);
    g->io = stdio_new(g->run.loop, &err);
    g->volumes = volumes_new(g->run.loop);
    g->channels = channels_new(g->run.loop, CHANNELS_UNIX, g->dir, g->rpc, g->io, g->volumes, &err);
    if (g->channels == NULL)
        fprintf(stderr, "%s\n", err_msg(&err));
    MUST(g->channels != NULL);
}

void guest_start(struct guest *g)
{
    memset(g, 0, sizeof(*g));
    (void)snprintf(g->dir, sizeof(g->dir), "/tmp/aspis-link-XXXXXX");
    MUST(mkdtemp(g->dir) != NULL);
    runner_start(&g->run);
    loop_call(g->run.loop, guest_up, g);
}

static void guest_down(void *arg)
{
    struct guest *g = arg;

    channels_free(g->channels);
    volumes_free(g->volumes);
    stdio_free(g->io);
    rpc_server_free(g->rpc);
}

void guest_stop(struct guest *g)
{
    loop_call(g->run.loop, guest_down, g);
    runner_stop(&g->run);
    (void)rmdir(g->dir);
}

struct more_events {
    struct guest *g;
    uint64_t n;
};

static void add_events(void *arg)
{
    struct more_events *m = arg;

    m->g->n_events += m->n;
    push_events(m->g);
}

void guest_add_events(struct guest *g, uint64_t n)
{
    struct more_events m = {g, n};

    loop_call(g->run.loop, add_events, &m);
}

struct add_stream {
    struct guest *g;
    int fd;
    atomic_int *eofs;
    uint32_t id;
};

static void count_eof(void *arg)
{
    if (arg != NULL)
        atomic_fetch_add((atomic_int *)arg, 1);
}

static void add_output(void *arg)
{
    struct add_stream *a = arg;

    a->id = stdio_add_output(a->g->io, a->fd, count_eof, a->eofs, NULL);
}

static void add_input(void *arg)
{
    struct add_stream *a = arg;

    a->id = stdio_add_input(a->g->io, a->fd, false, NULL);
}

static void finish(void *arg)
{
    struct add_stream *a = arg;

    stdio_finish_output(a->g->io, a->id);
}

static void remove_stream(void *arg)
{
    struct add_stream *a = arg;

    stdio_remove(a->g->io, a->id);
}

uint32_t guest_output(struct guest *g, int fd, atomic_int *eofs)
{
    struct add_stream a = {g, fd, eofs, 0};

    loop_call(g->run.loop, add_output, &a);
    return a.id;
}

uint32_t guest_input(struct guest *g, int fd)
{
    struct add_stream a = {g, fd, NULL, 0};

    loop_call(g->run.loop, add_input, &a);
    return a.id;
}

void guest_finish(struct guest *g, uint32_t id)
{
    struct add_stream a = {g, -1, NULL, id};

    loop_call(g->run.loop, finish, &a);
}

void guest_remove(struct guest *g, uint32_t id)
{
    struct add_stream a = {g, -1, NULL, id};

    loop_call(g->run.loop, remove_stream, &a);
}

/* --- host --- */

static void on_event(void *arg, const Aspis__Agent__V1__Event *ev)
{
    struct host *h = arg;

    (void)pthread_mutex_lock(&h->lock);
    if (h->n_events == 0)
        h->first_event = ev->seq;
    else if (ev->seq != h->last_event + 1)
        h->disorder = true;
    h->last_event = ev->seq;
    h->n_events++;
    (void)pthread_mutex_unlock(&h->lock);
}

static void on_up(void *arg, const Aspis__Agent__V1__HelloResponse *hello)
{
    struct host *h = arg;

    MUST(hello->major == 1);
    atomic_fetch_add(&h->ups, 1);
}

static void on_broken(void *arg, const char *reason)
{
    struct host *h = arg;

    (void)snprintf(h->reason, sizeof(h->reason), "%s", reason);
    atomic_fetch_add(&h->broken, 1);
}

void host_start(struct host *h, const char *dir)
{
    char rpc[128];
    char io[128];
    struct link_transport t = {.kind = LINK_UNIX, .path = {rpc, io, NULL}};
    struct link_callbacks cb = {on_event, on_up, on_broken, h};

    memset(h, 0, sizeof(*h));
    (void)pthread_mutex_init(&h->lock, NULL);
    (void)snprintf(rpc, sizeof(rpc), "%s/rpc.sock", dir);
    (void)snprintf(io, sizeof(io), "%s/io.sock", dir);
    runner_start(&h->control);
    runner_start(&h->io);
    h->link = link_new(&t, h->control.loop, h->io.loop, &cb, NULL);
    MUST(h->link != NULL);
}

void host_stop(struct host *h)
{
    link_close(h->link, "test is over");
    link_unref(h->link);
    runner_stop(&h->control);
    runner_stop(&h->io);
}

uint64_t host_events(struct host *h)
{
    uint64_t v;

    (void)pthread_mutex_lock(&h->lock);
    v = h->last_event;
    (void)pthread_mutex_unlock(&h->lock);
    return v;
}

/* --- relay --- */

struct wire {
    int listener;
    int host;
    int guest;
    char path[128];
    struct buf to_host;
    struct buf to_guest;
    pthread_t thread;
    int stop;
    atomic_int cuts;
    atomic_uint max_gap;
    unsigned rand;
    unsigned gap; /* bytes until the next cut */
};

struct relay {
    struct wire w[2];
};

static int unix_socket(const char *path, bool listening)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    (void)snprintf(a.sun_path, sizeof(a.sun_path), "%s", path);
    MUST(fd >= 0);
    if (listening) {
        (void)unlink(path);
        MUST(bind(fd, (struct sockaddr *)&a, sizeof(a)) == 0 && listen(fd, 1) == 0);
    } else {
        MUST(connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0);
    }
    MUST(fcntl(fd, F_SETFL, O_NONBLOCK) == 0);
    return fd;
}

/* Reads at most a few bytes, so that cuts fall anywhere; false when the peer is gone. */
static bool pull(struct wire *w, int fd, struct buf *b)
{
    size_t n = 1 + (size_t)(rand_r(&w->rand) % 5000);
    char *to = buf_reserve(b, n);
    ssize_t got = read(fd, to, n);

    if (got > 0)
        buf_commit(b, (size_t)got);
    return got > 0 || (got < 0 && errno == EAGAIN);
}

static bool push(struct wire *w, int fd, struct buf *b)
{
    size_t n = b->len;
    bool counting = atomic_load(&w->cuts) > 0;

    if (counting && w->gap == 0)
        w->gap = 1 + (unsigned)rand_r(&w->rand) % atomic_load(&w->max_gap);
    if (counting && n > w->gap)
        n = w->gap;
    ssize_t put = send(fd, b->data, n, MSG_NOSIGNAL);
    if (put < 0)
        return errno == EAGAIN;
    buf_consume(b, (size_t)put);
    if (!counting)
        return true;
    w->gap -= (unsigned)put;
    if (w->gap > 0)
        return true;
    atomic_fetch_sub(&w->cuts, 1);
    return false;
}

static void *relay_run(void *arg)
{
    struct wire *w = arg;

    for (;;) {
        short host_ev =
            (short)((w->to_guest.len < 4096 ? POLLIN : 0) | (w->to_host.len > 0 ? POLLOUT : 0));
        short guest_ev =
            (short)((w->to_host.len < 4096 ? POLLIN : 0) | (w->to_guest.len > 0 ? POLLOUT : 0));
        struct pollfd p[] = {{w->stop, POLLIN, 0},
                             {w->host < 0 ? w->listener : -1, POLLIN, 0},
                             {w->host, host_ev, 0},
                             {w->guest, guest_ev, 0}};
        bool up = true;

        (void)poll(p, 4, -1);
        if (p[0].revents != 0)
            return NULL;
        if (p[1].revents & POLLIN)
            w->host = accept4(w->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (p[3].revents & POLLIN)
            MUST(pull(w, w->guest, &w->to_host));
        if (p[3].revents & POLLOUT)
            up = push(w, w->guest, &w->to_guest);
        if (up && (p[2].revents & POLLOUT))
            up = push(w, w->host, &w->to_host);
        if (up && (p[2].revents & (POLLIN | POLLHUP)))
            up = pull(w, w->host, &w->to_guest);
        if (!up)
            cleanup_closep(&w->host);
    }
}

struct relay *relay_start(const char *dir, const char *guest_dir)
{
    static const char *const names[] = {"rpc.sock", "io.sock"};
    struct relay *r = xcalloc(1, sizeof(*r));

    for (int i = 0; i < 2; i++) {
        struct wire *w = &r->w[i];
        char guest[128];

        (void)snprintf(guest, sizeof(guest), "%s/%s", guest_dir, names[i]);
        (void)snprintf(w->path, sizeof(w->path), "%s/%s", dir, names[i]);
        w->to_host = (struct buf)BUF_INIT(MiB(1));
        w->to_guest = (struct buf)BUF_INIT(MiB(1));
        w->host = -1;
        w->rand = 42 + (unsigned)i;
        w->listener = unix_socket(w->path, true);
        w->guest = unix_socket(guest, false);
        w->stop = eventfd(0, EFD_CLOEXEC);
        MUST(pthread_create(&w->thread, NULL, relay_run, w) == 0);
    }
    return r;
}

void relay_cut(struct relay *r, int channel, int n, unsigned max_gap)
{
    atomic_store(&r->w[channel].max_gap, max_gap);
    atomic_store(&r->w[channel].cuts, n);
}

int relay_cuts_left(struct relay *r, int channel)
{
    return atomic_load(&r->w[channel].cuts);
}

void relay_stop(struct relay *r)
{
    for (int i = 0; i < 2; i++) {
        struct wire *w = &r->w[i];

        (void)eventfd_write(w->stop, 1);
        MUST(pthread_join(w->thread, NULL) == 0);
        cleanup_closep(&w->listener);
        cleanup_closep(&w->host);
        cleanup_closep(&w->guest);
        cleanup_closep(&w->stop);
        buf_clear(&w->to_host);
        buf_clear(&w->to_guest);
        (void)unlink(w->path);
    }
    free(r);
}

/* --- streams --- */

static void *write_pattern(void *arg)
{
    struct writer *w = arg;
    uint8_t b[8192];
    uint64_t off = 0;

    while (off < w->len) {
        size_t n = w->len - off < sizeof(b) ? (size_t)(w->len - off) : sizeof(b);
        size_t put = 0;

        for (size_t i = 0; i < n; i++)
            b[i] = pattern(w->seed, off + i);
        while (put < n) {
            ssize_t k = write(w->fd, b + put, n - put);

            MUST(k > 0);
            put += (size_t)k;
        }
        off += n;
    }
    (void)close(w->fd);
    return NULL;
}

void writer_start(struct writer *w, int fd, uint32_t seed, uint64_t len)
{
    *w = (struct writer){.fd = fd, .seed = seed, .len = len};
    MUST(pthread_create(&w->thread, NULL, write_pattern, w) == 0);
}

void writer_join(struct writer *w)
{
    MUST(pthread_join(w->thread, NULL) == 0);
}

static void sink_data(void *arg, uint64_t offset, const void *data, size_t len)
{
    struct sink *s = arg;
    const uint8_t *p = data;

    (void)pthread_mutex_lock(&s->lock);
    if (offset != s->received)
        atomic_fetch_add(&s->bad, 1);
    for (size_t i = 0; i < len; i++) {
        if (p[i] != pattern(s->seed, offset + i)) {
            atomic_fetch_add(&s->bad, 1);
            break;
        }
    }
    s->received = offset + len;
    if (!s->never_ack)
        stream_ack(s->stream, s->received);
    (void)pthread_mutex_unlock(&s->lock);
}

static void sink_eof(void *arg, uint64_t offset)
{
    struct sink *s = arg;

    (void)pthread_mutex_lock(&s->lock);
    s->total = offset;
    (void)pthread_mutex_unlock(&s->lock);
    atomic_fetch_add(&s->eof, 1);
}

static void sink_reset(void *arg, const char *reason)
{
    struct sink *s = arg;

    (void)reason;
    atomic_fetch_add(&s->reset, 1);
}

void sink_open(struct sink *s, struct link *l, uint32_t id, uint32_t seed, uint64_t offset)
{
    struct stream_callbacks cb = {sink_data, sink_eof, sink_reset, s};
    bool never_ack = s->never_ack;

    memset(s, 0, sizeof(*s));
    s->never_ack = never_ack;
    s->seed = seed;
    s->received = offset;
    (void)pthread_mutex_init(&s->lock, NULL);
    (void)pthread_mutex_lock(&s->lock);
    s->stream = stream_open_output(l, id, offset, &cb, NULL);
    MUST(s->stream != NULL);
    (void)pthread_mutex_unlock(&s->lock);
}

void sink_close(struct sink *s)
{
    stream_close(s->stream);
    s->stream = NULL;
}

uint64_t sink_received(struct sink *s)
{
    uint64_t v;

    (void)pthread_mutex_lock(&s->lock);
    v = s->received;
    (void)pthread_mutex_unlock(&s->lock);
    return v;
}
