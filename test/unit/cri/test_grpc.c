/* cri/grpc: server and client against each other over a real socket: replies, streams, errors,
 * cancellation, deadlines, limits, hostile requests, shutdown. */
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/buf.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "cri/grpc.h"
#include "cri/message.h"
#include "cri/socket.h"
#include "proto/cri/v1/api.pb-c.h"

typedef Runtime__V1__VersionRequest Request; /* one string: says what the handler should do */
typedef Runtime__V1__VersionResponse Reply;

/* What a handler saw, for the test to wait for: written to by handlers. */
struct seen {
    int entered, ended; /* eventfds */
    enum err_code code; /* valid once `ended` is readable */
    size_t sent;
};

static struct {
    char dir[64];
    char *path;
    struct gserver *server;
    struct gclient *client;
    struct seen seen;
} t;

static void wait_readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 20000), 1);
    eventfd_t v;
    assert_int_equal(eventfd_read(fd, &v), 0);
}

/* --- handlers --- */

static int echo(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                struct err *err)
{
    const Request *r = (const Request *)req;
    assert_ptr_equal(call->daemon, &t);
    Reply *out = call_message(call, &runtime__v1__version_response__descriptor, err);
    if (out == NULL)
        return -1;
    out->version = call_string(call, r->version, err);
    *reply = &out->base;
    return 0;
}

static int wait_for_end(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                        struct err *err)
{
    (void)req;
    (void)reply;
    auto_close int never = eventfd(0, EFD_CLOEXEC);
    (void)eventfd_write(t.seen.entered, 1);
    int rc = cancel_poll(call->cancel, never, POLLIN, 20000, err);
    t.seen.code = rc < 0 ? err->code : ERR_OK;
    (void)eventfd_write(t.seen.ended, 1);
    return rc < 0 ? -1 : err_set(err, ERR_INTERNAL, "was not cancelled");
}

static int bad_text(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                    struct err *err)
{
    (void)req;
    Runtime__V1__StatusResponse *out =
        call_message(call, &runtime__v1__status_response__descriptor, err);
    Runtime__V1__StatusResponse__InfoEntry **info = call_array(call, 2, sizeof(*info), err);
    for (int i = 0; i < 2; i++)
        info[i] = call_message(call, &runtime__v1__status_response__info_entry__descriptor, err);
    /* Static: what the server repairs must be a copy. */
    static char good[] = "gr\xc3\xbc\xc3\x9f", bad[] = "a\xff\xc3(\xed\xa0\x80\xf0\x9f\x98\x80";
    info[0]->key = good;
    info[0]->value = bad;
    info[1]->key = bad;
    info[1]->value = good;
    out->info = info;
    out->n_info = 2;
    *reply = &out->base;
    return 0;
}

static int too_big(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                   struct err *err)
{
    (void)req;
    Runtime__V1__ExecSyncResponse *out =
        call_message(call, &runtime__v1__exec_sync_response__descriptor, err);
    out->stdout.len = LIMIT_GRPC_MESSAGE;
    out->stdout.data = arena_alloc(call->arena, out->stdout.len);
    *reply = &out->base;
    return 0;
}

static int failing(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                   struct err *err)
{
    (void)call;
    (void)reply;
    const Request *r = (const Request *)req;
    if (strcmp(r->version, "long") == 0) {
        auto_free char *text = malloc(100001);
        memset(text, '\xfe', 100000);
        text[100000] = '\0';
        return err_set(err, ERR_NOT_FOUND, "%s", text);
    }
    return err_set(err, ERR_NOT_FOUND, "no such pod `%s`", r->version);
}

static int no_reply(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                    struct err *err)
{
    (void)call;
    (void)req;
    (void)reply;
    (void)err;
    return 0;
}

