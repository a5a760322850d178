#include "agent/stdio.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <termios.h>
#include <unistd.h>

#define HASH_FUNCTION HASH_FNV /* clang warns of the default one */
#include <uthash.h>

#include "agent/peer.h"
#include "agent/ring.h"
#include "base/cleanup.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"

/* Frames are added to the channel's queue while less than this waits in it: enough to keep the
 * channel busy, little enough that a stream which has something to say soon gets its turn. */
#define QUEUE_DATA KiB(128)
#define QUEUE_ALL MiB(1)
#define READ_MAX KiB(64)
/* Input is acknowledged at once while it comes in small pieces, and else in steps: each
 * acknowledgement costs the guest as much as several KiB of data. A host that knows of no window
 * but LIMIT_IO_WINDOW must not run dry meanwhile. */
#define ACK_SMALL KiB(4)
#define ACK_STEP (LIMIT_IO_WINDOW / 2)

struct io_stream {
    uint32_t id;
    struct stdio *s;
    int fd; /* -1 once its end was seen */
    bool input;
    struct loop_source *src; /* only while there is something to wait for: an idle pipe with its
                                other end closed would report that for ever */
    struct ring ring;
    uint64_t
        base; /* offset of the ring's first byte: output below is acknowledged, input is written */
    bool eof; /* the ring's end is the stream's end */

    /* output */
    bool open; /* the host wants it on this connection */
    bool eof_sent;
    uint64_t sent;
    void (*on_eof)(void *arg);
    void *arg;

    /* input */
    bool is_tty;
    uint64_t acked; /* the highest ACK sent: the host may be LIMIT_IO_INPUT_WINDOW past it */
    bool ack_due;
    bool open_due; /* an OPEN is to be answered */

    const char *broken;    /* why the stream is of no more use, told to the host with RESET */
    const char *reset_due; /* the RESET to be sent */
    bool ready;            /* on the ready list */
    TAILQ_ENTRY(io_stream) link;
    UT_hash_handle hh;
};

struct stdio {
    struct loop *loop;
    struct peer *peer;
    struct io_stream *streams;
    TAILQ_HEAD(, io_stream) ready; /* streams with something for the host, in turn */
    uint32_t last_id;
};

static uint64_t ring_end(const struct io_stream *st)
{
    return st->base + st->ring.len;
}

/* --- to the host --- */

/* What may be sent: never more than a window past the acknowledgement, even if the ring holds more.
 */
static uint64_t send_limit(const struct io_stream *st)
{
    uint64_t limit = st->base + LIMIT_IO_WINDOW;

    return ring_end(st) < limit ? ring_end(st) : limit;
}

static bool data_due(const struct io_stream *st)
{
    if (st->input || !st->open)
        return false;
    return st->sent < send_limit(st) || (st->eof && !st->eof_sent && st->sent == ring_end(st));
}

static bool open_answerable(const struct io_stream *st)
{
    return st->open_due && st->ring.len <= LIMIT_IO_INPUT_WINDOW;
}

static bool has_news(const struct io_stream *st)
{
    return st->reset_due != NULL || st->ack_due || open_answerable(st) || data_due(st);
}

static void send_data(struct io_stream *st)
{
    size_t max = (size_t)(send_limit(st) - st->sent);
    struct iovec iov[2];
    size_t n = ring_peek(&st->ring, (size_t)(st->sent - st->base),
                         max < LIMIT_IO_FRAME ? max : LIMIT_IO_FRAME, iov);
    bool last = st->eof && st->sent + n == ring_end(st);

    if (peer_send_io(st->s->peer, st->id, last ? FRAME_FLAG_EOF : 0, st->sent, iov[0].iov_base,
                     iov[0].iov_len, iov[1].iov_base, iov[1].iov_len) < 0)
        return;
    st->sent += n;
    st->eof_sent = last;
}

static void send_one(struct io_stream *st)
{
    struct peer *peer = st->s->peer;

    if (st->reset_due != NULL) {
        if (peer_send(peer, st->id, FRAME_IO_RESET, 0, st->reset_due, strlen(st->reset_due)) == 0)
            st->reset_due = NULL;
    } else if (st->ack_due || open_answerable(st)) {
        /* After a reconnect the host goes on with what has not arrived yet. Answering only while
         * the ring is at most half full keeps that promise of a whole window within the ring. */
        uint64_t ack = open_answerable(st) ? ring_end(st) : st->base;

        if (ack < st->acked)
            ack = st->acked;
        if (peer_send_credit(peer, st->id, ack, LIMIT_IO_INPUT_WINDOW) == 0) {
            st->acked = ack;
            st->ack_due = false;
            if (open_answerable(st))
                st->open_due = false;
        }
    } else {
        send_data(st);
    }
}

