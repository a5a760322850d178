/* cri/image/store: leases, claims, blobs, what a failed commit leaves; and the catalog's records.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/limits.h"
#include "cri/image/catalog.h"
#include "cri/image/digest.h"
#include "cri/image/store.h"

#define A64 "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define DIFF "sha256:" A64

struct fixture {
    char root[64];
    struct image_store *s;
};

static int set_up(void **state)
{
    struct fixture *f = xcalloc(1, sizeof(*f));
    auto_err struct err err = ERR_INIT;
    struct image_options o = {.root = f->root};

    (void)strcpy(f->root, "/tmp/aspis-store-XXXXXX");
    assert_non_null(mkdtemp(f->root));
    f->s = image_store_open(&o, &err);
    if (f->s == NULL)
        fail_msg("%s", err_msg(&err));
    *state = f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    image_store_close(f->s);
    (void)fs_rm_rf(f->root, NULL);
    free(f);
    return 0;
}

static bool exists(const struct fixture *f, const char *sub)
{
    auto_free char *path = fs_format("%s/%s", f->root, sub);

    return fs_exists(path);
}

static void put_file(const char *path, size_t size)
{
    auto_free char *zeros = xcalloc(1, size);

    assert_int_equal(fs_write_atomic(path, zeros, size, 0600, true, NULL), 0);
}

static void test_blob(void **state)
{
    struct fixture *f = *state;
    auto_err struct err err = ERR_INIT;
    struct store_lease *one = store_lease_begin(f->s), *two = store_lease_begin(f->s);
    char digest[DIGEST_MAX];
    auto_free char *path = NULL, *back = NULL, *gone = NULL;
    size_t len = 0;

    assert_int_equal(digest_of("hello", 5, "sha256", digest, NULL), 0);
    assert_int_equal(store_blob_put(one, digest, "hellO", 5, &err), -1);
    assert_int_equal(err.code, ERR_DATA_LOSS);
    assert_int_equal(store_blob_put(one, digest, "hello", 5, &err), 0);
    assert_int_equal(store_blob_put(one, digest, "hello", 5, &err), 0);
    back = store_blob_get(f->s, two, digest, 100, &len, &err);
    assert_non_null(back);
    assert_int_equal(len, 5);
    assert_null(store_blob_get(f->s, NULL, digest, 4, NULL, &err)); /* larger than the bound */
    assert_null(store_blob_get(f->s, NULL, "sha256:../../x", 100, NULL, &err));
    assert_int_equal(err.code, ERR_INVALID);

    store_lease_end(one);
    path = fs_format("blobs/sha256/%s", digest_hex(digest));
    assert_true(exists(f, path)); /* two still holds it */
    store_lease_end(two);
    assert_false(exists(f, path));
    gone = store_blob_get(f->s, NULL, digest, 100, NULL, &err);
    assert_null(gone);
    assert_int_equal(err.code, ERR_NOT_FOUND);
}

/* A blob damaged on disk is not given out, and is replaced by the next put. */
static void test_blob_damaged(void **state)
{
    struct fixture *f = *state;
    auto_err struct err err = ERR_INIT;
    auto_lease struct store_lease *l = store_lease_begin(f->s);
    auto_free char *path = NULL, *back = NULL;
    char digest[DIGEST_MAX];

    assert_int_equal(digest_of("hello", 5, "sha256", digest, NULL), 0);
    assert_int_equal(store_blob_put(l, digest, "hello", 5, &err), 0);
    path = fs_format("%s/blobs/sha256/%s", f->root, digest_hex(digest));
    assert_int_equal(fs_write_atomic(path, "hullo", 5, 0600, false, NULL), 0);
    assert_null(store_blob_get(f->s, l, digest, 100, NULL, &err));
    assert_int_equal(err.code, ERR_DATA_LOSS);
    assert_int_equal(store_blob_put(l, digest, "hello", 5, &err), 0);
    back = store_blob_get(f->s, l, digest, 100, NULL, &err);
    assert_string_equal(back, "hello");
}

