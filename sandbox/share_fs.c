#define FUSE_USE_VERSION 312
#include "sandbox/share_fs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/limits.h"
#include "base/str.h"
#include "sandbox/share_host.h"
#include "sandbox/share_xattr.h"
#include "sandbox/volume_ids.h"

/* How long a guest may go on with what it has seen: kubelet's changes show within this. */
#define TIMEOUT 0.1

struct volume {
    struct fuse_session *se;
    struct table *table;
    struct deeds *deeds;
    volume_send_fn send;
    void *arg;
    uint32_t id;
    struct volume_ids ids;
    bool started;
    struct inode root;
    /* of the request that is being served */
    uint64_t unique;
    uint32_t opcode;
    bool changed; /* it was put on record */
};

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

/* --- nodes and handles --- */

/* The inode a request is about; answers it when there is none. */
static struct inode *find(fuse_req_t req, fuse_ino_t id)
{
    struct volume *v = volume_of(req);
    struct inode *i = table_inode(v->table, &v->root, id);
    if (i == NULL)
        (void)fuse_reply_err(req, errno);
    return i;
}

static int lookup(struct volume *v, const struct inode *parent, const char *name,
                  struct fuse_entry_param *e)
{
    *e = (struct fuse_entry_param){.attr_timeout = TIMEOUT, .entry_timeout = TIMEOUT};
    auto_close int fd = openat(parent->fd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &e->attr) < 0)
        return errno;
    struct inode *i = NULL;
    int r = table_remember(v->table, &v->root, parent, name, take_fd(&fd), &e->attr, &i);
    if (r == 0)
        e->ino = table_id(v->table, i);
    stat_out(v, &e->attr);
    return r;
}

static void forget(struct volume *v, fuse_ino_t id, uint64_t n)
{
    table_forget(v->table, &v->root, id, n);
}

/* A path that reopens an inode, past its O_PATH descriptor. */
static const char *path_of(const struct inode *i, char out[40])
{
    (void)snprintf(out, 40, "/proc/self/fd/%d", i->fd);
    return out;
}

/* Puts the handle into fi; its descriptor or directory is taken. */
static int add_handle(struct volume *v, const struct inode *i, struct handle h,
                      struct fuse_file_info *fi)
{
    return table_add_handle(v->table, &v->root, i, h, share_host_flags(fi->flags), &fi->fh);
}

static struct handle *find_handle(fuse_req_t req, const struct fuse_file_info *fi, mode_t type)
{
    struct volume *v = volume_of(req);
    struct handle *h = fi != NULL ? table_handle(v->table, &v->root, fi->fh, type) : NULL;
    if (h == NULL)
        (void)fuse_reply_err(req, fi != NULL ? errno : EBADF);
    return h;
}

static void answer(fuse_req_t req, int result)
{
    (void)fuse_reply_err(req, result < 0 ? errno : 0);
}

/* --- changes, which happen once (share_deed.h) --- */

struct deed {
    struct state_deed *record;
    bool done;  /* by an earlier server, with success: only the answer is missing */
    bool again; /* an earlier server began it and may have got as far as doing it */
};

/* before: how things are. False when the request is answered already. */
static bool begin(fuse_req_t req, struct deed *d, struct state_deed before)
{
    struct volume *v = volume_of(req);
    *d = (struct deed){.record = deeds_find(v->deeds, v->id, v->unique)};
    v->changed = true;
    if (d->record == NULL) {
        before.volume = v->id;
        before.unique = v->unique;
        before.opcode = v->opcode;
        d->record = deeds_begin(v->deeds, &before);
    } else {
        d->done = d->record->phase == DEED_DONE;
        d->again = !d->done;
    }
    (void)FAILPOINT("share.begun", NULL);
    if (d->done && d->record->error != 0) {
        (void)fuse_reply_err(req, d->record->error);
        return false;
    }
    return true;
}

/* Before the answer. */
static void finish(const struct deed *d, int error, uint64_t result)
{
    if (d->done)
        return;
    (void)FAILPOINT("share.acted", NULL);
    deed_done(d->record, error, result);
    (void)FAILPOINT("share.noted", NULL);
}

