#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/str.h"
#include "sandbox/link_impl.h"

/* Frames wait in streams, in turn, not in the channel's queue. */
#define QUEUE_MAX MiB(1)

struct stream {
    struct link *link;
    uint32_t id;
    bool input;
    struct stream_callbacks cb;

    /* under io.lock */
    bool open_due;
    bool ready; /* on the ready list */
    char *dead; /* reset by the agent, or the link ended: why */

    /* output */
    uint64_t received;
    uint64_t acked; /* by the consumer */
    bool ack_due;
    bool settling; /* just opened: data of an earlier opening may still come */
    bool eof_seen;

    /* input */
    struct buf pending; /* [base, base + len): not acknowledged yet */
    uint64_t base;
    uint32_t window; /* how far past base the agent lets us go */
    uint64_t sent;
    bool granted; /* the agent answered OPEN on this connection */
    bool resumed; /* offsets are known from an earlier connection */
    bool eof;
    bool eof_sent;
    int wake; /* eventfd for the writer */

    TAILQ_ENTRY(stream) queue;
    UT_hash_handle hh;
};

static struct stream *find(struct link *l, uint32_t id)
{
    struct stream *s = NULL;

    HASH_FIND(hh, l->streams, &id, sizeof(id), s);
    return s;
}

/* --- out (under the lock) --- */

static uint64_t input_end(const struct stream *s)
{
    return s->base + s->pending.len;
}

static bool data_due(const struct stream *s)
{
    return s->input && s->granted && (s->sent < input_end(s) || (s->eof && !s->eof_sent));
}

static bool has_news(const struct stream *s)
{
    return s->dead == NULL && (s->open_due || s->ack_due || data_due(s));
}

static void make_ready(struct stream *s)
{
    if (!s->ready)
        TAILQ_INSERT_TAIL(&s->link->ready, s, queue);
    s->ready = true;
}

static void unready(struct stream *s)
{
    if (s->ready)
        TAILQ_REMOVE(&s->link->ready, s, queue);
    s->ready = false;
}

static void kick(struct stream *s)
{
    if (!has_news(s))
        return;
    make_ready(s);
    link_chan_flush(&s->link->io);
}

static int append_data(struct stream *s)
{
    size_t skip = (size_t)(s->sent - s->base);
    const char *data = buf_str(&s->pending) + skip;
    size_t n = s->pending.len - skip;
    bool last;

    if (n > LIMIT_IO_FRAME)
        n = LIMIT_IO_FRAME;
    n = preamble_safe_len(data, n);
    last = s->eof && s->sent + n == input_end(s);
    if (frame_append_io(&s->link->io.out, s->id, last ? FRAME_FLAG_EOF : 0, s->sent, data, n) < 0)
        return -1;
    s->sent += n;
    s->eof_sent = last;
    (void)eventfd_write(s->wake, 1);
    return 0;
}

static int append_one(struct stream *s)
{
    struct buf *out = &s->link->io.out;

    if (s->open_due) {
        if (frame_append_offset(out, FRAME_IO_OPEN, s->id, s->input ? 0 : s->acked) < 0)
            return -1;
        s->open_due = s->ack_due = false; /* OPEN acknowledges what is below it */
        return 0;
    }
    if (s->ack_due) {
        if (frame_append_offset(out, FRAME_IO_ACK, s->id, s->acked) < 0)
            return -1;
        s->ack_due = false;
        return 0;
    }
    return append_data(s);
}

/* One frame of the stream whose turn it is. */
static bool io_fill(struct link *l)
{
    struct stream *s = TAILQ_FIRST(&l->ready);
    bool appended;

    if (s == NULL)
        return false;
    unready(s);
    appended = append_one(s) == 0;
    if (!appended)
        l->io.out.overflow = false; /* no memory now; the stream keeps its news */
    if (has_news(s))
        make_ready(s);
    return appended;
}

/* --- the channel's callbacks (loop) --- */

static void io_up(struct link *l)
{
    struct stream *s;
    struct stream *next;

    (void)pthread_mutex_lock(&l->io.lock);
    HASH_ITER(hh, l->streams, s, next)
    {
        unready(s);
        s->granted = false;
        s->eof_sent = false;
        s->settling = false; /* nothing of an older connection is on its way */
        s->open_due = true;
        if (has_news(s))
            make_ready(s);
    }
    link_chan_flush(&l->io);
    (void)pthread_mutex_unlock(&l->io.lock);
}

