/*
 * The host's end of the link, fed what a guest may send: preambles are answered, Hello too (unless
 * the first byte says otherwise), calls wait for answers and streams are open; then the input
 * arrives on one of the channels. Nothing may crash, leak or block.
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

static void answer_hello(struct link *l)
{
    auto_buf struct buf b = BUF_INIT(KiB(4));
    Aspis__Ttrpc__Response r;
    Aspis__Agent__V1__HelloResponse hello;
    uint8_t inner[64];
    uint8_t outer[128];

    aspis__agent__v1__hello_response__init(&hello);
    aspis__ttrpc__response__init(&r);
    hello.major = 1;
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct link *l = NULL;
    struct link_callbacks cb = {.on_event = on_event, .arg = &l};
    static char path[] = "/nonexistent/socket";
    const struct link_transport t = {.kind = LINK_UNIX, .path = {path, path, NULL}};
    struct consumer out[2] = {{.ack = true}, {.ack = false}};
    struct stream_callbacks scb = {.on_data = on_data};
    struct call calls[N_CALLS] = {0};
    struct loop *loop;
    struct stream *in;

    if (size < 1)
        return 0;
    loop = loop_new(NULL);
    loop_turn(loop, 0); /* from now on this thread is the loop's */
    l = link_alloc(&t, loop, loop, &cb, NULL);
    link_rpc_start(l); /* dials in vain and leaves the timers */
    link_chan_start(&l->io);
    int rpc_peer = connect_chan(&l->rpc);
    int io_peer = connect_chan(&l->io);

    for (int i = 0; i < 2; i++) {
        scb.arg = &out[i];
        out[i].stream = stream_open_output(l, (uint32_t)i + 1, 0, &scb, NULL);
    }
    in = stream_open_input(l, 3, NULL);
    for (int i = 0; i < N_CALLS; i++)
        add_call(l, &calls[i]);
    sync_chan(&l->rpc);
    sync_chan(&l->io);
    if (data[0] & 1U)
        answer_hello(l);
    if (data[0] & 4U) {
        /* stdin that waits for its credit */
        auto_cancel struct cancel *now = cancel_new(1, NULL);
        (void)stream_write(in, "hello", 5, (data[0] & 8U) != 0, now, NULL);
    }
    link_chan_input(data[0] & 2U ? &l->rpc : &l->io, data + 1, size - 1);
    loop_turn(loop, 0);

    link_close(l, "over");
    for (int i = 0; i < N_CALLS; i++) {
        if (calls[i].state != CALL_DONE)
            abort();
        free(calls[i].response);
        (void)close(calls[i].done);
    }
    for (int i = 0; i < 2; i++)
        stream_close(out[i].stream);
    stream_close(in);
    link_unref(l);
    loop_free(loop);
    (void)close(rpc_peer);
    (void)close(io_peer);
    return 0;
}
