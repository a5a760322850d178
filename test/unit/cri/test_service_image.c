/* cri/service_image, cri/service_admin: what clients get to see, with an image store made of air.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/limits.h"
#include "base/log.h"
#include "cri/config.h"
#include "cri/daemon.h"
#include "cri/dispatch.h"
#include "cri/image/image.h"
#include "cri/model.h"
#include "cri/service_admin.h"
#include "cri/service_image.h"
#include "cri/service_runtime.h"
#include "proto/admin.pb-c.h"
#include "proto/cri/v1/api.pb-c.h"

/* --- the stand-in store: knows "one" (user 1000:1000) and "two" (user www, no size) --- */

#define ID_ONE "sha256:1111111111111111111111111111111111111111111111111111111111111111"
#define ID_TWO "sha256:2222222222222222222222222222222222222222222222222222222222222222"

static struct {
    char auth[256]; /* what image_pull() was given */
    bool broken;    /* every call fails */
    size_t many;    /* images listed; 0: two */
    bool in_use_asked;
    unsigned reports;    /* that image_pull() makes */
    enum err_code ended; /* of the last transfer */
} store;

static struct image *make(const char *id, const char *tag, const char *user, uint64_t size)
{
    struct image *i = xcalloc(1, sizeof(*i));
    i->id = xstrdup(id);
    strv_addf(&i->repo_tags, "docker.io/library/%s:latest", tag);
    strv_addf(&i->repo_digests, "docker.io/library/%s@%s", tag, id);
    i->size = size;
    i->config.user = xstrdup(user);
    i->config.working_dir = xstrdup("/");
    i->config.stop_signal = xstrdup("");
    strv_add(&i->config.cmd, "sh");
    strv_add(&i->config.labels, "k");
    strv_add(&i->config.labels, "v");
    i->pinned = strcmp(tag, "two") == 0;
    return i;
}

void image_free(struct image *i)
{
    if (i == NULL)
        return;
    free(i->id);
    strv_clear(&i->repo_tags);
    strv_clear(&i->repo_digests);
    strv_clear(&i->config.cmd);
    strv_clear(&i->config.labels);
    free(i->config.user);
    free(i->config.working_dir);
    free(i->config.stop_signal);
    free(i);
}

struct image *image_find(struct image_store *s, const char *reference, struct err *err)
{
    (void)s;
    if (store.broken)
        (void)err_set(err, ERR_INTERNAL, "broken");
    else if (strcmp(reference, "one") == 0)
        return make(ID_ONE, "one", "1000:1000", 5);
    else if (strcmp(reference, "two") == 0)
        return make(ID_TWO, "two", "www", 0);
    else if (strcmp(reference, "root") == 0)
        return make(ID_TWO, "root", "", 7);
    else
        (void)err_set(err, ERR_NOT_FOUND, "no image `%s`", reference);
    return NULL;
}

int image_list(struct image_store *s, struct image ***images, size_t *n, struct err *err)
{
    if (store.broken)
        return err_set(err, ERR_INTERNAL, "broken");
    *n = store.many != 0 ? store.many : 2;
    *images = xcalloc(*n, sizeof(**images));
    for (size_t i = 0; i < *n; i++)
        (*images)[i] = image_find(s, i % 2 == 0 ? "one" : "two", NULL);
    return 0;
}

int image_pull(struct image_store *s, const char *reference, const struct image_auth *auth,
               image_progress_fn progress, void *arg, struct cancel *cancel, char **id,
               struct err *err)
{
    (void)s;
    (void)snprintf(store.auth, sizeof(store.auth), "%s", auth == NULL ? "none" : auth->password);
    for (unsigned i = 0; i < store.reports; i++) {
        struct image_progress p = {.phase = i % 2 ? "unpacking" : "downloading",
                                   .digest = i % 3 ? ID_ONE : NULL,
                                   .done = i,
                                   .total = store.reports};
        progress(arg, &p);
    }
    store.ended = ERR_OK;
    if (strcmp(reference, "hang") == 0 && cancel_poll(cancel, -1, 0, 20000, err) < 0) {
        store.ended = err->code;
        return -1;
    }
    if (strcmp(reference, "one") != 0)
        return err_set(err, ERR_UNAVAILABLE, "RegistryUnavailable: no");
    *id = xstrdup(ID_ONE);
    return 0;
}

