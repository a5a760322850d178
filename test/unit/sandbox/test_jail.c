/* Needs root: real jails. The program inside is this test itself, called with "probe". */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "sandbox/jail.h"

#define UID 2147000001U
#define PROBE "/probe"

static char self[4096];

/* A leak check cannot run inside the jail, and the environment does not get there. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "detect_leaks=0";
}

/* --- inside --- */

static void show_link(const char *name)
{
    char path[64];
    char to[256] = "";
    (void)snprintf(path, sizeof(path), "/proc/self/ns/%s", name);
    ssize_t n = readlink(path, to, sizeof(to) - 1);
    printf("ns %s\n", n > 0 ? to : "?");
}

static void show_open(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0600);
    printf("open %s %s\n", path, fd >= 0 ? "yes" : "no");
    if (fd >= 0)
        (void)close(fd);
}

static int probe(int argc, char **argv)
{
    static const char *const ns[] = {"mnt", "ipc", "net", "uts", "pid", "cgroup"};
    if (argc > 2 && strcmp(argv[2], "exit") == 0)
        return 7;
    if (argc > 2 && strcmp(argv[2], "wait") == 0) {
        (void)pause();
        return 0;
    }
    printf("uid %u %u gid %u %u groups %d pid %d\n", getuid(), geteuid(), getgid(), getegid(),
           getgroups(0, NULL), (int)getpid());
    char *status = fs_read("/proc/self/status", 65536, NULL, NULL);
    fputs(status != NULL ? status : "no status\n", stdout);
    for (size_t i = 0; i < ARRAY_LEN(ns); i++)
        show_link(ns[i]);
    show_open("/etc/shadow", O_RDONLY);
    show_open("/root", O_RDONLY);
    show_open("/proc/1/root/etc/shadow", O_RDONLY);
    show_open("/made", O_CREAT | O_WRONLY);
    show_open("/usr/lib/made", O_CREAT | O_WRONLY);
    show_open("/dev/made", O_CREAT | O_WRONLY);
    show_open("/dev/null", O_RDWR);
    show_open("/dev/mem", O_RDONLY);
    show_open("/tmp/made", O_CREAT | O_WRONLY);
    for (int fd = 0; fd < 64; fd++)
        printf("fd %d %s\n", fd, fcntl(fd, F_GETFD) >= 0 ? "open" : "shut");
    struct rlimit r;
    (void)getrlimit(RLIMIT_NOFILE, &r);
    printf("nofile %llu\n", (unsigned long long)r.rlim_max);
    (void)getrlimit(RLIMIT_CORE, &r);
    printf("core %llu\n", (unsigned long long)r.rlim_max);
    char *mine = fs_read("/proc/self/oom_score_adj", 64, NULL, NULL);
    printf("oom %s", mine != NULL ? mine : "?\n");
    mine = fs_read("/proc/self/cgroup", 65536, NULL, NULL);
    printf("env %s\n", getenv("GIVEN") != NULL ? getenv("GIVEN") : "none");
    printf("path %s\n", getenv("PATH") != NULL ? "inherited" : "none");
    return 0;
}

/* --- outside --- */

static void fill(struct jail_opts *o, struct jail_bind *binds, const char *const *argv)
{
    size_t n = 0;
    for (; n < JAIL_LIBRARIES_N; n++)
        binds[n] = JAIL_LIBRARIES[n];
    binds[n++] = (struct jail_bind){.src = self, .dst = PROBE};
    *o = (struct jail_opts){.helper = getenv("ASPIS_JAIL"),
                            .uid = UID,
                            .binds = binds,
                            .n_binds = n,
                            .proc = true,
                            .argv = argv};
}

static char *run_probe(struct jail_opts *o, int *status)
{
    int p[2];
    auto_err struct err err = ERR_INIT;
    struct spawn_proc proc;
    auto_buf struct buf out = BUF_INIT(1 << 20);
    assert_int_equal(pipe2(p, O_CLOEXEC), 0);
    struct spawn_fd fds[] = {{1, p[1]}, {9, p[1]}};
    o->fds = fds;
    o->n_fds = ARRAY_LEN(fds);
    if (jail_spawn(o, NULL, &proc, &err) < 0)
        fail_msg("%s", err_msg(&err));
    (void)close(p[1]);
    for (;;) {
        char block[4096];
        ssize_t n = read(p[0], block, sizeof(block));
        if (n <= 0)
            break;
        assert_int_equal(buf_append(&out, block, (size_t)n), 0);
    }
    (void)close(p[0]);
    assert_int_equal(spawn_wait(&proc, NULL, status, &err), 0);
    spawn_clear(&proc);
    return buf_take(&out);
}

