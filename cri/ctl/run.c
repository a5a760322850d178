/* aspisctl run: one image in a pod of its own */
#include <getopt.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/fs.h"
#include "base/str.h"
#include "cri/ctl/ctl.h"
#include "cri/ctl/follow.h"
#include "cri/ctl/wait.h"

#define CONTAINER_NAME "main"
#define STOP_SECONDS 10

struct run {
    struct ctl *ctl;
    bool remove, detach;
    char *name;
    char *uid;
    char *log_dir;
    struct strv env; /* NAME=VALUE */
    char *image;
    char **args;
    size_t n_args;
    const char *pod, *container; /* ids, once made */
};

static int parse(struct run *r, int argc, char **argv, struct err *err)
{
    static const struct option options[] = {
        {"rm", no_argument, NULL, 'r'},
        {"detach", no_argument, NULL, 'd'},
        {"name", required_argument, NULL, 'n'},
        {"env", required_argument, NULL, 'e'},
        {NULL, 0, NULL, 0},
    };
    int opt;
    while ((opt = getopt_long(argc, argv, "+de:", options, NULL)) != -1) {
        switch (opt) {
        case 'r':
            r->remove = true;
            break;
        case 'd':
            r->detach = true;
            break;
        case 'n':
            r->name = xstrdup(optarg);
            break;
        case 'e':
            if (optarg[0] == '=' || strchr(optarg, '=') == NULL)
                return ctl_usage(err, "run: -e needs NAME=VALUE");
            strv_add(&r->env, optarg);
            break;
        default:
            return ctl_usage(err, "run: bad option");
        }
    }
    if (r->remove && r->detach)
        return ctl_usage(err, "run: --rm needs somebody to wait; it does not go with -d");
    if (optind == argc)
        return ctl_usage(err, "run needs an IMAGE");
    r->image = argv[optind++];
    if (optind < argc && strcmp(argv[optind], "--") == 0)
        optind++;
    r->args = &argv[optind];
    r->n_args = (size_t)(argc - optind);
    return 0;
}

/* Its id; pulled if it is not there. */
static const char *get_image(const struct run *r, struct err *err)
{
    Runtime__V1__ImageSpec spec = RUNTIME__V1__IMAGE_SPEC__INIT;
    spec.image = r->image;
    Runtime__V1__ImageStatusRequest req = RUNTIME__V1__IMAGE_STATUS_REQUEST__INIT;
    req.image = &spec;
    const Runtime__V1__ImageStatusResponse *s = (const Runtime__V1__ImageStatusResponse *)ctl_call(
        r->ctl, IMAGE_SERVICE "ImageStatus", &req.base,
        &runtime__v1__image_status_response__descriptor, err);
    if (s == NULL)
        return NULL;
    return s->image != NULL ? s->image->id : ctl_pull(r->ctl, r->image, err);
}

static int make_pod(struct run *r, const Runtime__V1__PodSandboxConfig *config, struct err *err)
{
    if (fs_mkdir_p(r->log_dir, 0755, err) < 0)
        return -1;
    Runtime__V1__RunPodSandboxRequest req = RUNTIME__V1__RUN_POD_SANDBOX_REQUEST__INIT;
    req.config = (Runtime__V1__PodSandboxConfig *)(uintptr_t)config;
    const Runtime__V1__RunPodSandboxResponse *out =
        (const Runtime__V1__RunPodSandboxResponse *)ctl_call(
            r->ctl, RUNTIME_SERVICE "RunPodSandbox", &req.base,
            &runtime__v1__run_pod_sandbox_response__descriptor, err);
    if (out == NULL)
        return -1;
    r->pod = out->pod_sandbox_id;
    return 0;
}

