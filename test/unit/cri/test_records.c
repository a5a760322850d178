/* cri/records: what is written is read again, also after a kill; a file that is damaged or from the
 * future is treated as such. Beside it cri/oplock. */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/str.h"
#include "cri/oplock.h"
#include "cri/records.h"

static char dir[64];

static int set_up(void **state)
{
    (void)state;
    (void)strcpy(dir, "/tmp/aspis-records-XXXXXX");
    return mkdtemp(dir) == NULL ? -1 : chdir(dir);
}

static int tear_down(void **state)
{
    (void)state;
    return chdir("/") < 0 ? -1 : fs_rm_rf(dir, NULL);
}

static struct records *open_db(void)
{
    struct err err = ERR_INIT;
    char *moved = NULL;
    struct records *r = records_open("state.db", &moved, &err);
    if (r == NULL)
        fail_msg("%s", err_msg(&err));
    assert_null(moved);
    return r;
}

#define CONFIG "\x0a\x00\xff''\";DROP TABLE sandboxes;--"
/* records_put_*() only read */
#define OWN(s) ((char *)(uintptr_t)(s))

static struct sandbox_record a_sandbox(const char *id, int64_t created)
{
    return (struct sandbox_record){.id = OWN(id),
                                   .phase = SANDBOX_READY,
                                   .config = OWN(CONFIG),
                                   .config_len = sizeof(CONFIG) - 1,
                                   .handler = OWN(""),
                                   .created_at = created,
                                   .boot_id = OWN("boot"),
                                   .netns = OWN("/run/netns/x'y"),
                                   .net = OWN("{\"a\":\"\u00fc\"}"),
                                   .machine = OWN("{}"),
                                   .net_up = true,
                                   .reason = OWN("because")};
}

static struct container_record a_container(const char *id, const char *sandbox, int64_t created)
{
    return (struct container_record){.id = OWN(id),
                                     .sandbox_id = OWN(sandbox),
                                     .phase = CONTAINER_RUNNING,
                                     .config = OWN(CONFIG),
                                     .config_len = sizeof(CONFIG) - 1,
                                     .image_id = OWN("sha256:1"),
                                     .image_ref = OWN("r@sha256:2"),
                                     .stop_signal = OWN("SIGRTMIN+3"),
                                     .created_at = created,
                                     .started_at = INT64_MAX,
                                     .finished_at = -1,
                                     .exit_code = UINT32_MAX,
                                     .reason = OWN("Error"),
                                     .message = OWN("m"),
                                     .log_path = OWN("/l"),
                                     .stdin_id = 1,
                                     .stdout_id = 2,
                                     .stderr_id = UINT32_MAX,
                                     .uid = UINT32_MAX - 1,
                                     .gid = 7,
                                     .groups = OWN("1 2 3")};
}

static size_t count(struct records *r, size_t *containers)
{
    struct sandbox_record *s = NULL;
    struct container_record *c = NULL;
    size_t n = 0;
    assert_int_equal(records_load_sandboxes(r, &s, &n, NULL), 0);
    assert_int_equal(records_load_containers(r, &c, containers, NULL), 0);
    for (size_t i = 0; i < n; i++)
        sandbox_record_clear(&s[i]);
    for (size_t i = 0; i < *containers; i++)
        container_record_clear(&c[i]);
    free(s);
    free(c);
    return n;
}

