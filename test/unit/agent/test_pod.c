/* agent/pod outside of a guest: what ConfigurePod writes and refuses; the shared process namespace.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/pidns.h"
#include "agent/pod.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/loop.h"

struct fixture {
    char dir[32];
    struct loop *loop;
    struct pod *pod;
    uint8_t entropy[64];
    uint8_t machine_id[16];
    Aspis__Agent__V1__ConfigurePodRequest req;
    int calls;
    enum err_code code;
};

static char sandbox_id[] = "sb1";
static char hostname[] = "web-0";
static char other_id[] = "sb2";
static char bad_name[] = "no host name";
static char resolv[] = "nameserver 10.0.0.10\n";
static char hosts[] = "127.0.0.1 localhost\n10.0.0.2 web-0\n";
static char bad_sysctl[] = "../etc/passwd";
static char bad_serial[] = "a/b";
static char no_disk[] = "";

static int set_up(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    strcpy(f->dir, "/tmp/aspis-test-XXXXXX");
    assert_non_null(mkdtemp(f->dir));
    f->loop = loop_new(NULL);
    f->pod = pod_new(f->loop, NULL);
    pod_use_dir(f->pod, f->dir);
    aspis__agent__v1__configure_pod_request__init(&f->req);
    f->req.sandbox_id = sandbox_id;
    f->req.hostname = hostname;
    f->req.wall_clock_ns = 1; /* 1970: the test's machine would notice */
    f->req.entropy = (ProtobufCBinaryData){.len = sizeof(f->entropy), .data = f->entropy};
    f->req.machine_id = (ProtobufCBinaryData){.len = sizeof(f->machine_id), .data = f->machine_id};
    f->req.resolv_conf = (ProtobufCBinaryData){.len = strlen(resolv), .data = (uint8_t *)resolv};
    f->req.hosts = (ProtobufCBinaryData){.len = strlen(hosts), .data = (uint8_t *)hosts};
    f->req.scratch_disk = no_disk;
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    pod_free(f->pod);
    loop_free(f->loop);
    assert_int_equal(fs_rm_rf(f->dir, NULL), 0);
    free(f);
    return 0;
}

static void configured(void *arg, const struct err *err)
{
    struct fixture *f = arg;
    f->calls++;
    f->code = err ? err->code : ERR_OK;
}

static enum err_code configure(struct fixture *f)
{
    int before = f->calls;
    pod_configure(f->pod, &f->req, configured, f);
    assert_int_equal(f->calls, before + 1);
    return f->code;
}

static void assert_file(struct fixture *f, const char *name, const char *text)
{
    auto_free char *have = fs_read(pod_file(f->pod, name), 4096, NULL, NULL);
    assert_non_null(have);
    assert_string_equal(have, text);
}

static void test_configure(void **state)
{
    struct fixture *f = *state;
    assert_string_equal(pod_id(f->pod), "");
    assert_int_equal(configure(f), ERR_OK);
    assert_string_equal(pod_id(f->pod), "sb1");
    assert_file(f, "resolv.conf", resolv);
    assert_file(f, "hosts", hosts);
    assert_file(f, "hostname", "web-0\n");
    assert_true(fs_exists(pod_file(f->pod, "shm")));
    assert_true(fs_exists(pod_scratch_dir(f->pod)));
    assert_null(pod_file(f->pod, "../hosts"));
    assert_null(pod_file(f->pod, ""));
    assert_null(pod_images(f->pod)[0]);

    /* Containers hold the inode: the second time changes the contents of the same file, and leaves
     * no old tail. */
    struct stat before, after;
    assert_int_equal(stat(pod_file(f->pod, "hosts"), &before), 0);
    f->req.hosts.len = 4;
    assert_int_equal(configure(f), ERR_OK);
    assert_int_equal(stat(pod_file(f->pod, "hosts"), &after), 0);
    assert_true(before.st_ino == after.st_ino);
    assert_file(f, "hosts", "127.");
}

static void test_refused(void **state)
{
    struct fixture *f = *state;
    const Aspis__Agent__V1__ConfigurePodRequest good = f->req;

    f->req.sandbox_id = no_disk;
    assert_int_equal(configure(f), ERR_INVALID);
    f->req = good;
    f->req.hostname = bad_name;
    assert_int_equal(configure(f), ERR_INVALID);
    f->req = good;
    f->req.entropy.len = 8;
    assert_int_equal(configure(f), ERR_INVALID);
    f->req = good;
    f->req.machine_id.len = 15;
    assert_int_equal(configure(f), ERR_INVALID);
    f->req = good;
    f->req.scratch_disk = bad_serial;
    assert_int_equal(configure(f), ERR_INVALID);
    f->req = good;
    f->req.hosts.len = (size_t)1 << 30;
    assert_int_equal(configure(f), ERR_INVALID);
    f->req = good;
    Aspis__Agent__V1__KeyValue kv;
    aspis__agent__v1__key_value__init(&kv);
    kv.key = bad_sysctl;
    Aspis__Agent__V1__KeyValue *list[] = {&kv};
    f->req.sysctls = list;
    f->req.n_sysctls = 1;
    assert_int_equal(configure(f), ERR_INVALID);
    assert_string_equal(pod_id(f->pod), "");

    f->req = good;
    assert_int_equal(configure(f), ERR_OK);
    f->req.sandbox_id = other_id;
    assert_int_equal(configure(f), ERR_PRECONDITION);
    assert_string_equal(pod_id(f->pod), "sb1");
}

static void test_shared_pidns(void **state)
{
    struct fixture *f = *state;
    auto_err struct err err = ERR_INIT;
    const char *path = pod_shared_pidns(f->pod, &err);
    if (path == NULL && err.code == ERR_DENIED)
        skip();
    assert_non_null(path);
    auto_free char *first = strdup(path);
    struct stat ours, theirs;
    assert_int_equal(stat("/proc/self/ns/pid", &ours), 0);
    assert_int_equal(stat(first, &theirs), 0);
    assert_true(ours.st_ino != theirs.st_ino);
    assert_string_equal(pod_shared_pidns(f->pod, NULL), first);

    /* SIGTERM does nothing to a namespace's init; SIGKILL ends it, and then there is a new one. */
    pid_t pid = (pid_t)strtol(first + strlen("/proc/"), NULL, 10);
    pod_reaped(f->pod, pid + 1);
    assert_string_equal(pod_shared_pidns(f->pod, NULL), first);
    assert_int_equal(kill(pid, SIGKILL), 0);
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status));
    pod_reaped(f->pod, pid);
    const char *second = pod_shared_pidns(f->pod, NULL);
    assert_non_null(second);
    assert_string_not_equal(second, first);
    pid = (pid_t)strtol(second + strlen("/proc/"), NULL, 10);
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    pod_reaped(f->pod, pid);
}

int main(int argc, char **argv)
{
    if (argc > 0 && strcmp(argv[0], PIDNS_INIT_NAME) == 0)
        pidns_init_main();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_configure, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_shared_pidns, set_up, tear_down),
    };
    return cmocka_run_group_tests_name("pod", tests, NULL, NULL);
}
