/* base/fs: writes that are whole or not at all, removal that stays inside, copies that keep holes.
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/str.h"

static char dir[64];

static int make_dir(void **state)
{
    (void)state;
    (void)strcpy(dir, "/tmp/aspis-fs-XXXXXX");
    return mkdtemp(dir) == NULL ? -1 : chdir(dir);
}

static int remove_dir(void **state)
{
    (void)state;
    return chdir("/") < 0 ? -1 : fs_rm_rf(dir, NULL);
}

static void put(const char *path, const char *text)
{
    auto_err struct err err = ERR_INIT;
    if (fs_write_atomic(path, text, strlen(text), 0600, false, &err) < 0)
        fail_msg("%s", err_msg(&err));
}

static bool holds(const char *path, const char *text)
{
    auto_free char *got = fs_read(path, 1 << 20, NULL, NULL);
    return got != NULL && strcmp(got, text) == 0;
}

static void test_read(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    size_t len = 0;
    put("f", "12345");
    auto_free char *all = fs_read("f", 5, &len, &err);
    assert_string_equal(all, "12345");
    assert_int_equal(len, 5);
    assert_null(fs_read("f", 4, NULL, &err));
    assert_int_equal(err.code, ERR_EXHAUSTED);
    assert_non_null(strstr(err_msg(&err), "f: "));
    assert_null(fs_read("nope", 4, NULL, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_null(fs_read(".", 4, NULL, &err));
    auto_free char *proc = fs_read("/proc/self/status", 1 << 20, &len, &err);
    assert_true(len > 100 && str_starts(proc, "Name:"));
    put("empty", "");
    auto_free char *none = fs_read("empty", 0, &len, &err);
    assert_string_equal(none, "");
    auto_free char *boot = fs_boot_id(&err);
    assert_int_equal(strlen(boot), 36);
}

static void test_atomic_write(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    assert_int_equal(fs_write_atomic("f", "one", 3, 0640, true, &err), 0);
    assert_int_equal(fs_write_atomic("f", "two", 3, 0604, false, &err), 0);
    assert_true(holds("f", "two"));
    struct stat st;
    assert_int_equal(stat("f", &st), 0);
    assert_int_equal(st.st_mode & 07777, 0604);
    assert_int_equal(fs_write_atomic("/no/such/dir/f", "x", 1, 0600, false, &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_int_equal(mkdir("taken", 0700), 0);
    assert_int_equal(fs_write_atomic("taken", "x", 1, 0600, false, &err), -1);
    /* nothing is left of what failed: f and taken */
    int n = 0;
    auto_closedir DIR *d = opendir(".");
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        n += e->d_name[0] != '.';
    assert_int_equal(n, 2);
}

