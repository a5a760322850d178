/*
 * exec - runs one CNI plugin: finds the program, feeds it, bounds it, and reads its answer.
 *
 * A plugin gets our environment with CNI_* of our making, its configuration on stdin, a process
 * group of its own that is killed at the deadline, and no descriptors but those and one
 * that only says that it runs. Its output is bounded
 * and its words are cleaned before they enter an error. Threads: any; the call blocks.
 */
#ifndef ASPIS_NETPLUGIN_EXEC_H
#define ASPIS_NETPLUGIN_EXEC_H

#include <jansson.h>
#include <stdint.h>

#include "base/cancel.h"
#include "base/err.h"

struct cni_exec {
    const char *command;      /* "ADD", ... */
    const char *container_id; /* NULL leaves the variable out, for these four */
    const char *netns;
    const char *ifname;
    const char *args;            /* "K=V;K=V" */
    const char *const *bin_dirs; /* NULL-terminated */
    int64_t timeout_ns;          /* of this call, beside the token's own deadline */
    int keep_fd;                 /* 0 or -1: none; else the plugin holds it open (running.h) */
};

/* The program of plugin `type` in the first directory that has it; the caller's. NULL with *err. */
char *cni_exec_find(const char *type, const char *const *bin_dirs, struct err *err);

/* Runs plugin `type` with `conf` on stdin. *reply, when not NULL, gets the object it printed (the
 * caller's), which it then must have printed. *code (may be NULL) is the CNI error code when the
 * plugin gave one, else 0. */
int cni_exec_run(const struct cni_exec *x, const char *type, const json_t *conf, json_t **reply,
                 int *code, struct cancel *cancel, struct err *err);

#endif
