#include "cri/image/registry.h"

#include <jansson.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/fs.h"
#include "base/limits.h"
#include "cri/image/auth.h"
#include "cri/image/hosts.h"

#define ATTEMPTS 4           /* of one request at one host */
#define STILL_STANDING 3     /* attempts at a blob in a row that brought no byte */
#define BACKOFF_MS 300       /* doubles */
#define TOKEN_SPARE_S 10     /* a token is not used in its last seconds */
#define RETRY_AFTER_MAX_S 60 /* a registry that wants us to wait longer is unavailable */

#define ACCEPT                                                                                     \
    "Accept: application/vnd.oci.image.index.v1+json, "                                            \
    "application/vnd.oci.image.manifest.v1+json, "                                                 \
    "application/vnd.docker.distribution.manifest.list.v2+json, "                                  \
    "application/vnd.docker.distribution.manifest.v2+json, */*"

/* What a host told us to say about ourselves; shared by the threads of a pull. */
struct host_auth {
    char *authorization;  /* "Authorization: ...", or NULL */
    unsigned generation;  /* counts its changes */
    char key[DIGEST_MAX]; /* in tokens */
};

struct registry {
    char *repository, *registry;
    struct auth_credentials creds;
    struct registry_hosts hosts;
    struct login_tokens *tokens;
    struct host_auth *auth; /* one per host */
    pthread_mutex_t
        lock; /* guards auth; also held while a token is fetched, so that one thread does it */
    int64_t stall_ns;
};

/* Mirrors get no credentials. */
static const struct auth_credentials *creds_for(const struct registry *r, size_t host)
{
    static const struct auth_credentials nobody = {0};

    return r->hosts.v[host].upstream ? &r->creds : &nobody;
}

static int take_tokens(struct registry *r, struct err *err)
{
    r->auth = xcalloc(r->hosts.n, sizeof(*r->auth));
    for (size_t i = 0; i < r->hosts.n; i++) {
        if (login_tokens_key(r->hosts.v[i].url, r->repository, creds_for(r, i), r->auth[i].key,
                             err) < 0)
            return -1;
        r->auth[i].authorization = login_tokens_get(r->tokens, r->auth[i].key, mono_ns());
    }
    return 0;
}

struct registry *registry_new(const struct image_options *opts, struct login_tokens *tokens,
                              const struct reference *ref, const struct image_auth *auth,
                              struct err *err)
{
    struct registry *r = xcalloc(1, sizeof(*r));

    (void)pthread_mutex_init(&r->lock, NULL);
    r->repository = xstrdup(ref->repository);
    r->registry = xstrdup(ref->registry);
    r->stall_ns = opts->stall_timeout_ns;
    r->tokens = tokens;
    if (auth_credentials_set(&r->creds, auth, ref->registry, err) < 0 ||
        hosts_load(opts->hosts_dir, ref->registry, &r->hosts, err) < 0 || take_tokens(r, err) < 0) {
        registry_free(r);
        return NULL;
    }
    return r;
}

void registry_free(struct registry *r)
{
    if (r == NULL)
        return;
    for (size_t i = 0; r->auth != NULL && i < r->hosts.n; i++)
        auth_wipe(r->auth[i].authorization);
    free(r->auth);
    hosts_clear(&r->hosts);
    auth_credentials_clear(&r->creds);
    free(r->repository);
    free(r->registry);
    (void)pthread_mutex_destroy(&r->lock);
    free(r);
}

void registry_document_clear(struct registry_document *d)
{
    buf_clear(&d->body);
    free(d->content_type);
    *d = (struct registry_document){0};
}

/* Errors. */

/* A registry's own words: printable and short. */
static void put_text(struct buf *b, const char *s)
{
    for (size_t n = 0; s != NULL && *s != '\0' && n < LIMIT_REGISTRY_TEXT / 2; s++, n++)
        (void)buf_putc(b, (unsigned char)*s >= 0x20 && *s != 0x7f ? *s : ' ');
}

