#include "base/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/str.h"

extern char **environ;

/* The spec as posix_spawn file actions. Sources are first duplicated above every target, so that no
 * dup2 overwrites a descriptor that a later one still needs; dup2 clears close-on-exec in the
 * child. Everything of ours is O_CLOEXEC; close and closefrom() catch what a library opened
 * without. */
static int file_actions(const struct spawn_opts *o, posix_spawn_file_actions_t *fa, int *high,
                        struct err *err)
{
    int top = 2;
    for (size_t i = 0; i < o->n_fds; i++) {
        if (o->fds[i].child > top)
            top = o->fds[i].child;
    }
    bool set[3] = {false, false, false};
    int rc = 0;
    for (size_t i = 0; i < o->n_fds && rc == 0; i++) {
        const struct spawn_fd *f = &o->fds[i];
        if (f->child <= 2)
            set[f->child] = true;
        if (f->here < 0) {
            rc = posix_spawn_file_actions_addopen(fa, f->child, "/dev/null", O_RDWR, 0);
            continue;
        }
        high[i] = fcntl(f->here, F_DUPFD_CLOEXEC, top + 1);
        if (high[i] < 0)
            return err_sys(err, errno, "duplicate descriptor %d", f->here);
        rc = posix_spawn_file_actions_adddup2(fa, high[i], f->child);
    }
    for (int i = 0; i < 3 && rc == 0; i++) {
        if (!set[i])
            rc = posix_spawn_file_actions_addopen(fa, i, "/dev/null", O_RDWR, 0);
    }
    for (int fd = 3; fd < top && rc == 0; fd++) {
        bool named = false;
        for (size_t i = 0; i < o->n_fds; i++)
            named = named || o->fds[i].child == fd;
        if (!named)
            rc = posix_spawn_file_actions_addclose(fa, fd); /* glibc: fine when it is not open */
    }
    if (rc == 0)
        rc = posix_spawn_file_actions_addclosefrom_np(fa, top + 1);
    if (rc == 0)
        rc = posix_spawn_file_actions_addchdir_np(fa, o->cwd != NULL ? o->cwd : "/");
    return rc == 0 ? 0 : err_sys(err, rc, "prepare descriptors");
}

static int attributes(const struct spawn_opts *o, posix_spawnattr_t *attr, struct err *err)
{
    sigset_t none;
    sigset_t all;
    (void)sigemptyset(&none);
    (void)sigfillset(&all);
    short flags = POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF;
    if (o->new_group)
        flags |= POSIX_SPAWN_SETPGROUP;
    int rc = posix_spawnattr_setsigmask(attr, &none);
    if (rc == 0)
        rc = posix_spawnattr_setsigdefault(attr, &all);
    if (rc == 0)
        rc = posix_spawnattr_setpgroup(attr, 0);
    if (rc == 0)
        rc = posix_spawnattr_setflags(attr, flags);
    return rc == 0 ? 0 : err_sys(err, rc, "prepare attributes");
}

int spawn_start(const struct spawn_opts *opts, struct spawn_proc *proc, struct err *err)
{
    const char *name = opts->path != NULL ? opts->path : opts->argv[0];
    posix_spawn_file_actions_t fa;
    posix_spawnattr_t attr;
    (void)posix_spawn_file_actions_init(&fa);
    (void)posix_spawnattr_init(&attr);
    int *high = xcalloc(opts->n_fds, sizeof(*high));
    for (size_t i = 0; i < opts->n_fds; i++)
        high[i] = -1;
    int ret = file_actions(opts, &fa, high, err);
    if (ret == 0)
        ret = attributes(opts, &attr, err);
    if (ret == 0) {
        /* posix_spawn's prototype predates const; it changes nothing */
        char **argv = __extension__(char **)(uintptr_t) opts->argv;
        char **env = opts->env != NULL ? __extension__(char **)(uintptr_t) opts->env : environ;
        pid_t pid = -1;
        int rc = opts->path != NULL ? posix_spawn(&pid, opts->path, &fa, &attr, argv, env)
                                    : posix_spawnp(&pid, opts->argv[0], &fa, &attr, argv, env);
        if (rc != 0) {
            ret = err_sys(err, rc, "run %s", name);
        } else {
            *proc = (struct spawn_proc){.pid = pid, .pidfd = -1, .group = opts->new_group};
            /* the child is ours and not yet reaped, so the pid cannot be another's */
            proc->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
            if (proc->pidfd < 0) {
                ret = err_sys(err, errno, "open pidfd of %s", name);
                spawn_clear(proc);
            }
        }
    }
    for (size_t i = 0; i < opts->n_fds; i++)
        cleanup_closep(&high[i]);
    free(high);
    (void)posix_spawn_file_actions_destroy(&fa);
    (void)posix_spawnattr_destroy(&attr);
    return ret;
}

static int reap(struct spawn_proc *proc)
{
    int status = 0;
    while (waitpid(proc->pid, &status, 0) < 0 && errno == EINTR)
        ;
    proc->pid = -1;
    cleanup_closep(&proc->pidfd);
    return status;
}

int spawn_wait(struct spawn_proc *proc, struct cancel *cancel, int *status, struct err *err)
{
    if (cancel_poll(cancel, proc->pidfd, POLLIN, -1, err) < 0)
        return -1;
    int st = reap(proc);
    if (status != NULL)
        *status = st;
    return 0;
}

void spawn_kill_pidfd(int pidfd)
{
    (void)syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
}

void spawn_kill(struct spawn_proc *proc)
{
    if (proc->pid <= 0)
        return;
    (void)kill(proc->group ? -proc->pid : proc->pid, SIGKILL);
    (void)reap(proc);
}

