/* A layer file that a taken-over unpacker wrote; its superblock's sums are put right first. */
#include <endian.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/limits.h"
#include "cri/image/erofs_format.h"
#include "cri/image/erofs_read.h"
#include "cri/image/erofs_write.h"
#include "cri/image/merge.h"

static void put_right(uint8_t *file, size_t len)
{
    struct erofs_super sb;
    memcpy(&sb, file + EROFS_SB_OFFSET, sizeof(sb));
    sb.magic = htole32(EROFS_SB_MAGIC);
    sb.block_bits = EROFS_BLOCK_BITS;
    sb.feature_incompat = 0;
    sb.extra_devices = 0;
    sb.blocks = htole32((uint32_t)(len / EROFS_BLOCK));
    if (sb.meta_block == 0 || le32toh(sb.meta_block) >= len / EROFS_BLOCK)
        sb.meta_block = htole32(1);
    sb.checksum = 0;
    memcpy(file + EROFS_SB_OFFSET, &sb, sizeof(sb));
    sb.checksum = htole32(erofs_crc32c(file + EROFS_SB_OFFSET, EROFS_BLOCK - EROFS_SB_OFFSET));
    memcpy(file + EROFS_SB_OFFSET, &sb, sizeof(sb));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < EROFS_BLOCK || size > MiB(1))
        return 0;
    auto_err struct err err = ERR_INIT;
    auto_tree struct tree *t = tree_new(MiB(16), &err);
    size_t len = (size + EROFS_BLOCK - 1) & ~(size_t)(EROFS_BLOCK - 1);
    auto_free uint8_t *file = calloc(1, len);
    auto_close int fd = memfd_create("meta", MFD_CLOEXEC);
    auto_erofs_out struct erofs_out out = {0};
    struct erofs_layer layer;
    if (t == NULL || file == NULL || erofs_out_init(&out, fd, MiB(64), &err) < 0)
        abort();
    memcpy(file, data, size);
    put_right(file, len);
    uint64_t written;
    if (erofs_read(t, file, len, 1, &layer, &err) == 0 && merge_layer(t, &layer, &err) == 0) {
        uint64_t blocks = layer.blocks;
        if (erofs_finish(&out, t, &blocks, 1, &written, &err) < 0 && err.code == ERR_INTERNAL)
            abort();
    }
    return 0;
}
