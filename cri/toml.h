/*
 * toml - a strict reader of the part of TOML 1.0 that our configuration and hosts.toml use.
 *
 * Understood: comments; tables with bare, quoted and dotted names ([host."https://x".header]);
 * dotted keys; basic and literal strings on one line; decimal, hex, octal and binary integers;
 * booleans; arrays (over several lines, trailing comma) of these and of arrays. Everything else
 * (floats, dates, multi-line strings, inline tables, arrays of tables) is refused by name, and so
 * is what TOML forbids: keys and tables defined twice, control characters, invalid UTF-8.
 *
 * A document is a flat list of tables in the order of their first mention; the first is the root
 * table with an empty path. [a.b] gives a table with the path {"a", "b"}; [a] is only in the list
 * when the text names it or gives it a dotted key. Keys are in file order.
 *
 * Errors are ERR_INVALID with "line N: ...". Memory: the document owns everything it shows, until
 * toml_free(). Threads: a parsed document is read-only, so any.
 */
#ifndef ASPIS_CRI_TOML_H
#define ASPIS_CRI_TOML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/err.h"
#include "base/str.h"

enum toml_type { TOML_STRING, TOML_INTEGER, TOML_BOOL, TOML_ARRAY };

struct toml_value {
    enum toml_type type;
    int line;                 /* where the value starts, from 1 */
    char *str;                /* TOML_STRING; never holds a NUL byte before its end */
    int64_t num;              /* TOML_INTEGER, and 0 or 1 of TOML_BOOL */
    struct toml_value *items; /* TOML_ARRAY; all of one type */
    size_t n_items;
};

struct toml_key {
    char *name;
    int line;
    struct toml_value value;
};

struct toml_table {
    struct strv path;
    int line; /* of its header; of the first mention when it has none */
    bool has_header;
    struct toml_key *keys;
    size_t n_keys;
};

struct toml_doc {
    struct toml_table *tables; /* n_tables >= 1; tables[0] is the root */
    size_t n_tables;
};

/* len bytes of text, at most LIMIT_TOML. *doc is the caller's. */
int toml_parse(const char *text, size_t len, struct toml_doc **doc, struct err *err);
void toml_free(struct toml_doc *doc);
DEFINE_AUTO(struct toml_doc *, toml_free);
#define auto_toml __attribute__((cleanup(toml_freep)))

/* The table with this path (n names), or NULL. */
const struct toml_table *toml_find(const struct toml_doc *doc, const char *const *path, size_t n);
/* The same for a path of one name; NULL as name gives the root. */
const struct toml_table *toml_section(const struct toml_doc *doc, const char *name);

/* The value of a key, or NULL. `table` may be NULL. */
const struct toml_value *toml_get(const struct toml_table *table, const char *key);

/* Typed: 1 and *out set; 0 when the key is absent (*out untouched); -1 when the value has another
 * type ("line N: key "x" must be a string"). `table` may be NULL: absent. */
int toml_get_string(const struct toml_table *table, const char *key, const char **out,
                    struct err *err);
int toml_get_int(const struct toml_table *table, const char *key, int64_t *out, struct err *err);
int toml_get_bool(const struct toml_table *table, const char *key, bool *out, struct err *err);
/* An array of strings, appended to *out. */
int toml_get_strings(const struct toml_table *table, const char *key, struct strv *out,
                     struct err *err);

const char *toml_type_name(enum toml_type type); /* "a string", "an integer", ... */

#endif
