/* Manifests and indexes as a registry sends them; the first byte chooses what it calls them. */
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "cri/image/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const types[] = {
        NULL,
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json; charset=utf-8",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "text/plain",
    };
    auto_err struct err err = ERR_INIT;
    auto_manifest struct manifest *m = NULL;
    const struct descriptor *d = NULL;
    struct platform here;

    if (size == 0)
        return 0;
    if (manifest_parse((const char *)data + 1, size - 1, types[data[0] % 5], &m, &err) < 0)
        return 0;
    if (m->kind == MANIFEST_IMAGE &&
        (m->n_entries > LIMIT_IMAGE_LAYERS || !digest_valid(m->config.digest)))
        abort();
    for (size_t i = 0; i < m->n_entries; i++)
        if (!digest_valid(m->entries[i].digest))
            abort();
    platform_host(&here);
    if (m->kind == MANIFEST_INDEX && manifest_choose(m, &here, &d, &err) == 0 && d->skip)
        abort();
    return manifest_total(m, size) < size;
}
