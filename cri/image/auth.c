#include "cri/image/auth.h"

#include <curl/curl.h>
#include <jansson.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"

#define CLIENT_ID "aspis"
#define SECRET_MAX KiB(64)

void auth_wipe(char *s)
{
    if (s != NULL)
        explicit_bzero(s, strlen(s));
    free(s);
}

static void wipep(char **s)
{
    auth_wipe(*s);
}
#define auto_secret __attribute__((cleanup(wipep)))

void auth_credentials_clear(struct auth_credentials *c)
{
    auth_wipe(c->username);
    auth_wipe(c->password);
    auth_wipe(c->identity_token);
    auth_wipe(c->registry_token);
    *c = (struct auth_credentials){0};
}

bool auth_credentials_any(const struct auth_credentials *c)
{
    return c->username != NULL || c->identity_token != NULL || c->registry_token != NULL;
}

/* "https://index.docker.io/v1/" is docker.io. */
static bool names_registry(const char *server, const char *registry)
{
    const char *scheme = strstr(server, "://");
    auto_free char *host = NULL;
    const char *names[2];

    if (scheme != NULL)
        server = scheme + 3;
    host = xstrndup(server, strcspn(server, "/"));
    names[0] = host;
    names[1] = registry;
    for (int i = 0; i < 2; i++)
        if (strcasecmp(names[i], "index.docker.io") == 0 ||
            strcasecmp(names[i], "registry-1.docker.io") == 0)
            names[i] = "docker.io";
    return strcasecmp(names[0], names[1]) == 0;
}

static int decode_basic(struct auth_credentials *c, const char *text, struct err *err)
{
    size_t len = strcspn(text, "\r\n"), pad = 0;
    auto_secret char *plain = NULL;
    char *colon;
    int n;

    if (len == 0 || len > SECRET_MAX || text[len + strspn(text + len, "\r\n")] != '\0')
        return err_set(err, ERR_INVALID, "the credentials' auth field is malformed");
    while (pad < len && pad < 2 && text[len - 1 - pad] == '=')
        pad++;
    plain = xcalloc(1, len + 4);
    n = EVP_DecodeBlock((unsigned char *)plain, (const unsigned char *)text, (int)len);
    if (n < 0 || (size_t)n < pad)
        return err_set(err, ERR_INVALID, "the credentials' auth field is not base64");
    plain[(size_t)n - pad] = '\0'; /* trailing NULs end the text by themselves */
    colon = strchr(plain, ':');
    if (colon == NULL)
        return err_set(err, ERR_INVALID, "the credentials' auth field has no user and password");
    c->username = xstrndup(plain, (size_t)(colon - plain));
    c->password = xstrdup(colon + 1);
    return 0;
}

int auth_credentials_set(struct auth_credentials *c, const struct image_auth *auth,
                         const char *registry, struct err *err)
{
    *c = (struct auth_credentials){0};
    if (auth == NULL)
        return 0;
    if (!str_empty(auth->server_address) && !names_registry(auth->server_address, registry))
        return 0;
    if (!str_empty(auth->username)) {
        c->username = xstrdup(auth->username);
        c->password = xstrdup(auth->password != NULL ? auth->password : "");
    } else if (!str_empty(auth->identity_token)) {
        c->identity_token = xstrdup(auth->identity_token);
    } else if (!str_empty(auth->auth)) {
        return decode_basic(c, auth->auth, err);
    } else if (!str_empty(auth->registry_token)) {
        c->registry_token = xstrdup(auth->registry_token);
    }
    return 0;
}

/* Challenges. */

void auth_challenge_clear(struct auth_challenge *c)
{
    free(c->realm);
    free(c->service);
    free(c->scope);
    free(c->error);
    *c = (struct auth_challenge){0};
}

static bool token_char(char c)
{
    return c != '\0' && strchr("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
                               "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
                               c) != NULL;
}

