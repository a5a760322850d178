/*
 * reference - the names of images, normalised as Docker does.
 *
 * "busybox" is docker.io/library/busybox:latest. The first component is a registry when it holds a
 * '.', a ':' or an upper-case letter, or is "localhost"; a name on docker.io without a '/' gets
 * "library/"; index.docker.io is docker.io. With both tag and digest the digest decides and the
 * tag is dropped. (OCI distribution-spec 1.1 "Pulling manifests"; shared grammar of Docker's
 * reference package.)
 *
 * Memory: a struct reference owns its strings, until reference_clear(). Threads: any.
 */
#ifndef ASPIS_CRI_IMAGE_REFERENCE_H
#define ASPIS_CRI_IMAGE_REFERENCE_H

#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

struct reference {
    char *registry;   /* "docker.io", "localhost:5000", "[::1]:5000" */
    char *repository; /* "library/busybox" */
    char *tag;        /* NULL when there is a digest */
    char *digest;     /* "sha256:...", or NULL */
};

/* ERR_INVALID with a sentence when `text` is no reference. */
int reference_parse(const char *text, struct reference *out, struct err *err);
void reference_clear(struct reference *r);
#define auto_reference __attribute__((cleanup(reference_clear)))

/* "registry/repository"; the caller's. */
char *reference_name(const struct reference *r);
/* "registry/repository:tag" or "registry/repository@digest"; the caller's. */
char *reference_string(const struct reference *r);
/* "registry/repository@digest" for a digest found out later; the caller's. */
char *reference_with_digest(const struct reference *r, const char *digest);

bool reference_tag_valid(const char *tag);
/* localhost, 127.0.0.0/8 or ::1, with or without a port. */
bool reference_registry_is_loopback(const char *registry);

/* Whether text can be an image id or the start of one: "sha256:" and 1..64 hex digits, or 7..64 hex
 * digits alone. The digits' position is returned in *hex, and whether all 64 are there in *whole.
 */
bool reference_is_id(const char *text, const char **hex, bool *whole);

#endif
