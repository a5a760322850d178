/* The small texts around a pull: references, WWW-Authenticate headers, hosts.toml, digests and
 * URLs.
 */
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "cri/image/auth.h"
#include "cri/image/digest.h"
#include "cri/image/hosts.h"
#include "cri/image/http.h"
#include "cri/image/reference.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void reference(const char *text)
{
    auto_reference struct reference r = {0}, again = {0};
    auto_free char *full = NULL, *twice = NULL;

    if (reference_parse(text, &r, NULL) < 0)
        return;
    full = reference_string(&r);
    if (reference_parse(full, &again, NULL) < 0)
        abort(); /* the full form of a reference is one */
    twice = reference_string(&again);
    if (strcmp(full, twice) != 0)
        abort();
}

static void challenge(const char *text)
{
    auto_strv struct strv headers = {0};
    struct auth_challenge c;

    strv_add(&headers, text);
    auth_parse_challenges(&headers, &c);
    if (c.scheme == AUTH_BEARER && str_empty(c.realm))
        abort();
    auth_challenge_clear(&c);
}

static void hosts(const char *text, size_t len)
{
    auto_hosts struct registry_hosts h = {0};

    if (hosts_parse(text, len, "/nonexistent", "r.io", &h, NULL) < 0)
        return;
    if (h.n == 0 || !h.v[h.n - 1].upstream)
        abort();
    for (size_t i = 0; i < h.n; i++)
        if (!str_starts(h.v[i].url, "http") || strpbrk(h.v[i].url, " \r\n\"") != NULL)
            abort();
}

static void digest_or_url(const char *text)
{
    auto_free char *shown = http_shown_url(text);

    if (digest_valid(text) && strspn(digest_hex(text), "0123456789abcdef") != strlen(text) - 7)
        abort(); /* it becomes a file name */
    if (strchr(shown, '?') != NULL || strchr(shown, '#') != NULL)
        abort(); /* a signed URL's query is a secret */
    if (http_url_usable(text) && !str_starts(text, "http://") && !str_starts(text, "https://") &&
        strncasecmp(text, "http", 4) != 0)
        abort();
    if (http_url_usable(text) && !http_same_origin(text, text))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    auto_free char *text = NULL;

    if (size == 0)
        return 0;
    text = xstrndup((const char *)data + 1, size - 1);
    switch (data[0] % 4) {
    case 0:
        reference(text);
        break;
    case 1:
        challenge(text);
        break;
    case 2:
        hosts(text, strlen(text));
        break;
    default:
        digest_or_url(text);
    }
    return 0;
}