/* result: of a system call, or 0. */
static void finish_and_answer(fuse_req_t req, const struct deed *d, int result)
{
    int e = result < 0 ? errno : 0;
    finish(d, e, 0);
    (void)fuse_reply_err(req, e);
}

/* Was there nothing of that name before, and is there what was to be made? */
static bool was_made(const struct deed *d, const struct inode *dir, const char *name, mode_t type)
{
    struct stat st;
    return d->done ||
           (d->again && d->record->source.ino == 0 &&
            fstatat(dir->fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && (st.st_mode & S_IFMT) == type);
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
    const struct handle *h = fi != NULL ? table_handle(v->table, &v->root, fi->fh, S_IFREG) : NULL;
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

static int set_attr(struct volume *v, const struct inode *i, const struct stat *st, int what,
                    const struct fuse_file_info *fi)
{
    char path[40];
    int r = 0;
    if (what & FUSE_SET_ATTR_MODE)
        r = chmod(path_of(i, path), st->st_mode & 07777);
    if (r == 0 && (what & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID)) != 0)
        r = set_owner(v, i, what & FUSE_SET_ATTR_UID ? st->st_uid : (uid_t)-1,
                      what & FUSE_SET_ATTR_GID ? st->st_gid : (gid_t)-1);
    if (r == 0 && (what & FUSE_SET_ATTR_SIZE) != 0)
        r = set_size(v, i, st->st_size, fi);
    if (r == 0 && (what & (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_ATIME_NOW |
                           FUSE_SET_ATTR_MTIME_NOW)) != 0)
        r = set_times(i, st, what);
    return r;
}

static void op_setattr(fuse_req_t req, fuse_ino_t id, struct stat *st, int what,
                       struct fuse_file_info *fi)
{
    struct inode *i = find(req, id);
    struct deed d;
    if (i == NULL)
        return;
    if ((what & FUSE_SET_ATTR_MODE) != 0 && i->type == S_IFLNK) {
        (void)fuse_reply_err(req, EOPNOTSUPP);
        return;
    }
    if (!begin(req, &d, (struct state_deed){0}))
        return;
    int e = !d.done && set_attr(volume_of(req), i, st, what, fi) < 0 ? errno : 0;
    finish(&d, e, 0);
    if (e != 0)
        (void)fuse_reply_err(req, e);
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

static void reply_entry(fuse_req_t req, const struct inode *parent, const char *name)
{
    struct fuse_entry_param e;
    int r = lookup(volume_of(req), parent, name, &e);
    if (r != 0)
        (void)fuse_reply_err(req, r);
    else
        (void)fuse_reply_entry(req, &e);
}

/* result: of the system call, or 0. */
static void made(fuse_req_t req, const struct deed *d, const struct inode *parent, const char *name,
                 mode_t mode, int result)
{
    (void)FAILPOINT("share.made", NULL);
    int e = result < 0 || (!d->done && give(req, parent, name, mode) < 0) ? errno : 0;
    finish(d, e, 0);
    if (e != 0)
        (void)fuse_reply_err(req, e);
    else
        reply_entry(req, parent, name);
}

static void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t dev)
{
    struct inode *p = find(req, parent);
    struct deed d;
    (void)dev;
    if (p == NULL || !may_make(req))
        return;
    if (!S_ISREG(mode) && !S_ISFIFO(mode) && !S_ISSOCK(mode)) {
        (void)fuse_reply_err(req, EPERM); /* a device of the host is not the guest's */
        return;
    }
    if (begin(req, &d, (struct state_deed){.source = share_host_id(p->fd, name)}))
        made(req, &d, p, name, mode,
             was_made(&d, p, name, mode & S_IFMT) ? 0 : mknodat(p->fd, name, mode, 0));
}

static void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
    struct inode *p = find(req, parent);
    struct deed d;
    if (p != NULL && may_make(req) &&
        begin(req, &d, (struct state_deed){.source = share_host_id(p->fd, name)}))
        made(req, &d, p, name, S_IFDIR | mode,
             was_made(&d, p, name, S_IFDIR) ? 0 : mkdirat(p->fd, name, mode));
}

