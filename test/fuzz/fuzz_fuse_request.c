/* What stands between a guest and libfuse. Anything that passes is checked again in another way: as
 * libfuse will read it, within the message. */
#include <linux/fuse.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "sandbox/share_check.h"

static void must(int ok)
{
    if (!ok)
        abort();
}

/* A name libfuse would use: it ends within the message and leads nowhere. */
static const char *use_name(const char *p, const char *end)
{
    size_t n = strnlen(p, (size_t)(end - p));
    must(p + n < end);
    must(n > 0 && strchr(p, '/') == NULL && strcmp(p, ".") != 0 && strcmp(p, "..") != 0);
    return p + n + 1;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    bool started = (data[0] & 1) != 0;
    size_t len = size - 1;
    char *message = malloc(len > 0 ? len : 1); /* its own block: an overrun shows */
    if (message == NULL)
        return 0;
    memcpy(message, data + 1, len);
    if (len >= 4 && (data[0] & 2) != 0) { /* most inputs should get past the length */
        uint32_t n = (uint32_t)len;
        memcpy(message, &n, sizeof(n));
    }
    if (share_check(message, len, started) == SHARE_PASS) {
        struct fuse_in_header h;
        memcpy(&h, message, sizeof(h));
        const char *body = message + sizeof(h);
        const char *end = message + len;
        struct fuse_write_in w;
        struct fuse_batch_forget_in b;
        must(h.len == len && len <= LIMIT_FS_MESSAGE);
        switch (h.opcode) {
        case FUSE_LOOKUP:
        case FUSE_UNLINK:
        case FUSE_RMDIR:
            must(use_name(body, end) == end);
            break;
        case FUSE_RENAME2:
            must(use_name(use_name(body + sizeof(struct fuse_rename2_in), end), end) == end);
            break;
        case FUSE_CREATE:
            must(use_name(body + sizeof(struct fuse_create_in), end) == end);
            break;
        case FUSE_WRITE:
            memcpy(&w, body, sizeof(w));
            must(body + sizeof(w) + w.size == end);
            break;
        case FUSE_BATCH_FORGET:
            memcpy(&b, body, sizeof(b));
            must((size_t)(end - body) == sizeof(b) + b.count * sizeof(struct fuse_forget_one));
            break;
        default:
            break;
        }
    }
    free(message);
    return 0;
}