/* Sends in turn, one frame each, until nobody has news or the channel is full. */
static void pump(struct stdio *s)
{
    struct io_stream *st;

    do {
        while ((st = TAILQ_FIRST(&s->ready)) != NULL && peer_queued(s->peer) < QUEUE_DATA) {
            TAILQ_REMOVE(&s->ready, st, link);
            st->ready = false;
            if (!peer_up(s->peer))
                continue;
            send_one(st);
            if (has_news(st)) {
                TAILQ_INSERT_TAIL(&s->ready, st, link);
                st->ready = true;
            }
        }
        peer_flush(s->peer);
    } while (st != NULL && peer_queued(s->peer) == 0 && peer_up(s->peer));
    if (st != NULL)
        peer_want_writable(s->peer);
}

static void kick(struct io_stream *st)
{
    if (!has_news(st))
        return;
    if (!st->ready) {
        TAILQ_INSERT_TAIL(&st->s->ready, st, link);
        st->ready = true;
    }
    pump(st->s);
}

/* --- descriptors --- */

static void on_readable(struct loop_source *src, uint32_t events, void *arg);
static void on_pipe_writable(struct loop_source *src, uint32_t events, void *arg);

static int watch(struct io_stream *st, struct err *err)
{
    if (st->src != NULL || st->fd < 0)
        return 0;
    st->src = loop_add_fd(st->s->loop, st->fd, st->input ? EPOLLOUT : EPOLLIN,
                          st->input ? on_pipe_writable : on_readable, st, err);
    return st->src == NULL ? -1 : 0;
}

/* For streams in use: what cannot be watched any more is over. */
static void watch_or_break(struct io_stream *st)
{
    auto_err struct err err = ERR_INIT;

    if (watch(st, &err) < 0) {
        log_error("stdio stream lost", LOG_INT("stream", st->id), LOG_STR("error", err_msg(&err)));
        st->broken = st->reset_due = "the guest is out of resources";
        cleanup_closep(&st->fd);
    }
}

static void unwatch(struct io_stream *st)
{
    loop_remove(take(st->src));
}

static void close_fd(struct io_stream *st)
{
    unwatch(st);
    cleanup_closep(&st->fd);
}

/* The last byte is in the ring. May free st (through the callback). */
static void end_output(struct io_stream *st)
{
    void (*on_eof)(void *arg) = st->on_eof;

    close_fd(st);
    st->eof = true;
    st->on_eof = NULL;
    kick(st);
    if (on_eof != NULL)
        on_eof(st->arg);
}

enum read_result { READ_SOME, READ_NOTHING, READ_END };

static enum read_result read_fd(struct io_stream *st, size_t room, size_t *got)
{
    struct iovec iov[2];
    ssize_t n;

    *got = 0;
    if (ring_room(&st->ring, room < READ_MAX ? room : READ_MAX, iov) == 0)
        return READ_NOTHING;
    do {
        n = readv(st->fd, iov, iov[1].iov_len > 0 ? 2 : 1);
    } while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN)
        return READ_NOTHING;
    if (n <= 0) /* EIO: the last user of a terminal closed it */
        return READ_END;
    ring_commit(&st->ring, (size_t)n);
    *got = (size_t)n;
    return READ_SOME;
}

static void on_readable(struct loop_source *src, uint32_t events, void *arg)
{
    struct io_stream *st = arg;
    size_t got;

    (void)src;
    (void)events;
    if (st->ring.len >= LIMIT_IO_WINDOW) {
        unwatch(st);
        return;
    }
    if (read_fd(st, LIMIT_IO_WINDOW - st->ring.len, &got) == READ_END) {
        end_output(st);
        return;
    }
    /* Full, or no memory for more: the next acknowledgement starts it again. */
    if (st->ring.len >= LIMIT_IO_WINDOW || (got == 0 && st->ring.len > 0))
        unwatch(st);
    kick(st);
}

static void input_broken(struct io_stream *st, const char *why)
{
    close_fd(st);
    ring_clear(&st->ring);
    st->broken = st->reset_due = why;
    st->ack_due = st->open_due = false;
    kick(st);
}

/* The host's end of input reached the process: its pipe is closed, its terminal gets ^D. */
static void end_input(struct io_stream *st)
{
    struct termios t;
    cc_t end = 4;

    if (st->is_tty) {
        if (tcgetattr(st->fd, &t) == 0)
            end = t.c_cc[VEOF];
        if (write(st->fd, &end, 1) < 0)
            log_debug("no end of input for terminal", LOG_INT("stream", st->id));
    } else {
        (void)shutdown(st->fd, SHUT_WR); /* a socket; a pipe has its end closed below */
    }
    close_fd(st);
    st->ack_due = st->base > st->acked;
    kick(st);
}

