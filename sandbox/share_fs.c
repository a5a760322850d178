#define FUSE_USE_VERSION 312
#include "sandbox/share_fs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#define HASH_FUNCTION HASH_FNV /* clang warns of the default one */
#include <uthash.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/str.h"
#include "sandbox/share_xattr.h"
#include "sandbox/volume_ids.h"

/* How long a guest may go on with what it has seen: kubelet's changes show within this. */
#define TIMEOUT 0.1

struct inode_key {
    uint64_t dev, ino;
};

struct inode {
    struct inode_key key;
    int fd; /* O_PATH */
    mode_t type;
    uint64_t lookups; /* that the guest holds */
    uint32_t slot;
    UT_hash_handle hh;
};

enum handle_kind { HANDLE_FREE, HANDLE_FILE, HANDLE_DIR };

struct handle {
    enum handle_kind kind;
    int fd;
    DIR *dir;
    struct dirent *next; /* read but not sent yet */
    off_t offset;        /* of what comes after it */
};

/* Slots 0 and 1 are never given out: 1 is the root's node id. */
struct volume {
    struct fuse_session *se;
    volume_send_fn send;
    void *arg;
    struct volume_ids ids;
    bool started;
    uint32_t epoch;
    struct inode **inodes;
    uint32_t n_inodes, cap_inodes;
    uint32_t *free_inodes;
    uint32_t n_free_inodes;
    struct inode *by_key;
    struct handle *handles;
    uint32_t n_handles, cap_handles;
};

static uint32_t inodes_in_use; /* of all volumes: each is a descriptor */

static struct volume *volume_of(fuse_req_t req)
{
    return fuse_req_userdata(req);
}

/* --- ids --- */

/* What the guest sees. */
static void stat_out(const struct volume *v, struct stat *st)
{
    volume_ids_out(&v->ids, &st->st_uid, &st->st_gid);
}

/* What the guest says; false with errno when it is nobody's here. */
static bool ids_in(const struct volume *v, uid_t *uid, gid_t *gid)
{
    if (volume_ids_in(&v->ids, uid, gid))
        return true;
    errno = EOVERFLOW;
    return false;
}

/* Answers who may not make files. */
static bool may_make(fuse_req_t req)
{
    uid_t uid = fuse_req_ctx(req)->uid;
    gid_t gid = fuse_req_ctx(req)->gid;
    bool may = ids_in(volume_of(req), &uid, &gid);
    if (!may)
        (void)fuse_reply_err(req, errno);
    return may;
}

/* --- tables --- */

static struct inode *inode_at(struct volume *v, fuse_ino_t id)
{
    if (id == FUSE_ROOT_ID)
        return v->inodes[FUSE_ROOT_ID];
    uint32_t slot = (uint32_t)id;
    return id >> 32 == v->epoch && slot > FUSE_ROOT_ID && slot < v->n_inodes ? v->inodes[slot]
                                                                             : NULL;
}

/* The inode a request is about; answers it when there is none. */
static struct inode *find(fuse_req_t req, fuse_ino_t id)
{
    struct inode *i = inode_at(volume_of(req), id);
    if (i == NULL)
        (void)fuse_reply_err(req, ESTALE);
    return i;
}

static fuse_ino_t id_of(const struct volume *v, const struct inode *i)
{
    return i->slot == FUSE_ROOT_ID ? FUSE_ROOT_ID : (uint64_t)v->epoch << 32 | i->slot;
}

static int take_slot(struct volume *v, uint32_t *slot)
{
    if (v->n_free_inodes > 0) {
        *slot = v->free_inodes[--v->n_free_inodes];
        return 0;
    }
    if (v->n_inodes == v->cap_inodes) {
        uint32_t cap = v->cap_inodes * 2;
        struct inode **inodes = reallocarray(v->inodes, cap, sizeof(struct inode *));
        if (inodes == NULL)
            return ENOMEM;
        v->inodes = inodes;
        uint32_t *frees = reallocarray(v->free_inodes, cap, sizeof(*frees));
        if (frees == NULL)
            return ENOMEM;
        v->free_inodes = frees;
        v->cap_inodes = cap;
    }
    *slot = v->n_inodes++;
    return 0;
}

