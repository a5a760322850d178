#include "cri/image/digest.h"

#include <openssl/evp.h>
#include <string.h>

static const struct {
    const char *name;
    size_t hex;
} algorithms[] = {{"sha256", 64}, {"sha512", 128}};

/* The index of the algorithm in front of a digest, or of a bare name. */
static int algorithm_of(const char *digest)
{
    for (size_t i = 0; i < sizeof(algorithms) / sizeof(algorithms[0]); i++) {
        size_t n = strlen(algorithms[i].name);

        if (strncmp(digest, algorithms[i].name, n) == 0 && (digest[n] == ':' || digest[n] == '\0'))
            return (int)i;
    }
    return -1;
}

bool digest_valid(const char *digest)
{
    int a = algorithm_of(digest);
    const char *hex;

    if (a < 0)
        return false;
    hex = digest + strlen(algorithms[a].name);
    if (*hex++ != ':')
        return false;
    return strspn(hex, "0123456789abcdef") == algorithms[a].hex && hex[algorithms[a].hex] == '\0';
}

const char *digest_hex(const char *digest)
{
    const char *colon = strchr(digest, ':');

    return colon != NULL ? colon + 1 : digest;
}

int digest_init(struct digest_ctx *c, const char *algorithm, struct err *err)
{
    int a = algorithm_of(algorithm);

    *c = (struct digest_ctx){0};
    if (a < 0)
        return err_set(err, ERR_INVALID, "unknown digest algorithm");
    (void)strcpy(c->algorithm, algorithms[a].name);
    c->md = EVP_MD_CTX_new();
    if (c->md == NULL ||
        EVP_DigestInit_ex(c->md, a == 0 ? EVP_sha256() : EVP_sha512(), NULL) != 1) {
        digest_clear(c);
        return err_set(err, ERR_INTERNAL, "cannot set up %s", algorithms[a].name);
    }
    return 0;
}

int digest_update(struct digest_ctx *c, const void *data, size_t len, struct err *err)
{
    if (EVP_DigestUpdate(c->md, data, len) != 1)
        return err_set(err, ERR_INTERNAL, "cannot compute %s", c->algorithm);
    return 0;
}

int digest_final(struct digest_ctx *c, char out[DIGEST_MAX], struct err *err)
{
    unsigned char raw[EVP_MAX_MD_SIZE];
    unsigned int n = 0;
    int ok = EVP_DigestFinal_ex(c->md, raw, &n);
    int at = snprintf(out, DIGEST_MAX, "%s:", c->algorithm);

    if (ok == 1)
        for (unsigned int i = 0; i < n; i++)
            at += snprintf(out + at, DIGEST_MAX - (size_t)at, "%02x", raw[i]);
    digest_clear(c);
    return ok == 1 ? 0 : err_set(err, ERR_INTERNAL, "cannot compute a digest");
}

void digest_clear(struct digest_ctx *c)
{
    EVP_MD_CTX_free(c->md);
    c->md = NULL;
}

int digest_of(const void *data, size_t len, const char *algorithm, char out[DIGEST_MAX],
              struct err *err)
{
    struct digest_ctx c;

    if (digest_init(&c, algorithm, err) < 0)
        return -1;
    if (digest_update(&c, data, len, err) < 0) {
        digest_clear(&c);
        return -1;
    }
    return digest_final(&c, out, err);
}

int digest_check(const void *data, size_t len, const char *expected, struct err *err)
{
    char got[DIGEST_MAX];

    if (!digest_valid(expected))
        return err_set(err, ERR_INVALID, "not a digest");
    if (digest_of(data, len, expected, got, err) < 0)
        return -1;
    if (strcmp(got, expected) != 0)
        return err_set(err, ERR_DATA_LOSS, "digest mismatch: expected %s, got %s", expected, got);
    return 0;
}