void spawn_clear(struct spawn_proc *proc)
{
    spawn_kill(proc);
    cleanup_closep(&proc->pidfd);
}

struct feed {
    int in, out, errout; /* our ends; -1 when done */
    const char *data;
    size_t left;
    struct buf *out_buf, *err_buf;
};

static void feed_stdin(struct feed *f)
{
    ssize_t n = write(f->in, f->data, f->left);
    if (n > 0) {
        f->data += n;
        f->left -= (size_t)n;
    }
    if (f->left == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        cleanup_closep(&f->in); /* a program may well not read all of its input */
}

/* -1: the bound was hit. */
static int collect(int *fd, struct buf *b, bool strict, struct err *err)
{
    char block[16384];
    ssize_t n = read(*fd, block, sizeof(block));
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (n <= 0) {
        cleanup_closep(fd);
        return 0;
    }
    if (b == NULL)
        return 0;
    size_t len = (size_t)n;
    if (len > b->max - b->len) {
        if (strict)
            return err_set(err, ERR_EXHAUSTED, "printed more than %zu bytes", b->max);
        len = b->max - b->len;
    }
    (void)buf_append(b, block, len);
    return 0;
}

static int pump(struct feed *f, struct cancel *cancel, struct err *err)
{
    while (f->in >= 0 || f->out >= 0 || f->errout >= 0) {
        struct pollfd p[4] = {{.fd = f->in, .events = POLLOUT},
                              {.fd = f->out, .events = POLLIN},
                              {.fd = f->errout, .events = POLLIN},
                              {.fd = cancel_fd(cancel), .events = POLLIN}};
        if (cancel_check(cancel, err) < 0)
            return -1;
        if (poll(p, 4, -1) < 0) {
            if (errno == EINTR)
                continue;
            return err_sys(err, errno, "poll");
        }
        if (p[0].revents != 0)
            feed_stdin(f);
        if (p[1].revents != 0 && collect(&f->out, f->out_buf, true, err) < 0)
            return -1;
        if (p[2].revents != 0)
            (void)collect(&f->errout, f->err_buf, false, err);
    }
    return 0;
}

static int pipe_pair(int ours_theirs[2], bool we_write, struct err *err)
{
    int p[2];
    if (pipe2(p, O_CLOEXEC) < 0)
        return err_sys(err, errno, "make pipe");
    ours_theirs[0] = we_write ? p[1] : p[0];
    ours_theirs[1] = we_write ? p[0] : p[1];
    (void)fcntl(ours_theirs[0], F_SETFL, O_NONBLOCK);
    return 0;
}

static int run(const struct spawn_opts *opts, struct feed *f, int theirs[3], struct cancel *cancel,
               int *status, struct err *err)
{
    size_t n = opts->n_fds + 3;
    struct spawn_fd *fds = xcalloc(n, sizeof(*fds));
    for (size_t i = 0; i < opts->n_fds; i++)
        fds[i] = opts->fds[i];
    for (int i = 0; i < 3; i++)
        fds[opts->n_fds + (size_t)i] = (struct spawn_fd){.child = i, .here = theirs[i]};
    struct spawn_opts o = *opts;
    o.fds = fds;
    o.n_fds = n;
    o.new_group = true;
    struct spawn_proc proc = SPAWN_PROC_INIT;
    auto_err struct err why = ERR_INIT;
    int ret = spawn_start(&o, &proc, &why);
    for (int i = 0; i < 3; i++)
        cleanup_closep(&theirs[i]);
    if (ret == 0)
        ret = pump(f, cancel, &why);
    if (ret == 0)
        ret = spawn_wait(&proc, cancel, status, &why);
    if (ret < 0 && opts->grace_ns > 0 && cancel_check(cancel, NULL) < 0) {
        auto_cancel struct cancel *grace = cancel_new(mono_ns() + opts->grace_ns, NULL);
        if (grace != NULL && pump(f, grace, NULL) == 0)
            (void)spawn_wait(&proc, grace, status, NULL);
    }
    spawn_clear(&proc);
    free(fds);
    return ret < 0 ? err_move(err, &why) : 0;
}

int spawn_run(const struct spawn_opts *opts, const void *in, size_t in_len, struct buf *out,
              struct buf *errout, struct cancel *cancel, int *status, struct err *err)
{
    int pipes[3][2] = {{-1, -1}, {-1, -1}, {-1, -1}};
    int ret = 0;
    if (in_len > 0)
        ret = pipe_pair(pipes[0], true, err);
    if (ret == 0)
        ret = pipe_pair(pipes[1], false, err);
    if (ret == 0)
        ret = pipe_pair(pipes[2], false, err);
    struct feed f = {.in = pipes[0][0],
                     .out = pipes[1][0],
                     .errout = pipes[2][0],
                     .data = in,
                     .left = in_len,
                     .out_buf = out,
                     .err_buf = errout};
    int theirs[3] = {pipes[0][1], pipes[1][1], pipes[2][1]};
    if (ret == 0)
        ret = run(opts, &f, theirs, cancel, status, err);
    for (int i = 0; i < 3; i++)
        cleanup_closep(&theirs[i]);
    cleanup_closep(&f.in);
    cleanup_closep(&f.out);
    cleanup_closep(&f.errout);
    if (ret < 0)
        return err_wrap(err, "run %s", opts->path != NULL ? opts->path : opts->argv[0]);
    return 0;
}

const char *spawn_status_text(int status, char *out, size_t size)
{
    if (WIFSIGNALED(status))
        (void)snprintf(out, size, "signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
    else
        (void)snprintf(out, size, "exit status %d", WEXITSTATUS(status));
    return out;
}
