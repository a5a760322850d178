/*
 * json - the few jansson habits this folder shares.
 *
 * Trees are reference counted by jansson; a tree belongs to one thread at a time, and what several
 * threads read (a loaded configuration) is copied by each before use.
 */
#ifndef ASPIS_NETPLUGIN_JSON_H
#define ASPIS_NETPLUGIN_JSON_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"

static inline void json_cleanup(json_t **j)
{
    json_decref(*j);
}
#define auto_json __attribute__((cleanup(json_cleanup)))

/* One JSON object of at most max bytes and nothing after it but blanks. The last of duplicate keys
 * wins, as in Go, whose programs are our peers. The tree is the caller's; NULL with *err otherwise.
 */
json_t *json_parse(const char *text, size_t len, size_t max, struct err *err);

/* The string member, or NULL when absent or not a string. */
static inline const char *json_get_string(const json_t *o, const char *key)
{
    return json_string_value(json_object_get(o, key));
}

/* v, the member `key`, is an array of at most max entries; or else -1 with *err. */
int json_check_array(const json_t *v, const char *key, size_t max, struct err *err);
/* v, the member `key`, as a 32-bit number; or else -1 with *err. */
int json_check_u32(const json_t *v, const char *key, uint32_t *out, struct err *err);

#endif
