/*
 * telemetry_http - GET /metrics on a unix socket that only root can open.
 *
 * libmicrohttpd serves it on a thread of its own; nothing happens while nobody asks. What is told
 * beside the counters of telemetry.h (sandboxes, containers, the process) is looked up then.
 */
#ifndef ASPIS_CRI_TELEMETRY_HTTP_H
#define ASPIS_CRI_TELEMETRY_HTTP_H

#include "base/err.h"

struct runtime;
struct telemetry_server;

#define TELEMETRY_SOCKET "metrics.sock" /* in the run root */

/* Replaces a left-over socket. runtime must outlive the server. */
struct telemetry_server *telemetry_server_start(const char *path, struct runtime *runtime,
                                                struct err *err);
/* NULL is fine. */
void telemetry_server_stop(struct telemetry_server *s);

#endif
