/*
 * client_cert - the certificates that we can show to a registry.
 *
 * hosts.toml may name several pairs for one host; which one to show is known when the server has
 * named the authorities it trusts (RFC 8446 4.2.4, RFC 5246 7.4.4): the first pair that one of them
 * has issued, else the first. libcurl itself can be given one pair only.
 *
 * Threads: any; what is loaded belongs to the SSL_CTX and goes with it.
 */
#ifndef ASPIS_CRI_IMAGE_CLIENT_CERT_H
#define ASPIS_CRI_IMAGE_CLIENT_CERT_H

#include "base/err.h"
#include "base/str.h"

/* files: certificate (with its chain), key, certificate, key, ...; PEM, a key without password.
 * ssl_ctx is an SSL_CTX. Errors name the file. */
int client_certs_use(void *ssl_ctx, const struct strv *files, struct err *err);

#endif
