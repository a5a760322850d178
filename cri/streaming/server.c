#include "cri/streaming/server.h"

#include <arpa/inet.h>
#include <microhttpd.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>

#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "cri/streaming/session.h"
#include "cri/streaming/websocket.h"

#define REQUEST_TIMEOUT 30 /* seconds for an HTTP request to come in */

static const char *const paths[] = {
    [REQUEST_EXEC] = "exec", [REQUEST_ATTACH] = "attach", [REQUEST_PORT_FORWARD] = "portforward"};

struct stream_server {
    struct stream_server_options o;
    struct MHD_Daemon *http;
    struct tokens *tokens;
    char *url;         /* "http://127.0.0.1:1234" */
    char trouble[200]; /* libmicrohttpd's last words before it served */
    char owner[33];
    struct cancel *stop;
    pthread_mutex_t lock;
    pthread_cond_t idle;
    unsigned sessions;
};

/* A request whose upgrade was answered, until its session ends. */
struct upgrade {
    struct stream_server *server;
    struct stream_request *request;
    struct protocol protocol;
    int fd;
    char *extra;
    size_t extra_len;
    struct MHD_UpgradeResponseHandle *handle;
};

/* Lives as long as MHD knows the connection. */
struct visit {
    struct upgrade *waiting; /* answered, not yet handed over */
};

static void upgrade_free(struct upgrade *u)
{
    if (u == NULL)
        return;
    stream_request_free(u->request);
    free(u->extra);
    free(u);
}

/* --- sessions --- */

static void serve(struct upgrade *u)
{
    struct stream_server *s = u->server;
    auto_err struct err err = ERR_INIT;
    auto_container struct container *c = NULL;
    auto_sandbox struct sandbox *pod = NULL;
    bool ports = u->request->kind == REQUEST_PORT_FORWARD;
    if (ports)
        pod = model_find_sandbox(s->o.runtime, u->request->id, &err);
    else
        c = model_find_container(s->o.runtime, u->request->id, &err);
    if (pod == NULL && c == NULL)
        return; /* removed since the URL was given out */
    bool spdy = u->protocol.wire == WIRE_SPDY || u->protocol.wire == WIRE_TUNNEL;
    struct mux *mux =
        spdy ? mux_spdy_new(u->protocol.wire == WIRE_TUNNEL) : mux_ws_new(&u->protocol, u->request);
    struct conn *conn = conn_new(u->fd, u->extra, u->extra_len, mux, s->o.idle_ns, s->stop, &err);
    if (conn == NULL) {
        log_warn("streaming session cannot begin", LOG_STR("error", err_msg(&err)));
        return;
    }
    log_debug("streaming session begins", LOG_STR("kind", paths[u->request->kind]),
              LOG_STR("protocol", u->protocol.name), LOG_STR("id", u->request->id));
    if (ports)
        portforward_run(conn, pod, s->owner, s->stop);
    else
        session_run(conn, c, u->request, &u->protocol, s->stop);
    conn_free(conn);
    log_debug("streaming session ended", LOG_STR("id", u->request->id));
}

static void *session_thread(void *arg)
{
    struct upgrade *u = arg;
    struct stream_server *s = u->server;
    serve(u);
    (void)MHD_upgrade_action(u->handle, MHD_UPGRADE_ACTION_CLOSE);
    upgrade_free(u);
    (void)pthread_mutex_lock(&s->lock);
    if (--s->sessions == 0)
        (void)pthread_cond_broadcast(&s->idle);
    (void)pthread_mutex_unlock(&s->lock);
    return NULL;
}

