#include "cri/container_log.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"

#define STATE_MAGIC 0x41535049534c4f47ULL /* "ASPISLOG" */
#define RETRY_NS 1000000000LL

/* One of the two slots is current; the other is filled and then made current by one store, so a
 * reader after SIGKILL sees the old or the new values, never a mixture. */
struct log_slot {
    uint64_t dev, ino;  /* of the log file */
    uint64_t size;      /* of the log file when the offsets below were in it */
    uint64_t offset[2]; /* stdout, stderr */
    uint64_t flags;     /* bit 0, 1: that stream has ended */
};

struct log_state {
    uint64_t magic;
    _Atomic uint64_t current;
    struct log_slot slot[2];
};

struct log_stream {
    struct container_log *log;
    struct stream *stream;
    struct buf pending; /* received, not yet in the file */
    uint64_t offset;    /* of pending's first byte */
    bool open, eof;
};

struct container_log {
    pthread_mutex_t lock; /* guards all below */
    char *path, *id;
    int fd; /* -1: no file, output is discarded */
    uint64_t size;
    struct stat st;
    struct log_state *state;
    struct log_stream s[2];
    struct loop *io;
    struct loop_source *retry;
    bool failing; /* the last write failed: said so once */
    bool done;
    void (*on_done)(void *arg);
    void (*on_output)(void *arg, unsigned stream, const void *data, size_t len);
    void (*on_output_end)(void *arg, unsigned stream);
    void *arg;
};

static const char *const stream_names[2] = {"stdout", "stderr"};

static void commit(struct container_log *l)
{
    uint64_t next = (atomic_load(&l->state->current) + 1) & 1;
    struct log_slot *slot = &l->state->slot[next];
    slot->dev = l->fd >= 0 ? (uint64_t)l->st.st_dev : 0;
    slot->ino = l->fd >= 0 ? (uint64_t)l->st.st_ino : 0;
    slot->size = l->size;
    slot->flags = 0;
    for (unsigned i = 0; i < 2; i++) {
        slot->offset[i] = l->s[i].offset;
        if (l->s[i].eof && l->s[i].pending.len == 0)
            slot->flags |= 1U << i;
    }
    atomic_store(&l->state->current, next);
}

static int map_state(struct container_log *l, const char *path, struct err *err)
{
    auto_close int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, sizeof(struct log_state)) < 0)
        return err_sys(err, errno, "open log state %s", path);
    void *p = mmap(NULL, sizeof(struct log_state), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED)
        return err_sys(err, errno, "map log state %s", path);
    l->state = p;
    return 0;
}

static int open_file(struct container_log *l, struct err *err)
{
    if (str_empty(l->path))
        return 0;
    int fd =
        open(l->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0640);
    if (fd < 0)
        return err_sys(err, errno, "open log %s", l->path);
    struct stat st;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        (void)close(fd);
        return err_set(err, ERR_INVALID, "log %s is not a regular file", l->path);
    }
    cleanup_closep(&l->fd);
    l->fd = fd;
    l->st = st;
    l->size = (uint64_t)st.st_size;
    return 0;
}

/* After a restart: what the log holds beyond the recorded size was written by a daemon that died
 * before it could record it; the agent still has those bytes. */
static int resume(struct container_log *l, struct err *err)
{
    uint64_t current = atomic_load(&l->state->current);
    if (l->state->magic != STATE_MAGIC || current > 1) {
        *l->state = (struct log_state){.magic = STATE_MAGIC};
        commit(l);
        return 0;
    }
    const struct log_slot *slot = &l->state->slot[current];
    for (unsigned i = 0; i < 2; i++)
        l->s[i].offset = slot->offset[i];
    if (l->fd >= 0 && slot->dev == (uint64_t)l->st.st_dev && slot->ino == (uint64_t)l->st.st_ino &&
        slot->size < l->size) {
        if (ftruncate(l->fd, (off_t)slot->size) < 0)
            return err_sys(err, errno, "cut log %s", l->path);
        l->size = slot->size;
    }
    return 0;
}

/* One record for the first `len` bytes of text. */
static void put_record(struct buf *out, const char *stream, const char *tag, const char *text,
                       size_t len)
{
    struct timespec ts;
    struct tm tm;
    (void)clock_gettime(CLOCK_REALTIME, &ts);
    (void)gmtime_r(&ts.tv_sec, &tm);
    char when[32];
    (void)strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%S", &tm);
    (void)buf_printf(out, "%s.%09ldZ %s %s ", when, ts.tv_nsec, stream, tag);
    (void)buf_append(out, text, len);
    (void)buf_putc(out, '\n');
}

