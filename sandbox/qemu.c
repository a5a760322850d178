/*
 * The QEMU driver: process, control connection, and the end of the VM.
 *
 * A VM is over when its process has exited and QMP's last events have been read; then on_dead says
 * why, from the best witness: what QMP announced (guest panic or reset, an internal error), else
 * the exit status, and in any case the last lines of QEMU and of the guest's console.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/spawn.h"
#include "base/str.h"
#include "proto/frame.h"
#include "sandbox/jail.h"
#include "sandbox/qemu_fork.h"
#include "sandbox/qemu_vm.h"
#include "sandbox/qemu_zygote.h"
#include "sandbox/sockets.h"

#define LINGER_NS INT64_C(1000000000)
#define QEMU_NOFILE 16384 /* 31 disks of up to 129 descriptors, each opened twice */

/* --- the end --- */

static char *exit_text(struct hv *hv)
{
    char text[64];
    if (hv->why != NULL)
        return xstrdup(hv->why);
    if (!hv->watch.child)
        return xstrdup("qemu ended");
    return fs_format("qemu ended with %s", spawn_status_text(hv->watch.status, text, sizeof(text)));
}

/* Loop thread. */
static void report_if_over(void *arg)
{
    struct hv *hv = arg;
    if (!hv_watch_exited(&hv->watch) || !hv->qmp_closed || hv->reported ||
        hv_watch_silenced(&hv->watch))
        return;
    hv->reported = true;
    console_drain(hv->console);
    console_drain(hv->output);
    auto_free char *what = exit_text(hv);
    auto_free char *said = console_tail(hv->output, LIMIT_GUEST_ERROR / 2);
    auto_free char *console = console_tail(hv->console, LIMIT_GUEST_ERROR / 2);
    /* its register dump often fills the tail */
    auto_free char *panic = console_line(hv->console, "Kernel panic");
    auto_buf struct buf text = BUF_INIT(2 * LIMIT_GUEST_ERROR);
    (void)buf_puts(&text, what);
    if (panic != NULL)
        (void)buf_printf(&text, "; guest: %s", panic);
    if (!str_empty(said))
        (void)buf_printf(&text, "; qemu: %s", said);
    if (!str_empty(console))
        (void)buf_printf(&text, "; console: %s", console);
    hv->cb.on_dead(hv->cb.arg, buf_str(&text));
}

static void note(struct hv *hv, const char *why)
{
    if (hv->why == NULL)
        hv->why = xstrdup(why);
}

static void on_event(void *arg, const char *event, const json_t *data)
{
    struct hv *hv = arg;
    if (strcmp(event, "GUEST_PANICKED") == 0) {
        note(hv, "the guest kernel panicked");
        hv_watch_kill(&hv->watch);
    } else if (strcmp(event, "SHUTDOWN") == 0) {
        const char *reason = json_string_value(json_object_get(data, "reason"));
        if (reason != NULL && strcmp(reason, "guest-reset") == 0)
            note(hv, "the guest reset itself (kernel panic or end of its init)");
        else if (reason != NULL && strcmp(reason, "guest-shutdown") == 0)
            note(hv, "the guest powered off");
    } else if (strcmp(event, "MIGRATION") == 0) {
        const char *status = json_string_value(json_object_get(data, "status"));
        qemu_on_migration(hv, status != NULL ? status : "");
        if (status != NULL && strcmp(status, "failed") == 0 && !atomic_load(&hv->copying)) {
            note(hv, "qemu could not save or load the state");
            hv_watch_kill(&hv->watch);
        }
    } else if (strcmp(event, "STOP") == 0 && !atomic_load(&hv->saving)) {
        /* nothing of ours stops a VM: QEMU does on an internal error (KVM cannot run the guest) */
        note(hv, "qemu stopped the vm after an internal error");
        hv_watch_kill(&hv->watch);
    }
}

static void on_linger(struct loop_source *src, void *arg)
{
    struct hv *hv = arg;
    (void)src;
    hv_watch_kill(&hv->watch);
}