/* The inode of an O_PATH descriptor, which is taken; counts one lookup. */
static int remember(struct volume *v, int fd, const struct stat *st, struct inode **out)
{
    auto_close int owned = fd;
    struct inode_key key = {.dev = st->st_dev, .ino = st->st_ino};
    struct inode *i = NULL;
    HASH_FIND(hh, v->by_key, &key, sizeof(key), i);
    if (i == NULL) {
        uint32_t slot;
        if (inodes_in_use >= LIMIT_FS_INODES)
            return ENFILE;
        int e = take_slot(v, &slot);
        if (e != 0)
            return e;
        i = xcalloc(1, sizeof(*i));
        *i = (struct inode){
            .key = key, .fd = take_fd(&owned), .type = st->st_mode & S_IFMT, .slot = slot};
        v->inodes[slot] = i;
        HASH_ADD(hh, v->by_key, key, sizeof(i->key), i);
        inodes_in_use++;
    }
    i->lookups++;
    *out = i;
    return 0;
}

static void drop_inode(struct volume *v, struct inode *i)
{
    HASH_DEL(v->by_key, i);
    (void)close(i->fd);
    v->inodes[i->slot] = NULL;
    if (i->slot > FUSE_ROOT_ID)
        v->free_inodes[v->n_free_inodes++] = i->slot;
    free(i);
    inodes_in_use--;
}

static void forget(struct volume *v, fuse_ino_t id, uint64_t n)
{
    struct inode *i = inode_at(v, id);
    if (i == NULL || i->slot == FUSE_ROOT_ID)
        return;
    i->lookups -= n < i->lookups ? n : i->lookups;
    if (i->lookups == 0)
        drop_inode(v, i);
}

static int lookup(struct volume *v, const struct inode *parent, const char *name,
                  struct fuse_entry_param *e)
{
    *e = (struct fuse_entry_param){.attr_timeout = TIMEOUT, .entry_timeout = TIMEOUT};
    auto_close int fd = openat(parent->fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &e->attr) < 0)
        return errno;
    struct inode *i = NULL;
    int r = remember(v, take_fd(&fd), &e->attr, &i);
    if (r == 0)
        e->ino = id_of(v, i);
    stat_out(v, &e->attr);
    return r;
}

/* A path that reopens an inode, past its O_PATH descriptor. */
static const char *path_of(const struct inode *i, char out[40])
{
    (void)snprintf(out, 40, "/proc/self/fd/%d", i->fd);
    return out;
}

/* Puts the handle into fi; its descriptor or directory is taken. */
static int add_handle(struct volume *v, struct handle h, struct fuse_file_info *fi)
{
    uint32_t at = 0;
    while (at < v->n_handles && v->handles[at].kind != HANDLE_FREE)
        at++;
    if (at == v->cap_handles && at < LIMIT_FS_HANDLES) {
        uint32_t cap = v->cap_handles == 0 ? 64 : v->cap_handles * 2;
        struct handle *more = reallocarray(v->handles, cap, sizeof(*more));
        if (more != NULL) {
            v->handles = more;
            v->cap_handles = cap;
        }
    }
    if (at == v->cap_handles) {
        if (h.dir != NULL)
            (void)closedir(h.dir);
        else
            (void)close(h.fd);
        return ENFILE;
    }
    if (at == v->n_handles)
        v->n_handles++;
    v->handles[at] = h;
    fi->fh = (uint64_t)v->epoch << 32 | at;
    return 0;
}

static struct handle *handle_at(struct volume *v, uint64_t fh, enum handle_kind kind)
{
    uint32_t at = (uint32_t)fh;
    if (fh >> 32 != v->epoch || at >= v->n_handles || v->handles[at].kind != kind)
        return NULL;
    return &v->handles[at];
}

static struct handle *find_handle(fuse_req_t req, const struct fuse_file_info *fi,
                                  enum handle_kind kind)
{
    struct handle *h = fi != NULL ? handle_at(volume_of(req), fi->fh, kind) : NULL;
    if (h == NULL)
        (void)fuse_reply_err(req, EBADF);
    return h;
}

