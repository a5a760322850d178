/* aspisctl port-forward: listens here, and leads every connection to the pod */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cancel.h"
#include "base/limits.h"
#include "cri/ctl/ctl.h"
#include "cri/ctl/forward.h"

#define PORTS_MAX 32
#define CONNECTIONS_MAX 256 /* at once; more wait in the kernel */
#define BACKLOG 128
#define FREE_PORT_TRIES 16
#define CALL_NS (20LL * 1000000000)

struct listener {
    int fds[2]; /* 127.0.0.1, ::1 (-1 on a machine without it) */
    struct forward_ports ports;
};

struct forwarder {
    struct ctl *ctl;
    const char *pod;
    struct listener listeners[PORTS_MAX];
    size_t n;
    struct cancel *stop;
    pthread_mutex_t lock;
    pthread_cond_t fewer;
    unsigned connections;
    int fewer_fd; /* eventfd: one has ended */
};

/* A connection and the thread that carries it. */
struct carrier {
    struct forwarder *f;
    int fd;
    uint16_t port;
    char *url;
};

/* --- listening --- */

static int listen_at(int family, uint16_t port, uint16_t *got)
{
    struct sockaddr_in v4 = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct sockaddr_in6 v6 = {
        .sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_loopback};
    struct sockaddr *sa = family == AF_INET ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6;
    socklen_t len = family == AF_INET ? sizeof(v4) : sizeof(v6);
    int one = 1;
    auto_close int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
        (family == AF_INET6 && setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one)) < 0) ||
        bind(fd, sa, len) < 0 || listen(fd, BACKLOG) < 0 || getsockname(fd, sa, &len) < 0)
        return -1;
    *got = ntohs(family == AF_INET ? v4.sin_port : v6.sin6_port);
    return take_fd(&fd);
}

/* The same port on both loopbacks. 1: that of ::1 is taken, another port may do. */
static int listen_both(struct listener *l, uint16_t port, struct err *err)
{
    uint16_t got = 0;
    l->fds[0] = listen_at(AF_INET, port, &got);
    if (l->fds[0] < 0)
        return err_sys(err, errno, "listen on 127.0.0.1 port %u", port);
    l->fds[1] = listen_at(AF_INET6, got, &got);
    if (l->fds[1] < 0 && errno != EADDRNOTAVAIL && errno != EAFNOSUPPORT) {
        int rc = errno == EADDRINUSE ? 1 : -1;
        (void)err_sys(err, errno, "listen on ::1 port %u", got);
        cleanup_closep(&l->fds[0]);
        return rc;
    }
    l->ports.local = got;
    return 0;
}

static int open_listener(struct forwarder *f, const char *text, struct err *err)
{
    struct listener *l = &f->listeners[f->n];
    *l = (struct listener){.fds = {-1, -1}};
    if (forward_parse(text, &l->ports, err) < 0)
        return -1;
    uint16_t wanted = l->ports.local;
    int rc = listen_both(l, wanted, err);
    for (int i = 1; rc > 0 && wanted == 0 && i < FREE_PORT_TRIES; i++)
        rc = listen_both(l, 0, err);
    if (rc != 0)
        return -1;
    err_clear(err);
    f->n++;
    (void)printf("Forwarding 127.0.0.1:%u%s to port %u of the pod", l->ports.local,
                 l->fds[1] >= 0 ? " and ::1" : "", l->ports.remote);
    (void)putchar('\n');
    return 0;
}

/* --- connections --- */

static void complain(uint16_t port, const char *text)
{
    flockfile(stderr);
    (void)fprintf(stderr, "aspisctl: port %u: ", port);
    ctl_puts(stderr, text);
    (void)fputc('\n', stderr);
    funlockfile(stderr);
}

/* So that who is connected sees a failure and not an orderly end. */
static void reset(int fd)
{
    const struct linger now = {.l_onoff = 1, .l_linger = 0};
    (void)setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
}

static void carrier_free(struct carrier *c)
{
    cleanup_closep(&c->fd);
    free(c->url);
    free(c);
}

static void *carry(void *arg)
{
    struct carrier *c = arg;
    struct forwarder *f = c->f;
    auto_err struct err err = ERR_INIT;
    if (forward_run(c->fd, c->url, c->port, f->stop, &err) < 0) {
        if (err.code != ERR_CANCELLED)
            complain(c->port, err_msg(&err));
        reset(c->fd);
    }
    carrier_free(c);
    (void)pthread_mutex_lock(&f->lock);
    f->connections--;
    (void)eventfd_write(f->fewer_fd, 1);
    (void)pthread_cond_signal(&f->fewer);
    (void)pthread_mutex_unlock(&f->lock);
    return NULL;
}

