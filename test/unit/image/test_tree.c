/* The tree of names: order, replacement, paths through symlinks, bounds. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "base/limits.h"
#include "cri/image/tree.h"

static struct tree_inode *put(struct tree *t, struct tree_inode *dir, const char *name,
                              uint32_t mode)
{
    struct tree_inode *in = tree_inode_new(t, mode, NULL);
    assert_non_null(in);
    assert_int_equal(tree_put(t, dir, name, strlen(name), in, NULL), 0);
    return in;
}

static void put_link(struct tree *t, struct tree_inode *dir, const char *name, const char *target)
{
    struct tree_inode *in = put(t, dir, name, S_IFLNK | 0777);
    assert_int_equal(tree_set_target(t, in, target, strlen(target), NULL), 0);
}

/* Many names in and out, held against a plain table. */
static void test_order(void **state)
{
    enum { NAMES = 5000 };
    auto_tree struct tree *t = tree_new(MiB(8), NULL);
    struct tree_inode *root = tree_root(t);
    static bool there[NAMES];
    uint32_t n = 0;
    uint32_t r = 1;
    (void)state;
    memset(there, 0, sizeof(there));
    for (int i = 0; i < 30000; i++) {
        char name[8];
        r = r * 1103515245 + 12345;
        int k = (int)(r >> 8) % NAMES;
        (void)snprintf(name, sizeof(name), "%d", k);
        if ((r & 0x80) != 0) {
            (void)put(t, root, name, S_IFREG);
            n += !there[k];
            there[k] = true;
        } else {
            tree_remove(root, name, strlen(name));
            n -= there[k];
            there[k] = false;
        }
    }
    assert_int_equal(root->dir.n, n);
    auto_free struct tree_entry **list = tree_sorted(root);
    for (uint32_t i = 0; i < n; i++) {
        assert_true(there[atoi(list[i]->name)]);
        assert_ptr_equal(tree_lookup(root, list[i]->name, list[i]->name_len), list[i]);
        if (i > 0)
            assert_true(strcmp(list[i - 1]->name, list[i]->name) < 0);
    }
    assert_null(tree_lookup(root, "none", 4));
}

static void test_walk(void **state)
{
    auto_tree struct tree *t = tree_new(MiB(8), NULL);
    struct tree_inode *root = tree_root(t);
    auto_err struct err err = ERR_INIT;
    struct tree_place p;
    (void)state;
    struct tree_inode *usr = tree_mkdir(t, root, "usr", 3, 0755, NULL);
    struct tree_inode *lib = tree_mkdir(t, usr, "lib", 3, 0755, NULL);
    (void)put(t, lib, "x", S_IFREG);
    put_link(t, root, "lib", "usr/lib");
    put_link(t, usr, "up", "../../../..//usr/./lib");
    put_link(t, root, "loop", "loop/y");
    (void)put(t, root, "file", S_IFREG);

    assert_int_equal(tree_walk(t, "lib/x", false, &p, &err), 0);
    assert_ptr_equal(p.dir, lib);
    assert_non_null(p.entry);
    assert_int_equal(tree_walk(t, "usr/up/x", false, &p, &err), 0);
    assert_ptr_equal(p.dir, lib);
    /* The last component is not followed. */
    assert_int_equal(tree_walk(t, "lib", false, &p, &err), 0);
    assert_ptr_equal(p.dir, root);
    assert_true(S_ISLNK(p.entry->inode->mode));
    assert_int_equal(tree_walk(t, "", false, &p, &err), 0);
    assert_ptr_equal(p.dir, root);
    assert_int_equal(p.name_len, 0);
    /* Where a missing path would be. */
    assert_int_equal(tree_walk(t, "lib/a/b/c", false, &p, &err), 0);
    assert_null(p.dir);
    assert_string_equal(p.rest, "/usr/lib/a/b/c");
    free(p.rest);
    assert_int_equal(tree_walk(t, "lib/a/b/c", true, &p, &err), 0);
    assert_non_null(tree_lookup(lib, "a", 1));
    assert_int_equal(p.dir->flags, TREE_IMPLIED);
    assert_int_equal(tree_walk(t, "loop/x", true, &p, &err), -1);
    assert_int_equal(err.code, ERR_INVALID);
    assert_int_equal(tree_walk(t, "file/x", true, &p, &err), -1);
    assert_int_equal(err.code, ERR_INVALID);
}

static void test_bounds(void **state)
{
    auto_tree struct tree *t = tree_new(MiB(1), NULL);
    auto_err struct err err = ERR_INIT;
    struct tree_inode *dir = tree_root(t);
    char name[300];
    int n = 0;
    (void)state;
    memset(name, 'n', sizeof(name));
    assert_int_equal(tree_put(t, dir, name, 256, dir, &err), -1);
    assert_int_equal(tree_put(t, dir, "", 0, dir, &err), -1);
    while ((dir = tree_mkdir(t, dir, "d", 1, 0755, &err)) != NULL)
        n++;
    assert_int_equal(n, LIMIT_TREE_DEPTH);
    assert_int_equal(err.code, ERR_INVALID);
    while (tree_alloc(t, 1000, &err) != NULL)
        ;
    assert_int_equal(err.code, ERR_EXHAUSTED);
    assert_true(tree_bytes(t) <= MiB(1));
}

static void test_xattrs(void **state)
{
    auto_tree struct tree *t = tree_new(MiB(8), NULL);
    auto_err struct err err = ERR_INIT;
    struct tree_inode *in = tree_inode_new(t, S_IFREG, NULL);
    static char big[LIMIT_XATTR_BYTES];
    (void)state;
    assert_int_equal(tree_set_xattr(t, in, 1, "b", 1, "1", 1, &err), 0);
    assert_int_equal(tree_set_xattr(t, in, 1, "a", 1, "1", 1, &err), 0);
    assert_int_equal(tree_set_xattr(t, in, 1, "b", 1, "22", 2, &err), 0);
    assert_memory_equal(in->xattrs->data, "a1", 2);
    assert_int_equal(tree_get_xattr(in, 1, "b")->value_len, 2);
    assert_null(in->xattrs->next->next);
    assert_null(tree_get_xattr(in, 4, "b"));
    assert_int_equal(tree_set_xattr(t, in, 1, "c", 1, big, sizeof(big) - 12, &err), -1);
    assert_int_equal(tree_set_xattr(t, in, 1, "c", 1, big, sizeof(big) - 100, &err), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_walk),
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_xattrs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
