#include "cri/ctl/terminal.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "base/cleanup.h"

/* Read by signal handlers: written while raw is false. */
static struct termios saved, changed;
static int terminal_fd = -1;
static volatile sig_atomic_t raw;
static int size_fd = -1;

static bool in_foreground(void)
{
    return tcgetpgrp(terminal_fd) == getpgrp();
}

void terminal_restore(void)
{
    if (!raw)
        return;
    raw = false;
    if (in_foreground())
        (void)tcsetattr(terminal_fd, TCSADRAIN, &saved);
}

/* A handler and not a signalfd: gRPC's threads were made with these signals unblocked. */
static void on_end(int sig)
{
    if (raw && in_foreground())
        (void)tcsetattr(terminal_fd, TCSANOW, &saved);
    (void)raise(sig); /* its default action is back */
}

static void on_stop(int sig)
{
    int before = errno;
    (void)sig;
    if (raw && in_foreground())
        (void)tcsetattr(terminal_fd, TCSANOW, &saved);
    (void)kill(getpid(), SIGSTOP);
    errno = before;
}

static void on_continue(int sig)
{
    int before = errno;
    (void)sig;
    if (raw && in_foreground())
        (void)tcsetattr(terminal_fd, TCSANOW, &changed);
    errno = before;
}

static int handle_signals(struct err *err)
{
    static const int ends[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGABRT, SIGBUS, SIGFPE, SIGSEGV};
    const struct sigaction end = {.sa_handler = on_end,
                                  .sa_flags = (int)(SA_RESETHAND | SA_NODEFER)};
    const struct sigaction stop = {.sa_handler = on_stop, .sa_flags = SA_RESTART};
    const struct sigaction go_on = {.sa_handler = on_continue, .sa_flags = SA_RESTART};
    for (size_t i = 0; i < ARRAY_LEN(ends); i++) {
        struct sigaction old;
        if (sigaction(ends[i], NULL, &old) < 0 ||
            (old.sa_handler != SIG_IGN && sigaction(ends[i], &end, NULL) < 0))
            return err_sys(err, errno, "catch signals");
    }
    if (sigaction(SIGTSTP, &stop, NULL) < 0 || sigaction(SIGCONT, &go_on, NULL) < 0)
        return err_sys(err, errno, "catch signals");
    return 0;
}

int terminal_raw(int fd, struct err *err)
{
    static bool registered;
    terminal_fd = fd;
    if (tcgetattr(fd, &saved) < 0)
        return err_sys(err, errno, "read the terminal's settings");
    changed = saved;
    cfmakeraw(&changed);
    if (handle_signals(err) < 0)
        return -1;
    if (!registered && atexit(terminal_restore) == 0)
        registered = true;
    raw = true; /* before it is: a signal in between restores what is unchanged */
    if (tcsetattr(fd, TCSADRAIN, &changed) < 0) {
        raw = false;
        return err_sys(err, errno, "set the terminal to raw mode");
    }
    return 0;
}

bool terminal_size(int fd, uint16_t *columns, uint16_t *rows)
{
    struct winsize w;
    if (ioctl(fd, TIOCGWINSZ, &w) < 0 || w.ws_col == 0 || w.ws_row == 0)
        return false;
    *columns = w.ws_col;
    *rows = w.ws_row;
    return true;
}

static void on_size(int sig)
{
    int before = errno;
    (void)sig;
    (void)eventfd_write(size_fd, 1);
    errno = before;
}

int terminal_watch_size(struct err *err)
{
    const struct sigaction sa = {.sa_handler = on_size, .sa_flags = SA_RESTART};
    if (size_fd < 0)
        size_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (size_fd < 0 || sigaction(SIGWINCH, &sa, NULL) < 0)
        return err_sys(err, errno, "watch the terminal's size");
    return size_fd;
}

#define CTRL_P 0x10
#define CTRL_Q 0x11

size_t detach_filter(struct detach *d, const char *in, size_t len, char *out, bool *detached)
{
    size_t n = 0;
    *detached = false;
    for (size_t i = 0; i < len; i++) {
        if (d->held && in[i] == CTRL_Q) {
            *detached = true;
            return n;
        }
        if (d->held)
            out[n++] = CTRL_P;
        d->held = in[i] == CTRL_P;
        if (!d->held)
            out[n++] = in[i];
    }
    return n;
}
