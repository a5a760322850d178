#include "cri/ctl/stream.h"

#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/limits.h"
#include "base/str.h"
#include "cri/ctl/remote.h"
#include "cri/ctl/terminal.h"

#define PROTOCOL "v4.channel.k8s.io"
#define INPUT_SIZE KiB(32)

struct session {
    const struct stream_options *o;
    struct remote *r;
    uint32_t error, in, out, errout, resize; /* stream ids; 0: none */
    bool error_over, out_over, errout_over;
    struct buf status;
    bool input; /* there may be more of it */
    bool raw;
    struct detach keys;
    bool detached;
};

/* --- the status --- */

static int exit_code_of(const json_t *status, int *code)
{
    const json_t *causes = json_object_get(json_object_get(status, "details"), "causes");
    size_t i;
    json_t *cause;
    json_array_foreach(causes, i, cause)
    {
        uint64_t n;
        const char *reason = json_string_value(json_object_get(cause, "reason"));
        const char *text = json_string_value(json_object_get(cause, "message"));
        if (reason != NULL && text != NULL && strcmp(reason, "ExitCode") == 0 &&
            str_to_u64(text, &n) == 0 && n <= 255) {
            *code = (int)n;
            return 0;
        }
    }
    return -1;
}

int stream_status(const char *json, size_t len, int *code, struct err *err)
{
    json_auto_t *j = json_loadb(json, len, 0, NULL);
    const char *status = json_string_value(json_object_get(j, "status"));
    const char *reason = json_string_value(json_object_get(j, "reason"));
    const char *message = json_string_value(json_object_get(j, "message"));
    if (status == NULL)
        return err_set(err, ERR_DATA_LOSS, "the session ended without a status");
    if (strcmp(status, "Success") == 0)
        return STREAM_SUCCESS;
    if (reason != NULL && strcmp(reason, "NonZeroExitCode") == 0 && exit_code_of(j, code) == 0)
        return STREAM_EXITED;
    return err_set(err, ERR_INTERNAL, "%s", message != NULL ? message : "it failed, unexplained");
}

/* --- from the daemon --- */

/* Also to a descriptor that somebody else has set to not wait. */
static int write_all(int fd, const char *p, size_t len, struct err *err)
{
    while (len > 0) {
        ssize_t n = write(fd, p, len);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            struct pollfd f = {.fd = fd, .events = POLLOUT};
            (void)poll(&f, 1, -1);
        } else if (n < 0 && errno != EINTR) {
            return err_sys(err, errno, fd == STDOUT_FILENO ? "write to stdout" : "write to stderr");
        }
        p += n > 0 ? n : 0;
        len -= n > 0 ? (size_t)n : 0;
    }
    return 0;
}

static int on_data(void *arg, uint32_t id, const void *data, size_t len, bool end, struct err *err)
{
    struct session *s = arg;
    if (id == s->error) {
        s->error_over |= end;
        return len == 0 || buf_append(&s->status, data, len) == 0
                   ? 0
                   : err_set(err, ERR_DATA_LOSS, "the session's status is too long");
    }
    if (id == s->out) {
        s->out_over |= end;
        return write_all(STDOUT_FILENO, data, len, err);
    }
    if (id == s->errout) {
        s->errout_over |= end;
        return write_all(STDERR_FILENO, data, len, err);
    }
    if (id == s->in && end)
        s->input = false; /* nobody reads it any more */
    return 0;
}

static bool over(const struct session *s)
{
    return s->error_over && s->out_over && (s->errout == 0 || s->errout_over);
}

/* --- to the daemon --- */

static uint32_t open_stream(struct session *s, const char *type, bool fin)
{
    const struct spdy_header h = {"streamtype", type};
    return remote_stream(s->r, fin, &h, 1);
}

static void open_streams(struct session *s)
{
    s->error = open_stream(s, "error", true);
    if (s->o->in)
        s->in = open_stream(s, "stdin", false);
    s->out = open_stream(s, "stdout", true);
    if (s->o->tty)
        s->resize = open_stream(s, "resize", false);
    else
        s->errout = open_stream(s, "stderr", true);
}

