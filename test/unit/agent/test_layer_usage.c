/* agent/layer_usage: what a tree of files takes, counted here and in a child. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/layer_usage.h"
#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/loop.h"

static char dir[64];

static char *at(const char *name)
{
    return fs_format("%s/%s", dir, name);
}

static void put(const char *name, size_t len)
{
    auto_free char *path = at(name);
    auto_free char *data = calloc(1, len + 1);
    memset(data, 'x', len);
    assert_int_equal(fs_write_atomic(path, data, len, 0644, false, NULL), 0);
}

static int make_tree(void **state)
{
    (void)state;
    (void)strcpy(dir, "/tmp/test_layer_usage.XXXXXX");
    if (mkdtemp(dir) == NULL)
        return -1;
    auto_free char *sub = at("one/two");
    auto_free char *link_name = at("link");
    auto_free char *first = at("file");
    auto_free char *second = at("one/again");
    put("file", 100000);
    if (fs_mkdir_p(sub, 0755, NULL) < 0 || symlink("/", link_name) < 0 || link(first, second) < 0)
        return -1;
    put("one/two/small", 10);
    return 0;
}

static int drop_tree(void **state)
{
    (void)state;
    return fs_rm_rf(dir, NULL);
}

static void test_count(void **state)
{
    (void)state;
    struct layer l = {.dir = dir};
    layer_usage_count(&l);
    /* root, file under two names, link, one, two, small */
    assert_int_equal(l.inodes, 7);
    assert_true(l.bytes >= 100000 && l.bytes < 100000 + 64 * 1024);
    char missing[] = "/nonexistent/upper";
    struct layer none = {.dir = missing, .bytes = 5};
    layer_usage_count(&none);
    assert_int_equal(none.bytes, 0);
    assert_int_equal(none.inodes, 0);
}

static bool finished;

static void on_done(void *arg)
{
    (void)arg;
    finished = true;
}

static void walk(struct loop *loop, struct layer_usage *u, struct layer *list, size_t n)
{
    finished = false;
    assert_int_equal(layer_usage_start(u, list, n, NULL), 0);
    assert_true(layer_usage_walking(u));
    int64_t deadline = mono_ns() + INT64_C(20000000000);
    while (!finished && mono_ns() < deadline)
        loop_turn(loop, 1000);
    assert_true(finished);
    assert_false(layer_usage_walking(u));
    assert_true(waitpid(-1, NULL, 0) > 0);
}

static void test_in_a_child(void **state)
{
    (void)state;
    struct loop *loop = loop_new(NULL);
    struct layer_usage *u = layer_usage_new(loop, on_done, NULL);
    char a[] = "a";
    char b[] = "b";
    char missing[] = "/nonexistent/upper";
    struct layer list[] = {{.id = a, .dir = dir}, {.id = b, .dir = missing}};
    assert_null(layer_usage_find(u, "a"));
    assert_int_equal(layer_usage_at(u), 0);
    walk(loop, u, list, 2);
    assert_true(layer_usage_at(u) > 0);
    assert_int_equal(layer_usage_find(u, "a")->inodes, 7);
    assert_int_equal(layer_usage_find(u, "b")->inodes, 0);
    assert_null(layer_usage_find(u, "c"));
    put("more", 5000);
    walk(loop, u, list, 1);
    assert_int_equal(layer_usage_find(u, "a")->inodes, 8);
    assert_null(layer_usage_find(u, "b")); /* it was not asked for any more */
    /* freed while a child is at it */
    assert_int_equal(layer_usage_start(u, list, 1, NULL), 0);
    layer_usage_free(u);
    assert_true(waitpid(-1, NULL, 0) > 0);
    loop_free(loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_count, make_tree, drop_tree),
        cmocka_unit_test_setup_teardown(test_in_a_child, make_tree, drop_tree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
