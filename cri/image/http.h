/*
 * http - one HTTP request at a time over libcurl, cancellable at any byte.
 *
 * No redirect is followed here, no credential is kept, nothing of a URL's query is put into an
 * error. A request ends with -1 when there was no whole answer (network, stall, cancelled, a
 * bound), else with 0 and a status.
 *
 * Threads: a client belongs to one thread at a time; it keeps its connections for the next request.
 */
#ifndef ASPIS_CRI_IMAGE_HTTP_H
#define ASPIS_CRI_IMAGE_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"

struct http_client;

struct http_client *http_new(struct err *err);
void http_free(struct http_client *c);
DEFINE_AUTO(struct http_client *, http_free);
#define auto_http __attribute__((cleanup(http_freep)))

struct http_request {
    const char *method; /* "GET", "HEAD", "POST" */
    const char *url;
    const struct strv *headers; /* "Name: value" */
    const char *secret_header;  /* one more, wiped afterwards; may be NULL */
    const char *body;           /* POST form, or NULL */
    /* TLS. */
    const char *ca;            /* PEM text beside the system's CAs, or NULL */
    const struct strv *client; /* client_cert.h; NULL or empty: none */
    bool skip_verify;
    int64_t dial_timeout_ms;
    int64_t stall_ns; /* no byte for so long: give up */
    /* Gets the body of a 2xx answer piece by piece; may block (cancellably). NULL: into
     * response.body. */
    int (*sink)(void *arg, const void *data, size_t len, struct err *err);
    void *sink_arg;
    /* Called once before the first byte of a 2xx body; -1 ends the request. NULL is fine. */
    int (*on_start)(void *arg, struct err *err);
    size_t max_body; /* of response.body */
};

struct http_response {
    long status;
    char *content_type, *docker_digest, *location, *content_range;
    struct strv challenges; /* WWW-Authenticate */
    int64_t content_length; /* -1: unknown */
    int64_t retry_after;    /* seconds, -1: none */
    struct buf body;        /* without sink, or of an error answer (its beginning) */
    bool unreachable;       /* -1 was returned because no connection came about */
    bool broken;            /* -1 was returned because the connection ended early */
    /* inside */
    size_t header_bytes;
};
void http_response_clear(struct http_response *r);
#define auto_response __attribute__((cleanup(http_response_clear)))

/* *resp must be {0}. Errors: UNAVAILABLE (network), CANCELLED, DEADLINE, EXHAUSTED (a bound), or
 * the sink's own. */
int http_perform(struct http_client *c, const struct http_request *req, struct cancel *cancel,
                 struct http_response *resp, struct err *err);

/* scheme://host/path of a URL: without user, query and fragment. Never NULL. */
char *http_shown_url(const char *url);
/* Same scheme, host and port. False when either cannot be parsed. */
bool http_same_origin(const char *a, const char *b);
/* http or https, a host, no user name or password. */
bool http_url_usable(const char *url);

#endif