static void test_everything_comes_back(void **state)
{
    (void)state;
    struct records *r = open_db();
    struct sandbox_record s2 = a_sandbox("s2", 200);
    struct sandbox_record s1 = a_sandbox("s1", 100);
    struct sandbox_record empty = {.id = OWN("s0"), .created_at = 1};
    struct container_record c = a_container("c1", "s1", 5);
    assert_int_equal(records_put_sandbox(r, &s2, NULL), 0);
    assert_int_equal(records_put_sandbox(r, &s1, NULL), 0);
    assert_int_equal(records_put_sandbox(r, &empty, NULL), 0);
    assert_int_equal(records_put_container(r, &c, NULL), 0);
    records_close(r);
    r = open_db();
    struct sandbox_record *ss = NULL;
    struct container_record *cs = NULL;
    size_t n = 0;
    assert_int_equal(records_load_sandboxes(r, &ss, &n, NULL), 0);
    assert_int_equal(n, 3);
    assert_string_equal(ss[0].id, "s0"); /* oldest first */
    assert_string_equal(ss[0].reason, "");
    assert_string_equal(ss[0].netns, "");
    assert_int_equal(ss[0].config_len, 0);
    assert_non_null(ss[0].config);
    assert_string_equal(ss[2].id, "s2");
    const struct sandbox_record *s = &ss[1];
    assert_string_equal(s->id, "s1");
    assert_int_equal(s->phase, SANDBOX_READY);
    assert_int_equal(s->config_len, sizeof(CONFIG) - 1);
    assert_memory_equal(s->config, CONFIG, sizeof(CONFIG) - 1);
    assert_int_equal(s->created_at, 100);
    assert_string_equal(s->boot_id, "boot");
    assert_string_equal(s->netns, "/run/netns/x'y");
    assert_string_equal(s->net, "{\"a\":\"\u00fc\"}");
    assert_string_equal(s->machine, "{}");
    assert_true(s->net_up);
    assert_string_equal(s->reason, "because");
    for (size_t i = 0; i < n; i++)
        sandbox_record_clear(&ss[i]);
    free(ss);
    assert_int_equal(records_load_containers(r, &cs, &n, NULL), 0);
    assert_int_equal(n, 1);
    assert_string_equal(cs->id, "c1");
    assert_string_equal(cs->sandbox_id, "s1");
    assert_int_equal(cs->phase, CONTAINER_RUNNING);
    assert_memory_equal(cs->config, CONFIG, sizeof(CONFIG) - 1);
    assert_string_equal(cs->image_id, "sha256:1");
    assert_string_equal(cs->image_ref, "r@sha256:2");
    assert_string_equal(cs->stop_signal, "SIGRTMIN+3");
    assert_true(cs->started_at == INT64_MAX && cs->finished_at == -1 && cs->created_at == 5);
    assert_true(cs->exit_code == UINT32_MAX && cs->uid == UINT32_MAX - 1 && cs->gid == 7);
    assert_true(cs->stdin_id == 1 && cs->stdout_id == 2 && cs->stderr_id == UINT32_MAX);
    assert_string_equal(cs->reason, "Error");
    assert_string_equal(cs->message, "m");
    assert_string_equal(cs->log_path, "/l");
    assert_string_equal(cs->groups, "1 2 3");
    container_record_clear(cs);
    free(cs);
    records_close(r);
    records_close(NULL);
}

static void test_changes_and_removal(void **state)
{
    (void)state;
    struct records *r = open_db();
    size_t containers = 0;
    struct sandbox_record s = a_sandbox("s", 1);
    struct container_record c1 = a_container("c1", "s", 1);
    struct container_record c2 = a_container("c2", "s", 2);
    struct container_record other = a_container("c3", "t", 2);
    assert_int_equal(records_put_sandbox(r, &s, NULL), 0);
    s.phase = SANDBOX_NOTREADY;
    assert_int_equal(records_put_sandbox(r, &s, NULL), 0); /* replaces */
    assert_int_equal(records_put_container(r, &c1, NULL), 0);
    assert_int_equal(records_put_container(r, &c2, NULL), 0);
    assert_int_equal(records_put_container(r, &other, NULL), 0);
    assert_int_equal(count(r, &containers), 1);
    assert_int_equal(containers, 3);
    assert_int_equal(records_delete_container(r, "c1", NULL), 0);
    assert_int_equal(records_delete_container(r, "c1", NULL), 0);
    assert_int_equal(records_delete_sandbox(r, "s", NULL), 0); /* with c2 */
    assert_int_equal(count(r, &containers), 0);
    assert_int_equal(containers, 1);
    records_close(r);
}

/* What could not be deleted for lack of room goes with the next write. */
static void test_forgotten_when_there_was_no_room(void **state)
{
    (void)state;
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    struct rlimit tiny = {.rlim_cur = 1, .rlim_max = limit.rlim_max};
    (void)signal(SIGXFSZ, SIG_IGN);
    struct records *r = open_db();
    struct sandbox_record a = a_sandbox("a", 1);
    struct sandbox_record b = a_sandbox("b", 2);
    assert_int_equal(records_put_sandbox(r, &a, NULL), 0);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &tiny), 0);
    records_forget_sandbox(r, "a");
    assert_int_equal(records_put_sandbox(r, &b, NULL), -1);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    struct sandbox_record *found = NULL;
    size_t n = 0;
    assert_int_equal(records_put_sandbox(r, &b, NULL), 0);
    records_close(r);
    r = open_db();
    assert_int_equal(records_load_sandboxes(r, &found, &n, NULL), 0);
    assert_int_equal(n, 1);
    assert_string_equal(found[0].id, "b");
    sandbox_record_clear(&found[0]);
    free(found);
    records_close(r);
}