static void has(const char *text, const char *want)
{
    if (strstr(text, want) == NULL)
        fail_msg("no \"%s\" in:\n%s", want, text);
}

static void confined(void **state)
{
    (void)state;
    const char *argv[] = {PROBE, "probe", NULL};
    const char *env[] = {"GIVEN=yes", NULL};
    struct jail_rlimit limits[] = {{"nofile", 77}};
    struct jail_bind binds[16];
    struct jail_opts o;
    int status = -1;
    fill(&o, binds, argv);
    o.env = env;
    o.rlimits = limits;
    o.n_rlimits = 1;
    o.tmp_bytes = 1 << 20;
    o.set_oom_score_adj = true;
    o.oom_score_adj = 321;
    auto_free char *out = run_probe(&o, &status);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    has(out, "uid 2147000001 2147000001 gid 2147000001 2147000001 groups 0 pid 1\n");
    has(out, "CapInh:\t0000000000000000");
    has(out, "CapPrm:\t0000000000000000");
    has(out, "CapEff:\t0000000000000000");
    has(out, "CapBnd:\t0000000000000000");
    has(out, "CapAmb:\t0000000000000000");
    has(out, "NoNewPrivs:\t1");
    has(out, "open /etc/shadow no");
    has(out, "open /root no");
    has(out, "open /proc/1/root/etc/shadow no");
    has(out, "open /made no");
    has(out, "open /usr/lib/made no");
    has(out, "open /dev/made no");
    has(out, "open /dev/null yes");
    has(out, "open /dev/mem no");
    has(out, "open /tmp/made yes");
    has(out, "nofile 77\n");
    has(out, "core 0\n");
    has(out, "oom 321\n");
    has(out, "env yes\n");
    has(out, "path none\n");
    static const char *const ns[] = {"mnt", "ipc", "net", "uts", "pid", "cgroup"};
    for (size_t i = 0; i < ARRAY_LEN(ns); i++) {
        char path[64];
        char ours[256] = "";
        (void)snprintf(path, sizeof(path), "/proc/self/ns/%s", ns[i]);
        assert_true(readlink(path, ours, sizeof(ours) - 1) > 0);
        if (strstr(out, ours) != NULL)
            fail_msg("shares %s", ours);
    }
    for (int fd = 0; fd < 64; fd++) {
        char line[32];
        (void)snprintf(line, sizeof(line), "fd %d %s\n", fd, fd <= 2 || fd == 9 ? "open" : "shut");
        has(out, line);
    }
}

static void share_net(void **state)
{
    (void)state;
    const char *argv[] = {PROBE, "probe", NULL};
    struct jail_bind binds[16];
    struct jail_opts o;
    int status = -1;
    char ours[256] = "";
    fill(&o, binds, argv);
    o.share_net = true;
    auto_free char *out = run_probe(&o, &status);
    assert_true(readlink("/proc/self/ns/net", ours, sizeof(ours) - 1) > 0);
    has(out, ours);
    has(out, "open /tmp/made no"); /* no tmp_bytes: no /tmp */
}

static void binds_rw(void **state)
{
    (void)state;
    char dir[] = "/tmp/aspis-jail-test-XXXXXX";
    assert_non_null(mkdtemp(dir));
    assert_int_equal(chown(dir, UID, UID), 0);
    const char *argv[] = {PROBE, "probe", NULL};
    struct jail_bind binds[16];
    struct jail_opts o;
    int status = -1;
    fill(&o, binds, argv);
    /* a writable bind at a deep path, and one that is missing on purpose */
    binds[o.n_binds++] = (struct jail_bind){.src = dir, .dst = "/tmp", .writable = true};
    binds[o.n_binds++] = (struct jail_bind){.src = "/nonexistent", .dst = "/x/y", .optional = true};
    auto_free char *out = run_probe(&o, &status);
    has(out, "open /tmp/made yes");
    auto_free char *made = fs_format("%s/made", dir);
    struct stat st;
    assert_int_equal(stat(made, &st), 0);
    assert_int_equal(st.st_uid, UID);
    assert_int_equal(fs_rm_rf(dir, NULL), 0);
}