static void drop_handle(struct handle *h)
{
    if (h->kind == HANDLE_FILE)
        (void)close(h->fd);
    else if (h->kind == HANDLE_DIR)
        (void)closedir(h->dir);
    *h = (struct handle){.kind = HANDLE_FREE};
}

static void answer(fuse_req_t req, int result)
{
    (void)fuse_reply_err(req, result < 0 ? errno : 0);
}

/* --- names and attributes --- */

static void op_init(void *arg, struct fuse_conn_info *c)
{
    struct volume *v = arg;
    v->started = true;
    c->max_write = LIMIT_FS_DATA;
    c->max_readahead = LIMIT_FS_DATA;
    /* the guest's kernel clears suid bits on a write itself, ours may be allowed to keep them */
    c->want &= ~(unsigned)FUSE_CAP_HANDLE_KILLPRIV;
}

static void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct inode *p = find(req, parent);
    struct fuse_entry_param e;
    if (p == NULL)
        return;
    int r = lookup(volume_of(req), p, name, &e);
    if (r != 0)
        (void)fuse_reply_err(req, r);
    else
        (void)fuse_reply_entry(req, &e);
}

static void op_forget(fuse_req_t req, fuse_ino_t id, uint64_t n)
{
    forget(volume_of(req), id, n);
    fuse_reply_none(req);
}

static void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *list)
{
    for (size_t i = 0; i < count; i++)
        forget(volume_of(req), list[i].ino, list[i].nlookup);
    fuse_reply_none(req);
}

static void reply_attr(fuse_req_t req, const struct inode *i)
{
    struct stat st;
    if (fstat(i->fd, &st) < 0) {
        (void)fuse_reply_err(req, errno);
        return;
    }
    stat_out(volume_of(req), &st);
    (void)fuse_reply_attr(req, &st, TIMEOUT);
}

static void op_getattr(fuse_req_t req, fuse_ino_t id, struct fuse_file_info *fi)
{
    (void)fi;
    struct inode *i = find(req, id);
    if (i != NULL)
        reply_attr(req, i);
}

static int set_size(struct volume *v, const struct inode *i, off_t size,
                    const struct fuse_file_info *fi)
{
    char path[40];
    const struct handle *h = fi != NULL ? handle_at(v, fi->fh, HANDLE_FILE) : NULL;
    if (h != NULL)
        return ftruncate(h->fd, size);
    if (i->type != S_IFREG) {
        errno = EINVAL;
        return -1;
    }
    return truncate(path_of(i, path), size);
}

static int set_times(const struct inode *i, const struct stat *st, int what)
{
    struct timespec t[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_OMIT}};
    if (what & FUSE_SET_ATTR_ATIME_NOW)
        t[0].tv_nsec = UTIME_NOW;
    else if (what & FUSE_SET_ATTR_ATIME)
        t[0] = st->st_atim;
    if (what & FUSE_SET_ATTR_MTIME_NOW)
        t[1].tv_nsec = UTIME_NOW;
    else if (what & FUSE_SET_ATTR_MTIME)
        t[1] = st->st_mtim;
    return utimensat(i->fd, "", t, AT_EMPTY_PATH);
}

static int set_owner(const struct volume *v, const struct inode *i, uid_t uid, gid_t gid)
{
    return ids_in(v, &uid, &gid) ? fchownat(i->fd, "", uid, gid, AT_EMPTY_PATH) : -1;
}

