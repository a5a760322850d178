#include "cri/image/http.h"

#include <curl/curl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/fs.h"
#include "base/limits.h"
#include "cri/image/client_cert.h"
#include "cri/image/reference.h"

struct http_client {
    CURLM *multi;
    CURL *easy;
};

/* One request under way. */
struct transfer {
    const struct http_request *req;
    struct http_response *resp;
    int64_t last_byte_ns; /* when enough bytes had come for the last time */
    size_t since;         /* bytes since then */
    bool started;         /* on_start has run */
    bool enough;          /* the rest of an error's body is not wanted */
    struct err failed;    /* of a callback */
};

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;

static void start_curl(void)
{
    (void)curl_global_init(CURL_GLOBAL_DEFAULT);
}

struct http_client *http_new(struct err *err)
{
    struct http_client *c = xcalloc(1, sizeof(*c));

    (void)pthread_once(&curl_once, start_curl);
    c->multi = curl_multi_init();
    c->easy = curl_easy_init();
    if (c->multi == NULL || c->easy == NULL) {
        http_free(c);
        (void)err_set(err, ERR_EXHAUSTED, "cannot set up an HTTP client");
        return NULL;
    }
    return c;
}

void http_free(struct http_client *c)
{
    if (c == NULL)
        return;
    curl_easy_cleanup(c->easy);
    (void)curl_multi_cleanup(c->multi);
    free(c);
}

static void forget_headers(struct http_response *r)
{
    free(r->content_type);
    free(r->docker_digest);
    free(r->location);
    free(r->content_range);
    r->content_type = r->docker_digest = r->location = r->content_range = NULL;
    strv_clear(&r->challenges);
    r->content_length = r->retry_after = -1;
}

void http_response_clear(struct http_response *r)
{
    forget_headers(r);
    buf_clear(&r->body);
    *r = (struct http_response){0};
}

char *http_shown_url(const char *url)
{
    CURLU *u = curl_url();
    char *scheme = NULL, *host = NULL, *port = NULL, *path = NULL, *out = NULL;

    if (u != NULL && curl_url_set(u, CURLUPART_URL, url, 0) == CURLUE_OK &&
        curl_url_get(u, CURLUPART_SCHEME, &scheme, 0) == CURLUE_OK &&
        curl_url_get(u, CURLUPART_HOST, &host, 0) == CURLUE_OK &&
        curl_url_get(u, CURLUPART_PATH, &path, 0) == CURLUE_OK) {
        (void)curl_url_get(u, CURLUPART_PORT, &port, 0);
        out = fs_format("%s://%s%s%s%.256s", scheme, host, port != NULL ? ":" : "",
                        port != NULL ? port : "", path);
    }
    curl_free(scheme);
    curl_free(host);
    curl_free(port);
    curl_free(path);
    curl_url_cleanup(u);
    return out != NULL ? out : xstrdup("(unusable URL)");
}

static char *url_part(const char *url, CURLUPart part)
{
    CURLU *u = curl_url();
    char *value = NULL, *out = NULL;

    if (u != NULL && curl_url_set(u, CURLUPART_URL, url, 0) == CURLUE_OK &&
        curl_url_get(u, part, &value, CURLU_DEFAULT_PORT) == CURLUE_OK)
        out = xstrdup(value);
    curl_free(value);
    curl_url_cleanup(u);
    return out;
}

bool http_same_origin(const char *a, const char *b)
{
    static const CURLUPart parts[] = {CURLUPART_SCHEME, CURLUPART_HOST, CURLUPART_PORT};

    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        auto_free char *x = url_part(a, parts[i]);
        auto_free char *y = url_part(b, parts[i]);

        if (x == NULL || y == NULL || strcasecmp(x, y) != 0)
            return false;
    }
    return true;
}

bool http_url_usable(const char *url)
{
    auto_free char *scheme = url_part(url, CURLUPART_SCHEME);
    auto_free char *host = url_part(url, CURLUPART_HOST);
    auto_free char *user = url_part(url, CURLUPART_USER);
    auto_free char *password = url_part(url, CURLUPART_PASSWORD);

    return scheme != NULL && (strcmp(scheme, "http") == 0 || strcmp(scheme, "https") == 0) &&
           !str_empty(host) && user == NULL && password == NULL;
}

