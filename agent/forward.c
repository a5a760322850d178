#include "agent/forward.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/str.h"
#include "proto/agent.pb-c.h"

struct forward {
    struct forwards *table;
    char *owner;
    uint32_t in_id, out_id; /* 0 while dialling */
    /* dialling */
    struct rpc_call *call;
    uint16_t port;
    int fd;
    bool ipv6;
    struct loop_source *src, *timer;
    TAILQ_ENTRY(forward) link;
};

struct forwards {
    struct loop *loop;
    struct stdio *io;
    TAILQ_HEAD(, forward) list;
    size_t n;
    struct rpc_method methods[3];
};

static void stop_dialling(struct forward *f)
{
    loop_remove(take(f->src));
    loop_remove(take(f->timer));
    cleanup_closep(&f->fd);
}

static void forward_free(struct forward *f)
{
    stop_dialling(f);
    stdio_remove(f->table->io, f->in_id);
    stdio_remove(f->table->io, f->out_id);
    TAILQ_REMOVE(&f->table->list, f, link);
    f->table->n--;
    free(f->owner);
    free(f);
}

static void fail(struct forward *f, const struct err *err)
{
    rpc_fail(take(f->call), err);
    forward_free(f);
}

static void connected(struct forward *f)
{
    auto_err struct err err = ERR_INIT;
    int second = fcntl(f->fd, F_DUPFD_CLOEXEC, 0);
    if (second < 0) {
        (void)err_sys(&err, errno, "duplicate a socket");
        fail(f, &err);
        return;
    }
    int first = take_fd(&f->fd);
    stop_dialling(f);
    f->out_id = stdio_add_output(f->table->io, first, NULL, NULL, &err);
    f->in_id = stdio_add_input(f->table->io, second, false, &err);
    if (f->out_id == 0 || f->in_id == 0) {
        fail(f, &err);
        return;
    }
    Aspis__Agent__V1__DialTcpResponse reply;
    Aspis__Agent__V1__Streams streams;
    aspis__agent__v1__dial_tcp_response__init(&reply);
    aspis__agent__v1__streams__init(&streams);
    streams.stdin_id = f->in_id;
    streams.stdout_id = f->out_id;
    reply.streams = &streams;
    rpc_reply(take(f->call), &reply.base);
}

static void dial(struct forward *f);

/* The first address failed: the other one; its error is the one told. */
static void refused(struct forward *f, int why)
{
    auto_err struct err err = ERR_INIT;
    bool again = !f->ipv6;
    loop_remove(take(f->src));
    cleanup_closep(&f->fd);
    if (again) {
        f->ipv6 = true;
        dial(f);
        return;
    }
    (void)err_sys(&err, why, "connect to port %u on localhost", f->port);
    err.code = ERR_UNAVAILABLE;
    fail(f, &err);
}

static void on_connect(struct loop_source *src, uint32_t events, void *arg)
{
    struct forward *f = arg;
    int why = 0;
    socklen_t len = sizeof(why);
    (void)src;
    (void)events;
    if (getsockopt(f->fd, SOL_SOCKET, SO_ERROR, &why, &len) < 0)
        why = errno;
    if (why != 0)
        refused(f, why);
    else
        connected(f);
}

static void dial(struct forward *f)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET,
                             .sin_port = htons(f->port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 v6 = {
        .sin6_family = AF_INET6, .sin6_port = htons(f->port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    auto_err struct err err = ERR_INIT;
    int rc;
    f->fd = socket(f->ipv6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (f->fd < 0) {
        refused(f, f->ipv6 ? ECONNREFUSED : errno); /* a guest without IPv6 */
        return;
    }
    do {
        rc = f->ipv6 ? connect(f->fd, (const struct sockaddr *)&v6, sizeof(v6))
                     : connect(f->fd, (const struct sockaddr *)&v4, sizeof(v4));
    } while (rc < 0 && errno == EINTR);
    if (rc == 0) {
        connected(f);
    } else if (errno != EINPROGRESS) {
        refused(f, errno);
    } else {
        f->src = loop_add_fd(f->table->loop, f->fd, EPOLLOUT, on_connect, f, &err);
        if (f->src == NULL)
            fail(f, &err);
    }
}

static void on_timeout(struct loop_source *src, void *arg)
{
    struct forward *f = arg;
    auto_err struct err err = ERR_INIT;
    (void)src;
    (void)err_set(&err, ERR_UNAVAILABLE, "connect to port %u on localhost: no answer", f->port);
    fail(f, &err);
}

static void close_others(struct forwards *t, const char *owner)
{
    struct forward *f = TAILQ_FIRST(&t->list);
    while (f != NULL) {
        struct forward *next = TAILQ_NEXT(f, link);
        if (f->call == NULL && strcmp(f->owner, owner) != 0)
            forward_free(f);
        f = next;
    }
}

static void handle_dial(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    struct forwards *t = arg;
    const Aspis__Agent__V1__DialTcpRequest *req =
        (const Aspis__Agent__V1__DialTcpRequest *)(const void *)request;
    auto_err struct err err = ERR_INIT;
    close_others(t, req->owner);
    if (req->port == 0 || req->port > UINT16_MAX || strlen(req->owner) > LIMIT_CONTAINER_ID)
        (void)err_set(&err, ERR_INVALID, "port %u", req->port);
    else if (t->n >= LIMIT_AGENT_FORWARDS)
        (void)err_set(&err, ERR_EXHAUSTED, "too many forwarded connections in one pod");
    if (err.code != ERR_OK) {
        rpc_fail(call, &err);
        return;
    }
    struct forward *f = xcalloc(1, sizeof(*f));
    f->table = t;
    f->owner = xstrdup(req->owner);
    f->call = call;
    f->port = (uint16_t)req->port;
    f->fd = -1;
    TAILQ_INSERT_TAIL(&t->list, f, link);
    t->n++;
    f->timer = loop_add_timer(t->loop, LIMIT_DIAL_NS, on_timeout, f, &err);
    if (f->timer == NULL)
        fail(f, &err);
    else
        dial(f);
}

static void handle_hang_up(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    struct forwards *t = arg;
    const Aspis__Agent__V1__HangUpTcpRequest *req =
        (const Aspis__Agent__V1__HangUpTcpRequest *)(const void *)request;
    Aspis__Agent__V1__Empty empty = ASPIS__AGENT__V1__EMPTY__INIT;
    struct forward *f;
    TAILQ_FOREACH(f, &t->list, link)
    {
        if (req->streams != NULL && f->in_id != 0 && f->in_id == req->streams->stdin_id)
            break;
    }
    if (f != NULL)
        forward_free(f);
    rpc_reply(call, &empty.base);
}

struct forwards *forwards_new(struct loop *loop, struct stdio *io)
{
    struct forwards *t = xcalloc(1, sizeof(*t));
    t->loop = loop;
    t->io = io;
    TAILQ_INIT(&t->list);
    t->methods[0] = (struct rpc_method){"DialTcp", &aspis__agent__v1__dial_tcp_request__descriptor,
                                        handle_dial, t};
    t->methods[1] = (struct rpc_method){
        "HangUpTcp", &aspis__agent__v1__hang_up_tcp_request__descriptor, handle_hang_up, t};
    return t;
}

void forwards_free(struct forwards *t)
{
    struct forward *f;
    if (t == NULL)
        return;
    while ((f = TAILQ_FIRST(&t->list)) != NULL)
        forward_free(f);
    free(t);
}

const struct rpc_method *forwards_methods(struct forwards *t)
{
    return t->methods;
}