static int start_carrier(struct carrier *c, struct err *err)
{
    struct forwarder *f = c->f;
    pthread_t thread;
    pthread_attr_t attr;
    (void)pthread_mutex_lock(&f->lock);
    (void)pthread_attr_init(&attr);
    (void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    int rc = pthread_create(&thread, &attr, carry, c);
    (void)pthread_attr_destroy(&attr);
    if (rc == 0)
        f->connections++;
    (void)pthread_mutex_unlock(&f->lock);
    return rc == 0 ? 0 : err_sys(err, rc, "start a thread");
}

/* A URL of its own for each connection; port 0: for none. The caller's. */
static char *get_url(struct forwarder *f, uint16_t port, struct err *err)
{
    auto_arena struct arena *arena = arena_new(MiB(1));
    int32_t number = port;
    Runtime__V1__PortForwardRequest r = RUNTIME__V1__PORT_FORWARD_REQUEST__INIT;
    r.pod_sandbox_id = (char *)(uintptr_t)f->pod;
    r.port = &number;
    r.n_port = port != 0 ? 1 : 0;
    const Runtime__V1__PortForwardResponse *out =
        arena == NULL ? NULL
                      : (const Runtime__V1__PortForwardResponse *)gclient_call(
                            f->ctl->client, RUNTIME_SERVICE "PortForward", &r.base,
                            &runtime__v1__port_forward_response__descriptor, arena, CALL_NS, err);
    return out != NULL ? xstrdup(out->url) : NULL;
}

/* -1 when there is no pod any more; what is wrong with one connection is told and no more. */
static int take_connection(struct forwarder *f, int listener, uint16_t port, struct err *err)
{
    auto_err struct err why = ERR_INIT;
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0)
        return 0; /* gone again */
    struct carrier *c = xcalloc(1, sizeof(*c));
    *c = (struct carrier){.f = f, .fd = fd, .port = port};
    c->url = get_url(f, port, &why);
    if (c->url != NULL && start_carrier(c, &why) == 0)
        return 0;
    reset(fd);
    carrier_free(c);
    if (why.code == ERR_NOT_FOUND)
        return err_move(err, &why);
    complain(port, err_msg(&why));
    return 0;
}

static bool full(struct forwarder *f)
{
    (void)pthread_mutex_lock(&f->lock);
    bool yes = f->connections >= CONNECTIONS_MAX;
    (void)pthread_mutex_unlock(&f->lock);
    return yes;
}

/* Until the token fires. */
static int serve(struct forwarder *f, struct err *err)
{
    while (!cancel_fired(f->stop)) {
        struct pollfd fds[2 + PORTS_MAX * 2];
        bool accepts = !full(f);
        fds[0] = (struct pollfd){.fd = cancel_fd(f->stop), .events = POLLIN};
        fds[1] = (struct pollfd){.fd = f->fewer_fd, .events = POLLIN};
        for (size_t i = 0; i < f->n * 2; i++)
            fds[2 + i] = (struct pollfd){.fd = accepts ? f->listeners[i / 2].fds[i % 2] : -1,
                                         .events = POLLIN};
        if (poll(fds, 2 + f->n * 2, -1) < 0) {
            if (errno == EINTR)
                continue;
            return err_sys(err, errno, "poll");
        }
        eventfd_t n;
        if ((fds[1].revents & POLLIN) != 0)
            (void)eventfd_read(f->fewer_fd, &n);
        for (size_t i = 0; i < f->n * 2 && !full(f); i++) {
            if (fds[2 + i].revents != 0 &&
                take_connection(f, fds[2 + i].fd, f->listeners[i / 2].ports.remote, err) < 0)
                return -1;
        }
    }
    return 0;
}

/* --- the command --- */

static struct cancel *interrupted;

static void on_signal(int sig)
{
    int before = errno;
    (void)sig;
    cancel_fire(interrupted);
    errno = before;
}

static int catch_signals(struct forwarder *f, struct err *err)
{
    const struct sigaction sa = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    interrupted = f->stop;
    if (sigaction(SIGINT, &sa, NULL) < 0 || sigaction(SIGTERM, &sa, NULL) < 0)
        return err_sys(err, errno, "catch signals");
    return 0;
}

static int check_pod(struct forwarder *f, struct err *err)
{
    /* also fails for a pod that does not run; the URL is not used and expires */
    auto_free char *url = get_url(f, 0, err);
    return url != NULL ? 0 : -1;
}

static int run(struct forwarder *f, int argc, char **argv, struct err *err)
{
    if (catch_signals(f, err) < 0 || check_pod(f, err) < 0)
        return -1;
    for (int i = 2; i < argc; i++) {
        if (open_listener(f, argv[i], err) < 0)
            return -1;
    }
    (void)fflush(stdout);
    return serve(f, err);
}

static void end(struct forwarder *f)
{
    (void)signal(SIGINT, SIG_DFL);
    (void)signal(SIGTERM, SIG_DFL);
    cancel_fire(f->stop);
    (void)pthread_mutex_lock(&f->lock);
    while (f->connections > 0)
        (void)pthread_cond_wait(&f->fewer, &f->lock);
    (void)pthread_mutex_unlock(&f->lock);
    for (size_t i = 0; i < f->n * 2; i++)
        cleanup_closep(&f->listeners[i / 2].fds[i % 2]);
    cleanup_closep(&f->fewer_fd);
    cancel_unref(f->stop);
    (void)pthread_cond_destroy(&f->fewer);
    (void)pthread_mutex_destroy(&f->lock);
}

int cmd_port_forward(struct ctl *ctl, int argc, char **argv, struct err *err)
{
    if (argc < 3)
        return ctl_usage(err, "port-forward needs a POD and at least one LOCAL:REMOTE");
    if (argc - 2 > PORTS_MAX)
        return ctl_usage(err, "port-forward takes at most %d ports", PORTS_MAX);
    struct forwarder f = {
        .ctl = ctl, .lock = PTHREAD_MUTEX_INITIALIZER, .fewer = PTHREAD_COND_INITIALIZER};
    f.stop = cancel_new(0, err);
    f.fewer_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int rc = -1;
    if (f.fewer_fd < 0)
        (void)err_sys(err, errno, "eventfd");
    else if (f.stop != NULL && (f.pod = ctl_pod(ctl, argv[1], err)) != NULL)
        rc = run(&f, argc, argv, err);
    end(&f);
    return rc;
}
