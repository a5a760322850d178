#include "cri/ctl/forward.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/buf.h"
#include "base/limits.h"
#include "base/str.h"
#include "cri/ctl/remote.h"

#define PROTOCOL "portforward.k8s.io"
#define READ_SIZE KiB(32)
#define LOCAL_FULL KiB(128) /* waiting for the local reader: the daemon's is not read meanwhile */

struct forward {
    int fd;
    struct remote *r;
    uint32_t error, data; /* stream ids */
    struct buf failure;
    bool error_over, remote_over, said_eof;
    bool local_over;
    struct buf in; /* for the local side */
    size_t in_at;
};

static int parse_port(const char *text, bool any, uint16_t *out)
{
    uint64_t v = 0;
    if (text[0] == '\0')
        return any ? 0 : -1;
    if (str_to_u64(text, &v) < 0 || v > UINT16_MAX || (v == 0 && !any))
        return -1;
    *out = (uint16_t)v;
    return 0;
}

int forward_parse(const char *text, struct forward_ports *out, struct err *err)
{
    auto_free char *copy = xstrdup(text);
    char *colon = strchr(copy, ':');
    *out = (struct forward_ports){0};
    if (colon != NULL)
        *colon = '\0';
    int rc = parse_port(copy, colon != NULL, &out->local);
    if (rc == 0)
        rc = parse_port(colon != NULL ? colon + 1 : copy, false, &out->remote);
    return rc == 0
               ? 0
               : err_set(err, ERR_INVALID, "`%.50s` is not LOCAL:REMOTE, :REMOTE or PORT", text);
}

static size_t waiting(const struct forward *f)
{
    return f->in.len - f->in_at;
}

static int on_data(void *arg, uint32_t id, const void *data, size_t len, bool end, struct err *err)
{
    struct forward *f = arg;
    if (id == f->error) {
        f->error_over |= end;
        /* what does not fit is only the tail of a long complaint */
        if (len > 0 && f->failure.len + len < f->failure.max)
            (void)buf_append(&f->failure, data, len);
    } else if (id == f->data) {
        f->remote_over |= end;
        if (len > 0 && buf_append(&f->in, data, len) < 0)
            return err_set(err, ERR_EXHAUSTED, "the daemon sends more than was asked for");
    }
    return 0;
}

static void open_streams(struct forward *f, uint16_t port)
{
    char number[8];
    struct spdy_header h[] = {{"streamtype", "error"}, {"port", number}, {"requestid", "0"}};
    (void)snprintf(number, sizeof(number), "%u", port);
    f->error = remote_stream(f->r, true, h, ARRAY_LEN(h));
    h[0].value = "data";
    f->data = remote_stream(f->r, false, h, ARRAY_LEN(h));
}

static int read_local(struct forward *f, struct err *err)
{
    char bytes[READ_SIZE];
    ssize_t n = recv(f->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
    if (n < 0 && (errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK))
        return 0;
    if (n < 0)
        return err_set(err, ERR_CANCELLED, "the local connection broke: %s", strerror(errno));
    f->local_over = n == 0;
    remote_send(f->r, f->data, bytes, (size_t)n, n == 0);
    return 0;
}

/* Also its end, once everything before it is written. */
static int write_local(struct forward *f, struct err *err)
{
    while (waiting(f) > 0) {
        ssize_t n = send(f->fd, f->in.data + f->in_at, waiting(f), MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return 0;
        if (n < 0)
            return err_set(err, ERR_CANCELLED, "the local connection broke: %s", strerror(errno));
        f->in_at += (size_t)n;
    }
    buf_reset(&f->in);
    f->in_at = 0;
    if (f->remote_over && !f->said_eof && f->failure.len == 0) {
        f->said_eof = true;
        (void)shutdown(f->fd, SHUT_WR);
    }
    return 0;
}

static int turn(struct forward *f, struct cancel *stop, int *more, struct err *err)
{
    bool read = waiting(f) < LOCAL_FULL;
    bool send = !f->local_over && remote_queued(f->r) < REMOTE_FULL;
    struct pollfd fds[] = {
        {.fd = remote_fd(f->r), .events = remote_events(f->r, read)},
        {.fd = send || waiting(f) > 0 ? f->fd : -1,
         .events = (short)((send ? POLLIN : 0) | (waiting(f) > 0 ? POLLOUT : 0))},
        {.fd = cancel_fd(stop), .events = POLLIN},
    };
    int n = poll(fds, ARRAY_LEN(fds), *more > 0 && read ? 0 : REMOTE_PING_MS);
    if (n < 0 && errno != EINTR)
        return err_sys(err, errno, "poll");
    if (n == 0 && (*more == 0 || !read))
        remote_ping(f->r);
    if (n > 0 && send && (fds[1].revents & (POLLIN | POLLHUP | POLLERR)) != 0 &&
        read_local(f, err) < 0)
        return -1;
    int rc = remote_turn(f->r, read, err);
    if (rc < 0 || write_local(f, err) < 0)
        return -1;
    if (read)
        *more = rc;
    return cancel_check(stop, err);
}

/* An error ends it at once; else both directions have to. */
static bool over(const struct forward *f)
{
    return (f->error_over && f->failure.len > 0) ||
           (f->remote_over && f->said_eof && f->local_over && waiting(f) == 0 &&
            remote_queued(f->r) == 0);
}

int forward_run(int fd, const char *url, uint16_t port, struct cancel *stop, struct err *err)
{
    struct forward f = {.fd = fd, .failure = BUF_INIT(KiB(8)), .in = BUF_INIT(MiB(1))};
    const struct remote_callbacks cb = {.data = on_data, .arg = &f};
    int rc = -1;
    int more = 0;
    f.r = remote_open(url, PROTOCOL, &cb, err);
    if (f.r != NULL) {
        open_streams(&f, port);
        do
            rc = turn(&f, stop, &more, err);
        while (rc == 0 && !over(&f));
    }
    if (rc == 0 && f.failure.len > 0)
        rc = err_set(err, ERR_UNAVAILABLE, "%s", buf_str(&f.failure));
    remote_close(f.r);
    buf_clear(&f.failure);
    buf_clear(&f.in);
    return rc;
}