static void op_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
    struct inode *p = find(req, parent);
    struct deed d;
    if (p == NULL || !may_make(req) ||
        !begin(req, &d, (struct state_deed){.source = share_host_id(p->fd, name)}))
        return;
    bool there =
        was_made(&d, p, name, S_IFLNK) && (d.done || share_host_leads_to(p->fd, name, target));
    made(req, &d, p, name, S_IFLNK, there ? 0 : symlinkat(target, p->fd, name));
}

static void op_link(fuse_req_t req, fuse_ino_t id, fuse_ino_t parent, const char *name)
{
    struct inode *i = find(req, id);
    struct inode *p = i != NULL ? find(req, parent) : NULL;
    struct deed d;
    char path[40];
    if (p == NULL || !begin(req, &d, (struct state_deed){.source = share_host_id(p->fd, name)}))
        return;
    bool there = was_made(&d, p, name, i->type) &&
                 (d.done || share_host_same(share_host_id(p->fd, name),
                                            (struct file_id){i->key.dev, i->key.ino}));
    int e = !there && linkat(AT_FDCWD, path_of(i, path), p->fd, name, AT_SYMLINK_FOLLOW) < 0 ? errno
                                                                                             : 0;
    finish(&d, e, 0);
    if (e != 0)
        (void)fuse_reply_err(req, e);
    else
        reply_entry(req, p, name);
}

static void take_away(fuse_req_t req, fuse_ino_t parent, const char *name, int flags)
{
    struct inode *p = find(req, parent);
    struct deed d;
    if (p == NULL || !begin(req, &d, (struct state_deed){.source = share_host_id(p->fd, name)}))
        return;
    bool gone = d.done || (d.again && d.record->source.ino != 0 &&
                           !share_host_same(share_host_id(p->fd, name), d.record->source));
    finish_and_answer(req, &d, gone ? 0 : unlinkat(p->fd, name, flags));
}

static void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    take_away(req, parent, name, 0);
}

static void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    take_away(req, parent, name, AT_REMOVEDIR);
}

/* Is what the names led to where the renaming puts it? Two names of one file stay as they are. */
static bool is_renamed(const struct deed *d, struct file_id source, struct file_id target,
                       unsigned int flags)
{
    const struct state_deed *r = d->record;
    if (d->done)
        return true;
    if (!d->again || r->source.ino == 0 || share_host_same(r->source, r->target) ||
        !share_host_same(target, r->source))
        return false;
    return (flags & RENAME_EXCHANGE) != 0 ? share_host_same(source, r->target)
                                          : !share_host_same(source, r->source);
}

static void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t to_parent,
                      const char *to, unsigned int flags)
{
    struct volume *v = volume_of(req);
    struct inode *p = find(req, parent);
    struct inode *q = p != NULL ? find(req, to_parent) : NULL;
    struct deed d;
    if (q == NULL)
        return;
    if (flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE)) {
        (void)fuse_reply_err(req, EINVAL);
        return;
    }
    struct state_deed now = {.source = share_host_id(p->fd, name),
                             .target = share_host_id(q->fd, to)};
    if (!begin(req, &d, now))
        return;
    int r = is_renamed(&d, now.source, now.target, flags)
                ? 0
                : renameat2(p->fd, name, q->fd, to, flags);
    if (r == 0 && !d.done) {
        int kept = errno;
        table_moved(v->table, &v->root, &d.record->source, q, to);
        if ((flags & RENAME_EXCHANGE) != 0)
            table_moved(v->table, &v->root, &d.record->target, p, name);
        errno = kept;
    }
    finish_and_answer(req, &d, r);
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

static void op_open(fuse_req_t req, fuse_ino_t id, struct fuse_file_info *fi)
{
    struct inode *i = find(req, id);
    struct deed d;
    char path[40];
    if (i == NULL)
        return;
    if (i->type != S_IFREG) {
        (void)fuse_reply_err(req, EACCES);
        return;
    }
    if (!begin(req, &d, (struct state_deed){0}))
        return;
    int e = 0;
    if (d.done) {
        fi->fh = d.record->result;
    } else {
        int fd = open(path_of(i, path), share_host_flags(fi->flags));
        e = fd < 0 ? errno : add_handle(volume_of(req), i, (struct handle){.fd = fd}, fi);
    }
    finish(&d, e, fi->fh);
    if (e != 0)
        (void)fuse_reply_err(req, e);
    else
        (void)fuse_reply_open(req, fi);
}

