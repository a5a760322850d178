#include "cri/checkpoint_manifest.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/str.h"
#include "cri/image/image.h"
#include "cri/message.h"
#include "cri/spec.h"

#define FORMAT "aspis-pod-checkpoint"
#define ID_LENGTH 64

/* --- writing --- */

/* A message as hexadecimal digits. */
static json_t *packed(const ProtobufCMessage *m)
{
    static const char hex[] = "0123456789abcdef";
    size_t len = protobuf_c_message_get_packed_size(m);
    auto_free uint8_t *data = xcalloc(1, len + 1);
    auto_free char *text = xcalloc(1, 2 * len + 1);
    (void)protobuf_c_message_pack(m, data);
    for (size_t i = 0; i < len; i++) {
        text[2 * i] = hex[data[i] >> 4];
        text[2 * i + 1] = hex[data[i] & 15];
    }
    return json_string(text);
}

static json_t *file_json(const struct checkpoint_file *f)
{
    return json_pack("{s:I,s:s}", "bytes", (json_int_t)f->bytes, "digest", f->digest);
}

static json_t *disks_json(const struct checkpoint *c)
{
    const struct hv_shape *s = &c->machine.shape;
    json_t *list = json_array();
    for (size_t i = 0; i < s->n_disks; i++)
        (void)json_array_append_new(list,
                                    json_pack("{s:i,s:s,s:s,s:s}", "slot", (int)s->disks[i].slot,
                                              "image", c->disks[i].image, "name", c->disks[i].name,
                                              "layout", c->disks[i].layout));
    return list;
}

static json_t *machine_json(const struct checkpoint *c)
{
    const struct machine_image *m = &c->machine;
    const struct hv_shape *s = &m->shape;
    return json_pack("{s:s,s:s,s:s,s:s,s:s,s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:o}", "qemu",
                     m->qemu, "cpu", m->cpu, "accel", m->accel, "transport", m->transport, "mac",
                     c->mac, "ram", s->ram_id, "boot_bytes", (json_int_t)s->boot_bytes, "max_bytes",
                     (json_int_t)s->max_bytes, "added_bytes", (json_int_t)s->added_bytes,
                     "boot_vcpus", (json_int_t)s->boot_vcpus, "vcpus", (json_int_t)s->vcpus,
                     "max_vcpus", (json_int_t)s->max_vcpus, "scratch_bytes",
                     (json_int_t)m->scratch_bytes, "last_volume", (json_int_t)m->last_volume,
                     "last_mirror", (json_int_t)m->last_mirror, "disks", disks_json(c));
}

static json_t *volumes_json(const struct checkpoint_container *c)
{
    json_t *list = json_array();
    for (size_t i = 0; i < c->n_volumes; i++)
        (void)json_array_append_new(
            list, json_pack("{s:I,s:b,s:b}", "id", (json_int_t)c->volumes[i].id, "mirrored",
                            c->volumes[i].mirrored, "file", c->volumes[i].file));
    return list;
}

static json_t *container_json(const struct checkpoint_container *c)
{
    return json_pack("{s:s,s:s,s:s,s:s,s:s,s:s,s:I,s:I,s:[I,I,I],s:[I,I],s:o,s:o}", "name",
                     c->config->metadata->name, "id", c->id, "image", c->image_id, "image_ref",
                     c->image_ref, "stop_signal", c->stop_signal, "groups", c->groups, "uid",
                     (json_int_t)c->uid, "gid", (json_int_t)c->gid, "streams",
                     (json_int_t)c->stdin_id, (json_int_t)c->stdout_id, (json_int_t)c->stderr_id,
                     "logged", (json_int_t)c->offset[0], (json_int_t)c->offset[1], "volumes",
                     volumes_json(c), "config", packed(&c->config->base));
}

char *checkpoint_encode(const struct checkpoint *c, struct err *err)
{
    json_auto_t *containers = json_array();
    for (size_t i = 0; i < c->n_containers; i++)
        (void)json_array_append_new(containers, container_json(&c->containers[i]));
    json_auto_t *j =
        json_pack("{s:s,s:i,s:s,s:I,s:s,s:o,s:O,s:o,s:o,s:o,s:o}", "format", FORMAT, "version",
                  CHECKPOINT_VERSION, "aspis", c->aspis, "created_at", (json_int_t)c->created_at,
                  "sandbox_id", c->sandbox_id, "pod", packed(&c->pod->base), "containers",
                  containers, "machine", machine_json(c), "state", file_json(&c->state), "scratch",
                  file_json(&c->scratch), "volumes", file_json(&c->volumes));
    char *text = j != NULL && json_array_size(containers) == c->n_containers
                     ? json_dumps(j, JSON_INDENT(1))
                     : NULL;
    if (text == NULL)
        (void)err_set(err, ERR_INTERNAL, "the manifest cannot be written");
    return text;
}

