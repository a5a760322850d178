#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/spawn.h"
#include "base/str.h"
#include "sandbox/qmp.h"

#define GREETING "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n"

struct fixture {
    struct loop *loop;
    pthread_t thread;
    int peer; /* our end: we play QEMU */
    struct qmp *q;
    sem_t event, closed;
    char last_event[64];
    char reason[256];
};

static void on_event(void *arg, const char *event, const json_t *data)
{
    struct fixture *f = arg;
    (void)data;
    (void)snprintf(f->last_event, sizeof(f->last_event), "%s", event);
    (void)sem_post(&f->event);
}

static void on_closed(void *arg, const char *reason)
{
    struct fixture *f = arg;
    (void)snprintf(f->reason, sizeof(f->reason), "%s", reason);
    (void)sem_post(&f->closed);
}

static void *run(void *arg)
{
    loop_run(arg);
    return NULL;
}

static struct cancel *soon(void)
{
    struct cancel *c = cancel_new(mono_ns() + INT64_C(10000000000), NULL);
    assert_non_null(c);
    return c;
}

static void wait_sem(sem_t *s)
{
    struct timespec ts;
    (void)clock_gettime(CLOCK_REALTIME, &ts);
    ts.tv_sec += 10;
    int rc;
    while ((rc = sem_timedwait(s, &ts)) < 0 && errno == EINTR)
        ;
    assert_int_equal(rc, 0);
}

