#include "cri/image/extract.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "cri/image/erofs_format.h"
#include "cri/image/merge.h"
#include "cri/image/tree.h"

struct extract {
    const int *layers; /* part k is layers[k - 1] */
    size_t n_layers;
    int links; /* directory where inodes with several names have one that is a number */
    uint64_t next_link;
    struct extract_usage *usage;
    struct cancel *cancel;
    bool xattrs_lost;
};

/* --- contents --- */

static int copy_range(int from, off_t at, int to, off_t to_at, uint64_t len, struct err *err)
{
    while (len > 0) {
        ssize_t n = copy_file_range(from, &at, to, &to_at, len, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_sys(err, errno, "copy");
        if (n == 0)
            return err_set(err, ERR_DATA_LOSS, "the layer file is too short");
        len -= (uint64_t)n;
    }
    return 0;
}

/* Holes of the layer file stay holes. */
static int copy_contents(struct extract *x, const struct tree_inode *in, int fd, struct err *err)
{
    if (in->file.size == 0)
        return 0;
    if (in->file.part == 0 || in->file.part > x->n_layers)
        return err_set(err, ERR_DATA_LOSS, "contents in no layer");
    int from = x->layers[in->file.part - 1];
    off_t begin = (off_t)in->file.block << EROFS_BLOCK_BITS;
    off_t end = begin + (off_t)in->file.size;
    if (ftruncate(fd, (off_t)in->file.size) < 0)
        return err_sys(err, errno, "set size");
    off_t at = begin;
    while (at < end) {
        if (cancel_check(x->cancel, err) < 0)
            return -1;
        off_t data = lseek(from, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            break; /* a hole up to the end */
        if (data < 0)
            return err_sys(err, errno, "seek");
        off_t hole = data < end ? lseek(from, data, SEEK_HOLE) : end;
        if (hole < 0)
            return err_sys(err, errno, "seek");
        if (hole > end)
            hole = end;
        if (data < hole &&
            copy_range(from, data, fd, data - begin, (uint64_t)(hole - data), err) < 0)
            return -1;
        at = hole > data ? hole : end;
    }
    return 0;
}

/* --- attributes --- */

static const char *prefix_text(uint8_t prefix)
{
    switch (prefix) {
    case EROFS_XATTR_USER:
        return "user.";
    case EROFS_XATTR_ACL_ACCESS:
        return "system.posix_acl_access";
    case EROFS_XATTR_ACL_DEFAULT:
        return "system.posix_acl_default";
    case EROFS_XATTR_TRUSTED:
        return "trusted.";
    case EROFS_XATTR_SECURITY:
        return "security.";
    default:
        return NULL;
    }
}

static int set_xattrs(struct extract *x, const struct tree_inode *in, int dir, const char *name,
                      struct err *err)
{
    char path[sizeof("/proc/self/fd/") + 16 + EROFS_NAME_MAX];
    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d/%s", dir, name);
    for (const struct tree_xattr *a = in->xattrs; a != NULL; a = a->next) {
        char key[64 + EROFS_NAME_MAX];
        const char *prefix = prefix_text(a->prefix);
        if (prefix == NULL)
            continue;
        (void)snprintf(key, sizeof(key), "%s%.*s", prefix, (int)a->name_len, a->data);
        if (lsetxattr(path, key, a->data + a->name_len, a->value_len, 0) == 0)
            continue;
        /* the store's file system, or the security module, does not have such attributes */
        if (errno != EOPNOTSUPP)
            return err_sys(err, errno, "set attribute %s", key);
        x->xattrs_lost = true;
    }
    return 0;
}

/* Owner before mode and attributes: a new owner takes setuid bits and capabilities away. */
static int set_attributes(struct extract *x, const struct tree_inode *in, int dir, const char *name,
                          struct err *err)
{
    struct timespec times[2] = {{.tv_sec = in->mtime, .tv_nsec = (long)in->mtime_ns},
                                {.tv_sec = in->mtime, .tv_nsec = (long)in->mtime_ns}};
    if (fchownat(dir, name, in->uid, in->gid, AT_SYMLINK_NOFOLLOW) < 0)
        return err_sys(err, errno, "set owner");
    if (!S_ISLNK(in->mode) && fchmodat(dir, name, in->mode & 07777, 0) < 0)
        return err_sys(err, errno, "set mode");
    if (set_xattrs(x, in, dir, name, err) < 0)
        return -1;
    if (utimensat(dir, name, times, AT_SYMLINK_NOFOLLOW) < 0)
        return err_sys(err, errno, "set time");
    struct stat st;
    if (fstatat(dir, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return err_sys(err, errno, "look at");
    x->usage->bytes += (uint64_t)st.st_blocks * 512;
    x->usage->inodes++;
    return 0;
}

/* --- inodes --- */

static int make_file(struct extract *x, const struct tree_inode *in, int dir, const char *name,
                     struct err *err)
{
    auto_close int fd =
        openat(dir, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_sys(err, errno, "create");
    return copy_contents(x, in, fd, err);
}

/* Linux's new_encode_dev(). */
static dev_t decode_dev(uint32_t rdev)
{
    return makedev((rdev & 0xfff00) >> 8, (rdev & 0xff) | ((rdev >> 12) & 0xfff00));
}

static int make_inode(struct extract *x, const struct tree_inode *in, int dir, const char *name,
                      struct err *err)
{
    int ret = 0;
    switch (in->mode & S_IFMT) {
    case S_IFREG:
        ret = make_file(x, in, dir, name, err);
        break;
    case S_IFLNK:
        if (symlinkat(in->link.target, dir, name) < 0)
            ret = err_sys(err, errno, "create link");
        break;
    case S_IFCHR:
    case S_IFBLK:
    case S_IFIFO:
        if (mknodat(dir, name, (in->mode & S_IFMT) | 0600, decode_dev(in->rdev)) < 0)
            ret = err_sys(err, errno, "create node");
        break;
    default:
        return 0;
    }
    return ret < 0 ? -1 : set_attributes(x, in, dir, name, err);
}

/* nid is free for our use: 0, or the number under which the inode is in `links`. */
static int make_linked(struct extract *x, struct tree_inode *in, int dir, const char *name,
                       struct err *err)
{
    char number[24];
    if (in->nid == 0) {
        in->nid = ++x->next_link;
        (void)snprintf(number, sizeof(number), "%llu", (unsigned long long)in->nid);
        if (make_inode(x, in, x->links, number, err) < 0)
            return -1;
    }
    (void)snprintf(number, sizeof(number), "%llu", (unsigned long long)in->nid);
    return linkat(x->links, number, dir, name, 0) < 0 ? err_sys(err, errno, "link") : 0;
}

static int fill_dir(struct extract *x, const struct tree_inode *in, int dir, struct err *err);

/* Depth is bounded by the tree. */
static int make_dir(struct extract *x, const struct tree_inode *in, int dir, const char *name,
                    struct err *err)
{
    if (mkdirat(dir, name, 0700) < 0)
        return err_sys(err, errno, "create directory");
    auto_close int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return err_sys(err, errno, "open directory");
    return fill_dir(x, in, fd, err) < 0 ? -1 : set_attributes(x, in, dir, name, err);
}

static int fill_dir(struct extract *x, const struct tree_inode *in, int dir, struct err *err)
{
    auto_free struct tree_entry **list = tree_sorted(in);
    if (list == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    for (size_t i = 0; i < in->dir.n; i++) {
        struct tree_inode *child = list[i]->inode;
        const char *name = list[i]->name;
        if (cancel_check(x->cancel, err) < 0)
            return -1;
        if (tree_is_whiteout(child))
            continue;
        int ret = tree_is_dir(child) ? make_dir(x, child, dir, name, err)
                  : child->nlink > 1 ? make_linked(x, child, dir, name, err)
                                     : make_inode(x, child, dir, name, err);
        if (ret < 0)
            return err_wrap(err, "%.255s", name);
    }
    return 0;
}

static int count_links(struct tree_inode *dir, struct err *err)
{
    auto_free struct tree_entry **list = tree_sorted(dir);
    if (list == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    for (size_t i = 0; i < dir->dir.n; i++) {
        struct tree_inode *child = list[i]->inode;
        if (!tree_is_dir(child)) {
            child->nlink++;
            child->nid = 0;
        } else if (count_links(child, err) < 0) {
            return -1;
        }
    }
    return 0;
}

static int extract_into(struct extract *x, struct tree *image, const char *dir, struct err *err)
{
    auto_free char *links = fs_format("%s/links", dir);
    if (mkdir(links, 0700) < 0)
        return err_sys(err, errno, "create %s", links);
    auto_close int fd = open(links, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    auto_close int top = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || top < 0)
        return err_sys(err, errno, "open %s", links);
    x->links = fd;
    if (count_links(tree_root(image), err) < 0 ||
        make_dir(x, tree_root(image), top, "root", err) < 0)
        return -1;
    if (x->xattrs_lost)
        log_warn("extended attributes of an image are lost: the file system has none",
                 LOG_STR("directory", dir));
    return fs_rm_rf(links, err);
}

int extract_image(const char *const *layer_paths, size_t n, const char *dir,
                  struct extract_usage *usage, struct cancel *cancel, struct err *err)
{
    auto_tree struct tree *image = tree_new(LIMIT_TREE_BYTES, err);
    auto_free int *fds = calloc(n + 1, sizeof(*fds));
    size_t opened = 0;
    int ret = 0;
    if (image == NULL)
        return -1;
    if (fds == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    *usage = (struct extract_usage){0};
    if (merge_layers(image, layer_paths, n, NULL, err) < 0)
        return -1;
    for (; ret == 0 && opened < n; opened++) {
        fds[opened] = open(layer_paths[opened], O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
        if (fds[opened] < 0) {
            ret = err_sys(err, errno, "open %s", layer_paths[opened]);
            break;
        }
    }
    struct extract x = {
        .layers = fds, .n_layers = n, .links = -1, .usage = usage, .cancel = cancel};
    if (ret == 0)
        ret = extract_into(&x, image, dir, err);
    while (opened > 0)
        (void)close(fds[--opened]);
    return ret;
}