static void exit_status(void **state)
{
    (void)state;
    const char *argv[] = {PROBE, "probe", "exit", NULL};
    struct jail_bind binds[16];
    struct jail_opts o;
    int status = -1;
    fill(&o, binds, argv);
    free(run_probe(&o, &status));
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 7); /* our own child's, not the helper's */
}

static void killable(void **state)
{
    (void)state;
    const char *argv[] = {PROBE, "probe", "wait", NULL};
    struct jail_bind binds[16];
    struct jail_opts o;
    struct spawn_proc proc;
    auto_err struct err err = ERR_INIT;
    int status = 0;
    fill(&o, binds, argv);
    assert_int_equal(jail_spawn(&o, NULL, &proc, &err), 0);
    assert_int_equal(kill(proc.pid, 0), 0);
    assert_int_equal(syscall(SYS_pidfd_send_signal, proc.pidfd, SIGKILL, NULL, 0), 0);
    assert_int_equal(spawn_wait(&proc, NULL, &status, &err), 0);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void failures(void **state)
{
    (void)state;
    const char *argv[] = {"/no/such/program", NULL};
    struct jail_bind binds[16];
    struct jail_opts o;
    struct spawn_proc proc;
    auto_err struct err err = ERR_INIT;
    fill(&o, binds, argv);
    assert_int_equal(jail_spawn(&o, NULL, &proc, &err), -1);
    has(err_msg(&err), "execute /no/such/program");
    assert_int_equal(proc.pid, -1);
    err_clear(&err);

    fill(&o, binds, argv);
    o.uid = 0;
    assert_int_equal(jail_spawn(&o, NULL, &proc, &err), -1);
    has(err_msg(&err), "--uid");
    err_clear(&err);

    fill(&o, binds, argv);
    binds[o.n_binds++] = (struct jail_bind){.src = "/nonexistent"};
    assert_int_equal(jail_spawn(&o, NULL, &proc, &err), -1);
    has(err_msg(&err), "/nonexistent");
    err_clear(&err);

    fill(&o, binds, argv);
    binds[o.n_binds++] = (struct jail_bind){.src = "/etc/hostname", .dst = "/../../etc/x"};
    assert_int_equal(jail_spawn(&o, NULL, &proc, &err), -1);
    has(err_msg(&err), "no absolute path");
    err_clear(&err);

    fill(&o, binds, argv);
    const char *cgroups[] = {"/sys/fs/cgroup/aspis-none", NULL};
    o.cgroups = cgroups;
    assert_int_equal(jail_spawn(&o, NULL, &proc, &err), -1);
    has(err_msg(&err), "join cgroup");
    err_clear(&err);

    fill(&o, binds, argv);
    o.helper = "/no/such/helper";
    assert_int_equal(jail_spawn(&o, NULL, &proc, &err), -1);
    err_clear(&err);

    /* cancelled at once: whatever was started is gone and reaped */
    const char *waits[] = {PROBE, "probe", "wait", NULL};
    fill(&o, binds, waits);
    auto_cancel struct cancel *c = cancel_new(0, &err);
    cancel_fire(c);
    assert_int_equal(jail_spawn(&o, c, &proc, &err), -1);
    assert_int_equal(err.code, ERR_CANCELLED);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* ECHILD: no child left */
}

static int need_root(void **state)
{
    (void)state;
    if (geteuid() == 0)
        return 0;
    puts("1..0 # SKIP needs root");
    exit(0);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "probe") == 0)
        return probe(argc, argv);
    ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (n <= 0)
        return 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(confined),    cmocka_unit_test(share_net), cmocka_unit_test(binds_rw),
        cmocka_unit_test(exit_status), cmocka_unit_test(killable),  cmocka_unit_test(failures),
    };
    return cmocka_run_group_tests(tests, need_root, NULL);
}
