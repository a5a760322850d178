/* base/idmap: whose ids and namespaces they are; many at once. Needs root: makes real namespaces.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/idmap.h"
#include "base/str.h"

static const struct idmap_range map = {0, 100000, 1000};

static int make(void)
{
    auto_err struct err err = ERR_INIT;
    if (geteuid() != 0)
        skip();
    int fd = idmap_userns(&map, 1, &map, 1, &err);
    if (fd < 0)
        fail_msg("%s", err_msg(&err));
    return fd;
}

static ino_t inode(int fd)
{
    struct stat st;
    assert_int_equal(fstat(fd, &st), 0);
    return st.st_ino;
}

static int look(void *arg, struct err *err)
{
    auto_free char *ids = fs_read("/proc/self/uid_map", 1000, NULL, err);
    unsigned v[3];
    (void)arg;
    if (ids == NULL || sscanf(ids, "%u %u %u", &v[0], &v[1], &v[2]) != 3)
        return -1;
    if (v[0] != 0 || v[1] != 100000 || v[2] != 1000 || getuid() != 0 || getgid() != 0)
        return err_set(err, ERR_UNKNOWN, "it has %s", ids);
    return open("/proc/sys/kernel/panic", O_WRONLY | O_CLOEXEC) >= 0
               ? err_set(err, ERR_UNKNOWN, "it has power over the host")
               : 0;
}

static int complain(void *arg, struct err *err)
{
    return err_set(err, ERR_UNKNOWN, "said %s", (const char *)arg);
}

static void test_run(void **state)
{
    (void)state;
    auto_close int userns = make();
    auto_err struct err err = ERR_INIT;
    char word[] = "why";
    assert_int_equal(idmap_run(userns, look, NULL, &err), 0);
    assert_int_equal(idmap_run(userns, complain, word, &err), -1);
    assert_non_null(strstr(err_msg(&err), "said why"));
    assert_int_equal(waitpid(-1, NULL, __WALL), -1); /* no child is left */
    assert_int_equal(errno, ECHILD);
}

static void test_owner(void **state)
{
    static const int flags[] = {CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS};
    (void)state;
    auto_close int userns = make();
    auto_err struct err err = ERR_INIT;
    for (size_t i = 0; i < ARRAY_LEN(flags); i++) {
        auto_close int ns = idmap_namespace(userns, flags[i], &err);
        assert_true(ns >= 0);
        auto_close int owner = idmap_owner(ns, &err);
        assert_true(owner >= 0);
        assert_int_equal(inode(owner), inode(userns));
        assert_int_equal(fcntl(owner, F_GETFD), FD_CLOEXEC);
    }
    auto_close int own = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    assert_int_equal(idmap_owner(own, &err), -1);
    assert_int_equal(err.code, ERR_OK);
    auto_close int other = open("/dev/null", O_RDONLY | O_CLOEXEC);
    assert_int_equal(idmap_owner(other, &err), -1);
    assert_int_not_equal(err.code, ERR_OK);
    err_clear(&err);
    assert_int_equal(idmap_namespace(other, CLONE_NEWNET, &err), -1);
    assert_non_null(strstr(err_msg(&err), "in a user namespace"));
}

static void test_refused(void **state)
{
    (void)state;
    auto_close int some = make();
    assert_true(some >= 0);
    auto_err struct err err = ERR_INIT;
    struct idmap_range many[IDMAP_RANGES + 1] = {{0, 0, 0}};
    assert_int_equal(idmap_userns(many, ARRAY_LEN(many), &map, 1, &err), -1);
    assert_int_equal(err.code, ERR_INVALID);
    err_clear(&err);
    assert_int_equal(idmap_userns(many, 1, &map, 1, &err), -1); /* of no length */
    assert_non_null(strstr(err_msg(&err), "uid_map"));
}

static void test_mount(void **state)
{
    (void)state;
    auto_close int userns = make();
    auto_close int proc = open_tree(AT_FDCWD, "/proc", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC);
    assert_true(proc >= 0);
    assert_int_equal(idmap_set(proc, userns, false), EINVAL);
    assert_int_equal(idmap_set(userns, userns, false), EINVAL); /* not a mount of ours */
}

static void *several(void *arg)
{
    (void)arg;
    for (int i = 0; i < 20; i++) {
        auto_err struct err err = ERR_INIT;
        auto_close int userns = idmap_userns(&map, 1, &map, 1, &err);
        auto_close int ns = userns < 0 ? -1 : idmap_namespace(userns, CLONE_NEWUTS, &err);
        if (ns < 0) {
            (void)fprintf(stderr, "%s\n", err_msg(&err));
            return arg;
        }
    }
    return NULL;
}

static void test_threads(void **state)
{
    pthread_t t[6];
    int mark = 0;
    (void)state;
    auto_close int first = make();
    assert_true(first >= 0);
    for (size_t i = 0; i < ARRAY_LEN(t); i++)
        assert_int_equal(pthread_create(&t[i], NULL, several, &mark), 0);
    for (size_t i = 0; i < ARRAY_LEN(t); i++) {
        void *failed = NULL;
        assert_int_equal(pthread_join(t[i], &failed), 0);
        assert_null(failed);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_run),     cmocka_unit_test(test_owner),
        cmocka_unit_test(test_refused), cmocka_unit_test(test_mount),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
