#include "agent/crun.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <libcrun/container.h>
#include <libcrun/error.h>
#include <libcrun/status.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/str.h"
#include "proto/host_agent.h"

/* libcrun's constructor calls this to re-execute the program from a copy of itself, so that a
 * container cannot write to the runtime's binary through /proc/self/exe. The agent needs no copy: a
 * running PID 1 lies on the guest's own read-only or memory file system and the kernel refuses to
 * write to it while it runs. */
int ensure_cloned_binary(void);
int ensure_cloned_binary(void)
{
    return 0;
}

/* libcrun lifts the limit on locked memory before it loads a device filter, which kernels
 * before 5.11 counted against it, and gives up when it may not: without CAP_SYS_RESOURCE, as where
 * the host is a container itself. Newer kernels do not care (the linker puts this in setrlimit()'s
 * place). */
int __real_setrlimit(int resource, const struct rlimit *limit);
int __wrap_setrlimit(int resource, const struct rlimit *limit);
int __wrap_setrlimit(int resource, const struct rlimit *limit)
{
    int r = __real_setrlimit(resource, limit);
    bool lifted = limit->rlim_cur == RLIM_INFINITY && limit->rlim_max == RLIM_INFINITY;
    return r < 0 && errno == EPERM && resource == RLIMIT_MEMLOCK && lifted ? 0 : r;
}

/* libcrun gives a container in a user namespace copies of what is bound into it, made before it
 * enters, but forgets what is mounted below (open_tree() without AT_RECURSIVE also where the spec
 * says rbind), which would show what those mounts hide. Volumes are copied whole (the linker again;
 * syscall(2) reads as many arguments whatever the call has). */
long __real_syscall(long number, ...);
long __wrap_syscall(long number, ...);
long __wrap_syscall(long number, ...)
{
    long a[6];
    va_list args;
    va_start(args, number);
    for (size_t i = 0; i < ARRAY_LEN(a); i++)
        a[i] = va_arg(args, long);
    va_end(args);
    if (number == SYS_open_tree && (a[2] & OPEN_TREE_CLONE) != 0 &&
        str_starts(__extension__(const char *) a[1], HOST_DIR_VOLUMES "/"))
        a[2] |= AT_RECURSIVE;
    return __real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* Warnings are about things the agent decided on purpose. */
static void output(int errno_, const char *msg, bool warning, void *arg)
{
    (void)arg;
    if (warning)
        return;
    if (errno_ != 0)
        (void)fprintf(stderr, "%s: %s\n", msg, strerror(errno_));
    else
        (void)fprintf(stderr, "%s\n", msg);
}

static libcrun_context_t context(const struct crun_ctx *ctx)
{
    libcrun_context_t c;

    memset(&c, 0, sizeof(c));
    c.id = ctx->id;
    c.bundle = ctx->bundle;
    c.state_root = ctx->state_root;
    c.pid_file = ctx->pid_file;
    c.console_socket = ctx->console_socket;
    c.fifo_exec_wait_fd = -1;
    c.no_new_keyring = true;
    c.detach = true;
    c.output_handler = output;
    return c;
}

static int fail(struct err *err, libcrun_error_t *e, const char *step)
{
    if (e == NULL || *e == NULL)
        return err_set(err, ERR_INTERNAL, "%s failed", step);
    if ((*e)->status != 0)
        (void)err_sys(err, (*e)->status, "%s", (*e)->msg);
    else
        (void)err_set(err, ERR_INTERNAL, "%s", (*e)->msg);
    (void)libcrun_error_release(e);
    return -1;
}

static char *base64(const uint8_t *in, size_t len)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char *out = xcalloc((len + 2) / 3 * 4 + 1, 1);
    char *p = out;

    for (size_t i = 0; i < len; i += 3) {
        size_t n = len - i < 3 ? len - i : 3;
        uint32_t v = (uint32_t)in[i] << 16;
        v |= n > 1 ? (uint32_t)in[i + 1] << 8 : 0;
        v |= n > 2 ? in[i + 2] : 0;
        *p++ = digits[v >> 18];
        *p++ = digits[v >> 12 & 63];
        *p++ = (char)(n > 1 ? digits[v >> 6 & 63] : '=');
        *p++ = (char)(n > 2 ? digits[v & 63] : '=');
    }
    return out;
}

