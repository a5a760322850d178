/* cri/container_log with the link replaced by a tape: every byte once and in order, whatever dies,
 * fills up or is renamed in between. */
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
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

#include "base/buf.h"
#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "cri/container_log.h"

/* --- the link, replaced --- */

struct stream {
    struct stream_callbacks cb;
    uint64_t opened_at;
    _Atomic uint64_t acked;
    bool open;
};
static struct stream streams[3]; /* by id: 1 stdout, 2 stderr */
static bool refuse;

struct stream *stream_open_output(struct link *l, uint32_t id, uint64_t offset,
                                  const struct stream_callbacks *cb, struct err *err)
{
    (void)l;
    if (refuse) {
        (void)err_set(err, ERR_UNAVAILABLE, "refused");
        return NULL;
    }
    assert_true(id == 1 || id == 2);
    assert_false(streams[id].open);
    streams[id].cb = *cb;
    streams[id].opened_at = offset;
    streams[id].open = true;
    return &streams[id];
}

void stream_ack(struct stream *s, uint64_t offset)
{
    assert_true(s->open);
    assert_true(offset >= s->acked);
    s->acked = offset;
}

void stream_close(struct stream *s)
{
    assert_true(s->open);
    s->open = false;
}

static void data(unsigned id, uint64_t offset, const void *bytes, size_t len)
{
    streams[id].cb.on_data(streams[id].cb.arg, offset, bytes, len);
}

/* --- fixture --- */

static char dir[64];
static struct loop *loop;
static int done;

static void on_done(void *arg)
{
    (void)arg;
    done++;
}

static int set_up(void **state)
{
    (void)state;
    (void)strcpy(dir, "/tmp/aspis-log-XXXXXX");
    loop = loop_new(NULL);
    loop_turn(loop, 0); /* from now on this thread is the loop's */
    done = 0;
    refuse = false;
    memset(streams, 0, sizeof(streams));
    return mkdtemp(dir) == NULL ? -1 : chdir(dir);
}

static int tear_down(void **state)
{
    (void)state;
    loop_free(loop);
    return chdir("/") < 0 ? -1 : fs_rm_rf(dir, NULL);
}

static struct container_log *open_log(const char *path)
{
    struct container_log_options o = {
        .path = path, .state_path = "state", .container_id = "c", .io = loop, .on_done = on_done};
    struct err err = ERR_INIT;
    struct container_log *l = container_log_open(&o, &err);
    if (l == NULL)
        fail_msg("%s", err_msg(&err));
    return l;
}

static struct container_log *open_and_attach(const char *path)
{
    struct container_log *l = open_log(path);
    memset(streams, 0, sizeof(streams));
    assert_int_equal(container_log_attach(l, NULL, 1, 2, NULL), 0);
    return l;
}

/* "stdout F text|stderr P text|..." : the log without its times, whose form is checked */
static char *records_of(const char *path)
{
    auto_buf struct buf out = BUF_INIT(MiB(64));
    size_t len = 0;
    auto_free char *text = fs_read(path, MiB(64), &len, NULL);
    assert_non_null(text);
    for (char *at = text; at < text + len;) {
        char *nl = memchr(at, '\n', (size_t)(text + len - at));
        assert_non_null(nl); /* no half record */
        assert_int_equal(at[4], '-');
        assert_int_equal(at[19], '.');
        assert_memory_equal(at + 29, "Z ", 2);
        (void)buf_append(&out, at + 31, (size_t)(nl - at) - 31);
        (void)buf_putc(&out, '|');
        at = nl + 1;
    }
    return buf_take(&out);
}

static void assert_records(const char *path, const char *want)
{
    auto_free char *got = records_of(path);
    assert_string_equal(got, want);
}

