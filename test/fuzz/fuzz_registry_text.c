/* The small texts around a pull: references, WWW-Authenticate headers, hosts.toml. */
#include <stdlib.h>
#include <string.h>

#include "cri/image/auth.h"
#include "cri/image/hosts.h"
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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    auto_free char *text = NULL;

    if (size == 0)
        return 0;
    text = xstrndup((const char *)data + 1, size - 1);
    switch (data[0] % 3) {
    case 0:
        reference(text);
        break;
    case 1:
        challenge(text);
        break;
    default:
        hosts(text, strlen(text));
    }
    return 0;
}