/* {"errors":[{"code","message"}]} as "CODE: message". */
static void error_text(const struct http_response *resp, struct buf *out)
{
    json_t *root = json_loadb(buf_str(&resp->body), resp->body.len, 0, NULL);
    const json_t *first = json_array_get(json_object_get(root, "errors"), 0);

    put_text(out, json_string_value(json_object_get(first, "code")));
    if (out->len > 0)
        (void)buf_puts(out, ": ");
    put_text(out, json_string_value(json_object_get(first, "message")));
    json_decref(root);
}

static int status_error(const struct http_response *resp, struct err *err)
{
    auto_buf struct buf text = BUF_INIT(LIMIT_REGISTRY_TEXT * 2);
    enum err_code code = ERR_UNAVAILABLE;

    if (resp->status == 404)
        code = ERR_NOT_FOUND;
    else if (resp->status == 401)
        code = ERR_UNAUTHENTICATED;
    else if (resp->status == 403)
        code = ERR_DENIED;
    error_text(resp, &text);
    if (text.len == 0 && resp->status == 404)
        (void)buf_puts(&text, "not found");
    return err_set(err, code, "status %ld%s%s", resp->status, text.len > 0 ? ": " : "",
                   buf_str(&text));
}

static bool worth_a_retry(const struct http_response *resp)
{
    return resp->status == 408 || resp->status == 429 || resp->status == 500 ||
           resp->status == 502 || resp->status == 503 || resp->status == 504;
}

/* The pause before the next attempt; -1 when the token fires or the registry wants too long a one.
 */
static int pause_before(unsigned attempt, const struct http_response *resp, struct cancel *cancel,
                        struct err *err)
{
    int ms = BACKOFF_MS << (attempt < 4 ? attempt : 4);

    if (resp->retry_after > RETRY_AFTER_MAX_S)
        return err_set(err, ERR_UNAVAILABLE, "status %ld: asked to come back in %lld seconds",
                       resp->status, (long long)resp->retry_after);
    if (resp->retry_after >= 0)
        ms = (int)resp->retry_after * 1000;
    return cancel_poll(cancel, -1, 0, ms, err) < 0 ? -1 : 0;
}

/* One request. */

struct want {
    const char *method;
    char *path; /* below the repository: "manifests/latest" */
    bool accept_manifests;
    uint64_t offset; /* Range, when not 0 */
    int (*sink)(void *arg, const void *data, size_t len, struct err *err);
    int (*on_start)(void *arg, struct err *err);
    void *arg;
    size_t max_body;
};

static char *current_authorization(struct registry *r, size_t host, unsigned *generation)
{
    char *copy;

    pthread_mutex_lock(&r->lock);
    copy = xstrdup(r->auth[host].authorization);
    *generation = r->auth[host].generation;
    pthread_mutex_unlock(&r->lock);
    return copy;
}

/* Fetches a new answer to the challenge, unless another thread has done so since `generation`. */
static int renew_authorization(struct registry *r, struct http_client *http, size_t host,
                               unsigned generation, const struct http_request *like,
                               const struct http_response *resp, struct cancel *cancel,
                               struct err *err)
{
    struct auth_challenge challenge;
    char *fresh = NULL;
    int64_t life_s = 0, asked = mono_ns();
    int ret = 0;

    auth_parse_challenges(&resp->challenges, &challenge);
    pthread_mutex_lock(&r->lock);
    if (r->auth[host].generation == generation) {
        login_tokens_drop(r->tokens, r->auth[host].key);
        ret = auth_answer(http, like, creds_for(r, host), &challenge, r->repository, cancel, &fresh,
                          &life_s, err);
        if (ret == 0) {
            /* Not to its last moment: clocks differ and requests take time. */
            if (life_s > TOKEN_SPARE_S)
                login_tokens_put(r->tokens, r->auth[host].key, fresh,
                                 asked + (life_s - TOKEN_SPARE_S) * INT64_C(1000000000));
            auth_wipe(r->auth[host].authorization);
            r->auth[host].authorization = fresh;
            r->auth[host].generation++;
        }
    }
    pthread_mutex_unlock(&r->lock);
    auth_challenge_clear(&challenge);
    return ret;
}

