/*
 * share_host - what the file server asks of the host's files beside plain system calls. Part of the
 * program aspis-share only.
 *
 * Threads: one.
 */
#ifndef ASPIS_SANDBOX_SHARE_HOST_H
#define ASPIS_SANDBOX_SHARE_HOST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "sandbox/share_state.h"

/* How a file that a guest opens with `flags` is opened: its kernel has checked permissions and does
 * direct I/O in its own way. */
int share_host_flags(int flags);
/* What a name leads to; nothing is as good as what cannot be seen. */
struct file_id share_host_id(int dir, const char *name);
bool share_host_same(struct file_id a, struct file_id b);
/* Is it a link with that target? */
bool share_host_leads_to(int dir, const char *name, const char *target);
/* How many of these bytes were appended to a file that had `before` bytes. fd: may be for writing
 * only. */
size_t share_host_appended(int fd, uint64_t before, const char *bytes, size_t len);

#endif