int image_import(struct image_store *s, const char *path, const char *name,
                 image_progress_fn progress, void *arg, struct cancel *cancel, struct strv *ids,
                 struct err *err)
{
    (void)s;
    (void)progress;
    (void)arg;
    (void)cancel;
    if (strcmp(path, "/good") != 0)
        return err_set(err, ERR_INVALID, "no archive");
    assert_null(name);
    strv_add(ids, ID_ONE);
    strv_add(ids, ID_TWO);
    return 0;
}

int image_remove(struct image_store *s, const char *reference,
                 bool (*in_use)(void *arg, const char *id), void *arg, struct err *err)
{
    (void)s;
    if (strcmp(reference, "one") == 0 && in_use(arg, ID_ONE))
        return err_set(err, ERR_PRECONDITION, "in use");
    return 0;
}

int image_fs_info(struct image_store *s, struct image_fs *out, struct err *err)
{
    (void)s;
    if (store.broken)
        return err_set(err, ERR_INTERNAL, "broken");
    *out = (struct image_fs){.mountpoint = xstrdup("/images"), .used_bytes = 11, .inodes_used = 3};
    return 0;
}

void image_dir_usage(const char *path, const char *only, int depth, struct image_fs *out)
{
    assert_string_equal(only, "scratch.img");
    assert_true(depth > 1);
    *out = (struct image_fs){.mountpoint = xstrdup(path), .used_bytes = 7, .inodes_used = 2};
}

/* --- and of the runtime --- */

int cri_check_handler(const char *handler, struct err *err)
{
    return str_empty(handler) ? 0 : err_set(err, ERR_INVALID, "no such handler");
}

static struct runtime runtime = {.lock = PTHREAD_MUTEX_INITIALIZER};

struct container *model_find_container(struct runtime *rt, const char *id, struct err *err)
{
    assert_ptr_equal(rt, &runtime);
    (void)err_set(err, ERR_NOT_FOUND, "no container `%s`", id);
    return NULL;
}

void container_unref(struct container *c)
{
    (void)c;
}

static bool in_use(void *arg, const char *id)
{
    assert_ptr_equal(arg, &runtime);
    assert_string_equal(id, ID_ONE);
    return store.in_use_asked = true;
}

/* --- a call --- */

static const struct config the_config = {.state_root = "/state"};
static struct daemon the_daemon = {
    .config = &the_config, .runtime = &runtime, .image_in_use = in_use};
static struct call call;
static struct method method = {.service = "test", .name = "Test"};

/* Every message of a stream, unpacked. */
static struct {
    const ProtobufCMessageDescriptor *desc;
    const ProtobufCMessage *messages[4096];
    size_t n;
    size_t fail_at; /* 0: never */
} sent;

static int collect(struct call *c, const void *data, size_t len, struct err *err)
{
    if (sent.fail_at > 0 && sent.n + 1 == sent.fail_at)
        return err_set(err, ERR_EXHAUSTED, "too slow");
    assert_true(sent.n < ARRAY_LEN(sent.messages));
    sent.messages[sent.n++] =
        protobuf_c_message_unpack(sent.desc, arena_allocator(c->arena), len, data);
    return 0;
}

static int setup(void **state)
{
    (void)state;
    (void)log_init("test", LOG_LEVEL_ERROR, false);
    memset(&store, 0, sizeof(store));
    memset(&sent, 0, sizeof(sent));
    call = (struct call){.method = &method,
                         .arena = arena_new(MiB(4)),
                         .cancel = cancel_new(0, NULL),
                         .daemon = &the_daemon,
                         .send = collect};
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    arena_free(call.arena);
    cancel_unref(call.cancel);
    return 0;
}