static void on_closed(void *arg, const char *reason)
{
    struct hv *hv = arg;
    hv->qmp_closed = true;
    (void)eventfd_write(hv->migrated, 1);
    if (atomic_load(&hv->frozen)) {
        /* as it was asked to */
    } else if (strstr(reason, "closed by qemu") != NULL) {
        /* it is on its way out and should be left to say with which status */
        hv->linger = loop_add_timer(hv->watch.control, LINGER_NS, on_linger, hv, NULL);
    } else {
        note(hv, reason);
        hv_watch_kill(&hv->watch);
    }
    report_if_over(hv);
}

/* --- making and freeing --- */

static struct hv *make(const char *run_dir, struct loop *control, const struct hv_callbacks *cb,
                       struct err *err)
{
    struct hv *hv = xcalloc(1, sizeof(*hv));
    hv->cb = *cb;
    hv->run_dir = xstrdup(run_dir);
    hv->vsock = (struct spawn_proc)SPAWN_PROC_INIT;
    (void)pthread_mutex_init(&hv->disks, NULL);
    (void)pthread_mutex_init(&hv->forking, NULL);
    hv->migrated = hv->fork_fd = -1;
    int ret = hv_watch_init(&hv->watch, control, report_if_over, hv, err);
    if (ret == 0 && (hv->migrated = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
        ret = err_sys(err, errno, "make eventfd");
    if (ret < 0) {
        qemu_hv.free(hv);
        return NULL;
    }
    return hv;
}

static void stop_linger(void *arg)
{
    struct hv *hv = arg;
    loop_remove(hv->linger);
    hv->linger = NULL;
}

static void qemu_free(struct hv *hv)
{
    if (hv == NULL)
        return;
    hv_watch_silence(&hv->watch);
    qmp_close(hv->qmp, "the daemon let go of the vm");
    hv_watch_stop(&hv->watch);
    loop_call(hv->watch.control, stop_linger, hv);
    qmp_unref(hv->qmp);
    console_free(hv->console);
    console_free(hv->output);
    cleanup_closep(&hv->vsock.pidfd);
    cleanup_closep(&hv->migrated);
    cleanup_closep(&hv->fork_fd);
    (void)pthread_mutex_destroy(&hv->forking);
    hv_watch_clear(&hv->watch);
    for (size_t i = 0; i < ARRAY_LEN(hv->slots); i++)
        free(hv->slots[i]);
    (void)pthread_mutex_destroy(&hv->disks);
    free(hv->why);
    free(hv->run_dir);
    free(hv);
}

static int open_console(struct hv *hv, struct err *err)
{
    int fd = socket_connect_at(hv->run_dir, HV_SOCKET_CONSOLE, err);
    if (fd < 0)
        return -1;
    auto_free char *path = fs_format("%s/%s", hv->run_dir, HV_CONSOLE_FILE);
    hv->console = console_new(hv->watch.control, fd, path, err);
    return hv->console != NULL ? 0 : -1;
}

static int open_output(struct hv *hv, int fd, struct err *err)
{
    auto_free char *path = fs_format("%s/%s", hv->run_dir, HV_OUTPUT_FILE);
    hv->output = console_new(hv->watch.control, fd, path, err);
    return hv->output != NULL ? 0 : -1;
}

static int open_control(struct hv *hv, struct err *err)
{
    int fd = socket_connect_at(hv->run_dir, HV_SOCKET_CONTROL, err);
    if (fd < 0)
        return -1;
    struct qmp_callbacks cb = {.on_event = on_event, .on_closed = on_closed, .arg = hv};
    hv->qmp = qmp_new(hv->watch.control, fd, &cb, err);
    return hv->qmp != NULL ? 0 : -1;
}

/* --- launch --- */

struct endpoints {
    int control, console, channel[LINK_CHANNELS], output[2], vhost;
    int vsock_listen, vsock, ram; /* of aspis-vsock */
    int fork[2];                  /* ours and that of aspis-fork.so */
};

static void close_endpoints(struct endpoints *e)
{
    cleanup_closep(&e->control);
    cleanup_closep(&e->console);
    for (int i = 0; i < LINK_CHANNELS; i++)
        cleanup_closep(&e->channel[i]);
    cleanup_closep(&e->output[0]);
    cleanup_closep(&e->output[1]);
    cleanup_closep(&e->vhost);
    cleanup_closep(&e->vsock_listen);
    cleanup_closep(&e->vsock);
    cleanup_closep(&e->ram);
    cleanup_closep(&e->fork[0]);
    cleanup_closep(&e->fork[1]);
}

/* Whether QEMU serves the channels itself. */
static bool has_ports(const struct hv_spec *s)
{
    return s->cid == 0 && (!s->user_vsock || qemu_is_clone(s));
}

static int make_endpoints(const struct hv_spec *s, struct endpoints *e, struct err *err)
{
    static const char *const names[LINK_CHANNELS] = HV_SOCKETS_CHANNEL;
    if ((e->control = socket_listen_at(s->run_dir, HV_SOCKET_CONTROL, err)) < 0 ||
        (e->console = socket_listen_at(s->run_dir, HV_SOCKET_CONSOLE, err)) < 0)
        return -1;
    for (int i = 0; has_ports(s) && i < LINK_CHANNELS; i++) {
        if ((e->channel[i] = socket_listen_at(s->run_dir, names[i], err)) < 0)
            return -1;
    }
    if (s->cid != 0 && (e->vhost = open("/dev/vhost-vsock", O_RDWR | O_CLOEXEC)) < 0)
        return err_sys(err, errno, "open /dev/vhost-vsock");
    if (s->user_vsock &&
        ((e->vsock_listen = socket_listen_at(s->run_dir, HV_SOCKET_VSOCK, err)) < 0 ||
         (e->ram = qemu_vsock_ram(s, err)) < 0))
        return -1;
    if (pipe2(e->output, O_CLOEXEC) < 0)
        return err_sys(err, errno, "make pipe");
    if (s->fork_library != NULL &&
        socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, e->fork) < 0)
        return err_sys(err, errno, "make socket pair");
    return 0;
}

#define MAX_FDS 20

static size_t list_fds(const struct hv_spec *s, const struct endpoints *e,
                       struct spawn_fd fds[MAX_FDS])
{
    size_t n = 0;
    fds[n++] = (struct spawn_fd){1, e->output[1]};
    fds[n++] = (struct spawn_fd){2, e->output[1]};
    fds[n++] = (struct spawn_fd){QEMU_FD_CONTROL, e->control};
    fds[n++] = (struct spawn_fd){QEMU_FD_CONSOLE, e->console};
    for (int i = 0; has_ports(s) && i < LINK_CHANNELS; i++)
        fds[n++] = (struct spawn_fd){QEMU_FD_CHANNEL + i, e->channel[i]};
    if (s->tap_fd >= 0)
        fds[n++] = (struct spawn_fd){QEMU_FD_TAP, s->tap_fd};
    if (s->scratch_fd >= 0)
        fds[n++] = (struct spawn_fd){QEMU_FD_SCRATCH, s->scratch_fd};
    if (s->fork_of != NULL)
        return n;
    if (e->vhost >= 0)
        fds[n++] = (struct spawn_fd){QEMU_FD_VHOST, e->vhost};
    if (e->vsock >= 0)
        fds[n++] = (struct spawn_fd){QEMU_FD_VSOCK, e->vsock};
    if (s->tpl != NULL)
        fds[n++] = (struct spawn_fd){QEMU_FD_RAM, s->tpl->ram_fd};
    if (qemu_is_clone(s))
        fds[n++] = (struct spawn_fd){QEMU_FD_STATE, s->tpl->state_fd};
    if (s->restore != NULL)
        fds[n++] = (struct spawn_fd){QEMU_FD_STATE, s->restore->state_fd};
    if (e->fork[1] >= 0)
        fds[n++] = (struct spawn_fd){QEMU_FD_FORK, e->fork[1]};
    return n;
}

static int start_process(struct hv *hv, const struct hv_spec *s, const struct endpoints *e,
                         struct cancel *cancel, struct err *err)
{
    const struct qemu_arch *arch = qemu_arch_host();
    auto_strv struct strv argv = {0};
    if (arch == NULL)
        return err_set(err, ERR_UNIMPLEMENTED, "qemu is not supported on this architecture");
    if (qemu_argv(s, arch, &argv, err) < 0)
        return -1;
    struct jail_bind binds[16];
    size_t n = 0;
    for (; n < JAIL_LIBRARIES_N; n++)
        binds[n] = JAIL_LIBRARIES[n];
    binds[n++] = (struct jail_bind){.src = s->binary};
    binds[n++] = (struct jail_bind){.src = "/usr/share/qemu"};
    binds[n++] = (struct jail_bind){.src = "/usr/share/seabios", .optional = true};
    /* what QEMU frees is to be free: one arena, nothing kept by GLib or in ever larger blocks */
    auto_strv struct strv env = {0};
    strv_add(&env, "G_SLICE=always-malloc");
    strv_add(&env, "MALLOC_ARENA_MAX=1");
    strv_add(&env, "MALLOC_MMAP_THRESHOLD_=131072");
    strv_add(&env, "MALLOC_TRIM_THRESHOLD_=131072");
    auto_buf struct buf preload = BUF_INIT(KiB(1));
    if (s->fork_library != NULL) { /* before the others: it has what aspis-pages.so has of theirs */
        binds[n++] = (struct jail_bind){.src = s->fork_library, .dst = QEMU_JAIL_FORK};
        (void)buf_puts(&preload, QEMU_JAIL_FORK ":");
        strv_addf(&env, FORK_FD_VARIABLE "=%d", QEMU_FD_FORK);
    }
    if (qemu_is_clone(s) && s->pages_library != NULL) {
        binds[n++] = (struct jail_bind){.src = s->pages_library, .dst = QEMU_JAIL_PAGES};
        (void)buf_puts(&preload, QEMU_JAIL_PAGES ":");
    }
    if (qemu_is_clone(s) && s->thrift.absent != NULL) {
        binds[n++] = (struct jail_bind){.src = s->thrift.absent, .dst = QEMU_JAIL_ABSENT};
        strv_add(&env, "LD_LIBRARY_PATH=" QEMU_JAIL_ABSENT);
    }
    if (preload.len > 0)
        strv_addf(&env, "LD_PRELOAD=%s", buf_str(&preload));
    if (qemu_trims(s))
        binds[n++] = (struct jail_bind){.src = s->thrift.trim, .dst = QEMU_JAIL_TRIM};
    if (!qemu_is_incoming(s)) {
        binds[n++] = (struct jail_bind){.src = s->kernel, .dst = QEMU_JAIL_KERNEL};
        binds[n++] = (struct jail_bind){.src = s->initrd, .dst = QEMU_JAIL_INITRD};
    }
    struct spawn_fd fds[MAX_FDS];
    size_t n_fds = list_fds(s, e, fds);
    const struct jail_rlimit limits[] = {{"nofile", QEMU_NOFILE}, {"core", 0}};
    /* for its copies' sake, each of which makes a jail of its own and gives these up (qemu_fork.c)
     */
    static const char *const zygote_caps[] = {"setgid", "setuid", "setpcap", "sys_admin", NULL};
    const char *devices[] = {s->accel == ACCEL_KVM ? "/dev/kvm" : NULL, NULL};
    struct jail_opts jail = {
        .helper = s->jail_helper,
        .uid = s->uid,
        .cgroups = s->cgroups,
        .binds = binds,
        .n_binds = n,
        .devices = devices,
        .rlimits = limits,
        .n_rlimits = ARRAY_LEN(limits),
        .proc_self = s->tpl != NULL, /* the way to a descriptor by name */
        .argv = (const char *const *)argv.v,
        .env = (const char *const *)env.v,
        .caps = s->fork_library != NULL ? zygote_caps : NULL,
        .share_pid = s->fork_library != NULL,
        .fds = fds,
        .n_fds = n_fds,
    };
    struct spawn_proc proc;
    if (jail_spawn(&jail, cancel, &proc, err) < 0)
        return -1;
    hv_watch_launched(&hv->watch, &proc);
    return 0;
}

static int start_copy(struct hv *hv, const struct hv_spec *s, const struct endpoints *e,
                      struct cancel *cancel, struct err *err)
{
    struct spawn_fd fds[MAX_FDS];
    struct spawn_proc proc;
    if (qemu_fork(s, fds, list_fds(s, e, fds), cancel, &proc, err) < 0)
        return -1;
    hv_watch_launched(&hv->watch, &proc);
    return 0;
}

/* QEMU's own words say more than "connection closed". */
static void explain(struct hv *hv, struct err *err)
{
    if (err->code == ERR_UNAVAILABLE) {
        auto_cancel struct cancel *c = cancel_new(mono_ns() + LINGER_NS, NULL);
        if (c != NULL)
            (void)hv_watch_wait(&hv->watch, c, NULL);
        auto_free char *said = console_tail(hv->output, LIMIT_GUEST_ERROR / 2);
        if (!str_empty(said))
            (void)err_append(err, ": %s", said);
    }
}

static int launch_steps(struct hv *hv, const struct hv_spec *spec, struct endpoints *e,
                        struct cancel *cancel, struct err *err)
{
    if (FAILPOINT("machine.sockets", err) < 0 || make_endpoints(spec, e, err) < 0)
        return -1;
    struct hv_spec own = *spec; /* with the memory that device and guest share */
    struct hv_template ram = {.ram_fd = e->ram,
                              .state_fd = spec->tpl != NULL ? spec->tpl->state_fd : -1,
                              .scratch_fd = -1};
    if (spec->user_vsock)
        own.tpl = &ram;
    const struct hv_spec *s = &own;
    if (open_control(hv, err) < 0 || open_console(hv, err) < 0)
        return -1;
    if (open_output(hv, take_fd(&e->output[0]), err) < 0)
        return -1;
    if (s->user_vsock &&
        (e->vsock = qemu_vsock_start(hv, s, e->vsock_listen, e->output[1], cancel, err)) < 0)
        return -1;
    if (FAILPOINT("machine.spawn", err) < 0 ||
        (s->fork_of != NULL ? start_copy : start_process)(hv, s, e, cancel, err) < 0)
        return -1;
    hv->fork_fd = take_fd(&e->fork[0]);
    close_endpoints(e); /* only QEMU holds them now, so its death is seen as end of stream */
    if (hv_watch_begin(&hv->watch, err) < 0)
        return -1;
    if (FAILPOINT("machine.qmp", err) < 0 || qmp_wait_ready(hv->qmp, cancel, err) < 0) {
        explain(hv, err);
        return -1;
    }
    if (s->fork_of != NULL)
        return qmp_run(hv->qmp, "cont", NULL, -1, cancel, err);
    if (qemu_is_clone(s) && (qemu_load_state(hv, s->user_vsock, cancel, err) < 0 ||
                             (s->user_vsock && qemu_vsock_plug(hv, cancel, err) < 0))) {
        explain(hv, err);
        return -1;
    }
    if (s->restore != NULL && qemu_restore(hv, s->restore, cancel, err) < 0) {
        explain(hv, err);
        return -1;
    }
    return 0;
}

static struct hv *qemu_launch(const struct hv_spec *spec, struct loop *control,
                              const struct hv_callbacks *cb, struct cancel *cancel, struct err *err)
{
    struct endpoints e = {-1, -1, {-1, -1, -1}, {-1, -1}, -1, -1, -1, -1, {-1, -1}};
    struct hv *hv = make(spec->run_dir, control, cb, err);
    if (hv == NULL)
        return NULL;
    for (size_t i = 0; i < ARRAY_LEN(hv->fixed); i++)
        hv->fixed[i] = spec->scratch_fd >= 0;
    int ret = launch_steps(hv, spec, &e, cancel, err);
    close_endpoints(&e);
    if (ret < 0) {
        (void)qemu_hv.quit(hv, NULL, NULL);
        qemu_free(hv);
        (void)err_wrap(err, "start qemu");
        return NULL;
    }
    return hv;
}

/* --- adopt --- */

static int adopt_steps(struct hv *hv, const struct hv_process *process, const char *binary,
                       struct cancel *cancel, struct err *err)
{
    if (hv_watch_adopted(&hv->watch, process, binary, err) < 0)
        return -1;
    if (FAILPOINT("machine.adopt", err) < 0 || open_control(hv, err) < 0 ||
        open_console(hv, err) < 0 || hv_watch_begin(&hv->watch, err) < 0)
        return -1;
    if (qmp_wait_ready(hv->qmp, cancel, err) < 0 || qemu_list_disks(hv, cancel, err) < 0 ||
        qemu_wake(hv, cancel, err) < 0)
        return -1;
    return qemu_hv.query(hv, cancel, err);
}

static struct hv *qemu_adopt(const struct hv_process *process, const char *run_dir,
                             const char *binary, struct loop *control,
                             const struct hv_callbacks *cb, struct cancel *cancel, struct err *err)
{
    struct hv *hv = make(run_dir, control, cb, err);
    if (hv == NULL)
        return NULL;
    if (adopt_steps(hv, process, binary, cancel, err) < 0) {
        qemu_free(hv);
        (void)err_wrap(err, "adopt qemu");
        return NULL;
    }
    return hv;
}

/* --- the rest --- */

static int qemu_query(struct hv *hv, struct cancel *cancel, struct err *err)
{
    json_auto_t *r = qmp_call(hv->qmp, "query-status", NULL, -1, cancel, err);
    if (r == NULL)
        return -1;
    const char *status = json_string_value(json_object_get(r, "status"));
    if (status == NULL || strcmp(status, "running") != 0)
        return err_set(err, ERR_UNAVAILABLE, "the vm is %s", status != NULL ? status : "unknown");
    return 0;
}

static int qemu_quit(struct hv *hv, struct cancel *cancel, struct err *err)
{
    hv_watch_silence(&hv->watch);
    /* QMP's quit would only be slower: no disk of it outlives the VM */
    hv_watch_kill(&hv->watch);
    /* a killed process is gone in a moment unless the kernel holds it in uninterruptible I/O */
    if (hv_watch_wait(&hv->watch, cancel, err) < 0)
        return err_wrap(err, "wait for qemu's end");
    qemu_vsock_end(hv);
    return 0;
}

static struct hv_process qemu_process(struct hv *hv)
{
    return hv_watch_process(&hv->watch);
}

static char *qemu_console_tail(struct hv *hv)
{
    return console_tail(hv->console, LIMIT_GUEST_ERROR / 2);
}

static char *qemu_version(const char *binary, struct cancel *cancel, struct err *err)
{
    const char *argv[] = {binary, "--version", NULL};
    const char *env[] = {NULL};
    struct spawn_opts o = {.path = binary, .argv = argv, .env = env};
    auto_buf struct buf out = BUF_INIT(KiB(4));
    int status = 0;
    if (spawn_run(&o, NULL, 0, &out, NULL, cancel, &status, err) < 0)
        return NULL;
    static const char prefix[] = "QEMU emulator version ";
    const char *text = buf_str(&out);
    if (status != 0 || !str_starts(text, prefix)) {
        (void)err_set(err, ERR_INTERNAL, "%s --version: not understood", binary);
        return NULL;
    }
    text += sizeof(prefix) - 1;
    return xstrndup(text, strcspn(text, "\n"));
}

const struct hv_ops qemu_hv = {
    .name = "qemu",
    .version = qemu_version,
    .takes = qemu_takes,
    .shape = qemu_shape,
    .launch = qemu_launch,
    .adopt = qemu_adopt,
    .add_disk = qemu_add_disk,
    .add_device = qemu_add_device,
    .remove_disk = qemu_remove_disk,
    .resize = qemu_resize,
    .size = qemu_size,
    .freeze = qemu_freeze,
    .pin = qemu_pin_vcpus,
    .save = qemu_save,
    .used = qemu_used,
    .checkpoint = qemu_checkpoint,
    .query = qemu_query,
    .quit = qemu_quit,
    .process = qemu_process,
    .console_tail = qemu_console_tail,
    .free = qemu_free,
};
