/* Network lists, single plugins and cache files. A list that was accepted is accepted again as the
 * cache keeps it. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "netplugin/cache.h"
#include "netplugin/conf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    auto_cache_entry struct cache_entry e = {0};

    for (int list = 0; list < 2; list++) {
        auto_cni_conf struct cni_conf *c =
            cni_conf_parse((const char *)data, size, list == 1, NULL, NULL);
        auto_cni_conf struct cni_conf *again =
            c != NULL ? cni_conf_parse(c->text, strlen(c->text), true, NULL, NULL) : NULL;

        if (c != NULL && strlen(c->text) < size * 2 && again == NULL)
            abort();
    }
    (void)cache_parse((const char *)data, size, &e, NULL);
    return 0;
}