static char *take_token(const char **p)
{
    const char *from = *p;

    while (token_char(**p))
        (*p)++;
    return xstrndup(from, (size_t)(*p - from));
}

/* A token, or a quoted string with its escapes undone. */
static char *take_value(const char **p)
{
    char *out;
    size_t n = 0;

    if (**p != '"')
        return take_token(p);
    (*p)++;
    out = xcalloc(1, strlen(*p) + 1);
    while (**p != '\0' && **p != '"') {
        if (**p == '\\' && (*p)[1] != '\0')
            (*p)++;
        out[n++] = *(*p)++;
    }
    if (**p == '"')
        (*p)++;
    return out;
}

static void skip(const char **p, const char *what)
{
    *p += strspn(*p, what);
}

static void set_param(struct auth_challenge *c, const char *name, const char *value)
{
    char **field = strcasecmp(name, "realm") == 0     ? &c->realm
                   : strcasecmp(name, "service") == 0 ? &c->service
                   : strcasecmp(name, "scope") == 0   ? &c->scope
                   : strcasecmp(name, "error") == 0   ? &c->error
                                                      : NULL;

    if (field == NULL)
        return;
    free(*field);
    *field = xstrdup(value);
}

/* Keeps the better of two in *best; *c is used up. */
static void keep_better(struct auth_challenge *best, struct auth_challenge *c)
{
    bool usable = c->scheme == AUTH_BASIC || (c->scheme == AUTH_BEARER && !str_empty(c->realm));

    if (usable && c->scheme > best->scheme) {
        auth_challenge_clear(best);
        *best = *c;
        *c = (struct auth_challenge){0};
        return;
    }
    auth_challenge_clear(c);
}

/* One header value: "Bearer realm="x",scope="y", Basic realm="z"". A word followed by '=' is a
 * parameter of the challenge before it, any other word begins a challenge. */
static void parse_header(const char *p, struct auth_challenge *best)
{
    struct auth_challenge current = {0};

    for (;;) {
        auto_free char *word = NULL;

        skip(&p, " \t,");
        word = take_token(&p);
        if (*word == '\0')
            break;
        skip(&p, " \t");
        if (*p == '=') {
            auto_free char *value = NULL;

            p++;
            skip(&p, " \t");
            value = take_value(&p);
            set_param(&current, word, value);
            continue;
        }
        keep_better(best, &current);
        if (strcasecmp(word, "bearer") == 0)
            current.scheme = AUTH_BEARER;
        else if (strcasecmp(word, "basic") == 0)
            current.scheme = AUTH_BASIC;
    }
    keep_better(best, &current);
}

void auth_parse_challenges(const struct strv *headers, struct auth_challenge *out)
{
    *out = (struct auth_challenge){0};
    for (size_t i = 0; i < headers->n; i++)
        parse_header(headers->v[i], out);
}

/* Answers. */

static int basic_value(const struct auth_credentials *c, char **out, struct err *err)
{
    auto_secret char *plain = NULL, *coded = NULL;
    size_t n;

    if (c->username == NULL)
        return err_set(err, ERR_UNAUTHENTICATED, "the registry wants a user name and password");
    plain = fs_format("%s:%s", c->username, c->password);
    n = strlen(plain);
    if (n > SECRET_MAX)
        return err_set(err, ERR_INVALID, "the credentials are too long");
    coded = xcalloc(1, n / 3 * 4 + 8);
    (void)EVP_EncodeBlock((unsigned char *)coded, (const unsigned char *)plain, (int)n);
    *out = fs_format("Authorization: Basic %s", coded);
    return 0;
}

/* A token goes into a header: nothing may end the line. */
static bool token_usable(const char *s)
{
    if (*s == '\0' || strlen(s) > SECRET_MAX)
        return false;
    for (; *s != '\0'; s++)
        if (*s <= 0x20 || *s >= 0x7f)
            return false;
    return true;
}

