/* agent.proto against what its version 1.1 had (test/data/agent-1.1.csv): nothing was taken away or
 * given another meaning, and whatever a request gained is in the table of additions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "proto/agent.pb-c.h"
#include "proto/version.h"

#define SERVICE (&aspis__agent__v1__agent__descriptor)
#define DEPTH 8

static struct strv listed;

static const char *type_name(ProtobufCType t)
{
    static const char *const names[] = {
        [PROTOBUF_C_TYPE_INT32] = "int32",       [PROTOBUF_C_TYPE_SINT32] = "sint32",
        [PROTOBUF_C_TYPE_SFIXED32] = "sfixed32", [PROTOBUF_C_TYPE_INT64] = "int64",
        [PROTOBUF_C_TYPE_SINT64] = "sint64",     [PROTOBUF_C_TYPE_SFIXED64] = "sfixed64",
        [PROTOBUF_C_TYPE_UINT32] = "uint32",     [PROTOBUF_C_TYPE_FIXED32] = "fixed32",
        [PROTOBUF_C_TYPE_UINT64] = "uint64",     [PROTOBUF_C_TYPE_FIXED64] = "fixed64",
        [PROTOBUF_C_TYPE_FLOAT] = "float",       [PROTOBUF_C_TYPE_DOUBLE] = "double",
        [PROTOBUF_C_TYPE_BOOL] = "bool",         [PROTOBUF_C_TYPE_ENUM] = "enum",
        [PROTOBUF_C_TYPE_STRING] = "string",     [PROTOBUF_C_TYPE_BYTES] = "bytes",
        [PROTOBUF_C_TYPE_MESSAGE] = "message",
    };
    assert_true(t < ARRAY_LEN(names));
    return names[t];
}

static char *field_line(const ProtobufCMessageDescriptor *m, const ProtobufCFieldDescriptor *f)
{
    struct strv line = {0};
    strv_addf(&line, "%s,%s,%u,%s%s", m->short_name, f->name, f->id,
              f->label == PROTOBUF_C_LABEL_REPEATED ? "repeated " : "", type_name(f->type));
    char *s = xstrdup(line.v[0]);
    strv_clear(&line);
    return s;
}

static bool in_list(const char *line)
{
    for (size_t i = 0; i < listed.n; i++)
        if (strcmp(listed.v[i], line) == 0)
            return true;
    return false;
}

static bool in_table(const char *method, const char *field)
{
    for (size_t i = 0; i < n_protocol_additions; i++) {
        const struct protocol_addition *a = &protocol_additions[i];
        if (strcmp(a->method, method) == 0 &&
            (field == NULL ? a->field == NULL : a->field != NULL && strcmp(a->field, field) == 0))
            return a->minor >= 2 && a->minor <= PROTOCOL_MINOR;
    }
    return false;
}

static void look(const char *method, const ProtobufCMessageDescriptor *m, int depth)
{
    if (depth == DEPTH)
        fail_msg("%s is nested too deeply", m->name);
    for (unsigned i = 0; i < m->n_fields; i++) {
        const ProtobufCFieldDescriptor *f = &m->fields[i];
        auto_free char *line = field_line(m, f);
        if (in_list(line)) {
            if (f->type == PROTOBUF_C_TYPE_MESSAGE)
                look(method, f->descriptor, depth + 1);
            continue;
        }
        struct strv below = {0};
        strv_addf(&below, "%s.%s", m->short_name, f->name);
        bool known = in_table(method, depth > 0 ? below.v[0] : f->name);
        strv_clear(&below);
        if (!known)
            fail_msg("%s: field %s is in neither version 1.1 nor protocol_additions", method, line);
    }
}

static void additions_are_in_the_table(void **state)
{
    (void)state;
    for (unsigned i = 0; i < SERVICE->n_methods; i++) {
        const ProtobufCMethodDescriptor *m = &SERVICE->methods[i];
        struct strv line = {0};
        strv_addf(&line, "Agent,%s,0,%s", m->name, m->input->short_name);
        if (in_list(line.v[0])) {
            assert_int_equal(protocol_call_minor(m->name), 0);
            look(m->name, m->input, 0);
        } else if (!in_table(m->name, NULL)) {
            fail_msg("call %s is in neither version 1.1 nor protocol_additions", m->name);
        }
        strv_clear(&line);
    }
}

/* Counts what of the list is there: the messages of all calls, both ways. */
static void walk(const ProtobufCMessageDescriptor *m, bool *found, int depth)
{
    if (depth == DEPTH)
        return;
    for (unsigned i = 0; i < m->n_fields; i++) {
        const ProtobufCFieldDescriptor *f = &m->fields[i];
        auto_free char *line = field_line(m, f);
        for (size_t k = 0; k < listed.n; k++)
            if (strcmp(listed.v[k], line) == 0)
                found[k] = true;
        if (f->type == PROTOBUF_C_TYPE_MESSAGE)
            walk(f->descriptor, found, depth + 1);
    }
}

