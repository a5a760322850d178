#include "sandbox/jail.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/str.h"

const struct jail_bind JAIL_LIBRARIES[] = {
    {.src = "/usr/lib"},
    {.src = "/lib", .optional = true},
    {.src = "/lib64", .optional = true},
    {.src = "/etc/ld.so.cache", .optional = true},
};
const size_t JAIL_LIBRARIES_N = ARRAY_LEN(JAIL_LIBRARIES);

static void build_argv(const struct jail_opts *o, int status_fd, struct strv *a)
{
    strv_add(a, o->helper);
    strv_addf(a, "--uid=%u", o->uid);
    strv_addf(a, "--status-fd=%d", status_fd);
    for (size_t i = 0; o->cgroups != NULL && o->cgroups[i] != NULL; i++)
        strv_addf(a, "--cgroup=%s", o->cgroups[i]);
    for (size_t i = 0; i < o->n_binds; i++) {
        const struct jail_bind *b = &o->binds[i];
        const char *kind = b->writable ? "bind" : b->optional ? "try-bind" : "ro-bind";
        strv_addf(a, "--%s=%s:%s", kind, b->src, b->dst != NULL ? b->dst : b->src);
    }
    for (size_t i = 0; o->devices != NULL && o->devices[i] != NULL; i++)
        strv_addf(a, "--dev=%s", o->devices[i]);
    for (size_t i = 0; i < o->n_rlimits; i++)
        strv_addf(a, "--rlimit=%s=%llu", o->rlimits[i].name,
                  (unsigned long long)o->rlimits[i].value);
    if (o->set_oom_score_adj)
        strv_addf(a, "--oom-score-adj=%d", o->oom_score_adj);
    for (size_t i = 0; o->caps != NULL && o->caps[i] != NULL; i++)
        strv_addf(a, "--cap=%s", o->caps[i]);
    if (o->proc)
        strv_add(a, "--proc");
    if (o->proc_self)
        strv_add(a, "--proc-self");
    if (o->share_pid)
        strv_add(a, "--share-pid");
    if (o->share_net)
        strv_add(a, "--share-net");
    if (o->tmp_bytes > 0)
        strv_addf(a, "--tmp=%llu", (unsigned long long)o->tmp_bytes);
    for (size_t i = 0; o->env != NULL && o->env[i] != NULL; i++)
        strv_addf(a, "--setenv=%s", o->env[i]);
    if (o->cwd != NULL)
        strv_addf(a, "--chdir=%s", o->cwd);
    for (size_t i = 0; i < o->n_fds; i++) {
        if (o->fds[i].child > 2)
            strv_addf(a, "--keep-fd=%d", o->fds[i].child);
    }
    strv_add(a, "--");
    for (size_t i = 0; o->argv[i] != NULL; i++)
        strv_add(a, o->argv[i]);
}

/* Everything the helper and then the program say until the last of them closes the pipe. */
static int read_status(int fd, struct cancel *cancel, struct buf *b, struct err *err)
{
    for (;;) {
        char block[512];
        if (cancel_poll(cancel, fd, POLLIN, -1, err) < 0)
            return -1;
        ssize_t n = read(fd, block, sizeof(block));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_sys(err, errno, "read the jail's status");
        if (n == 0)
            return 0;
        if (buf_append(b, block, (size_t)n) < 0)
            return err_set(err, ERR_INTERNAL, "the jail's status is too long");
    }
}

/* The two kinds of line may come in either order. */
static void parse_status(char *text, pid_t *pid, const char **failure)
{
    char *save = NULL;
    for (char *line = strtok_r(text, "\n", &save); line != NULL;
         line = strtok_r(NULL, "\n", &save)) {
        int64_t n;
        if (str_starts(line, "pid ") && str_to_i64(line + 4, &n) == 0 && n > 1 && n <= INT32_MAX)
            *pid = (pid_t)n;
        else if (str_starts(line, "error "))
            *failure = line + 6;
    }
}

static int finish(struct spawn_proc *helper, int status_fd, struct cancel *cancel,
                  struct spawn_proc *proc, struct err *err)
{
    auto_buf struct buf text = BUF_INIT(8192);
    auto_err struct err read_err = ERR_INIT;
    const char *failure = NULL;
    pid_t pid = -1;
    /* A cancelled start is also read to its end, which is some milliseconds away: the helper may
     * have made the program's process already, and only it knows the pid. */
    if (read_status(status_fd, cancel, &text, &read_err) < 0)
        (void)read_status(status_fd, NULL, &text, NULL);
    (void)spawn_wait(helper, NULL, NULL, NULL);
    auto_free char *copy = xstrdup(buf_str(&text));
    parse_status(copy, &pid, &failure);
    if (pid > 0) {
        *proc = (struct spawn_proc){.pid = pid, .pidfd = (int)syscall(SYS_pidfd_open, pid, 0)};
        if (proc->pidfd < 0)
            (void)err_sys(&read_err, errno, "open pidfd of the jailed program");
    }
    if (read_err.code == ERR_OK && failure != NULL)
        (void)err_set(&read_err, ERR_INTERNAL, "%s", failure);
    if (read_err.code == ERR_OK && pid < 0)
        (void)err_set(&read_err, ERR_INTERNAL, "the helper ended without a word");
    if (read_err.code == ERR_OK)
        return 0;
    spawn_clear(proc);
    return err_move(err, &read_err);
}

int jail_spawn(const struct jail_opts *opts, struct cancel *cancel, struct spawn_proc *proc,
               struct err *err)
{
    int status[2];
    *proc = (struct spawn_proc)SPAWN_PROC_INIT;
    if (pipe2(status, O_CLOEXEC) < 0)
        return err_sys(err, errno, "jail: make pipe");
    int status_fd = 3;
    for (size_t i = 0; i < opts->n_fds; i++) {
        if (opts->fds[i].child >= status_fd)
            status_fd = opts->fds[i].child + 1;
    }
    struct spawn_fd *fds = xcalloc(opts->n_fds + 1, sizeof(*fds));
    for (size_t i = 0; i < opts->n_fds; i++)
        fds[i] = opts->fds[i];
    fds[opts->n_fds] = (struct spawn_fd){.child = status_fd, .here = status[1]};
    auto_strv struct strv argv = {0};
    build_argv(opts, status_fd, &argv);
    const char *env[] = {NULL};
    struct spawn_opts so = {.path = opts->helper,
                            .argv = (const char *const *)argv.v,
                            .env = env,
                            .fds = fds,
                            .n_fds = opts->n_fds + 1};
    struct spawn_proc helper = SPAWN_PROC_INIT;
    int ret = spawn_start(&so, &helper, err);
    free(fds);
    cleanup_closep(&status[1]);
    if (ret == 0)
        ret = finish(&helper, status[0], cancel, proc, err);
    spawn_clear(&helper);
    cleanup_closep(&status[0]);
    return ret < 0 ? err_wrap(err, "jail") : 0;
}
