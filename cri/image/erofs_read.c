#include "cri/image/erofs_read.h"

#include <endian.h>
#include <search.h>
#include <string.h>

#include "base/limits.h"
#include "cri/image/erofs_format.h"

/* An inode with several names. They are kept in a balanced tree: no choice of numbers makes it
 * slow. */
struct shared {
    uint64_t nid;
    struct tree_inode *inode;
};

struct reader {
    struct tree *t;
    const uint8_t *data;
    uint64_t len;
    uint64_t meta; /* byte offset of the inodes */
    uint32_t part;
    uint8_t *seen; /* one bit for each slot where an inode could start: directories read */
    void *shared;  /* tsearch() root of struct shared */
    struct erofs_layer *out;
};

static int bad(struct err *err, const char *what)
{
    return err_set(err, ERR_DATA_LOSS, "damaged erofs file: %s", what);
}

/* An inode as it is on disk, its numbers in our byte order, and where its parts are. */
struct raw {
    struct erofs_inode d;
    uint64_t xattrs, xattr_len;
    uint64_t after; /* offset behind the xattrs */
    bool has_tail;
};

static int read_raw(const struct reader *r, uint64_t nid, struct raw *raw, struct err *err)
{
    if (nid > r->len / EROFS_SLOT)
        return bad(err, "inode number");
    uint64_t at = r->meta + nid * EROFS_SLOT;
    if (at > r->len - sizeof(raw->d))
        return bad(err, "inode number");
    struct erofs_inode *d = &raw->d;
    memcpy(d, r->data + at, sizeof(*d));
    d->format = le16toh(d->format);
    d->xattr_count = le16toh(d->xattr_count);
    d->mode = le16toh(d->mode);
    d->size = le64toh(d->size);
    d->block = le32toh(d->block);
    d->uid = le32toh(d->uid);
    d->gid = le32toh(d->gid);
    d->mtime = le64toh(d->mtime);
    d->mtime_ns = le32toh(d->mtime_ns);
    d->nlink = le32toh(d->nlink);
    if (d->format != EROFS_FORMAT(EROFS_PLAIN) && d->format != EROFS_FORMAT(EROFS_INLINE))
        return bad(err, "inode format");
    raw->has_tail = d->format == EROFS_FORMAT(EROFS_INLINE);
    raw->xattrs = at + sizeof(*d);
    raw->xattr_len = d->xattr_count == 0
                         ? 0
                         : sizeof(struct erofs_xattr_header) + 4 * ((uint64_t)d->xattr_count - 1);
    if (raw->xattr_len > r->len - raw->xattrs)
        return bad(err, "xattr area");
    raw->after = raw->xattrs + raw->xattr_len;
    return 0;
}

/* Checks that `len` bytes from a block on are in the file. */
static int check_blocks(const struct reader *r, uint32_t block, uint64_t len, struct err *err)
{
    uint64_t at = (uint64_t)block << EROFS_BLOCK_BITS;
    if (len > 0 && (block == 0 || at > r->len || len > r->len - at))
        return bad(err, "contents outside of the file");
    return 0;
}

/* Where bytes [from, from + n) of a directory's or symlink's contents are; n does not cross a block
 * of them. NULL with *err. */
static const uint8_t *content(const struct reader *r, const struct raw *raw, uint64_t from,
                              uint64_t n, struct err *err)
{
    uint64_t whole = raw->has_tail ? raw->d.size & ~(uint64_t)(EROFS_BLOCK - 1) : raw->d.size;
    uint64_t at = from < whole ? ((uint64_t)raw->d.block << EROFS_BLOCK_BITS) + from
                               : raw->after + (from - whole);
    if (at > r->len || n > r->len - at) {
        (void)bad(err, "contents outside of the file");
        return NULL;
    }
    return r->data + at;
}

