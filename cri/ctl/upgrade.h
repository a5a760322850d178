/*
 * upgrade - connects to a URL that Exec, Attach or PortForward gave out and asks for SPDY/3.1; then
 * bytes go both ways.
 *
 * libcurl makes the connection, with TLS for https: trusted is what the system trusts, or the file
 * named by SSL_CERT_FILE, as for kubelet. Reading and writing do not wait.
 *
 * Threads: one at a time for each.
 */
#ifndef ASPIS_CRI_CTL_UPGRADE_H
#define ASPIS_CRI_CTL_UPGRADE_H

#include <stddef.h>
#include <sys/types.h>

#include "base/cleanup.h"
#include "base/err.h"

struct upgrade;

/* protocol: the one X-Stream-Protocol-Version that is offered. Waits for the answer; a refusal is
 * an error with what the server said. */
struct upgrade *upgrade_open(const char *url, const char *protocol, struct err *err);
void upgrade_close(struct upgrade *u);
int upgrade_fd(const struct upgrade *u);
/* How many bytes; 0 when there is nothing now (or no room); -1 when the connection is over
 * (UNAVAILABLE). After a read that gave less than was asked for, poll upgrade_fd(). */
ssize_t upgrade_read(struct upgrade *u, void *data, size_t len, struct err *err);
ssize_t upgrade_write(struct upgrade *u, const void *data, size_t len, struct err *err);

DEFINE_AUTO(struct upgrade *, upgrade_close);
#define auto_upgrade __attribute__((cleanup(upgrade_closep)))

#endif
