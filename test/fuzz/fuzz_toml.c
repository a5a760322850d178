/* TOML text: a document that is accepted must be walkable and findable. */
#include <stdlib.h>
#include <string.h>

#include "cri/toml.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t walk(const struct toml_value *v)
{
    size_t n = v->type == TOML_STRING ? strlen(v->str) : 1;

    for (size_t i = 0; i < v->n_items; i++)
        n += walk(&v->items[i]);
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    auto_err struct err err = ERR_INIT;
    auto_toml struct toml_doc *doc = NULL;
    size_t n = 0;

    if (toml_parse((const char *)data, size, &doc, &err) < 0) {
        if (err.code != ERR_INVALID || *err_msg(&err) == '\0')
            abort();
        return 0;
    }
    for (size_t i = 0; i < doc->n_tables; i++) {
        const struct toml_table *t = &doc->tables[i];

        if (toml_find(doc, (const char *const *)t->path.v, t->path.n) != t)
            abort(); /* two tables of one name */
        for (size_t k = 0; k < t->n_keys; k++) {
            if (toml_get(t, t->keys[k].name) != &t->keys[k].value)
                abort();
            n += walk(&t->keys[k].value);
        }
    }
    return n == SIZE_MAX;
}