static int bearer_value(const char *token, char **out, struct err *err)
{
    if (!token_usable(token))
        return err_set(err, ERR_UNAUTHENTICATED, "the token service gave an unusable token");
    *out = fs_format("Authorization: Bearer %s", token);
    return 0;
}

static void put_escaped(struct buf *b, const char *name, const char *value)
{
    char *escaped;

    if (str_empty(value))
        return;
    escaped = curl_easy_escape(NULL, value, 0);
    (void)buf_printf(b, "%s%s=%s", b->len > 0 ? "&" : "", name, escaped != NULL ? escaped : "");
    if (escaped != NULL)
        explicit_bzero(escaped, strlen(escaped));
    curl_free(escaped);
}

static void wipe_buf(struct buf *b)
{
    if (b->data != NULL)
        explicit_bzero(b->data, b->len);
    buf_clear(b);
}
#define auto_secret_buf __attribute__((cleanup(wipe_buf)))

/* A scope parameter can hold several, separated by blanks; each is one parameter of the GET form.
 */
static void put_scopes(struct buf *b, const char *scope)
{
    while (*scope != '\0') {
        size_t n = strcspn(scope, " ");
        auto_free char *one = xstrndup(scope, n);

        put_escaped(b, "scope", one);
        scope += n;
        scope += strspn(scope, " ");
    }
}

/* The token in a 200 answer's JSON, and how long it is good: a service that does not say means 60
 * seconds (distribution's token specification). */
static int read_token(const struct buf *body, char **out, int64_t *life_s, struct err *err)
{
    json_t *root = json_loadb(buf_str(body), body->len, 0, NULL);
    const char *token = json_string_value(json_object_get(root, "token"));
    const json_t *life = json_object_get(root, "expires_in");
    int ret;

    *life_s = json_is_integer(life) ? json_integer_value(life) : 60;
    if (*life_s > LIMIT_TOKEN_LIFE_S)
        *life_s = LIMIT_TOKEN_LIFE_S;
    if (str_empty(token))
        token = json_string_value(json_object_get(root, "access_token"));
    if (str_empty(token))
        ret = err_set(err, ERR_UNAUTHENTICATED, "the token service gave no token");
    else
        ret = bearer_value(token, out, err);
    json_decref(root);
    return ret;
}

static int token_status(const struct http_response *r, struct err *err)
{
    if (r->status == 401 || r->status == 403 || r->status == 400 || r->status == 404)
        return err_set(err, ERR_UNAUTHENTICATED,
                       "the token service refuses the credentials (status %ld)", r->status);
    return err_set(err, ERR_UNAVAILABLE, "the token service answers with status %ld", r->status);
}

/* POST form (OAuth2). 1: got a token; 0: the service does not want it this way; -1: failed. */
static int token_post(struct http_client *http, struct http_request *req,
                      const struct auth_credentials *creds, const struct auth_challenge *ch,
                      const char *scope, struct cancel *cancel, char **out, int64_t *life_s,
                      struct err *err)
{
    auto_secret_buf struct buf form = BUF_INIT(SECRET_MAX * 8);
    auto_strv struct strv headers = {0};
    struct http_response r = {0};
    int ret;

    put_escaped(&form, "grant_type", creds->identity_token != NULL ? "refresh_token" : "password");
    put_escaped(&form, "service", ch->service);
    put_escaped(&form, "client_id", CLIENT_ID);
    put_escaped(&form, "scope", scope);
    if (creds->identity_token != NULL) {
        put_escaped(&form, "refresh_token", creds->identity_token);
    } else {
        put_escaped(&form, "username", creds->username);
        put_escaped(&form, "password", creds->password);
    }
    if (!buf_ok(&form))
        return err_set(err, ERR_INVALID, "the credentials are too long");
    strv_add(&headers, "Content-Type: application/x-www-form-urlencoded");
    req->method = "POST";
    req->url = ch->realm;
    req->headers = &headers;
    req->body = buf_str(&form);
    ret = http_perform(http, req, cancel, &r, err);
    req->body = NULL;
    req->headers = NULL;
    if (ret == 0) {
        if (r.status == 200)
            ret = read_token(&r.body, out, life_s, err) < 0 ? -1 : 1;
        else if (r.status != 400 && r.status != 401 && r.status != 404 && r.status != 405)
            ret = token_status(&r, err);
        else if (creds->username == NULL)
            ret = token_status(&r, err);
    }
    wipe_buf(&r.body);
    http_response_clear(&r);
    return ret;
}

