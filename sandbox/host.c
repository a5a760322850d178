/*
 * The driver of the host backend: aspis-agent as a pod's supervisor. It is a child of the daemon
 * that outlives it, watched by its pidfd; what it prints is its console.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
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
#include "sandbox/hv_watch.h"
#include "sandbox/sockets.h"

struct hv {
    struct hv_watch watch;
    struct hv_callbacks cb;
    struct console *console; /* NULL: adopted, nobody reads it any more */
    char *console_path;
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

static void on_exit_seen(void *arg)
{
    struct hv *hv = arg;
    char how[64];
    if (hv_watch_silenced(&hv->watch))
        return;
    console_drain(hv->console);
    auto_free char *said = last_words(hv);
    auto_free char *what = hv->watch.child
                               ? fs_format("the pod's agent ended with %s",
                                           spawn_status_text(hv->watch.status, how, sizeof(how)))
                               : xstrdup("the pod's agent ended");
    auto_free char *text =
        str_empty(said) ? xstrdup(what) : fs_format("%s; it said: %s", what, said);
    hv->cb.on_dead(hv->cb.arg, text);
}

/* --- making and freeing --- */

static struct hv *make(const char *run_dir, struct loop *control, const struct hv_callbacks *cb,
                       struct err *err)
{
    struct hv *hv = xcalloc(1, sizeof(*hv));
    hv->cb = *cb;
    hv->console_path = fs_format("%s/%s", run_dir, HV_CONSOLE_FILE);
    if (hv_watch_init(&hv->watch, control, on_exit_seen, hv, err) < 0) {
        host_hv.free(hv);
        return NULL;
    }
    return hv;
}

static void host_free(struct hv *hv)
{
    if (hv == NULL)
        return;
    hv_watch_stop(&hv->watch);
    console_free(hv->console);
    hv_watch_clear(&hv->watch);
    free(hv->console_path);
    free(hv);
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
    hv_watch_launched(&hv->watch, &proc);
    return 0;
}

static int launch_steps(struct hv *hv, const struct hv_spec *s, struct endpoints *e,
                        struct err *err)
{
    if (FAILPOINT("host.sockets", err) < 0 || make_endpoints(s, e, err) < 0)
        return -1;
    hv->console = console_new(hv->watch.control, take_fd(&e->output[0]), hv->console_path, err);
    if (hv->console == NULL)
        return -1;
    if (FAILPOINT("host.spawn", err) < 0 || start_process(hv, s, e, err) < 0)
        return -1;
    close_endpoints(e); /* only the agent holds them now, so its death is seen as end of stream */
    return hv_watch_begin(&hv->watch, err);
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
    if (hv_watch_adopted(&hv->watch, process, HOST_AGENT_NAME, err) < 0 ||
        FAILPOINT("host.adopt", err) < 0 || hv_watch_begin(&hv->watch, err) < 0) {
        host_free(hv);
        (void)err_wrap(err, "adopt the pod's agent");
        return NULL;
    }
    return hv;
}

/* --- the rest --- */

static int host_quit(struct hv *hv, struct cancel *cancel, struct err *err)
{
    hv_watch_silence(&hv->watch);
    hv_watch_kill(&hv->watch);
    return hv_watch_wait(&hv->watch, cancel, err) < 0
               ? err_wrap(err, "wait for the end of the pod's agent")
               : 0;
}

static int host_query(struct hv *hv, struct cancel *cancel, struct err *err)
{
    (void)cancel;
    return hv_watch_exited(&hv->watch) ? err_set(err, ERR_UNAVAILABLE, "the pod's agent has ended")
                                       : 0;
}

static struct hv_process host_process(struct hv *hv)
{
    return hv_watch_process(&hv->watch);
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
                         size_t n_parts, char guest_serial[HV_SERIAL_SIZE], struct cancel *cancel,
                         struct err *err)
{
    (void)hv;
    (void)serial;
    (void)parts;
    (void)n_parts;
    (void)guest_serial;
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