/* The bytes that one stream wrote. */
static void decode(const char *path, const char *stream, struct buf *out)
{
    size_t len = 0;
    auto_free char *text = fs_read(path, MiB(64), &len, NULL);
    assert_non_null(text);
    size_t n = strlen(stream);
    for (char *at = text; at < text + len;) {
        char *nl = memchr(at, '\n', (size_t)(text + len - at));
        assert_non_null(nl);
        char *rest = at + 31;
        if (strncmp(rest, stream, n) == 0) {
            assert_int_equal(rest[n], ' ');
            assert_true(rest[n + 1] == 'F' || rest[n + 1] == 'P');
            (void)buf_append(out, rest + n + 3, (size_t)(nl - rest) - n - 3);
            if (rest[n + 1] == 'F')
                (void)buf_putc(out, '\n');
        }
        at = nl + 1;
    }
}

/* --- tests --- */

static void test_lines_and_ends(void **state)
{
    (void)state;
    struct container_log *l = open_and_attach("log");
    data(1, 0, "one\ntw", 6);
    assert_records("log", "stdout F one|");
    assert_int_equal(streams[1].acked, 4); /* not what is held back */
    data(2, 0, "err\n\n", 5);
    data(1, 6, "o\nrest", 6);
    assert_records("log", "stdout F one|stderr F err|stderr F |stdout F two|");
    streams[1].cb.on_eof(streams[1].cb.arg, 12);
    assert_int_equal(done, 0);
    assert_int_equal(streams[1].acked, 12);
    streams[2].cb.on_eof(streams[2].cb.arg, 5);
    assert_int_equal(done, 1);
    assert_records("log", "stdout F one|stderr F err|stderr F |stdout F two|stdout F rest|");
    container_log_close(l);
    assert_false(streams[1].open || streams[2].open);
    assert_int_equal(done, 1);
    container_log_close(NULL);
}

static void test_long_lines_are_cut(void **state)
{
    (void)state;
    struct container_log *l = open_and_attach("log");
    size_t len = 2 * LIMIT_LOG_LINE + 10;
    auto_free char *big = xcalloc(len + 1, 1);
    memset(big, 'a', len);
    big[len] = '\n';
    /* in odd pieces */
    for (size_t at = 0; at < len + 1; at += 777)
        data(1, at, big + at, len + 1 - at < 777 ? len + 1 - at : 777);
    assert_int_equal(streams[1].acked, len + 1);
    auto_free char *got = records_of("log");
    assert_int_equal(strlen(got), len + 3 * strlen("stdout P |"));
    assert_memory_equal(got, "stdout P aaa", 12);
    assert_memory_equal(got + LIMIT_LOG_LINE + 10, "stdout P aaa", 12);
    assert_memory_equal(got + 2 * (LIMIT_LOG_LINE + 10), "stdout F aaaaaaaaaa|", 20);
    container_log_close(l);
}

static void test_bytes_of_any_kind(void **state)
{
    (void)state;
    struct container_log *l = open_and_attach("log");
    char all[257];
    for (int i = 0; i < 256; i++)
        all[i] = (char)i;
    all[256] = '\n';
    data(1, 0, all, 257);
    auto_buf struct buf out = BUF_INIT(1000);
    decode("log", "stdout", &out);
    assert_int_equal(out.len, 257);
    assert_memory_equal(out.data, all, 257);
    container_log_close(l);
}

static void test_reset_and_missing_streams(void **state)
{
    (void)state;
    /* a terminal has no stderr */
    struct container_log *l = open_log("log");
    assert_int_equal(container_log_attach(l, NULL, 1, 0, NULL), 0);
    data(1, 0, "half", 4);
    streams[1].cb.on_reset(streams[1].cb.arg, "gone");
    assert_int_equal(done, 1);
    assert_records("log", "stdout F half|");
    container_log_close(l);
    refuse = true;
    auto_err struct err err = ERR_INIT;
    l = open_log("log");
    assert_int_equal(container_log_attach(l, NULL, 1, 2, &err), -1);
    assert_non_null(strstr(err_msg(&err), "read stdout"));
    container_log_close(l);
}

static void test_no_log_is_read_and_thrown_away(void **state)
{
    (void)state;
    struct container_log *l = open_and_attach("");
    data(1, 0, "half", 4);
    assert_int_equal(streams[1].acked, 4);
    streams[1].cb.on_eof(streams[1].cb.arg, 4);
    streams[2].cb.on_eof(streams[2].cb.arg, 0);
    assert_int_equal(done, 1);
    assert_int_equal(container_log_reopen(l, NULL), 0);
    container_log_close(l);
}

