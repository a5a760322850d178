#include "agent/volumes.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/queue.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"

/* Requests read from one volume before the others get their turn. */
#define TURN 16
/* Longer requests are not copied once more. */
#define LARGE KiB(16)

struct request {
    TAILQ_ENTRY(request) link;
    uint64_t unique;
    bool answered; /* nothing will come back, or nobody waits for it */
    bool large;    /* has room for any */
    size_t len;
    char data[];
};

struct volume {
    struct volumes *all;
    TAILQ_ENTRY(volume) link;
    char *owner;
    uint32_t id;
    int fd; /* /dev/fuse; -1 when the kernel has ended the connection */
    struct loop_source *src;
    bool watching;                 /* EPOLLIN is asked for */
    TAILQ_HEAD(, request) waiting; /* without an answer, oldest first */
    struct request *unsent;        /* the first of them not sent on this connection */
    struct request *init;          /* kept for ever: every new server gets it first */
    bool init_sent;                /* on this connection */
    bool started;                  /* the kernel has the answer */
    bool ready;                    /* this connection's server has answered INIT */
    struct buf reply;              /* being put together */
};

struct volumes {
    struct loop *loop;
    struct peer *peer;
    TAILQ_HEAD(, volume) volumes;
    struct request *block; /* with room for any: one as it comes from the kernel */
    struct request *spare; /* another of that size, or NULL */
    size_t n_waiting;      /* requests of all volumes, at most LIMIT_FS_WAITING */
    bool full;             /* some volume's were left with the kernel for that */
};

/* --- to the host --- */

static bool room_for(const struct volumes *s, size_t len)
{
    size_t pieces = len / LIMIT_FS_FRAME + 1;
    return peer_queued(s->peer) + len + pieces * FRAME_HEADER <= LIMIT_FS_QUEUE;
}

static bool send_request(struct volume *v, const struct request *r)
{
    if (!room_for(v->all, r->len))
        return false;
    for (size_t at = 0; at < r->len;) {
        size_t n = r->len - at < LIMIT_FS_FRAME ? r->len - at : LIMIT_FS_FRAME;
        uint8_t flags = at + n == r->len ? FRAME_FLAG_END : 0;
        if (r->answered)
            flags |= FRAME_FLAG_UNANSWERED;
        if (peer_send(v->all->peer, v->id, FRAME_FS_DATA, flags, r->data + at, n) < 0)
            return false; /* down, or no memory: the next connection gets the whole of it */
        at += n;
    }
    return true;
}

/* Requests are taken from the kernel only as fast as the channel takes them. */
static void watch(struct volume *v, bool on)
{
    if (v->src == NULL || v->watching == on)
        return;
    v->watching = on;
    (void)loop_set_events(v->src, on ? EPOLLIN : 0);
}

static void lost(struct volume *v)
{
    loop_remove(take(v->src));
    cleanup_closep(&v->fd);
}

/* A file is closed whatever the host says to it: the kernel has its answer at once, and the host
 * none to give. */
static bool is_release(uint32_t opcode)
{
    return opcode == FUSE_RELEASE || opcode == FUSE_RELEASEDIR;
}

/* Its data is not zeroed: it is read or copied over. */
static struct request *request_new(size_t room)
{
    struct request *r = xrealloc(NULL, 1, sizeof(*r) + room);
    *r = (struct request){.large = room == LIMIT_FS_MESSAGE};
    return r;
}

/* The one that came, of n bytes. A long one is kept where it is, and the next comes elsewhere. */
static struct request *keep(struct volumes *s, size_t n, const struct fuse_in_header *h)
{
    struct request *r = n < LARGE ? request_new(n) : take(s->block);
    if (n < LARGE)
        memcpy(r->data, s->block->data, n);
    else
        s->block = s->spare != NULL ? take(s->spare) : request_new(LIMIT_FS_MESSAGE);
    r->unique = h->unique;
    r->answered =
        h->opcode == FUSE_FORGET || h->opcode == FUSE_BATCH_FORGET || is_release(h->opcode);
    r->len = n;
    return r;
}

