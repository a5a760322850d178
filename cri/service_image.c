#include "cri/service_image.h"

#include <jansson.h>
#include <string.h>

#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "cri/config.h"
#include "cri/daemon.h"
#include "cri/image/image.h"
#include "cri/service_runtime.h"
#include "cri/telemetry.h"
#include "proto/cri/v1/api.pb-c.h"

/* --- images as CRI sees them --- */

/* Copies a list into the arena. */
static char **strings(struct call *call, const struct strv *l, struct err *err)
{
    char **out = call_array(call, l->n, sizeof(*out), err);
    for (size_t i = 0; out != NULL && i < l->n; i++) {
        out[i] = call_string(call, l->v[i], err);
        if (out[i] == NULL)
            return NULL;
    }
    return out;
}

/* The user part of "user[:group]" of an image: a number becomes uid, anything else username. No
 * user is root; saying so spares the client a rule. */
static int put_user(struct call *call, Runtime__V1__Image *out, const char *user, struct err *err)
{
    auto_free char *name = xstrndup(user, strcspn(user, ":"));
    uint64_t uid = 0;
    if (name[0] != '\0' && (str_to_u64(name, &uid) < 0 || uid > INT64_MAX)) {
        out->username = call_string(call, name, err);
        return out->username == NULL ? -1 : 0;
    }
    out->uid = call_message(call, &runtime__v1__int64_value__descriptor, err);
    if (out->uid == NULL)
        return -1;
    out->uid->value = (int64_t)uid;
    return 0;
}

static Runtime__V1__Image *image_message(struct call *call, const struct image *i, struct err *err)
{
    Runtime__V1__Image *out = call_message(call, &runtime__v1__image__descriptor, err);
    if (out == NULL)
        return NULL;
    out->id = call_string(call, i->id, err);
    out->repo_tags = strings(call, &i->repo_tags, err);
    out->n_repo_tags = i->repo_tags.n;
    out->repo_digests = strings(call, &i->repo_digests, err);
    out->n_repo_digests = i->repo_digests.n;
    out->size = i->size > 0 ? i->size : 1; /* clients refuse an image of size 0 */
    out->pinned = i->pinned;
    if (out->id == NULL || out->repo_tags == NULL || out->repo_digests == NULL ||
        put_user(call, out, i->config.user, err) < 0)
        return NULL;
    return out;
}

static void free_list(struct image **list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        image_free(list[i]);
    free(list);
}

/* The images that a filter lets through; an absent one is no error. */
static int find_images(const struct daemon *d, const Runtime__V1__ImageFilter *filter,
                       struct image ***list, size_t *n, struct err *err)
{
    if (filter == NULL || filter->image == NULL || str_empty(filter->image->image))
        return image_list(d->images, list, n, err);
    *list = xcalloc(1, sizeof(**list));
    *n = 0;
    auto_err struct err why = ERR_INIT;
    (*list)[0] = image_find(d->images, filter->image->image, &why);
    if ((*list)[0] != NULL) {
        *n = 1;
        return 0;
    }
    free(take(*list));
    return why.code == ERR_NOT_FOUND ? 0 : err_move(err, &why);
}

/* StreamImages: as many as fit well into one message at a time. */
#define STREAM_BATCH 64

int cri_stream_images(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                      struct err *err)
{
    (void)reply;
    const struct daemon *d = call->daemon;
    const Runtime__V1__StreamImagesRequest *r = (const Runtime__V1__StreamImagesRequest *)req;
    struct image **list = NULL;
    size_t n = 0;
    if (find_images(d, r->filter, &list, &n, err) < 0)
        return -1;
    int rc = 0;
    for (size_t at = 0; rc == 0 && at < n; at += STREAM_BATCH) {
        /* A batch has memory of its own: the call's would grow with the number of images. */
        auto_arena struct arena *arena = arena_new(LIMIT_CALL_ARENA);
        struct call part = *call;
        part.arena = arena;
        Runtime__V1__StreamImagesResponse out = RUNTIME__V1__STREAM_IMAGES_RESPONSE__INIT;
        size_t want = n - at < STREAM_BATCH ? n - at : STREAM_BATCH;
        out.images = arena == NULL ? NULL : call_array(&part, want, sizeof(*out.images), err);
        if (out.images == NULL)
            rc = arena != NULL ? -1 : err_set(err, ERR_EXHAUSTED, "out of memory");
        for (size_t i = 0; rc == 0 && i < want; i++) {
            out.images[i] = image_message(&part, list[at + i], err);
            rc = out.images[i] == NULL ? -1 : 0;
            out.n_images++;
        }
        if (rc == 0)
            rc = call_send(call, &out.base, err);
    }
    free_list(list, n);
    return rc;
}

