/* Manifests of checkpoints, and the directories that they lie in. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "cri/checkpoint_dir.h"

#define ID "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
#define SHA "sha256:" ID

static char dir[64];

static Runtime__V1__PodSandboxMetadata pod_meta;
static Runtime__V1__PodSandboxConfig pod;
static Runtime__V1__ContainerMetadata meta;
static Runtime__V1__ImageSpec image;
static Runtime__V1__ContainerConfig config;
static struct checkpoint_container container;
static Runtime__V1__Mount mounts[4];
static Runtime__V1__Mount *mount_list[] = {&mounts[0], &mounts[1], &mounts[2], &mounts[3]};
static Runtime__V1__ImageSpec volume_image;
static struct checkpoint_volume volumes[] = {
    {.id = 5, .file = true}, {.id = 0x80000003, .mirrored = true}, {.id = 7}};

static struct checkpoint example(void)
{
    static char name[] = "pod";
    static char own[] = "main";
    static char image_name[] = "image";
    runtime__v1__pod_sandbox_metadata__init(&pod_meta);
    runtime__v1__pod_sandbox_config__init(&pod);
    runtime__v1__container_metadata__init(&meta);
    runtime__v1__image_spec__init(&image);
    runtime__v1__container_config__init(&config);
    pod_meta.name = name;
    pod.metadata = &pod_meta;
    meta.name = own;
    config.metadata = &meta;
    config.image = &image;
    for (size_t i = 0; i < ARRAY_LEN(mounts); i++)
        runtime__v1__mount__init(&mounts[i]);
    runtime__v1__image_spec__init(&volume_image);
    volume_image.image = image_name;
    mounts[1].image = &volume_image; /* which has no place among the volumes */
    config.mounts = mount_list;
    config.n_mounts = ARRAY_LEN(mounts);
    container = (struct checkpoint_container){.id = ID,
                                              .config = &config,
                                              .image_id = SHA,
                                              .image_ref = "x/y@" SHA,
                                              .stop_signal = "TERM",
                                              .groups = "1 2",
                                              .uid = 7,
                                              .stdout_id = 3,
                                              .stderr_id = 4,
                                              .offset = {100, 5},
                                              .volumes = volumes,
                                              .n_volumes = ARRAY_LEN(volumes)};
    struct checkpoint c = {.aspis = "1",
                           .created_at = 99,
                           .sandbox_id = ID,
                           .mac = "02:00:00:00:00:01",
                           .pod = &pod,
                           .containers = &container,
                           .n_containers = 1};
    c.machine = (struct machine_image){.qemu = "7.2", .accel = "tcg", .transport = "virtio-serial"};
    c.machine.scratch_bytes = MiB(16);
    c.machine.last_volume = 7;
    c.machine.last_mirror = 0x80000004;
    c.machine.shape = (struct hv_shape){.ram_id = "ram",
                                        .boot_bytes = MiB(128),
                                        .max_bytes = GiB(1),
                                        .boot_vcpus = 1,
                                        .vcpus = 1,
                                        .max_vcpus = 2,
                                        .n_disks = 1};
    c.machine.shape.disks[0].slot = 3;
    c.disks[0] = (struct checkpoint_disk){.image = SHA, .name = "x", .layout = SHA};
    c.state = (struct checkpoint_file){.bytes = 10, .digest = SHA};
    c.scratch = (struct checkpoint_file){.bytes = MiB(16), .digest = SHA};
    c.volumes = (struct checkpoint_file){.bytes = 44, .digest = SHA};
    return c;
}

