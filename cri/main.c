/*
 * aspisd - the daemon: puts the parts together, serves, and takes them apart again.
 *
 * Order matters. Start: lock (so that nothing is touched twice), stores, recovery, then serving.
 * Stop: the other way round; pods run on, and the next aspisd adopts them.
 */
#include <getopt.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>

#include "base/cancel.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/loop.h"
#include "cri/check.h"
#include "cri/config.h"
#include "cri/daemon.h"
#include "cri/grpc.h"
#include "cri/runtime.h"
#include "cri/socket.h"
#include "cri/streaming/server.h"
#include "cri/telemetry_http.h"

/* Descriptors per pod: QMP, two channels, streams, tap, disks; and some per call. */
#define WANTED_FDS 65536
#define ARENAS 2 /* heaps of malloc */

/* Everything between start and stop. Freed by shut_down(), which accepts it half made. */
struct parts {
    struct config *config;
    int lock;
    struct cancel *stop; /* fires at SIGTERM or SIGINT */
    struct loop *control, *io;
    pthread_t control_thread, io_thread, accel_thread;
    bool control_runs, io_runs, accel_runs;
    struct daemon daemon;
    struct gserver *server;
    struct telemetry_server *telemetry;
};

static void usage(FILE *out)
{
    (void)fputs("Usage: aspisd [--config FILE] [--check]\n"
                "\n"
                "A Kubernetes container runtime: serves CRI and runs each pod in a VM.\n"
                "\n"
                "  -c, --config FILE  configuration (default " CONFIG_DEFAULT_PATH
                ", if it exists)\n"
                "      --check        say what this machine can do for pods, and exit\n"
                "      --version      print the version, and exit\n"
                "  -h, --help         print this, and exit\n",
                out);
}

/* --- signals --- */

static void block_signals(sigset_t *set)
{
    (void)sigemptyset(set);
    (void)sigaddset(set, SIGTERM);
    (void)sigaddset(set, SIGINT);
    (void)sigaddset(set, SIGHUP);
    (void)pthread_sigmask(SIG_BLOCK, set, NULL);
    (void)signal(SIGPIPE, SIG_IGN);
    (void)signal(SIGXFSZ, SIG_IGN); /* a file size limit is an error like a full disk */
}

struct waiter {
    sigset_t set;
    struct cancel *stop;
    atomic_bool done;
};

static void *signal_thread(void *arg)
{
    const struct waiter *w = arg;
    int sig;
    while (sigwait(&w->set, &sig) == 0 && !atomic_load(&w->done)) {
        if (sig == SIGHUP) {
            log_info("SIGHUP ignored: the configuration is read at start");
            continue;
        }
        log_info("stopping", LOG_STR("signal", strsignal(sig)));
        (void)sd_notify(0, "STOPPING=1");
        cancel_fire(w->stop);
    }
    return NULL;
}

/* --- parts --- */

static void *loop_thread(void *arg)
{
    loop_run(arg);
    return NULL;
}

static int start_loop(struct loop **loop, pthread_t *thread, bool *runs, struct err *err)
{
    *loop = loop_new(err);
    if (*loop == NULL)
        return -1;
    int rc = pthread_create(thread, NULL, loop_thread, *loop);
    if (rc != 0)
        return err_sys(err, rc, "start a loop's thread");
    *runs = true;
    return 0;
}

static void end_loop(struct loop *loop, pthread_t thread, bool runs)
{
    if (runs) {
        loop_stop(loop);
        (void)pthread_join(thread, NULL);
    }
    if (loop != NULL)
        loop_free(loop);
}

/* Boots a VM under KVM, so it runs beside everything else; the first pod waits for it. */
static void *accel_thread(void *arg)
{
    const struct parts *p = arg;
    auto_err struct err err = ERR_INIT;
    struct machine_facts facts = {0};
    if (machine_decide_accel(p->daemon.factory, p->stop, &err) < 0)
        log_warn("accelerator not decided", LOG_STR("error", err_msg(&err)));
    else if (machine_facts(p->daemon.factory, &facts, &err) == 0)
        log_info("accelerator", LOG_STR("reason", facts.accel_reason));
    machine_facts_clear(&facts);
    return NULL;
}

