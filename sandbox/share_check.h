/*
 * share_check - looks at a guest's FUSE request before libfuse does.
 *
 * libfuse trusts its peer: it checks neither lengths nor names nor counts, since the kernel made
 * them. Ours come from a guest, so nothing reaches it that this file has not passed: header and
 * body sizes per operation (<linux/fuse.h>, protocol 7.31 to 7.38), names terminated, not empty,
 * without '/' and neither "." nor "..", payload sizes and counts that agree with the message's
 * length. Node ids and handles are not checked here: share_fs looks every one up in its tables.
 *
 * No state, no memory. Threads: any.
 */
#ifndef ASPIS_SANDBOX_SHARE_CHECK_H
#define ASPIS_SANDBOX_SHARE_CHECK_H

#include <stdbool.h>
#include <stddef.h>

enum share_verdict {
    SHARE_PASS,    /* libfuse may see it */
    SHARE_UNKNOWN, /* whole, but not served: answer ENOSYS */
    SHARE_IGNORE,  /* wants no answer and is not needed */
    SHARE_HOSTILE, /* no kernel sends this */
};

/* started: the volume has had its INIT. */
enum share_verdict share_check(const void *message, size_t len, bool started);

#endif
