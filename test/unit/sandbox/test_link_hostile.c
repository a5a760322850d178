/* A guest that lies: the host's end of the link ignores it or ends the link, and stays bounded. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/limits.h"
#include "base/str.h"
#include "link_fixture.h"
#include "proto/ttrpc.pb-c.h"

struct fake;
typedef void (*scenario)(struct fake *f);

struct fake {
    char dir[64];
    int listener[2];
    int fd[2]; /* rpc, io */
    scenario run;
    bool mute;      /* do not answer preambles */
    size_t garbage; /* sent before the answer */
    pthread_t thread;
    struct host host;
    uint32_t events; /* stream id of the Events call */
    atomic_int done;
};

static int listen_at(const char *dir, const char *name)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    (void)snprintf(a.sun_path, sizeof(a.sun_path), "%s/%s", dir, name);
    if (bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, 1) < 0)
        abort();
    return fd;
}

/* False when the host has hung up. */
static bool put(int fd, const void *data, size_t len)
{
    const char *p = data;

    while (len > 0) {
        ssize_t n = send(fd, p, len, MSG_NOSIGNAL);

        if (n <= 0)
            return false;
        p += n;
        len -= (size_t)n;
    }
    return true;
}

static bool get(int fd, void *data, size_t len)
{
    return recv(fd, data, len, MSG_WAITALL) == (ssize_t)len;
}

static bool put_frame(int fd, uint32_t stream, uint8_t type, uint8_t flags, const void *data,
                      size_t len)
{
    auto_buf struct buf b = BUF_INIT(MiB(5));

    if (frame_append(&b, stream, type, flags, data, len) < 0)
        abort();
    return put(fd, b.data, b.len);
}

static bool put_io(struct fake *f, uint32_t stream, uint8_t flags, uint64_t offset, size_t len)
{
    static const uint8_t zeros[LIMIT_IO_FRAME];
    auto_buf struct buf b = BUF_INIT(MiB(1));

    if (frame_append_io(&b, stream, flags, offset, zeros, len) < 0)
        abort();
    return put(f->fd[1], b.data, b.len);
}

/* Reads one frame of the host and forgets its payload. A host that waited long for the answer to
 * its preamble has said it again, before its first frame. */
static bool get_frame(int fd, uint32_t *stream, uint8_t *type)
{
    static const uint8_t any[PREAMBLE_NONCE];
    uint8_t preamble[PREAMBLE_SIZE];
    uint8_t h[FRAME_HEADER];
    char skip[4096];

    preamble_make(preamble, LINK_RPC, any);
    do {
        if (!get(fd, h, sizeof(h)))
            return false;
    } while (memcmp(h, preamble, 8) == 0 && get(fd, skip, PREAMBLE_SIZE - sizeof(h)));
    size_t len = (size_t)h[1] << 16 | (size_t)h[2] << 8 | h[3];
    *stream = (uint32_t)h[4] << 24 | (uint32_t)h[5] << 16 | (uint32_t)h[6] << 8 | h[7];
    *type = h[8];
    while (len > 0) {
        size_t n = len < sizeof(skip) ? len : sizeof(skip);

        if (!get(fd, skip, n))
            return false;
        len -= n;
    }
    return true;
}

static void answer(int fd, uint32_t stream, int32_t code, const void *data, size_t len)
{
    Aspis__Ttrpc__Response r;
    Aspis__Ttrpc__Status st;
    static char text[] = "lies";

    aspis__ttrpc__response__init(&r);
    aspis__ttrpc__status__init(&st);
    st.code = code;
    st.message = text;
    if (code != 0)
        r.status = &st;
    r.payload.len = len;
    r.payload.data = (uint8_t *)(uintptr_t)data;
    auto_free uint8_t *out = malloc(aspis__ttrpc__response__get_packed_size(&r) + 1);
    size_t n = aspis__ttrpc__response__pack(&r, out);
    (void)put_frame(fd, stream, FRAME_RESPONSE, 0, out, n);
}

static void hello(struct fake *f, uint32_t major)
{
    Aspis__Agent__V1__HelloResponse h;
    uint8_t out[64];
    uint32_t stream = 0;
    uint8_t type;

    if (!get_frame(f->fd[0], &stream, &type))
        return;
    aspis__agent__v1__hello_response__init(&h);
    h.major = major;
    answer(f->fd[0], stream, 0, out, aspis__agent__v1__hello_response__pack(&h, out));
    if (major == 1)
        (void)get_frame(f->fd[0], &f->events, &type);
}