static void io_down(struct link *l)
{
    struct stream *s;
    struct stream *next;

    (void)pthread_mutex_lock(&l->io.lock);
    HASH_ITER(hh, l->streams, s, next)
    {
        unready(s);
        s->granted = false;
    }
    (void)pthread_mutex_unlock(&l->io.lock);
}

/* What one DATA frame means for its stream. */
struct news {
    const uint8_t *data;
    size_t len; /* 0: nothing new */
    uint64_t offset;
    bool eof;
};

/* Under the lock. */
static int accept_data(struct link *l, struct stream *s, const struct frame *f, struct news *news,
                       struct err *err)
{
    uint64_t offset = 0;
    size_t len;
    bool eof = (f->flags & FRAME_FLAG_EOF) != 0;

    if (frame_offset(f, &offset) < 0)
        return err_set(err, ERR_DATA_LOSS, "stdio frame without an offset");
    len = f->len - 8;
    if (s->dead != NULL)
        return link_chan_junk(&l->io, err);
    if (offset > s->received) {
        if (s->settling)
            return link_chan_junk(&l->io, err);
        return err_set(err, ERR_DATA_LOSS, "stream %u has a gap", s->id);
    }
    if (offset + len > s->acked + LIMIT_IO_WINDOW)
        return err_set(err, ERR_DATA_LOSS, "stream %u was sent past its window", s->id);
    s->settling = false;
    if (s->received - offset > len || (s->received - offset == len && (!eof || s->eof_seen)))
        return link_chan_junk(&l->io, err); /* all known */
    if (s->eof_seen)
        return err_set(err, ERR_DATA_LOSS, "stream %u goes on after its end", s->id);
    news->data = f->payload + 8 + (s->received - offset);
    news->len = len - (size_t)(s->received - offset);
    news->offset = s->received;
    news->eof = eof;
    s->received += news->len;
    s->eof_seen = eof;
    return 0;
}

static int data_came(struct link *l, const struct frame *f, struct err *err)
{
    struct news news = {0};
    struct stream *s;
    int ret;

    (void)pthread_mutex_lock(&l->io.lock);
    s = find(l, f->stream);
    if (s == NULL || s->input)
        ret = link_chan_junk(&l->io, err);
    else
        ret = accept_data(l, s, f, &news, err);
    (void)pthread_mutex_unlock(&l->io.lock);
    if (ret < 0 || (news.len == 0 && !news.eof))
        return ret;

    /* Streams are freed on this thread only, so s is good unless its own callback closes it. */
    l->dispatching = s;
    if (news.len > 0 && s->cb.on_data != NULL)
        s->cb.on_data(s->cb.arg, news.offset, news.data, news.len);
    if (news.eof && l->dispatching == s && s->cb.on_eof != NULL)
        s->cb.on_eof(s->cb.arg, news.offset + news.len);
    l->dispatching = NULL;
    return 0;
}

/* Under the lock: the agent says how much of the input it has. */
static int accept_ack(struct stream *s, uint64_t offset, uint32_t window, struct err *err)
{
    if (offset > INT64_MAX)
        return err_set(err, ERR_DATA_LOSS, "stream %u: impossible offset", s->id);
    if (!s->granted && !s->resumed) {
        /* the first answer to OPEN says where this stream stands */
        s->base = s->sent = offset;
        s->resumed = true;
    } else if (offset < s->base || offset > (s->granted ? s->sent : input_end(s))) {
        return err_set(err, ERR_DATA_LOSS, "stream %u: bytes acknowledged that were not sent",
                       s->id);
    } else {
        buf_consume(&s->pending, (size_t)(offset - s->base));
        s->base = offset;
        if (!s->granted)
            s->sent = offset; /* the rest was lost with the old connection */
    }
    s->granted = true;
    if (window > s->window)
        s->window = window < LIMIT_IO_INPUT_WINDOW ? window : LIMIT_IO_INPUT_WINDOW;
    (void)eventfd_write(s->wake, 1);
    kick(s);
    return 0;
}

