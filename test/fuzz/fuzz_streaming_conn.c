/* A whole connection, in each protocol, against a client that sends anything: lanes are opened,
 * read, echoed and ended as a session does it. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/limits.h"
#include "cri/streaming/mux.h"

#define LANES 8
#define INPUT_MAX 8192 /* fits into the socket */

struct echo {
    struct conn *conn;
    struct lane *lanes[LANES];
    size_t n;
};

static int on_open(void *arg, struct lane *l)
{
    struct echo *e = arg;
    if (e->n == LANES)
        return -1;
    e->lanes[e->n++] = l;
    return 0;
}

static int64_t on_turn(void *arg)
{
    struct echo *e = arg;
    size_t over = 0;
    for (size_t i = 0; i < e->n; i++) {
        auto_buf struct buf in = BUF_INIT(MiB(1));
        int rc = lane_poll(e->lanes[i], &in);
        if (rc == 1 && lane_put(e->lanes[i], in.data, in.len) < 0)
            lane_discard(e->lanes[i]);
        if (rc == 0)
            lane_end(e->lanes[i]);
        over += rc <= 0 ? 1 : 0;
    }
    if (conn_gone(e->conn))
        conn_abort(e->conn);
    else if (e->n > 0 && over == e->n)
        conn_close(e->conn);
    return 0;
}

static struct mux *make_mux(uint8_t kind)
{
    static const struct protocol protocols[] = {
        {WIRE_SPDY, 4, "v4.channel.k8s.io"},
        {WIRE_TUNNEL, 1, "SPDY/3.1+portforward.k8s.io"},
        {WIRE_WS, 5, "v5.channel.k8s.io"},
        {WIRE_WS_BASE64, 4, "v4.base64.channel.k8s.io"},
        {WIRE_WS, 1, ""},
    };
    static uint16_t ports[] = {80, 443, 8080};
    const struct protocol *p = &protocols[(kind & 0x7fU) % ARRAY_LEN(protocols)];
    struct stream_request r = {.kind = REQUEST_EXEC, .tty = (kind & 0x80) != 0};
    r.in = r.out = true;
    r.err = !r.tty;
    if (r.tty && p->version < 5) { /* the legacy form of port-forward */
        r.kind = REQUEST_PORT_FORWARD;
        r.ports = ports;
        r.n_ports = ARRAY_LEN(ports);
    }
    return p->wire == WIRE_SPDY || p->wire == WIRE_TUNNEL ? mux_spdy_new(p->wire == WIRE_TUNNEL)
                                                          : mux_ws_new(p, &r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int fds[2];
    if (size < 2 || size > INPUT_MAX || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
        return 0;
    auto_cancel struct cancel *stop = cancel_new(0, NULL);
    struct echo e = {0};
    const struct service service = {.open = on_open, .turn = on_turn, .event_fd = -1, .arg = &e};
    /* some of it came behind the HTTP request */
    size_t extra = data[1] < size - 2 ? data[1] : size - 2;
    const uint8_t *rest = data + 2 + extra;
    int64_t idle_ns = data[1] == 0xff ? 1 : 1000000000; /* or idle for too long, at once */
    e.conn = conn_new(fds[0], data + 2, extra, make_mux(data[0]), idle_ns, stop, NULL);
    if (e.conn != NULL && write(fds[1], rest, size - 2 - extra) >= 0 &&
        shutdown(fds[1], SHUT_WR) == 0)
        conn_run(e.conn, &service);
    conn_free(e.conn);
    (void)close(fds[0]);
    (void)close(fds[1]);
    return 0;
}
