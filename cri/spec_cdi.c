#include "cri/spec_cdi.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/str.h"

typedef Runtime__V1__ContainerConfig Container;

int spec_cdi_resolve(const Container *c, struct cdi_edits *edits, struct err *err)
{
    if (c->n_cdi_devices == 0)
        return 0;
    if (c->n_cdi_devices > LIMIT_CDI_EDITS)
        return err_set(err, ERR_INVALID, "more than %d CDI devices", LIMIT_CDI_EDITS);
    const char **names = xcalloc(c->n_cdi_devices, sizeof(*names));
    for (size_t i = 0; i < c->n_cdi_devices; i++)
        names[i] = c->cdi_devices[i]->name;
    int rc = cdi_resolve(NULL, names, c->n_cdi_devices, edits, err);
    free(names);
    return rc;
}

static Container *copy(const Container *c)
{
    size_t len = protobuf_c_message_get_packed_size(&c->base);
    auto_free uint8_t *data = xcalloc(1, len + 1);
    (void)protobuf_c_message_pack(&c->base, data);
    return runtime__v1__container_config__unpack(NULL, len, data);
}

/* What a mount of CRI has fields for. */
static void set_fields(Runtime__V1__Mount *m, const char *option)
{
    if (strcmp(option, "ro") == 0 || strcmp(option, "rw") == 0)
        m->readonly = option[1] == 'o';
    else if (strcmp(option, "rslave") == 0 || strcmp(option, "slave") == 0)
        m->propagation = RUNTIME__V1__MOUNT_PROPAGATION__PROPAGATION_HOST_TO_CONTAINER;
    else if (strcmp(option, "rshared") == 0 || strcmp(option, "shared") == 0)
        m->propagation = RUNTIME__V1__MOUNT_PROPAGATION__PROPAGATION_BIDIRECTIONAL;
    else if (strcmp(option, "rprivate") == 0 || strcmp(option, "private") == 0)
        m->propagation = RUNTIME__V1__MOUNT_PROPAGATION__PROPAGATION_PRIVATE;
}

static bool has_field(const char *option)
{
    static const char *const all[] = {"bind",   "rbind",  "ro",      "rw",      "slave",
                                      "rslave", "shared", "rshared", "private", "rprivate"};
    for (size_t i = 0; i < ARRAY_LEN(all); i++) {
        if (strcmp(option, all[i]) == 0)
            return true;
    }
    return false;
}

static void add_mounts(Container *c, const struct cdi_edits *e)
{
    c->mounts = xrealloc(c->mounts, c->n_mounts + e->n_mounts + 1, sizeof(*c->mounts));
    for (size_t i = 0; i < e->n_mounts; i++) {
        Runtime__V1__Mount *m = xcalloc(1, sizeof(*m));
        runtime__v1__mount__init(m);
        m->host_path = xstrdup(e->mounts[i].host_path);
        m->container_path = xstrdup(e->mounts[i].container_path);
        for (size_t k = 0; k < e->mounts[i].options.n; k++)
            set_fields(m, e->mounts[i].options.v[k]);
        c->mounts[c->n_mounts++] = m;
    }
}

static void add_gids(Container *c, const struct cdi_edits *e)
{
    if (c->linux == NULL) {
        c->linux = xcalloc(1, sizeof(*c->linux));
        runtime__v1__linux_container_config__init(c->linux);
    }
    if (c->linux->security_context == NULL) {
        c->linux->security_context = xcalloc(1, sizeof(*c->linux->security_context));
        runtime__v1__linux_container_security_context__init(c->linux->security_context);
    }
    Runtime__V1__LinuxContainerSecurityContext *s = c->linux->security_context;
    s->supplemental_groups = xrealloc(s->supplemental_groups, s->n_supplemental_groups + e->n_gids,
                                      sizeof(*s->supplemental_groups));
    for (size_t i = 0; i < e->n_gids; i++)
        s->supplemental_groups[s->n_supplemental_groups++] = e->gids[i];
}

Container *spec_cdi_apply(const Container *c, struct err *err)
{
    auto_cdi_edits struct cdi_edits e = {0};
    if (spec_cdi_resolve(c, &e, err) < 0)
        return NULL;
    Container *out = copy(c);
    if (out == NULL) {
        (void)err_set(err, ERR_EXHAUSTED, "out of memory");
        return NULL;
    }
    add_mounts(out, &e);
    if (e.n_gids > 0)
        add_gids(out, &e);
    return out;
}

/* --- the spec --- */

static void add_options(json_t *spec, const struct cdi_mount *m)
{
    size_t i;
    json_t *item;
    json_array_foreach(json_object_get(spec, "mounts"), i, item)
    {
        const char *at = json_string_value(json_object_get(item, "destination"));
        json_t *options = json_object_get(item, "options");
        if (at == NULL || strcmp(at, m->container_path) != 0)
            continue;
        for (size_t k = 0; k < m->options.n; k++) {
            if (!has_field(m->options.v[k]))
                (void)json_array_append_new(options, json_string(m->options.v[k]));
        }
    }
}

static json_t *list_of(const struct strv *v)
{
    json_t *list = json_array();
    for (size_t i = 0; i < v->n; i++)
        (void)json_array_append_new(list, json_string(v->v[i]));
    return list;
}

int spec_cdi_finish(const Container *c, json_t *spec, struct err *err)
{
    auto_cdi_edits struct cdi_edits e = {0};
    if (spec_cdi_resolve(c, &e, err) < 0)
        return -1;
    for (size_t i = 0; i < e.n_mounts; i++)
        add_options(spec, &e.mounts[i]);
    if (e.n_hooks == 0)
        return 0;
    json_t *hooks = json_array();
    for (size_t i = 0; i < e.n_hooks; i++) {
        json_t *h = json_pack("{s:s, s:o, s:o}", "path", e.hooks[i].path, "args",
                              list_of(&e.hooks[i].args), "env", list_of(&e.hooks[i].env));
        if (e.hooks[i].timeout > 0)
            (void)json_object_set_new(h, "timeout", json_integer(e.hooks[i].timeout));
        (void)json_array_append_new(hooks, h);
    }
    (void)json_object_set_new(spec, "hooks", json_pack("{s:o}", "startContainer", hooks));
    return 0;
}
