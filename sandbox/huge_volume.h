/*
 * huge_volume - volumes of huge pages: what kubelet mounts for an emptyDir of medium HugePages.
 *
 * Such a volume is a hugetlbfs on the host, whose pages nobody can hand to a guest, and which is
 * empty. So the guest mounts a hugetlbfs of its own for it, with the owner and mode that the host's
 * has, and pages of the guest's reserve. What the host has in it cannot be shown: then it is
 * refused.
 *
 * No state; any thread.
 */
#ifndef ASPIS_SANDBOX_HUGE_VOLUME_H
#define ASPIS_SANDBOX_HUGE_VOLUME_H

#include <stddef.h>

#include "base/err.h"
#include "sandbox/machine.h"

#define HUGE_VOLUME_PAGE MiB(2) /* the only size that guests have */

/* 1: it is one, and everything that is filled in is; 0: it is none, or missing. index: of the
 * volume in its container. UNIMPLEMENTED, PRECONDITION: it is one that a VM cannot have. */
int huge_volume_find(struct machine_volume *v, size_t index, struct err *err);

#endif