static char *escape_query(const char *s)
{
    auto_buf struct buf b = BUF_INIT(KiB(4));

    for (; *s != '\0'; s++) {
        bool plain = strchr("-._~0123456789abcdefghijklmnopqrstuvwxyz"
                            "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
                            *s) != NULL;

        (void)(plain ? buf_putc(&b, *s) : buf_printf(&b, "%%%02X", (unsigned char)*s));
    }
    return xstrdup(buf_str(&b));
}

static char *first_url(const struct registry *r, size_t host, const struct want *w)
{
    const struct registry_host *h = &r->hosts.v[host];
    auto_free char *ns = h->add_ns ? escape_query(r->registry) : NULL;

    return fs_format("%s/%s/%s%s%s", h->url, r->repository, w->path, ns != NULL ? "?ns=" : "",
                     ns != NULL ? ns : "");
}

static void fill_request(const struct registry *r, size_t host, const struct want *w,
                         const char *url, bool at_home, const struct strv *headers,
                         struct http_request *req)
{
    const struct registry_host *h = &r->hosts.v[host];

    *req = (struct http_request){
        .method = w->method,
        .url = url,
        .headers = headers,
        .ca = h->ca,
        .client = at_home ? &h->client : NULL,
        .skip_verify = at_home && h->skip_verify,
        .dial_timeout_ms = h->dial_timeout_ms,
        .stall_ns = r->stall_ns,
        .sink = w->sink,
        .sink_arg = w->arg,
        .on_start = w->on_start,
        .max_body = w->max_body,
    };
}

static void make_headers(const struct registry *r, size_t host, const struct want *w, bool at_home,
                         struct strv *headers)
{
    if (w->accept_manifests)
        strv_add(headers, ACCEPT);
    if (w->offset > 0)
        strv_addf(headers, "Range: bytes=%llu-", (unsigned long long)w->offset);
    for (size_t i = 0; at_home && i < r->hosts.v[host].headers.n; i++)
        strv_add(headers, r->hosts.v[host].headers.v[i]);
}

/* Checks where a redirect leads and makes it *url. */
static int follow(char **url, const struct http_response *resp, struct err *err)
{
    if (str_empty(resp->location) || !http_url_usable(resp->location))
        return err_set(err, ERR_UNAVAILABLE, "redirected to an unusable place");
    if (str_starts(*url, "https://") && !str_starts(resp->location, "https://"))
        return err_set(err, ERR_UNAVAILABLE, "redirected away from TLS; refused");
    free(*url);
    *url = xstrdup(resp->location);
    return 0;
}

/* Through all redirects. *resp is the last answer, *home says that it came from the host itself. */
static int perform(struct registry *r, struct http_client *http, size_t host, const struct want *w,
                   const char *authorization, struct cancel *cancel, struct http_response *resp,
                   bool *home, struct err *err)
{
    auto_free char *origin = first_url(r, host, w);
    auto_free char *url = xstrdup(origin);

    for (int hops = 0;; hops++) {
        auto_strv struct strv headers = {0};
        struct http_request req;

        *home = http_same_origin(origin, url);
        make_headers(r, host, w, *home, &headers);
        fill_request(r, host, w, url, *home, &headers, &req);
        req.secret_header = *home ? authorization : NULL;
        http_response_clear(resp);
        if (http_perform(http, &req, cancel, resp, err) < 0) {
            auto_free char *shown = http_shown_url(url);

            return err_wrap(err, "%s %s", w->method, shown);
        }
        if (resp->status != 301 && resp->status != 302 && resp->status != 303 &&
            resp->status != 307 && resp->status != 308)
            return 0;
        if (hops >= LIMIT_REDIRECTS)
            return err_set(err, ERR_UNAVAILABLE, "%s: more than %d redirects", origin,
                           LIMIT_REDIRECTS);
        if (follow(&url, resp, err) < 0)
            return err_wrap(err, "%s %s", w->method, origin);
    }
}

