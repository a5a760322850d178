#include "cri/image/hosts.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "cri/image/reference.h"
#include "cri/toml.h"

#define DIAL_TIMEOUT_MS 30000

static void host_clear(struct registry_host *h)
{
    free(h->url);
    free(h->host);
    free(h->ca);
    strv_clear(&h->client);
    strv_clear(&h->headers);
    *h = (struct registry_host){0};
}

void hosts_clear(struct registry_hosts *h)
{
    for (size_t i = 0; i < h->n; i++)
        host_clear(&h->v[i]);
    free(h->v);
    *h = (struct registry_hosts){0};
}

static struct registry_host *add_host(struct registry_hosts *h)
{
    h->v = xrealloc(h->v, h->n + 1, sizeof(*h->v));
    h->v[h->n] = (struct registry_host){
        .can_pull = true, .can_resolve = true, .dial_timeout_ms = DIAL_TIMEOUT_MS};
    return &h->v[h->n++];
}

/* Printable, no spaces, quotes or backslashes: what may stand in the URL of a host. */
static bool url_text_valid(const char *s)
{
    for (; *s != '\0'; s++)
        if (*s <= 0x20 || *s >= 0x7f || strchr("\"\\<>^`{|}@?#", *s) != NULL)
            return false;
    return true;
}

/* Splits "[scheme://]host[:port][/path]" into url and host; adds /v2 where the rule wants it. */
static int set_url(struct registry_host *h, const char *text, bool override_path, struct err *err)
{
    const char *rest = strstr(text, "://");
    const char *scheme = "https";
    auto_free char *path = NULL;
    size_t n, len;

    if (!url_text_valid(text))
        return err_set(err, ERR_INVALID, "\"%.200s\" is not a usable URL", text);
    if (rest != NULL) {
        if (str_starts(text, "http://"))
            scheme = "http";
        else if (!str_starts(text, "https://"))
            return err_set(err, ERR_INVALID, "\"%.200s\": only http and https are supported", text);
        rest += 3;
    } else {
        rest = text;
    }
    n = strcspn(rest, "/");
    if (n == 0)
        return err_set(err, ERR_INVALID, "\"%.200s\" has no host", text);
    free(h->host);
    h->host = xstrndup(rest, n);
    if (strstr(text, "://") == NULL && reference_registry_is_loopback(h->host))
        scheme = "http";
    path = xstrdup(rest + n);
    for (len = strlen(path); len > 0 && path[len - 1] == '/'; len--)
        path[len - 1] = '\0';
    free(h->url);
    h->url = fs_format("%s://%s%s%s", scheme, h->host, path,
                       override_path || str_ends(path, "/v2") ? "" : "/v2");
    return 0;
}

static void set_upstream(struct registry_host *h, const char *registry, bool secure)
{
    const char *host = strcmp(registry, "docker.io") == 0 ? "registry-1.docker.io" : registry;
    bool http = reference_registry_is_loopback(registry) && !secure;

    h->host = xstrdup(host);
    h->url = fs_format("%s://%s/v2", http ? "http" : "https", host);
    h->upstream = true;
}

static char *in_dir(const char *dir, const char *file)
{
    return file[0] == '/' ? xstrdup(file) : fs_format("%s/%s", dir, file);
}

static int add_ca(struct registry_host *h, const char *dir, const char *file, struct err *err)
{
    auto_free char *path = in_dir(dir, file);
    auto_free char *pem = fs_read(path, MiB(1), NULL, err);
    char *both;

    if (pem == NULL)
        return -1;
    both = fs_format("%s%s\n", h->ca != NULL ? h->ca : "", pem);
    free(h->ca);
    h->ca = both;
    return 0;
}

/* A string or an array of strings. */
static int get_string_or_list(const struct toml_table *t, const char *key, struct strv *out,
                              struct err *err)
{
    const struct toml_value *v = toml_get(t, key);
    const char *s;

    if (v != NULL && v->type == TOML_STRING && toml_get_string(t, key, &s, err) > 0) {
        strv_add(out, s);
        return 1;
    }
    return toml_get_strings(t, key, out, err);
}