static int start_session(struct upgrade *u)
{
    struct stream_server *s = u->server;
    pthread_t thread;
    pthread_attr_t attr;
    (void)pthread_mutex_lock(&s->lock);
    s->sessions++;
    (void)pthread_mutex_unlock(&s->lock);
    (void)pthread_attr_init(&attr);
    (void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    int rc = pthread_create(&thread, &attr, session_thread, u);
    (void)pthread_attr_destroy(&attr);
    if (rc == 0)
        return 0;
    (void)pthread_mutex_lock(&s->lock);
    s->sessions--;
    (void)pthread_mutex_unlock(&s->lock);
    return -1;
}

static void on_upgrade(void *cls, struct MHD_Connection *connection, void *con_cls,
                       const char *extra, size_t extra_len, MHD_socket fd,
                       struct MHD_UpgradeResponseHandle *handle)
{
    struct visit *v = con_cls;
    (void)cls;
    struct upgrade *u = take(v->waiting);
    /* `fd` is not the client's socket under TLS. Frames are small and come in twos and threes: the
     * second would wait for the client's delayed acknowledgement of the first, 40 ms. */
    const union MHD_ConnectionInfo *socket =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    int on = 1;
    if (socket != NULL)
        (void)setsockopt(socket->connect_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    u->fd = fd;
    u->handle = handle;
    if (extra_len > 0) {
        u->extra = xcalloc(1, extra_len);
        memcpy(u->extra, extra, extra_len);
        u->extra_len = extra_len;
    }
    if (start_session(u) < 0) {
        (void)MHD_upgrade_action(handle, MHD_UPGRADE_ACTION_CLOSE);
        upgrade_free(u);
    }
}

/* --- negotiation --- */

static const struct protocol spdy_exec[] = {{WIRE_SPDY, 4, "v4.channel.k8s.io"},
                                            {WIRE_SPDY, 3, "v3.channel.k8s.io"},
                                            {WIRE_SPDY, 2, "v2.channel.k8s.io"},
                                            {WIRE_SPDY, 1, "channel.k8s.io"},
                                            {0}};
static const struct protocol spdy_ports[] = {{WIRE_SPDY, 1, "portforward.k8s.io"}, {0}};
static const struct protocol ws_exec[] = {{WIRE_WS, 5, "v5.channel.k8s.io"},
                                          {WIRE_WS, 4, "v4.channel.k8s.io"},
                                          {WIRE_WS_BASE64, 4, "v4.base64.channel.k8s.io"},
                                          {WIRE_WS, 1, "channel.k8s.io"},
                                          {WIRE_WS_BASE64, 1, "base64.channel.k8s.io"},
                                          {WIRE_WS, 1, ""},
                                          {0}};
static const struct protocol ws_ports[] = {{WIRE_TUNNEL, 1, "SPDY/3.1+portforward.k8s.io"},
                                           {WIRE_WS, 4, "v4.channel.k8s.io"},
                                           {WIRE_WS_BASE64, 4, "v4.base64.channel.k8s.io"},
                                           {WIRE_WS, 1, ""},
                                           {0}};

struct offer {
    const struct protocol *known, *chosen;
    const char *header;
    size_t seen;
};

static enum MHD_Result each_offer(void *arg, enum MHD_ValueKind kind, const char *key,
                                  const char *value)
{
    struct offer *o = arg;
    (void)kind;
    if (strcasecmp(key, o->header) != 0 || value == NULL)
        return MHD_YES;
    auto_free char *copy = xstrdup(value);
    char *save = NULL;
    for (char *t = strtok_r(copy, ", \t", &save); t != NULL; t = strtok_r(NULL, ", \t", &save)) {
        o->seen++;
        for (const struct protocol *p = o->known; o->chosen == NULL && p->name != NULL; p++) {
            if (strcmp(p->name, t) == 0)
                o->chosen = p;
        }
    }
    return MHD_YES;
}

static bool header_has(struct MHD_Connection *c, const char *name, const char *word)
{
    const char *v = MHD_lookup_connection_value(c, MHD_HEADER_KIND, name);
    return v != NULL && strcasestr(v, word) != NULL;
}

static enum MHD_Result answer(struct MHD_Connection *c, unsigned status, const char *text,
                              const struct protocol *supported)
{
    struct MHD_Response *r = MHD_create_response_from_buffer(strlen(text), (void *)(uintptr_t)text,
                                                             MHD_RESPMEM_MUST_COPY);
    if (r == NULL)
        return MHD_NO;
    (void)MHD_add_response_header(r, "Content-Type", "text/plain; charset=utf-8");
    for (; supported != NULL && supported->name != NULL; supported++)
        (void)MHD_add_response_header(r, "X-Accepted-Stream-Protocol-Versions", supported->name);
    enum MHD_Result rc = MHD_queue_response(c, status, r);
    MHD_destroy_response(r);
    return rc;
}

static enum MHD_Result accept_upgrade(struct MHD_Connection *c, struct visit *v,
                                      struct stream_server *s, struct stream_request **request,
                                      const struct protocol *p)
{
    char accept[29];
    bool ws = p->wire != WIRE_SPDY;
    if (ws && (ws_accept_key(MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Sec-WebSocket-Key"),
                             accept) < 0 ||
               !header_has(c, "Sec-WebSocket-Version", "13")))
        return answer(c, 400, "not a WebSocket of version 13\n", NULL);
    struct MHD_Response *r = MHD_create_response_for_upgrade(on_upgrade, NULL);
    if (r == NULL)
        return MHD_NO;
    (void)MHD_add_response_header(r, "Upgrade", ws ? "websocket" : "SPDY/3.1");
    if (ws)
        (void)MHD_add_response_header(r, "Sec-WebSocket-Accept", accept);
    if (p->name[0] != '\0')
        (void)MHD_add_response_header(
            r, ws ? "Sec-WebSocket-Protocol" : "X-Stream-Protocol-Version", p->name);
    struct upgrade *u = xcalloc(1, sizeof(*u));
    u->server = s;
    u->request = take(*request);
    u->protocol = *p;
    v->waiting = u;
    enum MHD_Result rc = MHD_queue_response(c, MHD_HTTP_SWITCHING_PROTOCOLS, r);
    MHD_destroy_response(r);
    return rc;
}

static enum MHD_Result negotiate(struct MHD_Connection *c, struct visit *v, struct stream_server *s,
                                 struct stream_request **request)
{
    bool ports = (*request)->kind == REQUEST_PORT_FORWARD;
    bool upgrade = header_has(c, "Connection", "upgrade");
    if (upgrade && header_has(c, "Upgrade", "websocket")) {
        struct offer o = {.known = ports ? ws_ports : ws_exec, .header = "Sec-WebSocket-Protocol"};
        (void)MHD_get_connection_values(c, MHD_HEADER_KIND, each_offer, &o);
        for (const struct protocol *p = o.known; o.seen == 0 && p->name != NULL; p++) {
            if (p->name[0] == '\0')
                o.chosen = p;
        }
        return o.chosen != NULL ? accept_upgrade(c, v, s, request, o.chosen)
                                : answer(c, 403, "no protocol in common\n", NULL);
    }
    if (upgrade && header_has(c, "Upgrade", "spdy/3.1")) {
        struct offer o = {.known = ports ? spdy_ports : spdy_exec,
                          .header = "X-Stream-Protocol-Version"};
        (void)MHD_get_connection_values(c, MHD_HEADER_KIND, each_offer, &o);
        if (o.seen == 0)
            return answer(c, 400, "X-Stream-Protocol-Version is missing\n", NULL);
        return o.chosen != NULL ? accept_upgrade(c, v, s, request, o.chosen)
                                : answer(c, 403, "no protocol in common\n", o.known);
    }
    return answer(c, 400, "an upgrade to SPDY/3.1 or to WebSocket is needed\n", NULL);
}

static struct stream_request *find_request(struct stream_server *s, const char *url)
{
    for (size_t i = 0; i < ARRAY_LEN(paths); i++) {
        size_t n = strlen(paths[i]);
        if (url[0] == '/' && strncmp(url + 1, paths[i], n) == 0 && url[n + 1] == '/')
            return tokens_take(s->tokens, (enum request_kind)i, url + n + 2);
    }
    return NULL;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *c, const char *url,
                                  const char *method, const char *version, const char *body,
                                  size_t *body_len, void **con_cls)
{
    struct stream_server *s = cls;
    (void)version;
    (void)body;
    if (*con_cls == NULL) { /* the head is there; MHD wants to be asked once more */
        *con_cls = xcalloc(1, sizeof(struct visit));
        return MHD_YES;
    }
    if (*body_len > 0) {
        *body_len = 0;
        return MHD_YES;
    }
    if (strcmp(method, "GET") != 0 && strcmp(method, "POST") != 0)
        return answer(c, 405, "GET or POST\n", NULL);
    auto_stream_request struct stream_request *r = find_request(s, url);
    if (r == NULL)
        return answer(c, 404, "no such streaming request, or it was used or has expired\n", NULL);
    return negotiate(c, *con_cls, s, &r);
}

static void on_completed(void *cls, struct MHD_Connection *c, void **con_cls,
                         enum MHD_RequestTerminationCode code)
{
    struct visit *v = *con_cls;
    (void)cls;
    (void)c;
    (void)code;
    if (v == NULL)
        return;
    upgrade_free(v->waiting);
    free(v);
    *con_cls = NULL;
}

/* --- life --- */

static int fill_address(const struct stream_server_options *o, struct sockaddr_storage *ss)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)ss;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)ss;
    *ss = (struct sockaddr_storage){0};
    if (inet_pton(AF_INET, o->address, &v4->sin_addr) == 1) {
        v4->sin_family = AF_INET;
        v4->sin_port = htons(o->port);
        return 0;
    }
    if (inet_pton(AF_INET6, o->address, &v6->sin6_addr) != 1)
        return -1;
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(o->port);
    return 0;
}