static void op_setattr(fuse_req_t req, fuse_ino_t id, struct stat *st, int what,
                       struct fuse_file_info *fi)
{
    struct inode *i = find(req, id);
    char path[40];
    if (i == NULL)
        return;
    int r = 0;
    if (what & FUSE_SET_ATTR_MODE) {
        if (i->type == S_IFLNK) {
            (void)fuse_reply_err(req, EOPNOTSUPP);
            return;
        }
        r = chmod(path_of(i, path), st->st_mode & 07777);
    }
    if (r == 0 && (what & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID)) != 0)
        r = set_owner(volume_of(req), i, what & FUSE_SET_ATTR_UID ? st->st_uid : (uid_t)-1,
                      what & FUSE_SET_ATTR_GID ? st->st_gid : (gid_t)-1);
    if (r == 0 && (what & FUSE_SET_ATTR_SIZE) != 0)
        r = set_size(volume_of(req), i, st->st_size, fi);
    if (r == 0 && (what & (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_ATIME_NOW |
                           FUSE_SET_ATTR_MTIME_NOW)) != 0)
        r = set_times(i, st, what);
    if (r < 0)
        (void)fuse_reply_err(req, errno);
    else
        reply_attr(req, i);
}

static void op_readlink(fuse_req_t req, fuse_ino_t id)
{
    struct inode *i = find(req, id);
    char target[LIMIT_PATH + 1];
    if (i == NULL)
        return;
    ssize_t n = readlinkat(i->fd, "", target, sizeof(target) - 1);
    if (n < 0) {
        (void)fuse_reply_err(req, errno);
        return;
    }
    target[n] = '\0';
    (void)fuse_reply_readlink(req, target);
}

/* What was just made belongs to who asked for it, as on a local file system: a directory with the
 * set-group-id bit hands its own group down. A change of owner clears set-id bits. */
static int give(fuse_req_t req, const struct inode *parent, const char *name, mode_t mode)
{
    struct stat st;
    uid_t uid = fuse_req_ctx(req)->uid;
    gid_t gid = fuse_req_ctx(req)->gid;
    if (fstat(parent->fd, &st) < 0 || !ids_in(volume_of(req), &uid, &gid))
        return -1;
    if ((st.st_mode & S_ISGID) != 0)
        gid = (gid_t)-1;
    if (fchownat(parent->fd, name, uid, gid, AT_SYMLINK_NOFOLLOW) < 0)
        return -1;
    if (S_ISREG(mode) && (mode & (S_ISUID | S_ISGID)) != 0)
        return fchmodat(parent->fd, name, mode & 07777, 0);
    return 0;
}

static void made(fuse_req_t req, const struct inode *parent, const char *name, mode_t mode,
                 int result)
{
    struct fuse_entry_param e;
    if (result < 0 || give(req, parent, name, mode) < 0) {
        (void)fuse_reply_err(req, errno);
        return;
    }
    int r = lookup(volume_of(req), parent, name, &e);
    if (r != 0)
        (void)fuse_reply_err(req, r);
    else
        (void)fuse_reply_entry(req, &e);
}

static void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t dev)
{
    struct inode *p = find(req, parent);
    (void)dev;
    if (p == NULL || !may_make(req))
        return;
    if (!S_ISREG(mode) && !S_ISFIFO(mode) && !S_ISSOCK(mode)) {
        (void)fuse_reply_err(req, EPERM); /* a device of the host is not the guest's */
        return;
    }
    made(req, p, name, mode, mknodat(p->fd, name, mode, 0));
}

static void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
    struct inode *p = find(req, parent);
    if (p != NULL && may_make(req))
        made(req, p, name, S_IFDIR | mode, mkdirat(p->fd, name, mode));
}

static void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
    struct inode *p = find(req, parent);
    if (p != NULL && may_make(req))
        made(req, p, name, S_IFLNK, symlinkat(target, p->fd, name));
}

static void op_link(fuse_req_t req, fuse_ino_t id, fuse_ino_t parent, const char *name)
{
    struct inode *i = find(req, id);
    struct inode *p = i != NULL ? find(req, parent) : NULL;
    struct fuse_entry_param e;
    char path[40];
    if (p == NULL)
        return;
    if (linkat(AT_FDCWD, path_of(i, path), p->fd, name, AT_SYMLINK_FOLLOW) < 0) {
        (void)fuse_reply_err(req, errno);
        return;
    }
    int r = lookup(volume_of(req), p, name, &e);
    if (r != 0)
        (void)fuse_reply_err(req, r);
    else
        (void)fuse_reply_entry(req, &e);
}

static void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct inode *p = find(req, parent);
    if (p != NULL)
        answer(req, unlinkat(p->fd, name, 0));
}

