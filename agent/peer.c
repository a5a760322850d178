#include "agent/peer.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"

/* The queue is short when less than this waits. */
#define QUEUE_LOW KiB(64)
#define KEEP_MAX KiB(256)
/* Reads from a socket per event; the loop comes back for the rest. */
#define READS_PER_EVENT 8
/* What the kernel's driver of a port gives the host to fill at a time: a page. */
#define PORT_BUFFER KiB(4)
#define PORT_PIECES 16

struct peer {
    struct loop *loop;
    enum link_channel ch;
    struct peer_user user;
    int fd;
    bool port;
    struct loop_source *src;
    struct frame_parser in;
    struct buf out;
    size_t out_off; /* bytes of `out` already written */
    bool up;
    bool blocked;   /* the descriptor took no more: wait for EPOLLOUT */
    bool level;     /* a port watched level-triggered, as a socket always is */
    bool watch_out; /* EPOLLOUT is asked for */
    bool want_writable;
    void (*lost)(void *arg);
    void *lost_arg;
};

struct peer *peer_new(struct loop *loop, enum link_channel ch, size_t max_payload, size_t max_queue,
                      const struct peer_user *user)
{
    struct peer *p = xcalloc(1, sizeof(*p));

    p->loop = loop;
    p->ch = ch;
    p->user = *user;
    p->fd = -1;
    p->out = (struct buf)BUF_INIT(max_queue);
    frame_parser_init(&p->in, true, max_payload);
    return p;
}

static void detach(struct peer *p)
{
    loop_remove(take(p->src));
    cleanup_closep(&p->fd);
    p->blocked = false;
    p->level = false;
    p->watch_out = false;
}

/* A port's HUP lasts as long as the host is away: until the host has said its preamble only what
 * changes counts, and all must be read at once. Afterwards a port is like a socket, which costs
 * half as many system calls per message. */
static void watch_level(struct peer *p, bool level)
{
    if (!p->port || p->src == NULL || p->level == level)
        return;
    p->level = level;
    p->watch_out = false;
    (void)loop_set_events(p->src, level ? EPOLLIN : EPOLLIN | EPOLLOUT | EPOLLET);
}

void peer_free(struct peer *p)
{
    if (p == NULL)
        return;
    detach(p);
    frame_parser_clear(&p->in);
    buf_clear(&p->out);
    free(p);
}

bool peer_attached(const struct peer *p)
{
    return p->fd >= 0;
}

bool peer_up(const struct peer *p)
{
    return p->up;
}

void peer_on_lost(struct peer *p, void (*lost)(void *arg), void *arg)
{
    p->lost = lost;
    p->lost_arg = arg;
}

size_t peer_queued(const struct peer *p)
{
    return p->out.len - p->out_off;
}

static void drop_output(struct peer *p)
{
    if (p->out.cap > KEEP_MAX)
        buf_clear(&p->out);
    else
        buf_reset(&p->out);
    p->out_off = 0;
}

static void go_down(struct peer *p)
{
    frame_parser_resync(&p->in, NULL);
    drop_output(p);
    p->want_writable = false;
    watch_level(p, false);
    if (!p->up)
        return;
    p->up = false;
    p->user.down(p->user.arg);
}

static void preamble(struct peer *p)
{
    uint8_t answer[PREAMBLE_SIZE];

    if (p->in.preamble[15] != p->ch) {
        log_warn("preamble for another channel", LOG_INT("channel", p->in.preamble[15]));
        p->in.scanning = true;
        return;
    }
    drop_output(p);
    p->want_writable = false;
    if (p->up) {
        p->up = false;
        p->user.down(p->user.arg);
    }
    p->blocked = false; /* find out anew */
    preamble_answer(answer, p->in.preamble);
    (void)buf_append(&p->out, answer, sizeof(answer));
    watch_level(p, true);
    p->up = true;
    p->user.up(p->user.arg);
}

static void parse(struct peer *p)
{
    struct frame f;

    for (;;) {
        switch (frame_parser_next(&p->in, &f)) {
        case PARSE_MORE:
        case PARSE_SYNCED: /* not on this side */
            return;
        case PARSE_FRAME:
            if (p->up)
                p->user.frame(p->user.arg, &f);
            break;
        case PARSE_PREAMBLE:
            preamble(p);
            break;
        case PARSE_BROKEN:
            log_warn("link lost its frames", LOG_STR("channel", link_port_name(p->ch)));
            if (p->up) {
                p->up = false;
                drop_output(p);
                p->user.down(p->user.arg);
            }
            break;
        }
    }
}

void peer_input(struct peer *p, const void *data, size_t len)
{
    const uint8_t *from = data;

    while (len > 0) {
        size_t n;
        void *to = frame_parser_room(&p->in, &n);

        if (to == NULL)
            return;
        if (n > len)
            n = len;
        memcpy(to, from, n);
        frame_parser_fed(&p->in, n);
        from += n;
        len -= n;
        parse(p);
    }
}

/* A port gives what one of its buffers holds per read, but a read into pieces of that size goes on
 * with the next one as long as they are full. */
static ssize_t read_fd(const struct peer *p, char *to, size_t size)
{
    struct iovec iov[PORT_PIECES];
    int n = 0;
    if (!p->port)
        return read(p->fd, to, size);
    for (; n < PORT_PIECES && size > 0; n++) {
        iov[n] = (struct iovec){to, size < PORT_BUFFER ? size : PORT_BUFFER};
        to += iov[n].iov_len;
        size -= iov[n].iov_len;
    }
    return readv(p->fd, iov, n);
}

