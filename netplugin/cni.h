/*
 * cni - the pod network: CNI configuration, plugin chains, result cache.
 *
 * One `struct cni` per daemon. It loads the first valid network list of the configuration
 * directory, watches the directory (inotify on the given loop) and reloads; a reload never touches
 * attachments that exist, whose ADD-time configuration comes from the cache. Behaviour and formats:
 * shared/facts/cni.md.
 *
 * Threads: any; operations on one sandbox are serialised, those on different ones run in parallel,
 * GC excludes all. Calls block (plugins are programs) and honour `cancel`.
 */
#ifndef ASPIS_NETPLUGIN_CNI_H
#define ASPIS_NETPLUGIN_CNI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cancel.h"
#include "base/err.h"
#include "base/loop.h"
#include "netplugin/netinfo.h"

struct cni;

struct cni_options {
    const char *conf_dir;        /* /etc/cni/net.d */
    const char *const *bin_dirs; /* NULL-terminated: /opt/cni/bin, /usr/lib/cni */
    const char *cache_dir;       /* /var/lib/cni */
    int64_t timeout_ns;          /* of one plugin call */
};

/* Runs on without any configuration; only a broken environment fails. The strings are copied. */
struct cni *cni_new(const struct cni_options *opts, struct loop *loop, struct err *err);
/* No call may be under way. The loop, running or not, must still be there. */
void cni_free(struct cni *c);

/* Is a network configured and does its STATUS (cached) say yes? Never blocks on a plugin. *reason
 * and *message (owned by the caller) explain a "no"; *network (owned, may be NULL) names the
 * network. */
bool cni_ready(struct cni *c, char **reason, char **message, char **network);

struct cni_port_mapping {
    const char *protocol; /* "tcp", "udp", "sctp" */
    int32_t container_port, host_port;
    const char *host_ip;
};

struct cni_attachment {
    const char *sandbox_id;
    const char *netns;  /* path; may be "" for DEL */
    const char *ifname; /* "eth0" */
    const char *pod_name, *pod_namespace, *pod_uid;
    const struct cni_port_mapping *ports;
    size_t n_ports;
    uint64_t ingress_bps, egress_bps; /* bits per second, 0: none */
    const char *const *dns_servers, *const *dns_searches,
                                        *const *dns_options; /* NULL-terminated or NULL */
    const char *cgroup_path;
    const char *const *annotations; /* key, value, key, value, ..., NULL; or NULL */
};

/* ADD through the chain, writes the cache, replaces *out ({0} or filled) with the ips of the
 * result, at least one. On failure DEL has been run (its own failure is in the
 * text; cni_del() may try again) and *out is as it was. */
int cni_add(struct cni *c, const struct cni_attachment *a, struct netinfo *out,
            struct cancel *cancel, struct err *err);
/* DEL with the cached configuration (with the current one when nothing is cached; success when
 * there is neither). Repeatable. */
int cni_del(struct cni *c, const struct cni_attachment *a, struct cancel *cancel, struct err *err);
int cni_check(struct cni *c, const struct cni_attachment *a, struct cancel *cancel,
              struct err *err);
/* DELs cached attachments of our network that we made and whose sandbox id is not in `ids`, then
 * GC. Attachments that another runtime cached in the same directory count as valid. */
int cni_gc(struct cni *c, const char *const *ids, size_t n_ids, struct cancel *cancel,
           struct err *err);
/* Plugin versions, configuration file, last load error: for verbose Status. JSON text, owned by the
 * caller. */
char *cni_info(struct cni *c);

#endif