static void test_dead_machine(void **state)
{
    (void)state;
    struct container_log *l = open_and_attach("log");
    data(1, 0, "last words", 10);
    data(2, 0, "oops", 4);
    assert_records("log", "");
    container_log_flush(l);
    assert_records("log", "stdout F last words|stderr F oops|");
    container_log_flush(l);
    assert_records("log", "stdout F last words|stderr F oops|");
    container_log_close(l);
}

static void test_only_regular_files(void **state)
{
    (void)state;
    struct container_log_options o = {.state_path = "state", .container_id = "c", .io = loop};
    auto_err struct err err = ERR_INIT;
    assert_int_equal(symlink("/etc/passwd", "link"), 0);
    assert_int_equal(mkfifo("fifo", 0600), 0);
    assert_int_equal(mkdir("sub", 0700), 0);
    static const char *const bad[] = {"link", "fifo", "sub", "/dev/null", "no/such/dir"};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        o.path = bad[i];
        assert_null(container_log_open(&o, &err));
        assert_non_null(strstr(err_msg(&err), bad[i]));
    }
}

static void test_rotation(void **state)
{
    (void)state;
    struct container_log *l = open_and_attach("log");
    data(1, 0, "one\ntw", 6);
    assert_int_equal(rename("log", "log.1"), 0);
    data(1, 6, "o\nth", 4); /* until reopened into the old one */
    assert_int_equal(container_log_reopen(l, NULL), 0);
    data(1, 10, "ree\n", 4);
    assert_records("log.1", "stdout F one|stdout F two|");
    assert_records("log", "stdout F three|");
    /* nothing was renamed: goes on */
    assert_int_equal(container_log_reopen(l, NULL), 0);
    data(1, 14, "four\n", 5);
    assert_records("log", "stdout F three|stdout F four|");
    /* the directory is gone: the old file stays in use */
    assert_int_equal(mkdir("moved", 0700), 0);
    auto_err struct err err = ERR_INIT;
    assert_int_equal(rename("log", "moved/log"), 0);
    assert_int_equal(symlink("/nonexistent/x", "log"), 0);
    assert_int_equal(container_log_reopen(l, &err), -1);
    data(1, 19, "five\n", 5);
    assert_records("moved/log", "stdout F three|stdout F four|stdout F five|");
    container_log_close(l);
}

static void test_restart_between_rotation_and_reopen(void **state)
{
    (void)state;
    struct container_log *l = open_and_attach("log");
    data(1, 0, "one\n", 4);
    container_log_close(l);
    assert_int_equal(rename("log", "log.1"), 0);
    /* somebody else's file of the same name is not cut */
    assert_int_equal(fs_write_atomic("log", "other\n", 6, 0600, false, NULL), 0);
    l = open_and_attach("log");
    assert_int_equal(streams[1].opened_at, 4);
    data(1, 4, "two\n", 4);
    auto_free char *text = fs_read("log", 1000, NULL, NULL);
    assert_true(str_starts(text, "other\n") && str_ends(text, " stdout F two\n"));
    container_log_close(l);
}

static char *slurp(const char *path, size_t *len)
{
    char *text = fs_read(path, MiB(4), len, NULL);
    assert_non_null(text);
    return text;
}

/* Killed within the write of a batch, after any byte of it, and after the write before the state is
 * changed: what the log holds too much is cut off, the agent's bytes come again. */
static void test_killed_at_any_byte(void **state)
{
    (void)state;
    struct container_log *l = open_and_attach("log");
    data(1, 0, "first\n", 6);
    data(2, 0, "e\n", 2);
    size_t state_len = 0;
    size_t old_len = 0;
    size_t new_len = 0;
    auto_free char *old_state = slurp("state", &state_len);
    struct stat st;
    assert_int_equal(stat("log", &st), 0);
    old_len = (size_t)st.st_size;
    data(1, 6, "second\nthird\n", 13);
    container_log_close(l);
    auto_free char *log = slurp("log", &new_len);
    for (size_t cut = old_len; cut <= new_len; cut++) {
        assert_int_equal(truncate("log", 0), 0);
        assert_int_equal(fs_write("log", log, cut, NULL), 0); /* the same inode */
        assert_int_equal(fs_write("state", old_state, state_len, NULL), 0);
        l = open_and_attach("log");
        assert_int_equal(streams[1].opened_at, 6);
        assert_int_equal(streams[2].opened_at, 2);
        data(1, 6, "second\nthird\n", 13);
        container_log_close(l);
        assert_records("log", "stdout F first|stderr F e|stdout F second|stdout F third|");
    }
}