static int parse_ca(struct registry_host *h, const struct toml_table *t, const char *dir,
                    struct err *err)
{
    auto_strv struct strv files = {0};

    if (get_string_or_list(t, "ca", &files, err) < 0)
        return -1;
    for (size_t i = 0; i < files.n; i++)
        if (add_ca(h, dir, files.v[i], err) < 0)
            return -1;
    return 0;
}

static int add_client(struct registry_host *h, const char *cert, const char *key, struct err *err)
{
    if (h->client.n >= 2 * LIMIT_CLIENT_CERTS)
        return err_set(err, ERR_INVALID, "more than %d client certificates", LIMIT_CLIENT_CERTS);
    strv_add(&h->client, cert);
    strv_add(&h->client, key);
    return 0;
}

/* "file" (certificate and key in one) or ["cert", "key"]. */
static int parse_pair(struct registry_host *h, const struct toml_value *v, const char *dir,
                      struct err *err)
{
    const struct toml_value *cert = v, *key = v;

    if (v->type == TOML_ARRAY) {
        if (v->n_items == 0 || v->n_items > 2)
            return err_set(err, ERR_INVALID, "line %d: client wants [certificate, key]", v->line);
        key = &v->items[v->n_items - 1];
        cert = &v->items[0];
    }
    if (cert->type != TOML_STRING || key->type != TOML_STRING || cert->str[0] == '\0')
        return err_set(err, ERR_INVALID, "line %d: client must name files", v->line);
    auto_free char *cert_file = in_dir(dir, cert->str);
    auto_free char *key_file = key->str[0] != '\0' ? in_dir(dir, key->str) : xstrdup(cert_file);
    return add_client(h, cert_file, key_file, err);
}

/* "file", ["file", ...], or [["cert", "key"], ...]. */
static int parse_client(struct registry_host *h, const struct toml_table *t, const char *dir,
                        struct err *err)
{
    const struct toml_value *v = toml_get(t, "client");

    if (v == NULL)
        return 0;
    if (v->type != TOML_ARRAY)
        return parse_pair(h, v, dir, err);
    for (size_t i = 0; i < v->n_items; i++)
        if (parse_pair(h, &v->items[i], dir, err) < 0)
            return -1;
    return 0;
}