static void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct inode *p = find(req, parent);
    if (p != NULL)
        answer(req, unlinkat(p->fd, name, AT_REMOVEDIR));
}

static void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t to_parent,
                      const char *to, unsigned int flags)
{
    struct inode *p = find(req, parent);
    struct inode *q = p != NULL ? find(req, to_parent) : NULL;
    if (q == NULL)
        return;
    if (flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE))
        (void)fuse_reply_err(req, EINVAL);
    else
        answer(req, renameat2(p->fd, name, q->fd, to, flags));
}

static void op_statfs(fuse_req_t req, fuse_ino_t id)
{
    struct inode *i = find(req, id);
    struct statvfs st;
    if (i == NULL)
        return;
    if (fstatvfs(i->fd, &st) < 0)
        (void)fuse_reply_err(req, errno);
    else
        (void)fuse_reply_statfs(req, &st);
}

/* --- files --- */

/* The guest's kernel has checked permissions and does direct I/O in its own way. */
static int host_flags(int flags)
{
    return (flags & (O_ACCMODE | O_APPEND | O_TRUNC | O_SYNC | O_DSYNC)) | O_CLOEXEC | O_NOCTTY |
           O_NONBLOCK;
}

static void op_open(fuse_req_t req, fuse_ino_t id, struct fuse_file_info *fi)
{
    struct inode *i = find(req, id);
    char path[40];
    if (i == NULL)
        return;
    if (i->type != S_IFREG) {
        (void)fuse_reply_err(req, EACCES);
        return;
    }
    int fd = open(path_of(i, path), host_flags(fi->flags));
    if (fd < 0) {
        (void)fuse_reply_err(req, errno);
        return;
    }
    int r = add_handle(volume_of(req), (struct handle){.kind = HANDLE_FILE, .fd = fd}, fi);
    if (r != 0)
        (void)fuse_reply_err(req, r);
    else
        (void)fuse_reply_open(req, fi);
}

/* The kernel asks for a file that did not exist a moment ago. */
static int create_or_open(fuse_req_t req, const struct inode *p, const char *name, mode_t mode,
                          int flags)
{
    int fd = openat(p->fd, name, host_flags(flags) | O_CREAT | O_EXCL | O_NOFOLLOW, mode);
    if (fd >= 0) {
        if (give(req, p, name, S_IFREG | mode) < 0)
            cleanup_closep(&fd);
        return fd;
    }
    if (errno != EEXIST || (flags & O_EXCL) != 0)
        return -1;
    fd = openat(p->fd, name, host_flags(flags) | O_NOFOLLOW);
    struct stat st;
    if (fd >= 0 && (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))) {
        cleanup_closep(&fd);
        errno = EACCES;
    }
    return fd;
}

static void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
                      struct fuse_file_info *fi)
{
    struct volume *v = volume_of(req);
    struct inode *p = find(req, parent);
    struct fuse_entry_param e;
    if (p == NULL || !may_make(req))
        return;
    auto_close int fd = create_or_open(req, p, name, mode, fi->flags);
    int r = fd < 0 ? errno : lookup(v, p, name, &e);
    if (r == 0 &&
        (r = add_handle(v, (struct handle){.kind = HANDLE_FILE, .fd = take_fd(&fd)}, fi)) != 0)
        forget(v, e.ino, 1);
    if (r != 0)
        (void)fuse_reply_err(req, r);
    else
        (void)fuse_reply_create(req, &e, fi);
}

static char data[LIMIT_FS_DATA]; /* for one answer: there is one thread */

static void op_read(fuse_req_t req, fuse_ino_t id, size_t size, off_t at, struct fuse_file_info *fi)
{
    (void)id;
    const struct handle *h = find_handle(req, fi, HANDLE_FILE);
    if (h == NULL)
        return;
    ssize_t n = pread(h->fd, data, size < sizeof(data) ? size : sizeof(data), at);
    if (n < 0)
        (void)fuse_reply_err(req, errno);
    else
        (void)fuse_reply_buf(req, data, (size_t)n);
}