struct waiter {
    struct fixture *f;
    struct cancel *cancel;
    int ret;
    enum store_claim claim;
    enum err_code code;
};

static void *wait_claim(void *arg)
{
    struct waiter *w = arg;
    auto_err struct err err = ERR_INIT;
    auto_lease struct store_lease *l = store_lease_begin(w->f->s);

    w->ret = store_layer_claim(l, DIFF, w->cancel, &w->claim, &err);
    w->code = err.code;
    if (w->ret == 0 && w->claim == STORE_LAYER_MINE)
        store_layer_abandon(l, DIFF);
    return NULL;
}

static void test_claim(void **state)
{
    struct fixture *f = *state;
    auto_err struct err err = ERR_INIT;
    auto_lease struct store_lease *l = store_lease_begin(f->s);
    auto_free char *tmp = store_tmp_path(f->s), *odd = store_tmp_path(f->s);
    struct waiter taker = {.f = f}, late = {.f = f}, cancelled = {.f = f};
    enum store_claim claim;
    pthread_t t;

    assert_int_equal(store_layer_claim(l, "sha256:x", NULL, &claim, &err), -1);
    assert_int_equal(store_layer_claim(l, DIFF, NULL, &claim, &err), 0);
    assert_int_equal(claim, STORE_LAYER_MINE);

    cancelled.cancel = cancel_new(mono_ns() + 50000000, NULL);
    (void)wait_claim(&cancelled);
    assert_int_equal(cancelled.ret, -1);
    assert_int_equal(cancelled.code, ERR_DEADLINE);
    cancel_unref(cancelled.cancel);

    /* The one who waits takes over what was abandoned. */
    assert_int_equal(pthread_create(&t, NULL, wait_claim, &taker), 0);
    store_layer_abandon(l, DIFF);
    (void)pthread_join(t, NULL);
    assert_int_equal(taker.ret, 0);
    assert_int_equal(taker.claim, STORE_LAYER_MINE);

    /* A file of an odd size is refused and removed, and ends the claim. */
    assert_int_equal(store_layer_claim(l, DIFF, NULL, &claim, &err), 0);
    assert_int_equal(claim, STORE_LAYER_MINE);
    put_file(odd, 100);
    assert_int_equal(store_layer_done(l, DIFF, odd, &err), -1);
    assert_false(fs_exists(odd));

    assert_int_equal(store_layer_claim(l, DIFF, NULL, &claim, &err), 0);
    assert_int_equal(claim, STORE_LAYER_MINE);
    assert_int_equal(pthread_create(&t, NULL, wait_claim, &late), 0);
    put_file(tmp, 4096);
    assert_int_equal(store_layer_done(l, DIFF, tmp, &err), 0);
    (void)pthread_join(t, NULL);
    assert_int_equal(late.ret, 0);
    assert_int_equal(late.claim, STORE_LAYER_READY);
    assert_true(exists(f, "layers/" A64 ".erofs"));
    store_lease_end(take(l));
    assert_false(exists(f, "layers/" A64 ".erofs"));
}

