/*
 * digest - content digests: "sha256:<64 hex>" (sha512 too where a registry uses it), checked while
 * bytes stream by.
 *
 * A struct digest_ctx starts with digest_init(), takes any number of digest_update() and ends with
 * digest_final() or digest_clear(). Threads: one at a time per context.
 */
#ifndef ASPIS_CRI_IMAGE_DIGEST_H
#define ASPIS_CRI_IMAGE_DIGEST_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

#define DIGEST_MAX (7 + 128 + 1) /* "sha512:" and 128 digits and a NUL */

struct digest_ctx {
    void *md; /* EVP_MD_CTX */
    char algorithm[8];
};

/* True for "sha256:" and 64, or "sha512:" and 128, lower-case hex digits, and nothing else. */
bool digest_valid(const char *digest);
/* The hex part of a valid digest. */
const char *digest_hex(const char *digest);

/* algorithm: "sha256" or "sha512", or a whole digest whose algorithm is meant. */
int digest_init(struct digest_ctx *c, const char *algorithm, struct err *err);
int digest_update(struct digest_ctx *c, const void *data, size_t len, struct err *err);
/* Writes "sha256:..." and frees what init took, also on failure. */
int digest_final(struct digest_ctx *c, char out[DIGEST_MAX], struct err *err);
void digest_clear(struct digest_ctx *c);

/* In one go. */
int digest_of(const void *data, size_t len, const char *algorithm, char out[DIGEST_MAX],
              struct err *err);
/* ERR_DATA_LOSS when the bytes do not have this digest. */
int digest_check(const void *data, size_t len, const char *expected, struct err *err);

#endif