/* Byte i of the tape: numbered lines, every 40th longer than one record. */
static struct buf tape = BUF_INIT(MiB(4));

static void make_tape(size_t lines)
{
    buf_reset(&tape);
    for (size_t i = 0; i < lines; i++)
        (void)buf_printf(&tape, "line %zu %*s\n", i, i % 40 == 7 ? 40000 : (int)(i % 50), "x");
    assert_true(buf_ok(&tape));
}

/* Plays from where the log asks for, as the agent does, in pieces of changing size. */
static void play(size_t limit)
{
    size_t at = streams[1].opened_at;
    for (unsigned step = 1; at < tape.len && limit-- > 0; step++) {
        size_t n = step * 2654435761U % 5000 + 1;
        n = n < tape.len - at ? n : tape.len - at;
        data(1, at, tape.data + at, n);
        at += n;
    }
}

static void test_killed_at_random(void **state)
{
    (void)state;
    make_tape(4000);
    int killed = 0;
    uint64_t reached = 0;
    for (int round = 0; round < 400 && reached < tape.len; round++) {
        pid_t pid = fork();
        if (pid == 0) {
            (void)open_and_attach("log");
            play(SIZE_MAX);
            _exit(0);
        }
        /* killed between now and soon; every round must be able to make some way */
        struct timespec ts = {.tv_nsec = 1000000 + (round * 7919L) % 3000 * 1000};
        sigset_t child;
        (void)sigemptyset(&child);
        (void)sigaddset(&child, SIGCHLD);
        (void)sigtimedwait(&child, NULL, &ts);
        (void)kill(pid, SIGKILL);
        int status = 0;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        if (WIFEXITED(status))
            assert_int_equal(WEXITSTATUS(status), 0);
        killed += WIFSIGNALED(status);
        struct container_log *l = open_and_attach("log");
        assert_true(streams[1].opened_at >= reached);
        reached = streams[1].opened_at;
        play(3);
        container_log_close(l);
    }
    struct container_log *l = open_and_attach("log");
    play(SIZE_MAX);
    container_log_close(l);
    assert_true(killed > 0);
    auto_buf struct buf got = BUF_INIT(MiB(8));
    decode("log", "stdout", &got);
    assert_int_equal(got.len, tape.len);
    assert_memory_equal(got.data, tape.data, tape.len);
}

static void test_damaged_state(void **state)
{
    (void)state;
    struct container_log *l = open_and_attach("log");
    data(1, 0, "one\n", 4);
    container_log_close(l);
    char junk[200];
    memset(junk, 0xee, sizeof(junk));
    assert_int_equal(fs_write("state", junk, sizeof(junk), NULL), 0);
    l = open_and_attach("log");
    assert_int_equal(streams[1].opened_at, 0);
    data(1, 0, "again\n", 6);
    container_log_close(l);
    /* what cannot be known is not cut */
    assert_records("log", "stdout F one|stdout F again|");
    assert_int_equal(truncate("state", 3), 0);
    l = open_and_attach("log");
    assert_int_equal(streams[1].opened_at, 0);
    container_log_close(l);
}

