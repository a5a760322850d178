#include "cri/container_images.h"

#include <stdlib.h>
#include <string.h>

#include "base/failpoint.h"
#include "base/log.h"
#include "base/str.h"
#include "cri/spec.h"

/* A guest that does not let go of a disk must not hold up the removal of a container. */
#define DETACH_NS (20LL * 1000000000)
/* How errors of image volumes begin, here and in the agent (agent/container_spec.c). */
#define VOLUME_WORDS "image volume at "

int container_images_mark_error(struct err *err)
{
    if (err == NULL || strstr(err_msg(err), VOLUME_WORDS) == NULL)
        return -1;
    return err_wrap(err, IMAGE_VOLUME_ERROR);
}

/* --- which --- */

static void set(char **field, const char *text)
{
    /* protobuf-c's shared empty string is not for free() */
    if (*field != (char *)protobuf_c_empty_string)
        free(*field);
    *field = xstrdup(text);
}

const char *container_images_ref(const struct image *i)
{
    return i->repo_digests.n > 0 ? i->repo_digests.v[0] : i->id;
}

static int find_volume(struct container_images *x, Runtime__V1__Mount *m, struct err *err)
{
    auto_image struct image *i = image_hold(x->store, m->image->image, err);
    if (i == NULL)
        return err_wrap(err, VOLUME_WORDS "%.200s", m->container_path);
    strv_add(&x->held, i->id);
    if (str_empty(m->image->user_specified_image))
        set(&m->image->user_specified_image, m->image->image);
    set(&m->image->image, i->id);
    set(&m->image->image_ref, container_images_ref(i));
    return 0;
}

int container_images_find(struct image_store *s, const Runtime__V1__ContainerConfig *config,
                          struct container_images *out, struct err *err)
{
    *out = (struct container_images){.store = s};
    out->own = image_hold(s, config->image->image, err);
    if (out->own == NULL)
        return -1;
    strv_add(&out->held, out->own->id);
    out->config = (Runtime__V1__ContainerConfig *)message_clone(&config->base);
    for (size_t i = 0; i < out->config->n_mounts; i++) {
        Runtime__V1__Mount *m = out->config->mounts[i];
        if (spec_is_image_volume(m) && find_volume(out, m, err) < 0) {
            container_images_let_go(out);
            return -1;
        }
    }
    return 0;
}

void container_images_let_go(struct container_images *x)
{
    for (size_t i = 0; i < x->held.n; i++)
        image_unhold(x->store, x->held.v[i]);
    strv_clear(&x->held);
    image_free(take(x->own));
    if (x->config != NULL)
        protobuf_c_message_free_unpacked(&take(x->config)->base, NULL);
}

bool container_images_uses(const struct container *c, const char *id)
{
    if (strcmp(c->rec.image_id, id) == 0)
        return true;
    for (size_t i = 0; i < c->config->n_mounts; i++) {
        const Runtime__V1__Mount *m = c->config->mounts[i];
        if (spec_is_image_volume(m) && strcmp(m->image->image, id) == 0)
            return true;
    }
    return false;
}

/* --- their disks --- */

/* Ids, each once, the container's own first. */
static void ids_of(const struct container *c, struct strv *ids)
{
    strv_add(ids, c->rec.image_id);
    for (size_t i = 0; i < c->config->n_mounts; i++) {
        const Runtime__V1__Mount *m = c->config->mounts[i];
        bool known = !spec_is_image_volume(m);
        for (size_t k = 0; !known && k < ids->n; k++)
            known = strcmp(ids->v[k], m->image->image) == 0;
        if (!known)
            strv_add(ids, m->image->image);
    }
}

/* On the host: a directory under the disk's name. */
static int attach_tree(struct container *c, struct machine *m, const char *id,
                       struct cancel *cancel, struct err *err)
{
    auto_free char *dir = NULL;
    char serial[21];
    image_disk_serial(id, serial);
    if (image_tree_dir(c->rt->deps.images, id, cancel, &dir, err) < 0 ||
        FAILPOINT("container.tree", err) < 0 || machine_attach_tree(m, serial, dir, err) < 0)
        return err_wrap(err, "attach image %.19s", id);
    return 0;
}

