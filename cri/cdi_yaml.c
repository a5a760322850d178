#include "cri/cdi_yaml.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/str.h"

#define MAX_DEPTH 32
#define MAX_NODES 65536
/* The scanner looks at all open ones for each token. */
#define MAX_OPEN 1024

struct load {
    yaml_document_t doc;
    unsigned nodes;
    struct err *err;
};

static json_t *convert(struct load *l, int at, int depth);

static json_t *number(const char *text, size_t len)
{
    int64_t n;
    const char *digits = text + (text[0] == '-');
    size_t many = len - (size_t)(digits - text);
    if (many == 0 || many > 18 || strspn(digits, "0123456789") != many ||
        (many > 1 && digits[0] == '0') || str_to_i64(text, &n) < 0)
        return NULL;
    return json_integer(n);
}

static json_t *scalar(struct load *l, const yaml_node_t *node)
{
    static const char *const nothing[] = {"", "~", "null", "Null", "NULL"};
    static const char *const yes[] = {"true", "True", "TRUE"};
    static const char *const no[] = {"false", "False", "FALSE"};
    const char *text = (const char *)node->data.scalar.value;
    size_t len = node->data.scalar.length;
    json_t *v = NULL;
    if (node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE && strlen(text) == len) {
        for (size_t i = 0; i < ARRAY_LEN(nothing); i++)
            if (strcmp(text, nothing[i]) == 0)
                return json_null();
        for (size_t i = 0; i < ARRAY_LEN(yes); i++) {
            if (strcmp(text, yes[i]) == 0)
                return json_true();
            if (strcmp(text, no[i]) == 0)
                return json_false();
        }
        v = number(text, len);
    }
    if (v == NULL && strlen(text) == len) /* JSON of ours has no NUL either */
        v = json_stringn(text, len);
    if (v == NULL)
        (void)err_set(l->err, ERR_INVALID, "line %zu: text that is none",
                      node->start_mark.line + 1);
    return v;
}

static json_t *sequence(struct load *l, const yaml_node_t *node, int depth)
{
    json_t *list = json_array();
    for (const yaml_node_item_t *i = node->data.sequence.items.start;
         i < node->data.sequence.items.top; i++) {
        json_t *v = convert(l, *i, depth + 1);
        if (v == NULL) {
            json_decref(list);
            return NULL;
        }
        (void)json_array_append_new(list, v);
    }
    return list;
}

static json_t *mapping(struct load *l, const yaml_node_t *node, int depth)
{
    json_t *object = json_object();
    for (const yaml_node_pair_t *p = node->data.mapping.pairs.start;
         p < node->data.mapping.pairs.top; p++) {
        const yaml_node_t *k = yaml_document_get_node(&l->doc, p->key);
        const char *name =
            k != NULL && k->type == YAML_SCALAR_NODE ? (const char *)k->data.scalar.value : NULL;
        json_t *v = NULL;
        if (name == NULL || strlen(name) != k->data.scalar.length ||
            json_object_get(object, name) != NULL)
            (void)err_set(l->err, ERR_INVALID, "line %zu: a key that is none, or is there twice",
                          node->start_mark.line + 1);
        else if ((v = convert(l, p->value, depth + 1)) != NULL &&
                 json_object_set_new(object, name, v) == 0)
            continue;
        else if (v != NULL)
            (void)err_set(l->err, ERR_INVALID, "line %zu: a key that is no text",
                          k->start_mark.line + 1);
        json_decref(object);
        return NULL;
    }
    return object;
}

static json_t *convert(struct load *l, int at, int depth)
{
    const yaml_node_t *node = yaml_document_get_node(&l->doc, at);
    if (depth > MAX_DEPTH || l->nodes++ > MAX_NODES) {
        (void)err_set(l->err, ERR_EXHAUSTED, "more than %d values, or nested deeper than %d",
                      MAX_NODES, MAX_DEPTH);
        return NULL;
    }
    if (node == NULL) {
        (void)err_set(l->err, ERR_INVALID, "a value that is none");
        return NULL;
    }
    switch (node->type) {
    case YAML_SCALAR_NODE:
        return scalar(l, node);
    case YAML_SEQUENCE_NODE:
        return sequence(l, node, depth);
    case YAML_MAPPING_NODE:
        return mapping(l, node, depth);
    case YAML_NO_NODE:
        break;
    }
    (void)err_set(l->err, ERR_INVALID, "a value that is none");
    return NULL;
}

static int check(const char *text, size_t len, struct err *err)
{
    size_t open = 0;
    for (size_t i = 0; i < len; i++)
        open += text[i] == '[' || text[i] == '{';
    return open <= MAX_OPEN && len <= KiB(256)
               ? 0
               : err_set(err, ERR_EXHAUSTED, "YAML of more than 256 KiB, or %d brackets", MAX_OPEN);
}

static json_t *load(yaml_parser_t *parser, struct err *err)
{
    struct load l = {.err = err};
    json_t *root = NULL;
    if (!yaml_parser_load(parser, &l.doc)) {
        (void)err_set(err, ERR_INVALID, "line %zu: %s", parser->problem_mark.line + 1,
                      parser->problem != NULL ? parser->problem : "no YAML");
        return NULL;
    }
    if (yaml_document_get_root_node(&l.doc) == NULL)
        (void)err_set(err, ERR_INVALID, "it is empty");
    else
        root = convert(&l, 1, 0);
    yaml_document_delete(&l.doc);
    return root;
}

/* Whether there is another document. */
static bool more(yaml_parser_t *parser)
{
    yaml_document_t doc;
    if (!yaml_parser_load(parser, &doc))
        return true;
    bool some = yaml_document_get_root_node(&doc) != NULL;
    yaml_document_delete(&doc);
    return some;
}

json_t *cdi_yaml_load(const char *text, size_t len, struct err *err)
{
    yaml_parser_t parser;
    if (check(text, len, err) < 0)
        return NULL;
    if (!yaml_parser_initialize(&parser)) {
        (void)err_sys(err, ENOMEM, "YAML");
        return NULL;
    }
    yaml_parser_set_input_string(&parser, (const unsigned char *)text, len);
    json_t *root = load(&parser, err);
    if (root != NULL && more(&parser)) {
        json_decref(root);
        root = NULL;
        (void)err_set(err, ERR_INVALID, "more than one document");
    }
    yaml_parser_delete(&parser);
    return root;
}
