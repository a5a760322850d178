/*
 * aspis-agent - init of a pod's VM: boots the guest, then serves the daemon's calls and the streams
 * of processes on one event loop until the machine is powered off. Of a pod without a VM it is the
 * supervisor on the host, and does the same but for the booting.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/boot.h"
#include "agent/channels.h"
#include "agent/container_cgroup.h"
#include "agent/container_stats.h"
#include "agent/containers.h"
#include "agent/forward.h"
#include "agent/host.h"
#include "agent/mirror.h"
#include "agent/older.h"
#include "agent/pidns.h"
#include "agent/pod.h"
#include "agent/rpc.h"
#include "agent/service.h"
#include "agent/size.h"
#include "agent/stdio.h"
#include "agent/uevent.h"
#include "agent/volumes.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/str.h"

#define STATE_DIR "/run/aspis/containers"
#define MAX_METHODS 64

struct agent {
    bool guest;               /* we are a guest's init */
    const char *test_dir;     /* else: tests */
    struct host_options host; /* or a pod on the host */
    struct loop *loop;
    struct pod *pod;
    struct stdio *io;
    struct volumes *volumes;
    struct mirrors *mirrors;
    struct containers *containers;
    struct container_stats *stats;
    struct forwards *forwards;
    struct service *service;
    struct size *size;
    struct rpc_method methods[MAX_METHODS];
    struct rpc_server *rpc;
    struct channels *channels;
    struct uevent_listener *uevents;
    int signal_fd;
    struct loop_source *signals;
};

static void shut_down(void *arg)
{
    struct agent *a = arg;
    if (a->guest)
        boot_power_off();
    loop_stop(a->loop);
}

static void reap(struct agent *a)
{
    for (;;) {
        int status = 0;
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid < 0 && errno == EINTR)
            continue;
        if (pid <= 0)
            return;
        pod_reaped(a->pod, pid);
        containers_reaped(a->containers, pid, status);
    }
}

static void on_signal(struct loop_source *src, uint32_t events, void *arg)
{
    struct agent *a = arg;
    struct signalfd_siginfo info;
    (void)src;
    (void)events;
    while (read(a->signal_fd, &info, sizeof(info)) == sizeof(info)) {
        if (!a->guest && (info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT))
            loop_stop(a->loop);
    }
    /* Signals of several children may have become one. */
    reap(a);
}

static void on_uevent(void *arg, const struct uevent *event)
{
    struct agent *a = arg;
    if (event == NULL) {
        size_changed(a->size);
        channels_rescan(a->channels);
        pod_device_appeared(a->pod);
        return;
    }
    if (strcmp(event->action, "remove") == 0)
        return;
    if (strcmp(event->subsystem, "virtio-ports") == 0)
        channels_rescan(a->channels);
    else if (strcmp(event->subsystem, "block") == 0 || strcmp(event->subsystem, "net") == 0)
        pod_device_appeared(a->pod);
    else if (strcmp(event->subsystem, "cpu") == 0 && strcmp(event->action, "add") == 0)
        boot_cpu_added(event->devpath);
    if (strcmp(event->subsystem, "cpu") == 0 || strcmp(event->subsystem, "memory") == 0)
        size_changed(a->size);
}

/* Signals are blocked rather than ignored or handled: an ignored SIGPIPE would pass on to
 * containers, while a blocked one is unblocked with all others in the child of each operation.
 */
static int watch_signals(struct agent *a, struct err *err)
{
    sigset_t set;
    sigfillset(&set);
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS};
    for (size_t i = 0; i < ARRAY_LEN(faults); i++)
        sigdelset(&set, faults[i]);
    if (sigprocmask(SIG_SETMASK, &set, NULL) < 0)
        return err_sys(err, errno, "block signals");
    sigset_t wanted;
    sigemptyset(&wanted);
    sigaddset(&wanted, SIGCHLD);
    sigaddset(&wanted, SIGTERM);
    sigaddset(&wanted, SIGINT);
    a->signal_fd = signalfd(-1, &wanted, SFD_CLOEXEC | SFD_NONBLOCK);
    if (a->signal_fd < 0)
        return err_sys(err, errno, "make a signalfd");
    a->signals = loop_add_fd(a->loop, a->signal_fd, EPOLLIN, on_signal, a, err);
    return a->signals ? 0 : -1;
}

