#include "sandbox/share_wire.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/limits.h"

#define AGAIN_MS 200 /* between two preambles without an answer */

void share_wire_init(struct share_wire *w, int fd)
{
    *w = (struct share_wire){.fd = fd,
                             .message = BUF_INIT(LIMIT_FS_MESSAGE),
                             .out = BUF_INIT(2 * LIMIT_FS_MESSAGE),
                             .flat = BUF_INIT(LIMIT_FS_MESSAGE)};
    frame_parser_init(&w->in, false, LIMIT_FS_FRAME);
}

void share_wire_clear(struct share_wire *w)
{
    frame_parser_clear(&w->in);
    buf_clear(&w->message);
    buf_clear(&w->out);
    buf_clear(&w->flat);
}

static int send_all(int fd, const void *data, size_t len)
{
    const char *p = data;
    while (len > 0) {
        ssize_t n = send(fd, p, len, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        p += n;
        len -= (size_t)n;
    }
    return 0;
}

/* 1: something came; 0: the other side hung up. */
static int receive(struct share_wire *w, struct err *err)
{
    size_t size;
    void *to = frame_parser_room(&w->in, &size);
    if (to == NULL)
        return err_sys(err, ENOMEM, "receive");
    for (;;) {
        ssize_t n = recv(w->fd, to, size, 0);
        if (n > 0) {
            frame_parser_fed(&w->in, (size_t)n);
            return 1;
        }
        if (n == 0 || errno == ECONNRESET)
            return 0;
        if (errno != EINTR)
            return err_sys(err, errno, "receive");
    }
}

int share_wire_sync(struct share_wire *w, struct err *err)
{
    uint8_t nonce[PREAMBLE_NONCE];
    uint8_t preamble[PREAMBLE_SIZE];
    uint8_t expected[PREAMBLE_SIZE];
    size_t stale = 0;
    if (getrandom(nonce, sizeof(nonce), 0) != (ssize_t)sizeof(nonce))
        return err_sys(err, errno, "random bytes");
    preamble_make(preamble, LINK_FS, nonce);
    preamble_answer(expected, preamble);
    frame_parser_resync(&w->in, expected);
    for (bool say = true; stale <= LIMIT_LINK_STALE;) {
        if (say && send_all(w->fd, preamble, sizeof(preamble)) < 0)
            return err_sys(err, errno, "send the preamble");
        struct pollfd p = {.fd = w->fd, .events = POLLIN};
        int ready = poll(&p, 1, AGAIN_MS);
        say = ready == 0;
        if (ready <= 0)
            continue;
        int r = receive(w, err);
        if (r < 0)
            return -1;
        if (r == 0)
            return err_set(err, ERR_UNAVAILABLE, "the vm hung up");
        stale += KiB(4);
        struct frame f;
        if (frame_parser_next(&w->in, &f) == PARSE_SYNCED)
            return 0;
    }
    return err_set(err, ERR_DATA_LOSS, "no answer to the preamble among what the guest sends");
}

static int piece(struct share_wire *w, const struct frame *f, struct err *err)
{
    if (w->message.len > 0 && f->stream != w->volume)
        return err_set(err, ERR_DATA_LOSS, "pieces of two messages mix");
    w->volume = f->stream;
    w->unanswered = (f->flags & FRAME_FLAG_UNANSWERED) != 0;
    if (f->len == 0 || buf_append(&w->message, f->payload, f->len) < 0)
        return err_set(err, ERR_DATA_LOSS, "a piece of %zu bytes after %zu", f->len,
                       w->message.len);
    return (f->flags & FRAME_FLAG_END) != 0;
}

/* 1: *event is set; 0: nothing to tell yet. */
static int take_frame(struct share_wire *w, const struct frame *f, enum share_event *event,
                      uint32_t *volume, struct err *err)
{
    *volume = f->stream;
    if (f->type == FRAME_FS_DATA) {
        *event = SHARE_MESSAGE;
        return piece(w, f, err);
    }
    if (f->type != FRAME_FS_CLOSE)
        return err_set(err, ERR_DATA_LOSS, "a frame of type %u", f->type);
    *event = SHARE_CLOSED;
    return 1;
}

enum share_event share_wire_next(struct share_wire *w, uint32_t *volume, struct err *err)
{
    struct frame f;
    /* what was handed out by the last call is done with */
    if (w->message.len > 0)
        buf_reset(&w->message);
    for (;;) {
        enum share_event event = SHARE_BROKEN;
        int r = 1;
        switch (frame_parser_next(&w->in, &f)) {
        case PARSE_FRAME:
            r = take_frame(w, &f, &event, volume, err);
            if (r != 0)
                return r < 0 ? SHARE_BROKEN : event;
            break;
        case PARSE_MORE:
            r = receive(w, err);
            if (r <= 0)
                return r < 0 ? SHARE_BROKEN : SHARE_END;
            break;
        case PARSE_SYNCED: /* the answer to a preamble that was said twice */
            break;
        case PARSE_PREAMBLE:
        case PARSE_BROKEN:
        default:
            (void)err_set(err, ERR_DATA_LOSS, "no frame");
            return SHARE_BROKEN;
        }
    }
}

int share_wire_send(struct share_wire *w, uint32_t volume, const struct iovec *iov, int n)
{
    buf_reset(&w->flat);
    buf_reset(&w->out);
    for (int i = 0; i < n; i++) {
        if (buf_append(&w->flat, iov[i].iov_base, iov[i].iov_len) < 0)
            return -1;
    }
    for (size_t at = 0; at < w->flat.len;) {
        size_t len = w->flat.len - at;
        if (len > LIMIT_FS_FRAME)
            len = LIMIT_FS_FRAME;
        /* a file that holds a preamble must not look like a new connection */
        len = preamble_safe_len(w->flat.data + at, len);
        bool last = at + len == w->flat.len;
        if (frame_append(&w->out, volume, FRAME_FS_DATA, last ? FRAME_FLAG_END : 0,
                         w->flat.data + at, len) < 0)
            return -1;
        at += len;
    }
    return send_all(w->fd, w->out.data, w->out.len);
}
