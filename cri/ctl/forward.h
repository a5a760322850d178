/*
 * forward - one TCP connection of this machine led to a port of a pod.
 *
 * It has a streaming connection of its own: these have no flow control per stream, so that one
 * reader who does not read would stop all others of the same connection.
 *
 * Threads: any; waits until the connection is over.
 */
#ifndef ASPIS_CRI_CTL_FORWARD_H
#define ASPIS_CRI_CTL_FORWARD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/cancel.h"
#include "base/err.h"

/* "8080:80", "8080" (the same on both sides), ":80" and "0:80" (any free one). */
struct forward_ports {
    uint16_t local, remote;
};
int forward_parse(const char *text, struct forward_ports *out, struct err *err);

/* Moves bytes between fd, which stays the caller's, and the port until both ends have ended. -1
 * with *err when the pod refused or a connection broke: then fd is to be reset, not closed.
 * CANCELLED: the token, or the local side broke off. */
int forward_run(int fd, const char *url, uint16_t port, struct cancel *stop, struct err *err);

#endif
