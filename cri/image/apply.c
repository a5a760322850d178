#include "cri/image/apply.h"

#include <archive.h>
#include <archive_entry.h>
#include <locale.h>
#include <stdbool.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "base/limits.h"
#include "base/str.h"
#include "cri/image/erofs_format.h"

#define WHITEOUT ".wh."
#define WHITEOUT_META ".wh..wh."
#define WHITEOUT_OPAQUE ".wh..wh..opq"

struct applier {
    struct tree *t;
    struct erofs_out *out;
    apply_read_fn read_fn;
    void *arg;
    struct err read_err; /* from read_fn, on its way past libarchive */
    struct archive *a;
    struct archive_entry *e;
    struct tree_place at; /* where the current entry belongs */
};

/* Names of entries are data for error texts: printable, and not endless. */
static const char *shown(const char *name, char out[160])
{
    size_t n = 0;
    for (const char *p = name; *p != '\0' && n < 150; p++) {
        unsigned char c = (unsigned char)*p;
        if (c < 0x20 || c >= 0x7f || c == '\\')
            n += (size_t)snprintf(out + n, 5, "\\x%02x", c);
        else
            out[n++] = (char)c;
    }
    out[n] = '\0';
    return out;
}

/* The path without "." and empty components, hence without a leading slash; "" is the root. */
static int clean_path(const char *path, char *out, size_t size, struct err *err)
{
    size_t n = 0;
    for (const char *p = path; *p != '\0';) {
        size_t len = strcspn(p, "/");
        if (len == 2 && p[0] == '.' && p[1] == '.')
            return err_set(err, ERR_INVALID, "the path has a \"..\" component");
        if (len > EROFS_NAME_MAX)
            return err_set(err, ERR_INVALID, "the path has a name of more than %u bytes",
                           EROFS_NAME_MAX);
        if (len > 0 && !(len == 1 && p[0] == '.')) {
            if (n + len + 2 > size)
                return err_set(err, ERR_INVALID, "the path is longer than %d bytes", LIMIT_PATH);
            if (n > 0)
                out[n++] = '/';
            memcpy(out + n, p, len);
            n += len;
        }
        p += len;
        p += strspn(p, "/");
    }
    out[n] = '\0';
    return 0;
}

/* Attributes */

struct xattr_name {
    const char *prefix;
    uint8_t index;
    bool whole;
};

static const struct xattr_name xattr_names[] = {
    {"user.", EROFS_XATTR_USER, false},
    {"trusted.", EROFS_XATTR_TRUSTED, false},
    {"security.", EROFS_XATTR_SECURITY, false},
    {"system.posix_acl_access", EROFS_XATTR_ACL_ACCESS, true},
    {"system.posix_acl_default", EROFS_XATTR_ACL_DEFAULT, true},
};

/* Attributes that mean something to overlayfs, or to our own merge, are not the image's to set. */
static bool xattr_is_ours(const char *name)
{
    return str_starts(name, "trusted.overlay.") || str_starts(name, "user.overlay.") ||
           str_starts(name, "trusted.aspis.");
}

static int set_xattrs(struct applier *x, struct tree_inode *in, struct err *err)
{
    const char *name;
    const void *value;
    size_t len;
    in->xattrs = NULL;
    (void)archive_entry_xattr_reset(x->e);
    while (archive_entry_xattr_next(x->e, &name, &value, &len) == ARCHIVE_OK) {
        if (name == NULL || xattr_is_ours(name))
            continue;
        for (size_t i = 0; i < ARRAY_LEN(xattr_names); i++) {
            const struct xattr_name *n = &xattr_names[i];
            const char *rest = name + strlen(n->prefix);
            if (!str_starts(name, n->prefix) || (*rest == '\0') != n->whole)
                continue;
            if (tree_set_xattr(x->t, in, n->index, rest, strlen(rest), value, len, err) < 0)
                return -1;
        }
    }
    return 0;
}

