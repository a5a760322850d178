/*
 * The guest's end of the link, fed what a confused host may send: requests of every type to
 * handlers that answer, fail, stream or never answer; stdio frames to streams with pipes behind
 * them. The first byte chooses the channel.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent/peer.h"
#include "agent/rpc.h"
#include "agent/stdio.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "proto/agent.pb-c.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void h_empty(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    Aspis__Agent__V1__Empty e;

    (void)req;
    (void)arg;
    aspis__agent__v1__empty__init(&e);
    rpc_reply(call, &e.base);
}

static void h_echo(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    (void)arg;
    rpc_reply(call, req);
}

static void h_fail(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    auto_err struct err err = ERR_INIT;

    (void)req;
    (void)arg;
    (void)err_set(&err, ERR_NOT_FOUND, "not here");
    rpc_fail(call, &err);
}

static void fail_when_gone(void *arg)
{
    rpc_fail(arg, NULL);
}

static void h_keep(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    (void)req;
    (void)arg;
    rpc_call_notify(call, fail_when_gone, NULL, call);
}

static void h_stream(struct rpc_call *call, const ProtobufCMessage *req, void *arg)
{
    (void)req;
    (void)arg;
    for (int i = 0; i < 3; i++) {
        Aspis__Agent__V1__Event ev;

        aspis__agent__v1__event__init(&ev);
        ev.seq = (uint64_t)i + 1;
        (void)rpc_stream_send(call, &ev.base);
    }
}

static const struct rpc_method methods[] = {
    {"Hello", &aspis__agent__v1__hello_request__descriptor, h_echo, NULL},
    {"ConfigurePod", &aspis__agent__v1__configure_pod_request__descriptor, h_echo, NULL},
    {"CreateContainer", &aspis__agent__v1__create_container_request__descriptor, h_echo, NULL},
    {"StartContainer", &aspis__agent__v1__start_container_request__descriptor, h_fail, NULL},
    {"SignalContainer", &aspis__agent__v1__signal_container_request__descriptor, h_keep, NULL},
    {"Exec", &aspis__agent__v1__exec_request__descriptor, h_echo, NULL},
    {"Events", &aspis__agent__v1__events_request__descriptor, h_stream, NULL},
    {"Ping", &aspis__agent__v1__empty__descriptor, h_empty, NULL},
    {0},
};

static int pipe_with(struct stdio *io, bool input)
{
    int p[2];

    if (pipe2(p, O_CLOEXEC | O_NONBLOCK) < 0)
        abort();
    if (input) {
        (void)stdio_add_input(io, p[1], false, NULL);
        return p[0];
    }
    if (write(p[1], "some output of a process", 24) != 24)
        abort();
    (void)stdio_add_output(io, p[0], NULL, NULL, NULL);
    return p[1];
}

/* So that answers are written, as far as a socket buffer goes; then the queue fills. */
static int attach(struct peer *p)
{
    int sv[2];

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sv) < 0 ||
        peer_attach(p, sv[0], false, NULL) < 0)
        abort();
    return sv[1];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t p[PREAMBLE_SIZE];
    struct loop *loop;
    struct rpc_server *rpc;
    struct stdio *io;
    struct peer *peer;

    if (size < 1)
        return 0;
    (void)signal(SIGPIPE, SIG_IGN);
    log_set_level(LOG_LEVEL_ERROR);
    loop = loop_new(NULL);
    rpc = rpc_server_new(loop, methods, NULL);
    io = stdio_new(loop, NULL);
    int in = pipe_with(io, true);
    int out = pipe_with(io, false);
    auto_close int closed_in = pipe_with(io, true);
    peer = data[0] & 1U ? rpc_server_peer(rpc) : stdio_peer(io);
    int other = attach(peer);
    if (data[0] & 2U)
        cleanup_closep(&closed_in);
    preamble_make(p, data[0] & 1U ? LINK_RPC : LINK_IO, (const uint8_t *)"fuzz-fuzz-fuzz-f");
    peer_input(peer, p, sizeof(p));
    loop_turn(loop, 0);
    peer_input(peer, data + 1, size - 1);
    loop_turn(loop, 0);
    stdio_finish_output(io, 2);
    if (data[0] & 4U)
        peer_input(peer, p, sizeof(p)); /* a new daemon */
    stdio_free(io);
    rpc_server_free(rpc);
    loop_free(loop);
    (void)close(in);
    (void)close(out);
    (void)close(other);
    return 0;
}