static void request_free(struct volumes *s, struct request *r)
{
    if (r != NULL && r->large && s->spare == NULL)
        s->spare = r;
    else
        free(r);
}

static void add(struct volume *v, struct request *r)
{
    TAILQ_INSERT_TAIL(&v->waiting, r, link);
    v->all->n_waiting++;
    if (v->unsent == NULL)
        v->unsent = r;
}

/* The kernel asks for a file's capabilities before each write. Files of volumes have none, and the
 * host need not be asked. */
static bool asks_for_capabilities(const char *request, size_t len, const struct fuse_in_header *h)
{
    static const char name[] = "security.capability";
    size_t head = sizeof(*h) + sizeof(struct fuse_getxattr_in);
    return h->opcode == FUSE_GETXATTR && len == head + sizeof(name) &&
           memcmp(request + head, name, sizeof(name)) == 0;
}

static void to_kernel(struct volume *v, const struct iovec *reply, int n)
{
    /* ENOENT: nobody waits for it any more */
    if (v->fd >= 0 && writev(v->fd, reply, n) < 0 && errno != ENOENT)
        log_warn("a volume's reply was refused", LOG_INT("volume", v->id),
                 LOG_STR("error", strerror(errno)));
}

static void answer(struct volume *v, uint64_t unique, int error)
{
    struct fuse_out_header h = {.len = sizeof(h), .error = error, .unique = unique};
    struct iovec iov = {&h, sizeof(h)};
    to_kernel(v, &iov, 1);
}

/* The kernel's next request; false when there is none now. */
static bool fetch(struct volume *v)
{
    struct fuse_in_header h;
    struct volumes *s = v->all;
    ssize_t n = v->fd >= 0 ? read(v->fd, s->block->data, LIMIT_FS_MESSAGE) : 0;
    if (n < 0 && (errno == EINTR || errno == ENOENT)) /* ENOENT: it was interrupted just now */
        return true;
    if (n < 0 && errno != EAGAIN)
        lost(v); /* ENODEV: unmounted */
    if (n < (ssize_t)sizeof(h))
        return false;
    memcpy(&h, s->block->data, sizeof(h));
    if (h.opcode == FUSE_INIT && v->init == NULL)
        v->init = keep(s, (size_t)n, &h);
    else if (asks_for_capabilities(s->block->data, (size_t)n, &h))
        answer(v, h.unique, -ENODATA);
    else if (h.opcode != FUSE_INTERRUPT) /* the answer is on its way: not worth the trouble */
        add(v, keep(s, (size_t)n, &h));
    if (is_release(h.opcode))
        answer(v, h.unique, 0);
    return true;
}

static void drop(struct volume *v, struct request *r)
{
    if (r == v->unsent)
        v->unsent = TAILQ_NEXT(r, link);
    TAILQ_REMOVE(&v->waiting, r, link);
    v->all->n_waiting--;
    request_free(v->all, r);
}

/* Sends what waits, oldest first. False when the channel is full. */
static bool send_waiting(struct volume *v)
{
    while (v->unsent != NULL) {
        struct request *r = v->unsent;
        if (!send_request(v, r))
            return false;
        v->unsent = TAILQ_NEXT(r, link);
        if (r->answered)
            drop(v, r);
    }
    return true;
}

/* Does for one volume what can be done now. */
static void pump(struct volume *v)
{
    struct volumes *s = v->all;
    if (v->init == NULL) {
        if (!fetch(v) || v->init == NULL)
            return;
    }
    if (!peer_up(s->peer)) {
        watch(v, false);
        return;
    }
    bool room = true;
    bool full = false;
    if (!v->init_sent)
        room = v->init_sent = send_request(v, v->init);
    for (int i = 0; v->ready && room && i < TURN; i++) {
        room = send_waiting(v);
        full = s->n_waiting >= LIMIT_FS_WAITING;
        if (!room || full || !fetch(v))
            break;
        /* one caller at a time: its request goes out before the kernel is asked for another one */
        if (s->n_waiting <= 1)
            break;
    }
    if (v->ready && room)
        room = send_waiting(v);
    if (!room)
        peer_want_writable(s->peer);
    s->full = s->full || full;
    watch(v, v->ready && room && !full);
}

