#include <errno.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "sandbox/link_impl.h"

/* A vsock listener that is not there yet gives no event to wait for, so dialling is repeated. */
#define BACKOFF_FIRST_NS 20000000
#define BACKOFF_MAX_NS 200000000
/* An agent in the middle of a frame can miss a preamble (proto/README.md). */
#define PREAMBLE_NS 200000000
/* fill() is asked for more while less than this waits. */
#define QUEUE_LOW KiB(64)
#define KEEP_MAX KiB(256)
/* Reads per event: one guest's flood must not keep the loop from the others. */
#define READS_PER_EVENT 4

static void on_fd(struct loop_source *src, uint32_t events, void *arg);
static void on_timer(struct loop_source *src, void *arg);

void link_chan_init(struct link_chan *c, struct link *l, enum link_channel ch, struct loop *loop,
                    size_t max_payload, size_t max_queue, const struct link_chan_ops *ops)
{
    c->link = l;
    c->ch = ch;
    c->loop = loop;
    c->ops = ops;
    (void)pthread_mutex_init(&c->lock, NULL);
    c->fd = -1;
    c->out = (struct buf)BUF_INIT(max_queue);
    c->backoff_ns = BACKOFF_FIRST_NS;
    frame_parser_init(&c->in, false, max_payload);
}

void link_chan_clear(struct link_chan *c)
{
    frame_parser_clear(&c->in);
    buf_clear(&c->out);
    (void)pthread_mutex_destroy(&c->lock);
}

/* --- out --- */

static size_t queued(const struct link_chan *c)
{
    return c->out.len - c->out_off;
}

static void drop_output(struct link_chan *c)
{
    if (c->out.cap > KEEP_MAX)
        buf_clear(&c->out);
    else
        buf_reset(&c->out);
    c->out_off = 0;
}

