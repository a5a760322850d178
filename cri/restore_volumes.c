/* The volumes of a restored pod: those that the saved one had, by container and path in it, in the
 * places of the host that its configuration names now. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "base/str.h"
#include "cri/checkpoint.h"
#include "cri/spec.h"

int checkpoint_check_places(const Runtime__V1__ContainerConfig *c, struct err *err)
{
    for (size_t i = 0; i < c->n_mounts; i++) {
        for (size_t k = 0; k < i; k++) {
            if (strcmp(c->mounts[i]->container_path, c->mounts[k]->container_path) == 0)
                return err_set(err, ERR_PRECONDITION, "two volumes are at %.200s",
                               c->mounts[i]->container_path);
        }
    }
    return 0;
}

/* The place of a path among those of spec_volumes(); -1: it is not there. */
static ssize_t place_of(const Runtime__V1__ContainerConfig *c, const char *container_path)
{
    ssize_t at = 0;
    for (size_t i = 0; i < c->n_mounts; i++) {
        if (spec_is_image_volume(c->mounts[i]))
            continue;
        if (strcmp(c->mounts[i]->container_path, container_path) == 0)
            return at;
        at++;
    }
    return -1;
}

static int check_source(const struct machine_volume *v, struct err *err)
{
    struct stat st;
    if (stat(v->source, &st) < 0)
        return errno == ENOENT || errno == ENOTDIR
                   ? err_set(err, ERR_PRECONDITION, "%.300s is not there", v->source)
                   : err_sys(err, errno, "%.300s", v->source);
    if (S_ISBLK(st.st_mode) || S_ISCHR(st.st_mode))
        return err_set(err, ERR_PRECONDITION, "%.300s is a device", v->source);
    if (v->file != !S_ISDIR(st.st_mode))
        return err_set(err, ERR_PRECONDITION, "%.300s is %s directory, the saved one was %s",
                       v->source, v->file ? "a" : "no", v->file ? "none" : "one");
    auto_err struct err why = ERR_INIT;
    if (v->mirrored && machine_check_mirror(v->source, &why) < 0)
        return err_set(err, ERR_PRECONDITION,
                       "the saved one was a volume that kubelet writes atomically: %s",
                       err_msg(&why));
    return 0;
}

int restore_volumes_find(const struct checkpoint *c, size_t i,
                         const Runtime__V1__ContainerConfig *wanted, struct restore_volumes *out,
                         struct err *err)
{
    const struct checkpoint_container *saved = &c->containers[i];
    size_t n = 0;
    auto_free struct machine_volume *v = spec_volumes(wanted, &n);
    size_t mounts = wanted->n_mounts;
    if (checkpoint_check_places(saved->config, err) < 0 || checkpoint_check_places(wanted, err) < 0)
        return err_wrap(err, "container %.64s", wanted->metadata->name);
    out->list = xrealloc(out->list, out->n + n + 1, sizeof(*out->list));
    out->container = xrealloc(out->container, out->n + n + 1, sizeof(*out->container));
    for (size_t at = 0, k = 0; at < mounts && k < n; at++) {
        const Runtime__V1__Mount *m = wanted->mounts[at];
        if (spec_is_image_volume(m))
            continue;
        ssize_t place = place_of(saved->config, m->container_path);
        if (place < 0 || (size_t)place >= saved->n_volumes)
            return err_set(err, ERR_PRECONDITION, "container %.64s: no volume was saved at %.200s",
                           wanted->metadata->name, m->container_path);
        const struct checkpoint_volume *from = &saved->volumes[place];
        v[k].nth = (uint32_t)k;
        v[k].id = from->id;
        v[k].mirrored = from->mirrored;
        v[k].file = from->file;
        if (check_source(&v[k], err) < 0)
            return err_wrap(err, "container %.64s: volume at %.200s", wanted->metadata->name,
                            m->container_path);
        out->container[out->n] = i;
        out->list[out->n++] = (struct machine_owned_volume){.v = v[k++]};
    }
    return 0;
}

void restore_volumes_clear(struct restore_volumes *v)
{
    free(v->list);
    free(v->container);
    *v = (struct restore_volumes){0};
}