/* "Name: value\r\n" against one name; the value without blanks around it, or NULL. */
static char *header_value(const char *line, size_t len, const char *name)
{
    size_t n = strlen(name);

    if (len <= n || strncasecmp(line, name, n) != 0 || line[n] != ':')
        return NULL;
    line += n + 1;
    len -= n + 1;
    while (len > 0 && (*line == ' ' || *line == '\t')) {
        line++;
        len--;
    }
    while (len > 0 && strchr(" \t\r\n", line[len - 1]) != NULL)
        len--;
    return memchr(line, '\0', len) == NULL ? xstrndup(line, len) : NULL;
}

static void take_header(char **field, const char *line, size_t len, const char *name)
{
    char *v = header_value(line, len, name);

    if (v == NULL)
        return;
    free(*field);
    *field = v;
}

static void take_number(int64_t *field, const char *line, size_t len, const char *name)
{
    auto_free char *v = header_value(line, len, name);
    uint64_t n;

    if (v != NULL && str_to_u64(v, &n) == 0 && n <= INT64_MAX)
        *field = (int64_t)n;
}

/* A registry that sends a byte now and then is as silent as one that sends none. */
static void came(struct transfer *t, size_t len)
{
    t->since += len;
    if (t->since < LIMIT_HTTP_PROGRESS)
        return;
    t->since = 0;
    t->last_byte_ns = mono_ns();
}

static size_t on_header(char *data, size_t size, size_t count, void *arg)
{
    struct transfer *t = arg;
    struct http_response *r = t->resp;
    size_t len = size * count;
    char *challenge;

    came(t, len);
    r->header_bytes += len;
    if (r->header_bytes > LIMIT_HTTP_HEADER) {
        (void)err_set(&t->failed, ERR_EXHAUSTED, "the answer's headers are longer than %zu bytes",
                      LIMIT_HTTP_HEADER);
        return 0;
    }
    if (len >= 5 && memcmp(data, "HTTP/", 5) == 0) {
        forget_headers(r); /* an interim answer came before */
        return len;
    }
    take_header(&r->content_type, data, len, "content-type");
    take_header(&r->docker_digest, data, len, "docker-content-digest");
    take_header(&r->location, data, len, "location");
    take_header(&r->content_range, data, len, "content-range");
    take_number(&r->content_length, data, len, "content-length");
    take_number(&r->retry_after, data, len, "retry-after");
    challenge = header_value(data, len, "www-authenticate");
    if (challenge != NULL) {
        strv_add(&r->challenges, challenge);
        free(challenge);
    }
    return len;
}

static int take_body(struct transfer *t, CURL *easy, const char *data, size_t len)
{
    const struct http_request *q = t->req;
    struct http_response *r = t->resp;

    if (!t->started) {
        (void)curl_easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &r->status);
        t->started = true;
        r->body.max = r->status / 100 == 2 ? q->max_body : LIMIT_HTTP_ERROR_BODY;
        if (r->status / 100 == 2 && q->on_start != NULL && q->on_start(q->sink_arg, &t->failed) < 0)
            return -1;
    }
    if (r->status / 100 == 2 && q->sink != NULL)
        return q->sink(q->sink_arg, data, len, &t->failed);
    if (buf_append(&r->body, data, len) == 0)
        return 0;
    if (r->status / 100 != 2)
        t->enough = true;
    else
        (void)err_set(&t->failed, ERR_EXHAUSTED, "the answer is longer than %zu bytes",
                      q->max_body);
    return -1;
}

struct body_arg {
    struct transfer *t;
    CURL *easy;
};

static size_t on_body(char *data, size_t size, size_t count, void *arg)
{
    struct body_arg *b = arg;

    int64_t from = mono_ns();

    if (take_body(b->t, b->easy, data, size * count) < 0)
        return 0;
    b->t->last_byte_ns += mono_ns() - from; /* the sink's waiting is not the registry's */
    came(b->t, size * count);
    return size * count;
}

static struct curl_slist *make_headers(const struct http_request *q)
{
    struct curl_slist *list = NULL;

    for (size_t i = 0; q->headers != NULL && i < q->headers->n; i++)
        list = curl_slist_append(list, q->headers->v[i]);
    if (q->secret_header != NULL)
        list = curl_slist_append(list, q->secret_header);
    if (q->body != NULL)
        list = curl_slist_append(list, "Expect:");
    return list;
}

/* libcurl reads the lower-case proxy variables only, for http; Go programs, which users are used
 * to, read both, and never send loopback traffic to a proxy. */
