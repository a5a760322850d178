#include "cri/ctl/upgrade.h"

#include <curl/curl.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>

#include "base/buf.h"
#include "base/cancel.h"
#include "base/limits.h"
#include "base/str.h"

#define DIAL_SECONDS 10L
#define ANSWER_NS (30LL * 1000000000)
#define HEAD_MAX KiB(16)

struct upgrade {
    CURL *curl;
    int fd;
    struct buf extra; /* came with the answer's head */
};

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;

static void start_curl(void)
{
    (void)curl_global_init(CURL_GLOBAL_DEFAULT);
}

int upgrade_fd(const struct upgrade *u)
{
    return u->fd;
}

void upgrade_close(struct upgrade *u)
{
    if (u == NULL)
        return;
    curl_easy_cleanup(u->curl);
    buf_clear(&u->extra);
    free(u);
}

ssize_t upgrade_read(struct upgrade *u, void *data, size_t len, struct err *err)
{
    if (u->extra.len > 0) {
        size_t n = u->extra.len < len ? u->extra.len : len;
        memcpy(data, u->extra.data, n);
        buf_consume(&u->extra, n);
        return (ssize_t)n;
    }
    size_t n = 0;
    CURLcode rc = curl_easy_recv(u->curl, data, len, &n);
    if (rc == CURLE_AGAIN)
        return 0;
    if (rc != CURLE_OK)
        return err_set(err, ERR_UNAVAILABLE, "the daemon's streaming connection broke: %s",
                       curl_easy_strerror(rc));
    if (n == 0)
        return err_set(err, ERR_UNAVAILABLE, "the daemon closed the streaming connection");
    return (ssize_t)n;
}

ssize_t upgrade_write(struct upgrade *u, const void *data, size_t len, struct err *err)
{
    size_t n = 0;
    CURLcode rc = curl_easy_send(u->curl, data, len, &n);
    if (rc != CURLE_OK && rc != CURLE_AGAIN)
        return err_set(err, ERR_UNAVAILABLE, "the daemon's streaming connection broke: %s",
                       curl_easy_strerror(rc));
    return (ssize_t)n;
}

static int connect_to(struct upgrade *u, const char *url, struct err *err)
{
    const char *trusted = getenv("SSL_CERT_FILE");
    char why[CURL_ERROR_SIZE] = "";
    CURL *c = u->curl;
    (void)curl_easy_setopt(c, CURLOPT_ERRORBUFFER, why);
    (void)curl_easy_setopt(c, CURLOPT_URL, url);
    (void)curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    (void)curl_easy_setopt(c, CURLOPT_CONNECT_ONLY, 1L);
    (void)curl_easy_setopt(c, CURLOPT_SSL_ENABLE_ALPN, 0L);
    (void)curl_easy_setopt(c, CURLOPT_NOPROXY, "*");
    (void)curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    (void)curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT, DIAL_SECONDS);
    if (trusted != NULL && trusted[0] != '\0')
        (void)curl_easy_setopt(c, CURLOPT_CAINFO, trusted);
    CURLcode rc = curl_easy_perform(c);
    curl_socket_t fd = CURL_SOCKET_BAD;
    if (rc == CURLE_OK)
        rc = curl_easy_getinfo(c, CURLINFO_ACTIVESOCKET, &fd);
    (void)curl_easy_setopt(c, CURLOPT_ERRORBUFFER, NULL);
    if (rc != CURLE_OK || fd == CURL_SOCKET_BAD)
        return err_set(err, ERR_UNAVAILABLE, "connect to the daemon's streaming server: %s",
                       why[0] != '\0' ? why : curl_easy_strerror(rc));
    u->fd = fd;
    return 0;
}