/* With logging in when the host asks for it, once per kind of token it had before. */
static int request(struct registry *r, struct http_client *http, size_t host, const struct want *w,
                   struct cancel *cancel, struct http_response *resp, struct err *err)
{
    for (int round = 0;; round++) {
        unsigned generation = 0;
        char *authorization = current_authorization(r, host, &generation);
        bool home = false;
        int ret = perform(r, http, host, w, authorization, cancel, resp, &home, err);
        auto_free char *url = NULL;
        struct http_request like;

        auth_wipe(authorization);
        if (ret < 0)
            return -1;
        if (resp->status != 401 || !home || round >= 2)
            return 0;
        url = first_url(r, host, w);
        fill_request(r, host, w, url, true, NULL, &like);
        if (renew_authorization(r, http, host, generation, &like, resp, cancel, err) < 0)
            return err_wrap(err, "%s", r->hosts.v[host].host);
    }
}

static bool gave_up(const struct err *e)
{
    return e->code == ERR_CANCELLED || e->code == ERR_DEADLINE;
}

/* The same with retries; 0 only for a 2xx answer, or for 405 to a HEAD. */
static int request_retrying(struct registry *r, struct http_client *http, size_t host,
                            const struct want *w, struct cancel *cancel, struct http_response *resp,
                            struct err *err)
{
    for (unsigned attempt = 0;; attempt++) {
        int ret = request(r, http, host, w, cancel, resp, err);
        auto_free char *url = NULL;

        if (ret == 0 &&
            (resp->status / 100 == 2 || (resp->status == 405 && strcmp(w->method, "HEAD") == 0)))
            return 0;
        if (ret < 0 && !resp->broken)
            return -1;
        if (attempt + 1 >= ATTEMPTS || (ret == 0 && !worth_a_retry(resp))) {
            if (ret < 0)
                return -1;
            url = first_url(r, host, w);
            (void)status_error(resp, err);
            return err_wrap(err, "%s %s", w->method, url);
        }
        if (pause_before(attempt, resp, cancel, err) < 0)
            return -1;
    }
}

/* Keeps the more telling of two hosts' errors: the upstream's counts, and comes last; but
 * "unreachable" does not hide what another host said. */
static void keep_error(struct err *kept, struct err *fresh)
{
    if (fresh->code == ERR_UNAVAILABLE && kept->code != ERR_OK && kept->code != ERR_UNAVAILABLE &&
        kept->code != ERR_NOT_FOUND) {
        err_clear(fresh);
        return;
    }
    (void)err_move(kept, fresh);
}

static int no_host(struct registry *r, struct err *kept, struct err *err)
{
    if (kept->code == ERR_OK)
        return err_set(err, ERR_UNAVAILABLE, "no host of %s is configured for this", r->registry);
    return err_move(err, kept);
}

/* Manifests. */

static int take_document(struct http_response *resp, const char *expected,
                         struct registry_document *doc, struct err *err)
{
    const char *algorithm = expected != NULL ? expected : "sha256";

    if (digest_of(buf_str(&resp->body), resp->body.len, algorithm, doc->digest, err) < 0)
        return -1;
    if (expected != NULL && strcmp(expected, doc->digest) != 0)
        return err_set(err, ERR_DATA_LOSS, "manifest digest mismatch: expected %s, got %s",
                       expected, doc->digest);
    free(doc->content_type);
    doc->content_type = take(resp->content_type);
    buf_clear(&doc->body);
    doc->body = resp->body;
    resp->body = (struct buf){0};
    return 0;
}