static int setup(void **state)
{
    struct fixture *f = xcalloc(1, sizeof(*f));
    int sv[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
    (void)sem_init(&f->event, 0, 0);
    (void)sem_init(&f->closed, 0, 0);
    f->loop = loop_new(NULL);
    assert_int_equal(pthread_create(&f->thread, NULL, run, f->loop), 0);
    f->peer = sv[0];
    struct qmp_callbacks cb = {on_event, on_closed, f};
    f->q = qmp_new(f->loop, sv[1], &cb, NULL);
    assert_non_null(f->q);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    qmp_close(f->q, "test over");
    qmp_unref(f->q);
    loop_stop(f->loop);
    (void)pthread_join(f->thread, NULL);
    loop_free(f->loop);
    cleanup_closep(&f->peer);
    (void)sem_destroy(&f->event);
    (void)sem_destroy(&f->closed);
    free(f);
    return 0;
}

/* --- the scripted peer, in a thread of its own --- */

struct script {
    int fd;
    const char *const *answers; /* one per line read; "" says nothing; NULL ends */
    int passed;                 /* a descriptor that came along */
    char seen[4096];
};

static size_t read_line(struct script *s, char *line, size_t size)
{
    size_t n = 0;
    while (n + 1 < size) {
        char c;
        struct iovec iov = {&c, 1};
        union {
            char buf[CMSG_SPACE(sizeof(int))];
            struct cmsghdr align;
        } control;
        struct msghdr msg = {.msg_iov = &iov,
                             .msg_iovlen = 1,
                             .msg_control = control.buf,
                             .msg_controllen = sizeof(control.buf)};
        if (recvmsg(s->fd, &msg, MSG_CMSG_CLOEXEC) != 1)
            break;
        struct cmsghdr *h = CMSG_FIRSTHDR(&msg);
        if (h != NULL && h->cmsg_type == SCM_RIGHTS)
            memcpy(&s->passed, CMSG_DATA(h), sizeof(int));
        if (c == '\n')
            break;
        line[n++] = c;
    }
    line[n] = '\0';
    return n;
}

static void *play(void *arg)
{
    struct script *s = arg;
    char line[4096];
    (void)!write(s->fd, GREETING, strlen(GREETING));
    for (size_t i = 0; s->answers[i] != NULL; i++) {
        if (read_line(s, line, sizeof(line)) == 0)
            break;
        (void)snprintf(s->seen + strlen(s->seen), sizeof(s->seen) - strlen(s->seen), "%s\n", line);
        (void)!write(s->fd, s->answers[i], strlen(s->answers[i]));
    }
    return NULL;
}

static void handshake_and_calls(void **state)
{
    struct fixture *f = *state;
    const char *const answers[] = {
        "{\"return\": {}, \"id\": 1}\n",
        /* an event in the midst of a reply, and the reply in two writes' worth of lines */
        "{\"event\": \"STOP\", \"timestamp\": {}}\n{\"return\": {\"status\": \"paused\"}, \"id\": "
        "2}\n",
        "{\"id\": 3, \"error\": {\"class\": \"DeviceNotFound\", \"desc\": \"no such thing\"}}\n",
        "{\"return\": {}, \"id\": 4}\n", NULL};
    struct script s = {.fd = f->peer, .answers = answers, .passed = -1};
    pthread_t t;
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *c = soon();
    assert_int_equal(pthread_create(&t, NULL, play, &s), 0);
    assert_int_equal(qmp_wait_ready(f->q, c, &err), 0);
    json_t *r = qmp_call(f->q, "query-status", NULL, -1, c, &err);
    assert_non_null(r);
    assert_string_equal(json_string_value(json_object_get(r, "status")), "paused");
    json_decref(r);
    wait_sem(&f->event);
    assert_string_equal(f->last_event, "STOP");
    assert_int_equal(qmp_run(f->q, "device_del", json_pack("{s:s}", "id", "x\"\n,y"), -1, c, &err),
                     -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_non_null(strstr(err_msg(&err), "no such thing"));
    err_clear(&err);
    auto_close int fd = memfd_create("passed", MFD_CLOEXEC);
    assert_int_equal(write(fd, "hello", 5), 5);
    assert_int_equal(qmp_run(f->q, "add-fd", json_pack("{s:i}", "fdset-id", 7), fd, c, &err), 0);
    (void)pthread_join(t, NULL);
    assert_true(s.passed >= 0);
    char got[8] = "";
    assert_int_equal(pread(s.passed, got, 5, 0), 5);
    assert_string_equal(got, "hello");
    (void)close(s.passed);
    assert_non_null(strstr(s.seen, "\"execute\":\"qmp_capabilities\""));
    assert_non_null(strstr(s.seen, "x\\\"\\n,y")); /* data stays data */
}

static void expects(void **state)
{
    struct fixture *f = *state;
    const char *const answers[] = {
        "{\"return\": {}, \"id\": 1}\n",
        "{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"other\"}}\n"
        "{\"return\": {}, \"id\": 2}\n"
        "{\"event\": \"DEVICE_DELETED\", \"data\": {\"path\": \"/x\"}}\n"
        "{\"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"d1\"}}\n",
        NULL};
    struct script s = {.fd = f->peer, .answers = answers, .passed = -1};
    pthread_t t;
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *c = soon();
    assert_int_equal(pthread_create(&t, NULL, play, &s), 0);
    assert_int_equal(qmp_wait_ready(f->q, c, &err), 0);
    auto_qmp_expect struct qmp_expect *d1 =
        qmp_expect(f->q, "DEVICE_DELETED", "device", "d1", &err);
    auto_qmp_expect struct qmp_expect *never =
        qmp_expect(f->q, "DEVICE_DELETED", "device", "d2", &err);
    assert_int_equal(qmp_run(f->q, "device_del", NULL, -1, c, &err), 0);
    assert_int_equal(qmp_expect_wait(d1, c, &err), 0);
    auto_cancel struct cancel *brief = cancel_new(mono_ns() + 20000000, NULL);
    assert_int_equal(qmp_expect_wait(never, brief, &err), -1);
    assert_int_equal(err.code, ERR_DEADLINE);
    err_clear(&err);
    (void)pthread_join(t, NULL);
    /* the peer goes away: waiters are told */
    cleanup_closep(&f->peer);
    assert_int_equal(qmp_expect_wait(never, c, &err), -1);
    assert_int_equal(err.code, ERR_UNAVAILABLE);
}

static void cancelled_call(void **state)
{
    struct fixture *f = *state;
    /* the second command's reply comes late, after the caller has gone; the third gets its own */
    const char *const answers[] = {"{\"return\": {}, \"id\": 1}\n", "",
                                   "{\"return\": {}, \"id\": 2}\n", NULL};
    struct script s = {.fd = f->peer, .answers = answers, .passed = -1};
    pthread_t t;
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *c = soon();
    assert_int_equal(pthread_create(&t, NULL, play, &s), 0);
    assert_int_equal(qmp_wait_ready(f->q, c, &err), 0);
    auto_cancel struct cancel *brief = cancel_new(mono_ns() + 20000000, NULL);
    assert_int_equal(qmp_run(f->q, "slow", NULL, -1, brief, &err), -1);
    assert_int_equal(err.code, ERR_DEADLINE);
    err_clear(&err);
    /* queued behind the slow one and taken back before it was sent */
    auto_cancel struct cancel *brief2 = cancel_new(mono_ns() + 20000000, NULL);
    assert_int_equal(qmp_run(f->q, "never-sent", NULL, -1, brief2, &err), -1);
    err_clear(&err);
    (void)!write(f->peer, "{\"return\": {\"late\": 1}, \"id\": 2}\n", 33);
    (void)shutdown(f->peer, SHUT_RDWR); /* wakes the script too */
    (void)pthread_join(t, NULL);
    assert_null(strstr(s.seen, "never-sent"));
    assert_int_equal(qmp_run(f->q, "after", NULL, -1, c, &err), -1);
    assert_int_equal(err.code, ERR_UNAVAILABLE);
}

static void dies_of(const char *bytes, size_t len, const char *why)
{
    void *state = NULL;
    assert_int_equal(setup(&state), 0);
    struct fixture *f = state;
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *c = soon();
    size_t at = 0;
    while (at < len) { /* the client may hang up in the midst */
        ssize_t n = send(f->peer, bytes + at, len - at, MSG_NOSIGNAL);
        if (n <= 0)
            break;
        at += (size_t)n;
    }
    wait_sem(&f->closed);
    if (strstr(f->reason, why) == NULL)
        fail_msg("\"%s\" instead of \"%s\"", f->reason, why);
    assert_int_equal(qmp_run(f->q, "anything", NULL, -1, c, &err), -1);
    assert_int_equal(err.code, ERR_UNAVAILABLE);
    assert_int_equal(teardown(&state), 0);
}

static void hostile_peers(void **state)
{
    (void)state;
    static const struct {
        const char *text, *why;
    } cases[] = {
        {"garbage\n", "malformed"},
        {"{\"QMP\": 3}\n", "malformed"},
        {"[]\n", "malformed"},
        {"{\"event\": 5}\n", "malformed"},
        {"{\"event\": \"X\", \"data\": []}\n", "malformed"},
        {"{\"error\": \"x\"}\n", "malformed"},
        {"{\"error\": {\"class\": \"x\"}}\n", "malformed"},
        {"{\"a\":1,\"a\":1}\n", "malformed"},
        {GREETING GREETING, "greeted twice"},
        {"{\"return\": {}, \"id\": 99}\n", "nothing asked"},
        {"{\"return\": {}}\n", "nothing asked"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        dies_of(cases[i].text, strlen(cases[i].text), cases[i].why);
    size_t big = 2 * LIMIT_QMP_LINE;
    auto_free char *line = xcalloc(big, 1);
    memset(line, ' ', big);
    dies_of(line, big, "longer than allowed");
    memset(line, '[', big);
    line[LIMIT_QMP_LINE / 2] = '\n';
    dies_of(line, LIMIT_QMP_LINE / 2 + 1, "malformed"); /* nesting */
    char zeros[64] = {0};
    zeros[63] = '\n';
    dies_of(zeros, sizeof(zeros), "malformed");
}

static void real_qemu(void **state)
{
    (void)state;
    int sv[2];
    auto_err struct err err = ERR_INIT;
    if (access("/usr/bin/qemu-system-x86_64", X_OK) < 0)
        skip();
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
    const char *argv[] = {"/usr/bin/qemu-system-x86_64",
                          "-nodefaults",
                          "-no-user-config",
                          "-display",
                          "none",
                          "-machine",
                          "none",
                          "-chardev",
                          "socket,id=q,fd=3",
                          "-mon",
                          "chardev=q,mode=control",
                          NULL};
    struct spawn_fd fds[] = {{3, sv[1]}};
    struct spawn_opts so = {.argv = argv, .fds = fds, .n_fds = 1};
    struct spawn_proc proc = SPAWN_PROC_INIT;
    assert_int_equal(spawn_start(&so, &proc, &err), 0);
    (void)close(sv[1]);
    struct fixture f = {.peer = -1};
    (void)sem_init(&f.event, 0, 0);
    (void)sem_init(&f.closed, 0, 0);
    f.loop = loop_new(NULL);
    assert_int_equal(pthread_create(&f.thread, NULL, run, f.loop), 0);
    struct qmp_callbacks cb = {on_event, on_closed, &f};
    struct qmp *q = qmp_new(f.loop, sv[0], &cb, &err);
    auto_cancel struct cancel *c = soon();
    assert_int_equal(qmp_wait_ready(q, c, &err), 0);
    /* the longest answer there is */
    json_t *schema = qmp_call(q, "query-qmp-schema", NULL, -1, c, &err);
    if (schema == NULL)
        fail_msg("%s", err_msg(&err));
    assert_true(json_array_size(schema) > 100);
    json_decref(schema);
    auto_close int fd = memfd_create("x", MFD_CLOEXEC);
    json_t *r = qmp_call(q, "add-fd", json_pack("{s:i}", "fdset-id", 300), fd, c, &err);
    assert_int_equal(json_integer_value(json_object_get(r, "fdset-id")), 300);
    json_decref(r);
    assert_int_equal(qmp_run(q, "no-such-command", NULL, -1, c, &err), -1);
    assert_non_null(strstr(err_msg(&err), "no-such-command"));
    err_clear(&err);
    assert_int_equal(qmp_run(q, "quit", NULL, -1, c, &err), 0);
    wait_sem(&f.closed);
    assert_int_equal(spawn_wait(&proc, c, NULL, &err), 0);
    qmp_close(q, "over");
    qmp_unref(q);
    loop_stop(f.loop);
    (void)pthread_join(f.thread, NULL);
    loop_free(f.loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(handshake_and_calls, setup, teardown),
        cmocka_unit_test_setup_teardown(expects, setup, teardown),
        cmocka_unit_test_setup_teardown(cancelled_call, setup, teardown),
        cmocka_unit_test(hostile_peers),
        cmocka_unit_test(real_qemu),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