/* Returns false when there is nothing more to read now. */
static bool read_some(struct peer *p)
{
    size_t size;
    char *to = frame_parser_room(&p->in, &size);
    ssize_t n;

    if (to == NULL) /* out of memory: the half-read message is lost, the link is not */
        return false;
    n = read_fd(p, to, size);
    if (n > 0) {
        frame_parser_fed(&p->in, (size_t)n);
        parse(p);
        return true;
    }
    if (n < 0 && errno == EINTR)
        return true;
    if (n < 0 && errno == EAGAIN)
        return false;
    /* A port reads 0 while nobody is connected to it and stays good for the next connection. */
    if (n == 0 && p->port) {
        go_down(p);
        return false;
    }
    bool port = p->port;
    detach(p);
    go_down(p);
    if (port && p->lost != NULL)
        p->lost(p->lost_arg);
    return false;
}

/* How many per event; the loop comes back for the rest, but not when the port is watched
 * edge-triggered. */
static int reads(const struct peer *p)
{
    if (!p->port)
        return READS_PER_EVENT;
    return p->level ? 1 : INT_MAX;
}

static void on_fd(struct loop_source *src, uint32_t events, void *arg)
{
    struct peer *p = arg;

    if (events & EPOLLOUT)
        p->blocked = false;
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        for (int i = 0; p->src == src && i < reads(p); i++)
            if (!read_some(p))
                break;
    }
    if (p->src != src)
        return;
    peer_flush(p);
    if (p->want_writable && !p->blocked && peer_queued(p) < QUEUE_LOW) {
        p->want_writable = false;
        p->user.writable(p->user.arg);
    }
}

int peer_attach(struct peer *p, int fd, bool port, struct err *err)
{
    uint32_t events = port ? EPOLLIN | EPOLLOUT | EPOLLET : EPOLLIN;

    detach(p);
    go_down(p);
    p->fd = fd;
    p->port = port;
    p->src = loop_add_fd(p->loop, fd, events, on_fd, p, err);
    if (p->src == NULL) {
        detach(p);
        return err_wrap(err, "channel %s", link_port_name(p->ch));
    }
    return 0;
}

/* NULL when the peer is down or `len` more bytes do not fit. */
static struct buf *queue(struct peer *p, size_t len)
{
    if (!p->up || len > p->out.max || p->out.len - p->out_off > p->out.max - len)
        return NULL;
    if (p->out_off > 0 && (p->out_off >= p->out.len / 2 || p->out.len > p->out.max - len)) {
        buf_consume(&p->out, p->out_off);
        p->out_off = 0;
    }
    if (buf_reserve(&p->out, len) == NULL) {
        p->out.overflow = false; /* no memory now; the queue as it is stays good */
        return NULL;
    }
    return &p->out;
}

int peer_send(struct peer *p, uint32_t stream, uint8_t type, uint8_t flags, const void *payload,
              size_t len)
{
    struct buf *out = len > LIMIT_RPC_MESSAGE ? NULL : queue(p, FRAME_HEADER + len);

    return out == NULL ? -1 : frame_append(out, stream, type, flags, payload, len);
}

int peer_send_credit(struct peer *p, uint32_t stream, uint64_t offset, uint32_t window)
{
    struct buf *out = queue(p, FRAME_HEADER + sizeof(offset) + sizeof(window));

    return out == NULL ? -1 : frame_append_credit(out, stream, offset, window);
}

int peer_send_io(struct peer *p, uint32_t stream, uint8_t flags, uint64_t offset, const void *a,
                 size_t a_len, const void *b, size_t b_len)
{
    struct buf *out = queue(p, FRAME_HEADER + sizeof(offset) + a_len + b_len);
    size_t start;

    if (out == NULL)
        return -1;
    start = out->len;
    if (frame_append_io(out, stream, flags, offset, a, a_len) < 0 || buf_append(out, b, b_len) < 0)
        return -1;
    frame_put_header((uint8_t *)out->data + start, (uint32_t)(sizeof(offset) + a_len + b_len),
                     stream, FRAME_IO_DATA, flags);
    return 0;
}

static ssize_t write_fd(struct peer *p, const void *data, size_t len)
{
    return p->port ? write(p->fd, data, len) : send(p->fd, data, len, MSG_NOSIGNAL);
}

void peer_flush(struct peer *p)
{
    while (p->fd >= 0 && !p->blocked && peer_queued(p) > 0) {
        ssize_t n = write_fd(p, p->out.data + p->out_off, peer_queued(p));

        if (n >= 0) {
            p->out_off += (size_t)n;
        } else if (errno == EAGAIN) {
            p->blocked = true;
        } else if (errno != EINTR) {
            /* Whatever it is, reading reports it too and ends the connection there. */
            p->out_off = p->out.len;
        }
    }
    if (p->out_off == p->out.len)
        drop_output(p);
    if ((!p->port || p->level) && p->src != NULL && p->watch_out != p->blocked) {
        p->watch_out = p->blocked;
        (void)loop_set_events(p->src, p->blocked ? EPOLLIN | EPOLLOUT : EPOLLIN);
    }
}

void peer_want_writable(struct peer *p)
{
    p->want_writable = true;
}
