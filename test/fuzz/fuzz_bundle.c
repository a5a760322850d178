/* The tar of an image archive. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/limits.h"
#include "cri/image/bundle.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"index.json", "manifest.json", "a/b", "..", ""};
    auto_close int fd = memfd_create("bundle", MFD_CLOEXEC);
    char path[64];
    if (fd < 0 || write(fd, data, size) != (ssize_t)size)
        abort();
    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    auto_bundle struct bundle *b = bundle_open(path, NULL);
    for (size_t i = 0; b != NULL && i < ARRAY_LEN(names); i++) {
        size_t len;
        free(bundle_read(b, names[i], MiB(1), &len, NULL));
    }
    return 0;
}