static int ack_came(struct link *l, const struct frame *f, struct err *err)
{
    uint64_t offset = 0;
    struct stream *s;
    int ret;

    if (frame_offset(f, &offset) < 0)
        return err_set(err, ERR_DATA_LOSS, "stdio frame without an offset");
    (void)pthread_mutex_lock(&l->io.lock);
    s = find(l, f->stream);
    if (s == NULL || !s->input || s->dead != NULL || s->open_due)
        ret = link_chan_junk(&l->io, err);
    else
        ret = accept_ack(s, offset, frame_window(f), err);
    (void)pthread_mutex_unlock(&l->io.lock);
    return ret;
}

/* Loop. The stream is of no more use; its consumer hears it once. */
static void kill_stream(struct link *l, struct stream *s, const char *why)
{
    bool first;

    (void)pthread_mutex_lock(&l->io.lock);
    first = s->dead == NULL;
    if (first) {
        unready(s);
        s->dead = xstrdup(why);
        if (s->input)
            (void)eventfd_write(s->wake, 1);
    }
    (void)pthread_mutex_unlock(&l->io.lock);
    if (first && s->cb.on_reset != NULL)
        s->cb.on_reset(s->cb.arg, why);
}

static int reset_came(struct link *l, const struct frame *f, struct err *err)
{
    struct stream *s;
    bool dead = false;

    (void)pthread_mutex_lock(&l->io.lock);
    s = find(l, f->stream);
    if (s != NULL)
        dead = s->dead != NULL || s->open_due;
    (void)pthread_mutex_unlock(&l->io.lock);
    if (s == NULL || dead)
        return link_chan_junk(&l->io, err);
    auto_free char *text = link_guest_text(f->payload, f->len);
    auto_free char *why = NULL;
    if (asprintf(&why, "agent: %s", text) < 0)
        why = NULL;
    kill_stream(l, s, why != NULL ? why : "reset by the agent");
    return 0;
}

static int io_frame(struct link *l, const struct frame *f, struct err *err)
{
    switch (f->type) {
    case FRAME_IO_DATA:
        return data_came(l, f, err);
    case FRAME_IO_ACK:
        return ack_came(l, f, err);
    case FRAME_IO_RESET:
        return reset_came(l, f, err);
    default:
        return link_chan_junk(&l->io, err);
    }
}

/* --- life --- */

void link_stream_init(struct link *l, struct loop *io)
{
    static const struct link_chan_ops ops = {
        .up = io_up, .down = io_down, .frame = io_frame, .fill = io_fill};

    TAILQ_INIT(&l->ready);
    link_chan_init(&l->io, l, LINK_IO, io, LIMIT_IO_FRAME + 8, QUEUE_MAX, &ops);
}

void link_stream_end(struct link *l)
{
    struct stream *s;

    link_chan_stop(&l->io);
    /* A callback may close any stream, so start over after each. */
    do {
        struct stream *next;

        (void)pthread_mutex_lock(&l->io.lock);
        HASH_ITER(hh, l->streams, s, next)
        {
            if (s->dead == NULL)
                break;
        }
        (void)pthread_mutex_unlock(&l->io.lock);
        if (s != NULL)
            kill_stream(l, s, l->reason);
    } while (s != NULL);
}

void link_stream_clear(struct link *l)
{
    link_chan_clear(&l->io);
}

static void stream_free(struct stream *s)
{
    cleanup_closep(&s->wake);
    buf_clear(&s->pending);
    free(s->dead);
    free(s);
}

/* Takes s. */
static struct stream *add(struct link *l, struct stream *s, struct err *err)
{
    int ret = 0;

    (void)pthread_mutex_lock(&l->io.lock);
    if (l->io.stopped || atomic_load(&l->ended)) {
        ret = err_set(err, ERR_UNAVAILABLE, "%s", l->reason);
    } else if (s->id == 0 || find(l, s->id) != NULL) {
        ret = err_set(err, s->id == 0 ? ERR_INVALID : ERR_EXISTS, "stdio stream %u is %s", s->id,
                      s->id == 0 ? "none" : "open already");
    } else {
        s->link = l;
        s->open_due = true;
        s->settling = true;
        HASH_ADD(hh, l->streams, id, sizeof(s->id), s);
        link_mem_ref(l);
        if (l->io.synced)
            kick(s);
    }
    (void)pthread_mutex_unlock(&l->io.lock);
    if (ret < 0) {
        stream_free(s);
        return NULL;
    }
    return s;
}

