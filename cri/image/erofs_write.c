#include "cri/image/erofs_write.h"

#include <endian.h>
#include <string.h>

#include "base/limits.h"
#include "cri/image/erofs_format.h"

#define BUFFER MiB(1)

uint32_t erofs_crc32c(const void *data, uint64_t len)
{
    const uint8_t *p = data;
    uint32_t crc = ~0U;
    while (len-- > 0) {
        crc ^= *p++;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ (0x82F63B78U & -(crc & 1U));
    }
    return crc;
}

/* Buffered output */

int erofs_out_init(struct erofs_out *o, int fd, uint64_t max_bytes, struct err *err)
{
    *o = (struct erofs_out){
        .fd = fd, .pos = EROFS_BLOCK, .flushed = EROFS_BLOCK, .max_bytes = max_bytes};
    o->buf = malloc(BUFFER);
    if (o->buf == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    return 0;
}

void erofs_out_clear(struct erofs_out *o)
{
    free(o->buf);
    o->buf = NULL;
}

static int write_at(int fd, const void *data, size_t len, uint64_t at, struct err *err)
{
    const char *p = data;
    while (len > 0) {
        ssize_t n = pwrite(fd, p, len, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return err_sys(err, n < 0 ? errno : EIO, "write the file system image");
        p += n;
        at += (size_t)n;
        len -= (size_t)n;
    }
    return 0;
}

static int flush(struct erofs_out *o, struct err *err)
{
    if (write_at(o->fd, o->buf, o->used, o->flushed, err) < 0)
        return -1;
    o->used = 0;
    o->flushed = o->pos;
    return 0;
}

static int put(struct erofs_out *o, const void *data, size_t len, struct err *err)
{
    const char *p = data;
    while (len > 0) {
        if (o->used == BUFFER && flush(o, err) < 0)
            return -1;
        size_t n = BUFFER - o->used < len ? BUFFER - o->used : len;
        memcpy(o->buf + o->used, p, n);
        o->used += n;
        o->pos += n;
        p += n;
        len -= n;
    }
    return 0;
}

/* Zeros up to an offset that is near. */
static int pad_to(struct erofs_out *o, uint64_t to, struct err *err)
{
    static const char zeros[EROFS_BLOCK];
    while (o->pos < to) {
        size_t n = to - o->pos < sizeof(zeros) ? (size_t)(to - o->pos) : sizeof(zeros);
        if (put(o, zeros, n, err) < 0)
            return -1;
    }
    return 0;
}

static int pad(struct erofs_out *o, struct err *err)
{
    return pad_to(o, (o->pos + EROFS_BLOCK - 1) & ~(uint64_t)(EROFS_BLOCK - 1), err);
}

uint32_t erofs_data_begin(const struct erofs_out *o)
{
    return (uint32_t)(o->pos >> EROFS_BLOCK_BITS);
}

static int room(const struct erofs_out *o, uint64_t len, struct err *err)
{
    if (len > o->max_bytes || o->pos > o->max_bytes - len ||
        ((o->pos + len) >> EROFS_BLOCK_BITS) >= UINT32_MAX)
        return err_set(err, ERR_EXHAUSTED, "the layer's files take more than %llu bytes",
                       (unsigned long long)o->max_bytes);
    return 0;
}

int erofs_data_write(struct erofs_out *o, const void *data, size_t len, struct err *err)
{
    return room(o, len, err) < 0 ? -1 : put(o, data, len, err);
}

int erofs_data_hole(struct erofs_out *o, uint64_t len, struct err *err)
{
    if (room(o, len, err) < 0)
        return -1;
    if (len < 2 * (uint64_t)EROFS_BLOCK)
        return pad_to(o, o->pos + len, err);
    if (flush(o, err) < 0)
        return -1;
    o->pos += len;
    o->flushed = o->pos;
    return 0;
}

int erofs_data_end(struct erofs_out *o, struct err *err)
{
    return pad(o, err);
}

/* Layout: where each inode goes, decided before the first is written. */

struct layout {
    struct tree_inode *
        *inodes; /* the root first, then breadth first: a directory's stay together */
    size_t n, cap;
    uint64_t meta;  /* byte offset of the inodes */
    uint64_t extra; /* byte offset of the blocks that did not fit behind inodes */
    uint64_t extra_next;
    uint64_t own_blocks;
    uint64_t *part_start; /* block of part k on the device, [0] is this file */
};

static void layout_clear(struct layout *l)
{
    free(l->inodes);
    free(l->part_start);
}

static int layout_add(struct layout *l, struct tree_inode *inode, struct err *err)
{
    if (l->n == l->cap) {
        size_t cap = l->cap == 0 ? 1024 : l->cap * 2;
        struct tree_inode **more = realloc(l->inodes, cap * sizeof(struct tree_inode *));
        if (more == NULL)
            return err_set(err, ERR_EXHAUSTED, "out of memory for the file tree");
        l->inodes = more;
        l->cap = cap;
    }
    l->inodes[l->n++] = inode;
    return 0;
}

/* What a layer's directory is to the layers below, as overlayfs and our merge find it in the file.
 */
static int mark_dir(struct tree *t, struct tree_inode *dir, struct err *err)
{
    if ((dir->flags & TREE_OPAQUE) != 0 &&
        tree_set_xattr(t, dir, EROFS_XATTR_TRUSTED, OVERLAY_XATTR_OPAQUE,
                       strlen(OVERLAY_XATTR_OPAQUE), "y", 1, err) < 0)
        return -1;
    if ((dir->flags & TREE_IMPLIED) != 0 &&
        tree_set_xattr(t, dir, EROFS_XATTR_TRUSTED, LAYER_XATTR_IMPLIED,
                       strlen(LAYER_XATTR_IMPLIED), "y", 1, err) < 0)
        return -1;
    return 0;
}

/* Lists the inodes that can be reached and counts their links. nid 0 means "not listed yet", which
 * no inode of ours has in the end. */
static int layout_list(struct layout *l, struct tree *t, bool marks, struct err *err)
{
    struct tree_inode *root = tree_root(t);
    root->nid = 1;
    root->nlink = 2;
    if (layout_add(l, root, err) < 0)
        return -1;
    for (size_t i = 0; i < l->n; i++) {
        struct tree_inode *dir = l->inodes[i];
        if (!tree_is_dir(dir))
            continue;
        if (marks && mark_dir(t, dir, err) < 0)
            return -1;
        auto_free struct tree_entry **list = tree_sorted(dir);
        if (list == NULL)
            return err_set(err, ERR_EXHAUSTED, "out of memory for the file tree");
        for (uint32_t k = 0; k < dir->dir.n; k++) {
            struct tree_inode *in = list[k]->inode;
            if (tree_is_dir(in)) {
                if (in->nid != 0)
                    return err_set(err, ERR_INTERNAL, "a directory is listed twice");
                in->nlink = 1; /* its own "." */
                dir->nlink++;
            } else if (in->nid == 0) {
                in->nlink = 0;
            }
            in->nlink++;
            if (in->nid == 0) {
                in->nid = 1;
                if (layout_add(l, in, err) < 0)
                    return -1;
            }
        }
    }
    return 0;
}

static uint64_t xattr_bytes(const struct tree_inode *in)
{
    if (in->xattrs == NULL)
        return 0;
    uint64_t sum = sizeof(struct erofs_xattr_header);
    for (const struct tree_xattr *x = in->xattrs; x != NULL; x = x->next)
        sum += (sizeof(struct erofs_xattr) + x->name_len + x->value_len + 3) & ~3ULL;
    return sum;
}

/* Directory contents */

struct dir_item {
    const char *name;
    uint64_t nid;
    uint16_t len;
    uint8_t type;
};

struct dir_items {
    struct dir_item *v;
    size_t n;
};

static uint8_t type_of(const struct tree_inode *in)
{
    switch (in->mode & S_IFMT) {
    case S_IFREG:
        return EROFS_TYPE_FILE;
    case S_IFDIR:
        return EROFS_TYPE_DIR;
    case S_IFCHR:
        return EROFS_TYPE_CHR;
    case S_IFBLK:
        return EROFS_TYPE_BLK;
    case S_IFIFO:
        return EROFS_TYPE_FIFO;
    case S_IFLNK:
        return EROFS_TYPE_LINK;
    default:
        return EROFS_TYPE_UNKNOWN;
    }
}

/* The entries with "." and ".." at their places in the order; free(items->v). */
static int dir_items(const struct tree_inode *dir, struct dir_items *items, struct err *err)
{
    auto_free struct tree_entry **list = tree_sorted(dir);
    struct dir_item *v = calloc((size_t)dir->dir.n + 2, sizeof(*v));
    if (list == NULL || v == NULL) {
        free(v);
        return err_set(err, ERR_EXHAUSTED, "out of memory for the file tree");
    }
    const struct dir_item dots[2] = {{".", dir->nid, 1, EROFS_TYPE_DIR},
                                     {"..", dir->dir.parent->nid, 2, EROFS_TYPE_DIR}};
    size_t n = 0;
    size_t dot = 0;
    for (uint32_t k = 0; k < dir->dir.n; k++) {
        const struct tree_entry *e = list[k];
        while (dot < 2 && strcmp(dots[dot].name, e->name) < 0)
            v[n++] = dots[dot++];
        v[n++] = (struct dir_item){e->name, e->inode->nid, e->name_len, type_of(e->inode)};
    }
    while (dot < 2)
        v[n++] = dots[dot++];
    items->v = v;
    items->n = n;
    return 0;
}

/* How many items from `from` on fit one block, and the bytes they take. */
static size_t dir_block_fill(const struct dir_items *items, size_t from, size_t *bytes)
{
    size_t n = from;
    *bytes = 0;
    while (n < items->n && *bytes + sizeof(struct erofs_dirent) + items->v[n].len <= EROFS_BLOCK) {
        *bytes += sizeof(struct erofs_dirent) + items->v[n].len;
        n++;
    }
    return n - from;
}

static uint64_t dir_size(const struct dir_items *items)
{
    uint64_t blocks = 0;
    size_t last = 0;
    for (size_t i = 0; i < items->n; blocks++)
        i += dir_block_fill(items, i, &last);
    return (blocks - 1) * EROFS_BLOCK + last;
}

static void dir_block(const struct dir_items *items, size_t from, size_t n, char *out)
{
    size_t name_at = n * sizeof(struct erofs_dirent);
    for (size_t i = 0; i < n; i++) {
        const struct dir_item *it = &items->v[from + i];
        struct erofs_dirent d = {
            .nid = htole64(it->nid), .name_offset = htole16((uint16_t)name_at), .type = it->type};
        memcpy(out + i * sizeof(d), &d, sizeof(d));
        memcpy(out + name_at, it->name, it->len);
        name_at += it->len;
    }
}

/* Writes the directory's whole blocks, or only its last partial one. */
static int dir_write(struct erofs_out *o, const struct tree_inode *dir, bool tail, bool whole,
                     struct err *err)
{
    struct dir_items items;
    if (dir_items(dir, &items, err) < 0)
        return -1;
    int rc = 0;
    for (size_t i = 0; i < items.n && rc == 0;) {
        size_t bytes;
        size_t n = dir_block_fill(&items, i, &bytes);
        bool last = i + n == items.n && bytes < EROFS_BLOCK;
        if (last ? tail : whole) {
            char block[EROFS_BLOCK] = {0};
            dir_block(&items, i, n, block);
            rc = put(o, block, last ? bytes : EROFS_BLOCK, err);
        }
        i += n;
    }
    free(items.v);
    return rc;
}

/* Size and place of each inode's contents: for directories and symlinks only. */
struct placed {
    uint64_t size;
    uint64_t tail; /* bytes behind the inode */
    uint64_t blocks;
};

static int content_size(const struct tree_inode *in, uint64_t *size, struct err *err)
{
    *size = 0;
    if (S_ISLNK(in->mode)) {
        *size = in->link.len;
    } else if (tree_is_dir(in)) {
        struct dir_items items;
        if (dir_items(in, &items, err) < 0)
            return -1;
        *size = dir_size(&items);
        free(items.v);
    }
    return 0;
}

static void place(const struct tree_inode *in, uint64_t size, struct placed *p)
{
    uint64_t head = sizeof(struct erofs_inode) + xattr_bytes(in);
    p->size = size;
    p->tail = size % EROFS_BLOCK;
    /* What lies behind an inode must be in the same block as the inode (Linux reads a symlink with
     * one look at that block); what cannot be gets a block of its own. */
    if (head + p->tail > EROFS_BLOCK)
        p->tail = 0;
    p->blocks = (size - p->tail + EROFS_BLOCK - 1) / EROFS_BLOCK;
}

/* Where the inode starts, at or after pos (relative to the inodes' first block). */
static uint64_t inode_start(uint64_t pos, uint64_t head, uint64_t tail)
{
    pos = (pos + sizeof(struct erofs_inode) - 1) & ~(uint64_t)(sizeof(struct erofs_inode) - 1);
    if (tail > 0 && pos % EROFS_BLOCK + head + tail > EROFS_BLOCK)
        pos = (pos + EROFS_BLOCK - 1) & ~(uint64_t)(EROFS_BLOCK - 1);
    return pos;
}

static int layout_place(struct layout *l, uint64_t meta, struct err *err)
{
    /* The first slots stay empty: inode number 0 confuses programs that read directories. */
    uint64_t pos = sizeof(struct erofs_inode);
    uint64_t extra_blocks = 0;
    for (size_t i = 0; i < l->n; i++) {
        struct tree_inode *in = l->inodes[i];
        struct placed p;
        uint64_t size;
        if (content_size(in, &size, err) < 0)
            return -1;
        place(in, size, &p);
        uint64_t head = sizeof(struct erofs_inode) + xattr_bytes(in);
        pos = inode_start(pos, head, p.tail);
        in->nid = pos / EROFS_SLOT;
        pos += head + p.tail;
        extra_blocks += p.blocks;
    }
    /* Programs read an xattr header behind the last inode before they look whether it has one. */
    pos += sizeof(struct erofs_xattr_header);
    l->meta = meta;
    l->extra = meta + ((pos + EROFS_BLOCK - 1) & ~(uint64_t)(EROFS_BLOCK - 1));
    l->extra_next = l->extra;
    l->own_blocks = l->extra / EROFS_BLOCK + extra_blocks;
    return 0;
}

static int layout_parts(struct layout *l, const uint64_t *part_blocks, size_t n, uint64_t *total,
                        struct err *err)
{
    l->part_start = calloc(n + 1, sizeof(*l->part_start));
    if (l->part_start == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    uint64_t at = l->own_blocks;
    for (size_t k = 0; k < n && at < UINT32_MAX; k++) {
        l->part_start[k + 1] = at;
        at += part_blocks[k];
    }
    if (at >= UINT32_MAX)
        return err_set(err, ERR_EXHAUSTED, "the image is larger than 16 TiB");
    *total = at;
    return 0;
}

/* Writing */

static int write_xattrs(struct erofs_out *o, const struct tree_inode *in, struct err *err)
{
    if (in->xattrs == NULL)
        return 0;
    const struct erofs_xattr_header header = {0};
    if (put(o, &header, sizeof(header), err) < 0)
        return -1;
    for (const struct tree_xattr *x = in->xattrs; x != NULL; x = x->next) {
        struct erofs_xattr e = {
            .name_len = x->name_len, .prefix = x->prefix, .value_len = htole16(x->value_len)};
        if (put(o, &e, sizeof(e), err) < 0 ||
            put(o, x->data, (size_t)x->name_len + x->value_len, err) < 0 ||
            pad_to(o, (o->pos + 3) & ~3ULL, err) < 0)
            return -1;
    }
    return 0;
}

static int write_inode(struct erofs_out *o, struct layout *l, const struct tree_inode *in,
                       struct err *err)
{
    struct placed p;
    uint64_t size;
    if (content_size(in, &size, err) < 0)
        return -1;
    place(in, size, &p);
    uint64_t xattrs = xattr_bytes(in);
    uint32_t block = 0;
    if (S_ISREG(in->mode)) {
        p.size = in->file.size;
        if (p.size > 0)
            block = (uint32_t)(l->part_start[in->file.part] + in->file.block);
    } else if (p.blocks > 0) {
        block = (uint32_t)(l->extra_next / EROFS_BLOCK);
        l->extra_next += p.blocks * EROFS_BLOCK;
    } else if (S_ISCHR(in->mode) || S_ISBLK(in->mode)) {
        block = in->rdev;
    }
    struct erofs_inode d = {
        .format = htole16(EROFS_FORMAT(p.tail > 0 ? EROFS_INLINE : EROFS_PLAIN)),
        .xattr_count = htole16(
            xattrs == 0 ? 0 : (uint16_t)((xattrs - sizeof(struct erofs_xattr_header)) / 4 + 1)),
        .mode = htole16((uint16_t)in->mode),
        .size = htole64(p.size),
        .block = htole32(block),
        .ino = htole32((uint32_t)in->nid), /* so that stat and readdir agree */
        .uid = htole32(in->uid),
        .gid = htole32(in->gid),
        .mtime = htole64((uint64_t)in->mtime),
        .mtime_ns = htole32(in->mtime_ns),
        .nlink = htole32(in->nlink),
    };
    if (pad_to(o, l->meta + in->nid * EROFS_SLOT, err) < 0 || put(o, &d, sizeof(d), err) < 0 ||
        write_xattrs(o, in, err) < 0)
        return -1;
    if (p.tail == 0)
        return 0;
    return tree_is_dir(in) ? dir_write(o, in, true, false, err)
                           : put(o, in->link.target + (p.size - p.tail), p.tail, err);
}

static int write_extra(struct erofs_out *o, const struct tree_inode *in, struct err *err)
{
    struct placed p;
    uint64_t size;
    if (content_size(in, &size, err) < 0)
        return -1;
    place(in, size, &p);
    if (p.blocks == 0)
        return 0;
    if (tree_is_dir(in)) {
        if (dir_write(o, in, p.tail == 0, true, err) < 0)
            return -1;
    } else if (put(o, in->link.target, p.size - p.tail, err) < 0) {
        return -1;
    }
    return pad(o, err);
}

static int write_super(struct erofs_out *o, const struct layout *l, uint64_t total, struct err *err)
{
    char block[EROFS_BLOCK] = {0};
    struct erofs_super sb = {
        .magic = htole32(EROFS_SB_MAGIC),
        .feature_compat = htole32(EROFS_COMPAT_CHECKSUM | EROFS_COMPAT_MTIME),
        .block_bits = EROFS_BLOCK_BITS,
        .root_nid = htole16((uint16_t)l->inodes[0]->nid),
        .inodes = htole64(l->n),
        .blocks = htole32((uint32_t)total),
        .meta_block = htole32((uint32_t)(l->meta / EROFS_BLOCK)),
    };
    memcpy(block + EROFS_SB_OFFSET, &sb, sizeof(sb));
    sb.checksum = htole32(erofs_crc32c(block + EROFS_SB_OFFSET, EROFS_BLOCK - EROFS_SB_OFFSET));
    memcpy(block + EROFS_SB_OFFSET, &sb, sizeof(sb));
    return write_at(o->fd, block, sizeof(block), 0, err);
}

static int finish(struct erofs_out *o, struct layout *l, struct tree *t,
                  const uint64_t *part_blocks, size_t n_parts, uint64_t *size, struct err *err)
{
    uint64_t total = 0;
    if (pad(o, err) < 0 || layout_list(l, t, part_blocks == NULL, err) < 0 ||
        layout_place(l, o->pos, err) < 0 || layout_parts(l, part_blocks, n_parts, &total, err) < 0)
        return -1;
    for (size_t i = 0; i < l->n; i++) {
        if (write_inode(o, l, l->inodes[i], err) < 0)
            return -1;
    }
    if (pad_to(o, l->extra, err) < 0)
        return -1;
    for (size_t i = 0; i < l->n; i++) {
        if (write_extra(o, l->inodes[i], err) < 0)
            return -1;
    }
    if (o->pos != l->own_blocks * EROFS_BLOCK)
        return err_set(err, ERR_INTERNAL, "the file system's layout does not add up");
    if (flush(o, err) < 0 || write_super(o, l, total, err) < 0)
        return -1;
    /* A hole at the end would leave the file short. */
    if (ftruncate(o->fd, (off_t)o->pos) < 0)
        return err_sys(err, errno, "set the size of the file system image");
    *size = o->pos;
    return 0;
}

int erofs_finish(struct erofs_out *o, struct tree *t, const uint64_t *part_blocks, size_t n_parts,
                 uint64_t *size, struct err *err)
{
    struct layout l = {0};
    int rc = finish(o, &l, t, part_blocks, n_parts, size, err);
    layout_clear(&l);
    return rc;
}