/* Sends as many messages as the request says, then ends with an error if it ends with '!'. */
static int count_up(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                    struct err *err)
{
    (void)reply;
    const Request *r = (const Request *)req;
    char *end;
    long n = strtol(r->version, &end, 10);
    for (long i = 0; i < n; i++) {
        char text[32];
        (void)snprintf(text, sizeof(text), "%ld", i);
        Reply m = RUNTIME__V1__VERSION_RESPONSE__INIT;
        m.version = text;
        if (call_send(call, &m.base, err) < 0)
            return -1;
    }
    return *end == '!' ? err_set(err, ERR_DATA_LOSS, "lost") : 0;
}

/* Sends until it may not. */
static int flood(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                 struct err *err)
{
    (void)req;
    (void)reply;
    auto_free char *text = malloc(KiB(64));
    memset(text, 'x', KiB(64) - 1);
    text[KiB(64) - 1] = '\0';
    Reply m = RUNTIME__V1__VERSION_RESPONSE__INIT;
    m.version = text;
    t.seen.sent = 0;
    while (call_send(call, &m.base, err) == 0)
        t.seen.sent++;
    t.seen.code = err->code;
    (void)eventfd_write(t.seen.ended, 1);
    return -1;
}

#define METHOD(fn, reply_type, is_stream)                                                          \
    {                                                                                              \
        .service = "test.T", .name = #fn, .request = &runtime__v1__version_request__descriptor,    \
        .reply = &runtime__v1__##reply_type##_response__descriptor, .handler = fn,                 \
        .streaming = (is_stream)                                                                   \
    }
static const struct method methods[] = {
    METHOD(echo, version, false),
    METHOD(wait_for_end, version, false),
    METHOD(bad_text, status, false),
    METHOD(too_big, exec_sync, false),
    METHOD(failing, version, false),
    METHOD(no_reply, version, false),
    METHOD(count_up, version, true),
    METHOD(flood, version, true),
    {.service = "test.T",
     .name = "unbuilt",
     .request = &runtime__v1__version_request__descriptor,
     .reply = &runtime__v1__version_response__descriptor},
    {.service = "test.T",
     .name = "status",
     .request = &runtime__v1__pod_sandbox_status_request__descriptor,
     .reply = &runtime__v1__version_response__descriptor,
     .handler = echo},
};

static struct gserver_opts opts(void)
{
    return (struct gserver_opts){.socket_path = t.path,
                                 .methods = methods,
                                 .n_methods = ARRAY_LEN(methods),
                                 .daemon = &t,
                                 .stream_stall_ns = 20000000000};
}

static int setup(void **state)
{
    (void)state;
    (void)log_init("test", LOG_LEVEL_ERROR, false);
    (void)snprintf(t.dir, sizeof(t.dir), "/tmp/aspis-grpc-XXXXXX");
    assert_non_null(mkdtemp(t.dir));
    t.path = fs_format("%s/s.sock", t.dir);
    t.seen = (struct seen){.entered = eventfd(0, EFD_CLOEXEC), .ended = eventfd(0, EFD_CLOEXEC)};
    auto_err struct err err = ERR_INIT;
    struct gserver_opts o = opts();
    t.server = gserver_start(&o, &err);
    if (t.server == NULL)
        print_error("%s\n", err_msg(&err));
    assert_non_null(t.server);
    t.client = gclient_open(t.path, &err);
    assert_non_null(t.client);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    gclient_close(take(t.client));
    gserver_stop(take(t.server));
    assert_false(fs_exists(t.path));
    assert_int_equal(fs_rm_rf(t.dir, NULL), 0);
    free(take(t.path));
    (void)close(t.seen.entered);
    (void)close(t.seen.ended);
    return 0;
}

/* --- calls --- */

static const Reply *call_text(struct arena *a, const char *method, const char *text,
                              int64_t timeout, struct err *err)
{
    char path[64];
    (void)snprintf(path, sizeof(path), "/test.T/%s", method);
    Request r = RUNTIME__V1__VERSION_REQUEST__INIT;
    r.version = (char *)(uintptr_t)text;
    return (const Reply *)gclient_call(t.client, path, &r.base,
                                       &runtime__v1__version_response__descriptor, a, timeout, err);
}

