/* Manifests of checkpoints: what is taken is within its bounds and says the same when it is written
 * again. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "cri/checkpoint_manifest.h"
#include "cri/spec.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct checkpoint *c)
{
    const struct hv_shape *s = &c->machine.shape;

    if (s->n_disks > HV_MAX_DISKS || s->vcpus == 0 || s->vcpus > s->max_vcpus ||
        s->max_bytes < s->boot_bytes || s->added_bytes > s->max_bytes - s->boot_bytes ||
        strlen(c->mac) != 17 || strlen(c->sandbox_id) != 64 || c->pod->metadata == NULL ||
        c->n_containers > LIMIT_AGENT_CONTAINERS ||
        c->machine.last_volume >= MACHINE_MIRROR_FIRST ||
        c->machine.last_mirror < MACHINE_MIRROR_FIRST ||
        c->scratch.bytes != c->machine.scratch_bytes)
        abort();
    for (size_t i = 0; i < s->n_disks; i++)
        if (s->disks[i].slot == 0 || s->disks[i].slot >= HV_MAX_DISKS ||
            !digest_valid(c->disks[i].image) || strlen(s->disks[i].serial) != 20)
            abort();
    for (size_t i = 0; i < c->n_containers; i++)
        if (strlen(c->containers[i].id) != 64 || strchr(c->containers[i].id, '/') != NULL ||
            c->containers[i].config->metadata == NULL)
            abort();
}

static void check_volumes(const struct checkpoint *c, const struct checkpoint_container *own)
{
    size_t wanted = 0;

    for (size_t i = 0; i < own->config->n_mounts; i++)
        wanted += !spec_is_image_volume(own->config->mounts[i]);
    if (own->n_volumes != wanted)
        abort();
    for (size_t i = 0; i < own->n_volumes; i++) {
        const struct checkpoint_volume *v = &own->volumes[i];
        if (v->mirrored ? v->id <= MACHINE_MIRROR_FIRST || v->id > c->machine.last_mirror || v->file
                        : v->id == 0 || v->id > c->machine.last_volume)
            abort();
        for (size_t k = 0; k < i; k++)
            if (!v->mirrored && own->volumes[k].id == v->id)
                abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    auto_arena struct arena *a = arena_new(MiB(64));
    auto_err struct err err = ERR_INIT;
    struct checkpoint c;
    int r = checkpoint_decode((const char *)data, size, a, &c, &err);

    if ((r < 0) != (err.code != ERR_OK))
        abort();
    if (r < 0)
        return 0;
    check(&c);
    for (size_t i = 0; i < c.n_containers; i++)
        check_volumes(&c, &c.containers[i]);
    if (c.volumes.digest[0] == '\0') /* of version 1, which is read but no more written */
        return 0;
    auto_free char *text = checkpoint_encode(&c, &err);
    struct checkpoint again;
    if (text == NULL || checkpoint_decode(text, strlen(text), a, &again, &err) < 0)
        abort();
    auto_free char *second = checkpoint_encode(&again, &err);
    if (second == NULL || strcmp(text, second) != 0)
        abort();
    return 0;
}