static int put_request(struct buf *out, const char *url, const char *protocol, struct err *err)
{
    CURLU *parts = curl_url();
    char *host = NULL;
    char *port = NULL;
    char *path = NULL;
    bool good = parts != NULL && curl_url_set(parts, CURLUPART_URL, url, 0) == CURLUE_OK &&
                curl_url_get(parts, CURLUPART_HOST, &host, 0) == CURLUE_OK &&
                curl_url_get(parts, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT) == CURLUE_OK &&
                curl_url_get(parts, CURLUPART_PATH, &path, 0) == CURLUE_OK;
    if (good)
        (void)buf_printf(out,
                         "POST %s HTTP/1.1\r\nHost: %s:%s\r\nConnection: Upgrade\r\n"
                         "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: %s\r\n"
                         "Content-Length: 0\r\n\r\n",
                         path, host, port, protocol);
    curl_free(host);
    curl_free(port);
    curl_free(path);
    curl_url_cleanup(parts);
    return good && buf_ok(out)
               ? 0
               : err_set(err, ERR_INTERNAL, "the daemon sent a URL that is none: %.200s", url);
}

static int send_all(struct upgrade *u, const struct buf *b, struct cancel *limit, struct err *err)
{
    for (size_t at = 0; at < b->len;) {
        ssize_t n = upgrade_write(u, b->data + at, b->len - at, err);
        if (n < 0 || (n == 0 && cancel_poll(limit, u->fd, POLLOUT, -1, err) < 0))
            return -1;
        at += (size_t)n;
    }
    return 0;
}

/* Until the head is there; what came behind it is kept. Returns the status. */
static int read_answer(struct upgrade *u, struct buf *head, struct cancel *limit, struct err *err)
{
    const char *end;
    unsigned status = 0;
    while ((end = strstr(buf_str(head), "\r\n\r\n")) == NULL) {
        char piece[1024];
        ssize_t n = upgrade_read(u, piece, sizeof(piece), err);
        if (n < 0 || (n == 0 && cancel_poll(limit, u->fd, POLLIN, -1, err) < 0))
            return -1;
        if (n > 0 && buf_append(head, piece, (size_t)n) < 0)
            return err_set(err, ERR_DATA_LOSS, "the streaming server's answer has no end");
    }
    size_t n_head = (size_t)(end - buf_str(head)) + 4;
    (void)buf_append(&u->extra, head->data + n_head, head->len - n_head);
    if (sscanf(head->data, "HTTP/1.%*1[01] %3u", &status) != 1)
        return err_set(err, ERR_DATA_LOSS, "the streaming server does not speak HTTP");
    return (int)status;
}

static int ask(struct upgrade *u, const char *url, const char *protocol, struct err *err)
{
    auto_cancel struct cancel *limit = cancel_new(mono_ns() + ANSWER_NS, err);
    auto_buf struct buf request = BUF_INIT(HEAD_MAX);
    auto_buf struct buf head = BUF_INIT(HEAD_MAX);
    if (limit == NULL || put_request(&request, url, protocol, err) < 0 ||
        send_all(u, &request, limit, err) < 0)
        return -1;
    int status = read_answer(u, &head, limit, err);
    if (status < 0 || status == 101)
        return status < 0 ? -1 : 0;
    return err_set(err, ERR_UNAVAILABLE, "the streaming server answered %d: %.*s", status,
                   (int)strcspn(buf_str(&u->extra), "\r\n"), buf_str(&u->extra));
}

struct upgrade *upgrade_open(const char *url, const char *protocol, struct err *err)
{
    auto_upgrade struct upgrade *u = xcalloc(1, sizeof(*u));
    u->fd = -1;
    u->extra = (struct buf)BUF_INIT(HEAD_MAX);
    (void)pthread_once(&curl_once, start_curl);
    u->curl = curl_easy_init();
    if (u->curl == NULL) {
        (void)err_set(err, ERR_EXHAUSTED, "libcurl: no memory");
        return NULL;
    }
    if (connect_to(u, url, err) < 0 || ask(u, url, protocol, err) < 0)
        return NULL;
    return take(u);
}