static const void *ok(call_handler fn, const ProtobufCMessage *req)
{
    auto_err struct err err = ERR_INIT;
    ProtobufCMessage *reply = NULL;
    if (fn(&call, req, &reply, &err) < 0)
        fail_msg("%s", err_msg(&err));
    return reply;
}

static void fails(call_handler fn, const ProtobufCMessage *req, enum err_code code)
{
    auto_err struct err err = ERR_INIT;
    ProtobufCMessage *reply = NULL;
    assert_int_equal(fn(&call, req, &reply, &err), -1);
    assert_int_equal(err.code, code);
}

static Runtime__V1__ImageSpec spec(const char *name)
{
    Runtime__V1__ImageSpec s = RUNTIME__V1__IMAGE_SPEC__INIT;
    s.image = (char *)(uintptr_t)name;
    return s;
}

static void test_list(void **state)
{
    (void)state;
    Runtime__V1__ListImagesRequest r = RUNTIME__V1__LIST_IMAGES_REQUEST__INIT;
    const Runtime__V1__ListImagesResponse *out = ok(cri_list_images, &r.base);
    assert_int_equal(out->n_images, 2);
    assert_string_equal(out->images[0]->id, ID_ONE);
    assert_string_equal(out->images[0]->repo_tags[0], "docker.io/library/one:latest");
    assert_string_equal(out->images[0]->repo_digests[0], "docker.io/library/one@" ID_ONE);
    assert_int_equal(out->images[0]->size, 5);
    assert_int_equal(out->images[0]->uid->value, 1000);
    assert_string_equal(out->images[0]->username, "");
    assert_false(out->images[0]->pinned);
    assert_null(out->images[1]->uid);
    assert_string_equal(out->images[1]->username, "www");
    assert_int_equal(out->images[1]->size, 1); /* never 0 */
    assert_true(out->images[1]->pinned);

    Runtime__V1__ImageSpec s = spec("two");
    Runtime__V1__ImageFilter f = RUNTIME__V1__IMAGE_FILTER__INIT;
    f.image = &s;
    r.filter = &f;
    out = ok(cri_list_images, &r.base);
    assert_int_equal(out->n_images, 1);
    assert_string_equal(out->images[0]->id, ID_TWO);
    s = spec("absent");
    out = ok(cri_list_images, &r.base);
    assert_int_equal(out->n_images, 0);
    s = spec("");
    out = ok(cri_list_images, &r.base);
    assert_int_equal(out->n_images, 2);
    store.broken = true;
    fails(cri_list_images, &r.base, ERR_INTERNAL);
}

static void test_status(void **state)
{
    (void)state;
    Runtime__V1__ImageSpec s = spec("root");
    Runtime__V1__ImageStatusRequest r = RUNTIME__V1__IMAGE_STATUS_REQUEST__INIT;
    fails(cri_image_status, &r.base, ERR_INVALID);
    r.image = &s;
    const Runtime__V1__ImageStatusResponse *out = ok(cri_image_status, &r.base);
    assert_int_equal(out->image->uid->value, 0);
    assert_int_equal(out->n_info, 0);
    r.verbose = true;
    out = ok(cri_image_status, &r.base);
    assert_int_equal(out->n_info, 1);
    assert_string_equal(out->info[0]->key, "info");
    assert_non_null(strstr(out->info[0]->value, "\"cmd\":[\"sh\"]"));
    assert_non_null(strstr(out->info[0]->value, "\"labels\":{\"k\":\"v\"}"));
    s = spec("absent");
    out = ok(cri_image_status, &r.base);
    assert_null(out->image);
    store.broken = true;
    fails(cri_image_status, &r.base, ERR_INTERNAL);
}

