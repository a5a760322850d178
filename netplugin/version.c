#include "netplugin/version.h"

#include <stddef.h>
#include <string.h>

#include "base/cleanup.h"

static const char *const known[] = {"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"};

static int rank(const char *v)
{
    for (size_t i = 0; v != NULL && i < ARRAY_LEN(known); i++) {
        if (strcmp(known[i], v) == 0)
            return (int)i;
    }
    return -1;
}

const char *cni_version_known(const char *v)
{
    int r = rank(v);

    return r < 0 ? NULL : known[r];
}

bool cni_version_at_least(const char *v, const char *other)
{
    return rank(v) >= rank(other);
}