static void test_round(void **state)
{
    auto_err struct err err = ERR_INIT;
    auto_arena struct arena *a = arena_new(MiB(16));
    struct checkpoint c = example();
    struct checkpoint got;
    (void)state;
    auto_free char *text = checkpoint_encode(&c, &err);
    assert_non_null(text);
    assert_int_equal(checkpoint_decode(text, strlen(text), a, &got, &err), 0);
    assert_string_equal(got.sandbox_id, ID);
    assert_string_equal(got.pod->metadata->name, "pod");
    assert_int_equal(got.created_at, 99);
    assert_int_equal(got.machine.shape.boot_bytes, MiB(128));
    assert_int_equal(got.machine.shape.disks[0].slot, 3);
    assert_string_equal(got.machine.shape.disks[0].serial, "img-0123456789abcdef");
    assert_int_equal(got.n_containers, 1);
    assert_string_equal(got.containers[0].config->metadata->name, "main");
    assert_int_equal(got.containers[0].uid, 7);
    assert_int_equal(got.containers[0].stderr_id, 4);
    assert_int_equal(got.containers[0].offset[0], 100);
    assert_int_equal(got.machine.last_volume, 7);
    assert_int_equal(got.volumes.bytes, 44);
    assert_int_equal(got.containers[0].n_volumes, 3);
    assert_int_equal(got.containers[0].volumes[1].id, 0x80000003);
    assert_true(got.containers[0].volumes[1].mirrored && got.containers[0].volumes[0].file);
    auto_free char *again = checkpoint_encode(&got, &err);
    assert_string_equal(again, text);
}

/* What an older daemon wrote: there were no volumes of the host. */
static void test_first_version(void **state)
{
    auto_err struct err err = ERR_INIT;
    auto_arena struct arena *a = arena_new(MiB(16));
    struct checkpoint c = example();
    struct checkpoint got;
    (void)state;
    config.n_mounts = 0;
    container.n_volumes = 0;
    auto_free char *text = checkpoint_encode(&c, &err);
    *(strstr(text, "\"version\": 2") + 11) = '1';
    assert_int_equal(checkpoint_decode(text, strlen(text), a, &got, &err), 0);
    assert_int_equal(got.volumes.bytes, 0);
    assert_int_equal(got.machine.last_volume, 0);
    assert_int_equal(got.containers[0].n_volumes, 0);
    config.n_mounts = 1;
    auto_free char *more = checkpoint_encode(&c, &err);
    *(strstr(more, "\"version\": 2") + 11) = '1';
    assert_int_equal(checkpoint_decode(more, strlen(more), a, &got, &err), -1);
}

