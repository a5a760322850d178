/* The daemon's record of a pod's network: what is accepted comes back the same. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "netplugin/netinfo.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    auto_free char *text = malloc(size + 1), *once = NULL, *twice = NULL;
    auto_netinfo struct netinfo a = {0}, b = {0};

    memcpy(text, data, size);
    text[size] = '\0';
    if (netinfo_decode(text, &a, NULL) < 0)
        return 0;
    once = netinfo_encode(&a);
    if (netinfo_decode(once, &b, NULL) < 0)
        abort();
    twice = netinfo_encode(&b);
    if (strcmp(once, twice) != 0)
        abort();
    return 0;
}