/* NAME=VALUE pairs as CRI has them; in the arena. */
static int put_env(const struct run *r, Runtime__V1__ContainerConfig *config, struct err *err)
{
    config->envs = arena_alloc(r->ctl->arena, r->env.n * sizeof(*config->envs));
    for (size_t i = 0; config->envs != NULL && i < r->env.n; i++) {
        Runtime__V1__KeyValue *kv = arena_alloc(r->ctl->arena, sizeof(*kv));
        const char *eq = strchr(r->env.v[i], '=');
        char *key = arena_strndup(r->ctl->arena, r->env.v[i], (size_t)(eq - r->env.v[i]));
        char *value = arena_strdup(r->ctl->arena, eq + 1);
        if (kv == NULL || key == NULL || value == NULL)
            return err_set(err, ERR_EXHAUSTED, "the environment is too large");
        runtime__v1__key_value__init(kv);
        kv->key = key;
        kv->value.data = (uint8_t *)value;
        kv->value.len = strlen(value);
        config->envs[config->n_envs++] = kv;
    }
    return 0;
}

static int make_container(struct run *r, const char *image_id,
                          const Runtime__V1__PodSandboxConfig *pod_config, struct err *err)
{
    Runtime__V1__ContainerMetadata meta = RUNTIME__V1__CONTAINER_METADATA__INIT;
    meta.name = (char *)(uintptr_t)CONTAINER_NAME;
    Runtime__V1__ImageSpec image = RUNTIME__V1__IMAGE_SPEC__INIT;
    image.image = (char *)(uintptr_t)image_id;
    image.user_specified_image = r->image;
    Runtime__V1__LinuxContainerConfig linux_config = RUNTIME__V1__LINUX_CONTAINER_CONFIG__INIT;
    Runtime__V1__ContainerConfig config = RUNTIME__V1__CONTAINER_CONFIG__INIT;
    config.metadata = &meta;
    config.image = &image;
    config.args = r->args;
    config.n_args = r->n_args;
    config.log_path = (char *)(uintptr_t)(CONTAINER_NAME ".log");
    config.linux = &linux_config;
    if (put_env(r, &config, err) < 0)
        return -1;
    Runtime__V1__CreateContainerRequest create = RUNTIME__V1__CREATE_CONTAINER_REQUEST__INIT;
    create.pod_sandbox_id = (char *)(uintptr_t)r->pod;
    create.config = &config;
    create.sandbox_config = (Runtime__V1__PodSandboxConfig *)(uintptr_t)pod_config;
    const Runtime__V1__CreateContainerResponse *out =
        (const Runtime__V1__CreateContainerResponse *)ctl_call(
            r->ctl, RUNTIME_SERVICE "CreateContainer", &create.base,
            &runtime__v1__create_container_response__descriptor, err);
    if (out == NULL)
        return -1;
    r->container = out->container_id;
    return 0;
}

static int start_container(const struct run *r, struct err *err)
{
    Runtime__V1__StartContainerRequest req = RUNTIME__V1__START_CONTAINER_REQUEST__INIT;
    req.container_id = (char *)(uintptr_t)r->container;
    return ctl_call(r->ctl, RUNTIME_SERVICE "StartContainer", &req.base,
                    &runtime__v1__start_container_response__descriptor, err) != NULL
               ? 0
               : -1;
}

static int make_all(struct run *r, const char *image_id, struct err *err)
{
    Runtime__V1__PodSandboxMetadata meta = RUNTIME__V1__POD_SANDBOX_METADATA__INIT;
    meta.name = r->name;
    meta.uid = r->uid;
    meta.namespace_ = (char *)(uintptr_t) "default";
    Runtime__V1__LinuxPodSandboxConfig linux_config = RUNTIME__V1__LINUX_POD_SANDBOX_CONFIG__INIT;
    Runtime__V1__PodSandboxConfig config = RUNTIME__V1__POD_SANDBOX_CONFIG__INIT;
    config.metadata = &meta;
    config.hostname = r->name;
    config.log_directory = r->log_dir;
    config.linux = &linux_config;
    if (make_pod(r, &config, err) < 0 || make_container(r, image_id, &config, err) < 0)
        return -1;
    return 0;
}