struct stream *stream_open_output(struct link *l, uint32_t id, uint64_t offset,
                                  const struct stream_callbacks *cb, struct err *err)
{
    struct stream *s = xcalloc(1, sizeof(*s));

    s->id = id;
    s->wake = -1;
    s->received = s->acked = offset;
    if (cb != NULL)
        s->cb = *cb;
    return add(l, s, err);
}

void stream_ack(struct stream *s, uint64_t offset)
{
    struct link *l = s->link;

    (void)pthread_mutex_lock(&l->io.lock);
    if (offset > s->acked && offset <= s->received) {
        s->acked = offset;
        s->ack_due = true;
        if (l->io.synced)
            kick(s);
    }
    (void)pthread_mutex_unlock(&l->io.lock);
}

struct stream *stream_open_input(struct link *l, uint32_t id, struct err *err)
{
    struct stream *s = xcalloc(1, sizeof(*s));

    s->id = id;
    s->input = true;
    s->window = LIMIT_IO_WINDOW;
    s->pending = (struct buf)BUF_INIT(LIMIT_IO_INPUT_WINDOW);
    s->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (s->wake < 0) {
        (void)err_sys(err, errno, "make eventfd");
        stream_free(s);
        return NULL;
    }
    return add(l, s, err);
}

/* Under the lock: takes what fits the window. Returns whether all is on its way. */
static bool feed(struct stream *s, const char **data, size_t *len, bool eof)
{
    size_t n = s->window - s->pending.len;

    if (n > *len)
        n = *len;
    if (n > 0 && buf_append(&s->pending, *data, n) < 0) {
        s->pending.overflow = false; /* no memory now: with the next acknowledgement */
        n = 0;
    }
    *data += n;
    *len -= n;
    if (*len == 0 && eof)
        s->eof = true;
    if (s->link->io.synced)
        kick(s);
    return *len == 0 && s->granted && s->sent == input_end(s) && (!eof || s->eof_sent);
}

int stream_write(struct stream *s, const void *data, size_t len, bool eof, struct cancel *cancel,
                 struct err *err)
{
    struct link *l = s->link;
    const char *from = data;

    for (;;) {
        eventfd_t n;
        bool done = false;
        int ret = 0;

        (void)pthread_mutex_lock(&l->io.lock);
        (void)eventfd_read(s->wake, &n);
        if (s->dead != NULL)
            ret = err_set(err, ERR_ABORTED, "stdin: %s", s->dead);
        else if (s->eof && (len > 0 || !eof))
            ret = err_set(err, ERR_PRECONDITION, "stdin: written after its end");
        else
            done = feed(s, &from, &len, eof);
        (void)pthread_mutex_unlock(&l->io.lock);
        if (ret < 0 || done)
            return ret;
        if (cancel_poll(cancel, s->wake, POLLIN, -1, err) < 0)
            return err_wrap(err, "stdin");
    }
}

/* On the io loop, so that no callback of the stream runs during it or after it. */
static void close_on_loop(void *arg)
{
    struct stream *s = arg;
    struct link *l = s->link;

    (void)pthread_mutex_lock(&l->io.lock);
    unready(s);
    HASH_DEL(l->streams, s);
    if (l->dispatching == s)
        l->dispatching = NULL;
    /* Stops the agent's sending; what is on its way is ignored. */
    if (s->dead == NULL && !s->input && l->io.synced) {
        if (frame_append(&l->io.out, s->id, FRAME_IO_RESET, 0, "closed", 6) < 0)
            l->io.out.overflow = false;
        link_chan_flush(&l->io);
    }
    (void)pthread_mutex_unlock(&l->io.lock);
}

void stream_close(struct stream *s)
{
    struct link *l;

    if (s == NULL)
        return;
    l = s->link;
    loop_call(l->io.loop, close_on_loop, s);
    stream_free(s);
    link_mem_unref(l);
}