/* What libmicrohttpd has to say; at the start it is why there is none. */
static void __attribute__((format(printf, 2, 0)))
on_http_log(void *arg, const char *fmt, va_list ap)
{
    struct stream_server *s = arg;
    char text[sizeof(s->trouble)];
    const char *line = text;
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    text[strcspn(text, "\r\n")] = '\0';
    if (s->url == NULL)
        memcpy(s->trouble, text, sizeof(text));
    else
        log_debug("streaming server", LOG_STR("libmicrohttpd", line));
}

static int listen_on(struct stream_server *s, struct err *err)
{
    const struct stream_server_options *o = &s->o;
    struct sockaddr_storage ss;
    auto_free char *cert = NULL;
    auto_free char *key = NULL;
    bool tls = o->certificate[0] != '\0';
    if (fill_address(o, &ss) < 0)
        return err_set(err, ERR_INVALID, "\"%s\" is no IP address", o->address);
    if (tls) {
        cert = fs_read(o->certificate, MiB(1), NULL, err);
        key = cert != NULL ? fs_read(o->key, MiB(1), NULL, err) : NULL;
        if (key == NULL)
            return -1;
    }
    bool ipv6 = ss.ss_family == AF_INET6;
    unsigned flags = MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL | MHD_ALLOW_UPGRADE |
                     MHD_USE_ERROR_LOG | (ipv6 ? MHD_USE_IPv6 : 0U) | (tls ? MHD_USE_TLS : 0U);
    const struct MHD_OptionItem tls_items[] = {{MHD_OPTION_HTTPS_MEM_CERT, 0, cert},
                                               {MHD_OPTION_HTTPS_MEM_KEY, 0, key},
                                               {MHD_OPTION_END, 0, NULL}};
    const struct MHD_OptionItem none[] = {{MHD_OPTION_END, 0, NULL}};
    s->http = MHD_start_daemon(
        flags, o->port, NULL, NULL, on_request, s, MHD_OPTION_EXTERNAL_LOGGER, on_http_log, s,
        MHD_OPTION_SOCK_ADDR, &ss, MHD_OPTION_CONNECTION_LIMIT, (unsigned)LIMIT_STREAM_CONNECTIONS,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, KiB(32), MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)REQUEST_TIMEOUT, MHD_OPTION_NOTIFY_COMPLETED, on_completed, NULL,
        MHD_OPTION_ARRAY, tls ? tls_items : none, MHD_OPTION_END);
    if (s->http == NULL)
        return err_set(err, ERR_UNAVAILABLE, "listen on %s port %u%s%s%s%s: %s", o->address,
                       o->port, tls ? " with certificate " : "", o->certificate,
                       tls ? " and key " : "", o->key, s->trouble);
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(s->http, MHD_DAEMON_INFO_BIND_PORT);
    unsigned port = info != NULL ? info->port : 0;
    const char *host = strcmp(o->address, "0.0.0.0") == 0 ? "127.0.0.1"
                       : strcmp(o->address, "::") == 0    ? "::1"
                                                          : o->address;
    s->url = fs_format(ipv6 ? "%s://[%s]:%u" : "%s://%s:%u", tls ? "https" : "http", host, port);
    return 0;
}

