/*
 * identity - what makes this guest one particular pod and not a copy of another: clock, entropy,
 * names, sysctls.
 *
 * Clones of one template wake up with the same random state and the template's time (shared facts:
 * six of six gave the same "random" UUID), so all of this is set before anything of the pod runs.
 *
 * Everything is checked here, whoever sent it. Threads: the loop's.
 */
#ifndef ASPIS_AGENT_IDENTITY_H
#define ASPIS_AGENT_IDENTITY_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

#define IDENTITY_ENTROPY_MIN 32
#define IDENTITY_ENTROPY_MAX 512
#define IDENTITY_MACHINE_ID 16

/* 1..64 characters (the kernel's bound) of letters, digits, '-' and '.'. */
int identity_check_hostname(const char *hostname, struct err *err);
/* Path below /proc/sys of a sysctl's name: "net.ipv4.ip_forward", and as sysctl(8) has it, with '/'
 * and '.' exchanged when a '/' comes first ("net/ipv4/conf/eth0.1/forwarding"). NULL with *err for
 * anything that is no such name. The caller frees it. */
char *identity_sysctl_path(const char *key, struct err *err);

/* CLOCK_REALTIME, in ns since 1970. */
int identity_set_clock(uint64_t wall_clock_ns, struct err *err);
/* Credits the bytes as entropy and makes the generator use them at once (random(4)). */
int identity_seed(const uint8_t *entropy, size_t len, struct err *err);
int identity_set_hostname(const char *hostname, struct err *err);
/* Writes id as the text that machine-id(5) describes. */
int identity_write_machine_id(const char *path, const uint8_t id[IDENTITY_MACHINE_ID],
                              struct err *err);
int identity_set_sysctl(const char *key, const char *value, struct err *err);

#endif