/* Owner, mode, times and extended attributes, for a fresh inode or a directory listed again. */
static int set_attributes(struct applier *x, struct tree_inode *in, struct err *err)
{
    int64_t uid = archive_entry_uid(x->e);
    int64_t gid = archive_entry_gid(x->e);
    if (uid < 0 || uid > UINT32_MAX || gid < 0 || gid > UINT32_MAX)
        return err_set(err, ERR_INVALID, "owner %lld:%lld", (long long)uid, (long long)gid);
    in->uid = (uint32_t)uid;
    in->gid = (uint32_t)gid;
    in->mode = (in->mode & S_IFMT) |
               (S_ISLNK(in->mode) ? 0777 : (uint32_t)archive_entry_perm(x->e) & 07777);
    in->mtime = archive_entry_mtime(x->e);
    long ns = archive_entry_mtime_nsec(x->e);
    in->mtime_ns = ns >= 0 && ns < 1000000000 ? (uint32_t)ns : 0;
    return set_xattrs(x, in, err);
}

/* Entries */

static int put(struct applier *x, struct tree_inode *in, struct err *err)
{
    return tree_put(x->t, x->at.dir, x->at.name, x->at.name_len, in, err);
}

static struct tree_inode *fresh(struct applier *x, uint32_t type, struct err *err)
{
    struct tree_inode *in = tree_inode_new(x->t, type, err);
    return in == NULL || set_attributes(x, in, err) < 0 ? NULL : in;
}

static int add_directory(struct applier *x, struct err *err)
{
    struct tree_inode *in = NULL;
    uint16_t flags = 0;
    if (x->at.name_len == 0) {
        in = x->at.dir;
    } else if (x->at.entry != NULL) {
        if (tree_is_dir(x->at.entry->inode))
            in = x->at.entry->inode;
        else
            flags = TREE_OPAQUE; /* something else of this name has hidden a lower directory */
    }
    if (in != NULL) {
        in->flags &= (uint16_t)~TREE_IMPLIED;
        return set_attributes(x, in, err);
    }
    in = fresh(x, S_IFDIR, err);
    if (in == NULL)
        return -1;
    in->flags = flags;
    return put(x, in, err);
}

static int copy_contents(struct applier *x, struct tree_inode *in, struct err *err)
{
    uint64_t size = archive_entry_size(x->e) > 0 ? (uint64_t)archive_entry_size(x->e) : 0;
    uint64_t done = 0;
    in->file.block = erofs_data_begin(x->out);
    in->file.size = size;
    for (;;) {
        const void *data;
        size_t len;
        la_int64_t offset;
        int rc = archive_read_data_block(x->a, &data, &len, &offset);
        if (rc == ARCHIVE_EOF)
            break;
        if (rc != ARCHIVE_OK)
            return err_set(err, ERR_INVALID, "%s", archive_error_string(x->a));
        if (offset < 0 || (uint64_t)offset < done || (uint64_t)offset > size ||
            len > size - (uint64_t)offset)
            return err_set(err, ERR_INVALID, "contents outside of the file's %llu bytes",
                           (unsigned long long)size);
        if (erofs_data_hole(x->out, (uint64_t)offset - done, err) < 0 ||
            erofs_data_write(x->out, data, len, err) < 0)
            return -1;
        done = (uint64_t)offset + len;
    }
    if (erofs_data_hole(x->out, size - done, err) < 0)
        return -1;
    return erofs_data_end(x->out, err);
}

static int add_file(struct applier *x, struct err *err)
{
    struct tree_inode *in = fresh(x, S_IFREG, err);
    if (in == NULL || copy_contents(x, in, err) < 0)
        return -1;
    return put(x, in, err);
}

static int add_symlink(struct applier *x, struct err *err)
{
    const char *target = archive_entry_symlink(x->e);
    size_t len = target != NULL ? strlen(target) : 0;
    if (len == 0 || len > LIMIT_SYMLINK)
        return err_set(err, ERR_INVALID, "a symbolic link's target of %zu bytes", len);
    struct tree_inode *in = fresh(x, S_IFLNK, err);
    if (in == NULL || tree_set_target(x->t, in, target, len, err) < 0)
        return -1;
    return put(x, in, err);
}