static bool worth_an_ack(const struct io_stream *st)
{
    uint64_t due = st->base > st->acked ? st->base - st->acked : 0;

    return due >= ACK_STEP || (due > 0 && due <= ACK_SMALL && st->ring.len == 0);
}

/* Writes what the process takes; grants credit for it. */
static void drain_input(struct io_stream *st)
{
    while (st->fd >= 0 && st->ring.len > 0) {
        struct iovec iov[2];
        ssize_t n;

        ring_peek(&st->ring, 0, st->ring.len, iov);
        n = writev(st->fd, iov, iov[1].iov_len > 0 ? 2 : 1);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            break;
        if (n < 0) {
            input_broken(st, "the process closed its standard input");
            return;
        }
        st->base += (size_t)n;
        ring_consume(&st->ring, (size_t)n);
    }
    if (st->fd < 0)
        return;
    if (st->ring.len > 0) {
        watch_or_break(st);
    } else {
        unwatch(st);
        if (st->eof) {
            end_input(st);
            return;
        }
    }
    if (worth_an_ack(st))
        st->ack_due = true;
    kick(st);
}

static void on_pipe_writable(struct loop_source *src, uint32_t events, void *arg)
{
    (void)src;
    (void)events;
    drain_input(arg);
}

/* --- from the host --- */

/* The host has everything below offset. */
static void output_acked(struct io_stream *st, uint64_t offset)
{
    if (offset <= st->base || offset > st->sent)
        return;
    ring_consume(&st->ring, (size_t)(offset - st->base));
    st->base = offset;
    if (st->fd >= 0 && st->ring.len < LIMIT_IO_WINDOW)
        watch_or_break(st);
    kick(st);
}

static void output_open(struct io_stream *st, uint64_t offset)
{
    if (offset < st->base || offset > ring_end(st)) {
        st->reset_due = offset < st->base ? "these bytes were acknowledged and are gone"
                                          : "the stream has not come that far";
        st->open = false;
        kick(st);
        return;
    }
    st->open = true;
    st->eof_sent = false;
    st->sent = offset;
    if (offset > st->base)
        output_acked(st, offset);
    else
        kick(st);
}

/* What the process takes at once need not go through the ring. Returns how many bytes those were;
 * errors are found again by drain_input() with the rest. */
static size_t write_through(struct io_stream *st, const uint8_t *data, size_t len)
{
    ssize_t n;

    if (st->ring.len > 0 || len == 0)
        return 0;
    n = write(st->fd, data, len);
    if (n <= 0)
        return 0;
    st->base += (size_t)n;
    return (size_t)n;
}

static void input_data(struct io_stream *st, const struct frame *f, uint64_t offset)
{
    const uint8_t *data = f->payload + 8;
    size_t len = f->len - 8;
    uint64_t have = ring_end(st);
    size_t n;

    if (st->fd < 0 || st->eof)
        return;
    if (offset > have) {
        input_broken(st, "bytes are missing");
        return;
    }
    if (have - offset > len) /* all known, and so was its end, if it had one */
        return;
    data += have - offset;
    len -= (size_t)(have - offset);
    if (have + len > st->acked + LIMIT_IO_INPUT_WINDOW) {
        input_broken(st, "more bytes than were granted");
        return;
    }
    n = write_through(st, data, len);
    if (ring_append(&st->ring, data + n, len - n) < 0) {
        input_broken(st, "the guest is out of memory");
        return;
    }
    st->eof = (f->flags & FRAME_FLAG_EOF) != 0;
    drain_input(st);
}

static void unknown_stream(struct stdio *s, uint32_t id)
{
    static const char text[] = "no such stream";

    if (peer_queued(s->peer) > QUEUE_DATA)
        return;
    (void)peer_send(s->peer, id, FRAME_IO_RESET, 0, text, sizeof(text) - 1);
    peer_flush(s->peer);
}

static void on_frame(void *arg, const struct frame *f)
{
    struct stdio *s = arg;
    struct io_stream *st = NULL;
    uint64_t offset = 0;

    HASH_FIND(hh, s->streams, &f->stream, sizeof(f->stream), st);
    if (st == NULL) {
        if (f->type == FRAME_IO_OPEN || f->type == FRAME_IO_DATA)
            unknown_stream(s, f->stream);
        return;
    }
    if (f->type == FRAME_IO_RESET) {
        st->open = false;
        return;
    }
    if (frame_offset(f, &offset) < 0)
        return;
    if (st->broken != NULL) {
        if (f->type == FRAME_IO_OPEN) {
            st->reset_due = st->broken;
            kick(st);
        }
    } else if (f->type == FRAME_IO_OPEN && st->input) {
        st->open_due = true;
        kick(st);
    } else if (f->type == FRAME_IO_OPEN) {
        output_open(st, offset);
    } else if (f->type == FRAME_IO_DATA && st->input) {
        input_data(st, f, offset);
    } else if (f->type == FRAME_IO_ACK && !st->input) {
        output_acked(st, offset);
    }
}

