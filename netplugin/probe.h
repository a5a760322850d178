/*
 * probe - the current network and whether its plugins are ready, kept fresh by a thread of its own.
 *
 * Loading files is quick, asking plugins (VERSION, STATUS) is not and may hang for the plugin
 * timeout; so a worker thread does both and everybody else reads the last answer. It works when the
 * directory changed, and again when somebody asks for readiness and the last answer is old.
 *
 * Memory: probe_new()/probe_free(). Threads: any; no call waits for a plugin, but for probe_free(),
 * which ends a running one first.
 */
#ifndef ASPIS_NETPLUGIN_PROBE_H
#define ASPIS_NETPLUGIN_PROBE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "netplugin/conf.h"

struct probe;

/* Loads the configuration once before returning; having none is no error. */
struct probe *probe_new(const char *conf_dir, const char *const *bin_dirs, int64_t timeout_ns,
                        struct err *err);
void probe_free(struct probe *p);

/* The files may have changed: load them again, soon. */
void probe_reload(struct probe *p);
/* The list to use for new pods (the caller's reference), or NULL with *err saying why there is
 * none. */
struct cni_conf *probe_conf(struct probe *p, struct err *err);
/* Strings are the caller's; *network may be NULL. */
bool probe_ready(struct probe *p, char **reason, char **message, char **network);
/* JSON text, the caller's. */
char *probe_info(struct probe *p);

#endif