static int get_manifest(struct registry *r, struct http_client *http, size_t host, const char *name,
                        const char *expected, struct cancel *cancel, struct registry_document *doc,
                        struct err *err)
{
    auto_response struct http_response resp = {0};
    auto_free char *path = fs_format("manifests/%s", name);
    struct want w = {
        .method = "GET", .path = path, .accept_manifests = true, .max_body = LIMIT_MANIFEST};

    if (request_retrying(r, http, host, &w, cancel, &resp, err) < 0)
        return -1;
    return take_document(&resp, expected, doc, err);
}

static int resolve_at(struct registry *r, struct http_client *http, size_t host, const char *tag,
                      struct cancel *cancel, struct registry_document *doc, struct err *err)
{
    auto_response struct http_response resp = {0};
    auto_free char *path = fs_format("manifests/%s", tag);
    struct want w = {
        .method = "HEAD", .path = path, .accept_manifests = true, .max_body = LIMIT_MANIFEST};

    if (request_retrying(r, http, host, &w, cancel, &resp, err) < 0)
        return -1;
    if (resp.status / 100 == 2 && resp.docker_digest != NULL && digest_valid(resp.docker_digest)) {
        (void)strcpy(doc->digest, resp.docker_digest);
        return 0;
    }
    return get_manifest(r, http, host, tag, NULL, cancel, doc, err);
}

int registry_resolve(struct registry *r, struct http_client *http, const char *tag,
                     struct cancel *cancel, struct registry_document *doc, struct err *err)
{
    auto_err struct err kept = ERR_INIT;

    for (size_t i = 0; i < r->hosts.n; i++) {
        auto_err struct err e = ERR_INIT;

        if (!r->hosts.v[i].can_resolve)
            continue;
        if (resolve_at(r, http, i, tag, cancel, doc, &e) == 0)
            return 0;
        if (gave_up(&e))
            return err_move(err, &e);
        keep_error(&kept, &e);
    }
    return no_host(r, &kept, err);
}

int registry_manifest(struct registry *r, struct http_client *http, const char *digest,
                      struct cancel *cancel, struct registry_document *doc, struct err *err)
{
    auto_err struct err kept = ERR_INIT;

    for (size_t i = 0; i < r->hosts.n; i++) {
        auto_err struct err e = ERR_INIT;

        if (!r->hosts.v[i].can_pull)
            continue;
        if (get_manifest(r, http, i, digest, digest, cancel, doc, &e) == 0)
            return 0;
        if (gave_up(&e))
            return err_move(err, &e);
        keep_error(&kept, &e);
    }
    return no_host(r, &kept, err);
}

/* Blobs. */

struct blob {
    const char *digest;
    uint64_t size;
    uint64_t offset; /* bytes that the sink has got */
    uint64_t skip;   /* bytes to drop: the registry began anew */
    bool no_range;   /* the registry does not do ranges */
    bool final;      /* an error that no other attempt can mend */
    registry_sink sink;
    void *arg;
    struct digest_ctx hash;
    const struct http_response *resp; /* of the request under way */
};

static int wrong_size(struct blob *b, struct err *err)
{
    b->final = true;
    return err_set(err, ERR_DATA_LOSS,
                   "blob %s does not have the %llu bytes that the manifest says", b->digest,
                   (unsigned long long)b->size);
}

/* The headers are here: where do these bytes belong? */
static int blob_start(void *arg, struct err *err)
{
    struct blob *b = arg;
    const struct http_response *resp = b->resp;
    uint64_t expected = b->size;

    b->skip = 0;
    if (resp->status == 206) {
        auto_free char *want = fs_format("bytes %llu-", (unsigned long long)b->offset);

        if (b->offset == 0 || resp->content_range == NULL ||
            !str_starts(resp->content_range, want)) {
            b->no_range = true;
            return err_set(err, ERR_UNAVAILABLE, "the registry sends a range we did not ask for");
        }
        expected = b->size - b->offset;
    } else {
        b->skip = b->offset;
    }
    if (resp->content_length >= 0 && (uint64_t)resp->content_length != expected)
        return wrong_size(b, err);
    return 0;
}

