/*
 * The host's end of the link, fed what a guest may send: preambles are answered, Hello too (unless
 * the first byte says otherwise), calls wait for answers and streams are open; then the input says
 * in turns what arrives on either channel and what happens meanwhile: connections that break and
 * come again, streams closed and opened, probes, acknowledgements, stdin. Nothing may crash, leak
 * or block.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/str.h"
#include "proto/ttrpc.pb-c.h"
#include "sandbox/link_impl.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define N_CALLS 2

struct consumer {
    struct stream *stream;
    bool ack;
};

static void on_data(void *arg, uint64_t offset, const void *data, size_t len)
{
    struct consumer *c = arg;
    const uint8_t *p = data;
    volatile uint8_t sum = 0;

    for (size_t i = 0; i < len; i++)
        sum = (uint8_t)(sum + p[i]);
    if (c->ack)
        stream_ack(c->stream, offset + len);
}

static void on_event(void *arg, const Aspis__Agent__V1__Event *ev)
{
    if (ev->seq % 3 == 0)
        link_ack_events(*(struct link **)arg, ev->seq);
}

/* A connection that swallows what is written to it. */
static int connect_chan(struct link_chan *c)
{
    int sv[2];
    int big = 1 << 20;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sv) < 0)
        abort();
    (void)setsockopt(sv[0], SOL_SOCKET, SO_SNDBUF, &big, sizeof(big));
    c->fd = sv[0];
    return sv[1];
}

static void sync_chan(struct link_chan *c)
{
    uint8_t p[PREAMBLE_SIZE] = {0};

    preamble_make(p, c->ch, (const uint8_t *)"fuzz-fuzz-fuzz-f");
    preamble_answer(p, p);
    frame_parser_resync(&c->in, p);
    link_chan_input(c, p, sizeof(p));
}

static void answer_hello(struct link *l, uint8_t how)
{
    auto_buf struct buf b = BUF_INIT(KiB(4));
    Aspis__Ttrpc__Response r;
    Aspis__Agent__V1__HelloResponse hello;
    uint8_t inner[64];
    uint8_t outer[128];

    aspis__agent__v1__hello_response__init(&hello);
    aspis__ttrpc__response__init(&r);
    char boot[2] = {(char)('a' + (how & 3U)), '\0'};
    hello.major = 1;
    hello.minor = how >> 2U & 3U;
    hello.boot_id = boot; /* another boot counts its events anew */
    r.payload.len = aspis__agent__v1__hello_response__pack(&hello, inner);
    r.payload.data = inner;
    (void)frame_append(&b, l->hello.stream, FRAME_RESPONSE, 0, outer,
                       aspis__ttrpc__response__pack(&r, outer));
    link_chan_input(&l->rpc, b.data, b.len);
}

static void add_call(struct link *l, struct call *c)
{
    c->kind = CALL_USER;
    c->state = CALL_QUEUED;
    c->request = xcalloc(1, 1);
    c->request_len = 1;
    c->done = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    TAILQ_INSERT_TAIL(&l->queue, c, queue);
    l->n_calls++;
}

/* The connection of a channel is lost, and there is another one. */
static void cut(struct link *l, struct link_chan *c)
{
    (void)pthread_mutex_lock(&c->lock);
    c->synced = false;
    (void)pthread_mutex_unlock(&c->lock);
    c->ops->down(l);
    sync_chan(c);
}

struct session {
    struct link *l;
    struct loop *loop;
    struct consumer out[2];
    struct stream *in;
};

static void reopen(struct session *s, unsigned i, uint64_t offset)
{
    struct stream_callbacks cb = {.on_data = on_data, .arg = &s->out[i]};
    if (s->out[i].stream != NULL)
        stream_close(s->out[i].stream);
    s->out[i].stream = stream_open_output(s->l, i + 1, offset, &cb, NULL);
}

/* One turn: what it is, a number, and the bytes that it needs. Returns how many were used. */
static size_t turn(struct session *s, const uint8_t *data, size_t size)
{
    size_t n = data[1];
    struct link *l = s->l;
    struct link_chan *c = (data[0] & 8U) != 0 ? &l->rpc : &l->io;
    auto_cancel struct cancel *now = NULL;
    switch (data[0] & 7U) {
    case 0:
        loop_turn(s->loop, 0);
        return 2;
    case 1:
        (void)link_probe(l);
        return 2;
    case 2:
        if (!atomic_load(&l->ended))
            cut(l, c);
        if ((data[0] & 16U) != 0 && l->hello.state == CALL_SENT)
            answer_hello(l, data[1]);
        return 2;
    case 3:
        reopen(s, data[0] >> 4U & 1U, n);
        return 2;
    case 4:
        link_ack_events(l, n);
        return 2;
    case 5:
        now = cancel_new(1, NULL);
        (void)stream_write(s->in, data, n < size ? n : size, (data[0] & 16U) != 0, now, NULL);
        return 2;
    default:
        if ((data[0] & 16U) != 0)
            n *= 256;
        n = n < size - 2 ? n : size - 2;
        if (!atomic_load(&l->ended))
            link_chan_input(c, data + 2, n);
        return 2 + n;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct session s = {.out = {{.ack = true}, {.ack = false}}};
    struct link_callbacks cb = {.on_event = on_event, .arg = &s.l};
    static char path[] = "/nonexistent/socket";
    const struct link_transport t = {.kind = LINK_UNIX, .path = {path, path, NULL}};
    struct call calls[N_CALLS] = {0};

    if (size < 1)
        return 0;
    s.loop = loop_new(NULL);
    loop_turn(s.loop, 0); /* from now on this thread is the loop's */
    s.l = link_alloc(&t, s.loop, s.loop, &cb, NULL);
    link_rpc_start(s.l); /* dials in vain and leaves the timers */
    link_chan_start(&s.l->io);
    int rpc_peer = connect_chan(&s.l->rpc);
    int io_peer = connect_chan(&s.l->io);

    for (unsigned i = 0; i < 2; i++)
        reopen(&s, i, 0);
    s.in = stream_open_input(s.l, 3, NULL);
    for (int i = 0; i < N_CALLS; i++)
        add_call(s.l, &calls[i]);
    sync_chan(&s.l->rpc);
    sync_chan(&s.l->io);
    if (data[0] & 1U)
        answer_hello(s.l, data[0] >> 1U);
    data++;
    size--;
    while (size >= 2) {
        size_t used = turn(&s, data, size);
        data += used;
        size -= used;
    }
    loop_turn(s.loop, 0);

    link_close(s.l, "over");
    for (int i = 0; i < N_CALLS; i++) {
        if (calls[i].state != CALL_DONE)
            abort();
        free(calls[i].response);
        (void)close(calls[i].done);
    }
    for (int i = 0; i < 2; i++) {
        if (s.out[i].stream != NULL)
            stream_close(s.out[i].stream);
    }
    stream_close(s.in);
    link_unref(s.l);
    loop_free(s.loop);
    (void)close(rpc_peer);
    (void)close(io_peer);
    return 0;
}