/* Formats as many records as are complete; returns how many bytes of `text` they cover. */
static size_t format(struct buf *out, const char *stream, const char *text, size_t len, bool last)
{
    size_t at = 0;
    while (at < len) {
        size_t left = len - at;
        size_t look = left < LIMIT_LOG_LINE ? left : LIMIT_LOG_LINE;
        const char *nl = memchr(text + at, '\n', look);
        if (nl != NULL) {
            size_t n = (size_t)(nl - (text + at));
            put_record(out, stream, "F", text + at, n);
            at += n + 1;
        } else if (left >= LIMIT_LOG_LINE) {
            put_record(out, stream, "P", text + at, LIMIT_LOG_LINE);
            at += LIMIT_LOG_LINE;
        } else if (last) {
            put_record(out, stream, "F", text + at, left);
            at += left;
        } else {
            break;
        }
    }
    return at;
}

static void retry_later(struct container_log *l, int sys_errno)
{
    if (!l->failing)
        log_error("cannot write container log; its output waits", LOG_STR("container", l->id),
                  LOG_STR("path", l->path), LOG_STR("error", strerror(sys_errno)));
    l->failing = true;
    if (l->retry != NULL)
        (void)loop_set_timer(l->retry, RETRY_NS);
}

/* All or nothing: a short write is cut off again. */
static int append(struct container_log *l, const struct buf *out)
{
    size_t at = 0;
    while (at < out->len) {
        ssize_t n = write(l->fd, out->data + at, out->len - at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            int e = errno;
            if (ftruncate(l->fd, (off_t)l->size) < 0)
                log_warn("container log holds half a record", LOG_STR("path", l->path));
            errno = e;
            return -1;
        }
        at += (size_t)n;
    }
    l->size += out->len;
    if (l->failing)
        log_info("container log is written again", LOG_STR("container", l->id));
    l->failing = false;
    return 0;
}

/* Writes what stream i has; `last` also an unfinished line. */
static void drain(struct container_log *l, unsigned i, bool last)
{
    struct log_stream *s = &l->s[i];
    if (s->pending.len == 0)
        return;
    size_t covered = s->pending.len;
    if (l->fd >= 0) {
        auto_buf struct buf out = BUF_INIT(MiB(64));
        covered = format(&out, stream_names[i], s->pending.data, s->pending.len, last);
        if (covered == 0)
            return;
        if (!buf_ok(&out)) {
            retry_later(l, ENOMEM);
            return;
        }
        if (append(l, &out) < 0) {
            retry_later(l, errno);
            return;
        }
    }
    buf_consume(&s->pending, covered);
    s->offset += covered;
    commit(l);
    if (s->stream != NULL)
        stream_ack(s->stream, s->offset);
}

/* Under the lock. Returns true when this call is the one that finds everything written. */
static bool finished(struct container_log *l)
{
    if (l->done)
        return false;
    for (unsigned i = 0; i < 2; i++) {
        if (l->s[i].open && (!l->s[i].eof || l->s[i].pending.len > 0))
            return false;
    }
    l->done = true;
    commit(l);
    return true;
}

static void settle(struct container_log *l, unsigned i)
{
    drain(l, i, l->s[i].eof);
    bool done = finished(l);
    (void)pthread_mutex_unlock(&l->lock);
    if (done && l->on_done != NULL)
        l->on_done(l->arg);
}

static void output_ended(struct container_log *l, unsigned i)
{
    if (l->on_output_end != NULL)
        l->on_output_end(l->arg, i);
}

static void on_data(void *arg, uint64_t offset, const void *data, size_t len)
{
    struct log_stream *s = arg;
    struct container_log *l = s->log;
    if (l->on_output != NULL)
        l->on_output(l->arg, (unsigned)(s - l->s), data, len);
    (void)pthread_mutex_lock(&l->lock);
    /* the link delivers without gap or overlap from the offset we opened with */
    if (offset == s->offset + s->pending.len)
        (void)buf_append(&s->pending, data, len);
    settle(l, (unsigned)(s - l->s));
}

static void on_eof(void *arg, uint64_t offset)
{
    (void)offset;
    struct log_stream *s = arg;
    struct container_log *l = s->log;
    output_ended(l, (unsigned)(s - l->s));
    (void)pthread_mutex_lock(&l->lock);
    s->eof = true;
    settle(l, (unsigned)(s - l->s));
}

static void on_reset(void *arg, const char *reason)
{
    (void)reason;
    on_eof(arg, 0); /* nothing more will come */
}

static void on_retry(struct loop_source *src, void *arg)
{
    (void)src;
    struct container_log *l = arg;
    for (unsigned i = 0; i < 2; i++) {
        (void)pthread_mutex_lock(&l->lock);
        settle(l, i);
    }
}

