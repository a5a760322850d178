/*
 * seccomp - the filter of a container, ready for the guest.
 *
 * A profile (built in, or a file on the host) is read and compiled here; compiled ones are kept by
 * what went into them. The guest gets the program, which libcrun installs for the container's
 * process and for everything executed in the container later. Threads: any.
 */
#ifndef ASPIS_CRI_SECCOMP_H
#define ASPIS_CRI_SECCOMP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "base/str.h"
#include "cri/seccomp_profile.h"
#include "proto/cri/v1/api.pb-c.h"

struct seccomp_filter {
    uint8_t *program;  /* struct sock_filter[]; NULL: none is wanted. Owned. */
    size_t len;        /* of program, in bytes */
    struct strv flags; /* SECCOMP_FILTER_FLAG_*; none: the OCI runtime's default */
};

/* profile may be NULL; then `path`, CRI's older field ("", "unconfined", "runtime/default",
 * "docker/default", "localhost/<path>"), counts. Errors name the profile's file. */
int seccomp_filter_load(const Runtime__V1__SecurityProfile *profile, const char *path,
                        const struct seccomp_facts *facts, struct seccomp_filter *f,
                        struct err *err);
void seccomp_filter_clear(struct seccomp_filter *f);
#define auto_seccomp_filter __attribute__((cleanup(seccomp_filter_clear)))

/* "6.1.0-56-cloud-amd64" into facts; what is no version counts as 0.0. NULL: the host's kernel. */
void seccomp_set_kernel(struct seccomp_facts *facts, const char *release);

/* Drops the compiled filters. */
void seccomp_forget(void);

#endif