static void add_methods(struct agent *a, const struct rpc_method *rows)
{
    size_t n = 0;
    while (a->methods[n].name != NULL)
        n++;
    for (; rows->name != NULL && n + 1 < MAX_METHODS; rows++)
        if (protocol_call_minor(rows->name) <= AGENT_MINOR)
            a->methods[n++] = *rows;
}

static int set_up(struct agent *a, struct err *err)
{
    auto_free char *state_dir =
        a->test_dir ? fs_format("%s/containers", a->test_dir) : xstrdup(STATE_DIR);
    if (fs_mkdir_p(state_dir, 0700, err) < 0)
        return -1;
    a->loop = loop_new(err);
    if (a->loop == NULL)
        return -1;
    a->pod = pod_new(a->loop, err);
    if (a->pod == NULL)
        return -1;
    if (a->test_dir != NULL)
        pod_use_dir(a->pod, a->test_dir);
    else if (!a->guest)
        pod_use_host(a->pod, a->host.host_net, a->host.host_ipc, a->host.host_uts, a->host.userns);
    a->io = stdio_new(a->loop, err);
    if (a->io == NULL)
        return -1;
    a->volumes = volumes_new(a->loop);
    a->containers = containers_new(a->loop, a->pod, a->io, state_dir, err);
    if (a->containers == NULL)
        return -1;
    if (a->guest || a->test_dir != NULL)
        containers_use_volumes(a->containers, a->volumes);
    else
        containers_use_host(a->containers);
    a->stats = container_stats_new(a->loop, a->containers, a->pod, err);
    if (a->stats == NULL)
        return -1;
    a->forwards = forwards_new(a->loop, a->io);
    a->service = service_new(a->loop, a->pod, shut_down, a, err);
    if (a->service == NULL)
        return -1;
    if (a->guest || a->test_dir != NULL) { /* a host keeps its size */
        a->size = size_new(a->loop, containers_events(a->containers), err);
        if (a->size == NULL)
            return -1;
        add_methods(a, size_methods(a->size));
    }
    add_methods(a, service_methods(a->service));
    add_methods(a, containers_methods(a->containers));
    add_methods(a, container_stats_methods(a->stats));
    add_methods(a, forwards_methods(a->forwards));
    a->mirrors = mirrors_new(state_dir);
    add_methods(a, mirrors_methods(a->mirrors));
    a->rpc = rpc_server_new(a->loop, a->methods, err);
    if (a->rpc == NULL || watch_signals(a, err) < 0)
        return -1;
    enum channel_kind kind = a->guest      ? CHANNELS_AUTO
                             : a->test_dir ? CHANNELS_UNIX
                                           : CHANNELS_GIVEN;
    a->channels = channels_new(a->loop, kind, a->test_dir, a->rpc, a->io, a->volumes, err);
    if (a->channels == NULL)
        return -1;
    if (a->guest) {
        a->uevents = uevent_listen(a->loop, on_uevent, a, err);
        if (a->uevents == NULL)
            return -1;
        /* Whatever came between the first look and the first event. */
        channels_rescan(a->channels);
    }
    return 0;
}

static void tear_down(struct agent *a)
{
    uevent_listener_free(a->uevents);
    if (a->channels != NULL)
        channels_free(a->channels);
    if (a->rpc != NULL)
        rpc_server_free(a->rpc);
    service_free(a->service);
    size_free(a->size);
    forwards_free(a->forwards);
    container_stats_free(a->stats);
    if (a->containers != NULL)
        containers_free(a->containers);
    volumes_free(a->volumes);
    mirrors_free(a->mirrors);
    if (a->io != NULL)
        stdio_free(a->io);
    pod_free(a->pod);
    loop_remove(a->signals);
    if (a->signal_fd >= 0)
        (void)close(a->signal_fd);
    if (a->loop != NULL)
        loop_free(a->loop);
}