int cri_list_images(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                    struct err *err)
{
    const struct daemon *d = call->daemon;
    const Runtime__V1__ListImagesRequest *r = (const Runtime__V1__ListImagesRequest *)req;
    struct image **list = NULL;
    size_t n = 0;
    if (find_images(d, r->filter, &list, &n, err) < 0)
        return -1;
    Runtime__V1__ListImagesResponse *out =
        call_message(call, &runtime__v1__list_images_response__descriptor, err);
    if (out != NULL)
        out->images = call_array(call, n, sizeof(*out->images), err);
    bool ok = out != NULL && out->images != NULL;
    for (size_t i = 0; ok && i < n; i++) {
        out->images[i] = image_message(call, list[i], err);
        ok = out->images[i] != NULL;
        out->n_images++;
    }
    free_list(list, n);
    if (!ok)
        return -1;
    *reply = &out->base;
    return 0;
}

static json_t *json_list(const struct strv *l)
{
    json_t *a = json_array();
    for (size_t i = 0; i < l->n; i++)
        (void)json_array_append_new(a, json_string(l->v[i]));
    return a;
}

/* For people who ask `crictl inspecti`: what containers of this image start from. */
static char *verbose_info(const struct image *i)
{
    json_t *labels = json_object();
    for (size_t k = 0; k + 1 < i->config.labels.n; k += 2)
        (void)json_object_set_new(labels, i->config.labels.v[k],
                                  json_string(i->config.labels.v[k + 1]));
    json_t *config = json_object();
    (void)json_object_set_new(config, "entrypoint", json_list(&i->config.entrypoint));
    (void)json_object_set_new(config, "cmd", json_list(&i->config.cmd));
    (void)json_object_set_new(config, "env", json_list(&i->config.env));
    (void)json_object_set_new(config, "volumes", json_list(&i->config.volumes));
    (void)json_object_set_new(config, "workingDir", json_string(i->config.working_dir));
    (void)json_object_set_new(config, "user", json_string(i->config.user));
    (void)json_object_set_new(config, "stopSignal", json_string(i->config.stop_signal));
    (void)json_object_set_new(config, "labels", labels);
    json_t *info = json_object();
    (void)json_object_set_new(info, "layers", json_integer((json_int_t)i->n_layers));
    (void)json_object_set_new(info, "compressedBytes", json_integer((json_int_t)i->size));
    (void)json_object_set_new(info, "diskBytes", json_integer((json_int_t)i->disk_size));
    (void)json_object_set_new(info, "config", config);
    char *text = json_dumps(info, JSON_COMPACT);
    json_decref(info);
    return text;
}

static int put_info(struct call *call, Runtime__V1__ImageStatusResponse *out, const char *text,
                    struct err *err)
{
    Runtime__V1__ImageStatusResponse__InfoEntry *e =
        call_message(call, &runtime__v1__image_status_response__info_entry__descriptor, err);
    out->info = call_array(call, 1, sizeof(*out->info), err);
    if (e == NULL || out->info == NULL)
        return -1;
    e->key = call_string(call, "info", err);
    e->value = call_string(call, text, err);
    out->info[0] = e;
    out->n_info = 1;
    return e->key == NULL || e->value == NULL ? -1 : 0;
}

/* The reference that a request names. */
static const char *reference(const Runtime__V1__ImageSpec *spec, struct err *err)
{
    if (spec == NULL || str_empty(spec->image)) {
        (void)err_set(err, ERR_INVALID, "the request names no image");
        return NULL;
    }
    return spec->image;
}

int cri_image_status(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                     struct err *err)
{
    const struct daemon *d = call->daemon;
    const Runtime__V1__ImageStatusRequest *r = (const Runtime__V1__ImageStatusRequest *)req;
    const char *name = reference(r->image, err);
    if (name == NULL || cri_check_handler(r->image->runtime_handler, err) < 0)
        return -1;
    Runtime__V1__ImageStatusResponse *out =
        call_message(call, &runtime__v1__image_status_response__descriptor, err);
    if (out == NULL)
        return -1;
    *reply = &out->base;
    auto_err struct err why = ERR_INIT;
    auto_image struct image *i = image_find(d->images, name, &why);
    if (i == NULL) /* absent is an answer, not an error */
        return why.code == ERR_NOT_FOUND ? 0 : err_move(err, &why);
    out->image = image_message(call, i, err);
    if (out->image == NULL)
        return -1;
    if (!r->verbose)
        return 0;
    auto_free char *info = verbose_info(i);
    return info == NULL ? err_set(err, ERR_INTERNAL, "image `%s`: cannot be described", name)
                        : put_info(call, out, info, err);
}

/* --- pull, remove --- */