/* Each is the example with one text in it replaced. */
static void test_malformed(void **state)
{
    static const struct {
        const char *from, *to;
        enum err_code code;
    } cases[] = {
        {"aspis-pod-checkpoint", "aspis-pod-checkpoinT", ERR_INVALID},
        {"\"version\": 2", "\"version\": 3", ERR_PRECONDITION},
        {"\"version\": 2", "\"version\": 0", ERR_PRECONDITION},
        {"\"version\": 2", "\"version\": \"2\"", ERR_INVALID},
        {"\"last_volume\": 7", "\"last_volume\": 6", ERR_INVALID},
        {"\"last_volume\": 7", "\"last_volume\": 2147483648", ERR_INVALID},
        {"\"last_mirror\": 2147483652", "\"last_mirror\": 2147483650", ERR_INVALID},
        {"\"last_mirror\": 2147483652", "\"last_mirror\": 4294967295", ERR_INVALID},
        {"\"id\": 5", "\"id\": 7", ERR_INVALID},
        {"\"id\": 5", "\"id\": 0", ERR_INVALID},
        {"\"id\": 5", "\"id\": 5.5", ERR_INVALID},
        {"\"id\": 2147483651", "\"id\": 2147483648", ERR_INVALID},
        {"\"id\": 2147483651", "\"id\": 3", ERR_INVALID},
        {"\"volumes\": [", "\"volumes\": [ {\"id\": 1},", ERR_INVALID},
        {"\"volumes\": [", "\"volumes\": {}, \"x\": [", ERR_INVALID},
        {"\"created_at\": 99", "\"created_at\": -1", ERR_INVALID},
        {"\"created_at\": 99", "\"created_at\": 99, \"created_at\": 98", ERR_INVALID},
        {"\"ram\": \"ram\"", "\"ram\": \"ram,share=on\"", ERR_INVALID},
        {"02:00:00:00:00:01", "02:00:00:00:00:0,", ERR_INVALID},
        {"02:00:00:00:00:01", "02:00:00:00:00:01:02", ERR_INVALID},
        {"\"slot\": 3", "\"slot\": 0", ERR_INVALID},
        {"\"slot\": 3", "\"slot\": 40", ERR_INVALID},
        {" \"vcpus\": 1", " \"vcpus\": 3", ERR_INVALID},
        {"\"max_bytes\": 1073741824", "\"max_bytes\": 1048576", ERR_INVALID},
        {"\"scratch_bytes\": 16777216", "\"scratch_bytes\": 16777217", ERR_INVALID},
        {"\"scratch_bytes\": 16777216", "\"scratch_bytes\": 33554432", ERR_INVALID},
        {"\"image\": \"sha256:0", "\"image\": \"sha256:x", ERR_INVALID},
        {"\"layout\": \"sha256:0", "\"layout\": \"sha25", ERR_INVALID},
        {"\"stop_signal\": \"TERM\"", "\"stop_signal\": \"rm -rf\"", ERR_INVALID},
        {"\"groups\": \"1 2\"", "\"groups\": \"1;2\"", ERR_INVALID},
        {"\"uid\": 7", "\"uid\": 4294967296", ERR_INVALID},
        {"\"pod\": \"", "\"pod\": \"ff", ERR_INVALID},
        {"\"pod\": \"", "\"pod\": \"f", ERR_INVALID},
    };
    (void)state;
    struct checkpoint c = example();
    auto_free char *text = checkpoint_encode(&c, NULL);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        auto_err struct err err = ERR_INIT;
        auto_arena struct arena *a = arena_new(MiB(16));
        struct checkpoint got;
        const char *at = strstr(text, cases[i].from);
        if (at == NULL)
            fail_msg("%s is not in %s", cases[i].from, text);
        auto_free char *bad =
            fs_format("%.*s%s%s", (int)(at - text), text, cases[i].to, at + strlen(cases[i].from));
        if (checkpoint_decode(bad, strlen(bad), a, &got, &err) == 0 || err.code != cases[i].code)
            fail_msg("%s: %s", cases[i].to, err_msg(&err));
    }
    for (size_t n = 0; n < strlen(text); n += 7) {
        auto_arena struct arena *a = arena_new(MiB(16));
        struct checkpoint got;
        assert_int_equal(checkpoint_decode(text, n, a, &got, NULL), -1);
    }
}

/* --- directories --- */

static int count(const char *path)
{
    auto_closedir DIR *d = opendir(path);
    struct dirent *e;
    int n = 0;
    while (d != NULL && (e = readdir(d)) != NULL)
        n += e->d_name[0] != '.';
    return d != NULL ? n : -1;
}

