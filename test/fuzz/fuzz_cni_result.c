/* Any plugin output: parsing never misbehaves, and what was accepted can be written and read again
 * in every version. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "base/limits.h"
#include "netplugin/json.h"
#include "netplugin/result.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const versions[] = {"0.2.0", "0.4.0", "1.0.0", "1.1.0"};
    auto_json json_t *o = json_parse((const char *)data, size, LIMIT_CNI_OUTPUT, NULL);

    if (o == NULL)
        return 0;
    for (size_t i = 0; i < sizeof(versions) / sizeof(versions[0]); i++) {
        auto_cni_result struct cni_result r = {0}, again = {0};
        auto_netinfo struct netinfo n = {0};
        auto_json json_t *out = NULL;

        if (cni_result_parse(o, versions[i], &r, NULL) < 0)
            continue;
        cni_result_pod_ips(&r, "eth0", &n);
        out = cni_result_encode(&r, versions[i]);
        if (cni_result_parse(out, versions[i], &again, NULL) < 0)
            abort();
    }
    return 0;
}