static void expect_error(const char *method, const char *text, int64_t timeout, enum err_code code,
                         const char *part)
{
    auto_arena struct arena *a = arena_new(MiB(64));
    auto_err struct err err = ERR_INIT;
    assert_null(call_text(a, method, text, timeout, &err));
    if (err.code != code || strstr(err_msg(&err), part) == NULL)
        print_error("%s: %s\n", err_code_name(err.code), err_msg(&err));
    assert_int_equal(err.code, code);
    assert_non_null(strstr(err_msg(&err), part));
}

static void test_unary(void **state)
{
    (void)state;
    auto_arena struct arena *a = arena_new(MiB(1));
    auto_err struct err err = ERR_INIT;
    for (int i = 0; i < 50; i++) {
        const Reply *r = call_text(a, "echo", i % 2 ? "gr\xc3\xbc\xc3\x9f" : "", 0, &err);
        assert_non_null(r);
        assert_string_equal(r->version, i % 2 ? "gr\xc3\xbc\xc3\x9f" : "");
    }
}

static void *many_calls(void *arg)
{
    (void)arg;
    auto_err struct err err = ERR_INIT;
    struct gclient *c = gclient_open(t.path, &err);
    size_t good = 0;
    for (int i = 0; c != NULL && i < 100; i++) {
        auto_arena struct arena *a = arena_new(MiB(1));
        Request r = RUNTIME__V1__VERSION_REQUEST__INIT;
        char text[] = "parallel";
        r.version = text;
        const Reply *out = (const Reply *)gclient_call(
            c, "/test.T/echo", &r.base, &runtime__v1__version_response__descriptor, a, 0, &err);
        good += out != NULL && strcmp(out->version, text) == 0;
    }
    gclient_close(c);
    return (void *)good;
}

static void test_parallel(void **state)
{
    (void)state;
    pthread_t th[8];
    for (size_t i = 0; i < ARRAY_LEN(th); i++)
        assert_int_equal(pthread_create(&th[i], NULL, many_calls, NULL), 0);
    for (size_t i = 0; i < ARRAY_LEN(th); i++) {
        void *good;
        assert_int_equal(pthread_join(th[i], &good), 0);
        assert_int_equal((size_t)good, 100);
    }
}

static void test_errors(void **state)
{
    (void)state;
    expect_error("failing", "web", 0, ERR_NOT_FOUND, "no such pod `web`");
    expect_error("failing", "long", 0, ERR_NOT_FOUND, "\xEF\xBF\xBD\xEF\xBF\xBD");
    expect_error("no_reply", "", 0, ERR_INTERNAL, "no reply");
    expect_error("unbuilt", "", 0, ERR_UNIMPLEMENTED,
                 "unbuilt is not implemented by aspis " ASPIS_VERSION);
    expect_error("nonsense", "", 0, ERR_UNIMPLEMENTED, "unknown method `/test.T/nonsense`");
    expect_error("too_big", "", 0, ERR_EXHAUSTED, "larger than");
}