static int blob_data(void *arg, const void *data, size_t len, struct err *err)
{
    struct blob *b = arg;
    const char *p = data;

    if (b->skip > 0) {
        size_t n = b->skip < len ? (size_t)b->skip : len;

        b->skip -= n;
        p += n;
        len -= n;
    }
    if (len == 0)
        return 0;
    if (len > b->size - b->offset)
        return wrong_size(b, err);
    if (digest_update(&b->hash, p, len, err) < 0 || b->sink(b->arg, p, len, err) < 0) {
        b->final = true;
        return -1;
    }
    b->offset += len;
    return 0;
}

/* From one host, as far as it goes. 0: all bytes are here. */
static int blob_from(struct registry *r, struct http_client *http, size_t host, struct blob *b,
                     struct cancel *cancel, struct err *err)
{
    auto_free char *path = fs_format("blobs/%s", b->digest);
    unsigned standing = 0;

    for (;;) {
        auto_response struct http_response resp = {0};
        uint64_t before = b->offset;
        struct want w = {.method = "GET",
                         .path = path,
                         .offset = b->no_range ? 0 : b->offset,
                         .sink = blob_data,
                         .on_start = blob_start,
                         .arg = b};
        bool retry;
        int ret;

        b->resp = &resp; // cppcheck-suppress autoVariables ; only for the call below
        ret = request(r, http, host, &w, cancel, &resp, err);
        if (ret == 0 && resp.status / 100 == 2 && b->offset == b->size)
            return 0;
        if (ret == 0 && resp.status / 100 == 2)
            ret = err_set(err, ERR_UNAVAILABLE, "blob %s ended after %llu of %llu bytes", b->digest,
                          (unsigned long long)b->offset, (unsigned long long)b->size);
        else if (ret == 0)
            ret = status_error(&resp, err);
        if (b->final || gave_up(err) || resp.unreachable)
            return -1;
        retry = resp.broken || resp.status / 100 == 2 || worth_a_retry(&resp);
        if (resp.status == 416 && !b->no_range) {
            b->no_range = true;
            retry = true;
        }
        standing = b->offset - before >= LIMIT_HTTP_PROGRESS ? 0 : standing + 1;
        if (!retry || standing >= STILL_STANDING)
            return err_wrap(err, "blob %s from %s", b->digest, r->hosts.v[host].host);
        if (pause_before(standing, &resp, cancel, err) < 0)
            return -1;
    }
}

static int blob_from_any(struct registry *r, struct http_client *http, struct blob *b,
                         struct cancel *cancel, struct err *err)
{
    auto_err struct err kept = ERR_INIT;

    for (size_t i = 0; i < r->hosts.n; i++) {
        auto_err struct err e = ERR_INIT;

        if (!r->hosts.v[i].can_pull)
            continue;
        b->no_range = false;
        if (blob_from(r, http, i, b, cancel, &e) == 0)
            return 0;
        if (b->final || gave_up(&e))
            return err_move(err, &e);
        keep_error(&kept, &e);
    }
    return no_host(r, &kept, err);
}

int registry_blob(struct registry *r, struct http_client *http, const char *digest, uint64_t size,
                  registry_sink sink, void *arg, struct cancel *cancel, struct err *err)
{
    struct blob b = {.digest = digest, .size = size, .sink = sink, .arg = arg};
    char got[DIGEST_MAX];

    if (!digest_valid(digest))
        return err_set(err, ERR_INVALID, "not a digest");
    if (digest_init(&b.hash, digest, err) < 0)
        return -1;
    if (blob_from_any(r, http, &b, cancel, err) < 0) {
        digest_clear(&b.hash);
        return -1;
    }
    if (digest_final(&b.hash, got, err) < 0)
        return -1;
    if (strcmp(got, digest) != 0)
        return err_set(err, ERR_DATA_LOSS, "blob digest mismatch: expected %s, got %s", digest,
                       got);
    return 0;
}
