/*
 * The driver of the host backend: aspis-agent as a pod's supervisor. It is a child of the daemon
 * that outlives it, watched by its pidfd; what it prints is its console.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/spawn.h"
#include "base/str.h"
#include "proto/frame.h"
#include "proto/host_agent.h"
#include "sandbox/console.h"
#include "sandbox/hypervisor.h"
#include "sandbox/sockets.h"

struct hv {
    struct loop *control;
    struct hv_callbacks cb;
    struct console *console; /* NULL: adopted, nobody reads it any more */
    char *console_path;

    struct loop_source *exit_src; /* loop thread only */

    pthread_mutex_t lock; /* guards the rest */
    pid_t pid;
    int pidfd;
    uint64_t start_time;
    bool child;   /* ours to reap */
    bool watched; /* by the loop */
    bool exited;
    bool quiet; /* quit() or free(): no on_dead any more */
    int gone;   /* eventfd: exited */
};

/* --- the end --- */

static char *last_words(struct hv *hv)
{
    if (hv->console != NULL)
        return console_tail(hv->console, LIMIT_GUEST_ERROR / 2);
    auto_free char *text = fs_read(hv->console_path, LIMIT_CONSOLE_FILE, NULL, NULL);
    if (text == NULL)
        return xstrdup("");
    size_t len = strlen(text);
    return xstrdup(len > LIMIT_GUEST_ERROR / 2 ? text + len - LIMIT_GUEST_ERROR / 2 : text);
}

static void report(struct hv *hv, int status)
{
    char how[64];
    console_drain(hv->console);
    auto_free char *said = last_words(hv);
    auto_free char *what = hv->child ? fs_format("the pod's agent ended with %s",
                                                 spawn_status_text(status, how, sizeof(how)))
                                     : xstrdup("the pod's agent ended");
    auto_free char *text =
        str_empty(said) ? xstrdup(what) : fs_format("%s; it said: %s", what, said);
    hv->cb.on_dead(hv->cb.arg, text);
}

static void on_exit_fd(struct loop_source *src, uint32_t events, void *arg)
{
    struct hv *hv = arg;
    (void)events;
    loop_remove(src);
    hv->exit_src = NULL;
    (void)pthread_mutex_lock(&hv->lock);
    int status = 0;
    /* an adopted one may still be our child, when the handle was let go of and taken up again */
    if (waitpid(hv->pid, &status, hv->child ? 0 : WNOHANG) == hv->pid)
        hv->child = true;
    hv->exited = true;
    bool tell = !hv->quiet;
    (void)eventfd_write(hv->gone, 1);
    (void)pthread_mutex_unlock(&hv->lock);
    if (tell)
        report(hv, status);
}

/* --- making and freeing --- */

static struct hv *make(const char *run_dir, struct loop *control, const struct hv_callbacks *cb,
                       struct err *err)
{
    struct hv *hv = xcalloc(1, sizeof(*hv));
    hv->control = control;
    hv->cb = *cb;
    hv->console_path = fs_format("%s/%s", run_dir, HV_CONSOLE_FILE);
    hv->pid = -1;
    hv->pidfd = -1;
    (void)pthread_mutex_init(&hv->lock, NULL);
    hv->gone = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (hv->gone < 0) {
        (void)err_sys(err, errno, "make eventfd");
        host_hv.free(hv);
        return NULL;
    }
    return hv;
}

static void stop_watching(void *arg)
{
    struct hv *hv = arg;
    loop_remove(hv->exit_src);
    hv->exit_src = NULL;
}

static void set_quiet(struct hv *hv)
{
    (void)pthread_mutex_lock(&hv->lock);
    hv->quiet = true;
    (void)pthread_mutex_unlock(&hv->lock);
}

static void host_free(struct hv *hv)
{
    if (hv == NULL)
        return;
    set_quiet(hv);
    loop_call(hv->control, stop_watching, hv);
    console_free(hv->console);
    cleanup_closep(&hv->pidfd);
    cleanup_closep(&hv->gone);
    (void)pthread_mutex_destroy(&hv->lock);
    free(hv->console_path);
    free(hv);
}

static void watch_exit(void *arg)
{
    struct hv *hv = arg;
    hv->exit_src = loop_add_fd(hv->control, hv->pidfd, EPOLLIN, on_exit_fd, hv, NULL);
    (void)pthread_mutex_lock(&hv->lock);
    hv->watched = hv->exit_src != NULL;
    (void)pthread_mutex_unlock(&hv->lock);
}

static int start_watching(struct hv *hv, struct err *err)
{
    loop_call(hv->control, watch_exit, hv);
    (void)pthread_mutex_lock(&hv->lock);
    bool ok = hv->watched;
    (void)pthread_mutex_unlock(&hv->lock);
    return ok ? 0 : err_set(err, ERR_INTERNAL, "watch the process");
}

/* --- launch --- */