static void test_pull(void **state)
{
    (void)state;
    char password[] = "secret";
    Runtime__V1__ImageSpec s = spec("one");
    Runtime__V1__AuthConfig a = RUNTIME__V1__AUTH_CONFIG__INIT;
    a.password = password;
    Runtime__V1__PullImageRequest r = RUNTIME__V1__PULL_IMAGE_REQUEST__INIT;
    r.image = &s;
    const Runtime__V1__PullImageResponse *out = ok(cri_pull_image, &r.base);
    assert_string_equal(out->image_ref, ID_ONE);
    assert_string_equal(store.auth, "none");
    r.auth = &a;
    out = ok(cri_pull_image, &r.base);
    assert_string_equal(out->image_ref, ID_ONE);
    assert_string_equal(store.auth, "secret");
    assert_memory_equal(password, "\0\0\0\0\0\0", 6); /* wiped */
    s = spec("other");
    fails(cri_pull_image, &r.base, ERR_UNAVAILABLE);
    s = spec("one");
    s.runtime_handler = password;
    memcpy(password, "other", 6);
    fails(cri_pull_image, &r.base, ERR_INVALID);
    r.image = NULL;
    fails(cri_pull_image, &r.base, ERR_INVALID);
}

static void test_stream(void **state)
{
    (void)state;
    sent.desc = &runtime__v1__stream_images_response__descriptor;
    Runtime__V1__StreamImagesRequest r = RUNTIME__V1__STREAM_IMAGES_REQUEST__INIT;
    (void)ok(cri_stream_images, &r.base);
    assert_int_equal(sent.n, 1);
    const Runtime__V1__StreamImagesResponse *out =
        (const Runtime__V1__StreamImagesResponse *)sent.messages[0];
    assert_int_equal(out->n_images, 2);
    assert_string_equal(out->images[1]->id, ID_TWO);
    sent.n = 0;
    store.many = 1000;
    (void)ok(cri_stream_images, &r.base);
    size_t n = 0;
    assert_true(sent.n > 4);
    for (size_t i = 0; i < sent.n; i++)
        n += ((const Runtime__V1__StreamImagesResponse *)sent.messages[i])->n_images;
    assert_int_equal(n, 1000);
    sent.n = 0;
    sent.fail_at = 2;
    fails(cri_stream_images, &r.base, ERR_EXHAUSTED);
    store.broken = true;
    fails(cri_stream_images, &r.base, ERR_INTERNAL);
}

static void test_remove_and_usage(void **state)
{
    (void)state;
    Runtime__V1__ImageSpec s = spec("one");
    Runtime__V1__RemoveImageRequest r = RUNTIME__V1__REMOVE_IMAGE_REQUEST__INIT;
    r.image = &s;
    fails(cri_remove_image, &r.base, ERR_PRECONDITION);
    assert_true(store.in_use_asked);
    s = spec("absent");
    assert_non_null(ok(cri_remove_image, &r.base));

    Runtime__V1__ImageFsInfoRequest f = RUNTIME__V1__IMAGE_FS_INFO_REQUEST__INIT;
    const Runtime__V1__ImageFsInfoResponse *out = ok(cri_image_fs_info, &f.base);
    assert_int_equal(out->n_image_filesystems, 1);
    assert_int_equal(out->n_container_filesystems, 1);
    assert_string_equal(out->image_filesystems[0]->fs_id->mountpoint, "/images");
    assert_int_equal(out->image_filesystems[0]->used_bytes->value, 11);
    assert_string_equal(out->container_filesystems[0]->fs_id->mountpoint, "/state");
    assert_int_equal(out->container_filesystems[0]->used_bytes->value, 7);
    assert_int_equal(out->container_filesystems[0]->inodes_used->value, 2);
    assert_true(out->image_filesystems[0]->timestamp > 0);
    store.broken = true;
    fails(cri_image_fs_info, &f.base, ERR_INTERNAL);
}

