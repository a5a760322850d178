/*
 * userns_probe - can pods on this host have user namespaces?
 *
 * Tried, not guessed from the kernel's version: a user namespace is made, the image store's file
 * system and a tmpfs (in which kubelet keeps Secrets and tokens) are mounted with its ids, and an
 * overlay is mounted over that. All in a mount namespace of a thread's own, so nothing is left and
 * nothing needs cleaning up.
 *
 * Threads: any. Takes a few milliseconds. Needs root.
 */
#ifndef ASPIS_SANDBOX_USERNS_PROBE_H
#define ASPIS_SANDBOX_USERNS_PROBE_H

#include "base/err.h"

/* images: the image store's directory; scratch: any other, or one that holds it. 0, or -1 with one
 * sentence that says what this host cannot do. */
int userns_probe(const char *images, const char *scratch, struct err *err);

#endif
