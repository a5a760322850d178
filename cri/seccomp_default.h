/*
 * seccomp_default - the profile RuntimeDefault.
 *
 * Its effect is that of Docker's and containerd's default profile: everything an ordinary program
 * needs is allowed, what reaches around namespaces or into the kernel is not, and system calls that
 * a capability is about come with that capability. Denied calls fail with EPERM, clone3 with
 * ENOSYS, so that libc falls back to clone, whose flags a filter can see. Threads: any.
 */
#ifndef ASPIS_CRI_SECCOMP_DEFAULT_H
#define ASPIS_CRI_SECCOMP_DEFAULT_H

#include "cri/seccomp_profile.h"

int seccomp_default_make(const struct seccomp_facts *facts, struct seccomp_profile *p,
                         struct err *err);

#endif