static void test_directory(void **state)
{
    auto_err struct err err = ERR_INIT;
    auto_free char *root = fs_format("%s/state", dir);
    auto_free char *notes = fs_format("%s/checkpoints", root);
    auto_free char *path = fs_format("%s/one", dir);
    struct checkpoint_dir d = CHECKPOINT_DIR_INIT;
    auto_free char *text = NULL;
    size_t len = 0;
    (void)state;
    assert_int_equal(checkpoint_dir_create(path, root, ID, &d, &err), 0);
    assert_int_equal(count(notes), 1);
    checkpoint_dir_clear(&d); /* given up: nothing stays */
    assert_int_equal(count(path), -1);
    assert_int_equal(count(notes), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    assert_int_equal(checkpoint_dir_create(path, root, ID, &d, &err), 0);
    checkpoint_dir_clear(&d);
    assert_int_equal(count(path), 0); /* it was there before */
    assert_int_equal(checkpoint_dir_create(path, root, ID, &d, &err), 0);
    assert_int_equal(checkpoint_dir_finish(&d, "text", &err), 0);
    checkpoint_dir_clear(&d);
    assert_int_equal(count(path), 4);
    assert_int_equal(count(notes), 0);
    assert_int_equal(checkpoint_dir_create(path, root, ID, &d, &err), -1);
    assert_int_equal(count(path), 4);
    assert_int_equal(checkpoint_dir_open(path, &d, &text, &len, &err), 0);
    assert_int_equal(len, 4);
    assert_string_equal(text, "text");
    checkpoint_dir_clear(&d);
    assert_int_equal(count(path), 4);
}

static void note_id(void *arg, const char *sandbox_id)
{
    assert_string_equal(sandbox_id, ID);
    ++*(int *)arg;
}

/* The descriptors of a daemon that was killed: as if they were closed without a word. */
static void test_recovery(void **state)
{
    auto_err struct err err = ERR_INIT;
    auto_free char *root = fs_format("%s/state", dir);
    auto_free char *notes = fs_format("%s/checkpoints", root);
    auto_free char *made = fs_format("%s/made", dir);
    auto_free char *kept = fs_format("%s/kept", dir);
    auto_free char *done = fs_format("%s/done", dir);
    const char *paths[] = {made, kept, done};
    (void)state;
    assert_int_equal(mkdir(kept, 0700), 0);
    for (size_t i = 0; i < ARRAY_LEN(paths); i++) {
        struct checkpoint_dir d = CHECKPOINT_DIR_INIT;
        int seen = 0;
        assert_int_equal(checkpoint_dir_create(paths[i], root, ID, &d, &err), 0);
        if (paths[i] == done)
            assert_int_equal(checkpoint_dir_finish(&d, "text", &err), 0);
        cleanup_closep(&d.state);
        cleanup_closep(&d.scratch);
        cleanup_closep(&d.volumes);
        cleanup_closep(&d.fd);
        free(d.path);
        free(d.note);
        checkpoint_dir_recover(root, note_id, &seen);
        assert_int_equal(seen, 1);
        assert_int_equal(count(notes), 0);
    }
    assert_int_equal(count(made), -1);
    assert_int_equal(count(kept), 0);
    assert_int_equal(count(done), 4);
}

/* What it holds counts, not how it is stored. */
static void test_digest(void **state)
{
    auto_err struct err err = ERR_INIT;
    struct checkpoint_file a;
    struct checkpoint_file b;
    auto_free char *sparse = fs_format("%s/sparse", dir);
    auto_free char *dense = fs_format("%s/dense", dir);
    auto_free char *zero = xcalloc(1, MiB(1));
    auto_close int x = open(sparse, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    auto_close int y = open(dense, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    (void)state;
    assert_int_equal(ftruncate(x, MiB(1) + 5), 0);
    assert_int_equal(pwrite(x, "here", 4, KiB(300)), 4);
    assert_int_equal(pwrite(y, zero, MiB(1), 0), MiB(1));
    assert_int_equal(pwrite(y, zero, 5, MiB(1)), 5);
    assert_int_equal(pwrite(y, "here", 4, KiB(300)), 4);
    assert_int_equal(checkpoint_file_describe(x, &a, NULL, &err), 0);
    assert_int_equal(checkpoint_file_describe(y, &b, NULL, &err), 0);
    assert_int_equal(a.bytes, b.bytes);
    assert_string_equal(a.digest, b.digest);
    assert_int_equal(checkpoint_file_check(y, &a, "y", NULL, &err), 0);
    assert_int_equal(pwrite(y, "here", 4, KiB(600)), 4);
    assert_int_equal(checkpoint_file_check(y, &a, "y", NULL, &err), -1);
    assert_int_equal(err.code, ERR_DATA_LOSS);
    err_clear(&err);
    /* the same bytes elsewhere are not the same */
    assert_int_equal(pwrite(y, zero, 4, KiB(300)), 4);
    assert_int_equal(checkpoint_file_check(y, &a, "y", NULL, &err), -1);
    err_clear(&err);
    assert_int_equal(ftruncate(x, MiB(1) + 4), 0);
    assert_int_equal(checkpoint_file_check(x, &a, "x", NULL, &err), -1);
    assert_int_equal(err.code, ERR_DATA_LOSS);
}

static int set_up(void **state)
{
    (void)state;
    (void)snprintf(dir, sizeof(dir), "/tmp/test-checkpoint-XXXXXX");
    return mkdtemp(dir) != NULL ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    return fs_rm_rf(dir, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round),
        cmocka_unit_test(test_first_version),
        cmocka_unit_test(test_malformed),
        cmocka_unit_test_setup_teardown(test_directory, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_recovery, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_digest, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
