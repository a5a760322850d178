/*
 * registry - the distribution API for one repository: tag to digest, manifests, blobs.
 *
 * Goes through the hosts of hosts.h in order: a host that is unreachable, fails or does not have
 * the thing gives way to the next; the last one's error counts. Redirects are followed by hand so
 * that credentials, own headers and client certificates never reach another origin and TLS is never
 * left. 5xx, 408 and 429 (with Retry-After) are tried again a few times; a broken blob goes on
 * where it stopped. (distribution-spec 1.1.)
 *
 * Errors: NOT_FOUND, UNAUTHENTICATED, DENIED, UNAVAILABLE, DATA_LOSS (digest or size), EXHAUSTED (a
 * bound), INVALID (hosts.toml, credentials), CANCELLED, DEADLINE, or the sink's own. Threads: one
 * struct registry serves several threads, each with an http_client of its own.
 */
#ifndef ASPIS_CRI_IMAGE_REGISTRY_H
#define ASPIS_CRI_IMAGE_REGISTRY_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/err.h"
#include "cri/image/digest.h"
#include "cri/image/http.h"
#include "cri/image/image.h"
#include "cri/image/login_tokens.h"
#include "cri/image/reference.h"

struct registry;

/* Copies what it needs of ref and auth; tokens of earlier pulls are taken from `tokens` and new
 * ones put there. */
struct registry *registry_new(const struct image_options *opts, struct login_tokens *tokens,
                              const struct reference *ref, const struct image_auth *auth,
                              struct err *err);
void registry_free(struct registry *r); /* wipes the credentials */
DEFINE_AUTO(struct registry *, registry_free);
#define auto_registry __attribute__((cleanup(registry_freep)))

/* A manifest or index as it came; digest is that of the bytes. Starts as {0}. */
struct registry_document {
    struct buf body;
    char *content_type;
    char digest[DIGEST_MAX];
};
void registry_document_clear(struct registry_document *d);
#define auto_document __attribute__((cleanup(registry_document_clear)))

/* The digest that a tag stands for now. When the registry only tells by sending the document, *doc
 * is filled as well (else doc->body stays empty). */
int registry_resolve(struct registry *r, struct http_client *http, const char *tag,
                     struct cancel *cancel, struct registry_document *doc, struct err *err);
int registry_manifest(struct registry *r, struct http_client *http, const char *digest,
                      struct cancel *cancel, struct registry_document *doc, struct err *err);

typedef int (*registry_sink)(void *arg, const void *data, size_t len, struct err *err);
/* Streams a blob of exactly `size` bytes into the sink and checks its digest at the end; when this
 * fails the sink has got bytes that must not be used. */
int registry_blob(struct registry *r, struct http_client *http, const char *digest, uint64_t size,
                  registry_sink sink, void *arg, struct cancel *cancel, struct err *err);

#endif
