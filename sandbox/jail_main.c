/*
 * aspis-jail - see jail.h for what it does and its options.
 *
 * Order matters: what needs the host's files (cgroups, bind sources, devices) comes first, then the
 * namespaces, then the new root; the process that will run the program is cloned as a sibling of
 * the helper so that the daemon is its parent; privileges go last, right before execve.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/close_range.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/str.h"
#include "sandbox/jail_root.h"

#define MAX_ITEMS 512 /* of any one repeatable option: far more than the daemon gives */

struct limit {
    int resource;
    rlim_t value;
};

struct options {
    struct root_plan root;
    uint32_t uid;
    const char *cgroups[64];
    size_t n_cgroups;
    struct limit limits[16];
    size_t n_limits;
    int keep[MAX_ITEMS];
    size_t n_keep;
    struct strv env;
    const char *cwd;
    const char *oom_score_adj;
    uint64_t caps; /* kept: bit N is capability N */
    bool share_net, share_pid;
    int status_fd;
    char **argv;
};

static const struct {
    const char *name;
    int resource;
} rlimit_names[] = {
    {"as", RLIMIT_AS},         {"core", RLIMIT_CORE},   {"cpu", RLIMIT_CPU},
    {"data", RLIMIT_DATA},     {"fsize", RLIMIT_FSIZE}, {"memlock", RLIMIT_MEMLOCK},
    {"nofile", RLIMIT_NOFILE}, {"nproc", RLIMIT_NPROC}, {"stack", RLIMIT_STACK},
};

enum {
    OPT_UID = 256,
    OPT_CGROUP,
    OPT_RO_BIND,
    OPT_BIND,
    OPT_TRY_BIND,
    OPT_DEV,
    OPT_PROC,
    OPT_PROC_SELF,
    OPT_TMP,
    OPT_SHARE_NET,
    OPT_SHARE_PID,
    OPT_RLIMIT,
    OPT_OOM,
    OPT_SETENV,
    OPT_CHDIR,
    OPT_KEEP_FD,
    OPT_CAP,
    OPT_STATUS_FD,
};

static const struct option long_options[] = {
    {"uid", required_argument, NULL, OPT_UID},
    {"cgroup", required_argument, NULL, OPT_CGROUP},
    {"ro-bind", required_argument, NULL, OPT_RO_BIND},
    {"bind", required_argument, NULL, OPT_BIND},
    {"try-bind", required_argument, NULL, OPT_TRY_BIND},
    {"dev", required_argument, NULL, OPT_DEV},
    {"proc", no_argument, NULL, OPT_PROC},
    {"proc-self", no_argument, NULL, OPT_PROC_SELF},
    {"tmp", required_argument, NULL, OPT_TMP},
    {"share-pid", no_argument, NULL, OPT_SHARE_PID},
    {"share-net", no_argument, NULL, OPT_SHARE_NET},
    {"rlimit", required_argument, NULL, OPT_RLIMIT},
    {"oom-score-adj", required_argument, NULL, OPT_OOM},
    {"setenv", required_argument, NULL, OPT_SETENV},
    {"chdir", required_argument, NULL, OPT_CHDIR},
    {"keep-fd", required_argument, NULL, OPT_KEEP_FD},
    {"cap", required_argument, NULL, OPT_CAP},
    {"status-fd", required_argument, NULL, OPT_STATUS_FD},
    {NULL, 0, NULL, 0},
};

static int number(const char *text, uint64_t max, uint64_t *out, struct err *err)
{
    if (str_to_u64(text, out) < 0 || *out > max)
        return err_set(err, ERR_INVALID, "\"%s\" is no number of this option's range", text);
    return 0;
}

/* The destination is ours and has no colon; the source may have some. */
static int add_bind(struct options *o, const char *arg, bool writable, bool optional,
                    struct err *err)
{
    const char *colon = strrchr(arg, ':');
    if (colon == NULL || colon == arg || o->root.n_binds == MAX_ITEMS)
        return err_set(err, ERR_INVALID, "bind \"%s\" is not SRC:DST", arg);
    struct root_bind *b = &o->root.binds[o->root.n_binds++];
    *b = (struct root_bind){.src = xstrndup(arg, (size_t)(colon - arg)),
                            .dst = xstrdup(colon + 1),
                            .writable = writable,
                            .optional = optional,
                            .tree = -1};
    return 0;
}