struct stream_server *stream_server_start(const struct stream_server_options *o, struct err *err)
{
    struct stream_server *s = xcalloc(1, sizeof(*s));
    s->o = *o;
    (void)pthread_mutex_init(&s->lock, NULL);
    (void)pthread_cond_init(&s->idle, NULL);
    fs_random_hex(s->owner, 32);
    s->tokens = tokens_new(mono_ns);
    s->stop = cancel_new(0, err);
    if (s->stop == NULL || listen_on(s, err) < 0) {
        stream_server_stop(s);
        return NULL;
    }
    return s;
}

void stream_server_stop(struct stream_server *s)
{
    if (s == NULL)
        return;
    if (s->stop != NULL)
        cancel_fire(s->stop);
    if (s->http != NULL) {
        MHD_socket listener = MHD_quiesce_daemon(s->http);
        if (listener != MHD_INVALID_SOCKET)
            (void)close(listener);
        (void)pthread_mutex_lock(&s->lock);
        while (s->sessions > 0)
            (void)pthread_cond_wait(&s->idle, &s->lock);
        (void)pthread_mutex_unlock(&s->lock);
        MHD_stop_daemon(s->http);
    }
    tokens_free(s->tokens);
    cancel_unref(s->stop);
    (void)pthread_cond_destroy(&s->idle);
    (void)pthread_mutex_destroy(&s->lock);
    free(s->url);
    free(s);
}

char *stream_server_offer(struct stream_server *s, struct stream_request *r, struct err *err)
{
    char token[TOKEN_LENGTH + 1];
    enum request_kind kind = r->kind;
    if (tokens_put(s->tokens, r, token, err) < 0)
        return NULL;
    return fs_format("%s/%s/%s", s->url, paths[kind], token);
}
