/* Manifests of checkpoints: what is taken is within its bounds and says the same when it is written
 * again. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "cri/checkpoint_manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const struct checkpoint *c)
{
    const struct hv_shape *s = &c->machine.shape;

    if (s->n_disks > HV_MAX_DISKS || s->vcpus == 0 || s->vcpus > s->max_vcpus ||
        s->max_bytes < s->boot_bytes || s->added_bytes > s->max_bytes - s->boot_bytes ||
        strlen(c->mac) != 17 || strlen(c->sandbox_id) != 64 || c->pod->metadata == NULL ||
        c->n_containers > LIMIT_AGENT_CONTAINERS || c->scratch.bytes != c->machine.scratch_bytes)
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
    auto_free char *text = checkpoint_encode(&c, &err);
    struct checkpoint again;
    if (text == NULL || checkpoint_decode(text, strlen(text), a, &again, &err) < 0)
        abort();
    auto_free char *second = checkpoint_encode(&again, &err);
    if (second == NULL || strcmp(text, second) != 0)
        abort();
    return 0;
}
