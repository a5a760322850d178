/* A packed layer. */
#include <stdlib.h>
#include <sys/mman.h>

#include "base/limits.h"
#include "cri/image/stream.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    auto_close int fd = memfd_create("packed", MFD_CLOEXEC);
    char digest[DIGEST_MAX];
    uint64_t bytes;
    if (fd < 0 || write(fd, data, size) != (ssize_t)size || lseek(fd, 0, SEEK_SET) != 0)
        abort();
    auto_stream struct stream *s = stream_open(fd, MiB(8), NULL);
    if (s != NULL)
        (void)stream_finish(s, digest, &bytes, NULL);
    return 0;
}
