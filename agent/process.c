#include "agent/process.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"

#define DRAIN_NS INT64_C(2000000000)

struct process *process_new(struct loop *loop, struct stdio *io, const char *exec_id, void *owner)
{
    struct process *p = xcalloc(1, sizeof(*p));

    p->loop = loop;
    p->io = io;
    p->exec_id = xstrdup(exec_id);
    p->owner = owner;
    p->tty_fd = -1;
    p->trace_fd = -1;
    p->trace = (struct buf)BUF_INIT(LIMIT_GUEST_ERROR);
    for (int i = 0; i < 2; i++)
        p->out[i].p = p;
    return p;
}

static void close_trace(struct process *p)
{
    loop_remove(take(p->trace_source));
    cleanup_closep(&p->trace_fd);
}

void process_free(struct process *p)
{
    if (p == NULL)
        return;
    close_trace(p);
    loop_remove(p->drain_timer);
    stdio_remove(p->io, p->stdin_id);
    for (int i = 0; i < 2; i++)
        stdio_remove(p->io, p->out[i].id);
    cleanup_closep(&p->tty_fd);
    op_abandon(p->op);
    buf_clear(&p->trace);
    free(p->exec_id);
    free(p);
}

static void check_end(struct process *p)
{
    if (!p->reaped || p->on_end == NULL || p->out[0].open || p->out[1].open)
        return;
    loop_remove(take(p->drain_timer));
    p->state = PROCESS_EXITED;
    process_fn fn = p->on_end;
    p->on_end = NULL;
    fn(p, p->arg);
}

static void output_eof(void *arg)
{
    struct process_output *o = arg;

    o->open = false;
    check_end(o->p);
}

static int add_output(struct process *p, int which, int *fd, struct err *err)
{
    struct process_output *o = &p->out[which];

    o->id = stdio_add_output(p->io, take_fd(fd), output_eof, o, err);
    o->open = o->id != 0;
    return o->open ? 0 : -1;
}

int process_open_pipes(struct process *p, bool with_stdin, int child_fds[3], struct err *err)
{
    for (int i = 0; i < 3; i++)
        child_fds[i] = -1;
    for (int i = 0; i < 3; i++) {
        int fds[2];
        if (i == 0 && !with_stdin)
            continue;
        if (pipe2(fds, O_CLOEXEC) < 0)
            return err_sys(err, errno, "pipe");
        auto_close int ours = i == 0 ? fds[1] : fds[0];
        child_fds[i] = i == 0 ? fds[0] : fds[1];
        if (i == 0) {
            p->stdin_id = stdio_add_input(p->io, take_fd(&ours), false, err);
            if (p->stdin_id == 0)
                return -1;
        } else if (add_output(p, i - 1, &ours, err) < 0) {
            return -1;
        }
    }
    return 0;
}

int process_attach_tty(struct process *p, int fd, bool with_stdin, uint32_t rows, uint32_t cols,
                       struct err *err)
{
    auto_close int master = fd;

    p->tty = true;
    p->tty_fd = fcntl(master, F_DUPFD_CLOEXEC, 0);
    if (p->tty_fd < 0)
        return err_sys(err, errno, "terminal");
    if (rows != 0 && cols != 0)
        (void)process_resize(p, rows, cols, NULL);
    if (with_stdin) {
        int in = fcntl(master, F_DUPFD_CLOEXEC, 0);
        if (in < 0)
            return err_sys(err, errno, "terminal");
        p->stdin_id = stdio_add_input(p->io, in, true, err);
        if (p->stdin_id == 0)
            return -1;
    }
    return add_output(p, 0, &master, err);
}

int process_resize(struct process *p, uint32_t rows, uint32_t cols, struct err *err)
{
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)cols};

    if (rows > UINT16_MAX || cols > UINT16_MAX)
        return err_set(err, ERR_INVALID, "terminal size %ux%u", rows, cols);
    if (p->tty_fd < 0)
        return err_set(err, ERR_PRECONDITION, "the process has no terminal");
    if (ioctl(p->tty_fd, TIOCSWINSZ, &size) < 0)
        return err_sys(err, errno, "terminal size");
    return 0;
}

void process_set_trace(struct process *p, int fd)
{
    p->trace_fd = fd;
}

/* True at the end of the pipe. Text beyond the buffer's limit is dropped. */
static bool read_trace(struct process *p)
{
    char chunk[1024];

    while (p->trace_fd >= 0) {
        ssize_t n = read(p->trace_fd, chunk, sizeof(chunk));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return false;
        if (n <= 0)
            break;
        (void)buf_append(&p->trace, chunk, (size_t)n);
    }
    return true;
}

const char *process_trace_text(struct process *p)
{
    (void)read_trace(p);
    while (p->trace.len > 0 && p->trace.data[p->trace.len - 1] == '\n')
        p->trace.data[--p->trace.len] = '\0';
    return buf_str(&p->trace);
}

void process_settle_exec(struct process *p)
{
    const char *text = process_trace_text(p);
    process_exec_fn fn = p->on_exec;

    close_trace(p);
    p->on_exec = NULL;
    if (fn != NULL)
        fn(p, text, p->arg);
}

static void trace_event(struct loop_source *src, uint32_t events, void *arg)
{
    struct process *p = arg;

    (void)src;
    (void)events;
    if (read_trace(p))
        process_settle_exec(p);
}

int process_watch_exec(struct process *p, process_exec_fn fn, void *arg, struct err *err)
{
    p->on_exec = fn;
    p->arg = arg;
    if (p->trace_fd < 0) {
        process_settle_exec(p);
        return 0;
    }
    p->trace_source = loop_add_fd(p->loop, p->trace_fd, EPOLLIN, trace_event, p, err);
    if (p->trace_source == NULL) {
        p->on_exec = NULL;
        return -1;
    }
    return 0;
}

static void drain_over(struct loop_source *src, void *arg)
{
    (void)src;
    process_end_now(arg);
}

void process_ended(struct process *p, int status, bool oom_killed, process_fn fn, void *arg)
{
    auto_err struct err err = ERR_INIT;

    p->reaped = true;
    p->exited_at_ns = wall_ns();
    p->oom_killed = oom_killed;
    if (WIFSIGNALED(status)) {
        p->signal = (uint32_t)WTERMSIG(status);
        p->exit_code = 128 + p->signal;
    } else {
        p->exit_code = (uint32_t)WEXITSTATUS(status);
    }
    p->on_end = fn;
    p->arg = arg;
    if (p->out[0].open || p->out[1].open) {
        p->drain_timer = loop_add_timer(p->loop, DRAIN_NS, drain_over, p, &err);
        if (p->drain_timer == NULL) {
            log_warn("cannot wait for output", LOG_STR("error", err_msg(&err)));
            process_end_now(p);
            return;
        }
    }
    check_end(p);
}

void process_end_now(struct process *p)
{
    process_fn fn = p->on_end;

    /* The end is told below, once, and not from within stdio. */
    p->on_end = NULL;
    for (int i = 0; i < 2; i++) {
        if (p->out[i].open)
            stdio_finish_output(p->io, p->out[i].id);
        p->out[i].open = false;
    }
    p->on_end = fn;
    check_end(p);
}
