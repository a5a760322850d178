/*
 * cache - what an ADD was told and answered, kept for the DEL, CHECK and GC that come later,
 * perhaps after a restart.
 *
 * Files and format are libcni's (kind "cniCacheV1" in <dir>/results/<network>-<container>-<ifname>,
 * directory 0700, files 0600, written by rename), so that other tools understand ours and we
 * theirs. What is read is checked like any other outside input. Memory: an entry owns everything in
 * it; starts as {0}. Threads: any; one sandbox's entry is used by one thread at a time (cni.c sees
 * to it).
 */
#ifndef ASPIS_NETPLUGIN_CACHE_H
#define ASPIS_NETPLUGIN_CACHE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"
#include "netplugin/conf.h"

struct cache_entry {
    char *file; /* full path */
    char *network, *container_id, *ifname, *netns;
    struct cni_conf *conf; /* the list as it was at the ADD */
    char *args;            /* CNI_ARGS */
    json_t *caps;          /* capability arguments, an object or NULL */
    json_t *result;        /* of the ADD, an object or NULL */
    bool ours; /* read: written by Aspis, not by another runtime that shares the directory */
};

void cache_entry_clear(struct cache_entry *e);
#define auto_cache_entry __attribute__((cleanup(cache_entry_clear)))

/* Writes e (all but e->file, which is derived); without a result, which is before the ADD, not as
 * far as the disk. */
int cache_write(const char *dir, const struct cache_entry *e, struct err *err);
/* Removes what cache_write() wrote of e. */
int cache_forget(const char *dir, const struct cache_entry *e, struct err *err);
/* Decodes the text of one cache file; e->file stays NULL. *out must be {0}. */
int cache_parse(const char *text, size_t len, struct cache_entry *out, struct err *err);
int cache_read(const char *file, struct cache_entry *out, struct err *err);
/* Missing is fine. */
int cache_remove(const char *file, struct err *err);
/* Removes what a daemon that was killed in cache_write() left. Nobody may be writing it meanwhile.
 */
int cache_remove_unfinished(const char *dir, const char *container_id, const char *ifname,
                            struct err *err);

/* Calls fn with the path of every file that, by its name, belongs to container_id and ifname (both
 * NULL: every file), until fn returns non-zero, which is then returned. A missing directory has no
 * files. */
int cache_each(const char *dir, const char *container_id, const char *ifname,
               int (*fn)(const char *file, void *arg, struct err *err), void *arg, struct err *err);

#endif