static void test_killed_after_writing(void **state)
{
    (void)state;
    for (int64_t i = 0; i < 20; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            char id[16];
            (void)snprintf(id, sizeof(id), "s%d", (int)i);
            struct sandbox_record s = a_sandbox(id, i);
            struct records *r = open_db();
            if (records_put_sandbox(r, &s, NULL) == 0)
                (void)kill(getpid(), SIGKILL);
            _exit(1);
        }
        int status = 0;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status));
        struct records *r = open_db();
        size_t containers = 0;
        assert_int_equal(count(r, &containers), i + 1);
        records_close(r);
    }
}

static void fill(void)
{
    struct records *r = open_db();
    for (int i = 0; i < 200; i++) {
        char id[16];
        (void)snprintf(id, sizeof(id), "s%d", i);
        struct sandbox_record s = a_sandbox(id, i);
        assert_int_equal(records_put_sandbox(r, &s, NULL), 0);
    }
    records_close(r);
}

static void assert_moved_aside_and_new(void)
{
    auto_err struct err err = ERR_INIT;
    auto_free char *moved = NULL;
    size_t containers = 0;
    struct records *r = records_open("state.db", &moved, &err);
    assert_non_null(r);
    assert_non_null(moved);
    assert_true(str_starts(moved, "state.db.damaged-"));
    assert_true(fs_exists(moved));
    assert_int_equal(count(r, &containers), 0);
    struct sandbox_record s = a_sandbox("new", 1);
    assert_int_equal(records_put_sandbox(r, &s, NULL), 0);
    records_close(r);
    r = open_db();
    assert_int_equal(count(r, &containers), 1);
    records_close(r);
    assert_int_equal(unlink(moved), 0);
    assert_int_equal(unlink("state.db"), 0);
}

static void test_damaged_files_are_moved_aside(void **state)
{
    (void)state;
    /* no database at all */
    char junk[8192];
    memset(junk, 'j', sizeof(junk));
    assert_int_equal(fs_write_atomic("state.db", junk, sizeof(junk), 0600, false, NULL), 0);
    assert_moved_aside_and_new();
    /* cut in half */
    fill();
    struct stat st;
    assert_int_equal(stat("state.db", &st), 0);
    assert_true(st.st_size > 16384);
    assert_int_equal(truncate("state.db", st.st_size / 2 / 4096 * 4096), 0);
    assert_moved_aside_and_new();
    /* pages overwritten, the head intact */
    fill();
    size_t len = 0;
    auto_free char *text = fs_read("state.db", 1 << 20, &len, NULL);
    for (size_t at = 4096; at < len; at++)
        text[at] = (char)~text[at];
    assert_int_equal(fs_write("state.db", text, len, NULL), 0);
    assert_moved_aside_and_new();
    /* an empty file is a new one */
    assert_int_equal(fs_write_atomic("state.db", "", 0, 0600, false, NULL), 0);
    struct records *r = open_db();
    records_close(r);
}

/* A flipped bit may pass unseen, be an error or cost the file; it must not be a crash. */
static void test_flipped_bits(void **state)
{
    (void)state;
    fill();
    size_t len = 0;
    auto_free char *good = fs_read("state.db", 1 << 20, &len, NULL);
    for (size_t at = 0; at < len; at += at < 200 ? 1 : 397) {
        auto_err struct err err = ERR_INIT;
        auto_free char *moved = NULL;
        good[at] = (char)(good[at] ^ 0x10);
        assert_int_equal(fs_write_atomic("state.db", good, len, 0600, false, NULL), 0);
        good[at] = (char)(good[at] ^ 0x10);
        struct records *r = records_open("state.db", &moved, &err);
        struct sandbox_record *s = NULL;
        size_t n = 0;
        if (r != NULL)
            (void)records_load_sandboxes(r, &s, &n, NULL);
        for (size_t i = 0; i < n; i++)
            sandbox_record_clear(&s[i]);
        free(s);
        records_close(r);
        if (moved != NULL)
            assert_int_equal(unlink(moved), 0);
        (void)unlink("state.db-wal");
        (void)unlink("state.db-shm");
    }
}

static void test_newer_schema_is_refused_and_kept(void **state)
{
    (void)state;
    fill();
    sqlite3 *db = NULL;
    assert_int_equal(sqlite3_open("state.db", &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "PRAGMA user_version=99", NULL, NULL, NULL), SQLITE_OK);
    (void)sqlite3_close(db);
    auto_err struct err err = ERR_INIT;
    char *moved = NULL;
    assert_null(records_open("state.db", &moved, &err));
    assert_null(moved);
    assert_int_equal(err.code, ERR_PRECONDITION);
    assert_non_null(strstr(err_msg(&err), "newer"));
    assert_non_null(strstr(err_msg(&err), "99"));
    assert_true(fs_exists("state.db"));
    assert_int_equal(sqlite3_open("state.db", &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "PRAGMA user_version=1", NULL, NULL, NULL), SQLITE_OK);
    (void)sqlite3_close(db);
    struct records *r = open_db();
    size_t containers = 0;
    assert_int_equal(count(r, &containers), 200);
    records_close(r);
}