/* A write that does not fit leaves the old file. In a child: the limit stays. */
static void test_atomic_write_on_a_full_disk(void **state)
{
    (void)state;
    put("f", "old");
    pid_t pid = fork();
    if (pid == 0) {
        static char big[8192];
        struct rlimit limit = {4096, 4096};
        (void)signal(SIGXFSZ, SIG_IGN);
        (void)setrlimit(RLIMIT_FSIZE, &limit);
        struct err err = ERR_INIT;
        int rc = fs_write_atomic("f", big, sizeof(big), 0600, true, &err);
        _exit(rc == -1 && err.code == ERR_EXHAUSTED ? 0 : 1);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_true(holds("f", "old"));
    int n = 0;
    auto_closedir DIR *d = opendir(".");
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        n += e->d_name[0] != '.';
    assert_int_equal(n, 1);
}

static void test_mkdir_p(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    assert_int_equal(fs_mkdir_p("a/b/c", 0711, &err), 0);
    assert_int_equal(fs_mkdir_p("a/b/c/", 0700, &err), 0);
    assert_int_equal(fs_mkdir_p("a//b", 0700, &err), 0);
    struct stat st;
    assert_int_equal(stat("a/b", &st), 0);
    assert_int_equal(st.st_mode & 07777, 0711);
    put("file", "");
    assert_int_equal(fs_mkdir_p("file", 0700, &err), -1);
    assert_int_equal(fs_mkdir_p("file/x", 0700, &err), -1);
    assert_int_equal(fs_mkdir_p("", 0700, &err), -1);
    assert_int_equal(fs_mkdir_p("/", 0700, &err), 0);
}

static void test_removal_does_not_follow_links(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    assert_int_equal(fs_mkdir_p("keep/me", 0700, &err), 0);
    put("keep/file", "x");
    assert_int_equal(fs_mkdir_p("gone/deep/er", 0700, &err), 0);
    put("gone/deep/file", "x");
    assert_int_equal(symlink("../keep", "gone/link"), 0);
    assert_int_equal(symlink("/nonexistent", "gone/dangling"), 0);
    assert_int_equal(mkfifo("gone/fifo", 0600), 0);
    assert_int_equal(chmod("gone/deep", 0500), 0);
    assert_int_equal(symlink("keep", "top"), 0);
    assert_int_equal(fs_rm_rf("gone", &err), 0);
    assert_false(fs_exists("gone"));
    assert_true(fs_exists("keep/me") && fs_exists("keep/file"));
    /* the link itself goes, not where it leads */
    assert_int_equal(fs_rm_rf("top", &err), 0);
    assert_false(fs_exists("top"));
    assert_true(fs_exists("keep/file"));
    assert_int_equal(fs_rm_rf("keep/file", &err), 0);
    assert_int_equal(fs_rm_rf("missing", &err), 0);
    assert_int_equal(fs_rm_rf("keep/missing/er", &err), 0);
    assert_false(fs_exists("keep/file"));
}

static void test_removal_of_deep_trees_ends(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    assert_int_equal(mkdir("deep", 0700), 0);
    auto_close int at = open("deep", O_DIRECTORY | O_CLOEXEC);
    for (int i = 0; i < 400; i++) {
        assert_int_equal(mkdirat(at, "d", 0700), 0);
        int next = openat(at, "d", O_DIRECTORY | O_CLOEXEC);
        (void)close(at);
        at = next;
    }
    assert_int_equal(fs_rm_rf("deep", &err), -1);
    assert_non_null(strstr(err_msg(&err), "too deep"));
    /* in two halves it can */
    char path[512] = "deep";
    for (int i = 0; i < 200; i++)
        (void)strcat(path, "/d");
    assert_int_equal(rename(path, "half"), 0);
    assert_int_equal(fs_rm_rf("half", &err), 0);
    assert_int_equal(fs_rm_rf("deep", &err), 0);
}

/* In a mount namespace of the child's own. 0: as it should be; 77: not allowed to mount here. */
static int removal_with_mounts(void)
{
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return 77;
    struct err err = ERR_INIT;
    if (mkdir("kept", 0700) < 0 || fs_mkdir_p("tree/tmp", 0700, &err) < 0 ||
        fs_mkdir_p("tree/bind", 0700, &err) < 0)
        return 1;
    put("kept/file", "x");
    if (mount("tmpfs", "tree/tmp", "tmpfs", 0, NULL) < 0)
        return 77;
    put("tree/tmp/file", "x");
    if (fs_rm_rf("tree", &err) == 0 || !fs_exists("tree/tmp/file") ||
        strstr(err_msg(&err), "mount point") == NULL)
        return 2;
    if (fs_rm_rf("tree/tmp", &err) == 0 || !fs_exists("tree/tmp/file"))
        return 3;
    if (umount("tree/tmp") < 0)
        return 4;
    /* the same file system again, mounted: its device number says nothing */
    if (fs_mkdir_p("tree/bind", 0700, &err) < 0 ||
        mount("kept", "tree/bind", NULL, MS_BIND, NULL) < 0)
        return 5;
    if (fs_rm_rf("tree", &err) == 0 || !fs_exists("kept/file"))
        return 6;
    if (umount("tree/bind") < 0 || fs_rm_rf("tree", &err) < 0 || !fs_exists("kept/file"))
        return 7;
    return 0;
}

static void test_removal_does_not_cross_mounts(void **state)
{
    (void)state;
    pid_t pid = fork();
    if (pid == 0)
        _exit(removal_with_mounts());
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_copy_keeps_holes(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    auto_close int from = open("from", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(ftruncate(from, 64 << 20), 0);
    assert_int_equal(pwrite(from, "middle", 6, 32 << 20), 6);
    assert_int_equal(pwrite(from, "end", 3, (64 << 20) - 3), 3);
    auto_close int to = open("to", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(fs_copy_sparse(from, to, &err), 0);
    struct stat st;
    assert_int_equal(fstat(to, &st), 0);
    assert_int_equal(st.st_size, 64 << 20);
    assert_true(st.st_blocks * 512 < 1 << 20);
    char text[8] = "";
    assert_int_equal(pread(to, text, 6, 32 << 20), 6);
    assert_string_equal(text, "middle");
    assert_int_equal(pread(to, text, 3, (64 << 20) - 3), 3);
    assert_memory_equal(text, "end", 3);
    assert_int_equal(pread(to, text, 1, 12345), 1);
    assert_int_equal(text[0], 0);
    /* to another file system, where copy_file_range() may not reach */
    auto_close int far = memfd_create("far", MFD_CLOEXEC);
    assert_int_equal(fs_copy_sparse(from, far, &err), 0);
    assert_int_equal(pread(far, text, 6, 32 << 20), 6);
    assert_memory_equal(text, "middle", 6);
    /* nothing but a hole, and nothing at all */
    auto_close int hole = memfd_create("hole", MFD_CLOEXEC);
    assert_int_equal(ftruncate(hole, 1 << 20), 0);
    assert_int_equal(fs_copy_sparse(hole, to, &err), 0);
    assert_int_equal(fstat(to, &st), 0);
    assert_int_equal(st.st_size, 1 << 20);
    assert_int_equal(ftruncate(hole, 0), 0);
    assert_int_equal(fs_copy_sparse(hole, to, &err), 0);
    assert_int_equal(fstat(to, &st), 0);
    assert_int_equal(st.st_size, 0);
}

static void test_nothing_leads_out_of_a_root(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    assert_int_equal(fs_mkdir_p("root/etc", 0700, &err), 0);
    put("root/etc/passwd", "inside");
    put("passwd", "outside");
    assert_int_equal(symlink("/etc/passwd", "root/absolute"), 0);
    assert_int_equal(symlink("../../../../etc/passwd", "root/up"), 0);
    assert_int_equal(symlink("/proc/self/root", "root/magic"), 0);
    assert_int_equal(symlink("loop", "root/loop"), 0);
    auto_close int root = open("root", O_PATH | O_DIRECTORY | O_CLOEXEC);
    static const char *const inside[] = {
        "etc/passwd", "/etc/passwd",         "absolute",
        "up",         "../../../etc/passwd", "etc/../../etc/passwd"};
    for (size_t i = 0; i < ARRAY_LEN(inside); i++) {
        auto_close int fd = fs_open_in_root(root, inside[i], O_RDONLY, 0, &err);
        assert_true(fd >= 0);
        auto_free char *text = fs_read_fd(fd, 100, NULL, &err);
        assert_string_equal(text, "inside");
        assert_true((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    }
    static const char *const nowhere[] = {"../passwd", "magic/etc/passwd", "loop", "etc/nope", ""};
    for (size_t i = 0; i < ARRAY_LEN(nowhere); i++)
        assert_int_equal(fs_open_in_root(root, nowhere[i], O_RDONLY, 0, &err), -1);
    /* a magic link of the real /proc */
    auto_close int slash = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(fs_open_in_root(slash, "proc/self/root", O_RDONLY, 0, &err), -1);
    auto_close int made = fs_open_in_root(root, "/new", O_WRONLY | O_CREAT, 0640, &err);
    assert_true(made >= 0 && fs_exists("root/new"));
}

static void test_random_hex(void **state)
{
    (void)state;
    char a[65];
    char b[65];
    for (size_t n = 0; n <= 64; n++) {
        memset(a, '!', sizeof(a));
        fs_random_hex(a, n);
        assert_int_equal(strlen(a), n);
        assert_int_equal(strspn(a, "0123456789abcdef"), n);
    }
    fs_random_hex(b, 64);
    assert_string_not_equal(a, b);
}

static void test_write(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    put("f", "xxxxx");
    assert_int_equal(fs_write_str("f", "ab", &err), 0);
    assert_true(holds("f", "abxxx"));
    assert_int_equal(fs_write_str("none", "ab", &err), -1);
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_false(fs_exists("none"));
    assert_int_equal(fs_write_str("/dev/full", "ab", &err), -1);
    assert_int_equal(err.code, ERR_EXHAUSTED);
}

#define IN_DIR(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_DIR(test_read),
        IN_DIR(test_write),
        IN_DIR(test_atomic_write),
        IN_DIR(test_atomic_write_on_a_full_disk),
        IN_DIR(test_mkdir_p),
        IN_DIR(test_removal_does_not_follow_links),
        IN_DIR(test_removal_of_deep_trees_ends),
        IN_DIR(test_removal_does_not_cross_mounts),
        IN_DIR(test_copy_keeps_holes),
        IN_DIR(test_nothing_leads_out_of_a_root),
        cmocka_unit_test(test_random_hex),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
