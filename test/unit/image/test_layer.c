/* layer_convert() when one side fails. Argument: aspis-unpack. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/fs.h"
#include "base/limits.h"
#include "cri/image/layer.h"

static char *unpacker, *dir, *out;

static int set_up(void **state)
{
    char template[] = "/tmp/aspis-layer-XXXXXX";
    (void)state;
    dir = strdup(mkdtemp(template));
    out = fs_format("%s/layer", dir);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    int rc = fs_rm_rf(dir, NULL);
    free(dir);
    free(out);
    return rc;
}

/* Nothing at `out`, no child left, and the error is as wanted. */
static void check_failed(int rc, const struct err *err, enum err_code code, const char *text)
{
    assert_int_equal(rc, -1);
    if (err->code != code || strstr(err_msg(err), text) == NULL)
        fail_msg("%s: %s", err_code_name(err->code), err_msg(err));
    assert_false(fs_exists(out));
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1);
    assert_int_equal(errno, ECHILD);
}

static int convert(const char *program, int fd, struct cancel *cancel, struct err *err)
{
    const struct image_options o = {.unpacker = program, .max_layer_bytes = MiB(8)};
    struct layer_result res;
    return layer_convert(&o, fd, out, &res, cancel, err);
}

static void test_deadline(void **state)
{
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *c = cancel_new(mono_ns() + 50000000, NULL);
    int fds[2];
    (void)state;
    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    check_failed(convert(unpacker, fds[0], c, &err), &err, ERR_DEADLINE, "");
    assert_int_equal(write(fds[1], "x", 1), -1);
    assert_int_equal(errno, EPIPE);
    (void)close(fds[1]);
}

static void test_cancelled_before(void **state)
{
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *c = cancel_new(0, NULL);
    (void)state;
    cancel_fire(c);
    check_failed(convert(unpacker, open("/dev/null", O_RDONLY | O_CLOEXEC), c, &err), &err,
                 ERR_CANCELLED, "");
}

static void *write_for_ever(void *arg)
{
    static const char garbage[4096] = "this is no tar";
    int fd = *(int *)arg;
    while (write(fd, garbage, sizeof(garbage)) > 0)
        ;
    return errno == EPIPE ? arg : NULL;
}

/* Whoever feeds a refused stream is told so, rather than left waiting. */
static void test_feeder_gets_epipe(void **state)
{
    auto_err struct err err = ERR_INIT;
    pthread_t thread;
    void *told = NULL;
    int fds[2];
    (void)state;
    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    assert_int_equal(pthread_create(&thread, NULL, write_for_ever, &fds[1]), 0);
    check_failed(convert(unpacker, fds[0], NULL, &err), &err, ERR_INVALID, "tar");
    assert_int_equal(pthread_join(thread, &told), 0);
    assert_non_null(told);
    (void)close(fds[1]);
}

static void test_bad_unpackers(void **state)
{
    static const struct {
        const char *path, *text;
    } cases[] = {{"/nonexistent", "start the unpacker"},
                 {"/bin/false", "exit status 1"},
                 {"/bin/true", "ended with exit status 0"}};
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        auto_err struct err err = ERR_INIT;
        int fd = open("/dev/zero", O_RDONLY | O_CLOEXEC);
        check_failed(convert(cases[i].path, fd, NULL, &err), &err,
                     i == 0 ? ERR_NOT_FOUND : ERR_INTERNAL, cases[i].text);
        assert_int_equal(fcntl(fd, F_GETFD), -1); /* taken over */
    }
}

/* An unpacker that an attacker took over writes what he likes to the result pipe. */
static void test_lying_unpackers(void **state)
{
    static const struct {
        const char *says, *text;
    } cases[] = {
        {"not json", "garbled"},
        {"{}", "garbled"},
        {"{\"ok\":false}", "garbled"},
        {"{\"ok\":false,\"code\":99,\"message\":\"x\"}", "garbled"},
        {"{\"ok\":true,\"diff_id\":\"sha256:00\",\"bytes\":1,\"entries\":1,\"file_bytes\":0}",
         "garbled"},
        {"{\"ok\":true,\"diff_id\":\"sha256:"
         "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\",\"bytes\":1,"
         "\"entries\":1,\"file_bytes\":8192}",
         "not what it says"},
        {"{\"ok\":true,\"diff_id\":\"sha256:"
         "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\",\"bytes\":-1,"
         "\"entries\":1,\"file_bytes\":0}",
         "garbled"},
    };
    auto_free char *script = fs_format("%s/unpack", dir);
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        auto_err struct err err = ERR_INIT;
        auto_free char *text = fs_format("#!/bin/sh\ncat >&4 <<'X'\n%s\nX\n", cases[i].says);
        assert_int_equal(fs_write_atomic(script, text, strlen(text), 0755, false, &err), 0);
        check_failed(convert(script, open("/dev/null", O_RDONLY | O_CLOEXEC), NULL, &err), &err,
                     ERR_INTERNAL, cases[i].text);
    }
    auto_err struct err err = ERR_INIT;
    const char *flood = "#!/bin/sh\nexec cat /dev/zero >&4\n";
    assert_int_equal(fs_write_atomic(script, flood, strlen(flood), 0755, false, &err), 0);
    check_failed(convert(script, open("/dev/null", O_RDONLY | O_CLOEXEC), NULL, &err), &err,
                 ERR_INTERNAL, "says too much");
}

static void test_existing_file_stays(void **state)
{
    auto_err struct err err = ERR_INIT;
    (void)state;
    assert_int_equal(fs_write_atomic(out, "mine", 4, 0600, false, &err), 0);
    assert_int_equal(convert(unpacker, open("/dev/null", O_RDONLY | O_CLOEXEC), NULL, &err), -1);
    assert_int_equal(err.code, ERR_EXISTS);
    auto_free char *text = fs_read(out, 10, NULL, NULL);
    assert_string_equal(text, "mine");
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_deadline, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_cancelled_before, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_feeder_gets_epipe, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_bad_unpackers, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_lying_unpackers, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_existing_file_stays, set_up, tear_down),
    };
    (void)signal(SIGPIPE, SIG_IGN);
    unpacker = argc > 1 ? realpath(argv[1], NULL) : NULL;
    int failed = unpacker == NULL ? 1 : cmocka_run_group_tests(tests, NULL, NULL);
    free(unpacker);
    return failed;
}