/* Nothing is open on a new connection until its host says so. */
static void on_down(void *arg)
{
    struct stdio *s = arg;
    struct io_stream *st;
    struct io_stream *next;

    HASH_ITER(hh, s->streams, st, next)
    {
        st->open = false;
        st->eof_sent = false;
        st->ack_due = st->open_due = false;
        st->reset_due = NULL;
        if (st->ready) {
            TAILQ_REMOVE(&s->ready, st, link);
            st->ready = false;
        }
    }
}

static void on_up(void *arg)
{
    (void)arg;
}

static void on_writable(void *arg)
{
    pump(arg);
}

/* --- the table --- */

struct stdio *stdio_new(struct loop *loop, struct err *err)
{
    struct stdio *s = xcalloc(1, sizeof(*s));
    const struct peer_user user = {
        .up = on_up, .down = on_down, .frame = on_frame, .writable = on_writable, .arg = s};

    (void)err;
    s->loop = loop;
    TAILQ_INIT(&s->ready);
    s->peer = peer_new(loop, LINK_IO, LIMIT_IO_FRAME + 8, QUEUE_ALL, &user);
    return s;
}

struct peer *stdio_peer(struct stdio *s)
{
    return s->peer;
}

static void stream_free(struct io_stream *st)
{
    close_fd(st);
    ring_clear(&st->ring);
    if (st->ready)
        TAILQ_REMOVE(&st->s->ready, st, link);
    HASH_DEL(st->s->streams, st);
    free(st);
}

void stdio_free(struct stdio *s)
{
    struct io_stream *st;
    struct io_stream *next;

    if (s == NULL)
        return;
    HASH_ITER(hh, s->streams, st, next)
    stream_free(st);
    peer_free(s->peer);
    free(s);
}

static struct io_stream *add(struct stdio *s, int fd, bool input, struct err *err)
{
    struct io_stream *st;
    int flags = fcntl(fd, F_GETFL);

    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
        (void)err_sys(err, errno, "make stdio descriptor %d non-blocking", fd);
        cleanup_closep(&fd);
        return NULL;
    }
    st = xcalloc(1, sizeof(*st));
    st->s = s;
    st->fd = fd;
    st->input = input;
    /* Input: what was granted before a reconnect and once more after it. Output: see
     * stdio_finish_output(). */
    st->ring =
        (struct ring)RING_INIT(input ? 2 * LIMIT_IO_INPUT_WINDOW : LIMIT_IO_WINDOW + LIMIT_PIPE);
    st->id = ++s->last_id;
    HASH_ADD(hh, s->streams, id, sizeof(st->id), st);
    return st;
}

uint32_t stdio_add_output(struct stdio *s, int fd, void (*on_eof)(void *arg), void *arg,
                          struct err *err)
{
    struct io_stream *st = add(s, fd, false, err);

    if (st == NULL)
        return 0;
    st->on_eof = on_eof;
    st->arg = arg;
    if (watch(st, err) < 0) {
        stream_free(st);
        return 0;
    }
    return st->id;
}

uint32_t stdio_add_input(struct stdio *s, int fd, bool is_tty, struct err *err)
{
    struct io_stream *st = add(s, fd, true, err);

    if (st == NULL)
        return 0;
    st->is_tty = is_tty;
    return st->id;
}

static struct io_stream *find(struct stdio *s, uint32_t id)
{
    struct io_stream *st = NULL;

    HASH_FIND(hh, s->streams, &id, sizeof(id), st);
    return st;
}

void stdio_finish_output(struct stdio *s, uint32_t id)
{
    struct io_stream *st = find(s, id);
    int pending = 0;
    size_t left;

    if (st == NULL || st->input || st->eof)
        return;
    /* Bounded by what is there now, since the stranger may go on writing. */
    if (st->fd < 0 || ioctl(st->fd, FIONREAD, &pending) < 0 || pending < 0)
        pending = 0;
    for (left = (size_t)pending; left > 0;) {
        size_t got;

        if (read_fd(st, left, &got) != READ_SOME)
            break;
        left -= got;
    }
    end_output(st);
}

void stdio_remove(struct stdio *s, uint32_t id)
{
    struct io_stream *st = find(s, id);

    if (st != NULL)
        stream_free(st);
}