static void op_write(fuse_req_t req, fuse_ino_t id, const char *from, size_t size, off_t at,
                     struct fuse_file_info *fi)
{
    (void)id;
    const struct handle *h = find_handle(req, fi, HANDLE_FILE);
    if (h == NULL)
        return;
    ssize_t n = pwrite(h->fd, from, size, at);
    if (n < 0)
        (void)fuse_reply_err(req, errno);
    else
        (void)fuse_reply_write(req, (size_t)n);
}

static void release(fuse_req_t req, struct fuse_file_info *fi, enum handle_kind kind)
{
    struct handle *h = find_handle(req, fi, kind);
    if (h == NULL)
        return;
    drop_handle(h);
    (void)fuse_reply_err(req, 0);
}

static void op_release(fuse_req_t req, fuse_ino_t id, struct fuse_file_info *fi)
{
    (void)id;
    release(req, fi, HANDLE_FILE);
}

static void op_fsync(fuse_req_t req, fuse_ino_t id, int only_data, struct fuse_file_info *fi)
{
    (void)id;
    const struct handle *h = find_handle(req, fi, HANDLE_FILE);
    if (h != NULL)
        answer(req, only_data ? fdatasync(h->fd) : fsync(h->fd));
}

static void op_fallocate(fuse_req_t req, fuse_ino_t id, int mode, off_t at, off_t len,
                         struct fuse_file_info *fi)
{
    (void)id;
    const struct handle *h = find_handle(req, fi, HANDLE_FILE);
    if (h != NULL)
        answer(req, fallocate(h->fd, mode, at, len));
}

static void op_lseek(fuse_req_t req, fuse_ino_t id, off_t at, int whence, struct fuse_file_info *fi)
{
    (void)id;
    const struct handle *h = find_handle(req, fi, HANDLE_FILE);
    if (h == NULL)
        return;
    off_t r = lseek(h->fd, at, whence);
    if (r < 0)
        (void)fuse_reply_err(req, errno);
    else
        (void)fuse_reply_lseek(req, r);
}

/* --- directories --- */