static void test_admin_pull(void **state)
{
    (void)state;
    sent.desc = &aspis__v1__pull_image_event__descriptor;
    Aspis__V1__PullImageRequest r = ASPIS__V1__PULL_IMAGE_REQUEST__INIT;
    fails(admin_pull_image, &r.base, ERR_INVALID);
    static char one[] = "one", other[] = "other";
    r.image = one;
    store.reports = 60000;
    (void)ok(admin_pull_image, &r.base);
    assert_true(sent.n >= 5); /* four pairs of layer and phase, and the end */
    uint64_t last[2][2] = {{0}};
    for (size_t i = 0; i + 1 < sent.n; i++) {
        const Aspis__V1__PullImageEvent *e = (const Aspis__V1__PullImageEvent *)sent.messages[i];
        assert_non_null(e->progress);
        uint64_t *l = &last[e->progress->digest[0] != '\0'][e->progress->phase[0] == 'u'];
        assert_true(e->progress->done >= *l);
        *l = e->progress->done;
    }
    /* The newest of each was sent, whatever was left out. */
    assert_true(last[0][0] >= 59990 && last[0][1] >= 59990);
    assert_true(last[1][0] >= 59990 && last[1][1] >= 59990);
    const Aspis__V1__PullImageEvent *end =
        (const Aspis__V1__PullImageEvent *)sent.messages[sent.n - 1];
    assert_null(end->progress);
    assert_string_equal(end->image_ref, ID_ONE);
    assert_true(sent.n < 1000); /* 60000 reports are not 60000 messages */
    r.image = other;
    fails(admin_pull_image, &r.base, ERR_UNAVAILABLE);
}

/* A client that does not read ends the transfer. */
static void test_admin_slow_client(void **state)
{
    (void)state;
    sent.desc = &aspis__v1__pull_image_event__descriptor;
    sent.fail_at = 1;
    store.reports = 1;
    static char hang[] = "hang";
    Aspis__V1__PullImageRequest r = ASPIS__V1__PULL_IMAGE_REQUEST__INIT;
    r.image = hang;
    fails(admin_pull_image, &r.base, ERR_EXHAUSTED);
    assert_int_equal(store.ended, ERR_CANCELLED);
}

static void test_admin_import_and_wait(void **state)
{
    (void)state;
    sent.desc = &aspis__v1__import_image_event__descriptor;
    static char relative[] = "good", good[] = "/good", bad[] = "/bad";
    Aspis__V1__ImportImageRequest r = ASPIS__V1__IMPORT_IMAGE_REQUEST__INIT;
    r.path = relative;
    fails(admin_import_image, &r.base, ERR_INVALID);
    r.path = bad;
    fails(admin_import_image, &r.base, ERR_INVALID);
    assert_int_equal(sent.n, 0);
    r.path = good;
    (void)ok(admin_import_image, &r.base);
    assert_int_equal(sent.n, 1);
    const Aspis__V1__ImportImageEvent *e = (const Aspis__V1__ImportImageEvent *)sent.messages[0];
    assert_int_equal(e->n_image_ids, 2);
    assert_string_equal(e->image_ids[1], ID_TWO);

    Aspis__V1__WaitContainerRequest w = ASPIS__V1__WAIT_CONTAINER_REQUEST__INIT;
    fails(admin_wait_container, &w.base, ERR_NOT_FOUND);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_list, setup, teardown),
        cmocka_unit_test_setup_teardown(test_status, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stream, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pull, setup, teardown),
        cmocka_unit_test_setup_teardown(test_remove_and_usage, setup, teardown),
        cmocka_unit_test_setup_teardown(test_admin_pull, setup, teardown),
        cmocka_unit_test_setup_teardown(test_admin_slow_client, setup, teardown),
        cmocka_unit_test_setup_teardown(test_admin_import_and_wait, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
