#include "cri/convert.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "cri/resources.h"

static const struct map_entry *entry_at(const void *entries, size_t i)
{
    return ((const struct map_entry *const *)entries)[i];
}

void *convert_map(struct call *call, const void *entries, size_t n,
                  const ProtobufCMessageDescriptor *desc, struct err *err)
{
    struct map_entry **out = call_array(call, n, sizeof(*out), err);
    for (size_t i = 0; out != NULL && i < n; i++) {
        struct map_entry *e = call_message(call, desc, err);
        if (e == NULL)
            return NULL;
        e->key = call_string(call, entry_at(entries, i)->key, err);
        e->value = call_string(call, entry_at(entries, i)->value, err);
        if (e->key == NULL || e->value == NULL)
            return NULL;
        out[i] = e;
    }
    return out;
}

void *convert_pairs(struct call *call, const char *const *pairs, size_t n,
                    const ProtobufCMessageDescriptor *desc, struct err *err)
{
    struct map_entry **out = call_array(call, n, sizeof(*out), err);
    for (size_t i = 0; out != NULL && i < n; i++) {
        struct map_entry *e = call_message(call, desc, err);
        if (e == NULL)
            return NULL;
        e->key = call_string(call, pairs[2 * i], err);
        e->value = call_string(call, pairs[2 * i + 1], err);
        if (e->key == NULL || e->value == NULL)
            return NULL;
        out[i] = e;
    }
    return out;
}

void *convert_copy(struct call *call, const ProtobufCMessage *m, struct err *err)
{
    if (m == NULL)
        return NULL;
    size_t len = protobuf_c_message_get_packed_size(m);
    uint8_t *data = call_array(call, len + 1, 1, err);
    if (data == NULL)
        return NULL;
    (void)protobuf_c_message_pack(m, data);
    ProtobufCMessage *copy =
        protobuf_c_message_unpack(m->descriptor, arena_allocator(call->arena), len, data);
    if (copy == NULL)
        (void)err_set(err, ERR_EXHAUSTED, "the call needs too much memory");
    return copy;
}

bool convert_selector_matches(const void *labels, size_t n_labels, const void *wanted,
                              size_t n_wanted)
{
    for (size_t w = 0; w < n_wanted; w++) {
        const struct map_entry *want = entry_at(wanted, w);
        bool found = false;
        for (size_t i = 0; i < n_labels && !found; i++) {
            const struct map_entry *l = entry_at(labels, i);
            found = strcmp(l->key, want->key) == 0 && strcmp(l->value, want->value) == 0;
        }
        if (!found)
            return false;
    }
    return true;
}

static Runtime__V1__Signal signal_of(const char *name)
{
    char text[40] = "SIGNAL_";
    (void)strncat(text, name, 20);
    char *plus = strchr(text, '+');
    if (plus != NULL) {
        char number[8] = "";
        (void)strncat(number, plus + 1, sizeof(number) - 1);
        *plus = '\0';
        /* CRI counts the upper half down from SIGRTMAX, which is SIGRTMIN+30 */
        unsigned long n = strtoul(number, NULL, 10);
        if (n > 0 && n <= 15)
            (void)snprintf(text, sizeof(text), "SIGNAL_SIGRTMINPLUS%lu", n);
        else if (n > 15 && n < 30)
            (void)snprintf(text, sizeof(text), "SIGNAL_SIGRTMAXMINUS%lu", 30 - n);
        else if (n == 30)
            (void)snprintf(text, sizeof(text), "SIGNAL_SIGRTMAX");
    }
    const ProtobufCEnumValue *v =
        protobuf_c_enum_descriptor_get_value_by_name(&runtime__v1__signal__descriptor, text);
    return v != NULL ? (Runtime__V1__Signal)v->value : RUNTIME__V1__SIGNAL__SIGNAL_RUNTIME_DEFAULT;
}

