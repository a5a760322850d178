#include "cri/streaming/conn.h"

#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"

#define READ_SIZE KiB(64)
#define FRAME_SIZE KiB(32) /* of a DATA frame, as Go's clients have it */
/* Data is framed while less than this waits for the socket; beyond the second mark the client must
 * read its answers before it may say more. */
#define OUT_MARK KiB(128)
#define OUT_FULL KiB(384)
#define IN_MARK KiB(128)

struct conn {
    int fd, wake_fd;
    struct mux *mux;
    const struct service *service;
    struct cancel *stop;
    int64_t idle_ns, active;
    struct buf out;
    size_t out_at;
    char *buffer;
    struct buf extra;
    bool gone, closing, aborted, peer_closing, said_goodbye;
    int64_t linger_end;

    pthread_mutex_t lock;
    bool woken;
    TAILQ_HEAD(, lane) lanes; /* changed by the connection's thread only */
    size_t n_lanes;
};

struct conn *conn_new(int fd, const void *extra, size_t len, struct mux *mux, int64_t idle_ns,
                      struct cancel *stop, struct err *err)
{
    struct conn *c = xcalloc(1, sizeof(*c));
    (void)pthread_mutex_init(&c->lock, NULL);
    TAILQ_INIT(&c->lanes);
    c->fd = fd;
    c->mux = mux;
    mux->conn = c;
    c->idle_ns = idle_ns;
    c->stop = stop;
    c->out = (struct buf)BUF_INIT(MiB(1));
    c->extra = (struct buf)BUF_INIT(MiB(1));
    c->buffer = xcalloc(1, READ_SIZE);
    c->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int flags = fcntl(fd, F_GETFL);
    if (c->wake_fd < 0 || flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
        (len > 0 && buf_append(&c->extra, extra, len) < 0)) {
        (void)err_sys(err, errno, "streaming connection");
        conn_free(c);
        return NULL;
    }
    return c;
}

static void lane_free(struct lane *l)
{
    buf_clear(&l->in);
    buf_clear(&l->out);
    buf_clear(&l->turn);
    (void)pthread_cond_destroy(&l->in_cond);
    free(l);
}

void conn_free(struct conn *c)
{
    struct lane *l;
    if (c == NULL)
        return;
    while ((l = TAILQ_FIRST(&c->lanes)) != NULL)
        conn_drop(c, l);
    c->mux->free(c->mux);
    cleanup_closep(&c->wake_fd);
    buf_clear(&c->out);
    buf_clear(&c->extra);
    (void)pthread_mutex_destroy(&c->lock);
    free(c->buffer);
    free(c);
}

void conn_drop(struct conn *c, struct lane *l)
{
    (void)pthread_mutex_lock(&c->lock);
    TAILQ_REMOVE(&c->lanes, l, link);
    c->n_lanes--;
    (void)pthread_mutex_unlock(&c->lock);
    lane_free(l);
}

/* Under the lock. */
static void wake(struct conn *c)
{
    if (!c->woken)
        (void)eventfd_write(c->wake_fd, 1);
    c->woken = true;
}

void conn_wake(struct conn *c)
{
    (void)pthread_mutex_lock(&c->lock);
    wake(c);
    (void)pthread_mutex_unlock(&c->lock);
}

void conn_close(struct conn *c)
{
    c->closing = true;
}

void conn_abort(struct conn *c)
{
    c->aborted = true;
}

bool conn_gone(const struct conn *c)
{
    return c->gone;
}

bool conn_stopping(const struct conn *c)
{
    return cancel_fired(c->stop);
}

struct buf *conn_out(struct conn *c)
{
    return &c->out;
}

void conn_peer_closing(struct conn *c)
{
    c->peer_closing = true;
}

/* --- lanes --- */

