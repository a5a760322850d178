#include "cri/image/reference.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "cri/image/digest.h"

#define REPOSITORY_MAX 255 /* Docker's bound on registry and repository together */

static bool is_lower_alnum(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

static bool is_alnum(char c)
{
    return is_lower_alnum(c) || (c >= 'A' && c <= 'Z');
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* [a-z0-9]+((\.|_|__|-+)[a-z0-9]+)* with slashes between such components. */
static bool repository_valid(const char *s)
{
    for (;;) {
        if (!is_lower_alnum(*s))
            return false;
        while (is_lower_alnum(*s))
            s++;
        if (*s == '\0')
            return true;
        if (*s == '-')
            s += strspn(s, "-");
        else if (*s == '_')
            s += s[1] == '_' ? 2 : 1;
        else if (*s == '.' || *s == '/')
            s++;
        else
            return false;
    }
}

bool reference_tag_valid(const char *tag)
{
    size_t n = 0;

    if (!is_alnum(tag[0]) && tag[0] != '_')
        return false;
    while (is_alnum(tag[n]) || tag[n] == '_' || tag[n] == '.' || tag[n] == '-')
        n++;
    return n <= 128 && tag[n] == '\0';
}

/* A port after the ':' that s points at, to the end. */
static bool port_valid(const char *s)
{
    unsigned port = 0;
    size_t n = 0;

    for (s++; n < 6 && is_digit(s[n]); n++)
        port = port * 10 + (unsigned)(s[n] - '0');
    return n > 0 && s[n] == '\0' && port > 0 && port < 65536;
}

/* host[:port], [IPv6][:port]; labels of letters, digits and inner hyphens. */
static bool registry_valid(const char *s)
{
    if (*s == '[') {
        size_t n = strspn(s + 1, "0123456789abcdefABCDEF:.");

        if (n < 2 || n > 45 || s[1 + n] != ']' || memchr(s + 1, ':', n) == NULL)
            return false;
        s += n + 2;
        return *s == '\0' || (*s == ':' && port_valid(s));
    }
    for (;;) {
        if (!is_alnum(*s))
            return false;
        while (is_alnum(*s) || *s == '-')
            s++;
        if (s[-1] == '-')
            return false;
        if (*s == '\0')
            return true;
        if (*s == ':')
            return port_valid(s);
        if (*s++ != '.')
            return false;
    }
}

static bool looks_like_registry(const char *s)
{
    if (strcmp(s, "localhost") == 0 || strpbrk(s, ".:") != NULL)
        return true;
    for (; *s != '\0'; s++)
        if (*s >= 'A' && *s <= 'Z')
            return true;
    return false;
}

static int bad(struct err *err, const char *text, const char *why)
{
    char shown[129];
    size_t n = 0;

    /* The text is the client's: only what is printable goes into the message. */
    for (; n < sizeof(shown) - 1 && text[n] != '\0'; n++)
        shown[n] = text[n] >= 0x20 && text[n] < 0x7f ? text[n] : '?';
    shown[n] = '\0';
    return err_set(err, ERR_INVALID, "invalid image reference \"%s\": %s", shown, why);
}

/* Takes the registry off the front of *name; the rest stays in place. */
static char *split_registry(char *name, char **rest)
{
    char *slash = strchr(name, '/');

    *rest = name;
    if (slash != NULL) {
        *slash = '\0';
        if (looks_like_registry(name)) {
            *rest = slash + 1;
            return xstrdup(strcmp(name, "index.docker.io") == 0 ? "docker.io" : name);
        }
        *slash = '/';
    }
    return xstrdup("docker.io");
}

static int parse(const char *text, char *work, struct reference *out, struct err *err)
{
    char *at = strchr(work, '@');
    char *slash, *colon, *rest;

    if (at != NULL) {
        *at = '\0';
        if (!digest_valid(at + 1))
            return bad(err, text, "malformed digest");
        out->digest = xstrdup(at + 1);
    }
    slash = strrchr(work, '/');
    colon = strrchr(work, ':');
    if (colon != NULL && (slash == NULL || colon > slash)) {
        *colon = '\0';
        if (!reference_tag_valid(colon + 1))
            return bad(err, text, "malformed tag");
        if (out->digest == NULL)
            out->tag = xstrdup(colon + 1);
    }
    out->registry = split_registry(work, &rest);
    if (!registry_valid(out->registry))
        return bad(err, text, "malformed registry host");
    if (!repository_valid(rest))
        return bad(err, text, "malformed repository name (lower case, digits and separators)");
    if (strlen(rest) == 64 && strspn(rest, "0123456789abcdef") == 64)
        return bad(err, text, "64 hex digits are an image id, not a name");
    if (strcmp(out->registry, "docker.io") == 0 && strchr(rest, '/') == NULL)
        out->repository = fs_format("library/%s", rest);
    else
        out->repository = xstrdup(rest);
    if (strlen(out->registry) + 1 + strlen(out->repository) > REPOSITORY_MAX)
        return bad(err, text, "name too long");
    if (out->digest == NULL && out->tag == NULL)
        out->tag = xstrdup("latest");
    return 0;
}

int reference_parse(const char *text, struct reference *out, struct err *err)
{
    struct reference r = {0};
    auto_free char *work = NULL;

    if (text == NULL || *text == '\0')
        return err_set(err, ERR_INVALID, "empty image reference");
    if (strnlen(text, LIMIT_REFERENCE + 1) > LIMIT_REFERENCE)
        return bad(err, text, "too long");
    work = xstrdup(text);
    if (parse(text, work, &r, err) < 0) {
        reference_clear(&r);
        return -1;
    }
    *out = r;
    return 0;
}

void reference_clear(struct reference *r)
{
    free(r->registry);
    free(r->repository);
    free(r->tag);
    free(r->digest);
    *r = (struct reference){0};
}

char *reference_name(const struct reference *r)
{
    return fs_format("%s/%s", r->registry, r->repository);
}

char *reference_string(const struct reference *r)
{
    if (r->digest != NULL)
        return reference_with_digest(r, r->digest);
    return fs_format("%s/%s:%s", r->registry, r->repository, r->tag);
}

char *reference_with_digest(const struct reference *r, const char *digest)
{
    return fs_format("%s/%s@%s", r->registry, r->repository, digest);
}

bool reference_registry_is_loopback(const char *registry)
{
    size_t n = strcspn(registry, ":");
    unsigned part[4];
    char tail;

    if (*registry == '[')
        return str_starts(registry, "[::1]");
    if (n == 9 && strncmp(registry, "localhost", 9) == 0)
        return true;
    if (n > 15 || strspn(registry, "0123456789.") != n)
        return false;
    return sscanf(registry, "%3u.%3u.%3u.%3u%c", &part[0], &part[1], &part[2], &part[3], &tail) >=
               4 &&
           part[0] == 127;
}

bool reference_is_id(const char *text, const char **hex, bool *whole)
{
    bool prefixed = str_starts(text, "sha256:");
    const char *h = prefixed ? text + 7 : text;
    size_t n = strspn(h, "0123456789abcdef");

    if (h[n] != '\0' || n > 64 || n < (prefixed ? 1U : 7U))
        return false;
    *hex = h;
    *whole = n == 64;
    return true;
}
