/*
 * bundle - the named files of an image archive, whether it is a directory or an uncompressed tar.
 *
 * Of a tar only the headers are read, once, to learn where each member is (ustar, PAX and GNU
 * long names; POSIX.1-2017 pax, "ustar Interchange Format"). Member names, sizes and link targets
 * are an attacker's: everything is bounded and checked against the file's size, and names lead
 * nowhere but into the bundle.
 *
 * Threads: one at a time for open and close, any for the rest.
 */
#ifndef ASPIS_CRI_IMAGE_BUNDLE_H
#define ASPIS_CRI_IMAGE_BUNDLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/err.h"

struct bundle;

struct bundle *bundle_open(const char *path, struct err *err);
void bundle_close(struct bundle *b);
DEFINE_AUTO(struct bundle *, bundle_close);
#define auto_bundle __attribute__((cleanup(bundle_closep)))

struct bundle_file {
    int fd; /* the caller's; its own position does not matter, read it with pread(2) */
    uint64_t offset, size;
};

bool bundle_has(const struct bundle *b, const char *name);
/* NOT_FOUND when there is no regular file of that name. */
int bundle_file(const struct bundle *b, const char *name, struct bundle_file *out, struct err *err);
/* Whole, NUL-terminated, at most max bytes; the caller's. */
char *bundle_read(const struct bundle *b, const char *name, size_t max, size_t *len,
                  struct err *err);

#endif