/* libcrun takes a compiled filter as an annotation. Put there after the spec was read and never
 * into config.json, which every exec reads. */
static int add_filter(const struct crun_ctx *ctx, libcrun_container_t *container, struct err *err)
{
    runtime_spec_schema_config_schema *def = container->container_def;

    if (ctx->seccomp == NULL)
        return 0;
    if (def->annotations == NULL)
        def->annotations = xcalloc(1, sizeof(*def->annotations));
    auto_free char *text = base64(ctx->seccomp, ctx->seccomp_len);
    if (append_json_map_string_string(def->annotations, "run.oci.seccomp_bpf_data", text) < 0)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    return 0;
}

int crun_create(const struct crun_ctx *ctx, const char *spec, struct err *err)
{
    libcrun_error_t e = NULL;
    libcrun_context_t c = context(ctx);
    libcrun_container_t *container;

    if (chdir(ctx->bundle) < 0)
        return err_sys(err, errno, "%s", ctx->bundle);
    container = libcrun_container_load_from_memory(spec, &e);
    if (container == NULL)
        return fail(err, &e, "load the spec");
    if (add_filter(ctx, container, err) < 0)
        return -1;
    if (libcrun_container_create(&c, container, 0, &e) < 0) {
        (void)fail(err, &e, "create");
        /* The one error of the command that does not name it. */
        if (str_starts(err_msg(err), "open executable"))
            (void)err_wrap(err, "exec \"%s\"", container->container_def->process->args[0]);
        return -1;
    }
    return 0; /* the process ends soon: nothing is freed */
}

int crun_release(const char *state_root, const char *id, struct err *err)
{
    /* As libcrun_container_start() does, but without its wait for a reader that may have died. */
    auto_free char *path = fs_format("%s/%s/exec.fifo", state_root, id);
    if (path == NULL)
        return err_set(err, ERR_EXHAUSTED, "out of memory");
    auto_close int fd = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 && (errno == ENXIO || errno == ENOENT))
        return err_set(err, ERR_PRECONDITION, "the container's process no longer waits");
    if (fd < 0)
        return err_sys(err, errno, "%s", path);
    (void)unlink(path); /* its absence is libcrun's sign for "started" */
    if (write(fd, "", 1) != 1)
        // cppcheck-suppress resourceLeak
        return err_sys(err, errno, "%s", path);
    // cppcheck-suppress resourceLeak
    return 0;
}

int crun_exec(const struct crun_ctx *ctx, const char *spec, struct err *err)
{
    libcrun_error_t e = NULL;
    libcrun_context_t c = context(ctx);
    libcrun_container_t *container = libcrun_container_load_from_memory(spec, &e);

    if (container == NULL)
        return fail(err, &e, "load the spec");
    /* Of this spec only the process counts: libcrun reads the rest from its own state. */
    int r = libcrun_container_exec(&c, ctx->id, container->container_def->process, &e);
    if (r < 0)
        return fail(err, &e, "exec");
    return 0;
}

int crun_delete(const struct crun_ctx *ctx, struct err *err)
{
    libcrun_error_t e = NULL;
    libcrun_context_t c = context(ctx);
    auto_free char *dir = fs_format("%s/%s", ctx->state_root, ctx->id);

    if (dir == NULL || !fs_exists(dir))
        return 0;
    if (libcrun_container_delete(&c, NULL, ctx->id, false, &e) < 0)
        return fail(err, &e, "delete");
    return 0;
}