static int add_special(struct applier *x, uint32_t type, struct err *err)
{
    struct tree_inode *in = fresh(x, type, err);
    if (in == NULL)
        return -1;
    if (type != S_IFIFO) {
        uint64_t major = (uint64_t)archive_entry_rdevmajor(x->e);
        uint64_t minor = (uint64_t)archive_entry_rdevminor(x->e);
        if (major > 0xfff || minor > 0xfffff)
            return err_set(err, ERR_INVALID, "device number %llu:%llu", (unsigned long long)major,
                           (unsigned long long)minor);
        in->rdev = (uint32_t)((minor & 0xff) | (major << 8) | ((minor & ~0xffULL) << 12));
    }
    return put(x, in, err);
}

/* The target is what the path leads to now in this layer, else a file of a lower one, which only
 * the merge can find: until then an empty file stands there. */
static int add_hardlink(struct applier *x, const char *target, struct err *err)
{
    char path[LIMIT_PATH + 1];
    if (clean_path(target, path, sizeof(path), err) < 0)
        return err_wrap(err, "hard link's target");
    struct tree_place to;
    if (tree_walk(x->t, path, false, &to, err) < 0)
        return err_wrap(err, "hard link's target");
    auto_free char *rest = to.rest;
    struct tree_inode *in = NULL;
    if (to.dir != NULL && to.name_len == 0)
        return err_set(err, ERR_INVALID, "hard link to a directory");
    if (to.dir != NULL && to.entry != NULL && !tree_is_whiteout(to.entry->inode)) {
        in = to.entry->inode;
        if (tree_is_dir(in))
            return err_set(err, ERR_INVALID, "hard link to a directory");
        return put(x, in, err);
    }
    in = tree_inode_new(x->t, S_IFREG | 0600, err);
    if (in == NULL)
        return -1;
    in->flags = TREE_LOWER;
    const char *lower = rest != NULL ? rest : path;
    if (tree_set_xattr(x->t, in, EROFS_XATTR_TRUSTED, LAYER_XATTR_LINK, strlen(LAYER_XATTR_LINK),
                       lower, strlen(lower), err) < 0)
        return -1;
    return put(x, in, err);
}

/* Whiteouts concern lower layers only: what this layer has under the name stays, whatever came
 * first, and if that is a directory it hides the lower one. */