static Runtime__V1__ContainerUser *user_of(struct call *call, const struct container *c,
                                           struct err *err)
{
    Runtime__V1__ContainerUser *u =
        call_message(call, &runtime__v1__container_user__descriptor, err);
    Runtime__V1__LinuxContainerUser *l =
        call_message(call, &runtime__v1__linux_container_user__descriptor, err);
    int64_t *groups = call_array(call, strlen(c->rec.groups) / 2 + 1, sizeof(*groups), err);
    if (u == NULL || l == NULL || groups == NULL)
        return NULL;
    u->linux = l;
    l->uid = c->rec.uid;
    l->gid = c->rec.gid;
    l->supplemental_groups = groups;
    for (const char *p = c->rec.groups; *p != '\0';) {
        char *end = NULL;
        int64_t gid = (int64_t)strtoul(p, &end, 10);
        if (end == p)
            break; /* a damaged record */
        groups[l->n_supplemental_groups++] = gid;
        p = *end == ' ' ? end + 1 : end;
    }
    return u;
}

Runtime__V1__ContainerState convert_container_state(const struct container *c)
{
    switch (c->rec.phase) {
    case CONTAINER_CREATED:
        return c->start_unsure ? RUNTIME__V1__CONTAINER_STATE__CONTAINER_UNKNOWN
                               : RUNTIME__V1__CONTAINER_STATE__CONTAINER_CREATED;
    case CONTAINER_RUNNING:
        return RUNTIME__V1__CONTAINER_STATE__CONTAINER_RUNNING;
    case CONTAINER_EXITED:
    case CONTAINER_REMOVING:
        return RUNTIME__V1__CONTAINER_STATE__CONTAINER_EXITED;
    case CONTAINER_CREATING:
    default:
        return RUNTIME__V1__CONTAINER_STATE__CONTAINER_UNKNOWN;
    }
}

static const char *image_name(const Runtime__V1__ContainerConfig *config)
{
    return !str_empty(config->image->user_specified_image) ? config->image->user_specified_image
                                                           : config->image->image;
}

Runtime__V1__ContainerStatus *convert_container_status(struct call *call, struct container *c,
                                                       struct err *err)
{
    Runtime__V1__ContainerStatus *s =
        call_message(call, &runtime__v1__container_status__descriptor, err);
    if (s == NULL)
        return NULL;
    const Runtime__V1__ContainerConfig *config = c->config;
    s->id = call_string(call, c->rec.id, err);
    s->metadata = convert_copy(call, &config->metadata->base, err);
    s->state = convert_container_state(c);
    s->created_at = c->rec.created_at;
    s->started_at = c->rec.started_at;
    s->finished_at = c->rec.finished_at;
    s->exit_code = (int32_t)c->rec.exit_code;
    s->image = call_message(call, &runtime__v1__image_spec__descriptor, err);
    s->image_ref = call_string(call, c->rec.image_ref, err);
    s->image_id = call_string(call, c->rec.image_id, err);
    s->reason = call_string(call, c->rec.reason, err);
    s->message = call_string(call, c->rec.message, err);
    s->n_labels = config->n_labels;
    s->labels = convert_map(call, config->labels, config->n_labels,
                            &runtime__v1__container_status__labels_entry__descriptor, err);
    s->n_annotations = config->n_annotations;
    s->annotations =
        convert_map(call, config->annotations, config->n_annotations,
                    &runtime__v1__container_status__annotations_entry__descriptor, err);
    s->mounts = call_array(call, config->n_mounts, sizeof(void *), err);
    for (size_t i = 0; s->mounts != NULL && i < config->n_mounts; i++)
        s->mounts[s->n_mounts++] = convert_copy(call, &config->mounts[i]->base, err);
    s->log_path = call_string(call, c->rec.log_path, err);
    s->user = user_of(call, c, err);
    s->stop_signal = signal_of(c->rec.stop_signal);
    if (err->code != ERR_OK)
        return NULL;
    s->image->image = call_string(call, image_name(config), err);
    s->image->user_specified_image = call_string(call, config->image->user_specified_image, err);
    const Runtime__V1__LinuxContainerResources *resources = container_resources(c);
    if (resources != NULL) {
        s->resources = call_message(call, &runtime__v1__container_resources__descriptor, err);
        if (s->resources != NULL)
            s->resources->linux = convert_copy(call, &resources->base, err);
    }
    return err->code == ERR_OK ? s : NULL;
}