/* --- reading --- */

struct reader {
    struct arena *arena;
    struct err *err;
    uint64_t version;
};

static int bad(const struct reader *r, const char *what)
{
    return err_set(r->err, ERR_INVALID, "manifest: %s is missing or malformed", what);
}

static int get_text(const struct reader *r, const json_t *from, const char *key, size_t max,
                    const char **out)
{
    const json_t *v = json_object_get(from, key);
    /* jansson refuses NULs and what is not UTF-8 */
    if (!json_is_string(v) || json_string_length(v) > max)
        return bad(r, key);
    *out = arena_strdup(r->arena, json_string_value(v));
    return *out != NULL ? 0 : err_set(r->err, ERR_EXHAUSTED, "manifest: too large");
}

static int copy_text(const struct reader *r, const json_t *from, const char *key, char *out,
                     size_t size)
{
    const char *v = json_string_value(json_object_get(from, key));
    if (v == NULL || strlen(v) >= size)
        return bad(r, key);
    memcpy(out, v, strlen(v) + 1);
    return 0;
}

static int as_number(const struct reader *r, const json_t *v, const char *what, uint64_t max,
                     uint64_t *out)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0 || (uint64_t)json_integer_value(v) > max)
        return bad(r, what);
    *out = (uint64_t)json_integer_value(v);
    return 0;
}

static int get_number(const struct reader *r, const json_t *from, const char *key, uint64_t max,
                      uint64_t *out)
{
    return as_number(r, json_object_get(from, key), key, max, out);
}

static int get_u32(const struct reader *r, const json_t *from, const char *key, uint32_t *out)
{
    uint64_t v;
    if (get_number(r, from, key, UINT32_MAX, &v) < 0)
        return -1;
    *out = (uint32_t)v;
    return 0;
}

static int get_digest(const struct reader *r, const json_t *from, const char *key,
                      char out[DIGEST_MAX])
{
    if (copy_text(r, from, key, out, DIGEST_MAX) < 0)
        return -1;
    return digest_valid(out) ? 0 : bad(r, key);
}

static int get_image_id(const struct reader *r, const json_t *from, const char *key,
                        const char **out)
{
    if (get_text(r, from, key, DIGEST_MAX, out) < 0)
        return -1;
    return str_starts(*out, "sha256:") && digest_valid(*out) ? 0 : bad(r, key);
}

static int get_id(const struct reader *r, const json_t *from, const char *key, const char **out)
{
    if (get_text(r, from, key, ID_LENGTH, out) < 0)
        return -1;
    return strlen(*out) == ID_LENGTH && strspn(*out, "0123456789abcdef") == ID_LENGTH ? 0
                                                                                      : bad(r, key);
}