/* A duration as Go writes it: "30s", "1m30s", "500ms". */
static int parse_duration(const char *s, int64_t *ms)
{
    static const struct {
        const char *name;
        int64_t ms;
    } units[] = {{"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}};
    int64_t total = 0;

    if (*s == '\0')
        return -1;
    while (*s != '\0') {
        size_t digits = strspn(s, "0123456789"), letters, u;
        int64_t n = 0;

        if (digits == 0 || digits > 9)
            return -1;
        for (size_t i = 0; i < digits; i++)
            n = n * 10 + (s[i] - '0');
        s += digits;
        letters = strspn(s, "mshun");
        for (u = 0; u < ARRAY_LEN(units); u++)
            if (strlen(units[u].name) == letters && strncmp(s, units[u].name, letters) == 0)
                break;
        if (u == ARRAY_LEN(units))
            return -1;
        total += n * units[u].ms;
        s += letters;
    }
    if (total <= 0 || total > INT64_C(3600000))
        return -1;
    *ms = total;
    return 0;
}

static int parse_capabilities(struct registry_host *h, const struct toml_table *t, struct err *err)
{
    auto_strv struct strv list = {0};
    int r = toml_get_strings(t, "capabilities", &list, err);

    if (r <= 0)
        return r;
    h->can_pull = h->can_resolve = false;
    for (size_t i = 0; i < list.n; i++) {
        if (strcasecmp(list.v[i], "pull") == 0)
            h->can_pull = true;
        else if (strcasecmp(list.v[i], "resolve") == 0)
            h->can_resolve = true;
        else if (strcasecmp(list.v[i], "push") != 0 && strcasecmp(list.v[i], "referrers") != 0)
            return err_set(err, ERR_INVALID, "line %d: unknown capability \"%.64s\"",
                           toml_get(t, "capabilities")->line, list.v[i]);
    }
    return 0;
}

static bool header_valid(const char *name, const char *value)
{
    if (*name == '\0' || strlen(name) > 128 || strlen(value) > KiB(8))
        return false;
    for (; *name != '\0'; name++)
        if (strchr("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
                   "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
                   *name) == NULL)
            return false;
    for (; *value != '\0'; value++)
        if (((unsigned char)*value < 0x20 && *value != '\t') || *value == 0x7f)
            return false;
    return true;
}

static int parse_headers(struct registry_host *h, const struct toml_table *t, struct err *err)
{
    for (size_t i = 0; t != NULL && i < t->n_keys; i++) {
        auto_strv struct strv values = {0};

        if (get_string_or_list(t, t->keys[i].name, &values, err) < 0)
            return -1;
        for (size_t k = 0; k < values.n; k++) {
            if (!header_valid(t->keys[i].name, values.v[k]))
                return err_set(err, ERR_INVALID, "line %d: not a usable HTTP header",
                               t->keys[i].line);
            strv_addf(&h->headers, "%s: %s", t->keys[i].name, values.v[k]);
        }
    }
    return 0;
}

/* What a [host] table, and the top of the file for the server, can say. */
static int parse_fields(struct registry_host *h, const struct toml_table *t, const char *dir,
                        struct err *err)
{
    const char *dial = NULL;

    if (parse_capabilities(h, t, err) < 0 || parse_ca(h, t, dir, err) < 0 ||
        parse_client(h, t, dir, err) < 0 ||
        toml_get_bool(t, "skip_verify", &h->skip_verify, err) < 0 ||
        toml_get_string(t, "dial_timeout", &dial, err) < 0)
        return -1;
    if (dial != NULL && parse_duration(dial, &h->dial_timeout_ms) < 0)
        return err_set(err, ERR_INVALID, "line %d: dial_timeout wants a time such as \"30s\"",
                       toml_get(t, "dial_timeout")->line);
    return 0;
}

static const struct toml_table *header_table(const struct toml_doc *doc, const char *url)
{
    const char *path[] = {"host", url, "header"};

    return toml_find(doc, url != NULL ? path : &path[2], url != NULL ? 3 : 1);
}

static int parse_mirror(const struct toml_doc *doc, const char *url, const char *dir,
                        struct registry_hosts *out, struct err *err)
{
    const char *path[] = {"host", url};
    const struct toml_table *t = toml_find(doc, path, 2);
    struct registry_host *h;
    bool override_path = false;

    if (out->n >= LIMIT_REGISTRY_HOSTS)
        return err_set(err, ERR_INVALID, "more than %d hosts", LIMIT_REGISTRY_HOSTS);
    h = add_host(out);
    if (toml_get_bool(t, "override_path", &override_path, err) < 0 ||
        set_url(h, url, override_path, err) < 0 || parse_fields(h, t, dir, err) < 0)
        return -1;
    return parse_headers(h, header_table(doc, url), err);
}

static int parse_server(const struct toml_doc *doc, const char *dir, const char *registry,
                        struct registry_hosts *out, struct err *err)
{
    const struct toml_table *root = toml_section(doc, NULL);
    struct registry_host *h = add_host(out);
    bool override_path = false;
    const char *server = NULL;

    h->upstream = true;
    if (toml_get_string(root, "server", &server, err) < 0 ||
        toml_get_bool(root, "override_path", &override_path, err) < 0 ||
        parse_fields(h, root, dir, err) < 0 || parse_headers(h, header_table(doc, NULL), err) < 0)
        return -1;
    if (server != NULL && *server != '\0')
        return set_url(h, server, override_path, err);
    set_upstream(h, registry, h->ca != NULL || h->client.n > 0 || h->skip_verify);
    return 0;
}

/* Names of mirrors in the order of their first mention, [host."x"] or [host."x".header]. */
static bool first_mention(const struct toml_doc *doc, size_t at)
{
    for (size_t i = 0; i < at; i++) {
        const struct strv *p = &doc->tables[i].path;

        if (p->n >= 2 && strcmp(p->v[0], "host") == 0 &&
            strcmp(p->v[1], doc->tables[at].path.v[1]) == 0)
            return false;
    }
    return true;
}

static void mark_ns(struct registry_hosts *h, const char *registry)
{
    for (size_t i = 0; i < h->n; i++)
        h->v[i].add_ns = strcmp(h->v[i].host, registry) != 0 &&
                         !(strcmp(registry, "docker.io") == 0 &&
                           strcmp(h->v[i].host, "registry-1.docker.io") == 0);
}

int hosts_parse(const char *text, size_t len, const char *dir, const char *registry,
                struct registry_hosts *out, struct err *err)
{
    auto_toml struct toml_doc *doc = NULL;
    auto_hosts struct registry_hosts h = {0};

    if (toml_parse(text, len, &doc, err) < 0)
        return -1;
    for (size_t i = 1; i < doc->n_tables; i++) {
        const struct toml_table *t = &doc->tables[i];

        if (t->path.n >= 2 && strcmp(t->path.v[0], "host") == 0 && first_mention(doc, i) &&
            parse_mirror(doc, t->path.v[1], dir, &h, err) < 0)
            return -1;
    }
    if (parse_server(doc, dir, registry, &h, err) < 0)
        return -1;
    mark_ns(&h, registry);
    *out = h;
    h = (struct registry_hosts){0};
    return 0;
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

/* Docker's layout: every *.crt is a CA, every *.cert with its *.key is ours. */
static int load_docker(const char *dir, const char *registry, struct registry_hosts *out,
                       struct err *err)
{
    struct registry_host *h = add_host(out);
    struct dirent **names = NULL;
    int n = scandir(dir, &names, NULL, by_name), ret = 0;

    for (int i = 0; i < n; i++) {
        const char *name = names[i]->d_name;

        if (ret == 0 && str_ends(name, ".crt")) {
            ret = add_ca(h, dir, name, err);
        } else if (ret == 0 && str_ends(name, ".cert")) {
            auto_free char *cert = fs_format("%s/%s", dir, name);
            auto_free char *key =
                fs_format("%s/%.*s.key", dir, (int)(strlen(name) - strlen(".cert")), name);
            ret = add_client(h, cert, key, err);
        }
        free(names[i]);
    }
    free(names);
    set_upstream(h, registry, h->ca != NULL || h->client.n > 0);
    return ret;
}

static bool is_dir(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* The directory that holds this registry's files, or NULL. */
static char *find_dir(const char *dir, const char *registry)
{
    const char *colon = strrchr(registry, ':');
    auto_free char *path = NULL;

    /* A port, not the inside of an IPv6 address. */
    if (colon != NULL && strchr(colon, ']') == NULL) {
        path = fs_format("%s/%.*s_%s_", dir, (int)(colon - registry), registry, colon + 1);
        if (is_dir(path))
            return take(path);
        free(take(path));
    }
    path = fs_format("%s/%s", dir, registry);
    if (is_dir(path))
        return take(path);
    free(take(path));
    path = fs_format("%s/_default", dir);
    return is_dir(path) ? take(path) : NULL;
}

int hosts_load(const char *dir, const char *registry, struct registry_hosts *out, struct err *err)
{
    auto_hosts struct registry_hosts h = {0};
    auto_free char *sub = NULL, *file = NULL, *text = NULL;
    size_t len = 0;

    if (dir != NULL)
        sub = find_dir(dir, registry);
    if (sub != NULL)
        file = fs_format("%s/hosts.toml", sub);
    if (file != NULL && fs_exists(file)) {
        text = fs_read(file, LIMIT_HOSTS_TOML, &len, err);
        if (text == NULL)
            return -1;
        if (hosts_parse(text, len, sub, registry, out, err) < 0)
            return err_wrap(err, "%s", file);
        return 0;
    }
    if (sub != NULL) {
        if (load_docker(sub, registry, &h, err) < 0)
            return -1;
    } else {
        set_upstream(add_host(&h), registry, false);
    }
    *out = h;
    h = (struct registry_hosts){0};
    return 0;
}