static void on_request(struct loop_source *src, uint32_t events, void *arg)
{
    struct volume *v = arg;
    (void)src;
    if (events & EPOLLIN)
        pump(v);
    else
        lost(v); /* the kernel's end is gone */
    peer_flush(v->all->peer);
}

/* --- from the host --- */

static struct volume *find(struct volumes *s, uint32_t id)
{
    struct volume *v;
    TAILQ_FOREACH(v, &s->volumes, link)
    if (v->id == id)
        return v;
    return NULL;
}

/* Volumes whose requests were left with the kernel go on. */
static void go_on(struct volumes *s)
{
    struct volume *v;
    if (!s->full || s->n_waiting >= LIMIT_FS_WAITING)
        return;
    s->full = false;
    TAILQ_FOREACH(v, &s->volumes, link)
    pump(v);
}

/* The reply may lie in two pieces, the first of which holds its header. */
static void replied(struct volume *v, const struct iovec *reply, int n)
{
    struct fuse_out_header h;
    struct request *r;
    if (reply[0].iov_len < sizeof(h)) {
        log_warn("a volume's reply is no reply", LOG_INT("volume", v->id));
        return;
    }
    memcpy(&h, reply[0].iov_base, sizeof(h));
    if (v->init != NULL && h.unique == v->init->unique) {
        if (!v->started)
            to_kernel(v, reply, n);
        v->started = true;
        v->ready = true;
        pump(v);
        return;
    }
    TAILQ_FOREACH(r, &v->waiting, link)
    {
        if (r->unique == h.unique && !r->answered) {
            to_kernel(v, reply, n);
            drop(v, r);
            go_on(v->all);
            return;
        }
    }
}

static void on_frame(void *arg, const struct frame *f)
{
    struct volumes *s = arg;
    struct volume *v = find(s, f->stream);
    if (v == NULL || f->type != FRAME_FS_DATA)
        return;
    /* the last piece needs no copy, unless the reply's header is in it too */
    bool whole = (f->flags & FRAME_FLAG_END) != 0;
    bool apart = whole && (v->reply.len == 0 || v->reply.len >= sizeof(struct fuse_out_header));
    if (!apart)
        (void)buf_append(&v->reply, f->payload, f->len);
    if (!whole && buf_ok(&v->reply))
        return;
    struct iovec reply[2] = {{v->reply.data, v->reply.len},
                             {(void *)(uintptr_t)f->payload, apart ? f->len : 0}};
    if (buf_ok(&v->reply) && reply[0].iov_len > 0)
        replied(v, reply, apart ? 2 : 1);
    else if (buf_ok(&v->reply))
        replied(v, &reply[1], 1);
    buf_reset(&v->reply);
    peer_flush(s->peer);
}

static void on_up(void *arg)
{
    struct volumes *s = arg;
    struct volume *v;
    TAILQ_FOREACH(v, &s->volumes, link)
    {
        v->init_sent = v->ready = false;
        v->unsent = TAILQ_FIRST(&v->waiting);
        buf_reset(&v->reply);
        pump(v);
    }
}

static void on_down(void *arg)
{
    struct volumes *s = arg;
    struct volume *v;
    TAILQ_FOREACH(v, &s->volumes, link)
    watch(v, v->init == NULL);
}

static void on_writable(void *arg)
{
    struct volumes *s = arg;
    struct volume *v;
    TAILQ_FOREACH(v, &s->volumes, link)
    pump(v);
    peer_flush(s->peer);
}

/* --- volumes --- */

static void volume_free(struct volume *v)
{
    struct request *r;
    TAILQ_REMOVE(&v->all->volumes, v, link);
    lost(v);
    while ((r = TAILQ_FIRST(&v->waiting)) != NULL)
        drop(v, r);
    request_free(v->all, v->init);
    free(v->owner);
    buf_clear(&v->reply);
    free(v);
}