static int get_message(const struct reader *r, const json_t *from, const char *key,
                       const ProtobufCMessageDescriptor *desc, const void **out)
{
    const json_t *v = json_object_get(from, key);
    const char *text = json_string_value(v);
    size_t n = json_string_length(v);
    if (text == NULL || n % 2 != 0)
        return bad(r, key);
    auto_free uint8_t *data = xcalloc(1, n / 2 + 1);
    for (size_t i = 0; i < n / 2; i++) {
        int high = str_hex_digit(text[2 * i]);
        int low = str_hex_digit(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return bad(r, key);
        data[i] = (uint8_t)(high << 4 | low);
    }
    *out = message_unpack(desc, data, n / 2, LIMIT_STRING, r->arena, r->err);
    return *out != NULL ? 0 : err_wrap(r->err, "manifest: %s", key);
}

static int get_file(const struct reader *r, const json_t *from, const char *key,
                    struct checkpoint_file *out)
{
    const json_t *f = json_object_get(from, key);
    return get_number(r, f, "bytes", INT64_MAX, &out->bytes) < 0 ||
                   get_digest(r, f, "digest", out->digest) < 0
               ? -1
               : 0;
}

static int get_disks(const struct reader *r, const json_t *machine, struct checkpoint *out)
{
    struct hv_shape *s = &out->machine.shape;
    const json_t *list = json_object_get(machine, "disks");
    size_t i;
    json_t *d;
    if (!json_is_array(list) || json_array_size(list) > HV_MAX_DISKS)
        return bad(r, "disks");
    json_array_foreach(list, i, d)
    {
        uint32_t slot;
        if (get_u32(r, d, "slot", &slot) < 0 ||
            get_image_id(r, d, "image", &out->disks[i].image) < 0 ||
            get_text(r, d, "name", LIMIT_REFERENCE, &out->disks[i].name) < 0 ||
            get_digest(r, d, "layout", out->disks[i].layout) < 0)
            return -1;
        s->disks[i].slot = slot;
        image_disk_serial(out->disks[i].image, s->disks[i].serial);
        s->n_disks++;
    }
    return 0;
}

static bool mac_ok(const char *mac)
{
    for (int i = 0; i < 17; i++) {
        bool ok = i % 3 == 2 ? mac[i] == ':' : str_hex_digit(mac[i]) >= 0;
        if (!ok)
            return false;
    }
    return mac[17] == '\0';
}

static int get_machine(const struct reader *r, const json_t *j, struct checkpoint *out)
{
    const json_t *m = json_object_get(j, "machine");
    struct machine_image *i = &out->machine;
    struct hv_shape *s = &i->shape;
    if (copy_text(r, m, "qemu", i->qemu, sizeof(i->qemu)) < 0 ||
        copy_text(r, m, "cpu", i->cpu, sizeof(i->cpu)) < 0 ||
        copy_text(r, m, "accel", i->accel, sizeof(i->accel)) < 0 ||
        copy_text(r, m, "transport", i->transport, sizeof(i->transport)) < 0 ||
        get_text(r, m, "mac", 17, &out->mac) < 0 ||
        copy_text(r, m, "ram", s->ram_id, sizeof(s->ram_id)) < 0 ||
        get_number(r, m, "boot_bytes", INT64_MAX, &s->boot_bytes) < 0 ||
        get_number(r, m, "max_bytes", INT64_MAX, &s->max_bytes) < 0 ||
        get_number(r, m, "added_bytes", INT64_MAX, &s->added_bytes) < 0 ||
        get_u32(r, m, "boot_vcpus", &s->boot_vcpus) < 0 || get_u32(r, m, "vcpus", &s->vcpus) < 0 ||
        get_u32(r, m, "max_vcpus", &s->max_vcpus) < 0 ||
        get_number(r, m, "scratch_bytes", INT64_MAX, &i->scratch_bytes) < 0 ||
        get_disks(r, m, out) < 0)
        return -1;
    i->last_mirror = MACHINE_MIRROR_FIRST;
    if (r->version > 1 && (get_u32(r, m, "last_volume", &i->last_volume) < 0 ||
                           get_u32(r, m, "last_mirror", &i->last_mirror) < 0))
        return -1;
    if (!mac_ok(out->mac))
        return bad(r, "mac");
    return machine_image_check(i, r->err) < 0 ? err_wrap(r->err, "manifest") : 0;
}

static int get_numbers(const struct reader *r, const json_t *from, const char *key, uint64_t max,
                       uint64_t *out, size_t n)
{
    const json_t *list = json_object_get(from, key);
    if (!json_is_array(list) || json_array_size(list) != n)
        return bad(r, key);
    for (size_t i = 0; i < n; i++) {
        if (as_number(r, json_array_get(list, i), key, max, &out[i]) < 0)
            return -1;
    }
    return 0;
}

/* Has an earlier volume that id, of those that the file server has? */
static bool is_taken(const struct checkpoint *c, const struct checkpoint_container *own,
                     uint32_t id)
{
    for (size_t i = 0; i <= c->n_containers; i++) {
        const struct checkpoint_container *o = i < c->n_containers ? &c->containers[i] : own;
        for (size_t k = 0; k < o->n_volumes; k++) {
            if (o->volumes[k].id == id)
                return true;
        }
    }
    return false;
}

static int get_volumes(const struct reader *r, const json_t *list, const struct checkpoint *all,
                       struct checkpoint_container *c)
{
    const struct machine_image *m = &all->machine;
    size_t n = 0;
    for (size_t i = 0; i < c->config->n_mounts; i++)
        n += !spec_is_image_volume(c->config->mounts[i]);
    if (c->config->n_mounts > LIMIT_FS_VOLUMES || json_array_size(list) != n ||
        (!json_is_array(list) && r->version > 1))
        return bad(r, "volumes");
    c->volumes = arena_alloc(r->arena, (n + 1) * sizeof(*c->volumes));
    if (c->volumes == NULL)
        return err_set(r->err, ERR_EXHAUSTED, "manifest: too large");
    for (size_t i = 0; i < n; i++) {
        const json_t *j = json_array_get(list, i);
        struct checkpoint_volume v = {.mirrored = json_is_true(json_object_get(j, "mirrored")),
                                      .file = json_is_true(json_object_get(j, "file"))};
        if (get_u32(r, j, "id", &v.id) < 0)
            return -1;
        bool good = v.mirrored ? v.id > MACHINE_MIRROR_FIRST && v.id <= m->last_mirror && !v.file
                               : v.id > 0 && v.id <= m->last_volume && !is_taken(all, c, v.id);
        if (!good)
            return bad(r, "volumes");
        c->volumes[c->n_volumes++] = v;
    }
    return 0;
}

static int get_container(const struct reader *r, const json_t *j, const struct checkpoint *all,
                         struct checkpoint_container *c)
{
    const void *config;
    uint64_t streams[3];
    if (get_id(r, j, "id", &c->id) < 0 || get_image_id(r, j, "image", &c->image_id) < 0 ||
        get_text(r, j, "image_ref", LIMIT_REFERENCE, &c->image_ref) < 0 ||
        get_text(r, j, "stop_signal", 15, &c->stop_signal) < 0 ||
        get_text(r, j, "groups", KiB(16), &c->groups) < 0 || get_u32(r, j, "uid", &c->uid) < 0 ||
        get_u32(r, j, "gid", &c->gid) < 0 ||
        get_numbers(r, j, "streams", UINT32_MAX, streams, ARRAY_LEN(streams)) < 0 ||
        get_numbers(r, j, "logged", INT64_MAX, c->offset, ARRAY_LEN(c->offset)) < 0 ||
        get_message(r, j, "config", &runtime__v1__container_config__descriptor, &config) < 0)
        return -1;
    c->config = config;
    c->n_volumes = 0;
    c->stdin_id = (uint32_t)streams[0];
    c->stdout_id = (uint32_t)streams[1];
    c->stderr_id = (uint32_t)streams[2];
    if (c->config->metadata == NULL || str_empty(c->config->metadata->name) ||
        strlen(c->config->metadata->name) > LIMIT_NAME || c->config->image == NULL ||
        strspn(c->groups, "0123456789 ") != strlen(c->groups) ||
        strspn(c->stop_signal, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-") != strlen(c->stop_signal))
        return bad(r, "a container");
    return get_volumes(r, json_object_get(j, "volumes"), all, c);
}

static int get_containers(const struct reader *r, const json_t *j, struct checkpoint *out)
{
    const json_t *list = json_object_get(j, "containers");
    size_t n = json_array_size(list);
    if (!json_is_array(list) || n > LIMIT_AGENT_CONTAINERS)
        return bad(r, "containers");
    out->containers = arena_alloc(r->arena, (n + 1) * sizeof(*out->containers));
    if (out->containers == NULL)
        return err_set(r->err, ERR_EXHAUSTED, "manifest: too large");
    for (size_t i = 0; i < n; i++) {
        if (get_container(r, json_array_get(list, i), out, &out->containers[i]) < 0)
            return -1;
        for (size_t k = 0; k < i; k++) {
            if (strcmp(out->containers[k].id, out->containers[i].id) == 0 ||
                strcmp(out->containers[k].config->metadata->name,
                       out->containers[i].config->metadata->name) == 0)
                return bad(r, "containers");
        }
        out->n_containers++;
    }
    return 0;
}

int checkpoint_decode(const char *text, size_t len, struct arena *arena, struct checkpoint *out,
                      struct err *err)
{
    struct reader r = {arena, err, 0};
    json_error_t je;
    const void *pod;
    *out = (struct checkpoint){0};
    json_auto_t *j = json_loadb(text, len, JSON_REJECT_DUPLICATES, &je);
    const char *format = json_string_value(json_object_get(j, "format"));
    if (format == NULL || strcmp(format, FORMAT) != 0)
        return err_set(err, ERR_INVALID, "manifest: this is no checkpoint of a pod");
    uint64_t version;
    uint64_t created;
    if (get_number(&r, j, "version", UINT32_MAX, &version) < 0)
        return -1;
    r.version = version;
    if (version < 1 || version > CHECKPOINT_VERSION)
        return err_set(err, ERR_PRECONDITION,
                       "the checkpoint is of version %" PRIu64 ", this daemon knows %d", version,
                       CHECKPOINT_VERSION);
    if (get_text(&r, j, "aspis", 64, &out->aspis) < 0 ||
        get_number(&r, j, "created_at", INT64_MAX, &created) < 0 ||
        get_id(&r, j, "sandbox_id", &out->sandbox_id) < 0 ||
        get_message(&r, j, "pod", &runtime__v1__pod_sandbox_config__descriptor, &pod) < 0 ||
        get_machine(&r, j, out) < 0 || get_file(&r, j, "state", &out->state) < 0 ||
        get_file(&r, j, "scratch", &out->scratch) < 0 ||
        (version > 1 && get_file(&r, j, "volumes", &out->volumes) < 0) ||
        get_containers(&r, j, out) < 0)
        return -1;
    out->created_at = (int64_t)created;
    out->pod = pod;
    if (out->pod->metadata == NULL)
        return bad(&r, "pod");
    if (out->scratch.bytes != out->machine.scratch_bytes)
        return bad(&r, "scratch");
    return 0;
}
