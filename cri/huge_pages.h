/*
 * huge_pages - limits on huge pages (LinuxContainerResources.hugepage_limits).
 *
 * In a VM they are the guest's: it reserves pages of 2 MiB for the sum of its containers' limits
 * and bounds each container's by the hugetlb controller. On the host they are the host's, which
 * reserves them itself, and only the bound is set. kubelet sends 0 for each size the host has: such
 * a bound is set where there is something to bound.
 *
 * Pure, but for looking which sizes the host has. Threads: any.
 */
#ifndef ASPIS_CRI_HUGE_PAGES_H
#define ASPIS_CRI_HUGE_PAGES_H

#include <jansson.h>
#include <stdint.h>

#include "base/err.h"
#include "base/str.h"
#include "proto/cri/v1/api.pb-c.h"
#include "sandbox/machine.h"

/* INVALID: a limit is malformed, or no multiple of its pages. */
int huge_pages_check(const Runtime__V1__LinuxContainerResources *r, struct err *err);
/* UNIMPLEMENTED, PRECONDITION: a size that this backend has not. */
int huge_pages_check_backend(const Runtime__V1__LinuxContainerResources *r, enum backend backend,
                             struct err *err);
/* What the guest has to reserve for it; r may be NULL. */
uint64_t huge_pages_bytes(const Runtime__V1__LinuxContainerResources *r);
/* `by` over `to`, size by size. */
void huge_pages_merge(Runtime__V1__LinuxContainerResources *to,
                      const Runtime__V1__LinuxContainerResources *by);
/* linux.resources.hugepageLimits, the caller's; NULL: none. */
json_t *huge_pages_spec(const Runtime__V1__LinuxContainerResources *r, enum backend backend);
/* Appends files of cgroup v2 and their values. */
void huge_pages_files(const Runtime__V1__LinuxContainerResources *r, enum backend backend,
                      struct strv *keys, struct strv *values);

#endif
