/*
 * chain - one CNI operation over all plugins of a network list.
 *
 * Knows the protocol: order, what each verb is fed (name, cniVersion, prevResult, runtimeConfig,
 * the GC list), and what a failure means. Keeps no state: cache, serialisation and readiness are
 * cni.c's. Threads: any; calls block.
 */
#ifndef ASPIS_NETPLUGIN_CHAIN_H
#define ASPIS_NETPLUGIN_CHAIN_H

#include <jansson.h>
#include <stdint.h>

#include "base/cancel.h"
#include "base/err.h"
#include "netplugin/conf.h"

struct chain {
    const struct cni_conf *conf;
    const char *container_id, *netns, *ifname; /* NULL for the verbs without an attachment */
    const char *args;                          /* CNI_ARGS */
    const json_t
        *caps; /* capability arguments we hold a value for; each plugin gets what it declared */
    const char *const *bin_dirs;
    int64_t timeout_ns; /* of one plugin */
    int keep_fd;        /* as in struct cni_exec */
};

/* *result: the last plugin's answer, with cniVersion set (the caller's). A failure leaves earlier
 * plugins' work in place: run chain_undo() with *n_done, the number of plugins that succeeded. */
int chain_add(const struct chain *c, json_t **result, size_t *n_done, struct cancel *cancel,
              struct err *err);
/* Plugins in reverse; stops at the first failure, as libcni does: what stands earlier in the list
 * may not be taken away (an address, say) while what stands later still refers to it (a port
 * mapping). prev may be NULL. */
int chain_del(const struct chain *c, const json_t *prev, struct cancel *cancel, struct err *err);
/* DEL after a failed ADD: a failure of a plugin that never got its ADD done stops nothing, but is
 * returned. */
int chain_undo(const struct chain *c, size_t n_done, struct cancel *cancel, struct err *err);
/* prev is the result of the ADD. Lists older than 0.4.0 have no CHECK: UNIMPLEMENTED. */
int chain_check(const struct chain *c, const json_t *prev, struct cancel *cancel, struct err *err);
/* attachments: [{containerID, ifname}] that are to stay. All plugins run; the first failure is
 * returned. */
int chain_gc(const struct chain *c, const json_t *attachments, struct cancel *cancel,
             struct err *err);
/* 0 when every plugin can take an ADD. */
int chain_status(const struct chain *c, struct cancel *cancel, struct err *err);
/* Asks every plugin for the versions it speaks; fails when one does not speak the list's. *info,
 * when not NULL, gets [{type, path, versions}] (the caller's), also on failure. */
int chain_versions(const struct chain *c, json_t **info, struct cancel *cancel, struct err *err);

#endif
