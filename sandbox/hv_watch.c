#include "sandbox/hv_watch.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

int hv_watch_init(struct hv_watch *w, struct loop *control, void (*on_exit)(void *arg), void *arg,
                  struct err *err)
{
    *w = (struct hv_watch){
        .control = control, .on_exit = on_exit, .arg = arg, .proc = SPAWN_PROC_INIT};
    (void)pthread_mutex_init(&w->lock, NULL);
    w->gone = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return w->gone < 0 ? err_sys(err, errno, "make eventfd") : 0;
}

/* --- whose process --- */

uint64_t hv_start_time(pid_t pid)
{
    char path[64];
    (void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    auto_free char *text = fs_read(path, KiB(4), NULL, NULL);
    /* the name in parentheses may hold anything; fields 3... follow its last ')' */
    char *p = text != NULL ? strrchr(text, ')') : NULL;
    if (p == NULL)
        return 0;
    char *save = NULL;
    char *field = strtok_r(p + 1, " ", &save);
    for (int i = 3; field != NULL && i < 22; i++)
        field = strtok_r(NULL, " ", &save);
    uint64_t t = 0;
    return field != NULL && str_to_u64(field, &t) == 0 ? t : 0;
}

/* comm is the first 15 bytes of the program's name */
bool hv_same_program(pid_t pid, const char *binary)
{
    char path[64];
    (void)snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
    auto_free char *comm = fs_read(path, 256, NULL, NULL);
    const char *slash = strrchr(binary, '/');
    const char *base = slash != NULL ? slash + 1 : binary;
    return comm != NULL && strncmp(comm, base, strnlen(base, 15)) == 0;
}

void hv_watch_launched(struct hv_watch *w, const struct spawn_proc *proc)
{
    w->proc = *proc;
    w->child = true;
    w->start_time = hv_start_time(proc->pid);
}

int hv_watch_adopted(struct hv_watch *w, const struct hv_process *process, const char *binary,
                     struct err *err)
{
    pid_t pid = process->pid;
    auto_close int fd = pid > 1 ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
    /* checked after the pidfd is open: from here on the pid cannot become another's */
    if (fd < 0 || hv_start_time(pid) != process->start_time || !hv_same_program(pid, binary))
        return err_set(err, ERR_NOT_FOUND, "process %d is gone", (int)pid);
    w->proc.pid = pid;
    w->proc.pidfd = take_fd(&fd);
    w->start_time = process->start_time;
    return 0;
}

struct hv_process hv_watch_process(const struct hv_watch *w)
{
    return (struct hv_process){.pid = w->proc.pid, .start_time = w->start_time};
}

/* --- its end --- */

static void on_exit_fd(struct loop_source *src, uint32_t events, void *arg)
{
    struct hv_watch *w = arg;
    (void)events;
    loop_remove(src);
    w->exit_src = NULL;
    (void)pthread_mutex_lock(&w->lock);
    int status = 0;
    /* an adopted one may still be our child, when the handle was let go of and taken up again */
    if (waitpid(w->proc.pid, &status, w->child ? 0 : WNOHANG) == w->proc.pid) {
        w->status = status;
        w->child = true;
    }
    w->exited = true;
    (void)eventfd_write(w->gone, 1);
    (void)pthread_mutex_unlock(&w->lock);
    w->on_exit(w->arg);
}

static void watch(void *arg)
{
    struct hv_watch *w = arg;
    (void)pthread_mutex_lock(&w->lock);
    w->exit_src = loop_add_fd(w->control, w->proc.pidfd, EPOLLIN, on_exit_fd, w, NULL);
    w->watched = w->exit_src != NULL;
    (void)pthread_mutex_unlock(&w->lock);
}

int hv_watch_begin(struct hv_watch *w, struct err *err)
{
    loop_call(w->control, watch, w);
    (void)pthread_mutex_lock(&w->lock);
    bool ok = w->watched;
    (void)pthread_mutex_unlock(&w->lock);
    if (ok)
        return 0;
    if (w->child)
        spawn_clear(&w->proc);
    return err_set(err, ERR_INTERNAL, "watch the process");
}

static void unwatch(void *arg)
{
    struct hv_watch *w = arg;
    loop_remove(w->exit_src);
    w->exit_src = NULL;
}

void hv_watch_stop(struct hv_watch *w)
{
    hv_watch_silence(w);
    loop_call(w->control, unwatch, w);
}

void hv_watch_clear(struct hv_watch *w)
{
    cleanup_closep(&w->proc.pidfd); /* not spawn_clear() */
    cleanup_closep(&w->gone);
    (void)pthread_mutex_destroy(&w->lock);
}

/* --- what the driver asks and does --- */

void hv_watch_silence(struct hv_watch *w)
{
    (void)pthread_mutex_lock(&w->lock);
    w->quiet = true;
    (void)pthread_mutex_unlock(&w->lock);
}

bool hv_watch_silenced(struct hv_watch *w)
{
    (void)pthread_mutex_lock(&w->lock);
    bool quiet = w->quiet;
    (void)pthread_mutex_unlock(&w->lock);
    return quiet;
}

bool hv_watch_exited(struct hv_watch *w)
{
    (void)pthread_mutex_lock(&w->lock);
    bool exited = w->exited;
    (void)pthread_mutex_unlock(&w->lock);
    return exited;
}

void hv_watch_kill(struct hv_watch *w)
{
    (void)pthread_mutex_lock(&w->lock);
    if (!w->exited && w->proc.pidfd >= 0)
        spawn_kill_pidfd(w->proc.pidfd);
    (void)pthread_mutex_unlock(&w->lock);
}

int hv_watch_wait(struct hv_watch *w, struct cancel *cancel, struct err *err)
{
    if (w->proc.pidfd < 0)
        return 0;
    return cancel_poll(cancel, w->gone, POLLIN, -1, err) < 0 ? -1 : 0;
}
