/*
 * The whole way of a layer: tar, tree, erofs file, read back, merged. What was written must be
 * readable.
 */
#include <stdlib.h>
#include <sys/mman.h>

#include "base/limits.h"
#include "cri/image/apply.h"
#include "cri/image/erofs_read.h"
#include "cri/image/merge.h"

struct input {
    const uint8_t *data;
    size_t len;
};

static ssize_t next_bytes(void *arg, const void **data, struct err *err)
{
    struct input *in = arg;
    size_t n = in->len < 700 ? in->len : 700;
    (void)err;
    *data = in->data;
    in->data += n;
    in->len -= n;
    return (ssize_t)n;
}

static void read_back(int fd, uint64_t size)
{
    auto_err struct err err = ERR_INIT;
    auto_tree struct tree *image = tree_new(MiB(32), NULL);
    struct erofs_layer layer;
    void *file = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (file == MAP_FAILED || image == NULL)
        abort();
    if (erofs_read(image, file, size, 1, &layer, &err) < 0) {
        if (err.code != ERR_EXHAUSTED)
            abort();
    } else if (merge_layer(image, &layer, &err) == 0) {
        auto_erofs_out struct erofs_out out = {0};
        uint64_t blocks = layer.blocks;
        auto_close int meta = memfd_create("meta", MFD_CLOEXEC);
        if (erofs_out_init(&out, meta, MiB(64), &err) < 0 ||
            erofs_finish(&out, image, &blocks, 1, &size, &err) < 0)
            abort();
    }
    (void)munmap(file, size);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    auto_err struct err err = ERR_INIT;
    struct input in = {data, size};
    auto_tree struct tree *t = tree_new(MiB(16), &err);
    auto_erofs_out struct erofs_out out = {0};
    auto_close int fd = memfd_create("layer", MFD_CLOEXEC);
    uint64_t entries;
    uint64_t file_size;
    if (t == NULL || erofs_out_init(&out, fd, MiB(4), &err) < 0)
        abort();
    if (apply_tar(t, &out, next_bytes, &in, 10000, &entries, &err) == 0 &&
        erofs_finish(&out, t, NULL, 0, &file_size, &err) == 0)
        read_back(fd, file_size);
    return 0;
}
