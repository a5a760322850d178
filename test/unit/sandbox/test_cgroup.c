/* The tests with real cgroups need root; they use a parent of a unique name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/spawn.h"
#include "sandbox/cgroup.h"
#include "sandbox/cgroup_usage.h"

static char parent[64];

static void path_is(const char *in, const char *want)
{
    auto_err struct err err = ERR_INIT;
    auto_free char *got = cgroup_path(in, "/aspis", "id1", &err);
    if (got == NULL)
        fail_msg("%s: %s", in, err_msg(&err));
    assert_string_equal(got, want);
}

static void paths(void **state)
{
    (void)state;
    path_is("", "/aspis/aspis-id1");
    path_is(NULL, "/aspis/aspis-id1");
    path_is("/", "/aspis-id1");
    path_is("/kubepods/burstable/pod-1", "/kubepods/burstable/pod-1/aspis-id1");
    path_is("/kubepods/besteffort/", "/kubepods/besteffort/aspis-id1");
    path_is("/a/..b/c...", "/a/..b/c.../aspis-id1");
    path_is("kubepods.slice", "/kubepods.slice/aspis-id1");
    path_is("kubepods-burstable-pod12_3.slice",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod12_3.slice/aspis-id1");
    path_is("-.slice", "/aspis-id1");
    /* a slice's path is taken as it is */
    path_is("/kubepods.slice/kubepods-x.slice", "/kubepods.slice/kubepods-x.slice/aspis-id1");
}

static void bad_paths(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "relative", "../x",   "/..",       "/a/../b",   "/a/..",     "/a/./b",         "/a//b",
        "/a/.",     "//",     "/a b",      "/a\nb",     "/a\xff",    "a--b.slice",     "-a.slice",
        "a-.slice", ".slice", "../.slice", "a/b.slice", "x\n.slice", "kubepods.scope",
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        auto_err struct err err = ERR_INIT;
        auto_free char *got = cgroup_path(bad[i], "/aspis", "id1", &err);
        if (got != NULL)
            fail_msg("\"%s\" gave %s", bad[i], got);
        assert_int_equal(err.code, ERR_INVALID);
    }
    char longer[8192];
    memset(longer, 'a', sizeof(longer));
    longer[0] = '/';
    longer[sizeof(longer) - 1] = '\0';
    assert_null(cgroup_path(longer, "/aspis", "id1", NULL));
    memcpy(longer + sizeof(longer) - 7, ".slice", 7);
    assert_null(cgroup_path(longer + 1, "/aspis", "id1", NULL));
    static const char *const bad_ids[] = {"", "..", ".x", "a/b", "a b", "a\n"};
    for (size_t i = 0; i < ARRAY_LEN(bad_ids); i++)
        assert_null(cgroup_path("/x", "/aspis", bad_ids[i], NULL));
    assert_int_equal(cgroup_remove("/kubepods", NULL, NULL, NULL), -1); /* not ours */
    assert_int_equal(cgroup_remove("/x/aspis-1/../..", NULL, NULL, NULL), -1);
}

static int need_root(void **state)
{
    (void)state;
    (void)snprintf(parent, sizeof(parent), "/aspis-unit-test-%d", (int)getpid());
    return 0;
}

static bool group_exists(const struct strv *dirs)
{
    for (size_t i = 0; i < dirs->n; i++) {
        if (fs_exists(dirs->v[i]))
            return true;
    }
    return false;
}

/* A process in all of the group's directories. */
static void start_member(const struct strv *dirs, struct spawn_proc *p)
{
    const char *argv[] = {"sleep", "1000", NULL};
    struct spawn_opts o = {.argv = argv};
    assert_int_equal(spawn_start(&o, p, NULL), 0);
    char pid[16];
    (void)snprintf(pid, sizeof(pid), "%d", (int)p->pid);
    for (size_t i = 0; i < dirs->n; i++) {
        auto_err struct err err = ERR_INIT;
        auto_free char *procs = fs_format("%s/cgroup.procs", dirs->v[i]);
        if (fs_write_str(procs, pid, &err) < 0)
            fail_msg("%s", err_msg(&err));
    }
}

static void real_groups(void **state)
{
    (void)state;
    if (geteuid() != 0)
        skip();
    auto_err struct err err = ERR_INIT;
    auto_strv struct strv dirs = {0};
    auto_free char *path = cgroup_path("", parent, "one", &err);
    if (cgroup_create(path, &dirs, &err) < 0)
        fail_msg("%s", err_msg(&err));
    assert_true(dirs.n >= 1);
    for (size_t i = 0; i < dirs.n; i++)
        assert_true(fs_exists(dirs.v[i]));
    assert_false(cgroup_populated(path));
    /* again: the same directories */
    auto_strv struct strv again = {0};
    assert_int_equal(cgroup_create(path, &again, &err), 0);
    assert_int_equal(again.n, dirs.n);

    struct spawn_proc p = SPAWN_PROC_INIT;
    start_member(&dirs, &p);
    assert_true(cgroup_populated(path));

    auto_strv struct strv found = {0};
    assert_int_equal(cgroup_find(parent, &found, &err), 0);
    assert_int_equal(found.n, 1);
    assert_string_equal(found.v[0], path);

    /* removal kills the member, and takes the empty parent along */
    if (cgroup_remove(path, parent, NULL, &err) < 0)
        fail_msg("%s", err_msg(&err));
    int status = 0;
    assert_int_equal(spawn_wait(&p, NULL, &status, &err), 0);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_false(group_exists(&dirs));
    for (size_t i = 0; i < dirs.n; i++) {
        char *slash = strrchr(dirs.v[i], '/');
        *slash = '\0';
        assert_false(fs_exists(dirs.v[i]));
    }
    assert_int_equal(cgroup_remove(path, parent, NULL, &err), 0); /* nothing there: fine */
}

