#include "sandbox/share_check.h"

#include <linux/fuse.h>
#include <stdint.h>
#include <string.h>

#include "base/limits.h"

#define NAME_LONGEST 1024 /* what FUSE lets through; the host's file system says ENAMETOOLONG */
#define MINOR_MIN 31      /* older ones have shorter structures */

struct body {
    const char *at;
    size_t left;
};

/* One component of a path, or with `text` any string such as a link's target. */
static bool name(struct body *b, bool text)
{
    const char *end = memchr(b->at, '\0', b->left);
    if (end == NULL)
        return false;
    const char *s = b->at;
    size_t n = (size_t)(end - s);
    b->at += n + 1;
    b->left -= n + 1;
    if (text)
        return n > 0 && n < LIMIT_PATH;
    return n > 0 && n <= NAME_LONGEST && memchr(s, '/', n) == NULL && strcmp(s, ".") != 0 &&
           strcmp(s, "..") != 0;
}

/* Copies the fixed part out; what follows it is left. */
static bool fixed(struct body *b, void *out, size_t size)
{
    if (b->left < size)
        return false;
    memcpy(out, b->at, size);
    b->at += size;
    b->left -= size;
    return true;
}

/* The fixed part and nothing else. */
static bool only(const struct body *b, size_t size)
{
    return b->left == size;
}

static bool skip_then_names(struct body *b, size_t size, int names)
{
    char head[64];
    if (size > sizeof(head) || !fixed(b, head, size))
        return false;
    for (int i = 0; i < names; i++) {
        if (!name(b, false))
            return false;
    }
    return b->left == 0;
}

static bool init_ok(struct body *b)
{
    uint32_t word[4]; /* major, minor, max_readahead, flags: all of it before flags2 came */
    if (!fixed(b, word, sizeof(word)) || word[0] != FUSE_KERNEL_VERSION || word[1] < MINOR_MIN)
        return false;
    size_t rest = sizeof(struct fuse_init_in) - sizeof(word);
    return (word[3] & FUSE_INIT_EXT) != 0 ? b->left == rest : b->left == 0 || b->left == rest;
}

static bool read_ok(struct body *b)
{
    struct fuse_read_in in;
    return fixed(b, &in, sizeof(in)) && b->left == 0 && in.size <= LIMIT_FS_DATA &&
           in.offset <= (uint64_t)INT64_MAX - in.size;
}

/* An offset here is a file system's own cookie, of any value. */
static bool readdir_ok(struct body *b)
{
    struct fuse_read_in in;
    return fixed(b, &in, sizeof(in)) && b->left == 0 && in.size <= LIMIT_FS_DATA;
}

static bool write_ok(struct body *b)
{
    struct fuse_write_in in;
    return fixed(b, &in, sizeof(in)) && in.size == b->left && in.size <= LIMIT_FS_DATA &&
           in.offset <= (uint64_t)INT64_MAX - in.size;
}

static bool forgets_ok(struct body *b)
{
    struct fuse_batch_forget_in in;
    return fixed(b, &in, sizeof(in)) && b->left % sizeof(struct fuse_forget_one) == 0 &&
           in.count == b->left / sizeof(struct fuse_forget_one);
}

/* libfuse sets FUSE_SETXATTR_EXT only when it is asked for: the short form. */
static bool setxattr_ok(struct body *b)
{
    uint32_t in[2]; /* size, flags */
    return fixed(b, in, sizeof(in)) && name(b, true) && in[0] == b->left;
}

/* With a name: GETXATTR. A size of 0 asks how much there is. */
static bool getxattr_ok(struct body *b, bool named)
{
    struct fuse_getxattr_in in;
    return fixed(b, &in, sizeof(in)) && in.size <= LIMIT_FS_XATTR && (!named || name(b, true)) &&
           b->left == 0;
}

static enum share_verdict verdict(bool ok)
{
    return ok ? SHARE_PASS : SHARE_HOSTILE;
}