struct lane *conn_open_lane(struct conn *c, uint32_t id, enum lane_kind kind, uint32_t port,
                            int64_t request)
{
    if (c->n_lanes >= LIMIT_STREAM_LANES)
        return NULL;
    struct lane *l = xcalloc(1, sizeof(*l));
    l->conn = c;
    l->id = id;
    l->kind = kind;
    l->port = port;
    l->request = request;
    l->in = (struct buf)BUF_INIT(MiB(1));
    l->out = (struct buf)BUF_INIT(LIMIT_IO_WINDOW + LIMIT_IO_FRAME);
    l->turn = (struct buf)BUF_INIT(LIMIT_IO_WINDOW + LIMIT_IO_FRAME);
    (void)pthread_cond_init(&l->in_cond, NULL);
    (void)pthread_mutex_lock(&c->lock);
    TAILQ_INSERT_TAIL(&c->lanes, l, link);
    c->n_lanes++;
    (void)pthread_mutex_unlock(&c->lock);
    if (c->service->open(c->service->arg, l) < 0) {
        conn_drop(c, l);
        return NULL;
    }
    return l;
}

struct lane *conn_find_lane(struct conn *c, uint32_t id)
{
    struct lane *l;
    TAILQ_FOREACH(l, &c->lanes, link)
    {
        if (l->id == id)
            return l;
    }
    return NULL;
}

void conn_lane_in(struct lane *l, const void *data, size_t len)
{
    (void)pthread_mutex_lock(&l->conn->lock);
    /* more than IN_MARK plus one read cannot be here: then nothing is read */
    if (!l->in_dead && !l->in_eof && buf_append(&l->in, data, len) < 0)
        l->in_dead = true;
    (void)pthread_cond_signal(&l->in_cond);
    (void)pthread_mutex_unlock(&l->conn->lock);
}

void conn_lane_in_eof(struct lane *l)
{
    (void)pthread_mutex_lock(&l->conn->lock);
    l->in_eof = true;
    (void)pthread_cond_signal(&l->in_cond);
    (void)pthread_mutex_unlock(&l->conn->lock);
}

void conn_lane_peer_reset(struct lane *l)
{
    (void)pthread_mutex_lock(&l->conn->lock);
    l->peer_reset = l->in_eof = true;
    (void)pthread_cond_signal(&l->in_cond);
    (void)pthread_mutex_unlock(&l->conn->lock);
}

bool lane_was_reset(struct lane *l)
{
    (void)pthread_mutex_lock(&l->conn->lock);
    bool reset = l->peer_reset;
    (void)pthread_mutex_unlock(&l->conn->lock);
    return reset;
}

int lane_put(struct lane *l, const void *data, size_t len)
{
    struct conn *c = l->conn;
    int rc = -1;
    (void)pthread_mutex_lock(&c->lock);
    if (!l->out_eof && l->out.len + len <= l->out.max)
        rc = len > 0 ? buf_append(&l->out, data, len) : 0;
    wake(c);
    (void)pthread_mutex_unlock(&c->lock);
    return rc;
}

void lane_end(struct lane *l)
{
    (void)pthread_mutex_lock(&l->conn->lock);
    l->out_eof = true;
    wake(l->conn);
    (void)pthread_mutex_unlock(&l->conn->lock);
}

void lane_reset(struct lane *l)
{
    (void)pthread_mutex_lock(&l->conn->lock);
    l->out_eof = l->out_reset = true;
    wake(l->conn);
    (void)pthread_mutex_unlock(&l->conn->lock);
}

/* Under the lock; see lane_poll(). */
static int take_in(struct lane *l, struct buf *into)
{
    if (l->in_dead)
        return -1;
    if (l->in.len == 0)
        return l->in_eof ? 0 : 2;
    bool was_full = l->in.len >= IN_MARK;
    struct buf empty = *into;
    *into = l->in;
    l->in = empty;
    if (was_full)
        wake(l->conn);
    return 1;
}

int lane_poll(struct lane *l, struct buf *into)
{
    (void)pthread_mutex_lock(&l->conn->lock);
    int rc = take_in(l, into);
    (void)pthread_mutex_unlock(&l->conn->lock);
    return rc;
}