static void test_bad_request(void **state)
{
    (void)state;
    expect_error("echo", "a\xff", 0, ERR_INVALID, "VersionRequest.version: the string is not");
    auto_free char *text = malloc(LIMIT_STRING + 2);
    memset(text, 'x', LIMIT_STRING + 1);
    text[LIMIT_STRING + 1] = '\0';
    expect_error("echo", text, 0, ERR_INVALID, "VersionRequest.version: the string is too long");
    text[LIMIT_STRING] = '\0';
    auto_arena struct arena *a = arena_new(MiB(1));
    auto_err struct err err = ERR_INIT;
    const Reply *r = call_text(a, "echo", text, 0, &err);
    assert_non_null(r);
    assert_int_equal(strlen(r->version), LIMIT_STRING);

    /* ExecSyncResponse has bytes where the method's request has its string. */
    Runtime__V1__ExecSyncResponse raw = RUNTIME__V1__EXEC_SYNC_RESPONSE__INIT;
    uint8_t nul[] = {'a', 0, 'b'};
    raw.stdout = (ProtobufCBinaryData){.len = sizeof(nul), .data = nul};
    assert_null(gclient_call(t.client, "/test.T/status", &raw.base,
                             &runtime__v1__version_response__descriptor, a, 0, &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_string_equal(err_msg(&err),
                        "PodSandboxStatusRequest.pod_sandbox_id: the string contains a NUL byte");
}

static void test_oversize_request(void **state)
{
    (void)state;
    Runtime__V1__ExecSyncResponse raw = RUNTIME__V1__EXEC_SYNC_RESPONSE__INIT;
    auto_free uint8_t *data = calloc(1, LIMIT_GRPC_MESSAGE + 1);
    raw.stderr = (ProtobufCBinaryData){.len = LIMIT_GRPC_MESSAGE + 1, .data = data};
    auto_arena struct arena *a = arena_new(MiB(1));
    auto_err struct err err = ERR_INIT;
    assert_null(gclient_call(t.client, "/test.T/echo", &raw.base,
                             &runtime__v1__version_response__descriptor, a, 0, &err));
    assert_int_equal(err.code, ERR_EXHAUSTED);
    assert_non_null(call_text(a, "echo", "still there", 0, &err));
}

/* 2 MiB of empty map entries would be some 70 MB in memory. */
static void test_arena(void **state)
{
    (void)state;
    const size_t n = 1000000;
    Runtime__V1__ImageSpec spec = RUNTIME__V1__IMAGE_SPEC__INIT;
    Runtime__V1__ImageSpec__AnnotationsEntry entry =
        RUNTIME__V1__IMAGE_SPEC__ANNOTATIONS_ENTRY__INIT;
    auto_free Runtime__V1__ImageSpec__AnnotationsEntry **list = calloc(n, sizeof(*list));
    for (size_t i = 0; i < n; i++)
        list[i] = &entry;
    spec.annotations = list;
    spec.n_annotations = n;
    static const struct method image = {
        .service = "test.T",
        .name = "image",
        .request = &runtime__v1__image_spec__descriptor,
        .reply = &runtime__v1__version_response__descriptor,
        .handler = echo,
    };
    auto_err struct err err = ERR_INIT;
    auto_free char *path = fs_format("%s/2.sock", t.dir);
    struct gserver_opts o = opts();
    o.socket_path = path;
    o.methods = &image;
    o.n_methods = 1;
    auto_gserver struct gserver *server = gserver_start(&o, &err);
    assert_non_null(server);
    auto_gclient struct gclient *client = gclient_open(path, &err);
    auto_arena struct arena *a = arena_new(MiB(1));
    assert_null(gclient_call(client, "/test.T/image", &spec.base,
                             &runtime__v1__version_response__descriptor, a, 0, &err));
    assert_int_equal(err.code, ERR_EXHAUSTED);
    assert_string_equal(err_msg(&err), "ImageSpec: the request needs too much memory");
}

static void test_reply_text(void **state)
{
    (void)state;
    auto_arena struct arena *a = arena_new(MiB(1));
    auto_err struct err err = ERR_INIT;
    Request r = RUNTIME__V1__VERSION_REQUEST__INIT;
    for (int i = 0; i < 2; i++) { /* twice: the handler's own text stayed as it was */
        const Runtime__V1__StatusResponse *out = (const Runtime__V1__StatusResponse *)gclient_call(
            t.client, "/test.T/bad_text", &r.base, &runtime__v1__status_response__descriptor, a, 0,
            &err);
        assert_non_null(out);
        assert_int_equal(out->n_info, 2);
        const char *want = "a\xEF\xBF\xBD\xEF\xBF\xBD(\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"
                           "\xf0\x9f\x98\x80";
        assert_string_equal(out->info[0]->key, "gr\xc3\xbc\xc3\x9f");
        assert_string_equal(out->info[0]->value, want);
        assert_string_equal(out->info[1]->key, want);
        assert_string_equal(out->info[1]->value, "gr\xc3\xbc\xc3\x9f");
    }
}

static void test_deadline(void **state)
{
    (void)state;
    expect_error("wait_for_end", "", 100000000, ERR_DEADLINE, "");
    wait_readable(t.seen.entered);
    wait_readable(t.seen.ended);
    assert_true(t.seen.code == ERR_DEADLINE || t.seen.code == ERR_CANCELLED);
    /* One that has passed before the server sees the call. */
    expect_error("wait_for_end", "", 1, ERR_DEADLINE, "");
}

static void *cancel_later(void *arg)
{
    wait_readable(t.seen.entered);
    gclient_cancel(arg);
    return NULL;
}

static void test_cancel(void **state)
{
    (void)state;
    pthread_t th;
    assert_int_equal(pthread_create(&th, NULL, cancel_later, t.client), 0);
    expect_error("wait_for_end", "", 0, ERR_CANCELLED, "");
    assert_int_equal(pthread_join(th, NULL), 0);
    wait_readable(t.seen.ended);
    assert_int_equal(t.seen.code, ERR_CANCELLED);
}

/* A client that is gone is a cancellation too. */
static void *call_and_vanish(void *arg)
{
    (void)arg;
    expect_error("wait_for_end", "", 0, ERR_CANCELLED, "");
    gclient_close(take(t.client));
    return NULL;
}

static void test_client_gone(void **state)
{
    (void)state;
    pthread_t th;
    struct gclient *c = t.client;
    assert_int_equal(pthread_create(&th, NULL, call_and_vanish, NULL), 0);
    wait_readable(t.seen.entered);
    gclient_cancel(c);
    assert_int_equal(pthread_join(th, NULL), 0);
    wait_readable(t.seen.ended);
    assert_int_equal(t.seen.code, ERR_CANCELLED);
}

/* --- streams --- */

struct collect {
    long next;
    long stop_at; /* 0: never */
    bool block;   /* before the first message is taken: until the handler has ended */
};

static int collect(void *arg, const ProtobufCMessage *m, struct err *err)
{
    struct collect *c = arg;
    const Reply *r = (const Reply *)m;
    if (c->block) {
        c->block = false;
        wait_readable(t.seen.ended);
        (void)eventfd_write(t.seen.ended, 1);
        return 0;
    }
    if (r->version[0] != 'x')
        assert_int_equal(strtol(r->version, NULL, 10), c->next);
    c->next++;
    if (c->stop_at > 0 && c->next == c->stop_at)
        return err_set(err, ERR_ABORTED, "enough");
    return 0;
}

static int stream(const char *method, const char *text, struct collect *c, struct err *err)
{
    char path[64];
    (void)snprintf(path, sizeof(path), "/test.T/%s", method);
    Request r = RUNTIME__V1__VERSION_REQUEST__INIT;
    r.version = (char *)(uintptr_t)text;
    return gclient_stream(t.client, path, &r.base, &runtime__v1__version_response__descriptor,
                          collect, c, 0, err);
}

static void test_stream(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    struct collect c = {0};
    assert_int_equal(stream("count_up", "3000", &c, &err), 0);
    assert_int_equal(c.next, 3000);
    c = (struct collect){0};
    assert_int_equal(stream("count_up", "0", &c, &err), 0);
    assert_int_equal(c.next, 0);
    c = (struct collect){0};
    assert_int_equal(stream("count_up", "7!", &c, &err), -1);
    assert_int_equal(c.next, 7); /* all of them before the error */
    assert_int_equal(err.code, ERR_DATA_LOSS);
    assert_string_equal(err_msg(&err), "lost");
    c = (struct collect){0};
    assert_int_equal(stream("unbuilt", "", &c, &err), -1);
    assert_int_equal(err.code, ERR_UNIMPLEMENTED);
}

static void test_stream_cancel(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    struct collect c = {.stop_at = 10};
    assert_int_equal(stream("flood", "", &c, &err), -1);
    assert_int_equal(err.code, ERR_ABORTED);
    wait_readable(t.seen.ended);
    assert_int_equal(t.seen.code, ERR_CANCELLED);
}

static void test_stream_slow(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    gserver_stop(take(t.server));
    struct gserver_opts o = opts();
    o.stream_stall_ns = 300000000;
    t.server = gserver_start(&o, &err);
    assert_non_null(t.server);
    gclient_close(take(t.client));
    t.client = gclient_open(t.path, &err);
    struct collect c = {.block = true};
    assert_int_equal(stream("flood", "", &c, &err), -1);
    assert_int_equal(err.code, ERR_EXHAUSTED);
    assert_non_null(strstr(err_msg(&err), "too slowly"));
    assert_int_equal(t.seen.code, ERR_EXHAUSTED);
    /* Our queue and what gRPC and the socket hold. */
    assert_true(t.seen.sent * KiB(64) <= LIMIT_STREAM_QUEUE + MiB(8));
    eventfd_t v;
    assert_int_equal(eventfd_read(t.seen.ended, &v), 0);
}

/* --- start and stop --- */

static void *expect_unavailable(void *arg)
{
    (void)arg;
    auto_arena struct arena *a = arena_new(MiB(1));
    auto_err struct err err = ERR_INIT;
    assert_null(call_text(a, "wait_for_end", "", 0, &err));
    return (void *)(uintptr_t)err.code;
}

static void test_stop_while_busy(void **state)
{
    (void)state;
    pthread_t th;
    assert_int_equal(pthread_create(&th, NULL, expect_unavailable, NULL), 0);
    wait_readable(t.seen.entered);
    gserver_stop(take(t.server));
    void *code;
    assert_int_equal(pthread_join(th, &code), 0);
    assert_int_equal((uintptr_t)code, ERR_UNAVAILABLE); /* so that kubelet tries again */
    wait_readable(t.seen.ended);
    assert_int_equal(t.seen.code, ERR_CANCELLED);
}

static void test_too_many(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    gserver_stop(take(t.server));
    struct gserver_opts o = opts();
    o.max_calls = 1;
    t.server = gserver_start(&o, &err);
    assert_non_null(t.server);
    gclient_close(take(t.client));
    t.client = gclient_open(t.path, &err);
    pthread_t th;
    assert_int_equal(pthread_create(&th, NULL, expect_unavailable, NULL), 0);
    wait_readable(t.seen.entered);
    auto_gclient struct gclient *other = gclient_open(t.path, &err);
    auto_arena struct arena *a = arena_new(MiB(1));
    Request r = RUNTIME__V1__VERSION_REQUEST__INIT;
    assert_null(gclient_call(other, "/test.T/echo", &r.base,
                             &runtime__v1__version_response__descriptor, a, 0, &err));
    assert_int_equal(err.code, ERR_EXHAUSTED);
    assert_string_equal(err_msg(&err), "too many calls at once");
    gclient_cancel(t.client);
    assert_int_equal(pthread_join(th, NULL), 0);
}

static void test_socket(void **state)
{
    (void)state;
    struct stat st;
    assert_int_equal(stat(t.path, &st), 0);
    assert_true(S_ISSOCK(st.st_mode));
    assert_int_equal(st.st_mode & 07777, 0600);

    auto_err struct err err = ERR_INIT;
    auto_free char *file = fs_format("%s/file", t.dir);
    assert_int_equal(fs_write_atomic(file, "x", 1, 0644, false, &err), 0);
    struct gserver_opts o = opts();
    o.socket_path = file;
    assert_null(gserver_start(&o, &err));
    assert_int_equal(err.code, ERR_EXISTS);
    assert_non_null(strstr(err_msg(&err), "not a socket"));
    assert_true(fs_exists(file));

    /* What a daemon killed with SIGKILL leaves. */
    auto_free char *stale = fs_format("%s/stale", t.dir);
    struct sockaddr_un sa = {.sun_family = AF_UNIX};
    (void)snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", stale);
    auto_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
    o.socket_path = stale;
    auto_gserver struct gserver *again = gserver_start(&o, &err);
    assert_non_null(again);
    auto_gclient struct gclient *c = gclient_open(stale, &err);
    assert_non_null(c);

    o.socket_path = "relative";
    assert_null(gserver_start(&o, &err));
    assert_int_equal(err.code, ERR_INVALID);
    char long_path[200];
    memset(long_path, 'x', sizeof(long_path));
    long_path[0] = '/';
    long_path[sizeof(long_path) - 1] = '\0';
    o.socket_path = long_path;
    assert_null(gserver_start(&o, &err));
    assert_int_equal(err.code, ERR_INVALID);
}

static void test_lock(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    auto_free char *path = fs_format("%s/sub/dir/s.sock", t.dir);
    int up[2], down[2];
    char byte = 0;
    assert_int_equal(pipe2(up, O_CLOEXEC), 0);
    assert_int_equal(pipe2(down, O_CLOEXEC), 0);
    /* a daemon that has just forked a child; the child lives on until `down` closes */
    pid_t holder = fork();
    if (holder == 0) {
        if (socket_lock(path, NULL) < 0)
            _exit(1);
        (void)close(down[1]);
        if (fork() == 0) {
            (void)!read(down[0], &byte, 1);
            _exit(0);
        }
        (void)!write(up[1], "x", 1);
        for (;;)
            (void)pause();
    }
    assert_int_equal(read(up[0], &byte, 1), 1);
    assert_int_equal(socket_lock(path, &err), -1);
    assert_int_equal(err.code, ERR_PRECONDITION);
    char pid[32];
    (void)snprintf(pid, sizeof(pid), "(pid %d)", (int)holder);
    assert_non_null(strstr(err_msg(&err), pid));
    /* killed, it is over at once, whoever has its descriptors */
    assert_int_equal(kill(holder, SIGKILL), 0);
    assert_int_equal(waitpid(holder, NULL, 0), holder);
    auto_err struct err none = ERR_INIT;
    auto_close int next = socket_lock(path, &none);
    assert_true(next >= 0);
    (void)close(down[1]);
    (void)close(down[0]);
    (void)close(up[0]);
    (void)close(up[1]);
}

static void test_no_server(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    assert_null(gclient_open("/nonexistent/s.sock", &err));
    assert_int_equal(err.code, ERR_UNAVAILABLE);
    assert_non_null(strstr(err_msg(&err), "is aspisd running?"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_unary, setup, teardown),
        cmocka_unit_test_setup_teardown(test_parallel, setup, teardown),
        cmocka_unit_test_setup_teardown(test_errors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_request, setup, teardown),
        cmocka_unit_test_setup_teardown(test_oversize_request, setup, teardown),
        cmocka_unit_test_setup_teardown(test_arena, setup, teardown),
        cmocka_unit_test_setup_teardown(test_reply_text, setup, teardown),
        cmocka_unit_test_setup_teardown(test_deadline, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cancel, setup, teardown),
        cmocka_unit_test_setup_teardown(test_client_gone, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stream, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stream_cancel, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stream_slow, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stop_while_busy, setup, teardown),
        cmocka_unit_test_setup_teardown(test_too_many, setup, teardown),
        cmocka_unit_test_setup_teardown(test_socket, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lock, setup, teardown),
        cmocka_unit_test(test_no_server),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
