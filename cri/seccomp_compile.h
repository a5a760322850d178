/*
 * seccomp_compile - a seccomp profile as the program that the kernel runs.
 *
 * Done on the host: libseccomp takes tens of milliseconds for it in an emulated guest. The program
 * is for the host's architecture, which is the guest's. Threads: any; each call has a libseccomp
 * context of its own.
 */
#ifndef ASPIS_CRI_SECCOMP_COMPILE_H
#define ASPIS_CRI_SECCOMP_COMPILE_H

#include <linux/filter.h>

#include "cri/seccomp_profile.h"

/* *out is the caller's to free. Where calls are denied by default, calls that are newer than
 * everything the profile names fail with ENOSYS, as with runc: a libc that tries them first falls
 * back. Names that no kernel known to libseccomp has are ignored. */
int seccomp_compile(const struct seccomp_profile *p, struct sock_filter **out, size_t *n,
                    struct err *err);

#endif