static int usage(int status)
{
    (void)fprintf(
        status ? stderr : stdout,
        "Usage: aspis-agent --test-dir DIR\n"
        "       aspis-agent --host DIR --state DIR --cgroup PATH [option...]\n"
        "Init of an Aspis pod VM. Outside of one, with --test-dir, it serves the same calls on\n"
        "DIR/rpc.sock and DIR/io.sock, keeps its files in DIR and changes nothing else; with "
        "--host,\n"
        "as aspisd starts it, it is the supervisor of a pod without a VM.\n"
        "  --test-dir DIR  as above\n"
        "  --host DIR      the pod's run directory; sockets are descriptors 3 to 5\n"
        "  --state DIR     for what containers write\n"
        "  --cgroup PATH   the pod's, below each hierarchy\n"
        "  --join DIR      a cgroup's directory to enter; repeatable\n"
        "  --netns FILE    network namespace to enter\n"
        "  --host-net, --host-ipc, --host-uts  what the pod shares with the host\n"
        "  --version       print the version\n"
        "  --help          print this\n");
    return status;
}

/* -1: go on; else the exit status. */
static int parse_options(struct agent *a, int argc, char **argv)
{
    static const struct option options[] = {
        {"test-dir", required_argument, NULL, 't'}, {"host", required_argument, NULL, 'H'},
        {"state", required_argument, NULL, 's'},    {"cgroup", required_argument, NULL, 'c'},
        {"join", required_argument, NULL, 'j'},     {"netns", required_argument, NULL, 'n'},
        {"host-net", no_argument, NULL, 'N'},       {"host-ipc", no_argument, NULL, 'I'},
        {"host-uts", no_argument, NULL, 'U'},       {"version", no_argument, NULL, 'v'},
        {"help", no_argument, NULL, 'h'},           {NULL, 0, NULL, 0},
    };
    struct host_options *o = &a->host;
    int c;
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 't':
            a->test_dir = optarg;
            break;
        case 'H':
            o->run_dir = optarg;
            break;
        case 's':
            o->state_dir = optarg;
            break;
        case 'c':
            o->cgroup = optarg;
            break;
        case 'j':
            if (o->n_join == HOST_MAX_JOIN)
                return usage(2);
            o->join[o->n_join++] = optarg;
            break;
        case 'n':
            o->netns = optarg;
            break;
        case 'N':
            o->host_net = true;
            break;
        case 'I':
            o->host_ipc = true;
            break;
        case 'U':
            o->host_uts = true;
            break;
        case 'v':
            (void)puts("aspis-agent " ASPIS_VERSION);
            return 0;
        case 'h':
            return usage(0);
        default:
            return usage(2);
        }
    }
    bool host = o->run_dir != NULL && o->state_dir != NULL && o->cgroup != NULL &&
                o->host_net == (o->netns == NULL);
    return optind < argc || host == (a->test_dir != NULL) ? usage(2) : -1;
}

static int start(struct agent *a, struct err *err)
{
    if (!a->guest && a->test_dir == NULL) {
        if (host_enter(&a->host, err) < 0)
            return -1;
        cgroup_use_host(a->host.cgroup);
    }
    return set_up(a, err);
}

int main(int argc, char **argv)
{
    if (argc > 0 && strcmp(argv[0], PIDNS_INIT_NAME) == 0)
        pidns_init_main();

    struct agent a = {.signal_fd = -1, .host.userns = -1};
    a.guest = getpid() == 1;
    if (a.guest) {
        /* Arguments of init are words of the kernel's command line that the kernel did not know. */
        boot_system();
    } else {
        int status = parse_options(&a, argc, argv);
        if (status >= 0)
            return status;
        (void)prctl(PR_SET_CHILD_SUBREAPER, 1);
    }
    (void)log_init("aspis-agent", LOG_LEVEL_INFO, false);

    auto_err struct err err = ERR_INIT;
    int r = start(&a, &err);
    if (r < 0) {
        log_error("cannot serve", LOG_STR("error", err_msg(&err)));
        if (a.guest)
            boot_power_off(); /* nobody could ever reach this machine */
    } else {
        log_info("serving", LOG_STR("version", ASPIS_VERSION));
        loop_run(a.loop);
    }
    tear_down(&a);
    return r < 0 ? 1 : 0;
}