static void wipe(const char *s)
{
    /* The request is unpacked into memory of this call; nobody else sees the change. */
    if (!str_empty(s))
        explicit_bzero((char *)(uintptr_t)s, strlen(s));
}

int cri_pull_image(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                   struct err *err)
{
    const struct daemon *d = call->daemon;
    const Runtime__V1__PullImageRequest *r = (const Runtime__V1__PullImageRequest *)req;
    const char *name = reference(r->image, err);
    /* Images are the same for all our handlers, but one that does not exist is a mistake that the
     * client should hear of. */
    if (name == NULL || cri_check_handler(r->image->runtime_handler, err) < 0)
        return -1;
    struct image_auth auth = {0};
    const Runtime__V1__AuthConfig *a = r->auth;
    if (a != NULL)
        auth = (struct image_auth){a->username,       a->password,       a->auth,
                                   a->server_address, a->identity_token, a->registry_token};
    auto_free char *id = NULL;
    auto_image struct image *before = image_find(d->images, name, NULL);
    int64_t begin = mono_ns();
    int rc =
        image_pull(d->images, name, a != NULL ? &auth : NULL, NULL, NULL, call->cancel, &id, err);
    bool brought = rc == 0 && (before == NULL || strcmp(before->id, id) != 0);
    auto_image struct image *now = brought ? image_find(d->images, id, NULL) : NULL;
    telemetry_pull(rc == 0, mono_ns() - begin, now != NULL ? now->size : 0);
    if (a != NULL) {
        wipe(a->password);
        wipe(a->auth);
        wipe(a->identity_token);
        wipe(a->registry_token);
    }
    if (rc < 0)
        return -1;
    log_info("image pulled", LOG_STR("image", name), LOG_STR("id", id));
    Runtime__V1__PullImageResponse *out =
        call_message(call, &runtime__v1__pull_image_response__descriptor, err);
    if (out == NULL)
        return -1;
    out->image_ref = call_string(call, id, err);
    *reply = &out->base;
    return out->image_ref == NULL ? -1 : 0;
}

int cri_remove_image(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                     struct err *err)
{
    const struct daemon *d = call->daemon;
    const Runtime__V1__RemoveImageRequest *r = (const Runtime__V1__RemoveImageRequest *)req;
    const char *name = reference(r->image, err);
    if (name == NULL || image_remove(d->images, name, d->image_in_use, d->runtime, err) < 0)
        return -1;
    *reply = call_message(call, &runtime__v1__remove_image_response__descriptor, err);
    return *reply == NULL ? -1 : 0;
}

static Runtime__V1__FilesystemUsage *usage(struct call *call, const struct image_fs *fs,
                                           struct err *err)
{
    Runtime__V1__FilesystemUsage *u =
        call_message(call, &runtime__v1__filesystem_usage__descriptor, err);
    if (u == NULL)
        return NULL;
    u->timestamp = wall_ns();
    u->fs_id = call_message(call, &runtime__v1__filesystem_identifier__descriptor, err);
    u->used_bytes = call_message(call, &runtime__v1__uint64_value__descriptor, err);
    u->inodes_used = call_message(call, &runtime__v1__uint64_value__descriptor, err);
    if (u->fs_id == NULL || u->used_bytes == NULL || u->inodes_used == NULL)
        return NULL;
    u->fs_id->mountpoint = call_string(call, fs->mountpoint, err);
    u->used_bytes->value = fs->used_bytes;
    u->inodes_used->value = fs->inodes_used;
    return u->fs_id->mountpoint == NULL ? NULL : u;
}

int cri_image_fs_info(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                      struct err *err)
{
    (void)req;
    const struct daemon *d = call->daemon;
    Runtime__V1__ImageFsInfoResponse *out =
        call_message(call, &runtime__v1__image_fs_info_response__descriptor, err);
    if (out == NULL)
        return -1;
    struct image_fs fs = {0};
    if (image_fs_info(d->images, &fs, err) < 0)
        return -1;
    Runtime__V1__FilesystemUsage *images = usage(call, &fs, err);
    free(fs.mountpoint);
    /* What containers write is in their pods' scratch disks, files of one name. */
    image_dir_usage(d->config->state_root, "scratch.img", 2, &fs);
    Runtime__V1__FilesystemUsage *containers = usage(call, &fs, err);
    free(fs.mountpoint);
    out->image_filesystems = call_array(call, 1, sizeof(images), err);
    out->container_filesystems = call_array(call, 1, sizeof(containers), err);
    if (images == NULL || containers == NULL || out->image_filesystems == NULL ||
        out->container_filesystems == NULL)
        return -1;
    out->image_filesystems[0] = images;
    out->container_filesystems[0] = containers;
    out->n_image_filesystems = out->n_container_filesystems = 1;
    *reply = &out->base;
    return 0;
}