/* The first interrupt asks, the second insists. */
static int on_signal(void *arg, unsigned n, struct err *err)
{
    const struct run *r = arg;
    return ctl_stop_container(r->ctl, r->container, n > 1 ? 0 : STOP_SECONDS, err);
}

static int start_and_follow(struct run *r, int signals, struct err *err)
{
    auto_free char *log = fs_format("%s/" CONTAINER_NAME ".log", r->log_dir);
    auto_follow struct follow *f = follow_open(log, STDOUT_FILENO, STDERR_FILENO, err);
    if (f == NULL || start_container(r, err) < 0)
        return -1;
    /* After the start: a container that has never run would be waited for too. */
    auto_wait struct wait *w = wait_start(r->ctl->socket, r->container, err);
    if (w == NULL)
        return -1;
    struct wait_signals s = {.fd = signals, .on_signal = on_signal, .arg = r};
    return wait_following(w, f, &s, err);
}

/* What is left afterwards: nothing with --rm or when it failed to start, else a stopped pod whose
 * log can be read. */
static void end(const struct run *r, bool all)
{
    auto_err struct err err = ERR_INIT;
    int rc = 0;
    if (r->pod != NULL)
        rc = ctl_stop_pod(r->ctl, r->pod, &err);
    if (rc == 0 && all && r->pod != NULL)
        rc = ctl_remove_pod(r->ctl, r->pod, &err);
    if (rc == 0 && all)
        rc = fs_rm_rf(r->log_dir, &err);
    if (rc < 0) {
        (void)fputs("aspisctl: clean up: ", stderr);
        ctl_puts(stderr, err_msg(&err));
        (void)fputc('\n', stderr);
    }
}

static int caught = -1;

static void on_caught(int sig)
{
    (void)sig;
    int saved = errno;
    (void)eventfd_write(caught, 1);
    errno = saved;
}

/* A handler and not a signalfd: gRPC's threads were made with these signals unblocked. */
static int catch_signals(struct err *err)
{
    auto_close int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE);
    struct sigaction sa = {.sa_handler = on_caught, .sa_flags = SA_RESTART};
    caught = fd;
    if (fd < 0 || sigaction(SIGINT, &sa, NULL) < 0 || sigaction(SIGTERM, &sa, NULL) < 0)
        return err_sys(err, errno, "catch signals");
    return take_fd(&fd);
}

static int run(struct run *r, struct err *err)
{
    const char *image_id = get_image(r, err); /* may be interrupted: there is nothing to clean up */
    if (image_id == NULL)
        return -1;
    /* From here on an interrupt must not leave a pod behind: it is kept until the container runs.
     */
    auto_close int signals = catch_signals(err);
    if (signals < 0)
        return -1;
    int rc = make_all(r, image_id, err);
    bool made = rc == 0;
    if (rc == 0 && r->detach) {
        rc = start_container(r, err);
        made = rc == 0;
        if (made)
            (void)puts(r->container);
    } else if (rc == 0) {
        rc = start_and_follow(r, signals, err);
    }
    if (!made || !r->detach)
        end(r, !made || r->remove);
    caught = -1;
    return rc;
}

int cmd_run(struct ctl *ctl, int argc, char **argv, struct err *err)
{
    struct run r = {.ctl = ctl};
    int rc = parse(&r, argc, argv, err);
    if (rc == 0) {
        char random[17];
        fs_random_hex(random, 16);
        r.uid = xstrdup(random);
        if (r.name == NULL)
            r.name = fs_format("run-%.6s", random);
        r.log_dir = ctl_log_dir(r.name, r.uid);
        rc = r.log_dir == NULL ? ctl_usage(err, "run: bad name `%s`", r.name) : run(&r, err);
    }
    strv_clear(&r.env);
    free(r.name);
    free(r.uid);
    free(r.log_dir);
    return rc;
}