static bool is_mark(const struct erofs_xattr *x, const char *name, const char *mark)
{
    return x->prefix == EROFS_XATTR_TRUSTED && x->name_len == strlen(mark) &&
           memcmp(name, mark, x->name_len) == 0;
}

/* Sets a mark's flag, or keeps the attribute. */
static int take_xattr(struct reader *r, struct tree_inode *in, const struct erofs_xattr *x,
                      const char *name, const char *value, struct err *err)
{
    bool dir = tree_is_dir(in);
    if (dir && is_mark(x, name, OVERLAY_XATTR_OPAQUE)) {
        in->flags |= TREE_OPAQUE;
        return 0;
    }
    if (dir && is_mark(x, name, LAYER_XATTR_IMPLIED)) {
        in->flags |= TREE_IMPLIED;
        return 0;
    }
    if (S_ISREG(in->mode) && is_mark(x, name, LAYER_XATTR_LINK)) {
        if (x->value_len == 0 || x->value_len > 4 * LIMIT_PATH ||
            memchr(value, '\0', x->value_len) != NULL || (in->flags & TREE_LOWER) != 0)
            return bad(err, "hard link's target");
        in->flags |= TREE_LOWER;
        r->out->lower_links++;
        return tree_set_target(r->t, in, value, x->value_len, err);
    }
    if (x->prefix < EROFS_XATTR_USER || x->prefix > EROFS_XATTR_SECURITY)
        return bad(err, "xattr prefix");
    return tree_set_xattr(r->t, in, x->prefix, name, x->name_len, value, x->value_len, err);
}

static int read_xattrs(struct reader *r, const struct raw *raw, struct tree_inode *in,
                       struct err *err)
{
    if (raw->xattr_len == 0)
        return 0;
    struct erofs_xattr_header header;
    memcpy(&header, r->data + raw->xattrs, sizeof(header));
    if (header.shared_count != 0)
        return bad(err, "shared xattrs");
    uint64_t at = raw->xattrs + sizeof(header);
    while (at < raw->after) {
        struct erofs_xattr x;
        uint64_t left = raw->after - at;
        memcpy(&x, r->data + at, sizeof(x)); /* the area's length is 12 and a multiple of 4 */
        x.value_len = le16toh(x.value_len);
        uint64_t need = sizeof(x) + x.name_len + x.value_len;
        if (need > left)
            return bad(err, "xattr");
        const char *name = (const char *)r->data + at + sizeof(x);
        if (memchr(name, '\0', x.name_len) != NULL)
            return bad(err, "xattr name");
        if (take_xattr(r, in, &x, name, name + x.name_len, err) < 0)
            return -1;
        at += (need + 3) & ~3ULL;
    }
    return 0;
}

static int read_symlink(struct reader *r, const struct raw *raw, struct tree_inode *in,
                        struct err *err)
{
    uint64_t size = raw->d.size;
    if (size == 0 || size > LIMIT_SYMLINK)
        return bad(err, "symlink's length");
    const uint8_t *target = content(r, raw, 0, size, err);
    if (target == NULL)
        return -1;
    if (memchr(target, '\0', size) != NULL)
        return bad(err, "symlink's target");
    return tree_set_target(r->t, in, (const char *)target, size, err);
}

static int read_contents(struct reader *r, const struct raw *raw, struct tree_inode *in,
                         struct err *err)
{
    switch (in->mode & S_IFMT) {
    case S_IFDIR:
        return 0;
    case S_IFREG:
        if ((in->flags & TREE_LOWER) != 0)
            return 0;
        if (raw->has_tail || check_blocks(r, raw->d.block, raw->d.size, err) < 0)
            return bad(err, "file's contents");
        in->file.size = raw->d.size;
        in->file.block = raw->d.block;
        in->file.part = r->part;
        return 0;
    case S_IFLNK:
        return read_symlink(r, raw, in, err);
    case S_IFCHR:
    case S_IFBLK:
        in->rdev = raw->d.block;
        return 0;
    case S_IFIFO:
        return 0;
    default:
        return bad(err, "file type");
    }
}