int lane_take(struct lane *l, struct buf *into)
{
    int rc;
    (void)pthread_mutex_lock(&l->conn->lock);
    while ((rc = take_in(l, into)) == 2)
        (void)pthread_cond_wait(&l->in_cond, &l->conn->lock);
    (void)pthread_mutex_unlock(&l->conn->lock);
    return rc;
}

void lane_discard(struct lane *l)
{
    (void)pthread_mutex_lock(&l->conn->lock);
    l->in_dead = true;
    buf_reset(&l->in);
    (void)pthread_cond_broadcast(&l->in_cond);
    wake(l->conn);
    (void)pthread_mutex_unlock(&l->conn->lock);
}

/* --- the connection's thread --- */

static size_t out_left(const struct conn *c)
{
    return c->out.len - c->out_at;
}

static void lose(struct conn *c, const char *why)
{
    struct lane *l;
    if (c->gone)
        return;
    c->gone = true;
    (void)shutdown(c->fd, SHUT_RDWR); /* a session may outlive its client */
    log_debug("streaming client is gone", LOG_STR("reason", why));
    TAILQ_FOREACH(l, &c->lanes, link)
    conn_lane_peer_reset(l);
}

/* Gets what the lane's producers have put; true when there is something to frame or to end. */
static bool refill(struct conn *c, struct lane *l, bool *eof)
{
    (void)pthread_mutex_lock(&c->lock);
    if (l->turn_at == l->turn.len) {
        buf_reset(&l->turn);
        l->turn_at = 0;
        struct buf empty = l->turn;
        l->turn = l->out;
        empty.max = l->out.max;
        l->out = empty;
    }
    *eof = l->out_eof && l->out.len == 0;
    (void)pthread_mutex_unlock(&c->lock);
    return l->turn.len > l->turn_at || (*eof && !l->ended);
}

static void frame_one(struct conn *c, struct lane *l, bool eof)
{
    size_t n = l->turn.len - l->turn_at;
    bool mute = c->gone || l->peer_reset || l->ended;
    if (n > 0) {
        if (!mute) {
            n = n < FRAME_SIZE ? n : FRAME_SIZE;
            c->mux->frame(c->mux, l, l->turn.data + l->turn_at, n);
        }
        l->turn_at += n;
        l->sent += n;
        if (l->on_sent != NULL)
            l->on_sent(l->arg, l->sent);
    }
    if (eof && l->turn_at == l->turn.len && !l->ended) {
        if (!c->gone)
            c->mux->end(c->mux, l, l->out_reset);
        l->ended = true;
    }
}

/* Round robin over the lanes, one frame each; false when nothing is left to say. */
static bool fill(struct conn *c)
{
    bool more = true;
    while (more && out_left(c) < OUT_MARK) {
        struct lane *l;
        more = false;
        TAILQ_FOREACH(l, &c->lanes, link)
        {
            bool eof;
            if (!refill(c, l, &eof))
                continue;
            frame_one(c, l, eof);
            more = true;
        }
    }
    if (!buf_ok(&c->out))
        lose(c, "no memory");
    return more;
}