static void *fake_run(void *arg)
{
    struct fake *f = arg;

    for (int i = 0; i < 2; i++) {
        uint8_t p[PREAMBLE_SIZE];

        f->fd[i] = accept(f->listener[i], NULL, NULL);
        if (f->mute)
            continue;
        for (size_t n = 0; n < f->garbage; n += sizeof(p)) {
            memset(p, (int)(n >> 5), sizeof(p));
            if (!put(f->fd[i], p, sizeof(p)))
                break;
        }
        if (get(f->fd[i], p, sizeof(p))) {
            preamble_answer(p, p);
            (void)put(f->fd[i], p, sizeof(p));
        }
    }
    if (f->run != NULL)
        f->run(f);
    atomic_store(&f->done, 1);
    return NULL;
}

static void start(struct fake *f, scenario run)
{
    f->run = run;
    (void)snprintf(f->dir, sizeof(f->dir), "/tmp/aspis-fake-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    f->listener[0] = listen_at(f->dir, "rpc.sock");
    f->listener[1] = listen_at(f->dir, "io.sock");
    assert_int_equal(pthread_create(&f->thread, NULL, fake_run, f), 0);
    host_start(&f->host, f->dir);
}

static void stop(struct fake *f)
{
    char path[128];

    host_stop(&f->host);
    pthread_join(f->thread, NULL);
    for (int i = 0; i < 2; i++) {
        (void)close(f->fd[i]);
        (void)close(f->listener[i]);
        (void)snprintf(path, sizeof(path), "%s/%s", f->dir, i == 0 ? "rpc.sock" : "io.sock");
        (void)unlink(path);
    }
    (void)rmdir(f->dir);
}

static int ping(struct fake *f, struct err *err)
{
    auto_arena struct arena *a = arena_new(MiB(8));
    auto_cancel struct cancel *c = cancel_new(mono_ns() + 20000000000, NULL);
    Aspis__Agent__V1__Empty e;

    aspis__agent__v1__empty__init(&e);
    return link_call(f->host.link, "ListState", &e.base,
                     &aspis__agent__v1__list_state_response__descriptor, a, c, err) == NULL
               ? -1
               : 0;
}

static void expect_broken(scenario run, const char *reason)
{
    struct fake f = {0};
    auto_err struct err err = ERR_INIT;

    start(&f, run);
    assert_true(eventually_int(&f.host.broken, 1));
    if (strstr(f.host.reason, reason) == NULL)
        fail_msg("%s", f.host.reason);
    /* calls learn why */
    assert_int_equal(ping(&f, &err), -1);
    assert_int_equal(err.code, ERR_UNAVAILABLE);
    assert_non_null(strstr(err_msg(&err), reason));
    stop(&f);
    assert_int_equal(atomic_load(&f.host.broken), 1);
}

static void s_garbage(struct fake *f)
{
    char junk[64];

    memset(junk, 0xee, sizeof(junk));
    (void)put(f->fd[0], junk, sizeof(junk));
}

static void s_huge(struct fake *f)
{
    (void)put(f->fd[1], "\0\1\0\11\0\0\0\1\22\0", 10); /* one more than an io frame may have */
}

static void s_version(struct fake *f)
{
    hello(f, 2);
}

/* An agent of another major version refuses the daemon's: it says so in words. */
static void s_hello_refused(struct fake *f)
{
    uint32_t stream;
    uint8_t type;

    if (get_frame(f->fd[0], &stream, &type))
        answer(f->fd[0], stream, ERR_UNIMPLEMENTED, NULL, 0);
}

static void s_hello_garbage(struct fake *f)
{
    uint32_t stream;
    uint8_t type;

    if (get_frame(f->fd[0], &stream, &type))
        answer(f->fd[0], stream, 0, "\377\377\377", 3);
}

static void s_hello_long(struct fake *f)
{
    uint32_t stream;
    uint8_t type;
    static uint8_t big[100000];

    if (get_frame(f->fd[0], &stream, &type))
        answer(f->fd[0], stream, 0, big, sizeof(big));
}

static void s_flood_responses(struct fake *f)
{
    hello(f, 1);
    for (uint32_t i = 0; i < 10000; i++)
        if (!put_frame(f->fd[0], 1000 + i, FRAME_RESPONSE, 0, "x", 1))
            return;
}

static void s_flood_io(struct fake *f)
{
    for (uint32_t i = 0; i < 10000; i++)
        if (!put_io(f, i, 0, 0, 100))
            return;
}

static bool put_event(struct fake *f, uint64_t seq)
{
    Aspis__Agent__V1__Event ev;
    uint8_t out[64];

    aspis__agent__v1__event__init(&ev);
    ev.seq = seq;
    return put_frame(f->fd[0], f->events, FRAME_DATA, 0, out,
                     aspis__agent__v1__event__pack(&ev, out));
}

static void s_flood_events(struct fake *f)
{
    hello(f, 1);
    for (uint64_t i = 1; i < 10000; i++)
        if (!put_event(f, i))
            return;
}

/* Well-formed, but nothing that an agent has to say is so long. */
static void s_event_big(struct fake *f)
{
    Aspis__Agent__V1__Event ev;
    Aspis__Agent__V1__Oom oom;
    auto_free char *id = xcalloc(1, KiB(100) + 1);
    auto_free uint8_t *out = xcalloc(1, KiB(101));

    hello(f, 1);
    memset(id, 'x', KiB(100));
    aspis__agent__v1__event__init(&ev);
    aspis__agent__v1__oom__init(&oom);
    ev.seq = 1;
    ev.what_case = ASPIS__AGENT__V1__EVENT__WHAT_OOM;
    ev.oom = &oom;
    oom.container_id = id;
    (void)put_frame(f->fd[0], f->events, FRAME_DATA, 0, out,
                    aspis__agent__v1__event__pack(&ev, out));
}

static void s_event_garbage(struct fake *f)
{
    hello(f, 1);
    (void)put_frame(f->fd[0], f->events, FRAME_DATA, 0, "\377\377", 2);
}

static void broken_protocol(void **state)
{
    (void)state;
    expect_broken(s_garbage, "no frame");
    expect_broken(s_huge, "no frame");
    expect_broken(s_version, "version 2.0 of the protocol, the daemon 1.");
    expect_broken(s_hello_refused, "agent: lies");
    expect_broken(s_hello_garbage, "cannot be read");
    expect_broken(s_hello_long, "bytes");
    expect_broken(s_flood_responses, "flood");
    expect_broken(s_flood_io, "flood");
    expect_broken(s_flood_events, "events");
    expect_broken(s_event_garbage, "event");
    expect_broken(s_event_big, "event of");
}

/* Streams 7 (output) and 8 (input) are open. */
static void expect_stream_broken(scenario run, const char *reason)
{
    struct fake f = {0};
    struct sink s = {.never_ack = true};
    struct stream *in;

    start(&f, run);
    sink_open(&s, f.host.link, 7, 0, 0);
    in = stream_open_input(f.host.link, 8, NULL);
    assert_true(eventually_int(&f.host.broken, 1));
    if (strstr(f.host.reason, reason) == NULL)
        fail_msg("%s", f.host.reason);
    assert_true(eventually_int(&s.reset, 1));
    assert_int_equal(stream_write(in, "x", 1, false, NULL, NULL), -1);
    sink_close(&s);
    stream_close(in);
    stop(&f);
}

static void two_opens(struct fake *f)
{
    uint32_t stream;
    uint8_t type;

    (void)get_frame(f->fd[1], &stream, &type);
    (void)get_frame(f->fd[1], &stream, &type);
}

static void s_window(struct fake *f)
{
    two_opens(f);
    for (uint64_t i = 0; i < 5; i++)
        (void)put_io(f, 7, 0, i * LIMIT_IO_FRAME, LIMIT_IO_FRAME);
}

static void s_gap(struct fake *f)
{
    two_opens(f);
    (void)put_io(f, 7, 0, 0, 10);
    (void)put_io(f, 7, 0, 11, 10);
}

static void s_after_end(struct fake *f)
{
    two_opens(f);
    (void)put_io(f, 7, FRAME_FLAG_EOF, 0, 10);
    (void)put_io(f, 7, 0, 10, 10);
}

static void s_short(struct fake *f)
{
    two_opens(f);
    (void)put_frame(f->fd[1], 7, FRAME_IO_DATA, 0, "1234567", 7);
}

static void s_overflow(struct fake *f)
{
    two_opens(f);
    (void)put_io(f, 7, 0, 0, 10);
    (void)put_io(f, 7, 0, UINT64_MAX - 5, 10);
}

static void s_ack_too_much(struct fake *f)
{
    auto_buf struct buf b = BUF_INIT(KiB(1));

    two_opens(f);
    (void)frame_append_offset(&b, FRAME_IO_ACK, 8, 1000);
    (void)frame_append_offset(&b, FRAME_IO_ACK, 8, 1001);
    (void)put(f->fd[1], b.data, b.len);
}

static void broken_streams(void **state)
{
    (void)state;
    expect_stream_broken(s_window, "window");
    expect_stream_broken(s_gap, "gap");
    expect_stream_broken(s_after_end, "end");
    expect_stream_broken(s_short, "offset");
    expect_stream_broken(s_overflow, "stream 7");
    expect_stream_broken(s_ack_too_much, "acknowledged");
}

static void s_noise_then_work(struct fake *f)
{
    uint32_t stream;
    uint8_t type;

    hello(f, 1);
    for (uint32_t i = 0; i < 300; i++) {
        (void)put_frame(f->fd[0], i * 1001, FRAME_RESPONSE, 0, "x", 1);
        (void)put_frame(f->fd[0], i * 1001, FRAME_DATA, 0, "x", 1);
        (void)put_frame(f->fd[0], i, FRAME_REQUEST, 0, "x", 1);
        (void)put_io(f, 1 + i, 0, 7, 5);
        (void)put_frame(f->fd[1], i, FRAME_IO_OPEN, 0, "12345678", 8);
        (void)put_frame(f->fd[1], i + 1, FRAME_IO_RESET, 0, "no", 2);
        (void)put_event(f, 3); /* the same one again and again */
    }
    for (int i = 0; i < 5; i++) {
        static uint8_t bomb[1000000];

        if (!get_frame(f->fd[0], &stream, &type))
            return;
        switch (i) {
        case 0:
            (void)put_frame(f->fd[0], stream, FRAME_RESPONSE, 0, "\377\377\377", 3);
            break;
        case 1:
            answer(f->fd[0], stream, 99, NULL, 0);
            break;
        case 2:
            answer(f->fd[0], stream, -1, NULL, 0);
            break;
        case 3:
            for (size_t n = 0; n < sizeof(bomb); n += 2)
                bomb[n] = 0x12; /* field 2, length 0: an empty ProcessState */
            answer(f->fd[0], stream, 0, bomb, sizeof(bomb));
            break;
        default:
            answer(f->fd[0], stream, 0, NULL, 0);
            /* and once more for the same call */
            answer(f->fd[0], stream, 0, NULL, 0);
            break;
        }
    }
}

static void noise_is_ignored(void **state)
{
    (void)state;
    static const enum err_code want[] = {ERR_DATA_LOSS, ERR_UNKNOWN, ERR_UNKNOWN, ERR_EXHAUSTED,
                                         ERR_OK};
    struct fake f = {.garbage = 1000000};

    start(&f, s_noise_then_work);
    for (size_t i = 0; i < ARRAY_LEN(want); i++) {
        auto_err struct err err = ERR_INIT;

        (void)ping(&f, &err);
        assert_int_equal(err.code, want[i]);
    }
    assert_int_equal(host_events(&f.host), 3);
    assert_int_equal(f.host.n_events, 1);
    assert_int_equal(atomic_load(&f.host.broken), 0);
    stop(&f);
}

static void endless_stale_bytes(void **state)
{
    (void)state;
    struct fake f = {.garbage = MiB(70)};

    start(&f, NULL);
    assert_true(eventually_int(&f.host.broken, 1));
    assert_non_null(strstr(f.host.reason, "preamble"));
    stop(&f);
}

static void silence(void **state)
{
    (void)state;
    struct fake f = {.mute = true};
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *c = cancel_new(mono_ns() + 300000000, NULL);

    start(&f, NULL);
    assert_int_equal(link_wait_up(f.host.link, c, &err), -1);
    assert_int_equal(err.code, ERR_DEADLINE);
    assert_true(eventually_int(&f.done, 1));
    /* the preamble came again and again */
    uint8_t p[2 * PREAMBLE_SIZE];
    assert_true(get(f.fd[0], p, sizeof(p)));
    assert_memory_equal(p, p + PREAMBLE_SIZE, PREAMBLE_SIZE);
    assert_int_equal(atomic_load(&f.host.broken), 0);
    stop(&f);
}

static void s_hang_up(struct fake *f)
{
    for (int i = 0; i < 5; i++) {
        uint8_t p[PREAMBLE_SIZE];

        (void)shutdown(f->fd[0], SHUT_RDWR);
        (void)close(f->fd[0]);
        f->fd[0] = accept(f->listener[0], NULL, NULL);
        if (!get(f->fd[0], p, sizeof(p)))
            return;
        preamble_answer(p, p);
        (void)put(f->fd[0], p, sizeof(p));
        hello(f, 1);
    }
}

static void hanging_up_is_not_breaking(void **state)
{
    (void)state;
    struct fake f = {0};

    start(&f, s_hang_up);
    assert_true(eventually_int(&f.host.ups, 5));
    assert_int_equal(atomic_load(&f.host.broken), 0);
    stop(&f);
}

static void s_old_data(struct fake *f)
{
    uint32_t stream;
    uint8_t type;

    (void)get_frame(f->fd[1], &stream, &type); /* OPEN */
    (void)put_io(f, 7, 0, 0, 10);
    do {
        if (!get_frame(f->fd[1], &stream, &type)) /* ACK, RESET of the closed one, OPEN */
            return;
    } while (type != FRAME_IO_OPEN);
    (void)put_io(f, 7, 0, 20, 10); /* was on its way when the stream was closed */
    (void)put_io(f, 7, 0, 0, 30);
    (void)put_io(f, 7, FRAME_FLAG_EOF, 30, 1);
}

struct received {
    struct sink *s;
    uint64_t n;
};

static bool received(void *arg)
{
    struct received *r = arg;

    return sink_received(r->s) >= r->n;
}

static void old_data_after_opening_again(void **state)
{
    (void)state;
    struct fake f = {0};
    struct sink s = {.never_ack = true};
    struct received r = {&s, 10};

    start(&f, s_old_data);
    sink_open(&s, f.host.link, 7, 0, 0);
    assert_true(eventually(received, &r));
    sink_close(&s);
    sink_open(&s, f.host.link, 7, 0, 10);
    assert_true(eventually_int(&s.eof, 1));
    assert_int_equal(s.total, 31);
    assert_int_equal(sink_received(&s), 31);
    assert_int_equal(atomic_load(&f.host.broken), 0);
    sink_close(&s);
    stop(&f);
}

static void s_die_in_call(struct fake *f)
{
    uint32_t stream;
    uint8_t type;

    hello(f, 1);
    (void)get_frame(f->fd[0], &stream, &type);
    (void)shutdown(f->fd[0], SHUT_RDWR);
}

static void call_fails_when_the_guest_dies(void **state)
{
    (void)state;
    struct fake f = {0};
    auto_err struct err err = ERR_INIT;
    int64_t began = mono_ns();

    start(&f, s_die_in_call);
    assert_int_equal(ping(&f, &err), -1);
    assert_int_equal(err.code, ERR_UNAVAILABLE);
    assert_true(mono_ns() - began < 10000000000); /* nobody waits for its deadline */
    assert_int_equal(atomic_load(&f.host.broken), 0);
    stop(&f);
}

static void s_oldest(struct fake *f)
{
    uint8_t c;

    hello(f, 1); /* 1.0 */
    (void)get(f->fd[0], &c, 1);
}

/* What the agent is too old for is not even asked. */
static void older_agent(void **state)
{
    struct fake f = {0};
    auto_err struct err err = ERR_INIT;
    auto_arena struct arena *a = arena_new(MiB(8));
    auto_cancel struct cancel *c = cancel_new(mono_ns() + 20000000000, NULL);
    Aspis__Agent__V1__StatsRequest req;

    (void)state;
    aspis__agent__v1__stats_request__init(&req);
    start(&f, s_oldest);
    assert_null(link_call(f.host.link, "Stats", &req.base,
                          &aspis__agent__v1__stats_response__descriptor, a, c, &err));
    assert_int_equal(err.code, ERR_UNIMPLEMENTED);
    if (strstr(err_msg(&err), "speaks version 1.0") == NULL ||
        strstr(err_msg(&err), "Stats needs 1.2") == NULL)
        fail_msg("%s", err_msg(&err));
    assert_int_equal(atomic_load(&f.done), 0); /* nothing came */
    stop(&f);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(broken_protocol),
        cmocka_unit_test(broken_streams),
        cmocka_unit_test(noise_is_ignored),
        cmocka_unit_test(endless_stale_bytes),
        cmocka_unit_test(silence),
        cmocka_unit_test(hanging_up_is_not_breaking),
        cmocka_unit_test(old_data_after_opening_again),
        cmocka_unit_test(call_fails_when_the_guest_dies),
        cmocka_unit_test(older_agent),
    };

    (void)signal(SIGPIPE, SIG_IGN);
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
