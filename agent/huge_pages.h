/*
 * huge_pages - the guest's huge pages of 2 MiB: reserved out of its memory when the host asks, and
 * mounted as hugetlbfs for the volumes that are made of them.
 *
 * Reserving is the kernel's work (it moves what is in the way), which the agent waits for: 512
 * pages of memory that nobody uses yet take an emulated guest a tenth of a second. Pages in use
 * when they are to go stay until they are freed. No state but the caller's; single-threaded.
 */
#ifndef ASPIS_AGENT_HUGE_PAGES_H
#define ASPIS_AGENT_HUGE_PAGES_H

#include <stdint.h>

#include "base/err.h"
#include "proto/agent.pb-c.h"

/* *ours: bytes reserved by earlier calls, which are beside those that a sysctl reserved; updated.
 * Returns what there is of `want`. */
uint64_t huge_pages_reserve(uint64_t *ours, uint64_t want);

/* The volume's hugetlbfs is mounted below `dir`, once. INVALID: its name is none. */
int huge_pages_mount(const char *dir, const Aspis__Agent__V1__HugeVolume *v, struct err *err);
/* Where; the caller's to free. */
char *huge_pages_path(const char *dir, const Aspis__Agent__V1__HugeVolume *v);

/* --- for tests --- */
/* The same with another directory in the place of the kernel's for this size of pages. */
uint64_t huge_pages_reserve_in(const char *sys, uint64_t *ours, uint64_t want);

#endif
