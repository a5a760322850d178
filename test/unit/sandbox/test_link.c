/* The real guest side against the real host side over unix sockets, also with a wire that gets cut.
 */
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/limits.h"
#include "base/str.h"
#include "link_fixture.h"

static const ProtobufCMessage *call_empty(struct link *l, const char *method, struct arena *a,
                                          struct cancel *cancel, struct err *err)
{
    Aspis__Agent__V1__Empty e;

    aspis__agent__v1__empty__init(&e);
    return link_call(l, method, &e.base, &aspis__agent__v1__empty__descriptor, a, cancel, err);
}

static int ping(struct link *l, struct err *err)
{
    auto_arena struct arena *a = arena_new(MiB(1));
    auto_cancel struct cancel *c = cancel_new(mono_ns() + 20000000000, NULL);

    return call_empty(l, "Ping", a, c, err) == NULL ? -1 : 0;
}

static void assert_up(struct host *h)
{
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *c = cancel_new(mono_ns() + 20000000000, NULL);

    if (link_wait_up(h->link, c, &err) < 0)
        fail_msg("%s", err_msg(&err));
}

static void calls_and_errors(void **state)
{
    (void)state;
    struct guest g;
    struct host h;
    auto_err struct err err = ERR_INIT;
    auto_arena struct arena *a = arena_new(MiB(32));

    guest_start(&g);
    host_start(&h, g.dir);
    assert_up(&h);
    assert_int_equal(ping(h.link, &err), 0);

    /* the agent's code and text, made printable */
    assert_null(call_empty(h.link, "StartContainer", a, NULL, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_string_equal(err_msg(&err), "StartContainer: agent: no such container?really ?");
    err_clear(&err);
    assert_null(call_empty(h.link, "Nonsense", a, NULL, &err));
    assert_int_equal(err.code, ERR_UNIMPLEMENTED);
    err_clear(&err);

    /* an answer too large for a frame is an error of that call only */
    assert_null(call_empty(h.link, "ListState", a, NULL, &err));
    assert_int_equal(err.code, ERR_EXHAUSTED);
    err_clear(&err);

    Aspis__Agent__V1__ConfigurePodRequest req;
    aspis__agent__v1__configure_pod_request__init(&req);
    req.hosts.len = 5000000;
    req.hosts.data = calloc(1, req.hosts.len);
    assert_null(link_call(h.link, "ConfigurePod", &req.base, &aspis__agent__v1__empty__descriptor,
                          a, NULL, &err));
    assert_int_equal(err.code, ERR_EXHAUSTED);
    err_clear(&err);
    req.hosts.len = 4000000;
    assert_non_null(link_call(h.link, "ConfigurePod", &req.base,
                              &aspis__agent__v1__empty__descriptor, a, NULL, &err));
    /* bytes that the guest would take for a new connection */
    preamble_make(req.hosts.data + 1000, LINK_RPC, (const uint8_t *)"0123456789abcdef");
    assert_null(link_call(h.link, "ConfigurePod", &req.base, &aspis__agent__v1__empty__descriptor,
                          a, NULL, &err));
    assert_int_equal(err.code, ERR_INVALID);
    err_clear(&err);
    free(req.hosts.data);

    /* a reply that does not fit the caller's arena */
    auto_arena struct arena *tiny = arena_new(8);
    assert_null(call_empty(h.link, "Ping", tiny, NULL, &err));
    assert_int_equal(err.code, ERR_EXHAUSTED);
    err_clear(&err);
    assert_int_equal(ping(h.link, &err), 0);
    assert_int_equal(atomic_load(&h.ups), 1);
    assert_int_equal(atomic_load(&h.broken), 0);
    host_stop(&h);
    guest_stop(&g);
}

struct caller {
    struct link *link;
    uint32_t base;
    unsigned n;
    unsigned ok;
    unsigned unavailable;
    unsigned wrong;
    pthread_t thread;
};

static void *call_many(void *arg)
{
    struct caller *c = arg;

    for (uint32_t i = 0; i < c->n; i++) {
        auto_err struct err err = ERR_INIT;
        auto_arena struct arena *a = arena_new(MiB(1));
        auto_cancel struct cancel *cancel = cancel_new(mono_ns() + 30000000000, NULL);
        char id[32];
        char pad[20000];
        char *args[] = {pad};
        Aspis__Agent__V1__ExecRequest req;
        const Aspis__Agent__V1__ExecResponse *r;

        (void)snprintf(id, sizeof(id), "%u", c->base + i);
        memset(pad, 'p', sizeof(pad));
        pad[i * 37 % sizeof(pad)] = '\0';
        aspis__agent__v1__exec_request__init(&req);
        req.exec_id = id;
        req.n_args = 1;
        req.args = args;
        r = (const void *)link_call(c->link, "Exec", &req.base,
                                    &aspis__agent__v1__exec_response__descriptor, a, cancel, &err);
        if (r != NULL && r->pid == c->base + i)
            c->ok++;
        else if (r == NULL && err.code == ERR_UNAVAILABLE)
            c->unavailable++;
        else
            c->wrong++;
    }
    return NULL;
}

#define CALLERS 16

static void start_callers(struct caller *c, struct link *l, unsigned n)
{
    for (unsigned i = 0; i < CALLERS; i++) {
        c[i] = (struct caller){.link = l, .base = 100000 * (i + 1), .n = n};
        assert_int_equal(pthread_create(&c[i].thread, NULL, call_many, &c[i]), 0);
    }
}

static void join_callers(struct caller *c, unsigned *ok, unsigned *unavailable)
{
    *ok = *unavailable = 0;
    for (unsigned i = 0; i < CALLERS; i++) {
        assert_int_equal(pthread_join(c[i].thread, NULL), 0);
        assert_int_equal(c[i].wrong, 0);
        *ok += c[i].ok;
        *unavailable += c[i].unavailable;
    }
}

static void concurrent_calls(void **state)
{
    (void)state;
    struct guest g;
    struct host h;
    struct caller c[CALLERS];
    unsigned ok;
    unsigned unavailable;

    guest_start(&g);
    host_start(&h, g.dir);
    start_callers(c, h.link, 200); /* before the link is up */
    join_callers(c, &ok, &unavailable);
    assert_int_equal(ok, CALLERS * 200);
    host_stop(&h);
    guest_stop(&g);
}

struct slow {
    struct link *link;
    struct cancel *cancel;
    enum err_code code;
    atomic_int *ended;
    pthread_t thread;
};

static void *call_slow(void *arg)
{
    struct slow *s = arg;
    auto_err struct err err = ERR_INIT;
    auto_arena struct arena *a = arena_new(MiB(1));

    assert_null(call_empty(s->link, "SignalContainer", a, s->cancel, &err));
    s->code = err.code;
    if (s->ended != NULL)
        atomic_fetch_add(s->ended, 1);
    return NULL;
}

static void cancelled_calls(void **state)
{
    (void)state;
    struct guest g;
    struct host h;
    struct slow by_hand = {0};
    struct slow deadline = {0};
    struct slow closed = {0};

    guest_start(&g);
    host_start(&h, g.dir);
    by_hand.link = deadline.link = closed.link = h.link;
    by_hand.cancel = cancel_new(0, NULL);
    deadline.cancel = cancel_new(mono_ns() + 50000000, NULL);
    assert_int_equal(pthread_create(&by_hand.thread, NULL, call_slow, &by_hand), 0);
    assert_int_equal(pthread_create(&deadline.thread, NULL, call_slow, &deadline), 0);
    assert_int_equal(pthread_create(&closed.thread, NULL, call_slow, &closed), 0);
    assert_true(eventually_int(&g.slow, 3));
    assert_int_equal(ping(h.link, NULL), 0); /* nobody waits for the slow ones */
    cancel_fire(by_hand.cancel);
    pthread_join(by_hand.thread, NULL);
    assert_int_equal(by_hand.code, ERR_CANCELLED);
    pthread_join(deadline.thread, NULL);
    assert_int_equal(deadline.code, ERR_DEADLINE);
    assert_true(eventually_int(&g.gone, 2));
    assert_int_equal(ping(h.link, NULL), 0);
    link_close(h.link, "machine is gone");
    pthread_join(closed.thread, NULL);
    assert_int_equal(closed.code, ERR_UNAVAILABLE);
    assert_true(eventually_int(&g.gone, 3));
    assert_int_equal(ping(h.link, NULL), -1);
    cancel_unref(by_hand.cancel);
    cancel_unref(deadline.cancel);
    host_stop(&h);
    guest_stop(&g);
}

static void too_many_calls(void **state)
{
    (void)state;
    struct guest g;
    struct host h;
    struct slow s[LIMIT_RPC_CALLS];

    guest_start(&g);
    host_start(&h, g.dir);
    /* the guest still works on all of the first round, which must not use up its calls */
    for (int round = 0; round < 2; round++) {
        auto_err struct err err = ERR_INIT;
        auto_cancel struct cancel *stop = cancel_new(0, NULL);
        unsigned refused = 0;
        atomic_int ended = 0;

        for (unsigned i = 0; i < ARRAY_LEN(s); i++) {
            s[i] = (struct slow){.link = h.link, .cancel = stop, .ended = &ended};
            assert_int_equal(pthread_create(&s[i].thread, NULL, call_slow, &s[i]), 0);
        }
        assert_true(eventually_int(&g.slow, (round + 1) * (LIMIT_RPC_CALLS - 8)));
        assert_true(eventually_int(&ended, 8));
        assert_int_equal(ping(h.link, &err), -1);
        assert_int_equal(err.code, ERR_EXHAUSTED);
        cancel_fire(stop);
        for (unsigned i = 0; i < ARRAY_LEN(s); i++) {
            pthread_join(s[i].thread, NULL);
            refused += s[i].code == ERR_EXHAUSTED;
        }
        assert_int_equal(refused, 8);
        assert_int_equal(ping(h.link, NULL), 0);
    }
    host_stop(&h);
    guest_stop(&g);
}

struct event_cond {
    struct host *h;
    uint64_t n;
};

static bool events_reached(void *arg)
{
    struct event_cond *c = arg;

    return host_events(c->h) >= c->n;
}

static void wait_events(struct host *h, uint64_t n)
{
    struct event_cond c = {h, n};

    assert_true(eventually(events_reached, &c));
}

static bool acked(void *arg)
{
    struct guest *g = arg;

    return g->acked == 4000;
}

static void check_acked(void *arg)
{
    struct guest *g = arg;

    if (!acked(g))
        fprintf(stderr, "acknowledged: %llu\n", (unsigned long long)g->acked);
}

static void events_are_kept_until_acknowledged(void **state)
{
    (void)state;
    struct guest g;
    struct host h;

    guest_start(&g);
    guest_add_events(&g, 5);
    host_start(&h, g.dir);
    wait_events(&h, 5);
    link_ack_events(h.link, 3);
    guest_add_events(&g, 2);
    wait_events(&h, 7);
    assert_int_equal(h.first_event, 1);
    assert_int_equal(h.n_events, 7);
    assert_false(h.disorder);
    assert_int_equal(ping(h.link, NULL), 0); /* after the AckEvents */
    host_stop(&h);

    /* a restarted daemon */
    host_start(&h, g.dir);
    wait_events(&h, 7);
    assert_int_equal(h.first_event, 4);
    /* more at once than the guest queues */
    guest_add_events(&g, 4000 - 7);
    wait_events(&h, 4000);
    link_ack_events(h.link, 1000000); /* beyond what came: up to that */
    assert_int_equal(ping(h.link, NULL), 0);
    loop_call(g.run.loop, check_acked, &g);
    host_stop(&h);
    host_start(&h, g.dir);
    guest_add_events(&g, 1);
    wait_events(&h, 4001);
    assert_int_equal(h.n_events, 1);
    host_stop(&h);
    guest_stop(&g);
}

#define STREAMS 4
#define STREAM_BYTES (4 * 1000 * 1000 + 17)

struct copy {
    int fd;
    uint32_t seed;
    uint64_t len;
    int bad;
    pthread_t thread;
};

static void *read_pattern(void *arg)
{
    struct copy *c = arg;
    uint8_t b[5000];
    ssize_t n;

    while ((n = read(c->fd, b, sizeof(b))) > 0) {
        for (ssize_t i = 0; i < n; i++)
            c->bad += b[i] != pattern(c->seed, c->len + (uint64_t)i);
        c->len += (uint64_t)n;
    }
    (void)close(c->fd);
    return NULL;
}

/* Runs outputs and one input through the link and checks every byte. */
static void check_streams(struct guest *g, struct host *h, uint64_t bytes, void (*during)(void *),
                          void *arg)
{
    struct writer w[STREAMS];
    struct sink s[STREAMS];
    atomic_int eofs = 0;
    struct copy in = {.seed = 99};
    auto_err struct err err = ERR_INIT;
    auto_free uint8_t *data = malloc(bytes);
    struct stream *input;
    uint32_t ids[STREAMS];
    int p[2];

    for (unsigned i = 0; i < STREAMS; i++) {
        assert_int_equal(pipe(p), 0);
        ids[i] = guest_output(g, p[0], &eofs);
        writer_start(&w[i], p[1], i, bytes);
        s[i].never_ack = i == 0;
        sink_open(&s[i], h->link, ids[i], i, 0);
    }
    assert_int_equal(pipe(p), 0);
    uint32_t in_id = guest_input(g, p[1]);
    input = stream_open_input(h->link, in_id, &err);
    in.fd = p[0];
    assert_int_equal(pthread_create(&in.thread, NULL, read_pattern, &in), 0);
    if (during != NULL)
        during(arg);
    for (uint64_t i = 0; i < bytes; i++)
        data[i] = pattern(99, i);
    assert_int_equal(stream_write(input, data, bytes / 3, false, NULL, &err), 0);
    assert_int_equal(stream_write(input, data + bytes / 3, bytes - bytes / 3, true, NULL, &err), 0);
    pthread_join(in.thread, NULL);
    assert_int_equal(in.bad, 0);
    assert_int_equal(in.len, bytes);
    assert_int_equal(stream_write(input, data, 1, false, NULL, &err), -1);
    err_clear(&err);
    stream_close(input);
    for (unsigned i = 1; i < STREAMS; i++) {
        assert_true(eventually_int(&s[i].eof, 1));
        assert_int_equal(s[i].total, bytes);
        assert_int_equal(sink_received(&s[i]), bytes);
        assert_int_equal(atomic_load(&s[i].bad), 0);
        writer_join(&w[i]);
        sink_close(&s[i]);
        guest_remove(g, ids[i]);
    }
    /* the one that nobody reads stopped at its window, and goes on when somebody does */
    assert_int_equal(sink_received(&s[0]), LIMIT_IO_WINDOW);
    assert_int_equal(atomic_load(&eofs), STREAMS - 1);
    sink_close(&s[0]);
    s[0].never_ack = false;
    sink_open(&s[0], h->link, ids[0], 0, 100000);
    assert_true(eventually_int(&s[0].eof, 1));
    assert_int_equal(s[0].total, bytes);
    assert_int_equal(atomic_load(&s[0].bad), 0);
    writer_join(&w[0]);
    sink_close(&s[0]);

    /* what was acknowledged is gone */
    sink_open(&s[0], h->link, ids[0], 0, 100000);
    assert_true(eventually_int(&s[0].reset, 1));
    sink_close(&s[0]);
    /* the end can be asked for again */
    sink_open(&s[0], h->link, ids[0], 0, bytes);
    assert_true(eventually_int(&s[0].eof, 1));
    assert_int_equal(s[0].total, bytes);
    sink_close(&s[0]);
    guest_remove(g, ids[0]);
    guest_remove(g, in_id);
    assert_int_equal(atomic_load(&h->broken), 0);
}

static void streams(void **state)
{
    (void)state;
    struct guest g;
    struct host h;

    guest_start(&g);
    host_start(&h, g.dir);
    check_streams(&g, &h, STREAM_BYTES, NULL, NULL);
    host_stop(&h);
    guest_stop(&g);
}

static void stream_ends(void **state)
{
    (void)state;
    struct guest g;
    struct host h;
    struct sink s = {0};
    struct stream *in;
    struct stream *twice;
    auto_err struct err err = ERR_INIT;
    char big[300000] = {0};
    atomic_int eofs = 0;
    uint32_t id;
    int p[2];

    guest_start(&g);
    host_start(&h, g.dir);

    /* unknown streams */
    sink_open(&s, h.link, 4711, 0, 0);
    assert_true(eventually_int(&s.reset, 1));
    sink_close(&s);
    in = stream_open_input(h.link, 4711, &err);
    assert_int_equal(stream_write(in, "x", 1, false, NULL, &err), -1);
    assert_int_equal(err.code, ERR_ABORTED);
    err_clear(&err);
    stream_close(in);
    assert_null(stream_open_input(h.link, 0, &err));
    err_clear(&err);

    /* a process that closes its stdin */
    assert_int_equal(pipe(p), 0);
    id = guest_input(&g, p[1]);
    in = stream_open_input(h.link, id, &err);
    twice = stream_open_input(h.link, id, &err);
    assert_null(twice);
    assert_int_equal(err.code, ERR_EXISTS);
    err_clear(&err);
    assert_int_equal(stream_write(in, "hello", 5, false, NULL, &err), 0);
    assert_int_equal(read(p[0], big, 5), 5);
    assert_memory_equal(big, "hello", 5);
    /* nobody reads: pipe, ring and window fill, then the writer waits and can be cancelled */
    auto_cancel struct cancel *c = cancel_new(mono_ns() + 200000000, NULL);
    for (int i = 0; i < 10 && err.code == ERR_OK; i++)
        (void)stream_write(in, big, sizeof(big), false, c, &err);
    assert_int_equal(err.code, ERR_DEADLINE);
    err_clear(&err);
    (void)close(p[0]);
    int ret = 0;
    for (int i = 0; i < 10 && ret == 0; i++)
        ret = stream_write(in, big, sizeof(big), false, NULL, &err);
    assert_int_equal(ret, -1);
    assert_int_equal(err.code, ERR_ABORTED);
    assert_non_null(strstr(err_msg(&err), "closed its standard input"));
    err_clear(&err);
    stream_close(in);
    /* the same for the next one who asks */
    in = stream_open_input(h.link, id, &err);
    assert_int_equal(stream_write(in, "x", 1, false, NULL, &err), -1);
    stream_close(in);
    err_clear(&err);

    /* stdin of a second client goes on where the first one stopped */
    assert_int_equal(pipe(p), 0);
    id = guest_input(&g, p[1]);
    in = stream_open_input(h.link, id, &err);
    assert_int_equal(stream_write(in, "one", 3, false, NULL, &err), 0);
    stream_close(in);
    in = stream_open_input(h.link, id, &err);
    assert_int_equal(stream_write(in, "two", 3, true, NULL, &err), 0);
    size_t got = 0;
    for (ssize_t n = 1; n > 0; got += (size_t)n)
        n = read(p[0], big + got, 100);
    assert_int_equal(got, 6);
    assert_memory_equal(big, "onetwo", 6);
    stream_close(in);
    (void)close(p[0]);

    /* stdin that looks like a new connection is only stdin */
    uint8_t tricky[3 * PREAMBLE_SIZE + 1];
    memset(tricky, 'A', sizeof(tricky));
    for (int i = 0; i < 3; i++)
        preamble_make(tricky + 1 + i * PREAMBLE_SIZE, LINK_IO, (const uint8_t *)"ASPISLNKASPISLNK");
    assert_int_equal(pipe(p), 0);
    id = guest_input(&g, p[1]);
    in = stream_open_input(h.link, id, &err);
    assert_int_equal(stream_write(in, tricky, sizeof(tricky), true, NULL, &err), 0);
    got = 0;
    for (ssize_t n = 1; n > 0; got += (size_t)n)
        n = read(p[0], big + got, 1000);
    assert_int_equal(got, sizeof(tricky));
    assert_memory_equal(big, tricky, sizeof(tricky));
    stream_close(in);
    (void)close(p[0]);

    /* a stranger holds the pipe of an ended process: what is in it still comes, then the end */
    assert_int_equal(pipe(p), 0);
    struct writer w;
    id = guest_output(&g, p[0], &eofs);
    int keep = dup(p[1]);
    writer_start(&w, p[1], 5, LIMIT_IO_WINDOW + 60000);
    writer_join(&w);
    assert_int_equal(atomic_load(&eofs), 0);
    guest_finish(&g, id);
    assert_int_equal(atomic_load(&eofs), 1);
    sink_open(&s, h.link, id, 5, 0);
    assert_true(eventually_int(&s.eof, 1));
    assert_int_equal(s.total, LIMIT_IO_WINDOW + 60000);
    assert_int_equal(atomic_load(&s.bad), 0);
    (void)close(keep);

    /* closing the link resets what is open */
    struct sink open = {0};
    assert_int_equal(pipe(p), 0);
    sink_open(&open, h.link, guest_output(&g, p[0], NULL), 1, 0);
    link_close(h.link, "over");
    assert_int_equal(atomic_load(&open.reset), 1);
    sink_close(&open);
    sink_close(&s);
    (void)close(p[1]);
    assert_int_equal(atomic_load(&h.broken), 0);
    host_stop(&h);
    guest_stop(&g);
}

struct cutter {
    struct relay *relay;
    struct host *host;
    struct caller callers[CALLERS];
};

static void cut_all(void *arg)
{
    struct cutter *c = arg;

    relay_cut(c->relay, LINK_IO, 25, 300000);
    relay_cut(c->relay, LINK_RPC, 25, 60000);
    start_callers(c->callers, c->host->link, 60);
}

static void cut_wires(void **state)
{
    (void)state;
    struct guest g;
    struct host h;
    char dir[] = "/tmp/aspis-relay-XXXXXX";
    struct cutter c = {.host = &h};
    unsigned ok;
    unsigned unavailable;

    assert_non_null(mkdtemp(dir));
    guest_start(&g);
    guest_add_events(&g, 3000);
    c.relay = relay_start(dir, g.dir);
    host_start(&h, dir);
    check_streams(&g, &h, STREAM_BYTES, cut_all, &c);
    join_callers(c.callers, &ok, &unavailable);
    assert_int_equal(ok + unavailable, CALLERS * 60);
    assert_true(ok > 0);
    guest_add_events(&g, 10);
    wait_events(&h, 3010);
    assert_false(h.disorder);
    assert_int_equal(h.n_events, 3010);
    assert_int_equal(atomic_load(&h.broken), 0);
    assert_true(relay_cuts_left(c.relay, LINK_IO) <= 0);
    assert_true(atomic_load(&h.ups) > 10);
    print_message("# ups %d, calls ok %u, unavailable %u\n", atomic_load(&h.ups), ok, unavailable);
    host_stop(&h);
    relay_stop(c.relay);
    (void)rmdir(dir);
    guest_stop(&g);
}

static void daemon_before_guest(void **state)
{
    (void)state;
    struct guest g;
    struct host h;
    char rpc[128];
    char moved[128];

    /* the sockets are not there for a while */
    guest_start(&g);
    (void)snprintf(rpc, sizeof(rpc), "%s/rpc.sock", g.dir);
    (void)snprintf(moved, sizeof(moved), "%s/x", g.dir);
    assert_int_equal(rename(rpc, moved), 0);
    host_start(&h, g.dir);
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *c = cancel_new(mono_ns() + 300000000, NULL);
    assert_int_equal(link_wait_up(h.link, c, &err), -1);
    assert_int_equal(err.code, ERR_DEADLINE);
    assert_int_equal(rename(moved, rpc), 0);
    assert_up(&h);
    host_stop(&h);
    guest_stop(&g);
}

struct standstill {
    sem_t stands, go;
};

static void stand_still(void *arg)
{
    struct standstill *s = arg;
    (void)sem_post(&s->stands);
    (void)sem_wait(&s->go);
}

/* A guest that stands still is told from one that answers, whatever was said to it before. */
static void probes(void **state)
{
    (void)state;
    struct guest g;
    struct host h;
    struct standstill s;
    auto_err struct err err = ERR_INIT;

    guest_start(&g);
    host_start(&h, g.dir);
    assert_up(&h);
    assert_true(link_probe(h.link)); /* Hello */
    assert_int_equal(ping(h.link, &err), 0);
    assert_true(eventually_int(&g.pings, 2)); /* the probe's own, and ours */
    assert_true(link_probe(h.link));
    assert_int_equal(ping(h.link, &err), 0);

    (void)sem_init(&s.stands, 0, 0);
    (void)sem_init(&s.go, 0, 0);
    loop_post(g.run.loop, stand_still, &s);
    (void)sem_wait(&s.stands);
    (void)link_probe(h.link); /* what was heard before */
    for (int i = 0; i < 100; i++)
        assert_false(link_probe(h.link)); /* and there is only one Ping on its way */
    (void)sem_post(&s.go);
    assert_int_equal(ping(h.link, &err), 0);
    assert_true(link_probe(h.link));
    assert_true(atomic_load(&g.pings) < 10);
    host_stop(&h);
    guest_stop(&g);
    (void)sem_destroy(&s.stands);
    (void)sem_destroy(&s.go);
}

int main(int argc, char **argv)
{
    (void)signal(SIGPIPE, SIG_IGN); /* as in the agent's main */
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(calls_and_errors),
        cmocka_unit_test(concurrent_calls),
        cmocka_unit_test(cancelled_calls),
        cmocka_unit_test(too_many_calls),
        cmocka_unit_test(events_are_kept_until_acknowledged),
        cmocka_unit_test(streams),
        cmocka_unit_test(stream_ends),
        cmocka_unit_test(cut_wires),
        cmocka_unit_test(daemon_before_guest),
        cmocka_unit_test(probes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