static int add_limit(struct options *o, const char *arg, struct err *err)
{
    const char *eq = strchr(arg, '=');
    uint64_t value;
    for (size_t i = 0; eq != NULL && i < ARRAY_LEN(rlimit_names); i++) {
        if (strlen(rlimit_names[i].name) != (size_t)(eq - arg) ||
            strncmp(arg, rlimit_names[i].name, (size_t)(eq - arg)) != 0)
            continue;
        if (number(eq + 1, RLIM_INFINITY, &value, err) < 0)
            return -1;
        if (o->n_limits == ARRAY_LEN(o->limits))
            break;
        o->limits[o->n_limits++] = (struct limit){rlimit_names[i].resource, value};
        return 0;
    }
    return err_set(err, ERR_INVALID, "unknown rlimit \"%s\"", arg);
}

/* What a file server needs to act for any user, and what a VM needs whose copies are to lock
 * themselves in; nothing else may be asked for. */
static const struct {
    const char *name;
    int cap;
} cap_names[] = {
    {"chown", CAP_CHOWN},     {"dac_override", CAP_DAC_OVERRIDE},
    {"fowner", CAP_FOWNER},   {"fsetid", CAP_FSETID},
    {"setgid", CAP_SETGID},   {"setuid", CAP_SETUID},
    {"setpcap", CAP_SETPCAP}, {"sys_admin", CAP_SYS_ADMIN},
};

static int add_cap(struct options *o, const char *arg, struct err *err)
{
    for (size_t i = 0; i < ARRAY_LEN(cap_names); i++) {
        if (strcmp(cap_names[i].name, arg) == 0) {
            o->caps |= UINT64_C(1) << cap_names[i].cap;
            return 0;
        }
    }
    return err_set(err, ERR_INVALID, "capability \"%s\" is not to be had", arg);
}

static int add_text(const char **list, size_t *n, size_t max, const char *arg, struct err *err)
{
    if (*n == max)
        return err_set(err, ERR_INVALID, "too many of one option");
    list[(*n)++] = arg;
    return 0;
}

static int take_option(struct options *o, int opt, const char *arg, struct err *err)
{
    uint64_t n = 0;
    switch (opt) {
    case OPT_UID:
        if (number(arg, UINT32_MAX - 1, &n, err) < 0)
            return -1;
        o->uid = (uint32_t)n;
        return 0;
    case OPT_CGROUP:
        return add_text(o->cgroups, &o->n_cgroups, ARRAY_LEN(o->cgroups), arg, err);
    case OPT_RO_BIND:
        return add_bind(o, arg, false, false, err);
    case OPT_BIND:
        return add_bind(o, arg, true, false, err);
    case OPT_TRY_BIND:
        return add_bind(o, arg, false, true, err);
    case OPT_DEV:
        return add_text(o->root.devices, &o->root.n_devices, MAX_ITEMS, arg, err);
    case OPT_PROC_SELF:
        o->root.proc = o->root.proc_self = true;
        return 0;
    case OPT_PROC:
        o->root.proc = true;
        return 0;
    case OPT_TMP:
        return number(arg, UINT64_MAX, &o->root.tmp_bytes, err);
    case OPT_SHARE_PID:
        o->share_pid = true;
        return 0;
    case OPT_SHARE_NET:
        o->share_net = true;
        return 0;
    case OPT_RLIMIT:
        return add_limit(o, arg, err);
    case OPT_OOM:
        o->oom_score_adj = arg;
        return 0;
    case OPT_SETENV:
        strv_add(&o->env, arg);
        return 0;
    case OPT_CHDIR:
        o->cwd = arg;
        return 0;
    case OPT_KEEP_FD:
        if (number(arg, INT32_MAX, &n, err) < 0)
            return -1;
        if (o->n_keep == MAX_ITEMS)
            return err_set(err, ERR_INVALID, "too many descriptors");
        o->keep[o->n_keep++] = (int)n;
        return 0;
    case OPT_CAP:
        return add_cap(o, arg, err);
    case OPT_STATUS_FD:
        if (number(arg, INT32_MAX, &n, err) < 0)
            return -1;
        o->status_fd = (int)n;
        return 0;
    default:
        return err_set(err, ERR_INVALID, "unknown option or missing argument");
    }
}

