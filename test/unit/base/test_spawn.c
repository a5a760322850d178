/* base/spawn: programs get what they were given and nothing else, and end when they must. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/spawn.h"
#include "base/str.h"

#define MS 1000000LL
#define SH(script) ((const char *const[]){"sh", "-c", (script), NULL})

static int shell(const char *script, const char *in, struct buf *out, struct buf *errout,
                 struct cancel *cancel, int *status, struct err *err)
{
    struct spawn_opts o = {.argv = SH(script)};
    return spawn_run(&o, in, in != NULL ? strlen(in) : 0, out, errout, cancel, status, err);
}

static void test_output_and_status(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    auto_buf struct buf out = BUF_INIT(100);
    auto_buf struct buf errout = BUF_INIT(100);
    int status = -1;
    char text[64];
    assert_int_equal(shell("read x; echo got $x; echo oops >&2; exit 3", "input\n", &out, &errout,
                           NULL, &status, &err),
                     0);
    assert_string_equal(buf_str(&out), "got input\n");
    assert_string_equal(buf_str(&errout), "oops\n");
    assert_string_equal(spawn_status_text(status, text, sizeof(text)), "exit status 3");
    assert_int_equal(shell("kill -9 $$", NULL, NULL, NULL, NULL, &status, &err), 0);
    assert_string_equal(spawn_status_text(status, text, sizeof(text)), "signal 9 (Killed)");
    /* streams that nobody named are /dev/null, the directory is / */
    assert_int_equal(shell("cat; pwd", NULL, &out, NULL, NULL, &status, &err), 0);
    assert_string_equal(buf_str(&out), "got input\n/\n");
}