static void test_failed_commit(void **state)
{
    struct fixture *f = *state;
    static const char config[] = "{\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"" DIFF "\"]}}";
    auto_err struct err err = ERR_INIT;
    struct store_lease *l = store_lease_begin(f->s);
    auto_free char *tmp = store_tmp_path(f->s), *blob = NULL, *meta = NULL;
    struct store_new_image img = {.tag = "r.io/x:y"};
    char digest[DIGEST_MAX];
    enum store_claim claim;
    struct image **images = NULL;
    size_t n = 1;

    assert_int_equal(digest_of(config, strlen(config), "sha256", digest, NULL), 0);
    img.config_digest = digest;
    assert_int_equal(store_image_commit(l, &img, &err), -1); /* no config */
    assert_int_equal(store_blob_put(l, digest, config, strlen(config), &err), 0);
    assert_int_equal(store_image_commit(l, &img, &err), -1); /* no layer */
    assert_non_null(strstr(err_msg(&err), "is not in the store"));
    assert_int_equal(store_layer_claim(l, DIFF, NULL, &claim, &err), 0);
    put_file(tmp, 8192);
    assert_int_equal(store_layer_done(l, DIFF, tmp, &err), 0);
    assert_int_equal(store_image_commit(l, &img, &err), -1); /* the layer is no erofs */
    assert_int_equal(err.code, ERR_DATA_LOSS);
    assert_int_equal(image_list(f->s, &images, &n, &err), 0);
    assert_int_equal(n, 0);
    free(images);
    assert_false(store_image_hold(l, digest));
    store_lease_end(l);
    blob = fs_format("blobs/sha256/%s", digest_hex(digest));
    meta = fs_format("meta/%s.erofs", digest_hex(digest));
    assert_false(exists(f, blob));
    assert_false(exists(f, meta));
    assert_false(exists(f, "layers/" A64 ".erofs"));
}

/* What a container does on the first question: it is too late for the answer that was given. */
struct newcomer {
    struct fixture *f;
    unsigned asked, comes_at;
};

static bool ask_newcomer(void *arg, const char *id)
{
    struct newcomer *n = arg;

    if (++n->asked == n->comes_at) {
        image_free(image_hold(n->f->s, id, NULL));
        image_unhold(n->f->s, id);
        return false;
    }
    return n->asked > n->comes_at && n->comes_at > 0;
}

static void commit_empty(struct fixture *f, char digest[DIGEST_MAX])
{
    static const char config[] =
        "{\"architecture\":\"amd64\",\"os\":\"linux\",\"rootfs\":{\"type\":"
        "\"layers\",\"diff_ids\":[]}}";
    auto_err struct err err = ERR_INIT;
    auto_lease struct store_lease *l = store_lease_begin(f->s);
    struct store_new_image img = {.tag = "r.io/x:y"};

    assert_int_equal(digest_of(config, strlen(config), "sha256", digest, NULL), 0);
    img.config_digest = digest;
    assert_int_equal(store_blob_put(l, digest, config, strlen(config), &err), 0);
    if (store_image_commit(l, &img, &err) < 0)
        fail_msg("%s", err_msg(&err));
}