static void watch_out(struct link_chan *c, bool on)
{
    if (c->src == NULL || c->watch_out == on)
        return;
    c->watch_out = on;
    (void)loop_set_events(c->src, on ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

void link_chan_flush(struct link_chan *c)
{
    if (c->fd < 0 || c->watch_out)
        return;
    for (;;) {
        ssize_t n;

        if (c->out_off > 0 && c->out_off >= queued(c)) {
            buf_consume(&c->out, c->out_off);
            c->out_off = 0;
        }
        while (c->synced && queued(c) < QUEUE_LOW && c->ops->fill(c->link))
            ;
        if (queued(c) == 0)
            break;
        n = send(c->fd, c->out.data + c->out_off, queued(c), MSG_NOSIGNAL);
        if (n >= 0) {
            c->out_off += (size_t)n;
        } else if (errno == EAGAIN) {
            watch_out(c, true);
            return;
        } else if (errno != EINTR) {
            /* Reading reports it too, on the loop; calls that were being sent fail there. */
            c->synced = false;
            break;
        }
    }
    drop_output(c);
}

/* --- connection --- */

static void disconnect(struct link_chan *c)
{
    (void)pthread_mutex_lock(&c->lock);
    loop_remove(take(c->src));
    cleanup_closep(&c->fd);
    c->synced = false;
    c->watch_out = false;
    drop_output(c);
    (void)pthread_mutex_unlock(&c->lock);
    c->connecting = false;
}

static void retry(struct link_chan *c)
{
    (void)loop_set_timer(c->timer, c->backoff_ns);
    c->backoff_ns = c->backoff_ns * 2 > BACKOFF_MAX_NS ? BACKOFF_MAX_NS : c->backoff_ns * 2;
}

static void lost(struct link_chan *c)
{
    disconnect(c);
    c->ops->down(c->link);
    if (!c->stopped)
        retry(c);
}

static void send_preamble(struct link_chan *c)
{
    (void)pthread_mutex_lock(&c->lock);
    if (queued(c) == 0 && buf_append(&c->out, c->preamble, PREAMBLE_SIZE) == 0)
        link_chan_flush(c);
    (void)pthread_mutex_unlock(&c->lock);
    (void)loop_set_timer(c->timer, PREAMBLE_NS);
}

static void connected(struct link_chan *c)
{
    uint8_t nonce[PREAMBLE_NONCE];
    uint8_t answer[PREAMBLE_SIZE];

    c->connecting = false;
    c->stale = 0;
    while (getrandom(nonce, sizeof(nonce), 0) < 0)
        ;
    preamble_make(c->preamble, c->ch, nonce);
    preamble_answer(answer, c->preamble);
    frame_parser_resync(&c->in, answer);
    send_preamble(c);
}

static void dial(struct link_chan *c)
{
    bool connecting;
    int fd = link_dial_start(&c->link->transport, c->ch, &connecting, NULL);

    if (fd < 0) {
        retry(c);
        return;
    }
    (void)pthread_mutex_lock(&c->lock);
    c->fd = fd;
    c->watch_out = connecting;
    c->src = loop_add_fd(c->loop, fd, connecting ? EPOLLOUT : EPOLLIN, on_fd, c, NULL);
    (void)pthread_mutex_unlock(&c->lock);
    if (c->src == NULL) {
        disconnect(c);
        retry(c);
        return;
    }
    c->connecting = connecting;
    if (!connecting)
        connected(c);
}

static void on_timer(struct loop_source *src, void *arg)
{
    struct link_chan *c = arg;
    bool waiting;

    (void)src;
    (void)pthread_mutex_lock(&c->lock);
    waiting = c->fd >= 0 && !c->synced && !c->connecting;
    (void)pthread_mutex_unlock(&c->lock);
    if (c->fd < 0)
        dial(c);
    else if (waiting)
        send_preamble(c);
}

void link_chan_start(struct link_chan *c)
{
    auto_err struct err err = ERR_INIT;

    if (c->stopped)
        return;
    c->timer = loop_add_timer(c->loop, -1, on_timer, c, &err);
    if (c->timer == NULL)
        link_broken(c->link, err_msg(&err));
    else
        dial(c);
}

void link_chan_stop(struct link_chan *c)
{
    if (c->stopped)
        return;
    (void)pthread_mutex_lock(&c->lock);
    c->stopped = true;
    (void)pthread_mutex_unlock(&c->lock);
    disconnect(c);
    loop_remove(take(c->timer));
}

/* --- in --- */

int link_chan_junk(struct link_chan *c, struct err *err)
{
    int64_t now = mono_ns();

    /* Late answers and data on their way when a stream was closed are few. */
    if (now - c->junk_since > 1000000000) {
        c->junk_since = now;
        c->junk = 0;
    }
    if (++c->junk > LIMIT_LINK_JUNK)
        return err_set(err, ERR_DATA_LOSS, "flood of frames that belong to nothing");
    return 0;
}

static void synced(struct link_chan *c)
{
    (void)pthread_mutex_lock(&c->lock);
    c->synced = true;
    (void)pthread_mutex_unlock(&c->lock);
    c->backoff_ns = BACKOFF_FIRST_NS;
    (void)loop_set_timer(c->timer, -1);
    c->ops->up(c->link);
}

static void parse(struct link_chan *c)
{
    auto_err struct err err = ERR_INIT;
    struct frame f;

    while (!c->stopped && !atomic_load(&c->link->ended)) {
        switch (frame_parser_next(&c->in, &f)) {
        case PARSE_MORE:
        case PARSE_PREAMBLE: /* not on this side */
            return;
        case PARSE_SYNCED:
            synced(c);
            break;
        case PARSE_FRAME:
            if (c->ops->frame(c->link, &f, &err) < 0)
                link_broken(c->link, err_msg(&err));
            break;
        case PARSE_BROKEN:
            link_broken(c->link, "the guest sent something that is no frame");
            break;
        }
    }
}

static void account_stale(struct link_chan *c, size_t n)
{
    if (!c->in.scanning)
        return;
    c->stale += n;
    if (c->stale > LIMIT_LINK_STALE)
        link_broken(c->link, "the guest sends without ever answering the preamble");
}

void link_chan_input(struct link_chan *c, const void *data, size_t len)
{
    const uint8_t *from = data;

    while (len > 0) {
        size_t n;
        void *to = frame_parser_room(&c->in, &n);

        if (to == NULL)
            return;
        if (n > len)
            n = len;
        memcpy(to, from, n);
        frame_parser_fed(&c->in, n);
        from += n;
        len -= n;
        account_stale(c, n);
        parse(c);
    }
}

/* Returns false when there is nothing more to read now. */
static bool read_some(struct link_chan *c)
{
    size_t size;
    void *to = frame_parser_room(&c->in, &size);
    ssize_t n;

    if (to == NULL) { /* out of memory: this connection cannot go on, the next one may */
        lost(c);
        return false;
    }
    n = recv(c->fd, to, size, 0);
    if (n > 0) {
        frame_parser_fed(&c->in, (size_t)n);
        account_stale(c, (size_t)n);
        parse(c);
        return (size_t)n == size;
    }
    if (n < 0 && errno == EINTR)
        return true;
    if (n == 0 || errno != EAGAIN)
        lost(c);
    return false;
}

static void finish_connect(struct link_chan *c)
{
    int so_error = 0;
    socklen_t len = sizeof(so_error);

    if (getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &so_error, &len) < 0 || so_error != 0) {
        disconnect(c);
        retry(c);
        return;
    }
    (void)pthread_mutex_lock(&c->lock);
    watch_out(c, false);
    (void)pthread_mutex_unlock(&c->lock);
    connected(c);
}

static void on_fd(struct loop_source *src, uint32_t events, void *arg)
{
    struct link_chan *c = arg;
    struct link *l = c->link;

    if (c->connecting) {
        finish_connect(c);
        return;
    }
    /* A callback may close the link and drop the last reference to it. */
    link_mem_ref(l);
    if (events & EPOLLOUT) {
        (void)pthread_mutex_lock(&c->lock);
        watch_out(c, false);
        link_chan_flush(c);
        (void)pthread_mutex_unlock(&c->lock);
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        for (int i = 0; i < READS_PER_EVENT && c->src == src; i++)
            if (!read_some(c))
                break;
    }
    link_mem_unref(l);
}
