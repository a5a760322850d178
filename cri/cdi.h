/*
 * cdi - Container Device Interface: what a device's name ("vendor.com/class=name") stands for, by
 * the JSON files in /etc/cdi and /var/run/cdi (CDI specification 0.8; of one name in both, the
 * latter counts).
 *
 * Device nodes and environment are taken. Mounts, hooks and the rest change a host's container and
 * are refused by name. YAML files are not read. Threads: any; nothing is kept.
 */
#ifndef ASPIS_CRI_CDI_H
#define ASPIS_CRI_CDI_H

#include <stddef.h>

#include "base/err.h"
#include "base/str.h"

struct cdi_node {
    char *path;        /* in the container */
    char *host_path;   /* where it is otherwise */
    char *permissions; /* "rwm" unless the file says less */
};

struct cdi_edits {
    struct strv env; /* "KEY=value" */
    struct cdi_node *nodes;
    size_t n_nodes;
};

/* Adds what all the names stand for. dirs: NULL-terminated, the most important last; NULL: the
 * standard ones. INVALID and NOT_FOUND name the device and the file. */
int cdi_resolve(const char *const *dirs, const char *const *names, size_t n,
                struct cdi_edits *edits, struct err *err);
void cdi_edits_clear(struct cdi_edits *edits);
#define auto_cdi_edits __attribute__((cleanup(cdi_edits_clear)))

/* One file's text: adds what `name` (of `kind`, "vendor.com/class") stands for. 1: found; 0: the
 * file is about something else. */
int cdi_parse(const char *json, size_t len, const char *kind, const char *name,
              struct cdi_edits *edits, struct err *err);

#endif