int volumes_attach(struct volumes *s, const char *owner, uint32_t id, int fd, struct err *err)
{
    auto_close int owned = fd;
    if (id == 0 || find(s, id) != NULL)
        return err_set(err, ERR_INVALID, "volume %u: the id is in use", id);
    struct volume *v = xcalloc(1, sizeof(*v));
    v->all = s;
    v->owner = xstrdup(owner);
    v->id = id;
    v->reply = (struct buf)BUF_INIT(LIMIT_FS_MESSAGE);
    TAILQ_INIT(&v->waiting);
    TAILQ_INSERT_TAIL(&s->volumes, v, link);
    v->fd = take_fd(&owned);
    v->watching = true;
    v->src = loop_add_fd(s->loop, v->fd, EPOLLIN, on_request, v, err);
    if (v->src == NULL) {
        volume_free(v);
        return -1;
    }
    return 0;
}

static int make_place(const char *path, bool file, struct err *err)
{
    auto_free char *parent = xstrdup(path);
    char *slash = strrchr(parent, '/');
    if (!file)
        return fs_mkdir_p(path, 0700, err);
    if (slash == NULL)
        return err_set(err, ERR_INVALID, "volume path %s", path);
    *slash = '\0';
    if (fs_mkdir_p(parent, 0700, err) < 0)
        return -1;
    auto_close int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    return fd < 0 ? err_sys(err, errno, "make %s", path) : 0;
}

int volumes_mount(struct volumes *s, const char *owner, uint32_t id, bool file, const char *path,
                  struct err *err)
{
    if (make_place(path, file, err) < 0)
        return -1;
    auto_close int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_sys(err, errno, "open /dev/fuse");
    /* The kernel's INIT is read later: mounting waits for nobody. */
    auto_free char *options =
        fs_format("fd=%d,rootmode=%o,user_id=0,group_id=0,allow_other,default_permissions", fd,
                  (unsigned)(file ? S_IFREG : S_IFDIR));
    if (mount("aspis", path, "fuse", MS_NODEV, options) < 0)
        return err_sys(err, errno, "mount volume %u", id);
    if (volumes_attach(s, owner, id, take_fd(&fd), err) < 0) {
        (void)umount2(path, MNT_DETACH); /* nobody has used it: nothing to wait for */
        return -1;
    }
    return 0;
}

void volumes_release(struct volumes *s, const char *owner)
{
    struct volume *v = TAILQ_FIRST(&s->volumes);
    while (v != NULL) {
        struct volume *next = TAILQ_NEXT(v, link);
        if (strcmp(v->owner, owner) == 0) {
            /* a new server does not know the volume anyway */
            if (peer_up(s->peer))
                (void)peer_send(s->peer, v->id, FRAME_FS_CLOSE, 0, NULL, 0);
            volume_free(v);
        }
        v = next;
    }
    go_on(s);
    peer_flush(s->peer);
}

struct peer *volumes_peer(struct volumes *s)
{
    return s->peer;
}

struct volumes *volumes_new(struct loop *loop)
{
    struct volumes *s = xcalloc(1, sizeof(*s));
    struct peer_user user = {
        .up = on_up, .down = on_down, .frame = on_frame, .writable = on_writable, .arg = s};
    s->loop = loop;
    s->block = request_new(LIMIT_FS_MESSAGE);
    s->peer = peer_new(loop, LINK_FS, LIMIT_FS_FRAME, LIMIT_FS_QUEUE + KiB(4), &user);
    TAILQ_INIT(&s->volumes);
    return s;
}

void volumes_free(struct volumes *s)
{
    if (s == NULL)
        return;
    while (!TAILQ_EMPTY(&s->volumes))
        volume_free(TAILQ_FIRST(&s->volumes));
    peer_free(s->peer);
    free(s->block);
    free(s->spare);
    free(s);
}
