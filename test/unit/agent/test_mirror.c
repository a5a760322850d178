/* agent/mirror_apply: what a request makes of a directory, in which order it is told of, and what
 * is refused. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "agent/mirror_apply.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"

typedef Aspis__Agent__V1__SyncVolumeRequest Request;
typedef Aspis__Agent__V1__TreeEntry Entry;

struct made {
    Request req;
    Entry root;
    Entry entries[4];
    Entry *list[4];
    char *names[2];
};

static void set(Entry *e, const char *path, uint32_t mode, const char *content)
{
    aspis__agent__v1__tree_entry__init(e);
    e->path = (char *)(uintptr_t)path;
    e->mode = mode;
    e->uid = getuid();
    e->gid = getgid();
    e->mtime_ns = UINT64_C(981173106000000005);
    if (content != NULL)
        e->content = (ProtobufCBinaryData){strlen(content), (uint8_t *)(uintptr_t)content};
}

static void make(struct made *m, const char *version, const char *content)
{
    aspis__agent__v1__sync_volume_request__init(&m->req);
    m->req.id = 7;
    set(&m->root, "", S_IFDIR | 0750, NULL);
    set(&m->entries[0], "", S_IFDIR | 0755, NULL);
    set(&m->entries[1], "key", S_IFREG | 0640, content);
    set(&m->entries[2], "dir", S_IFDIR | 0700, NULL);
    set(&m->entries[3], "dir/script", S_IFREG | 0755, "#!\n");
    for (size_t i = 0; i < 4; i++)
        m->list[i] = &m->entries[i];
    m->names[0] = (char *)(uintptr_t) "key";
    m->names[1] = (char *)(uintptr_t) "dir";
    m->req.root = &m->root;
    m->req.data = (char *)(uintptr_t)version;
    m->req.entries = m->list;
    m->req.n_entries = 4;
    m->req.names = m->names;
    m->req.n_names = 2;
}

static char *content_of(const char *dir, const char *name)
{
    auto_free char *path = fs_format("%s/%s", dir, name);
    return fs_read(path, KiB(4), NULL, NULL);
}

static void assert_content(const char *dir, const char *name, const char *want)
{
    auto_free char *is = content_of(dir, name);
    assert_non_null(is);
    assert_string_equal(is, want);
}

static void apply(const char *dir, const struct made *m)
{
    auto_err struct err err = ERR_INIT;
    assert_int_equal(mirror_check(&m->req, &err), 0);
    if (mirror_apply(dir, &m->req, &err) < 0)
        fail_msg("%s", err_msg(&err));
}

static void assert_gone(const char *dir, const char *name)
{
    auto_free char *path = fs_format("%s/%s", dir, name);
    assert_false(fs_exists(path));
}

static void test_apply(void **state)
{
    (void)state;
    char dir[] = "/tmp/aspis-test-XXXXXX";
    struct made m;
    struct stat st;
    assert_non_null(mkdtemp(dir));
    make(&m, "..1", "one\n");
    apply(dir, &m);
    assert_content(dir, "key", "one\n");
    assert_content(dir, "dir/script", "#!\n");
    auto_free char *script = fs_format("%s/..1/dir/script", dir);
    assert_int_equal(lstat(script, &st), 0);
    assert_int_equal(st.st_mode, S_IFREG | 0755);
    assert_int_equal(st.st_mtim.tv_sec, 981173106);
    assert_int_equal(st.st_mtim.tv_nsec, 5);
    assert_int_equal(stat(dir, &st), 0);
    assert_int_equal(st.st_mode, S_IFDIR | 0750);

    make(&m, "..2", "two, longer\n");
    m.req.n_entries = 2;
    m.req.n_names = 1;
    apply(dir, &m);
    assert_content(dir, "key", "two, longer\n");
    assert_gone(dir, "dir");
    assert_gone(dir, "..1");

    /* the same version again, changed: in place, with what is left over removed */
    make(&m, "..2", "2\n");
    apply(dir, &m);
    assert_content(dir, "key", "2\n");
    assert_content(dir, "dir/script", "#!\n");
    m.req.n_entries = 3;
    m.entries[1].mode = S_IFREG | 0600;
    apply(dir, &m);
    assert_gone(dir, "dir/script");
    auto_free char *key = fs_format("%s/key", dir);
    assert_int_equal(stat(key, &st), 0);
    assert_int_equal(st.st_mode, S_IFREG | 0600);
    assert_int_equal(fs_rm_rf(dir, NULL), 0);
}