static void test_what_cannot_be_opened(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    char *moved = NULL;
    assert_null(records_open("no/such/dir/state.db", &moved, &err));
    assert_null(moved);
    assert_non_null(strstr(err_msg(&err), "records"));
    assert_int_equal(mkdir("state.db", 0700), 0);
    assert_null(records_open("state.db", &moved, NULL));
    assert_true(fs_exists("state.db"));
}

struct writer {
    struct records *r;
    int number;
};

static void *write_many(void *arg)
{
    const struct writer *w = arg;
    for (int i = 0; i < 50; i++) {
        char id[32];
        (void)snprintf(id, sizeof(id), "s%d-%d", w->number, i);
        struct sandbox_record s = a_sandbox(id, i);
        struct container_record c = a_container(id, id, i);
        size_t containers = 0;
        if (records_put_sandbox(w->r, &s, NULL) < 0 || records_put_container(w->r, &c, NULL) < 0)
            abort();
        if (i % 2 == 0 && records_delete_sandbox(w->r, id, NULL) < 0)
            abort();
        if (i % 10 == 0)
            (void)count(w->r, &containers);
    }
    return NULL;
}

static void test_many_threads(void **state)
{
    (void)state;
    struct records *r = open_db();
    pthread_t t[4];
    struct writer w[4];
    for (int i = 0; i < 4; i++) {
        w[i] = (struct writer){r, i};
        assert_int_equal(pthread_create(&t[i], NULL, write_many, &w[i]), 0);
    }
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_join(t[i], NULL), 0);
    size_t containers = 0;
    assert_int_equal(count(r, &containers), 100);
    assert_int_equal(containers, 100);
    records_close(r);
}

/* --- oplock --- */

struct contest {
    struct oplock lock;
    int inside, entered; /* guarded by the lock */
};

static void *enter_often(void *arg)
{
    struct contest *c = arg;
    for (int i = 0; i < 2000; i++) {
        if (oplock_take(&c->lock, NULL, NULL) < 0)
            abort();
        if (c->inside++ != 0)
            abort();
        c->entered++;
        c->inside--;
        oplock_release(&c->lock);
    }
    return NULL;
}

static void test_oplock_excludes(void **state)
{
    (void)state;
    struct contest c = {0};
    assert_int_equal(oplock_init(&c.lock, NULL), 0);
    pthread_t t[3];
    for (size_t i = 0; i < ARRAY_LEN(t); i++)
        assert_int_equal(pthread_create(&t[i], NULL, enter_often, &c), 0);
    for (size_t i = 0; i < ARRAY_LEN(t); i++)
        assert_int_equal(pthread_join(t[i], NULL), 0);
    assert_int_equal(c.entered, 6000);
    oplock_destroy(&c.lock);
}

static int take_and_hold(struct oplock *l, struct cancel *cancel, struct err *err)
{
    if (oplock_take(l, cancel, err) < 0)
        return -1;
    auto_oplock struct oplock *held = l;
    return 7;
}

static void test_oplock_is_given_up_at_the_deadline(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    struct oplock l;
    assert_int_equal(oplock_init(&l, &err), 0);
    assert_int_equal(take_and_hold(&l, NULL, &err), 7);
    assert_int_equal(take_and_hold(&l, NULL, &err), 7); /* released at the end of the scope */
    assert_int_equal(oplock_take(&l, NULL, &err), 0);
    auto_cancel struct cancel *c = cancel_new(mono_ns() + 20000000, NULL);
    assert_int_equal(take_and_hold(&l, c, &err), -1);
    assert_int_equal(err.code, ERR_DEADLINE);
    oplock_release(&l);
    assert_int_equal(take_and_hold(&l, NULL, &err), 7);
    oplock_destroy(&l);
}

#define IN_DIR(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_DIR(test_everything_comes_back),
        IN_DIR(test_changes_and_removal),
        IN_DIR(test_forgotten_when_there_was_no_room),
        IN_DIR(test_killed_after_writing),
        IN_DIR(test_damaged_files_are_moved_aside),
        IN_DIR(test_flipped_bits),
        IN_DIR(test_newer_schema_is_refused_and_kept),
        IN_DIR(test_what_cannot_be_opened),
        IN_DIR(test_many_threads),
        cmocka_unit_test(test_oplock_excludes),
        cmocka_unit_test(test_oplock_is_given_up_at_the_deadline),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
