#include "cri/ctl/remote.h"

#include <poll.h>

#include "base/limits.h"
#include "base/str.h"
#include "cri/ctl/upgrade.h"

#define READ_SIZE KiB(64)
#define FRAME_SIZE KiB(32)

struct remote {
    struct upgrade *up;
    struct remote_callbacks cb;
    struct spdy_reader *reader;
    struct spdy_writer *writer;
    struct buf out;
    size_t out_at;
    uint32_t next_id, next_ping;
    char *buffer;
};

static int on_data(void *arg, uint32_t id, const void *data, size_t len, bool fin, struct err *err)
{
    struct remote *r = arg;
    return r->cb.data(r->cb.arg, id, data, len, fin, err);
}

static int on_rst(void *arg, uint32_t id, uint32_t status, struct err *err)
{
    (void)status;
    return on_data(arg, id, NULL, 0, true, err);
}

static int on_ping(void *arg, uint32_t id, struct err *err)
{
    struct remote *r = arg;
    (void)err;
    return (id & 1) == 0 ? spdy_append_ping(&r->out, id) : 0; /* an odd one answers ours */
}

struct remote *remote_open(const char *url, const char *protocol, const struct remote_callbacks *cb,
                           struct err *err)
{
    const struct spdy_callbacks spdy = {.data = on_data, .rst_stream = on_rst, .ping = on_ping};
    auto_remote struct remote *r = xcalloc(1, sizeof(*r));
    struct spdy_callbacks own = spdy;
    own.arg = r;
    r->cb = *cb;
    r->out = (struct buf)BUF_INIT(MiB(1));
    r->next_id = r->next_ping = 1;
    r->buffer = xcalloc(1, READ_SIZE);
    r->reader = spdy_reader_new(&own);
    r->writer = spdy_writer_new();
    if (r->writer == NULL) {
        (void)err_set(err, ERR_EXHAUSTED, "no memory for SPDY");
        return NULL;
    }
    r->up = upgrade_open(url, protocol, err);
    return r->up != NULL ? take(r) : NULL;
}

void remote_close(struct remote *r)
{
    if (r == NULL)
        return;
    if (r->up != NULL) {
        (void)spdy_append_goaway(&r->out, 0);
        (void)remote_turn(r, false, NULL);
    }
    upgrade_close(r->up);
    spdy_reader_free(r->reader);
    spdy_writer_free(r->writer);
    buf_clear(&r->out);
    free(r->buffer);
    free(r);
}

uint32_t remote_stream(struct remote *r, bool fin, const struct spdy_header *headers, size_t n)
{
    uint32_t id = r->next_id;
    r->next_id += 2;
    (void)spdy_append_syn(r->writer, &r->out, id, fin, headers, n);
    return id;
}

void remote_send(struct remote *r, uint32_t id, const void *data, size_t len, bool fin)
{
    const char *p = data;
    do {
        size_t n = len < FRAME_SIZE ? len : FRAME_SIZE;
        (void)spdy_append_data(&r->out, id, p, n, fin && n == len);
        p = n > 0 ? p + n : p;
        len -= n;
    } while (len > 0);
}

void remote_ping(struct remote *r)
{
    (void)spdy_append_ping(&r->out, r->next_ping);
    r->next_ping += 2;
}

size_t remote_queued(const struct remote *r)
{
    return r->out.len - r->out_at;
}

int remote_fd(const struct remote *r)
{
    return upgrade_fd(r->up);
}

short remote_events(const struct remote *r, bool read)
{
    return (short)((read ? POLLIN : 0) | (remote_queued(r) > 0 ? POLLOUT : 0));
}

static int write_out(struct remote *r, struct err *err)
{
    if (!buf_ok(&r->out))
        return err_set(err, ERR_EXHAUSTED, "too much waits for the daemon");
    while (remote_queued(r) > 0) {
        ssize_t n = upgrade_write(r->up, r->out.data + r->out_at, remote_queued(r), err);
        if (n <= 0)
            return (int)n;
        r->out_at += (size_t)n;
    }
    buf_reset(&r->out);
    r->out_at = 0;
    return 0;
}

int remote_turn(struct remote *r, bool read, struct err *err)
{
    if (write_out(r, err) < 0)
        return -1;
    if (r->out_at >= REMOTE_FULL) {
        buf_consume(&r->out, r->out_at);
        r->out_at = 0;
    }
    if (!read)
        return 0;
    ssize_t n = upgrade_read(r->up, r->buffer, READ_SIZE, err);
    if (n < 0 || (n > 0 && spdy_feed(r->reader, r->buffer, (size_t)n, err) < 0))
        return -1;
    return n > 0;
}