static void raise_fd_limit(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) < 0 || r.rlim_cur >= WANTED_FDS)
        return;
    struct rlimit all = {.rlim_cur = WANTED_FDS,
                         .rlim_max = r.rlim_max > WANTED_FDS ? r.rlim_max : WANTED_FDS};
    if (setrlimit(RLIMIT_NOFILE, &all) == 0)
        return;
    r.rlim_cur = r.rlim_max; /* not allowed to raise the hard limit */
    (void)setrlimit(RLIMIT_NOFILE, &r);
    log_warn("few file descriptors", LOG_INT("limit", r.rlim_cur));
}

static int open_stores(struct parts *p, struct err *err)
{
    struct daemon *d = &p->daemon;
    const struct config *c = p->config;
    d->config = c;
    d->started_ns = wall_ns();
    d->image_in_use = runtime_image_in_use;
    if (start_loop(&p->control, &p->control_thread, &p->control_runs, err) < 0 ||
        start_loop(&p->io, &p->io_thread, &p->io_runs, err) < 0)
        return -1;
    d->control = p->control;
    d->io = p->io;
    d->factory = machine_factory_new(&c->machine, p->control, p->io, err);
    if (d->factory == NULL)
        return err_wrap(err, "machines");
    d->cni = cni_new(&c->cni, p->control, err);
    if (d->cni == NULL)
        return err_wrap(err, "network");
    d->images = image_store_open(&c->images, err);
    if (d->images == NULL || image_recover(d->images, err) < 0)
        return err_wrap(err, "image store");
    struct runtime_deps deps = {
        .control = p->control,
        .io = p->io,
        .factory = d->factory,
        .cni = d->cni,
        .images = d->images,
        .run_root = c->run_root,
        .state_root = c->state_root,
        .privileged_on_host = c->privileged_pods == BACKEND_HOST,
        .spares = c->machine.templates ? c->spares : 0,
        .guest_silence_ns = c->guest_silence_ns,
    };
    d->runtime = runtime_new(&deps, err);
    if (d->runtime == NULL || runtime_recover(d->runtime, p->stop, err) < 0 ||
        runtime_watch(d->runtime, err) < 0)
        return err_wrap(err, "runtime");
    struct stream_server_options streaming = {
        .runtime = d->runtime,
        .address = c->streaming.address,
        .port = (uint16_t)c->streaming.port,
        .certificate = c->streaming.certificate,
        .key = c->streaming.key,
        .idle_ns = c->streaming.idle_timeout_ns,
    };
    d->streams = stream_server_start(&streaming, err);
    if (d->streams == NULL)
        return err_wrap(err, "streaming server");
    auto_free char *metrics = fs_format("%s/" TELEMETRY_SOCKET, c->run_root);
    if (c->metrics)
        p->telemetry = telemetry_server_start(metrics, d->runtime, err);
    if (c->metrics && p->telemetry == NULL)
        return err_wrap(err, "metrics");
    return 0;
}

static int start(struct parts *p, struct err *err)
{
    p->lock = socket_lock(p->config->socket, err);
    if (p->lock < 0 || open_stores(p, err) < 0)
        return -1;
    machine_start_templates(p->daemon.factory);
    p->accel_runs = pthread_create(&p->accel_thread, NULL, accel_thread, p) == 0;
    struct gserver_opts opts = {.socket_path = p->config->socket, .daemon = &p->daemon};
    opts.methods = dispatch_methods(&opts.n_methods);
    p->server = gserver_start(&opts, err);
    if (p->server == NULL)
        return -1;
    log_info("serving", LOG_STR("version", ASPIS_VERSION), LOG_STR("socket", p->config->socket),
             LOG_INT("start_ms", (wall_ns() - p->daemon.started_ns) / 1000000));
    (void)sd_notify(0, "READY=1");
    return 0;
}