static void test_remove_held(void **state)
{
    struct fixture *f = *state;
    struct newcomer n = {.f = f, .comes_at = 1};
    auto_err struct err err = ERR_INIT;
    char id[DIGEST_MAX];
    struct image *held;

    commit_empty(f, id);
    held = image_hold(f->s, "r.io/x:y", &err);
    assert_non_null(held);
    assert_string_equal(held->id, id);
    assert_int_equal(image_remove(f->s, id, NULL, NULL, &err), -1);
    assert_int_equal(err.code, ERR_PRECONDITION);
    commit_empty(f, id); /* pulled anew */
    assert_int_equal(image_remove(f->s, "r.io/x:y", NULL, NULL, &err), -1);
    image_unhold(f->s, held->id);
    image_free(held);
    /* somebody comes between the question and the removal: asked again */
    assert_int_equal(image_remove(f->s, id, ask_newcomer, &n, &err), -1);
    assert_int_equal(err.code, ERR_PRECONDITION);
    assert_int_equal(n.asked, 2);
    n = (struct newcomer){.f = f};
    assert_int_equal(image_remove(f->s, id, ask_newcomer, &n, &err), 0);
    assert_int_equal(n.asked, 1);
    assert_null(image_hold(f->s, id, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    image_unhold(f->s, id); /* of an image that is gone */
}

static void test_downloads(void **state)
{
    struct fixture *f = *state;
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *soon = cancel_new(mono_ns() + 30000000, NULL);

    for (int i = 0; i < 3; i++) /* the default */
        assert_int_equal(store_download_begin(f->s, NULL, &err), 0);
    assert_int_equal(store_download_begin(f->s, soon, &err), -1);
    assert_int_equal(err.code, ERR_DEADLINE);
    store_download_end(f->s);
    assert_int_equal(store_download_begin(f->s, NULL, &err), 0);
}

static void test_second_user(void **state)
{
    struct fixture *f = *state;
    struct image_options o = {.root = f->root};
    int status = 0;
    pid_t pid = fork(); /* the lock is a process's */

    assert_true(pid >= 0);
    if (pid == 0) {
        struct err err = ERR_INIT;
        _exit(image_store_open(&o, &err) == NULL && err.code == ERR_PRECONDITION ? 0 : 1);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static int keep(void *arg, struct catalog_image *i)
{
    struct catalog_image *all = arg;

    while (all->id != NULL)
        all++;
    *all = *i;
    return 0;
}

static void test_catalog(void **state)
{
    struct fixture *f = *state;
    auto_err struct err err = ERR_INIT;
    auto_free char *path = fs_format("%s/other.db", f->root);
    struct catalog *c = NULL;
    struct catalog_image a = {.id = xstrdup("sha256:1"), .size = 7, .pinned = true}, got[4] = {0};
    struct catalog_image b = {.id = xstrdup("sha256:2"), .size = UINT32_MAX * UINT64_C(9)};

    strv_add(&a.layers, "sha256:l1");
    strv_add(&a.layers, "sha256:l2");
    strv_add(&a.layers, "sha256:l1");
    strv_add(&a.blobs, "sha256:m");
    strv_add(&a.tags, "r/x:y");
    strv_add(&a.digests, "r/x@sha256:m'; DROP TABLE images; --");
    strv_add(&b.tags, "r/x:y");
    assert_int_equal(catalog_open(path, &c, &err), 0);
    assert_int_equal(catalog_put_image(c, &a, &err), 0);
    assert_int_equal(catalog_put_image(c, &a, &err), 0);
    assert_int_equal(catalog_put_image(c, &b, &err), 0); /* takes the tag */
    assert_int_equal(catalog_put_layer(c, "sha256:l1", 4096, &err), 0);
    catalog_close(c);

    assert_int_equal(catalog_open(path, &c, &err), 0);
    assert_int_equal(catalog_images(c, keep, got, &err), 0);
    assert_string_equal(got[0].id, "sha256:1");
    assert_true(got[0].pinned && got[0].size == 7);
    assert_int_equal(got[0].layers.n, 3);
    assert_string_equal(got[0].layers.v[2], "sha256:l1");
    assert_int_equal(got[0].tags.n, 0);
    assert_int_equal(got[0].digests.n, 1);
    assert_string_equal(got[1].tags.v[0], "r/x:y");
    assert_true(got[1].size == b.size);
    catalog_image_clear(&got[0]);
    catalog_image_clear(&got[1]);
    assert_int_equal(catalog_delete_image(c, "sha256:1", &err), 0);
    assert_int_equal(catalog_delete_image(c, "sha256:1", &err), 0);
    assert_int_equal(catalog_images(c, keep, got, &err), 0);
    assert_string_equal(got[0].id, "sha256:2");
    assert_null(got[1].id);
    catalog_image_clear(&got[0]);
    catalog_close(c);

    /* A page of the middle overwritten. */
    {
        auto_free char *all = NULL;
        size_t len = 0;

        all = fs_read(path, MiB(4), &len, &err);
        assert_non_null(all);
        memset(all + 4096, 0xee, 8192);
        assert_int_equal(fs_write_atomic(path, all, len, 0600, false, NULL), 0);
    }
    assert_int_equal(catalog_open(path, &c, &err), -1);
    assert_int_equal(err.code, ERR_DATA_LOSS);
    catalog_image_clear(&a);
    catalog_image_clear(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_blob, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_blob_damaged, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_claim, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_failed_commit, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_remove_held, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_downloads, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_second_user, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_catalog, set_up, tear_down),
    };

    return cmocka_run_group_tests_name("store", tests, NULL, NULL);
}