static int token_get(struct http_client *http, struct http_request *req,
                     const struct auth_credentials *creds, const struct auth_challenge *ch,
                     const char *scope, struct cancel *cancel, char **out, int64_t *life_s,
                     struct err *err)
{
    auto_buf struct buf query = BUF_INIT(KiB(64));
    auto_secret char *basic = NULL;
    auto_free char *url = NULL;
    struct http_response r = {0};
    int ret;

    if (creds->username != NULL && basic_value(creds, &basic, err) < 0)
        return -1;
    put_escaped(&query, "service", ch->service);
    put_scopes(&query, scope);
    if (!buf_ok(&query))
        return err_set(err, ERR_UNAUTHENTICATED, "the registry's challenge is too long");
    url =
        fs_format("%s%c%s", ch->realm, strchr(ch->realm, '?') != NULL ? '&' : '?', buf_str(&query));
    req->method = "GET";
    req->url = url;
    req->secret_header = basic;
    ret = http_perform(http, req, cancel, &r, err);
    req->secret_header = NULL;
    if (ret == 0)
        ret = r.status == 200 ? read_token(&r.body, out, life_s, err) : token_status(&r, err);
    wipe_buf(&r.body);
    http_response_clear(&r);
    return ret;
}

static int fetch_token(struct http_client *http, const struct http_request *like,
                       const struct auth_credentials *creds, const struct auth_challenge *ch,
                       const char *scope, struct cancel *cancel, char **out, int64_t *life_s,
                       struct err *err)
{
    struct http_request req = {.dial_timeout_ms = like->dial_timeout_ms,
                               .stall_ns = like->stall_ns,
                               .ca = like->ca,
                               .max_body = LIMIT_TOKEN_REPLY};
    int r;

    if (!http_url_usable(ch->realm))
        return err_set(err, ERR_UNAUTHENTICATED, "the registry names an unusable token service");
    if (str_starts(like->url, "https://") && !str_starts(ch->realm, "https://"))
        return err_set(err, ERR_UNAUTHENTICATED,
                       "the registry names a token service without TLS; refused");
    if (http_same_origin(like->url, ch->realm)) {
        req.client = like->client;
        req.skip_verify = like->skip_verify;
    }
    if (creds->username != NULL || creds->identity_token != NULL) {
        r = token_post(http, &req, creds, ch, scope, cancel, out, life_s, err);
        if (r != 0)
            return r < 0 ? -1 : 0;
    }
    return token_get(http, &req, creds, ch, scope, cancel, out, life_s, err);
}

int auth_answer(struct http_client *http, const struct http_request *like,
                const struct auth_credentials *creds, const struct auth_challenge *challenge,
                const char *repository, struct cancel *cancel, char **authorization,
                int64_t *life_s, struct err *err)
{
    auto_free char *scope = NULL;

    *life_s = 0;

    if (challenge->scheme == AUTH_NONE)
        return err_set(err, ERR_UNAUTHENTICATED, "the registry refuses and names no way to log in");
    if (challenge->scheme == AUTH_BASIC)
        return basic_value(creds, authorization, err);
    if (creds->registry_token != NULL)
        return bearer_value(creds->registry_token, authorization, err);
    scope = !str_empty(challenge->scope) ? xstrdup(challenge->scope)
                                         : fs_format("repository:%s:pull", repository);
    if (fetch_token(http, like, creds, challenge, scope, cancel, authorization, life_s, err) < 0)
        return err_wrap(err, "log in");
    return 0;
}