static void op_opendir(fuse_req_t req, fuse_ino_t id, struct fuse_file_info *fi)
{
    struct inode *i = find(req, id);
    if (i == NULL)
        return;
    auto_close int fd = openat(i->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    if (d == NULL) {
        (void)fuse_reply_err(req, errno);
        return;
    }
    (void)take_fd(&fd);
    int r = add_handle(volume_of(req), (struct handle){.kind = HANDLE_DIR, .dir = d}, fi);
    if (r != 0)
        (void)fuse_reply_err(req, r);
    else
        (void)fuse_reply_open(req, fi);
}

/* Adds one entry; what it took is more than `room` when it did not fit. */
static size_t add_entry(fuse_req_t req, const struct inode *dir, const struct dirent *d, char *to,
                        size_t room, bool plus)
{
    struct fuse_entry_param e = {
        .attr = {.st_ino = d->d_ino, .st_mode = (mode_t)DTTOIF(d->d_type)}};
    if (!plus)
        return fuse_add_direntry(req, to, room, d->d_name, &e.attr, d->d_off);
    bool dots = strcmp(d->d_name, ".") == 0 || strcmp(d->d_name, "..") == 0;
    struct fuse_entry_param found;
    if (!dots && lookup(volume_of(req), dir, d->d_name, &found) == 0)
        e = found;
    size_t n = fuse_add_direntry_plus(req, to, room, d->d_name, &e, d->d_off);
    if (n > room && e.ino != 0)
        forget(volume_of(req), e.ino, 1);
    return n;
}

static void read_dir(fuse_req_t req, fuse_ino_t id, size_t size, off_t at,
                     struct fuse_file_info *fi, bool plus)
{
    struct inode *i = find(req, id);
    struct handle *h = i != NULL ? find_handle(req, fi, HANDLE_DIR) : NULL;
    size_t used = 0;
    if (h == NULL)
        return;
    if (size > sizeof(data))
        size = sizeof(data);
    if (at != h->offset) {
        seekdir(h->dir, at);
        h->next = NULL;
        h->offset = at;
    }
    for (;;) {
        errno = 0;
        if (h->next == NULL && (h->next = readdir(h->dir)) == NULL) {
            if (errno != 0 && used == 0) {
                (void)fuse_reply_err(req, errno);
                return;
            }
            break;
        }
        size_t n = add_entry(req, i, h->next, data + used, size - used, plus);
        if (n > size - used)
            break;
        used += n;
        h->offset = h->next->d_off;
        h->next = NULL;
    }
    (void)fuse_reply_buf(req, data, used);
}

static void op_readdir(fuse_req_t req, fuse_ino_t id, size_t size, off_t at,
                       struct fuse_file_info *fi)
{
    read_dir(req, id, size, at, fi, false);
}

static void op_readdirplus(fuse_req_t req, fuse_ino_t id, size_t size, off_t at,
                           struct fuse_file_info *fi)
{
    read_dir(req, id, size, at, fi, true);
}

static void op_releasedir(fuse_req_t req, fuse_ino_t id, struct fuse_file_info *fi)
{
    (void)id;
    release(req, fi, HANDLE_DIR);
}

static void op_fsyncdir(fuse_req_t req, fuse_ino_t id, int only_data, struct fuse_file_info *fi)
{
    (void)id;
    const struct handle *h = find_handle(req, fi, HANDLE_DIR);
    if (h != NULL)
        answer(req, only_data ? fdatasync(dirfd(h->dir)) : fsync(dirfd(h->dir)));
}

/* --- extended attributes --- */

/* The inode of a request for an attribute; answers it when there is none. */
static struct inode *find_attribute(fuse_req_t req, fuse_ino_t id, const char *name, int refusal)
{
    struct inode *i = find(req, id);
    if (i == NULL)
        return NULL;
    if (xattr_is_served(name, i->type))
        return i;
    (void)fuse_reply_err(req, refusal);
    return NULL;
}

static void op_setxattr(fuse_req_t req, fuse_ino_t id, const char *name, const char *value,
                        size_t size, int flags)
{
    char path[40];
    struct inode *i = find_attribute(req, id, name, EOPNOTSUPP);
    if (i != NULL)
        answer(req, setxattr(path_of(i, path), name, value, size, flags));
}

static void op_getxattr(fuse_req_t req, fuse_ino_t id, const char *name, size_t size)
{
    char path[40];
    struct inode *i = find_attribute(req, id, name, ENODATA);
    if (i == NULL)
        return;
    ssize_t n = getxattr(path_of(i, path), name, size > 0 ? data : NULL,
                         size < sizeof(data) ? size : sizeof(data));
    if (n < 0)
        (void)fuse_reply_err(req, errno);
    else if (size == 0)
        (void)fuse_reply_xattr(req, (size_t)n);
    else
        (void)fuse_reply_buf(req, data, (size_t)n);
}

static void op_listxattr(fuse_req_t req, fuse_ino_t id, size_t size)
{
    char path[40];
    struct inode *i = find(req, id);
    if (i == NULL)
        return;
    ssize_t n = xattr_list(path_of(i, path), i->type, data, sizeof(data));
    if (n < 0)
        (void)fuse_reply_err(req, errno);
    else if (size == 0)
        (void)fuse_reply_xattr(req, (size_t)n);
    else if ((size_t)n > size)
        (void)fuse_reply_err(req, ERANGE);
    else
        (void)fuse_reply_buf(req, data, (size_t)n);
}

static void op_removexattr(fuse_req_t req, fuse_ino_t id, const char *name)
{
    char path[40];
    struct inode *i = find_attribute(req, id, name, EOPNOTSUPP);
    if (i != NULL)
        answer(req, removexattr(path_of(i, path), name));
}

/* flush is left out: the kernel then saves a round trip per close. Locks are not served: they are
 * the guest's own. */
static const struct fuse_lowlevel_ops operations = {
    .init = op_init,
    .lookup = op_lookup,
    .forget = op_forget,
    .forget_multi = op_forget_multi,
    .getattr = op_getattr,
    .setattr = op_setattr,
    .readlink = op_readlink,
    .mknod = op_mknod,
    .mkdir = op_mkdir,
    .unlink = op_unlink,
    .rmdir = op_rmdir,
    .symlink = op_symlink,
    .rename = op_rename,
    .link = op_link,
    .open = op_open,
    .read = op_read,
    .write = op_write,
    .release = op_release,
    .fsync = op_fsync,
    .opendir = op_opendir,
    .readdir = op_readdir,
    .releasedir = op_releasedir,
    .fsyncdir = op_fsyncdir,
    .statfs = op_statfs,
    .create = op_create,
    .fallocate = op_fallocate,
    .readdirplus = op_readdirplus,
    .lseek = op_lseek,
    .setxattr = op_setxattr,
    .getxattr = op_getxattr,
    .listxattr = op_listxattr,
    .removexattr = op_removexattr,
};

/* --- the volume --- */

static ssize_t io_writev(int fd, struct iovec *iov, int n, void *arg)
{
    struct volume *v = arg;
    ssize_t sum = 0;
    (void)fd;
    for (int i = 0; i < n; i++)
        sum += (ssize_t)iov[i].iov_len;
    if (v->send(v->arg, iov, n) < 0) {
        errno = EIO;
        return -1;
    }
    return sum;
}

/* Never called: requests are handed over one by one. */
static ssize_t io_read(int fd, void *to, size_t len, void *arg)
{
    (void)fd;
    (void)to;
    (void)len;
    (void)arg;
    errno = ENODEV;
    return -1;
}

struct volume *volume_new(int root, const struct volume_ids *ids, volume_send_fn send, void *arg,
                          struct err *err)
{
    auto_close int owned = root;
    struct stat st;
    if (fstat(root, &st) < 0) {
        (void)err_sys(err, errno, "stat of a volume's root");
        return NULL;
    }
    struct volume *v = xcalloc(1, sizeof(*v));
    v->ids = *ids;
    v->send = send;
    v->arg = arg;
    v->cap_inodes = 64;
    v->n_inodes = FUSE_ROOT_ID; /* the next one is the root's */
    v->inodes = xcalloc(v->cap_inodes, sizeof(struct inode *));
    v->free_inodes = xcalloc(v->cap_inodes, sizeof(*v->free_inodes));
    struct inode *i = NULL;
    char name[] = "aspis-share";
    char *argv[] = {name, NULL};
    struct fuse_args args = FUSE_ARGS_INIT(1, argv);
    static const struct fuse_custom_io io = {.writev = io_writev, .read = io_read};
    int e = remember(v, take_fd(&owned), &st, &i);
    if (e != 0 || getrandom(&v->epoch, sizeof(v->epoch), 0) != (ssize_t)sizeof(v->epoch)) {
        (void)err_sys(err, e != 0 ? e : errno, "make a volume");
        volume_free(v);
        return NULL;
    }
    v->epoch |= 1; /* never 0: a bare slot number is no node id */
    v->se = fuse_session_new(&args, &operations, sizeof(operations), v);
    int fd = v->se != NULL ? dup(STDERR_FILENO) : -1; /* the session closes it; nothing uses it */
    if (v->se == NULL || fuse_session_custom_io(v->se, &io, fd) != 0) {
        (void)err_set(err, ERR_EXHAUSTED, "make a FUSE session");
        volume_free(v);
        return NULL;
    }
    return v;
}

bool volume_started(const struct volume *v)
{
    return v->started;
}

void volume_request(struct volume *v, void *message, size_t len)
{
    struct fuse_buf b = {.size = len, .mem = message};
    fuse_session_process_buf(v->se, &b);
}

void volume_free(struct volume *v)
{
    if (v == NULL)
        return;
    if (v->se != NULL)
        fuse_session_destroy(v->se);
    for (uint32_t i = 0; i < v->n_handles; i++)
        drop_handle(&v->handles[i]);
    for (uint32_t i = 0; i < v->n_inodes; i++) {
        if (v->inodes[i] != NULL)
            drop_inode(v, v->inodes[i]);
    }
    free(v->handles);
    free(v->inodes);
    free(v->free_inodes);
    free(v);
}