static void write_out(struct conn *c)
{
    while (!c->gone && out_left(c) > 0) {
        ssize_t n = send(c->fd, c->out.data + c->out_at, out_left(c), MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            break;
        if (n < 0) {
            lose(c, strerror(errno));
            break;
        }
        c->out_at += (size_t)n;
        c->active = mono_ns();
    }
    if (c->gone || c->out_at == c->out.len) {
        buf_reset(&c->out);
        c->out_at = 0;
    } else if (c->out_at > KiB(256)) {
        buf_consume(&c->out, c->out_at);
        c->out_at = 0;
    }
}

void conn_flush(struct conn *c)
{
    write_out(c);
}

static void feed(struct conn *c, const void *data, size_t len)
{
    auto_err struct err err = ERR_INIT;
    c->active = mono_ns();
    if (c->mux->feed(c->mux, data, len, &err) < 0)
        lose(c, err_msg(&err));
}

static void read_in(struct conn *c)
{
    ssize_t n = recv(c->fd, c->buffer, READ_SIZE, MSG_DONTWAIT);
    if (n > 0)
        feed(c, c->buffer, (size_t)n);
    else if (n == 0)
        lose(c, "end of connection");
    else if (errno != EINTR && errno != EAGAIN && errno != EWOULDBLOCK)
        lose(c, strerror(errno));
}

static bool may_read(struct conn *c)
{
    struct lane *l;
    bool full = out_left(c) >= OUT_FULL;
    (void)pthread_mutex_lock(&c->lock);
    TAILQ_FOREACH(l, &c->lanes, link)
    full = full || (!l->in_dead && l->in.len >= IN_MARK);
    (void)pthread_mutex_unlock(&c->lock);
    return !full && !c->gone;
}

static int timeout_until(int64_t at)
{
    if (at == 0)
        return -1;
    int64_t left = at - mono_ns();
    if (left <= 0)
        return 0;
    left = left / 1000000 + 1;
    return left > INT32_MAX ? INT32_MAX : (int)left;
}

static int64_t sooner(int64_t a, int64_t b)
{
    return a == 0 ? b : b == 0 || a < b ? a : b;
}

/* One look at everything. False when the connection is over. */
static bool turn(struct conn *c, int64_t *deadline)
{
    bool told = c->gone;
    *deadline = c->service->turn(c->service->arg);
    if (c->aborted)
        return false;
    bool more;
    do {
        more = fill(c);
        write_out(c);
    } while (more && (c->gone || out_left(c) < OUT_MARK));
    int64_t now = mono_ns();
    if (!c->gone && now - c->active >= c->idle_ns)
        lose(c, "idle for too long");
    if (!c->closing) {
        if (!c->gone)
            *deadline = sooner(*deadline, c->active + c->idle_ns);
        else if (!told)
            *deadline = now; /* lost behind the service's back: nothing else may wake us */
        return true;
    }
    if (c->linger_end == 0)
        c->linger_end = now + LIMIT_STREAM_LINGER_NS;
    if (c->gone || now >= c->linger_end)
        return false;
    *deadline = sooner(*deadline, c->linger_end);
    if (more || out_left(c) > 0)
        return true;
    if (!c->said_goodbye) {
        c->said_goodbye = true;
        c->mux->goodbye(c->mux);
        write_out(c);
    }
    return !c->peer_closing || out_left(c) > 0;
}

static void wait_for_news(struct conn *c, int64_t deadline)
{
    struct pollfd fds[] = {
        {.fd = c->wake_fd, .events = POLLIN},
        {.fd = c->gone ? -1 : c->fd,
         .events = (short)((may_read(c) ? POLLIN : 0) | (out_left(c) > 0 ? POLLOUT : 0))},
        {.fd = c->service->event_fd, .events = POLLIN},
        {.fd = conn_stopping(c) ? -1 : cancel_fd(c->stop), .events = POLLIN},
    };
    if (poll(fds, ARRAY_LEN(fds), timeout_until(deadline)) <= 0)
        return;
    if ((fds[0].revents & POLLIN) != 0) {
        eventfd_t n;
        (void)pthread_mutex_lock(&c->lock);
        (void)eventfd_read(c->wake_fd, &n);
        c->woken = false;
        (void)pthread_mutex_unlock(&c->lock);
    }
    if ((fds[1].revents & POLLIN) != 0)
        read_in(c);
    else if ((fds[1].revents & (POLLERR | POLLHUP)) != 0)
        lose(c, "connection was reset");
}

void conn_run(struct conn *c, const struct service *service)
{
    int64_t deadline = 0;
    c->service = service;
    c->active = mono_ns();
    c->mux->start(c->mux);
    if (c->extra.len > 0)
        feed(c, c->extra.data, c->extra.len);
    while (turn(c, &deadline))
        wait_for_news(c, deadline);
    if (!c->gone) {
        c->mux->farewell(c->mux);
        write_out(c);
    }
}