static int attach(struct container *c, struct machine *m, const char *id, struct cancel *cancel,
                  struct err *err)
{
    if (machine_backend(m) == BACKEND_HOST)
        return attach_tree(c, m, id, cancel, err);
    struct image_disk disk = {0};
    if (image_disk_open(c->rt->deps.images, id, &disk, err) < 0)
        return err_wrap(err, "open image %.19s", id);
    struct disk_part *parts = xcalloc(disk.n_parts, sizeof(*parts));
    for (size_t i = 0; i < disk.n_parts; i++)
        parts[i] = (struct disk_part){.fd = disk.parts[i].fd, .size = disk.parts[i].size};
    int rc = FAILPOINT("container.disk", err);
    if (rc == 0)
        rc = machine_attach_image(m, disk.serial, parts, disk.n_parts, cancel, err);
    free(parts);
    image_disk_clear(&disk);
    return rc < 0 ? err_wrap(err, "attach image %.19s", id) : 0;
}

/* The mount that brought an image, for errors. */
static const char *where(const struct container *c, const char *id)
{
    for (size_t i = 0; i < c->config->n_mounts; i++) {
        const Runtime__V1__Mount *m = c->config->mounts[i];
        if (spec_is_image_volume(m) && strcmp(m->image->image, id) == 0)
            return m->container_path;
    }
    return "?";
}

int container_images_attach(struct container *c, struct machine *m, struct cancel *cancel,
                            struct err *err)
{
    auto_strv struct strv ids = {0};
    ids_of(c, &ids);
    if (oplock_take(&c->sandbox->disks, cancel, err) < 0)
        return -1;
    auto_oplock struct oplock *held = &c->sandbox->disks;
    for (size_t i = 0; i < ids.n; i++) {
        if (attach(c, m, ids.v[i], cancel, err) < 0)
            return i == 0 ? -1 : err_wrap(err, VOLUME_WORDS "%.200s", where(c, ids.v[i]));
    }
    return 0;
}

void container_images_volume_disks(const struct container *c, struct strv *serials)
{
    for (size_t i = 0; i < c->config->n_mounts; i++) {
        char serial[21];
        if (!spec_is_image_volume(c->config->mounts[i]))
            continue;
        image_disk_serial(c->config->mounts[i]->image->image, serial);
        strv_add(serials, serial);
    }
}

/* Whether a container of the pod uses the image's disk. */
static bool used(struct sandbox *s, const char *id)
{
    const struct container *c;
    bool found = false;
    (void)pthread_mutex_lock(&s->rt->lock);
    TAILQ_FOREACH(c, &s->containers, link)
    found = found || (!c->disks_left && container_images_uses(c, id));
    (void)pthread_mutex_unlock(&s->rt->lock);
    return found;
}

static void detach(struct sandbox *s, struct machine *m, const char *id, struct cancel *cancel)
{
    char serial[21];
    const char *disk = serial;
    auto_err struct err err = ERR_INIT;
    image_disk_serial(id, serial);
    if (!used(s, id) && machine_detach_image(m, serial, cancel, &err) < 0)
        log_warn("an image's disk stays in its pod", LOG_STR("sandbox", s->rec.id),
                 LOG_STR("disk", disk), LOG_STR("error", err_msg(&err)));
}

/* The container's own image stays plugged in, instead of the one that did so far: unplugging takes
 * a guest a tenth of a second, and the next container is mostly one of the same image. */
static void keep_one(struct container *c, struct machine *m, struct cancel *cancel)
{
    struct sandbox *s = c->sandbox;
    if (s->idle_image != NULL && strcmp(s->idle_image, c->rec.image_id) == 0)
        return;
    auto_free char *before = take(s->idle_image);
    s->idle_image = xstrdup(c->rec.image_id);
    if (before != NULL)
        detach(s, m, before, cancel);
}

void container_images_detach(struct container *c, struct cancel *cancel)
{
    auto_strv struct strv ids = {0};
    auto_cancel struct cancel *limit = cancel_child(cancel, mono_ns() + DETACH_NS, NULL);
    struct machine *m = limit != NULL ? sandbox_use_machine(c->sandbox, NULL) : NULL;
    if (m == NULL)
        return; /* they went with it */
    ids_of(c, &ids);
    if (oplock_take(&c->sandbox->disks, limit, NULL) == 0) {
        auto_oplock struct oplock *held = &c->sandbox->disks;
        (void)pthread_mutex_lock(&c->rt->lock);
        c->disks_left = true;
        (void)pthread_mutex_unlock(&c->rt->lock);
        keep_one(c, m, limit);
        for (size_t i = 1; i < ids.n; i++) {
            if (strcmp(ids.v[i], c->sandbox->idle_image) != 0)
                detach(c->sandbox, m, ids.v[i], limit);
        }
    }
    sandbox_release_machine(c->sandbox);
}
