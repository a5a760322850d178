#include "cri/message.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/limits.h"
#include "base/str.h"

/* Wire format: protobuf.dev/programming-guides/encoding. */
enum wire { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

/* Where we are, for messages: a linked list on the stack. */
struct at {
    const struct at *up;
    const char *field;
    size_t index; /* of a repeated field */
    bool repeated;
};

struct reader {
    const uint8_t *p, *end;
};

struct check {
    size_t max_string;
    struct err *err;
};

static void put_path(struct buf *b, const struct at *at)
{
    if (at == NULL)
        return;
    put_path(b, at->up);
    (void)buf_printf(b, "%s%s", b->len > 0 ? "." : "", at->field);
    if (at->repeated)
        (void)buf_printf(b, "[%zu]", at->index);
}

static int bad(const struct check *c, const ProtobufCMessageDescriptor *desc, const struct at *at,
               const char *what)
{
    auto_buf struct buf path = BUF_INIT(KiB(4));
    put_path(&path, at);
    return err_set(c->err, ERR_INVALID, "%s%s%s: %s", desc->short_name, path.len > 0 ? "." : "",
                   buf_str(&path), what);
}

static int get_varint(struct reader *r, uint64_t *out)
{
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        if (r->p == r->end)
            return -1;
        uint8_t byte = *r->p++;
        if (shift < 64)
            v |= (uint64_t)(byte & 0x7f) << shift;
        if ((byte & 0x80) == 0) {
            *out = v;
            return 0;
        }
    }
    return -1;
}

/* Steps over one value; for WIRE_BYTES its bytes are in *bytes. */
static int get_value(struct reader *r, enum wire wire, struct reader *bytes)
{
    uint64_t len;
    switch (wire) {
    case WIRE_VARINT:
        return get_varint(r, &len);
    case WIRE_64:
        len = 8;
        break;
    case WIRE_32:
        len = 4;
        break;
    case WIRE_BYTES:
        if (get_varint(r, &len) < 0)
            return -1;
        break;
    default:
        return -1; /* groups were never part of proto3 */
    }
    if (len > (uint64_t)(r->end - r->p))
        return -1;
    *bytes = (struct reader){.p = r->p, .end = r->p + len};
    r->p += len;
    return 0;
}

static int check_text(const struct check *c, const ProtobufCMessageDescriptor *top,
                      const struct at *at, struct reader text)
{
    size_t len = (size_t)(text.end - text.p);
    if (len > c->max_string)
        return bad(c, top, at, "the string is too long");
    if (memchr(text.p, 0, len) != NULL)
        return bad(c, top, at, "the string contains a NUL byte");
    if (!str_is_utf8((const char *)text.p, len))
        return bad(c, top, at, "the string is not valid UTF-8");
    return 0;
}