static int add_whiteout(struct applier *x, struct err *err)
{
    const char *name = x->at.name + strlen(WHITEOUT);
    if (strcmp(x->at.name, WHITEOUT_OPAQUE) == 0) {
        x->at.dir->flags |= TREE_OPAQUE;
        return 0;
    }
    if (*name == '\0' || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return err_set(err, ERR_INVALID, "a whiteout of no name");
    struct tree_entry *e = tree_lookup(x->at.dir, name, strlen(name));
    if (e != NULL) {
        if (tree_is_dir(e->inode)) {
            e->inode->flags &= (uint16_t)~TREE_IMPLIED;
            e->inode->flags |= TREE_OPAQUE;
        }
        return 0;
    }
    struct tree_inode *in = tree_inode_new(x->t, S_IFCHR, err);
    if (in == NULL)
        return -1;
    return tree_put(x->t, x->at.dir, name, strlen(name), in, err);
}

/* 1 for aufs's own bookkeeping, which is not part of the image. */
static int check_whiteout_names(const char *path, struct err *err)
{
    for (const char *p = path; *p != '\0';) {
        size_t len = strcspn(p, "/");
        bool last = p[len] == '\0';
        if (str_starts(p, WHITEOUT_META) && !(last && strcmp(p, WHITEOUT_OPAQUE) == 0))
            return 1;
        if (str_starts(p, WHITEOUT) && !last)
            return err_set(err, ERR_INVALID, "a whiteout is used as a directory");
        p += len + !last;
    }
    return 0;
}

static int add_by_type(struct applier *x, struct err *err)
{
    switch (archive_entry_filetype(x->e)) {
    case AE_IFREG:
        return add_file(x, err);
    case AE_IFLNK:
        return add_symlink(x, err);
    case AE_IFCHR:
        return add_special(x, S_IFCHR, err);
    case AE_IFBLK:
        return add_special(x, S_IFBLK, err);
    case AE_IFIFO:
        return add_special(x, S_IFIFO, err);
    default: /* a socket or something unknown: other runtimes leave them out too */
        return 0;
    }
}

static int add_entry(struct applier *x, const char *name, struct err *err)
{
    char path[LIMIT_PATH + 1];
    if (clean_path(name, path, sizeof(path), err) < 0)
        return -1;
    int skip = check_whiteout_names(path, err);
    if (skip != 0)
        return skip < 0 ? -1 : 0;
    if (tree_walk(x->t, path, true, &x->at, err) < 0)
        return -1;
    const char *hardlink = archive_entry_hardlink(x->e);
    bool dir = hardlink == NULL && archive_entry_filetype(x->e) == AE_IFDIR;
    if (x->at.name_len > 0 && str_starts(x->at.name, WHITEOUT))
        return add_whiteout(x, err);
    if (dir)
        return add_directory(x, err);
    if (x->at.name_len == 0)
        return err_set(err, ERR_INVALID, "the root must be a directory");
    return hardlink != NULL ? add_hardlink(x, hardlink, err) : add_by_type(x, err);
}

/* The archive */

static la_ssize_t on_read(struct archive *a, void *arg, const void **data)
{
    struct applier *x = arg;
    ssize_t n = x->read_fn(x->arg, data, &x->read_err);
    if (n < 0)
        archive_set_error(a, EIO, "read error");
    return n;
}

static int apply_all(struct applier *x, uint64_t max_entries, uint64_t *entries, struct err *err)
{
    for (*entries = 0;;) {
        int rc = archive_read_next_header(x->a, &x->e);
        if (rc == ARCHIVE_EOF)
            return 0;
        /* A warning is about details that we do not use, or leaves the entry usable. */
        if (rc != ARCHIVE_OK && rc != ARCHIVE_WARN)
            return err_set(err, ERR_INVALID, "not a valid tar archive: %s",
                           archive_error_string(x->a));
        if (++*entries > max_entries)
            return err_set(err, ERR_EXHAUSTED, "more than %llu entries",
                           (unsigned long long)max_entries);
        const char *name = archive_entry_pathname(x->e);
        if (name == NULL)
            return err_set(err, ERR_INVALID, "entry %llu has no readable name",
                           (unsigned long long)*entries);
        if (add_entry(x, name, err) < 0) {
            char text[160];
            return err_wrap(err, "entry %s", shown(name, text));
        }
    }
}

int apply_tar(struct tree *t, struct erofs_out *out, apply_read_fn read_fn, void *arg,
              uint64_t max_entries, uint64_t *entries, struct err *err)
{
    struct applier x = {.t = t, .out = out, .read_fn = read_fn, .arg = arg, .read_err = ERR_INIT};
    /* libarchive converts PAX names from UTF-8 to the locale's encoding; bytes that are not UTF-8
     * pass unchanged. */
    locale_t utf8 = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
    if (utf8 == (locale_t)0)
        return err_sys(err, errno, "set the locale C.UTF-8");
    locale_t before = uselocale(utf8);
    int rc = -1;
    x.a = archive_read_new();
    if (x.a == NULL)
        (void)err_set(err, ERR_EXHAUSTED, "out of memory for libarchive");
    else if (archive_read_support_format_tar(x.a) != ARCHIVE_OK ||
             archive_read_support_format_empty(x.a) != ARCHIVE_OK ||
             archive_read_open(x.a, &x, NULL, on_read, NULL) != ARCHIVE_OK)
        (void)err_set(err, ERR_INVALID, "not a tar archive: %s", archive_error_string(x.a));
    else
        rc = apply_all(&x, max_entries, entries, err);
    if (rc < 0 && x.read_err.code != ERR_OK)
        (void)err_move(err, &x.read_err);
    err_clear(&x.read_err);
    (void)archive_read_free(x.a);
    (void)uselocale(before);
    freelocale(utf8);
    return rc;
}
