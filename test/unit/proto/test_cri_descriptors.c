/* The compiled CRI descriptors against test/data/cri-v1-fields.csv, in both directions: what the
 * list has must be compiled in just so, and what is compiled in must be in the list. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/str.h"
#include "proto/cri/v1/api.pb-c.h"

#define COLUMNS 7
#define PACKAGE "runtime.v1."

/* Both sides become sorted lists of lines like the file's; a difference is a line that only one
 * has. */
static struct strv listed, compiled;
/* Message and enum types already seen while walking the descriptors. */
static struct strv seen;

static bool first_time(const char *name)
{
    for (size_t i = 0; i < seen.n; i++)
        if (strcmp(seen.v[i], name) == 0)
            return false;
    strv_add(&seen, name);
    return true;
}

/* "runtime.v1.SecurityProfile.ProfileType" -> "SecurityProfile.ProfileType". */
static const char *local(const char *name)
{
    assert_true(str_starts(name, PACKAGE));
    return name + strlen(PACKAGE);
}

static void walk_enum(const ProtobufCEnumDescriptor *e)
{
    if (!first_time(e->name))
        return;
    for (unsigned i = 0; i < e->n_values; i++)
        strv_addf(&compiled, "enum-value,%s,%s,%d,,,", local(e->name), e->values[i].name,
                  e->values[i].value);
}

static void walk_message(const ProtobufCMessageDescriptor *m);

/* protoc-c makes a message XEntry {key = 1, value = 2} of a map; tells whether f is one. */
static bool is_map(const ProtobufCMessageDescriptor *m, const ProtobufCFieldDescriptor *f)
{
    if (f->label != PROTOBUF_C_LABEL_REPEATED || f->type != PROTOBUF_C_TYPE_MESSAGE)
        return false;
    const ProtobufCMessageDescriptor *e = f->descriptor;
    return strncmp(e->name, m->name, strlen(m->name)) == 0 && str_ends(e->name, "Entry") &&
           e->name[strlen(m->name)] == '.' && e->n_fields == 2 &&
           strcmp(e->fields[0].name, "key") == 0 && e->fields[0].id == 1 &&
           e->fields[0].type == PROTOBUF_C_TYPE_STRING && strcmp(e->fields[1].name, "value") == 0 &&
           e->fields[1].id == 2 && e->fields[1].type == PROTOBUF_C_TYPE_STRING;
}

static const char *type_name(const ProtobufCFieldDescriptor *f)
{
    switch (f->type) {
    case PROTOBUF_C_TYPE_INT32:
        return "int32";
    case PROTOBUF_C_TYPE_INT64:
        return "int64";
    case PROTOBUF_C_TYPE_UINT32:
        return "uint32";
    case PROTOBUF_C_TYPE_UINT64:
        return "uint64";
    case PROTOBUF_C_TYPE_DOUBLE:
        return "double";
    case PROTOBUF_C_TYPE_BOOL:
        return "bool";
    case PROTOBUF_C_TYPE_STRING:
        return "string";
    case PROTOBUF_C_TYPE_BYTES:
        return "bytes";
    case PROTOBUF_C_TYPE_ENUM:
        walk_enum(f->descriptor);
        return local(((const ProtobufCEnumDescriptor *)f->descriptor)->name);
    case PROTOBUF_C_TYPE_MESSAGE:
        walk_message(f->descriptor);
        return local(((const ProtobufCMessageDescriptor *)f->descriptor)->name);
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_FLOAT:
    default:
        return "?"; /* CRI has none of these */
    }
}

static const char *label_name(const ProtobufCFieldDescriptor *f)
{
    if (f->label == PROTOBUF_C_LABEL_REPEATED)
        return "repeated";
    if (f->flags & PROTOBUF_C_FIELD_FLAG_DEPRECATED)
        return "deprecated";
    return f->label == PROTOBUF_C_LABEL_NONE && !(f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) ? ""
                                                                                          : "?";
}

static void walk_message(const ProtobufCMessageDescriptor *m)
{
    if (!first_time(m->name))
        return;
    if (m->n_fields == 0)
        strv_addf(&compiled, "message-field,%s,,,,empty-message,", local(m->name));
    for (unsigned i = 0; i < m->n_fields; i++) {
        const ProtobufCFieldDescriptor *f = &m->fields[i];
        if (is_map(m, f))
            strv_addf(&compiled, "message-field,%s,%s,%u,map<string;string>,map,", local(m->name),
                      f->name, f->id);
        else
            strv_addf(&compiled, "message-field,%s,%s,%u,%s,%s,", local(m->name), f->name, f->id,
                      type_name(f), label_name(f));
    }
}