static struct tree_inode *read_inode(struct reader *r, const struct raw *raw, struct err *err)
{
    struct tree_inode *in = tree_inode_new(r->t, raw->d.mode, err);
    if (in == NULL)
        return NULL;
    in->uid = raw->d.uid;
    in->gid = raw->d.gid;
    in->mtime = (int64_t)raw->d.mtime;
    in->mtime_ns = raw->d.mtime_ns;
    if (in->mtime_ns >= 1000000000) {
        (void)bad(err, "time");
        return NULL;
    }
    if (read_xattrs(r, raw, in, err) < 0 || read_contents(r, raw, in, err) < 0)
        return NULL;
    return in;
}

static int compare_shared(const void *a, const void *b)
{
    const struct shared *x = a;
    const struct shared *y = b;
    return x->nid < y->nid ? -1 : x->nid > y->nid;
}

/* An inode that may have other names: the same object for each. */
static struct tree_inode *read_shared(struct reader *r, uint64_t nid, const struct raw *raw,
                                      struct err *err)
{
    struct shared key = {.nid = nid};
    struct shared **there = tfind(&key, &r->shared, compare_shared);
    if (there != NULL)
        return (*there)->inode;
    struct shared *s = calloc(1, sizeof(*s));
    if (s != NULL)
        s->nid = nid;
    if (s == NULL || tsearch(s, &r->shared, compare_shared) == NULL) {
        free(s);
        (void)err_set(err, ERR_EXHAUSTED, "out of memory");
        return NULL;
    }
    s->inode = read_inode(r, raw, err);
    return s->inode;
}

static int read_dir(struct reader *r, uint64_t nid, const struct raw *raw, struct tree_inode *dir,
                    struct err *err);

static struct tree_inode *read_child(struct reader *r, uint64_t nid, const struct raw *raw,
                                     struct err *err)
{
    if (!S_ISDIR(raw->d.mode) && raw->d.nlink > 1)
        return read_shared(r, nid, raw, err);
    return read_inode(r, raw, err);
}

static int read_entry(struct reader *r, struct tree_inode *dir, const struct erofs_dirent *e,
                      const char *name, size_t len, struct err *err)
{
    if (len == 0 || len > EROFS_NAME_MAX || memchr(name, '/', len) != NULL)
        return bad(err, "name");
    if (name[0] == '.' && (len == 1 || (len == 2 && name[1] == '.')))
        return 0;
    if (++r->out->entries > LIMIT_LAYER_ENTRIES * 2UL)
        return err_set(err, ERR_EXHAUSTED, "more than %u files", LIMIT_LAYER_ENTRIES * 2);
    if (tree_lookup(dir, name, len) != NULL)
        return bad(err, "a name is there twice");
    uint64_t nid = le64toh(e->nid);
    struct raw raw;
    if (read_raw(r, nid, &raw, err) < 0)
        return -1;
    struct tree_inode *in = read_child(r, nid, &raw, err);
    if (in == NULL || tree_put(r->t, dir, name, len, in, err) < 0)
        return -1;
    return tree_is_dir(in) ? read_dir(r, nid, &raw, in, err) : 0;
}

static int read_block(struct reader *r, struct tree_inode *dir, const uint8_t *block, size_t len,
                      struct err *err)
{
    struct erofs_dirent first;
    if (len < sizeof(first))
        return bad(err, "directory block");
    memcpy(&first, block, sizeof(first));
    size_t names = le16toh(first.name_offset);
    if (names == 0 || names % sizeof(first) != 0 || names > len)
        return bad(err, "directory block");
    size_t n = names / sizeof(first);
    size_t at = names;
    for (size_t i = 0; i < n; i++) {
        struct erofs_dirent e;
        struct erofs_dirent next;
        memcpy(&e, block + i * sizeof(e), sizeof(e));
        size_t end;
        if (i + 1 < n) {
            memcpy(&next, block + (i + 1) * sizeof(next), sizeof(next));
            end = le16toh(next.name_offset);
        } else {
            end = at + strnlen((const char *)block + at, len - at);
        }
        if (end < at || end > len || memchr(block + at, '\0', end - at) != NULL)
            return bad(err, "name");
        if (read_entry(r, dir, &e, (const char *)block + at, end - at, err) < 0)
            return -1;
        at = end;
    }
    return 0;
}