static int parse(struct options *o, int argc, char **argv, struct err *err)
{
    int opt;
    opterr = 0;
    while ((opt = getopt_long(argc, argv, "+", long_options, NULL)) != -1) {
        if (take_option(o, opt, optarg, err) < 0)
            return err_wrap(err, "%s", argv[optind - 1]);
    }
    o->argv = argv + optind;
    if (o->argv[0] == NULL)
        return err_set(err, ERR_INVALID, "no program given");
    if (o->uid == 0)
        return err_set(err, ERR_INVALID, "a --uid other than 0 is required");
    o->root.uid = o->uid;
    return 0;
}

static int compare_fds(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

/* Closes everything but 0..2, the kept ones and the status pipe. */
static int close_others(struct options *o, struct err *err)
{
    int keep[MAX_ITEMS + 1];
    size_t n = 0;
    for (size_t i = 0; i < o->n_keep; i++) {
        int flags = fcntl(o->keep[i], F_GETFD);
        if (flags < 0)
            return err_sys(err, errno, "descriptor %d to keep", o->keep[i]);
        (void)fcntl(o->keep[i], F_SETFD, flags & ~FD_CLOEXEC);
        keep[n++] = o->keep[i];
    }
    if (o->status_fd >= 0)
        keep[n++] = o->status_fd;
    qsort(keep, n, sizeof(keep[0]), compare_fds);
    unsigned int from = 3;
    for (size_t i = 0; i < n; i++) {
        unsigned int fd = (unsigned int)keep[i];
        if (fd > from && close_range(from, fd - 1, 0) < 0)
            return err_sys(err, errno, "close descriptors");
        if (fd >= from)
            from = fd + 1;
    }
    return close_range(from, ~0U, 0) == 0 ? 0 : err_sys(err, errno, "close descriptors");
}

static int join_cgroups(const struct options *o, struct err *err)
{
    for (size_t i = 0; i < o->n_cgroups; i++) {
        auto_free char *procs = fs_format("%s/cgroup.procs", o->cgroups[i]);
        if (fs_write_str(procs, "0", err) < 0) /* 0: the writer */
            return err_wrap(err, "join cgroup");
    }
    return 0;
}

static int set_limits(const struct options *o, struct err *err)
{
    struct rlimit none = {0, 0};
    if (setrlimit(RLIMIT_CORE, &none) < 0)
        return err_sys(err, errno, "set rlimit core");
    for (size_t i = 0; i < o->n_limits; i++) {
        struct rlimit r = {o->limits[i].value, o->limits[i].value};
        /* without CAP_SYS_RESOURCE a hard limit cannot rise: what there is must do */
        struct rlimit now;
        if (getrlimit((__rlimit_resource_t)o->limits[i].resource, &now) == 0 &&
            now.rlim_max < r.rlim_max && geteuid() != 0)
            r.rlim_cur = r.rlim_max = now.rlim_max;
        if (setrlimit((__rlimit_resource_t)o->limits[i].resource, &r) < 0) {
            if (errno != EPERM)
                return err_sys(err, errno, "set rlimit %d", o->limits[i].resource);
            r.rlim_cur = r.rlim_max = now.rlim_max;
            if (setrlimit((__rlimit_resource_t)o->limits[i].resource, &r) < 0)
                return err_sys(err, errno, "set rlimit %d", o->limits[i].resource);
        }
    }
    return 0;
}

/* Raising the score needs no privilege, lowering it CAP_SYS_RESOURCE, which a container may lack:
 * the score then stays as it is. */
static int set_oom_score(const struct options *o, struct err *err)
{
    if (o->oom_score_adj == NULL)
        return 0;
    auto_err struct err e = ERR_INIT;
    if (fs_write_str("/proc/self/oom_score_adj", o->oom_score_adj, &e) < 0 &&
        e.sys_errno != EACCES && e.sys_errno != EPERM)
        return err_move(err, &e);
    return 0;
}

static int drop_privileges(uint32_t uid, uint64_t keep, struct err *err)
{
    for (int cap = 0; prctl(PR_CAPBSET_READ, cap) >= 0; cap++) {
        if ((keep >> cap & 1) == 0 && prctl(PR_CAPBSET_DROP, cap) < 0)
            return err_sys(err, errno, "drop capability %d from the bounding set", cap);
    }
    (void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    if (keep != 0 && prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0)
        return err_sys(err, errno, "keep capabilities");
    if (setgroups(0, NULL) < 0 || setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0)
        return err_sys(err, errno, "become uid %u", uid);
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct sets[_LINUX_CAPABILITY_U32S_3] = {{0, 0, 0}};
    for (int i = 0; i < _LINUX_CAPABILITY_U32S_3; i++)
        sets[i].effective = sets[i].permitted = sets[i].inheritable = (uint32_t)(keep >> (32 * i));
    if (syscall(SYS_capset, &head, sets) < 0)
        return err_sys(err, errno, "drop capabilities");
    for (int cap = 0; cap < 64; cap++) {
        if ((keep >> cap & 1) != 0 && prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0) < 0)
            return err_sys(err, errno, "keep capability %d", cap);
    }
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return err_sys(err, errno, "set no_new_privs");
    if ((keep & UINT64_C(1) << CAP_SETUID) == 0 && setuid(0) == 0)
        return err_set(err, ERR_INTERNAL, "still able to become root");
    return 0;
}

static int run_program(struct options *o, struct err *err)
{
    if (setsid() < 0)
        return err_sys(err, errno, "start session");
    if (root_finish(&o->root, err) < 0 || set_limits(o, err) < 0)
        return -1;
    (void)umask(077);
    if (drop_privileges(o->uid, o->caps, err) < 0)
        return -1;
    if (o->cwd != NULL && chdir(o->cwd) < 0)
        return err_sys(err, errno, "enter %s", o->cwd);
    char *no_env[] = {NULL};
    (void)execve(o->argv[0], o->argv, o->env.v != NULL ? o->env.v : no_env);
    return err_sys(err, errno, "execute %s", o->argv[0]);
}

static void report(int fd, const char *what, const char *text)
{
    /* one line, whatever the text holds */
    char line[1024];
    int n = snprintf(line, sizeof(line) - 1, "%s %s", what, text);
    if (n < 0)
        return;
    size_t len = (size_t)n < sizeof(line) - 2 ? (size_t)n : sizeof(line) - 2;
    for (size_t i = 0; i < len; i++) {
        if (line[i] == '\n')
            line[i] = ' ';
    }
    line[len++] = '\n';
    (void)!write(fd >= 0 ? fd : STDERR_FILENO, line, len);
}

static int prepare(struct options *o, struct err *err)
{
    if (close_others(o, err) < 0)
        return -1;
    if (o->status_fd >= 0)
        (void)fcntl(o->status_fd, F_SETFD, FD_CLOEXEC);
    if (set_oom_score(o, err) < 0 || join_cgroups(o, err) < 0)
        return -1;
    int flags = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;
    if (!o->share_net)
        flags |= CLONE_NEWNET;
    if (unshare(flags) < 0)
        return err_sys(err, errno, "make namespaces");
    if (sethostname("jail", 4) < 0)
        return err_sys(err, errno, "set hostname");
    return root_enter(&o->root, err);
}

static int start(struct options *o, struct err *err)
{
    /* CLONE_PARENT: the daemon is the program's parent and gets its exit status */
    struct clone_args args = {.flags = CLONE_PARENT | (o->share_pid ? 0 : CLONE_NEWPID)};
    long pid = syscall(SYS_clone3, &args, sizeof(args));
    if (pid < 0)
        return err_sys(err, errno, "clone");
    if (pid == 0) {
        (void)run_program(o, err);
        report(o->status_fd, "error", err_msg(err));
        _exit(126);
    }
    char text[32];
    (void)snprintf(text, sizeof(text), "%ld", pid);
    report(o->status_fd, "pid", text);
    return 0;
}

/* For sanitizer builds: a leak check cannot run once the privileges are gone. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}

int main(int argc, char **argv)
{
    auto_err struct err err = ERR_INIT;
    struct options o = {.status_fd = -1};
    o.root.binds = xcalloc(MAX_ITEMS, sizeof(*o.root.binds));
    o.root.devices = xcalloc(MAX_ITEMS, sizeof(*o.root.devices));
    (void)umask(022);
    int ret = parse(&o, argc, argv, &err);
    if (ret == 0)
        ret = prepare(&o, &err);
    if (ret == 0)
        ret = start(&o, &err);
    if (ret < 0)
        report(o.status_fd, "error", err_msg(&err));
    return ret < 0 ? 1 : 0; /* what was allocated goes with the process */
}
