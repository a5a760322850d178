/* CDI files, as JSON or (after a first byte of 'y') as YAML: what is found has absolute paths and
 * permissions of r, w and m. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "cri/cdi.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    auto_cdi_edits struct cdi_edits e = {0};
    auto_err struct err err = ERR_INIT;
    bool yaml = size > 0 && data[0] == 'y';
    int r = cdi_parse((const char *)data + yaml, size - yaml, yaml, "v.com/gpu", "0", &e, &err);

    if ((r < 0) != (err.code != ERR_OK) ||
        (r == 0 &&
         (e.n_nodes > 0 || e.env.n > 0 || e.n_mounts > 0 || e.n_hooks > 0 || e.n_gids > 0)))
        abort();
    if (e.n_nodes > LIMIT_CDI_EDITS || e.env.n > LIMIT_CDI_EDITS || e.n_mounts > LIMIT_CDI_EDITS ||
        e.n_hooks > LIMIT_CDI_EDITS || e.n_gids > LIMIT_USER_GROUPS)
        abort();
    for (size_t i = 0; i < e.n_nodes; i++)
        if (e.nodes[i].path[0] != '/' || strspn(e.nodes[i].permissions, "rwm") == 0)
            abort();
    for (size_t i = 0; i < e.n_mounts; i++)
        if (e.mounts[i].host_path[0] != '/' || e.mounts[i].container_path[0] != '/')
            abort();
    for (size_t i = 0; i < e.n_hooks; i++)
        if (e.hooks[i].path[0] != '/')
            abort();
    for (size_t i = 0; i < e.env.n; i++)
        if (strchr(e.env.v[i], '=') == NULL)
            abort();
    return 0;
}
