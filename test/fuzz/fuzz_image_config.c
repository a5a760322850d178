/* Image configs: what is accepted has sound diff_ids and can be copied. */
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "cri/image/manifest.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct image_config cfg = {0}, copy = {0};
    auto_strv struct strv ids = {0};
    struct platform p;

    if (image_config_parse((const char *)data, size, &cfg, &ids, &p, NULL) < 0)
        return 0;
    if (ids.n > LIMIT_IMAGE_LAYERS || cfg.labels.n % 2 != 0 || cfg.user == NULL)
        abort();
    for (size_t i = 0; i < ids.n; i++)
        if (!digest_valid(ids.v[i]) || strlen(ids.v[i]) != 71)
            abort();
    image_config_copy(&copy, &cfg);
    image_config_clear(&cfg);
    image_config_clear(&copy);
    return 0;
}
