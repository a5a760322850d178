/*
 * seccomp_profile - a seccomp profile as data: default action, architectures, rules.
 *
 * Profiles come from a file on the host in the OCI runtime spec's form or in Docker's, whose rules
 * may depend on capabilities, architecture and kernel, or are the built-in default
 * (seccomp_default.h). Conditions are decided while a profile is read; what is kept applies.
 * Threads: a profile belongs to one thread at a time.
 */
#ifndef ASPIS_CRI_SECCOMP_PROFILE_H
#define ASPIS_CRI_SECCOMP_PROFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"

#define SECCOMP_ARGS 6

struct seccomp_arg {
    unsigned index;
    int op; /* enum scmp_compare */
    uint64_t value;
    uint64_t value_two; /* the compared value when op is SCMP_CMP_MASKED_EQ */
};

struct seccomp_rule {
    char *name;      /* owned; a system call */
    uint32_t action; /* SCMP_ACT_*, with its errno */
    struct seccomp_arg args[SECCOMP_ARGS];
    size_t n_args; /* all must hold */
};

struct seccomp_profile {
    uint32_t default_action;
    uint32_t *archs; /* SCMP_ARCH_*, owned; none: the machine's own */
    size_t n_archs;
    struct seccomp_rule *rules; /* owned */
    size_t n_rules;
    size_t room;
    struct strv flags; /* SECCOMP_FILTER_FLAG_* */
};

/* What the conditions of rules are about. */
struct seccomp_facts {
    uint64_t caps;          /* the container's, 1 << CAP_* */
    unsigned kernel, patch; /* the version of the kernel it runs on: 6, 1 */
};

/* Reads a profile. INVALID says what is wrong, in the profile's own words. */
int seccomp_profile_parse(const void *json, size_t len, const struct seccomp_facts *facts,
                          struct seccomp_profile *p, struct err *err);
/* Copies the name and the arguments; EXHAUSTED past LIMIT_SECCOMP_RULES. */
int seccomp_profile_add(struct seccomp_profile *p, const char *name, uint32_t action,
                        const struct seccomp_arg *args, size_t n_args, struct err *err);
/* Ignores architectures whose programs this machine cannot run and those that are there. */
void seccomp_profile_add_arch(struct seccomp_profile *p, uint32_t arch);
void seccomp_profile_clear(struct seccomp_profile *p);
#define auto_seccomp_profile __attribute__((cleanup(seccomp_profile_clear)))

#endif