static enum share_verdict check_body(uint32_t opcode, struct body *b)
{
    switch (opcode) {
    case FUSE_LOOKUP:
    case FUSE_UNLINK:
    case FUSE_RMDIR:
        return verdict(skip_then_names(b, 0, 1));
    case FUSE_MKNOD:
        return verdict(skip_then_names(b, sizeof(struct fuse_mknod_in), 1));
    case FUSE_MKDIR:
        return verdict(skip_then_names(b, sizeof(struct fuse_mkdir_in), 1));
    case FUSE_LINK:
        return verdict(skip_then_names(b, sizeof(struct fuse_link_in), 1));
    case FUSE_CREATE:
        return verdict(skip_then_names(b, sizeof(struct fuse_create_in), 1));
    case FUSE_RENAME:
        return verdict(skip_then_names(b, sizeof(struct fuse_rename_in), 2));
    case FUSE_RENAME2:
        return verdict(skip_then_names(b, sizeof(struct fuse_rename2_in), 2));
    case FUSE_SYMLINK:
        return verdict(name(b, false) && name(b, true) && b->left == 0);
    case FUSE_FORGET:
        return verdict(only(b, sizeof(struct fuse_forget_in)));
    case FUSE_BATCH_FORGET:
        return verdict(forgets_ok(b));
    case FUSE_GETATTR:
        return verdict(only(b, sizeof(struct fuse_getattr_in)));
    case FUSE_SETATTR:
        return verdict(only(b, sizeof(struct fuse_setattr_in)));
    case FUSE_OPEN:
    case FUSE_OPENDIR:
        return verdict(only(b, sizeof(struct fuse_open_in)));
    case FUSE_READ:
        return verdict(read_ok(b));
    case FUSE_READDIR:
    case FUSE_READDIRPLUS:
        return verdict(readdir_ok(b));
    case FUSE_WRITE:
        return verdict(write_ok(b));
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
        return verdict(only(b, sizeof(struct fuse_release_in)));
    case FUSE_FSYNC:
    case FUSE_FSYNCDIR:
        return verdict(only(b, sizeof(struct fuse_fsync_in)));
    case FUSE_FALLOCATE:
        return verdict(only(b, sizeof(struct fuse_fallocate_in)));
    case FUSE_LSEEK:
        return verdict(only(b, sizeof(struct fuse_lseek_in)));
    case FUSE_SETXATTR:
        return verdict(setxattr_ok(b));
    case FUSE_GETXATTR:
        return verdict(getxattr_ok(b, true));
    case FUSE_LISTXATTR:
        return verdict(getxattr_ok(b, false));
    case FUSE_REMOVEXATTR:
        return verdict(name(b, true) && b->left == 0);
    case FUSE_READLINK:
    case FUSE_STATFS:
        return verdict(b->left == 0);
    case FUSE_INTERRUPT:
    case FUSE_DESTROY:
        return SHARE_IGNORE;
    default:
        return SHARE_UNKNOWN;
    }
}

enum share_verdict share_check(const void *message, size_t len, bool started)
{
    struct fuse_in_header h;
    if (len < sizeof(h) || len > LIMIT_FS_MESSAGE)
        return SHARE_HOSTILE;
    memcpy(&h, message, sizeof(h));
    /* the last word: extensions after the body, which are never asked for */
    uint32_t extensions;
    memcpy(&extensions, (const char *)message + sizeof(h) - sizeof(extensions), sizeof(extensions));
    if (h.len != len || extensions != 0 || h.unique == 0)
        return SHARE_HOSTILE;
    struct body b = {(const char *)message + sizeof(h), len - sizeof(h)};
    if (h.opcode == FUSE_INIT)
        return verdict(!started && init_ok(&b));
    if (!started)
        return SHARE_HOSTILE;
    return check_body(h.opcode, &b);
}