static void test_missing_program(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    struct spawn_opts o = {.path = "/no/such/program", .argv = SH("")};
    struct spawn_proc p = SPAWN_PROC_INIT;
    assert_int_equal(spawn_start(&o, &p, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_non_null(strstr(err_msg(&err), "/no/such/program"));
    assert_int_equal(p.pid, -1);
    spawn_clear(&p);
    int status;
    const char *argv[] = {"no-such-program-in-path", NULL};
    struct spawn_opts in_path = {.argv = argv};
    assert_int_equal(spawn_run(&in_path, NULL, 0, NULL, NULL, NULL, &status, &err), -1);
    o = (struct spawn_opts){.path = "/etc/passwd", .argv = SH("")};
    assert_int_equal(spawn_start(&o, &p, &err), -1);
    assert_int_equal(err.code, ERR_DENIED);
    /* no child is left */
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    assert_int_equal(errno, ECHILD);
}

static void test_big_input_and_output(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    size_t len = 4 << 20;
    auto_free char *in = malloc(len);
    memset(in, 'i', len);
    auto_buf struct buf out = BUF_INIT(len);
    auto_buf struct buf errout = BUF_INIT(1000);
    const char *argv[] = {"cat", NULL};
    struct spawn_opts o = {.argv = argv};
    int status = -1;
    assert_int_equal(spawn_run(&o, in, len, &out, &errout, NULL, &status, &err), 0);
    assert_int_equal(status, 0);
    assert_int_equal(out.len, len);
    assert_memory_equal(out.data, in, len);
    /* a program that reads nothing of it, and one that closes at once */
    auto_free char *text = xcalloc(len + 1, 1);
    memset(text, 'i', len);
    assert_int_equal(shell("exec sleep 0", text, NULL, NULL, NULL, &status, &err), 0);
    assert_int_equal(shell("exec <&-; echo done", text, NULL, NULL, NULL, &status, &err), 0);
    assert_int_equal(status, 0);
}

static void test_too_much_output(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    auto_buf struct buf out = BUF_INIT(1000);
    auto_buf struct buf errout = BUF_INIT(1000);
    int status = 0;
    /* dropped for stderr */
    assert_int_equal(shell("head -c 300000 /dev/zero | tr '\\0' e >&2; echo fine", NULL, &out,
                           &errout, NULL, &status, &err),
                     0);
    assert_int_equal(errout.len, 1000);
    assert_string_equal(buf_str(&out), "fine\n");
    /* an error for stdout, also when it would never end */
    buf_reset(&out);
    assert_int_equal(shell("exec cat /dev/zero", NULL, &out, NULL, NULL, &status, &err), -1);
    assert_int_equal(err.code, ERR_EXHAUSTED);
    assert_non_null(strstr(err_msg(&err), "run sh"));
    assert_true(out.len <= 1000);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
}

/* Whether a process still runs; one that is being reaped by init counts as ended. */
static bool ends_within(pid_t pid, int ms)
{
    for (int i = 0; i < ms / 10; i++) {
        char path[64];
        char line[512] = "";
        (void)snprintf(path, sizeof(path), "/proc/%d/stat", pid);
        auto_fclose FILE *f = fopen(path, "re");
        if (f == NULL || fgets(line, sizeof(line), f) == NULL)
            return true;
        const char *state = strrchr(line, ')');
        if (state != NULL && (state[2] == 'Z' || state[2] == 'X'))
            return true;
        (void)poll(NULL, 0, 10);
    }
    return false;
}

static void test_cancel_kills_the_grandchildren(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    auto_buf struct buf out = BUF_INIT(100);
    auto_cancel struct cancel *c = cancel_new(mono_ns() + 500 * MS, NULL);
    int status = 0;
    int64_t begin = mono_ns();
    /* the shell ends at once; its child holds the pipe */
    assert_int_equal(
        shell("trap '' TERM; sleep 1000 & echo $!", NULL, &out, NULL, c, &status, &err), -1);
    assert_int_equal(err.code, ERR_DEADLINE);
    assert_true(mono_ns() - begin < 20000 * MS);
    pid_t pid = atoi(buf_str(&out));
    assert_true(pid > 1);
    assert_true(ends_within(pid, 5000));
}

static void test_cancelled_before_it_began(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *c = cancel_new(0, NULL);
    cancel_fire(c);
    int status = 0;
    assert_int_equal(shell("exec sleep 1000", NULL, NULL, NULL, c, &status, &err), -1);
    assert_int_equal(err.code, ERR_CANCELLED);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
}

static void test_waiting_can_be_given_up(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    struct spawn_opts o = {.argv = SH("trap '' TERM HUP; echo; exec sleep 1000"),
                           .new_group = true};
    struct spawn_proc p = SPAWN_PROC_INIT;
    assert_int_equal(spawn_start(&o, &p, &err), 0);
    assert_true(p.pid > 0 && p.pidfd >= 0);
    assert_true((fcntl(p.pidfd, F_GETFD) & FD_CLOEXEC) != 0);
    auto_cancel struct cancel *c = cancel_new(mono_ns() + 20 * MS, NULL);
    int status = 0;
    assert_int_equal(spawn_wait(&p, c, &status, &err), -1);
    assert_int_equal(err.code, ERR_DEADLINE);
    pid_t pid = p.pid;
    assert_int_equal(kill(pid, 0), 0); /* it goes on */
    spawn_kill(&p);
    spawn_kill(&p);
    assert_int_equal(kill(pid, 0), -1);
    spawn_clear(&p);
    assert_int_equal(p.pidfd, -1);
}

/* An inherited descriptor of ours would be a secret or a leak. */
static void test_no_descriptor_is_inherited(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    auto_close int sloppy = open("/etc/passwd", O_RDONLY); /* as a library might: no O_CLOEXEC */
    assert_true(sloppy >= 0);
    assert_int_equal(dup2(sloppy, 77), 77);
    auto_close int named = open("/etc/hostname", O_RDONLY | O_CLOEXEC);
    auto_buf struct buf out = BUF_INIT(4096);
    struct spawn_fd fds[] = {{.child = 5, .here = named}, {.child = 4, .here = -1}};
    struct spawn_opts o = {.argv = SH("cd /proc/self/fd && for f in *; do echo $f=$(readlink $f); "
                                      "done"),
                           .fds = fds,
                           .n_fds = 2};
    int status = -1;
    assert_int_equal(spawn_run(&o, NULL, 0, &out, NULL, NULL, &status, &err), 0);
    (void)close(77);
    const char *text = buf_str(&out);
    assert_non_null(strstr(text, "\n5=/etc/hostname\n"));
    assert_non_null(strstr(text, "\n4=/dev/null\n"));
    assert_null(strstr(text, "passwd"));
    assert_null(strstr(text, "77="));
}

static void test_descriptors_that_cross(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    /* 3 -> 4 and 4 -> 3: a plain dup2 one after the other would lose one of them */
    int a[2];
    int b[2];
    assert_int_equal(pipe2(a, O_CLOEXEC), 0);
    assert_int_equal(pipe2(b, O_CLOEXEC), 0);
    struct spawn_fd fds[] = {{.child = a[1], .here = b[1]}, {.child = b[1], .here = a[1]}};
    char script[64];
    (void)snprintf(script, sizeof(script), "echo to-b >&%d; echo to-a >&%d", a[1], b[1]);
    struct spawn_opts o = {.argv = SH(script), .fds = fds, .n_fds = 2};
    struct spawn_proc p = SPAWN_PROC_INIT;
    int status = -1;
    char text[8] = "";
    assert_int_equal(spawn_start(&o, &p, &err), 0);
    assert_int_equal(spawn_wait(&p, NULL, &status, &err), 0);
    assert_int_equal(status, 0);
    assert_int_equal(read(a[0], text, sizeof(text) - 1), 5);
    assert_string_equal(text, "to-a\n");
    assert_int_equal(read(b[0], text, sizeof(text) - 1), 5);
    assert_string_equal(text, "to-b\n");
    for (int i = 0; i < 2; i++) {
        (void)close(a[i]);
        (void)close(b[i]);
    }
}

static void test_environment_directory_and_signals(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    auto_buf struct buf out = BUF_INIT(4096);
    const char *env[] = {"ONLY=this", "PATH=/usr/bin:/bin", NULL};
    sigset_t set;
    sigset_t before;
    (void)sigemptyset(&set);
    (void)sigaddset(&set, SIGTERM);
    (void)pthread_sigmask(SIG_BLOCK, &set, &before);
    (void)signal(SIGPIPE, SIG_IGN);
    struct spawn_opts o = {.argv = SH("pwd; env | grep -v '^PWD\\|^_\\|^SHLVL\\|^OLDPWD' | sort; "
                                      "sed -n 's/^\\(Sig[BI][lg].\\):.*\\(.......\\)$/\\1 \\2/p' "
                                      "/proc/self/status" /* 32 and 33 are glibc's */),
                           .env = env,
                           .cwd = "/usr"};
    int status = -1;
    assert_int_equal(spawn_run(&o, NULL, 0, &out, NULL, NULL, &status, &err), 0);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    assert_string_equal(buf_str(&out), "/usr\nONLY=this\nPATH=/usr/bin:/bin\n"
                                       "SigBlk 0000000\nSigIgn 0000000\n");
    o.cwd = "/no/such/directory";
    assert_int_equal(spawn_run(&o, NULL, 0, &out, NULL, NULL, &status, &err), -1);
}

int main(void)
{
    (void)signal(SIGPIPE, SIG_IGN); /* as in the daemon's main */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_output_and_status),
        cmocka_unit_test(test_missing_program),
        cmocka_unit_test(test_big_input_and_output),
        cmocka_unit_test(test_too_much_output),
        cmocka_unit_test(test_cancel_kills_the_grandchildren),
        cmocka_unit_test(test_cancelled_before_it_began),
        cmocka_unit_test(test_waiting_can_be_given_up),
        cmocka_unit_test(test_no_descriptor_is_inherited),
        cmocka_unit_test(test_descriptors_that_cross),
        cmocka_unit_test(test_environment_directory_and_signals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
