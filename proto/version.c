#include "proto/version.h"

#include <string.h>

#include "base/cleanup.h"
#include "base/str.h"

/* In the order of agent.proto. */
const struct protocol_addition protocol_additions[] = {
    {"CreateContainer", "volume_disks", 2},
    {"CreateContainer", "seccomp_filter", 2},
    {"CreateContainer", "pid_target", 2},
    {"CreateContainer", "devices", 2},
    {"CreateContainer", "all_devices", 2},
    {"CreateContainer", "uids", 2},
    {"CreateContainer", "gids", 2},
    {"CreateContainer", "raw_disks", 2},
    {"CreateContainer", "Volume.mirrored", 2}, /* only of what SyncVolume has made */
    {"CreateContainer", "Volume.huge", 2},
    {"Resize", NULL, 2},
    {"Resize", "huge_bytes", 2},
    {"SetLimits", NULL, 2},
    {"SetLimits", "oom_score", 2},
    {"Stats", NULL, 2},
    {"SyncVolume", NULL, 2},
    {"DropVolume", NULL, 2},
    {"FreezePod", NULL, 2},
    {"ThawPod", NULL, 2},
    {"BecomePod", NULL, 2},
    {"PrepareTemplate", NULL, 2},
    {"NameDisk", NULL, 2},
    {"Clock", NULL, 2},
};
const size_t n_protocol_additions = ARRAY_LEN(protocol_additions);

/* NULL: no such field. */
static const ProtobufCFieldDescriptor *find(const ProtobufCMessage *m, const char *field)
{
    return protobuf_c_message_descriptor_get_field_by_name(m->descriptor, field);
}

static size_t size_of(const ProtobufCFieldDescriptor *f)
{
    if (f->label == PROTOBUF_C_LABEL_REPEATED)
        return sizeof(void *);
    switch (f->type) {
    case PROTOBUF_C_TYPE_INT32:
    case PROTOBUF_C_TYPE_SINT32:
    case PROTOBUF_C_TYPE_SFIXED32:
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_FIXED32:
    case PROTOBUF_C_TYPE_FLOAT:
        return sizeof(uint32_t);
    case PROTOBUF_C_TYPE_INT64:
    case PROTOBUF_C_TYPE_SINT64:
    case PROTOBUF_C_TYPE_SFIXED64:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_FIXED64:
    case PROTOBUF_C_TYPE_DOUBLE:
        return sizeof(uint64_t);
    case PROTOBUF_C_TYPE_BOOL:
        return sizeof(protobuf_c_boolean);
    case PROTOBUF_C_TYPE_ENUM:
        return sizeof(int);
    case PROTOBUF_C_TYPE_BYTES:
        return sizeof(ProtobufCBinaryData);
    case PROTOBUF_C_TYPE_STRING:
    case PROTOBUF_C_TYPE_MESSAGE:
    default:
        return sizeof(void *);
    }
}

/* The member's bytes, or a repeated field's count, which is what makes it set. */
static void *member(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f, size_t *size)
{
    bool repeated = f->label == PROTOBUF_C_LABEL_REPEATED;

    *size = repeated ? sizeof(size_t) : size_of(f);
    return (uint8_t *)(uintptr_t)m + (repeated ? f->quantifier_offset : f->offset);
}

static bool is_set(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f)
{
    static const uint8_t zero[sizeof(ProtobufCBinaryData)];
    size_t size;
    const void *p = member(m, f, &size);

    if (f->label != PROTOBUF_C_LABEL_REPEATED && f->type == PROTOBUF_C_TYPE_STRING)
        return !str_empty(*(char *const *)p);
    if (f->label != PROTOBUF_C_LABEL_REPEATED && f->type == PROTOBUF_C_TYPE_BYTES)
        return ((const ProtobufCBinaryData *)p)->len > 0;
    return memcmp(p, zero, size) != 0;
}

const struct protocol_addition *protocol_newest(const char *method, const ProtobufCMessage *request)
{
    const struct protocol_addition *newest = NULL;

    for (size_t i = 0; i < n_protocol_additions; i++) {
        const struct protocol_addition *a = &protocol_additions[i];
        if (strcmp(a->method, method) != 0 || (newest != NULL && a->minor <= newest->minor))
            continue;
        const ProtobufCFieldDescriptor *f = a->field != NULL ? find(request, a->field) : NULL;
        if (a->field == NULL || (f != NULL && is_set(request, f)))
            newest = a;
    }
    return newest;
}

uint32_t protocol_call_minor(const char *method)
{
    for (size_t i = 0; i < n_protocol_additions; i++)
        if (protocol_additions[i].field == NULL &&
            strcmp(protocol_additions[i].method, method) == 0)
            return protocol_additions[i].minor;
    return 0;
}

void protocol_forget(const char *method, ProtobufCMessage *request, uint32_t minor)
{
    for (size_t i = 0; i < n_protocol_additions; i++) {
        const struct protocol_addition *a = &protocol_additions[i];
        const ProtobufCFieldDescriptor *f = a->field != NULL ? find(request, a->field) : NULL;
        size_t size;

        if (a->minor <= minor || f == NULL || strcmp(a->method, method) != 0)
            continue;
        void *p = member(request, f, &size);

        if (f->label != PROTOBUF_C_LABEL_REPEATED && f->type == PROTOBUF_C_TYPE_STRING)
            *(const char **)p = f->default_value != NULL ? f->default_value : "";
        else
            memset(p, 0, size);
    }
}