static void nothing_of_version_1_1_is_gone(void **state)
{
    (void)state;
    auto_free bool *found = xcalloc(listed.n, sizeof(*found));
    for (unsigned i = 0; i < SERVICE->n_methods; i++) {
        const ProtobufCMethodDescriptor *m = &SERVICE->methods[i];
        struct strv line = {0};
        strv_addf(&line, "Agent,%s,0,%s", m->name, m->input->short_name);
        for (size_t k = 0; k < listed.n; k++)
            if (strcmp(listed.v[k], line.v[0]) == 0)
                found[k] = true;
        strv_clear(&line);
        walk(m->input, found, 0);
        walk(m->output, found, 0);
    }
    assert_true(listed.n > 140);
    for (size_t k = 0; k < listed.n; k++)
        if (!found[k])
            fail_msg("gone or changed: %s", listed.v[k]);
}

static void what_a_request_needs(void **state)
{
    (void)state;
    Aspis__Agent__V1__CreateContainerRequest c;
    Aspis__Agent__V1__StatsRequest s;
    char disk[] = "disk";
    char *disks[] = {disk};

    aspis__agent__v1__create_container_request__init(&c);
    aspis__agent__v1__stats_request__init(&s);
    c.container_id = disk;
    c.tty = true;
    assert_null(protocol_newest("CreateContainer", &c.base));
    c.n_volume_disks = 1;
    c.volume_disks = disks;
    const struct protocol_addition *a = protocol_newest("CreateContainer", &c.base);
    assert_non_null(a);
    assert_string_equal(a->field, "volume_disks");
    assert_int_equal(a->minor, 2);
    protocol_forget("CreateContainer", &c.base, 2);
    assert_int_equal(c.n_volume_disks, 1);
    protocol_forget("CreateContainer", &c.base, 1);
    assert_int_equal(c.n_volume_disks, 0);
    assert_string_equal(c.container_id, "disk");
    assert_null(protocol_newest("CreateContainer", &c.base));
    a = protocol_newest("Stats", &s.base);
    assert_true(a != NULL && a->field == NULL && a->minor == 2);
    assert_int_equal(protocol_call_minor("Stats"), 2);
    assert_int_equal(protocol_call_minor("Exec"), 0);
}

static int read_list(void **state)
{
    (void)state;
    FILE *f = fopen(TEST_DATA "/agent-1.1.csv", "re");
    assert_non_null(f);
    char line[256];
    while (fgets(line, sizeof(line), f) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        if (line[0] != '#' && !str_starts(line, "in,"))
            strv_add(&listed, line);
    }
    (void)fclose(f);
    return 0;
}

static int free_list(void **state)
{
    (void)state;
    strv_clear(&listed);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(additions_are_in_the_table),
        cmocka_unit_test(nothing_of_version_1_1_is_gone),
        cmocka_unit_test(what_a_request_needs),
    };
    return cmocka_run_group_tests(tests, read_list, free_list);
}
