/*
 * auth - credentials for a registry: challenges, tokens, Basic.
 *
 * A registry that wants to know who asks answers 401 with WWW-Authenticate; auth_answer() turns
 * that into the value of an Authorization header: a Bearer token from the token service it names
 * (OAuth2 POST when there is a secret, then GET with Basic), or Basic itself. (distribution-spec
 * token authentication; RFC 7235.)
 *
 * Credentials are copied in, wiped by auth_credentials_clear(), and appear in no error text.
 * Threads: structs belong to one thread at a time.
 */
#ifndef ASPIS_CRI_IMAGE_AUTH_H
#define ASPIS_CRI_IMAGE_AUTH_H

#include <stdbool.h>
#include <stddef.h>

#include "base/cancel.h"
#include "base/err.h"
#include "base/str.h"
#include "cri/image/http.h"
#include "cri/image/image.h"

struct auth_credentials {      /* NULL where there is none */
    char *username, *password; /* both or none */
    char *identity_token;      /* an OAuth2 refresh token */
    char *registry_token;      /* used as the Bearer token as it is */
};

/* From what CRI gives, in containerd's order; when server_address names another registry there are
 * none. ERR_INVALID when `auth` is not base64 of "user:password". */
int auth_credentials_set(struct auth_credentials *c, const struct image_auth *auth,
                         const char *registry, struct err *err);
void auth_credentials_clear(struct auth_credentials *c);
bool auth_credentials_any(const struct auth_credentials *c);
/* Overwrites and frees a secret string. NULL is fine. */
void auth_wipe(char *s);

enum auth_scheme { AUTH_NONE, AUTH_BASIC, AUTH_BEARER };

struct auth_challenge {
    enum auth_scheme scheme;
    char *realm, *service, *scope, *error; /* NULL when not given */
};
/* The challenge that we can answer best (Bearer before Basic) of all header values. */
void auth_parse_challenges(const struct strv *headers, struct auth_challenge *out);
void auth_challenge_clear(struct auth_challenge *c);

/* *authorization becomes "Authorization: ..." (the caller wipes it); *life_s is for how many
 * seconds a token service's token is good, 0 for anything else. `like` gives TLS and timeouts of
 * requests to the registry's own origin; repository is for a challenge without scope.
 * ERR_UNAUTHENTICATED when nothing can answer the challenge or the token service refuses. */
int auth_answer(struct http_client *http, const struct http_request *like,
                const struct auth_credentials *creds, const struct auth_challenge *challenge,
                const char *repository, struct cancel *cancel, char **authorization,
                int64_t *life_s, struct err *err);

#endif