static int check_message(const struct check *c, const ProtobufCMessageDescriptor *top,
                         const ProtobufCMessageDescriptor *desc, const struct at *up,
                         unsigned depth, struct reader r)
{
    if (depth > LIMIT_MESSAGE_DEPTH)
        return bad(c, top, up, "messages are nested too deeply");
    size_t counts[64] = {
        0}; /* of repeated fields, by position; more than any message of ours has */
    while (r.p < r.end) {
        uint64_t key;
        struct reader bytes = {0};
        if (get_varint(&r, &key) < 0 || key >> 3 == 0 || key >> 32 != 0)
            return bad(c, top, up, "broken protobuf: no field number");
        enum wire wire = (enum wire)(key & 7);
        if (get_value(&r, wire, &bytes) < 0)
            return bad(c, top, up, "broken protobuf: a value does not fit");
        const ProtobufCFieldDescriptor *f =
            protobuf_c_message_descriptor_get_field(desc, (unsigned)(key >> 3));
        if (f == NULL)
            continue; /* of a newer client */
        size_t pos = (size_t)(f - desc->fields);
        struct at at = {
            .up = up,
            .field = f->name,
            .repeated = f->label == PROTOBUF_C_LABEL_REPEATED,
            .index = pos < ARRAY_LEN(counts) ? counts[pos]++ : 0,
        };
        if (f->type != PROTOBUF_C_TYPE_STRING && f->type != PROTOBUF_C_TYPE_MESSAGE)
            continue;
        if (wire != WIRE_BYTES)
            return bad(c, top, &at, "broken protobuf: wrong wire type");
        int rc = f->type == PROTOBUF_C_TYPE_STRING
                     ? check_text(c, top, &at, bytes)
                     : check_message(c, top, f->descriptor, &at, depth + 1, bytes);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int message_check(const ProtobufCMessageDescriptor *desc, const void *data, size_t len,
                  size_t max_string, struct err *err)
{
    struct check c = {.max_string = max_string, .err = err};
    const uint8_t *p = data;
    if (len == 0)
        return 0;
    return check_message(&c, desc, desc, NULL, 0, (struct reader){.p = p, .end = p + len});
}

ProtobufCMessage *message_unpack(const ProtobufCMessageDescriptor *desc, const void *data,
                                 size_t len, size_t max_string, struct arena *arena,
                                 struct err *err)
{
    if (message_check(desc, data, len, max_string, err) < 0)
        return NULL;
    ProtobufCMessage *m = protobuf_c_message_unpack(desc, arena_allocator(arena), len, data);
    if (m != NULL)
        return m;
    if (arena_exhausted(arena))
        (void)err_set(err, ERR_EXHAUSTED, "%s: the request needs too much memory",
                      desc->short_name);
    else
        (void)err_set(err, ERR_INVALID, "%s: broken protobuf", desc->short_name);
    return NULL;
}

/* --- replies --- */

/* Length of the valid UTF-8 sequence at s, 0 when there is none. */
static size_t sequence(const char *s, size_t len)
{
    for (size_t n = 1; n <= 4 && n <= len; n++)
        if (str_is_utf8(s, n))
            return n;
    return 0;
}

/* Writes s to out, which has room for three times its length and a NUL. */
static void repair_text(const char *s, size_t len, char *out)
{
    char *o = out;
    for (size_t i = 0; i < len;) {
        size_t n = sequence(s + i, len - i);
        if (n > 0) {
            memcpy(o, s + i, n);
            o += n;
            i += n;
        } else {
            memcpy(o, "\xEF\xBF\xBD", 3); /* U+FFFD */
            o += 3;
            i++;
        }
    }
    *o = '\0';
}

char *message_text(const char *s, size_t max)
{
    size_t len = strlen(s);
    if (len > max)
        len = max;
    /* Not in the middle of a character; a broken one may lose its rest too. */
    while (len > 0 && s[len] != '\0' && ((unsigned char)s[len] & 0xc0) == 0x80)
        len--;
    char *out = malloc(len * 3 + 1);
    if (out == NULL)
        return NULL;
    repair_text(s, len, out);
    for (char *p = out; *p != '\0'; p++)
        if (((unsigned char)*p < 0x20 && *p != '\n' && *p != '\t') || *p == 0x7f)
            *p = '?';
    return out;
}

static int repair_message(ProtobufCMessage *m, struct arena *arena);

static int repair_value(const ProtobufCFieldDescriptor *f, void *value, struct arena *arena)
{
    if (f->type == PROTOBUF_C_TYPE_MESSAGE) {
        ProtobufCMessage *sub = *(ProtobufCMessage **)value;
        return sub == NULL ? 0 : repair_message(sub, arena);
    }
    char **s = value;
    if (*s == NULL || str_is_utf8(*s, strlen(*s)))
        return 0;
    size_t len = strlen(*s);
    char *out = arena_alloc(arena, len * 3 + 1);
    if (out == NULL)
        return -1;
    repair_text(*s, len, out);
    *s = out;
    return 0;
}

/* m was unpacked into the arena, so its strings may be exchanged. */
static int repair_message(ProtobufCMessage *m, struct arena *arena)
{
    for (unsigned i = 0; i < m->descriptor->n_fields; i++) {
        const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
        if (f->type != PROTOBUF_C_TYPE_STRING && f->type != PROTOBUF_C_TYPE_MESSAGE)
            continue;
        char *member = (char *)m + f->offset;
        if (f->label != PROTOBUF_C_LABEL_REPEATED) {
            if (repair_value(f, member, arena) < 0)
                return -1;
            continue;
        }
        size_t n = *(size_t *)(void *)((char *)m + f->quantifier_offset);
        void **values = *(void ***)(void *)member;
        for (size_t k = 0; k < n; k++)
            if (repair_value(f, &values[k], arena) < 0)
                return -1;
    }
    return 0;
}

static uint8_t *pack(const ProtobufCMessage *message, size_t max, size_t *len, struct err *err)
{
    *len = protobuf_c_message_get_packed_size(message);
    if (*len > max) {
        (void)err_set(err, ERR_EXHAUSTED, "%s: the message is larger than %zu bytes",
                      message->descriptor->short_name, max);
        return NULL;
    }
    uint8_t *data = malloc(*len + 1); /* never a NULL for an empty message */
    if (data == NULL) {
        (void)err_set(err, ERR_EXHAUSTED, "out of memory");
        return NULL;
    }
    (void)protobuf_c_message_pack(message, data);
    return data;
}

uint8_t *message_pack(const ProtobufCMessage *message, size_t max, struct arena *arena, size_t *len,
                      struct err *err)
{
    auto_free uint8_t *data = pack(message, max, len, err);
    if (data == NULL)
        return NULL;
    if (message_check(message->descriptor, data, *len, SIZE_MAX, NULL) == 0)
        return take(data);
    /* Rare: work on a copy, since the handler's message may point to shared strings. */
    ProtobufCMessage *copy =
        protobuf_c_message_unpack(message->descriptor, arena_allocator(arena), *len, data);
    if (copy == NULL || repair_message(copy, arena) < 0) {
        (void)err_set(err, ERR_EXHAUSTED, "%s: no memory left to repair its text",
                      message->descriptor->short_name);
        return NULL;
    }
    return pack(copy, max, len, err);
}
