/*
 * login_tokens - what registries' token services gave us, for as long as it is good.
 *
 * A pull asks here before it asks the service again. In memory only, never written or logged, wiped
 * when it expires, makes room or the store is closed. A key says to whom, for what and by whom:
 * login_tokens_key() makes it of the host's URL, the repository and the credentials, so that nobody
 * gets what another's password brought.
 *
 * Threads: any.
 */
#ifndef ASPIS_CRI_IMAGE_LOGIN_TOKENS_H
#define ASPIS_CRI_IMAGE_LOGIN_TOKENS_H

#include <stdint.h>

#include "base/err.h"
#include "cri/image/auth.h"
#include "cri/image/digest.h"

struct login_tokens;

struct login_tokens *login_tokens_new(void);
void login_tokens_free(struct login_tokens *t);

/* A digest: holds no secret. */
int login_tokens_key(const char *host_url, const char *repository,
                     const struct auth_credentials *creds, char key[DIGEST_MAX], struct err *err);
/* The header "Authorization: ..." that is good at mono_ns() `now`, or NULL. The caller wipes it. */
char *login_tokens_get(struct login_tokens *t, const char *key, int64_t now);
/* Keeps a copy until `until`, mono_ns(). */
void login_tokens_put(struct login_tokens *t, const char *key, const char *authorization,
                      int64_t until);
/* The registry did not want it. */
void login_tokens_drop(struct login_tokens *t, const char *key);

#endif