static int read_dir(struct reader *r, uint64_t nid, const struct raw *raw, struct tree_inode *dir,
                    struct err *err)
{
    uint8_t bit = (uint8_t)(1U << (nid % 8));
    if ((r->seen[nid / 8] & bit) != 0)
        return bad(err, "a directory is reached twice");
    r->seen[nid / 8] |= bit;
    if (raw->d.size == 0 || raw->d.size > r->len)
        return bad(err, "directory's size");
    for (uint64_t from = 0; from < raw->d.size; from += EROFS_BLOCK) {
        uint64_t n = raw->d.size - from < EROFS_BLOCK ? raw->d.size - from : EROFS_BLOCK;
        const uint8_t *block = content(r, raw, from, n, err);
        if (block == NULL || read_block(r, dir, block, (size_t)n, err) < 0)
            return -1;
    }
    return 0;
}

static int read_super(struct reader *r, uint64_t *root, struct err *err)
{
    if (r->len < 2 * (uint64_t)EROFS_BLOCK || r->len % EROFS_BLOCK != 0 ||
        (r->len >> EROFS_BLOCK_BITS) >= UINT32_MAX)
        return bad(err, "size");
    uint8_t block[EROFS_BLOCK - EROFS_SB_OFFSET];
    struct erofs_super sb;
    memcpy(block, r->data + EROFS_SB_OFFSET, sizeof(block));
    memcpy(&sb, block, sizeof(sb));
    uint32_t checksum = le32toh(sb.checksum);
    sb.checksum = 0;
    memcpy(block, &sb, sizeof(sb));
    if (le32toh(sb.magic) != EROFS_SB_MAGIC)
        return bad(err, "magic number");
    if (erofs_crc32c(block, sizeof(block)) != checksum)
        return bad(err, "superblock's checksum");
    r->out->blocks = le32toh(sb.blocks);
    uint32_t meta = le32toh(sb.meta_block);
    if (sb.block_bits != EROFS_BLOCK_BITS || sb.feature_incompat != 0 || sb.extra_devices != 0 ||
        (uint64_t)r->out->blocks << EROFS_BLOCK_BITS != r->len || meta == 0 ||
        meta >= r->out->blocks)
        return bad(err, "superblock");
    r->meta = (uint64_t)meta << EROFS_BLOCK_BITS;
    *root = le16toh(sb.root_nid);
    return 0;
}

static int read_all(struct reader *r, struct err *err)
{
    uint64_t nid;
    struct raw raw;
    if (read_super(r, &nid, err) < 0 || read_raw(r, nid, &raw, err) < 0)
        return -1;
    if (!S_ISDIR(raw.d.mode))
        return bad(err, "the root is no directory");
    r->seen = calloc(1, (size_t)((r->len - r->meta) / EROFS_SLOT / 8 + 1));
    if (r->seen == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    r->out->root = read_inode(r, &raw, err);
    if (r->out->root == NULL)
        return -1;
    r->out->root->dir.parent = r->out->root;
    return read_dir(r, nid, &raw, r->out->root, err);
}

int erofs_read(struct tree *t, const void *data, uint64_t len, uint32_t part,
               struct erofs_layer *out, struct err *err)
{
    memset(out, 0, sizeof(*out));
    struct reader r = {.t = t, .data = data, .len = len, .part = part, .out = out};
    int rc = read_all(&r, err);
    tdestroy(r.shared, free);
    free(r.seen);
    return rc;
}