static void shut_down(struct parts *p)
{
    cancel_fire(p->stop);
    gserver_stop(p->server);
    telemetry_server_stop(p->telemetry);
    if (p->accel_runs)
        (void)pthread_join(p->accel_thread, NULL);
    struct daemon *d = &p->daemon;
    stream_server_stop(d->streams); /* its sessions use containers */
    if (d->runtime != NULL)
        runtime_free(d->runtime);
    if (d->images != NULL)
        image_store_close(d->images);
    if (d->cni != NULL)
        cni_free(d->cni);
    if (d->factory != NULL)
        machine_factory_free(d->factory);
    end_loop(p->io, p->io_thread, p->io_runs);
    end_loop(p->control, p->control_thread, p->control_runs);
    cleanup_closep(&p->lock);
}

static int serve(struct config *config)
{
    struct waiter waiter = {.done = false};
    block_signals(&waiter.set); /* before any thread exists */
    raise_fd_limit();
    (void)umask(022);
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *stop = cancel_new(0, &err);
    waiter.stop = stop;
    pthread_t signals;
    if (stop == NULL || pthread_create(&signals, NULL, signal_thread, &waiter) != 0) {
        log_error("cannot start", LOG_STR("error", err_msg(&err)));
        return 1;
    }
    struct parts p = {.config = config, .lock = -1, .stop = stop};
    int rc = start(&p, &err);
    if (rc == 0) {
        struct pollfd fd = {.fd = cancel_fd(stop), .events = POLLIN};
        while (!cancel_fired(stop))
            (void)poll(&fd, 1, -1);
    } else if (!cancel_fired(stop)) {
        log_error("cannot start", LOG_STR("error", err_msg(&err)));
    } else {
        rc = 0; /* told to stop while starting */
    }
    shut_down(&p);
    atomic_store(&waiter.done, true);
    (void)pthread_kill(signals, SIGHUP);
    (void)pthread_join(signals, NULL);
    log_info("stopped");
    return rc < 0 ? 1 : 0;
}

static void start_log(const struct config *c)
{
    /* systemd sets JOURNAL_STREAM when it connects our stderr to the journal. */
    bool journal = c->log_target == LOG_TARGET_JOURNAL ||
                   (c->log_target == LOG_TARGET_AUTO && getenv("JOURNAL_STREAM") != NULL);
    (void)log_init("aspisd", (enum log_level)c->log_level, journal);
}

int main(int argc, char **argv)
{
    enum { OPT_CHECK = 256, OPT_VERSION };
    static const struct option options[] = {
        {"config", required_argument, NULL, 'c'},
        {"check", no_argument, NULL, OPT_CHECK},
        {"version", no_argument, NULL, OPT_VERSION},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    const char *file = NULL;
    bool check = false;
    int opt;
    while ((opt = getopt_long(argc, argv, "c:h", options, NULL)) != -1) {
        switch (opt) {
        case 'c':
            file = optarg;
            break;
        case OPT_CHECK:
            check = true;
            break;
        case OPT_VERSION:
            (void)puts("aspisd " ASPIS_VERSION);
            return 0;
        case 'h':
            usage(stdout);
            return 0;
        default:
            usage(stderr);
            return 2;
        }
    }
    if (optind < argc) {
        usage(stderr);
        return 2;
    }
    /* gRPC's threads and ours are many, and none allocates much: not a heap for each */
    (void)mallopt(M_ARENA_MAX, ARENAS);
    auto_err struct err err = ERR_INIT;
    auto_config struct config *config = config_load(file, &err);
    if (config == NULL) {
        (void)fprintf(stderr, "aspisd: %s\n", err_msg(&err));
        return 2;
    }
    if (check)
        return check_machine(config, stdout);
    if (geteuid() != 0) {
        (void)fputs("aspisd: must run as root\n", stderr);
        return 1;
    }
    start_log(config);
    return serve(config);
}