static void test_what_is_right_is_not_touched(void **state)
{
    (void)state;
    char dir[] = "/tmp/aspis-test-XXXXXX";
    char block[4096];
    struct made m;
    assert_non_null(mkdtemp(dir));
    make(&m, "..1", "one\n");
    apply(dir, &m);
    auto_free char *data = fs_format("%s/..1", dir);
    auto_close int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    uint32_t changes = IN_ATTRIB | IN_MODIFY | IN_CLOSE_WRITE | IN_CREATE | IN_DELETE | IN_MOVE;
    assert_true(inotify_add_watch(fd, dir, changes & ~(uint32_t)IN_CLOSE_WRITE) >= 0);
    assert_true(inotify_add_watch(fd, data, changes & ~(uint32_t)IN_CLOSE_WRITE) >= 0);
    apply(dir, &m);
    assert_int_equal(read(fd, block, sizeof(block)), -1);
    assert_int_equal(fs_rm_rf(dir, NULL), 0);
}

static void refused(const struct made *m)
{
    auto_err struct err err = ERR_INIT;
    assert_int_equal(mirror_check(&m->req, &err), -1);
    assert_true(err.code == ERR_INVALID || err.code == ERR_EXHAUSTED);
}

static void test_refused(void **state)
{
    static const char *const names[] = {"", ".", "..", "a/b", "..data", "..x", "/"};
    static const char *const versions[] = {"", "x", "..", "../x", "..data", "..data_tmp", "..a/b"};
    static const char *const paths[] = {"",     ".",  "..",    "/etc/x",  "../x",  "dir/../x",
                                        "a//b", "x/", "nix/x", "dir/./x", "key/x", "dir//x"};
    struct made m;
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        make(&m, "..1", "x");
        m.names[1] = (char *)(uintptr_t)names[i];
        refused(&m);
    }
    for (size_t i = 0; i < ARRAY_LEN(versions); i++) {
        make(&m, versions[i], "x");
        refused(&m);
    }
    for (size_t i = 0; i < ARRAY_LEN(paths); i++) {
        make(&m, "..1", "x");
        m.entries[3].path = (char *)(uintptr_t)paths[i];
        refused(&m);
    }
    make(&m, "..1", "x");
    m.entries[3].mode = S_IFLNK | 0777;
    refused(&m);
    make(&m, "..1", "x");
    m.entries[0].mode = S_IFREG | 0755;
    refused(&m);
    make(&m, "..1", "x");
    m.entries[2].content = m.entries[1].content;
    refused(&m);
    make(&m, "..1", "x");
    m.entries[1].content.len = LIMIT_MIRROR_BYTES;
    refused(&m);
    make(&m, "..1", "x");
    m.req.n_entries = 0;
    refused(&m);
    make(&m, "..1", "x");
    m.req.root = NULL;
    refused(&m);
    make(&m, "..1", "x");
    m.req.id = 0;
    refused(&m);
}

/* A link where a directory of ours should be leads nowhere. */
static void test_links_are_not_followed(void **state)
{
    (void)state;
    char dir[] = "/tmp/aspis-test-XXXXXX";
    char other[] = "/tmp/aspis-test-XXXXXX";
    struct made m;
    auto_err struct err err = ERR_INIT;
    assert_non_null(mkdtemp(dir));
    assert_non_null(mkdtemp(other));
    auto_free char *version = fs_format("%s/..1", dir);
    assert_int_equal(symlink(other, version), 0);
    make(&m, "..1", "x");
    assert_int_equal(mirror_apply(dir, &m.req, &err), -1);
    assert_gone(other, "key");
    assert_int_equal(unlink(version), 0);
    assert_int_equal(mkdir(version, 0700), 0);
    auto_free char *sub = fs_format("%s/dir", version);
    assert_int_equal(symlink(other, sub), 0);
    err_clear(&err);
    assert_int_equal(mirror_apply(dir, &m.req, &err), 0); /* the link was replaced */
    assert_gone(other, "script");
    assert_content(dir, "dir/script", "#!\n");
    assert_int_equal(fs_rm_rf(dir, NULL), 0);
    assert_int_equal(fs_rm_rf(other, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_apply),
        cmocka_unit_test(test_what_is_right_is_not_touched),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_links_are_not_followed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