static void tell_size(struct session *s)
{
    char text[64];
    uint16_t columns;
    uint16_t rows;
    if (!terminal_size(STDOUT_FILENO, &columns, &rows) &&
        !terminal_size(STDIN_FILENO, &columns, &rows))
        return;
    int n = snprintf(text, sizeof(text), "{\"Width\":%u,\"Height\":%u}\n", columns, rows);
    remote_send(s->r, s->resize, text, (size_t)n, false);
}

static int take_input(struct session *s, struct err *err)
{
    char bytes[INPUT_SIZE];
    char passed[INPUT_SIZE + 1];
    ssize_t n = read(STDIN_FILENO, bytes, sizeof(bytes));
    if (n < 0 && (errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK))
        return 0;
    if (n < 0 && !(errno == EIO && s->o->tty)) /* EIO: the terminal is gone */
        return err_sys(err, errno, "read stdin");
    if (n <= 0) {
        s->input = false;
        remote_send(s->r, s->in, NULL, 0, true);
        return 0;
    }
    if (!s->o->detachable) {
        remote_send(s->r, s->in, bytes, (size_t)n, false);
        return 0;
    }
    size_t left = detach_filter(&s->keys, bytes, (size_t)n, passed, &s->detached);
    if (left > 0)
        remote_send(s->r, s->in, passed, left, false);
    return 0;
}

/* --- together --- */

static int turn(struct session *s, int size_fd, int *more, struct err *err)
{
    bool input = s->input && remote_queued(s->r) < REMOTE_FULL;
    struct pollfd fds[] = {
        {.fd = remote_fd(s->r), .events = remote_events(s->r, true)},
        {.fd = input ? STDIN_FILENO : -1, .events = POLLIN},
        {.fd = size_fd, .events = POLLIN},
    };
    int n = poll(fds, ARRAY_LEN(fds), *more > 0 ? 0 : REMOTE_PING_MS);
    if (n < 0 && errno != EINTR)
        return err_sys(err, errno, "poll");
    if (n == 0 && *more == 0)
        remote_ping(s->r);
    eventfd_t resized;
    if (n > 0 && (fds[2].revents & POLLIN) != 0 && eventfd_read(size_fd, &resized) == 0)
        tell_size(s);
    if (n > 0 && fds[1].revents != 0 && take_input(s, err) < 0)
        return -1;
    *more = remote_turn(s->r, true, err);
    return *more < 0 ? -1 : 0;
}

static int run(struct session *s, int *code, struct err *err)
{
    int size_fd = -1;
    int more = 0;
    open_streams(s);
    if (s->o->tty) {
        size_fd = terminal_watch_size(err);
        if (size_fd < 0)
            return -1;
        tell_size(s);
    }
    if (s->raw && terminal_raw(STDIN_FILENO, err) < 0)
        return -1;
    while (!over(s) && !s->detached) {
        if (turn(s, size_fd, &more, err) < 0)
            return -1;
    }
    return s->detached ? STREAM_DETACHED
                       : stream_status(buf_str(&s->status), s->status.len, code, err);
}

int stream_check(const struct stream_options *o, struct err *err)
{
    if (o->in && fcntl(STDIN_FILENO, F_GETFD) < 0)
        return err_set(err, ERR_INVALID, "-i: standard input is closed");
    if (o->in && o->tty && isatty(STDIN_FILENO) == 0)
        return err_set(err, ERR_INVALID,
                       "-t: standard input is no terminal; use -i alone for a pipe or a file");
    return 0;
}

int stream_run(const char *url, const struct stream_options *o, int *code, struct err *err)
{
    struct session s = {
        .o = o, .status = BUF_INIT(KiB(64)), .input = o->in, .raw = o->in && o->tty};
    const struct remote_callbacks cb = {.data = on_data, .arg = &s};
    int rc = -1;
    s.r = remote_open(url, PROTOCOL, &cb, err);
    if (s.r != NULL)
        rc = run(&s, code, err);
    terminal_restore();
    remote_close(s.r);
    buf_clear(&s.status);
    return rc;
}
