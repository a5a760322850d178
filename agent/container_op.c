#include "agent/container_op.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/spawn.h"
#include "base/str.h"

struct op {
    pid_t pid;
    int result_fd;
    op_done_fn done;
    void *done_arg;
};

/* Fixed places in the child, behind the standard three. */
enum { RESULT_FD = 3, TRACE_FD = 4, FIRST_FREE_FD = 5 };

static int send_result(int socket_fd, const struct op_result *res, int fd)
{
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = (void *)(uintptr_t)res, .iov_len = sizeof(*res)};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

    if (fd >= 0) {
        memset(&control, 0, sizeof(control));
        msg.msg_control = control.space;
        msg.msg_controllen = sizeof(control.space);
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &fd, sizeof(int));
    }
    ssize_t n;
    do
        n = sendmsg(socket_fd, &msg, MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n == (ssize_t)sizeof(*res) ? 0 : -1;
}

/* False when the child left no (whole) result. */
static bool receive_result(int socket_fd, struct op_result *res, int *fd)
{
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec iov = {.iov_base = res, .iov_len = sizeof(*res)};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.space,
                         .msg_controllen = sizeof(control.space)};
    ssize_t n;

    do
        n = recvmsg(socket_fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return false;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c != NULL; c = CMSG_NXTHDR(&msg, c))
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
            c->cmsg_len == CMSG_LEN(sizeof(int)))
            memcpy(fd, CMSG_DATA(c), sizeof(int));
    if (n != (ssize_t)sizeof(*res) || res->n_groups > LIMIT_USER_GROUPS)
        return false;
    res->text[sizeof(res->text) - 1] = '\0';
    return true;
}

static void reset_signals(void)
{
    struct sigaction act = {.sa_handler = SIG_DFL};
    sigset_t none;

    for (int sig = 1; sig < NSIG; sig++)
        (void)sigaction(sig, &act, NULL);
    sigemptyset(&none);
    (void)sigprocmask(SIG_SETMASK, &none, NULL);
}

/* Moves the descriptors to their places and closes the rest. They are first copied out of the way
 * of the places. */
static int arrange_fds(const int stdio_fds[3], int result_fd, int trace_fd)
{
    int want[FIRST_FREE_FD] = {stdio_fds[0], stdio_fds[1], stdio_fds[2], result_fd, trace_fd};
    int null_fd = -1;

    for (int i = 0; i < FIRST_FREE_FD; i++) {
        if (want[i] < 0) {
            if (null_fd < 0)
                null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
            want[i] = null_fd;
        }
        want[i] = fcntl(want[i], F_DUPFD_CLOEXEC, 64);
        if (want[i] < 0)
            return -1;
    }
    for (int i = 0; i < FIRST_FREE_FD; i++)
        if (dup3(want[i], i, i >= RESULT_FD ? O_CLOEXEC : 0) < 0)
            return -1;
    return (int)syscall(SYS_close_range, (unsigned)FIRST_FREE_FD, ~0U, 0);
}

/* The agent itself is protected from the OOM killer; its children are not, unless the spec says. */
static void unprotect(void)
{
    (void)fs_write_str("/proc/self/oom_score_adj", "0", NULL);
}

__attribute__((noreturn)) static void child(const int stdio_fds[3], int result_fd, int trace_fd,
                                            op_fn fn, void *arg)
{
    auto_err struct err err = ERR_INIT;
    struct op_result *res;
    int fd_out = -1;

    reset_signals();
    if (arrange_fds(stdio_fds, result_fd, trace_fd) < 0)
        _exit(125);
    unprotect();
    /* Until it executes its command, a container's process is a copy of the agent: not for the eyes
     * of others in a shared process namespace. */
    (void)prctl(PR_SET_DUMPABLE, 0);
    FILE *trace = fdopen(TRACE_FD, "w");
    res = calloc(1, sizeof(*res));
    if (trace == NULL || res == NULL)
        _exit(125);
    (void)setvbuf(trace, NULL, _IONBF, 0);
    stderr = trace;

    if (fn(arg, res, &fd_out, &err) < 0) {
        res->code = err.code != ERR_OK ? (int32_t)err.code : ERR_UNKNOWN;
        res->sys_errno = err.sys_errno;
        (void)snprintf(res->text, sizeof(res->text), "%s", err_msg(&err));
    }
    _exit(send_result(RESULT_FD, res, fd_out) < 0 ? 125 : 0);
}

struct op *op_start(const int stdio_fds[3], op_fn fn, void *arg, op_done_fn done, void *done_arg,
                    int *trace_fd, struct err *err)
{
    int sockets[2];
    int pipe_fds[2];

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) < 0) {
        err_sys(err, errno, "result socket");
        return NULL;
    }
    auto_close int ours = sockets[0];
    auto_close int theirs = sockets[1];
    if (pipe2(pipe_fds, O_CLOEXEC) < 0) {
        err_sys(err, errno, "trace pipe");
        return NULL;
    }
    auto_close int trace_read = pipe_fds[0];
    auto_close int trace_write = pipe_fds[1];
    /* The writer must not wait for a reader that only looks when the operation is over. */
    if (fcntl(trace_read, F_SETFL, O_NONBLOCK) < 0 || fcntl(trace_write, F_SETFL, O_NONBLOCK) < 0) {
        err_sys(err, errno, "trace pipe");
        return NULL;
    }

    pid_t pid = fork();
    if (pid < 0) {
        err_sys(err, errno, "fork");
        return NULL;
    }
    if (pid == 0)
        child(stdio_fds, theirs, trace_write, fn, arg);

    struct op *op = xcalloc(1, sizeof(*op));
    op->pid = pid;
    op->result_fd = take_fd(&ours);
    op->done = done;
    op->done_arg = done_arg;
    if (trace_fd != NULL)
        *trace_fd = take_fd(&trace_read);
    return op;
}

pid_t op_pid(const struct op *op)
{
    return op->pid;
}

void op_kill(const struct op *op)
{
    (void)kill(op->pid, SIGKILL);
}

void op_abandon(struct op *op)
{
    if (op == NULL)
        return;
    (void)close(op->result_fd);
    free(op);
}

void op_reaped(struct op *op, int status)
{
    auto_err struct err err = ERR_INIT;
    auto_free struct op_result *res = xcalloc(1, sizeof(*res));
    int fd = -1;

    if (!receive_result(op->result_fd, res, &fd)) {
        char how[64];
        memset(res, 0, sizeof(*res));
        err_set(&err, ERR_INTERNAL, "the operation's process ended with %s and no result",
                spawn_status_text(status, how, sizeof(how)));
    } else if (res->code != ERR_OK) {
        err_set(&err, (enum err_code)res->code, "%s", res->text);
        err.sys_errno = res->sys_errno;
    }
    op_done_fn done = op->done;
    void *done_arg = op->done_arg;
    op_abandon(op);
    done(done_arg, res, fd, err.code != ERR_OK ? &err : NULL);
}
