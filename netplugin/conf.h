/*
 * conf - CNI network lists: read, checked, and chosen from the configuration directory.
 *
 * A list is immutable once loaded and reference counted, so that a reload never pulls it from under
 * a running chain. Its `plugins` tree is shared between threads: read it, or copy it with
 * json_deep_copy(), but change nothing and take no references. Threads: any.
 */
#ifndef ASPIS_NETPLUGIN_CONF_H
#define ASPIS_NETPLUGIN_CONF_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/cleanup.h"
#include "base/err.h"

struct cni_conf {
    char *file;          /* where it came from; NULL for one out of the cache */
    char *name;          /* of the network */
    const char *version; /* the highest of those it offers that we know */
    bool disable_check, disable_gc;
    json_t *plugins; /* array of objects with a valid `type`, at least one */
    char *text;      /* the whole list as JSON; a single-plugin file is wrapped into a list */
    int refs;        /* atomic */
};

/* From the text of a list (is_list) or of a single plugin. `file` may be NULL; plugin files of the
 * directory <dir of file>/<network name>/ are taken in unless the list says loadOnlyInlinedPlugins.
 * NULL with *err. */
struct cni_conf *cni_conf_parse(const char *text, size_t len, bool is_list, const char *file,
                                struct err *err);
struct cni_conf *cni_conf_ref(struct cni_conf *c);
void cni_conf_unref(struct cni_conf *c);
DEFINE_AUTO(struct cni_conf *, cni_conf_unref);
#define auto_cni_conf __attribute__((cleanup(cni_conf_unrefp)))

/* The first valid network of `dir`, files sorted by name as bytes (.conflist, .conf, .json; the
 * rest is ignored). Files that are broken are passed over; *problem (the caller's; NULL when none)
 * tells of the first such, also when a later file was good. NULL when nothing usable is there: then
 * *err says so. */
struct cni_conf *cni_conf_load(const char *dir, char **problem, struct err *err);

/* Network names and container ids: an alphanumeric, then alphanumerics and "_.-". */
bool cni_name_ok(const char *name);

#endif