/* A full disk holds the output back and loses nothing. */
static void test_full_disk(void **state)
{
    (void)state;
    struct rlimit limit;
    (void)signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    struct rlimit tiny = {.rlim_cur = 8192, .rlim_max = limit.rlim_max};
    struct container_log *l = open_and_attach("log");
    make_tape(40);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &tiny), 0);
    size_t at = 0;
    for (; at + 1000 < tape.len; at += 1000)
        data(1, at, tape.data + at, 1000);
    data(1, at, tape.data + at, tape.len - at);
    uint64_t acked = streams[1].acked;
    streams[1].cb.on_eof(streams[1].cb.arg, tape.len);
    streams[2].cb.on_eof(streams[2].cb.arg, 0);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    assert_true(acked > 0 && acked < 8192);
    assert_int_equal(done, 0);
    free(records_of("log")); /* no half record */
    auto_buf struct buf got = BUF_INIT(MiB(4));
    decode("log", "stdout", &got);
    assert_int_equal(got.len, acked); /* acknowledged is what is in the file, no more and no less */
    int64_t end = mono_ns() + 20000000000LL;
    while (done == 0 && mono_ns() < end)
        loop_turn(loop, 1000);
    assert_int_equal(done, 1);
    assert_int_equal(streams[1].acked, tape.len);
    buf_reset(&got);
    decode("log", "stdout", &got);
    assert_int_equal(got.len, tape.len);
    assert_memory_equal(got.data, tape.data, tape.len);
    container_log_close(l);
}

/* Killed while the disk is full: nothing was acknowledged, so nothing is lost. */
static void test_full_disk_and_restart(void **state)
{
    (void)state;
    struct rlimit limit;
    (void)signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    struct rlimit tiny = {.rlim_cur = 8192, .rlim_max = limit.rlim_max};
    make_tape(40);
    struct container_log *l = open_and_attach("log");
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &tiny), 0);
    play(20);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
    container_log_close(l);
    l = open_and_attach("log");
    assert_true(streams[1].opened_at < 8192);
    play(SIZE_MAX);
    container_log_close(l);
    auto_buf struct buf got = BUF_INIT(MiB(4));
    decode("log", "stdout", &got);
    assert_int_equal(got.len, tape.len);
    assert_memory_equal(got.data, tape.data, tape.len);
}

static void *io_thread(void *arg)
{
    loop_run(arg);
    return NULL;
}

static void play_some(void *arg)
{
    size_t *at = arg;
    for (int i = 0; i < 20 && *at < tape.len; i++) {
        size_t n = tape.len - *at < 997 ? tape.len - *at : 997;
        data(1, *at, tape.data + *at, n);
        *at += n;
    }
}

static void test_rotated_from_another_thread(void **state)
{
    (void)state;
    make_tape(3000);
    struct container_log *l = open_and_attach("log");
    pthread_t t;
    assert_int_equal(pthread_create(&t, NULL, io_thread, loop), 0);
    size_t at = 0;
    int files = 0;
    char name[32];
    while (streams[1].acked < tape.len) {
        loop_post(loop, play_some, &at);
        if (files < 50) {
            (void)snprintf(name, sizeof(name), "log.%d", files++);
            assert_int_equal(rename("log", name), 0);
            assert_int_equal(container_log_reopen(l, NULL), 0);
        }
    }
    container_log_close(l);
    loop_stop(loop);
    assert_int_equal(pthread_join(t, NULL), 0);
    loop_turn(loop, 0);
    auto_buf struct buf got = BUF_INIT(MiB(8));
    for (int i = 0; i < files; i++) {
        (void)snprintf(name, sizeof(name), "log.%d", i);
        decode(name, "stdout", &got);
    }
    decode("log", "stdout", &got);
    assert_int_equal(got.len, tape.len);
    assert_memory_equal(got.data, tape.data, tape.len);
}

#define IN_DIR(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_DIR(test_lines_and_ends),
        IN_DIR(test_long_lines_are_cut),
        IN_DIR(test_bytes_of_any_kind),
        IN_DIR(test_reset_and_missing_streams),
        IN_DIR(test_no_log_is_read_and_thrown_away),
        IN_DIR(test_dead_machine),
        IN_DIR(test_only_regular_files),
        IN_DIR(test_rotation),
        IN_DIR(test_restart_between_rotation_and_reopen),
        IN_DIR(test_killed_at_any_byte),
        IN_DIR(test_killed_at_random),
        IN_DIR(test_damaged_state),
        IN_DIR(test_full_disk),
        IN_DIR(test_full_disk_and_restart),
        IN_DIR(test_rotated_from_another_thread),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    buf_clear(&tape);
    return failed;
}