static void set_proxy(CURL *e, const char *url)
{
    auto_free char *host = url_part(url, CURLUPART_HOST);

    if (host != NULL && reference_registry_is_loopback(host)) {
        (void)curl_easy_setopt(e, CURLOPT_PROXY, "");
        return;
    }
    if (str_starts(url, "http://") && getenv("http_proxy") == NULL && getenv("HTTP_PROXY") != NULL)
        (void)curl_easy_setopt(e, CURLOPT_PROXY, getenv("HTTP_PROXY"));
}

static CURLcode on_ssl_ctx(CURL *e, void *ssl_ctx, void *arg)
{
    struct transfer *t = arg;

    (void)e;
    return client_certs_use(ssl_ctx, t->req->client, &t->failed) < 0 ? CURLE_SSL_CERTPROBLEM
                                                                     : CURLE_OK;
}

static void set_tls(CURL *e, const struct http_request *q, struct transfer *t)
{
    (void)curl_easy_setopt(e, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    if (q->ca != NULL) {
        struct curl_blob blob = {
            .data = (void *)(uintptr_t)q->ca, .len = strlen(q->ca), .flags = CURL_BLOB_COPY};

        /* The system's CAs stay trusted by their hashed directory. */
        (void)curl_easy_setopt(e, CURLOPT_CAINFO_BLOB, &blob);
        (void)curl_easy_setopt(e, CURLOPT_CAPATH, "/etc/ssl/certs");
    }
    if (q->client != NULL && q->client->n > 0) {
        (void)curl_easy_setopt(e, CURLOPT_SSL_CTX_FUNCTION, on_ssl_ctx);
        (void)curl_easy_setopt(e, CURLOPT_SSL_CTX_DATA, t);
    }
    if (q->skip_verify) {
        (void)curl_easy_setopt(e, CURLOPT_SSL_VERIFYPEER, 0L);
        (void)curl_easy_setopt(e, CURLOPT_SSL_VERIFYHOST, 0L);
    }
}

static void set_options(CURL *e, const struct http_request *q, struct curl_slist *headers,
                        struct body_arg *body)
{
    curl_easy_reset(e);
    (void)curl_easy_setopt(e, CURLOPT_URL, q->url);
    (void)curl_easy_setopt(e, CURLOPT_PROTOCOLS_STR, "http,https");
    (void)curl_easy_setopt(e, CURLOPT_NOSIGNAL, 1L);
    (void)curl_easy_setopt(e, CURLOPT_QUICK_EXIT, 1L); /* a cancelled look-up is not waited for */
    (void)curl_easy_setopt(e, CURLOPT_FOLLOWLOCATION, 0L);
    (void)curl_easy_setopt(e, CURLOPT_NETRC, (long)CURL_NETRC_IGNORED);
    (void)curl_easy_setopt(e, CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
    (void)curl_easy_setopt(e, CURLOPT_USERAGENT, "aspis/" ASPIS_VERSION);
    (void)curl_easy_setopt(e, CURLOPT_CONNECTTIMEOUT_MS, (long)q->dial_timeout_ms);
    (void)curl_easy_setopt(e, CURLOPT_TCP_KEEPALIVE, 1L);
    (void)curl_easy_setopt(e, CURLOPT_BUFFERSIZE, 128L * 1024);
    (void)curl_easy_setopt(e, CURLOPT_HTTPHEADER, headers);
    (void)curl_easy_setopt(e, CURLOPT_HEADERFUNCTION, on_header);
    (void)curl_easy_setopt(e, CURLOPT_HEADERDATA, body->t);
    (void)curl_easy_setopt(e, CURLOPT_WRITEFUNCTION, on_body);
    (void)curl_easy_setopt(e, CURLOPT_WRITEDATA, body);
    if (strcmp(q->method, "HEAD") == 0)
        (void)curl_easy_setopt(e, CURLOPT_NOBODY, 1L);
    if (q->body != NULL)
        (void)curl_easy_setopt(e, CURLOPT_POSTFIELDS, q->body);
    set_proxy(e, q->url);
    set_tls(e, q, body->t);
}

/* Drives the transfer to its end. 0: *result is libcurl's verdict; -1: given up, with *err. */
static int drive(struct http_client *c, struct transfer *t, struct cancel *cancel, CURLcode *result,
                 struct err *err)
{
    struct curl_waitfd extra = {.fd = cancel_fd(cancel), .events = CURL_WAIT_POLLIN};
    unsigned n_extra = extra.fd >= 0 ? 1 : 0;

    for (;;) {
        int running = 0, queued = 0;
        const CURLMsg *m;
        CURLMcode mc = curl_multi_perform(c->multi, &running);
        int64_t left_ms;

        while ((m = curl_multi_info_read(c->multi, &queued)) != NULL)
            if (m->msg == CURLMSG_DONE) {
                *result = m->data.result;
                return 0;
            }
        if (cancel_check(cancel, err) < 0)
            return -1;
        left_ms = (t->req->stall_ns - (mono_ns() - t->last_byte_ns)) / 1000000;
        if (left_ms <= 0) {
            t->resp->broken = true;
            return err_set(err, ERR_UNAVAILABLE, "%s came for %lld seconds",
                           t->since == 0 ? "nothing" : "next to nothing",
                           (long long)(t->req->stall_ns / 1000000000));
        }
        if (mc == CURLM_OK)
            mc = curl_multi_poll(c->multi, &extra, n_extra,
                                 (int)(left_ms < 60000 ? left_ms + 1 : 60000), NULL);
        if (mc != CURLM_OK)
            return err_set(err, ERR_INTERNAL, "libcurl: %s", curl_multi_strerror(mc));
    }
}

static int verdict(struct transfer *t, CURLcode rc, const char *detail, struct cancel *cancel,
                   struct err *err)
{
    const char *text = *detail != '\0' ? detail : curl_easy_strerror(rc);

    if (rc == CURLE_OK || t->enough)
        return 0;
    if (cancel_check(cancel, err) < 0)
        return -1;
    if (t->failed.code != ERR_OK)
        return err_move(err, &t->failed);
    switch ((int)rc) {
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
    case CURLE_COULDNT_CONNECT:
    case CURLE_PROXY:
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_ISSUER_ERROR:
        t->resp->unreachable = true;
        break;
    case CURLE_OPERATION_TIMEDOUT: /* the only timeout that we set is the dial's */
        t->resp->unreachable = true;
        text = "no connection in time";
        break;
    case CURLE_OUT_OF_MEMORY:
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    default:
        t->resp->broken = true;
        break;
    }
    return err_set(err, ERR_UNAVAILABLE, "%s", text);
}

/* libcurl copies what it is given; these are the copies that we can reach. */
static void free_headers(struct curl_slist *list)
{
    for (struct curl_slist *l = list; l != NULL; l = l->next)
        explicit_bzero(l->data, strlen(l->data));
    curl_slist_free_all(list);
}

int http_perform(struct http_client *c, const struct http_request *req, struct cancel *cancel,
                 struct http_response *resp, struct err *err)
{
    struct transfer t = {.req = req, .resp = resp, .last_byte_ns = mono_ns()};
    struct body_arg body = {.t = &t, .easy = c->easy};
    struct curl_slist *headers = make_headers(req);
    char detail[CURL_ERROR_SIZE] = "";
    CURLcode rc = CURLE_OK;
    int ret;

    resp->content_length = resp->retry_after = -1;
    set_options(c->easy, req, headers, &body);
    (void)curl_easy_setopt(c->easy, CURLOPT_ERRORBUFFER, detail);
    if (curl_multi_add_handle(c->multi, c->easy) != CURLM_OK) {
        free_headers(headers);
        return err_set(err, ERR_INTERNAL, "libcurl takes no request");
    }
    ret = drive(c, &t, cancel, &rc, err);
    if (ret == 0)
        ret = verdict(&t, rc, detail, cancel, err);
    (void)curl_easy_getinfo(c->easy, CURLINFO_RESPONSE_CODE, &resp->status);
    if (ret == 0 && resp->status >= 300 && resp->status < 400) {
        char *absolute = NULL;

        /* Location may be relative; libcurl has made it whole. */
        (void)curl_easy_getinfo(c->easy, CURLINFO_REDIRECT_URL, &absolute);
        free(resp->location);
        resp->location = xstrdup(absolute);
    }
    if (ret == 0 && !t.started && resp->status / 100 == 2 && req->on_start != NULL)
        ret = req->on_start(req->sink_arg, err);
    (void)curl_multi_remove_handle(c->multi, c->easy);
    (void)curl_easy_setopt(c->easy, CURLOPT_ERRORBUFFER, NULL);
    (void)curl_easy_setopt(c->easy, CURLOPT_HTTPHEADER, NULL);
    free_headers(headers);
    err_clear(&t.failed);
    return ret;
}