static void shared_parent(void **state)
{
    (void)state;
    if (geteuid() != 0)
        skip();
    auto_err struct err err = ERR_INIT;
    auto_strv struct strv one = {0};
    auto_strv struct strv two = {0};
    auto_free char *p1 = cgroup_path("", parent, "one", &err);
    auto_free char *p2 = cgroup_path("", parent, "two", &err);
    assert_int_equal(cgroup_create(p1, &one, &err), 0);
    assert_int_equal(cgroup_create(p2, &two, &err), 0);
    assert_int_equal(cgroup_remove(p1, parent, NULL, &err), 0);
    assert_true(group_exists(&two)); /* the other's stays */
    assert_int_equal(cgroup_remove(p2, parent, NULL, &err), 0);
    assert_false(group_exists(&two));
}

static void moved(void **state)
{
    (void)state;
    if (geteuid() != 0)
        skip();
    auto_err struct err err = ERR_INIT;
    auto_strv struct strv one = {0};
    auto_free char *elsewhere = fs_format("%s-spare", parent);
    auto_free char *p1 = cgroup_path("", elsewhere, "one", &err);
    auto_free char *p2 = cgroup_path("", parent, "two", &err);
    assert_int_equal(cgroup_create(p1, &one, &err), 0);
    cgroup_make_modest(elsewhere);
    cgroup_make_modest("/there-is-none"); /* nothing to do is no error */
    struct spawn_proc p = SPAWN_PROC_INIT;
    start_member(&one, &p);
    if (cgroup_move(p1, p2, elsewhere, NULL, NULL, &err) < 0)
        fail_msg("%s", err_msg(&err));
    assert_false(group_exists(&one));
    assert_true(cgroup_populated(p2));
    assert_int_equal(cgroup_move(p2, p2, parent, NULL, NULL, &err), 0);
    assert_true(cgroup_populated(p2));
    assert_int_equal(cgroup_move(p2, "/x/../y", parent, NULL, NULL, &err), -1);
    err_clear(&err);
    assert_true(cgroup_populated(p2));
    assert_int_equal(cgroup_remove(p2, parent, NULL, &err), 0);
    int status = 0;
    assert_int_equal(spawn_wait(&p, NULL, &status, &err), 0);
    assert_true(WIFSIGNALED(status));
    auto_strv struct strv left = {0};
    assert_int_equal(cgroup_find(elsewhere, &left, &err), 0);
    assert_int_equal(left.n, 0);
}

static void put(const char *dir, const char *name, const char *text)
{
    auto_free char *path = fs_format("%s/%s", dir, name);
    assert_int_equal(fs_mkdir_p(dir, 0755, NULL), 0);
    assert_int_equal(fs_write_atomic(path, text, strlen(text), 0644, false, NULL), 0);
}

/* What the host's files of both versions say, as files. */
static void usage(void **state)
{
    (void)state;
    char base[] = "/tmp/test_cgroup.XXXXXX";
    assert_non_null(mkdtemp(base));
    auto_free char *cpu = fs_format("%s/cpuacct", base);
    auto_free char *memory = fs_format("%s/memory", base);
    auto_free char *unified = fs_format("%s/unified", base);
    auto_free char *v2 = fs_format("%s/v2", base);
    struct machine_usage u;

    /* a host with both: the unified one accounts for nothing */
    put(unified, "cpu.stat", "usage_usec 0\nuser_usec 0\n");
    put(cpu, "cpuacct.usage", "123456789\n");
    put(memory, "memory.usage_in_bytes", "1000000\n");
    put(memory, "memory.stat",
        "inactive_file 1\ntotal_rss 700000\ntotal_inactive_file 100000\ntotal_pgfault 50\n"
        "total_pgmajfault 5\n");
    auto_strv struct strv one = {0};
    strv_add(&one, unified);
    strv_add(&one, cpu);
    strv_add(&one, memory);
    cgroup_usage(&one, &u);
    assert_true(u.has_cpu && u.has_memory);
    assert_int_equal(u.cpu_ns, 123456789);
    assert_int_equal(u.memory_usage, 1000000);
    assert_int_equal(u.memory_working_set, 900000);
    assert_int_equal(u.memory_rss, 700000);
    assert_int_equal(u.page_faults, 50);
    assert_int_equal(u.major_faults, 5);

    put(v2, "cpu.stat", "usage_usec 5000\nuser_usec 1\n");
    put(v2, "memory.current", "2000\n");
    put(v2, "memory.stat", "anon 900\ninactive_file 3000\npgfault 6\npgmajfault 7\n");
    auto_strv struct strv two = {0};
    strv_add(&two, v2);
    cgroup_usage(&two, &u);
    assert_true(u.has_cpu && u.has_memory);
    assert_int_equal(u.cpu_ns, 5000000);
    assert_int_equal(u.memory_usage, 2000);
    assert_int_equal(u.memory_working_set, 0);
    assert_int_equal(u.memory_rss, 900);
    assert_int_equal(u.page_faults, 6);

    auto_strv struct strv none = {0};
    strv_add(&none, "/nonexistent/group");
    cgroup_usage(&none, &u);
    assert_false(u.has_cpu || u.has_memory);
    assert_int_equal(fs_rm_rf(base, NULL), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(paths),         cmocka_unit_test(bad_paths), cmocka_unit_test(real_groups),
        cmocka_unit_test(shared_parent), cmocka_unit_test(moved),     cmocka_unit_test(usage),
    };
    return cmocka_run_group_tests(tests, need_root, NULL);
}