/* The kernel asks for a file that did not exist a moment ago. */
static int create_or_open(fuse_req_t req, const struct deed *d, const struct inode *p,
                          const char *name, mode_t mode, int flags)
{
    bool ours = was_made(d, p, name, S_IFREG);
    int fd = openat(p->fd, name,
                    share_host_flags(flags) | (ours ? 0 : O_CREAT | O_EXCL) | O_NOFOLLOW, mode);
    (void)FAILPOINT("share.made", NULL);
    if (fd >= 0) {
        if (give(req, p, name, S_IFREG | mode) < 0)
            cleanup_closep(&fd);
        return fd;
    }
    if (errno != EEXIST || (flags & O_EXCL) != 0)
        return -1;
    fd = openat(p->fd, name, share_host_flags(flags) | O_NOFOLLOW);
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
    struct inode *i = NULL;
    struct fuse_entry_param e = {0};
    struct deed d;
    if (p == NULL || !may_make(req) ||
        !begin(req, &d, (struct state_deed){.source = share_host_id(p->fd, name)}))
        return;
    auto_close int fd = d.done ? -1 : create_or_open(req, &d, p, name, mode, fi->flags);
    int r = fd < 0 && !d.done ? errno : lookup(v, p, name, &e);
    if (r == 0 && !d.done && (i = table_inode(v->table, &v->root, e.ino)) == NULL)
        r = errno;
    if (d.done)
        fi->fh = d.record->result;
    else if (r == 0)
        r = add_handle(v, i, (struct handle){.fd = take_fd(&fd)}, fi);
    if (r != 0 && e.ino != 0)
        forget(v, e.ino, 1);
    finish(&d, r, fi->fh);
    if (r != 0)
        (void)fuse_reply_err(req, r);
    else
        (void)fuse_reply_create(req, &e, fi);
}

static char data[LIMIT_FS_DATA]; /* for one answer: there is one thread */

static void op_read(fuse_req_t req, fuse_ino_t id, size_t size, off_t at, struct fuse_file_info *fi)
{
    (void)id;
    const struct handle *h = find_handle(req, fi, S_IFREG);
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
    const struct handle *h = find_handle(req, fi, S_IFREG);
    struct state_deed before = {0};
    struct deed d;
    struct stat st;
    if (h == NULL)
        return;
    bool append = (table_handle_flags(volume_of(req)->table, fi->fh) & O_APPEND) != 0;
    if (append && fstat(h->fd, &st) == 0)
        before.size = (uint64_t)st.st_size;
    if (!begin(req, &d, before))
        return;
    size_t had = d.again && append ? share_host_appended(h->fd, d.record->size, from, size) : 0;
    ssize_t n = 0;
    if (!d.done && had < size)
        n = pwrite(h->fd, from + had, size - had, at + (off_t)had);
    int e = n < 0 && had == 0 ? errno : 0;
    size_t sum = d.done ? (size_t)d.record->result : had + (n > 0 ? (size_t)n : 0);
    finish(&d, e, sum);
    if (e != 0)
        (void)fuse_reply_err(req, e);
    else
        (void)fuse_reply_write(req, sum);
}

static void release(fuse_req_t req, struct fuse_file_info *fi, mode_t type)
{
    struct volume *v = volume_of(req);
    (void)fuse_reply_err(req, table_drop_handle(v->table, &v->root, fi->fh, type) ? 0 : EBADF);
}

static void op_release(fuse_req_t req, fuse_ino_t id, struct fuse_file_info *fi)
{
    (void)id;
    release(req, fi, S_IFREG);
}

static void op_fsync(fuse_req_t req, fuse_ino_t id, int only_data, struct fuse_file_info *fi)
{
    (void)id;
    const struct handle *h = find_handle(req, fi, S_IFREG);
    if (h != NULL)
        answer(req, only_data ? fdatasync(h->fd) : fsync(h->fd));
}