struct container_log *container_log_open(const struct container_log_options *o, struct err *err)
{
    struct container_log *l = xcalloc(1, sizeof(*l));
    (void)pthread_mutex_init(&l->lock, NULL);
    l->path = xstrdup(o->path != NULL ? o->path : "");
    l->id = xstrdup(o->container_id);
    l->fd = -1;
    l->io = o->io;
    l->on_done = o->on_done;
    l->on_output = o->on_output;
    l->on_output_end = o->on_output_end;
    l->arg = o->arg;
    for (unsigned i = 0; i < 2; i++) {
        l->s[i].log = l;
        l->s[i].pending = (struct buf)BUF_INIT(LIMIT_IO_WINDOW + LIMIT_IO_FRAME);
    }
    if (map_state(l, o->state_path, err) < 0 || open_file(l, err) < 0 || resume(l, err) < 0) {
        container_log_close(l);
        return NULL;
    }
    l->retry = loop_add_timer(l->io, -1, on_retry, l, err);
    if (l->retry == NULL) {
        container_log_close(l);
        return NULL;
    }
    commit(l);
    return l;
}

int container_log_attach(struct container_log *l, struct link *link, uint32_t stdout_id,
                         uint32_t stderr_id, struct err *err)
{
    uint32_t ids[2] = {stdout_id, stderr_id};
    uint64_t from[2];
    (void)pthread_mutex_lock(&l->lock);
    for (unsigned i = 0; i < 2; i++) {
        l->s[i].open = ids[i] != 0;
        from[i] = l->s[i].offset;
    }
    (void)pthread_mutex_unlock(&l->lock);
    for (unsigned i = 0; i < 2; i++) {
        if (ids[i] == 0) {
            output_ended(l, i);
            continue;
        }
        struct stream_callbacks cb = {
            .on_data = on_data, .on_eof = on_eof, .on_reset = on_reset, .arg = &l->s[i]};
        struct stream *s = stream_open_output(link, ids[i], from[i], &cb, err);
        if (s == NULL)
            return err_wrap(err, "read %s", stream_names[i]);
        (void)pthread_mutex_lock(&l->lock);
        l->s[i].stream = s;
        /* data that came before we knew the handle was written but not acknowledged */
        stream_ack(s, l->s[i].offset);
        (void)pthread_mutex_unlock(&l->lock);
    }
    return 0;
}

void container_log_offsets(struct container_log *l, uint64_t out[2])
{
    (void)pthread_mutex_lock(&l->lock);
    for (unsigned i = 0; i < 2; i++)
        out[i] = l->s[i].offset;
    (void)pthread_mutex_unlock(&l->lock);
}

int container_log_begin(const char *state_path, const uint64_t offsets[2], struct err *err)
{
    struct log_state state = {.magic = STATE_MAGIC};
    for (unsigned i = 0; i < 2; i++)
        state.slot[0].offset[i] = offsets[i];
    return fs_write_atomic(state_path, &state, sizeof(state), 0600, false, err);
}

int container_log_reopen(struct container_log *l, struct err *err)
{
    (void)pthread_mutex_lock(&l->lock);
    int rc = open_file(l, err);
    if (rc == 0)
        commit(l);
    (void)pthread_mutex_unlock(&l->lock);
    return rc;
}

void container_log_flush(struct container_log *l)
{
    for (unsigned i = 0; i < 2; i++)
        output_ended(l, i);
    (void)pthread_mutex_lock(&l->lock);
    for (unsigned i = 0; i < 2; i++) {
        l->s[i].eof = true;
        drain(l, i, true);
    }
    (void)pthread_mutex_unlock(&l->lock);
}

struct removal {
    struct loop_source *src;
};

static void remove_source(void *arg)
{
    loop_remove(((struct removal *)arg)->src);
}

void container_log_close(struct container_log *l)
{
    if (l == NULL)
        return;
    /* first the timer, whose callback acknowledges to the streams */
    (void)pthread_mutex_lock(&l->lock);
    struct removal r = {l->retry};
    l->retry = NULL;
    (void)pthread_mutex_unlock(&l->lock);
    if (r.src != NULL)
        loop_call(l->io, remove_source, &r);
    for (unsigned i = 0; i < 2; i++) {
        if (l->s[i].stream != NULL)
            stream_close(l->s[i].stream);
        l->s[i].stream = NULL;
    }
    for (unsigned i = 0; i < 2; i++) {
        output_ended(l, i);
        buf_clear(&l->s[i].pending);
    }
    if (l->state != NULL)
        (void)munmap(l->state, sizeof(*l->state));
    cleanup_closep(&l->fd);
    (void)pthread_mutex_destroy(&l->lock);
    free(l->path);
    free(l->id);
    free(l);
}
