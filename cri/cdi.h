/*
 * cdi - Container Device Interface: what a device's name ("vendor.com/class=name") stands for, by
 * the JSON and YAML files in /etc/cdi and /var/run/cdi (CDI specification 0.8; of one name in both,
 * the latter counts).
 *
 * Taken are device nodes, environment, mounts, additional groups, and hooks of the kind
 * startContainer, whose programs are the container's own. Hooks of other kinds run programs of the
 * host, which a VM cannot, and which an agent on the host does not see; those, Intel's RDT and
 * network devices are refused by name. Threads: any; nothing is kept.
 */
#ifndef ASPIS_CRI_CDI_H
#define ASPIS_CRI_CDI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/str.h"

struct cdi_node {
    char *path;        /* in the container */
    char *host_path;   /* where it is otherwise */
    char *permissions; /* "rwm" unless the file says less */
};

struct cdi_mount {
    char *host_path, *container_path;
    struct strv options; /* of those of `mount` that make sense for a bind mount */
};

/* Run in the container before its command. */
struct cdi_hook {
    char *path;
    struct strv args, env;
    int64_t timeout; /* seconds; 0: none */
};

struct cdi_edits {
    struct strv env; /* "KEY=value" */
    struct cdi_node *nodes;
    size_t n_nodes;
    struct cdi_mount *mounts;
    size_t n_mounts;
    struct cdi_hook *hooks;
    size_t n_hooks;
    uint32_t *gids;
    size_t n_gids;
};

/* Adds what all the names stand for. dirs: NULL-terminated, the most important last; NULL: the
 * standard ones. INVALID and NOT_FOUND name the device and the file. */
int cdi_resolve(const char *const *dirs, const char *const *names, size_t n,
                struct cdi_edits *edits, struct err *err);
void cdi_edits_clear(struct cdi_edits *edits);
#define auto_cdi_edits __attribute__((cleanup(cdi_edits_clear)))

/* One file's text: adds what `name` (of `kind`, "vendor.com/class") stands for. 1: found; 0: the
 * file is about something else. */
int cdi_parse(const char *text, size_t len, bool yaml, const char *kind, const char *name,
              struct cdi_edits *edits, struct err *err);

#endif