/* protobuf-c's service descriptors do not say which methods stream, so that comes from the .proto
 * text: the line "rpc Name(In) returns (stream Out)", perhaps on two lines. */
static bool streams(const char *proto, const char *method)
{
    char needle[128];
    (void)snprintf(needle, sizeof(needle), "rpc %s(", method);
    const char *at = strstr(proto, needle);
    assert_non_null(at);
    const char *end = strchr(at, ';');
    assert_non_null(end);
    const char *in = strstr(at, "(stream");
    const char *returns = strstr(at, "returns");
    assert_true(returns != NULL && returns < end);
    assert_true(in == NULL || in > returns); /* no client streams in CRI */
    return in != NULL && in < end;
}

static void walk_service(const ProtobufCServiceDescriptor *s, const char *proto)
{
    for (unsigned i = 0; i < s->n_methods; i++) {
        const ProtobufCMethodDescriptor *m = &s->methods[i];
        strv_addf(&compiled, "service-method,%s,%s,,%s -> %s,,%s", local(s->name), m->name,
                  local(m->input->name), local(m->output->name),
                  streams(proto, m->name) ? "server" : "none");
        walk_message(m->input);
        walk_message(m->output);
    }
}

static char *read_file(const char *path)
{
    auto_fclose FILE *f = fopen(path, "re");
    assert_non_null(f);
    struct buf b = BUF_INIT((size_t)1 << 20);
    char part[4096];
    size_t n;
    while ((n = fread(part, 1, sizeof(part), f)) > 0)
        assert_int_equal(buf_append(&b, part, n), 0);
    return buf_take(&b);
}

/* The one quoted value of the file is "map<string,string>". */
static void load_list(const char *path)
{
    auto_free char *text = read_file(path);
    char *save = NULL;
    bool first = true;
    for (char *line = strtok_r(text, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        line[strcspn(line, "\r")] = '\0';
        if (first) {
            assert_string_equal(line, "kind,parent,name,number,type,label,stream");
            first = false;
            continue;
        }
        char *map = strstr(line, "\"map<string,string>\"");
        if (map != NULL) {
            const char plain[] = "map<string;string>";
            memcpy(map, plain, strlen(plain));
            memmove(map + strlen(plain), map + strlen(plain) + 2,
                    strlen(map + strlen(plain) + 2) + 1);
        }
        size_t commas = 0;
        for (const char *c = line; *c != '\0'; c++)
            commas += *c == ',';
        assert_int_equal(commas, COLUMNS - 1);
        strv_add(&listed, line);
    }
}

static int compare(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static size_t report(const char *what, const struct strv *a, const struct strv *b)
{
    size_t missing = 0;
    for (size_t i = 0; i < a->n; i++) {
        if (b->n > 0 && bsearch(&a->v[i], b->v, b->n, sizeof(*b->v), compare) != NULL)
            continue;
        print_error("%s: %s\n", what, a->v[i]);
        missing++;
    }
    return missing;
}

static size_t count(const struct strv *l, const char *prefix)
{
    size_t n = 0;
    for (size_t i = 0; i < l->n; i++)
        n += str_starts(l->v[i], prefix);
    return n;
}

static void test_same(void **state)
{
    (void)state;
    load_list(TEST_DATA "/cri-v1-fields.csv");
    auto_free char *proto = read_file(CRI_PROTO);
    walk_service(&runtime__v1__runtime_service__descriptor, proto);
    walk_service(&runtime__v1__image_service__descriptor, proto);
    /* Messages of the list that no method reaches are still part of the interface; there are none.
     */
    qsort(listed.v, listed.n, sizeof(*listed.v), compare);
    qsort(compiled.v, compiled.n, sizeof(*compiled.v), compare);
    size_t missing = report("not compiled in", &listed, &compiled);
    size_t extra = report("not in the list", &compiled, &listed);
    assert_int_equal(missing, 0);
    assert_int_equal(extra, 0);
    assert_int_equal(listed.n, compiled.n); /* no line twice */
    /* Guards against an empty or cut list. */
    assert_int_equal(count(&listed, "service-method,"), 43);
    assert_int_equal(count(&listed, "message-field,"), 496);
    assert_int_equal(count(&listed, "enum-value,"), 95);
    strv_clear(&listed);
    strv_clear(&compiled);
    strv_clear(&seen);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