struct endpoints {
    int channel[LINK_CHANNELS], output[2], program;
};

static void close_endpoints(struct endpoints *e)
{
    for (int i = 0; i < LINK_CHANNELS; i++)
        cleanup_closep(&e->channel[i]);
    cleanup_closep(&e->output[0]);
    cleanup_closep(&e->output[1]);
    cleanup_closep(&e->program);
}

/* The program's file as a read-only mount that hangs nowhere. */
static int open_program(const char *path, struct err *err)
{
    struct mount_attr ro = {.attr_set = MOUNT_ATTR_RDONLY, .propagation = MS_PRIVATE};
    auto_close int fd = open_tree(AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    if (fd < 0 || mount_setattr(fd, "", AT_EMPTY_PATH, &ro, sizeof(ro)) < 0)
        return err_sys(err, errno, "open %s", path);
    return take_fd(&fd);
}

static int make_endpoints(const struct hv_spec *s, struct endpoints *e, struct err *err)
{
    static const char *const names[LINK_CHANNELS] = HV_SOCKETS_CHANNEL;
    for (int i = 0; i < LINK_CHANNELS; i++) {
        if ((e->channel[i] = socket_listen_at(s->run_dir, names[i], err)) < 0)
            return -1;
    }
    if ((e->program = open_program(s->binary, err)) < 0)
        return -1;
    /* an agent whose daemon does not read must not wait for it: it loses its words */
    if (pipe2(e->output, O_CLOEXEC) < 0 || fcntl(e->output[1], F_SETFL, O_NONBLOCK) < 0)
        return err_sys(err, errno, "make pipe");
    return 0;
}

static void make_argv(const struct hv_spec *s, struct strv *argv)
{
    const struct hv_host *h = s->host;
    strv_add(argv, HOST_AGENT_NAME);
    strv_add(argv, "--host");
    strv_add(argv, s->run_dir);
    strv_add(argv, "--state");
    strv_add(argv, h->state_dir);
    strv_add(argv, "--cgroup");
    strv_add(argv, h->cgroup);
    for (size_t i = 0; s->cgroups != NULL && s->cgroups[i] != NULL; i++) {
        strv_add(argv, "--join");
        strv_add(argv, s->cgroups[i]);
    }
    if (h->netns != NULL) {
        strv_add(argv, "--netns");
        strv_add(argv, h->netns);
    } else {
        strv_add(argv, "--host-net");
    }
    if (h->host_ipc)
        strv_add(argv, "--host-ipc");
    if (h->host_uts)
        strv_add(argv, "--host-uts");
}

static int start_process(struct hv *hv, const struct hv_spec *s, const struct endpoints *e,
                         struct err *err)
{
    _Static_assert(LINK_CHANNELS == HOST_FD_PROGRAM - HOST_FD_CHANNEL, "descriptors");
    static const char *const env[] = {
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", NULL};
    auto_strv struct strv argv = {0};
    make_argv(s, &argv);
    auto_free char *program = fs_format("/proc/self/fd/%d", HOST_FD_PROGRAM);
    struct spawn_fd fds[] = {{1, e->output[1]},
                             {2, e->output[1]},
                             {HOST_FD_CHANNEL, e->channel[0]},
                             {HOST_FD_CHANNEL + 1, e->channel[1]},
                             {HOST_FD_CHANNEL + 2, e->channel[2]},
                             {HOST_FD_PROGRAM, e->program}};
    struct spawn_opts o = {.path = program,
                           .argv = (const char *const *)argv.v,
                           .env = env,
                           .fds = fds,
                           .n_fds = ARRAY_LEN(fds),
                           .new_group = true};
    struct spawn_proc proc;
    if (spawn_start(&o, &proc, err) < 0)
        return err_wrap(err, "%s", s->binary);
    hv->pid = proc.pid;
    hv->pidfd = proc.pidfd;
    hv->child = true;
    hv->start_time = hv_start_time(proc.pid);
    return 0;
}

static int launch_steps(struct hv *hv, const struct hv_spec *s, struct endpoints *e,
                        struct err *err)
{
    if (FAILPOINT("host.sockets", err) < 0 || make_endpoints(s, e, err) < 0)
        return -1;
    hv->console = console_new(hv->control, take_fd(&e->output[0]), hv->console_path, err);
    if (hv->console == NULL)
        return -1;
    if (FAILPOINT("host.spawn", err) < 0 || start_process(hv, s, e, err) < 0)
        return -1;
    close_endpoints(e); /* only the agent holds them now, so its death is seen as end of stream */
    return start_watching(hv, err);
}

/* Not watched yet. */
static void kill_and_reap(struct hv *hv)
{
    if (hv->pidfd < 0 || hv->watched)
        return;
    spawn_kill_pidfd(hv->pidfd);
    (void)waitpid(hv->pid, NULL, 0);
    hv->exited = true;
    (void)eventfd_write(hv->gone, 1);
}

static struct hv *host_launch(const struct hv_spec *spec, struct loop *control,
                              const struct hv_callbacks *cb, struct cancel *cancel, struct err *err)
{
    struct endpoints e = {{-1, -1, -1}, {-1, -1}, -1};
    struct hv *hv = make(spec->run_dir, control, cb, err);
    (void)cancel;
    if (hv == NULL)
        return NULL;
    int ret = launch_steps(hv, spec, &e, err);
    close_endpoints(&e);
    if (ret < 0) {
        kill_and_reap(hv);
        host_free(hv);
        (void)err_wrap(err, "start the pod's agent");
        return NULL;
    }
    return hv;
}

/* --- adopt --- */

static struct hv *host_adopt(const struct hv_process *process, const char *run_dir,
                             const char *binary, struct loop *control,
                             const struct hv_callbacks *cb, struct cancel *cancel, struct err *err)
{
    (void)binary;
    (void)cancel;
    struct hv *hv = make(run_dir, control, cb, err);
    if (hv == NULL)
        return NULL;
    hv->pid = process->pid;
    hv->pidfd = process->pid > 1 ? (int)syscall(SYS_pidfd_open, process->pid, 0) : -1;
    /* checked after the pidfd is open: from here on the pid cannot become another's */
    int ret = 0;
    if (hv->pidfd < 0 || hv_start_time(process->pid) != process->start_time ||
        !hv_same_program(process->pid, HOST_AGENT_NAME))
        ret =
            err_set(err, ERR_NOT_FOUND, "the pod's agent, process %d, is gone", (int)process->pid);
    hv->start_time = process->start_time;
    if (ret < 0 || FAILPOINT("host.adopt", err) < 0 || start_watching(hv, err) < 0) {
        host_free(hv);
        (void)err_wrap(err, "adopt the pod's agent");
        return NULL;
    }
    return hv;
}

/* --- the rest --- */

static int host_wait(struct hv *hv, struct cancel *cancel, struct err *err)
{
    if (hv->pidfd < 0)
        return 0;
    return cancel_poll(cancel, hv->gone, POLLIN, -1, err) < 0 ? -1 : 0;
}

static int host_quit(struct hv *hv, struct cancel *cancel, struct err *err)
{
    set_quiet(hv);
    (void)pthread_mutex_lock(&hv->lock);
    if (!hv->exited && hv->pidfd >= 0)
        spawn_kill_pidfd(hv->pidfd);
    (void)pthread_mutex_unlock(&hv->lock);
    return host_wait(hv, cancel, err) < 0 ? err_wrap(err, "wait for the end of the pod's agent")
                                          : 0;
}

static int host_query(struct hv *hv, struct cancel *cancel, struct err *err)
{
    (void)cancel;
    (void)pthread_mutex_lock(&hv->lock);
    bool exited = hv->exited;
    (void)pthread_mutex_unlock(&hv->lock);
    return exited ? err_set(err, ERR_UNAVAILABLE, "the pod's agent has ended") : 0;
}

static struct hv_process host_process(struct hv *hv)
{
    return (struct hv_process){.pid = hv->pid, .start_time = hv->start_time};
}

static char *host_console_tail(struct hv *hv)
{
    return last_words(hv);
}

static char *host_version(const char *binary, struct cancel *cancel, struct err *err)
{
    (void)binary;
    (void)cancel;
    (void)err;
    return xstrdup(ASPIS_VERSION);
}

/* What only a VM has. */
static int no_disks(struct err *err)
{
    return err_set(err, ERR_UNIMPLEMENTED, "a pod on the host has no disks");
}

static char *host_shape(const struct hv_spec *spec, struct err *err)
{
    (void)spec;
    (void)no_disks(err);
    return NULL;
}

static int host_add_disk(struct hv *hv, const char *serial, const struct disk_part *parts,
                         size_t n_parts, struct cancel *cancel, struct err *err)
{
    (void)hv;
    (void)serial;
    (void)parts;
    (void)n_parts;
    (void)cancel;
    return no_disks(err);
}

static int host_remove_disk(struct hv *hv, const char *serial, struct cancel *cancel,
                            struct err *err)
{
    (void)hv;
    (void)serial;
    (void)cancel;
    (void)err;
    return 0;
}

static int host_save(struct hv *hv, int state_fd, struct cancel *cancel, struct err *err)
{
    (void)hv;
    (void)state_fd;
    (void)cancel;
    return no_disks(err);
}

const struct hv_ops host_hv = {
    .name = "host",
    .version = host_version,
    .shape = host_shape,
    .launch = host_launch,
    .adopt = host_adopt,
    .add_disk = host_add_disk,
    .remove_disk = host_remove_disk,
    .save = host_save,
    .query = host_query,
    .quit = host_quit,
    .process = host_process,
    .console_tail = host_console_tail,
    .free = host_free,
};