static void op_fallocate(fuse_req_t req, fuse_ino_t id, int mode, off_t at, off_t len,
                         struct fuse_file_info *fi)
{
    (void)id;
    const struct handle *h = find_handle(req, fi, S_IFREG);
    struct deed d;
    if (h != NULL && begin(req, &d, (struct state_deed){0}))
        finish_and_answer(req, &d, d.done ? 0 : fallocate(h->fd, mode, at, len));
}

static void op_lseek(fuse_req_t req, fuse_ino_t id, off_t at, int whence, struct fuse_file_info *fi)
{
    (void)id;
    const struct handle *h = find_handle(req, fi, S_IFREG);
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
    int r = add_handle(volume_of(req), i, (struct handle){.fd = -1, .dir = d}, fi);
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
    struct handle *h = i != NULL ? find_handle(req, fi, S_IFDIR) : NULL;
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
    release(req, fi, S_IFDIR);
}

static void op_fsyncdir(fuse_req_t req, fuse_ino_t id, int only_data, struct fuse_file_info *fi)
{
    (void)id;
    const struct handle *h = find_handle(req, fi, S_IFDIR);
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

/* Whether an inode has an attribute, as what a file's name leads to is on record. */
static struct file_id attribute_of(const struct inode *i, const char *name)
{
    char path[40];
    return (struct file_id){.ino = getxattr(path_of(i, path), name, NULL, 0) >= 0};
}

static void op_setxattr(fuse_req_t req, fuse_ino_t id, const char *name, const char *value,
                        size_t size, int flags)
{
    char path[40];
    struct inode *i = find_attribute(req, id, name, EOPNOTSUPP);
    struct deed d;
    if (i == NULL || !begin(req, &d, (struct state_deed){.source = attribute_of(i, name)}))
        return;
    if (d.again && d.record->source.ino == 0)
        flags &= ~XATTR_CREATE;
    finish_and_answer(req, &d, d.done ? 0 : setxattr(path_of(i, path), name, value, size, flags));
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
    struct deed d;
    if (i == NULL)
        return;
    struct state_deed now = {.source = attribute_of(i, name)};
    if (!begin(req, &d, now))
        return;
    bool gone = d.done || (d.again && d.record->source.ino != 0 && now.source.ino == 0);
    finish_and_answer(req, &d, gone ? 0 : removexattr(path_of(i, path), name));
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

struct volume *volume_new(const struct volume_spec *spec, int root, volume_send_fn send, void *arg,
                          struct err *err)
{
    auto_close int owned = root;
    struct stat st;
    if (fstat(root, &st) < 0) {
        (void)err_sys(err, errno, "stat of a volume's root");
        return NULL;
    }
    struct volume *v = xcalloc(1, sizeof(*v));
    v->id = spec->id;
    v->ids = spec->ids;
    v->table = spec->table;
    v->deeds = spec->deeds;
    v->send = send;
    v->arg = arg;
    v->root = (struct inode){.key = {.dev = st.st_dev, .ino = st.st_ino, .volume = spec->id},
                             .fd = take_fd(&owned),
                             .type = st.st_mode & S_IFMT,
                             .slot = ROOT_SLOT};
    table_add_root(v->table, &v->root);
    char name[] = "aspis-share";
    char *argv[] = {name, NULL};
    struct fuse_args args = FUSE_ARGS_INIT(1, argv);
    static const struct fuse_custom_io io = {.writev = io_writev, .read = io_read};
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
    struct fuse_in_header h;
    memcpy(&h, message, sizeof(h));
    v->unique = h.unique;
    v->opcode = h.opcode;
    v->changed = false;
    fuse_session_process_buf(v->se, &b);
    if (v->changed)
        (void)FAILPOINT("share.said", NULL);
}

void volume_free(struct volume *v)
{
    if (v == NULL)
        return;
    if (v->se != NULL)
        fuse_session_destroy(v->se);
    table_remove_root(v->table, &v->root);
    cleanup_closep(&v->root.fd);
    free(v);
}
