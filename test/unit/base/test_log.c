/* base/log: one line per message whatever the values hold; nothing in it moves a terminal. */
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"

static int real_stderr = -1;
static int memory = -1;

static int capture(void **state)
{
    (void)state;
    real_stderr = dup(2);
    memory = memfd_create("log", MFD_CLOEXEC);
    (void)fcntl(memory, F_SETFL, O_APPEND);
    return dup2(memory, 2) == 2 ? 0 : -1;
}

static int release(void **state)
{
    (void)state;
    (void)dup2(real_stderr, 2);
    (void)close(real_stderr);
    (void)close(memory);
    log_set_level(LOG_LEVEL_INFO);
    return 0;
}

/* What was written since the start; the caller's. */
static char *written(size_t *len)
{
    (void)lseek(memory, 0, SEEK_SET);
    return fs_read_fd(memory, 1 << 24, len, NULL);
}

/* The only line, without its time. */
static void assert_line(const char *want)
{
    size_t len = 0;
    auto_free char *text = written(&len);
    assert_true(len > 26);
    assert_int_equal(strlen(text), len);
    assert_ptr_equal(strchr(text, '\n'), text + len - 1);
    assert_int_equal(text[10], 'T');
    assert_int_equal(text[23], 'Z');
    text[len - 1] = '\0';
    assert_string_equal(text + 25, want);
    assert_int_equal(ftruncate(memory, 0), 0);
}

static void test_fields(void **state)
{
    (void)state;
    log_info("pod runs", LOG_STR("sandbox", "abc"), LOG_INT("ms", -5),
             LOG_STR("none", (char *)NULL), LOG_STR("spaced", "a b"), LOG_STR("quoted", "a\"b\\c"),
             LOG_STR("eq", "a=b"));
    assert_line("info  pod runs sandbox=abc ms=-5 none=\"\" spaced=\"a b\" quoted=\"a\\\"b\\\\c\" "
                "eq=\"a=b\"");
    log_error("bare");
    assert_line("error bare");
}

static void test_hostile_values(void **state)
{
    (void)state;
    log_warn("m", LOG_STR("v", "a\nfake line\r\x1b[2J\x7f\b"));
    assert_line("warn  m v=\"a\\nfake line\\x0d\\x1b[2J\\x7f\\x08\"");
    log_warn("two\nlines \x1b]0;title\a");
    assert_line("warn  two\\nlines \\x1b]0;title\\x07");
    log_warn("m", LOG_STR("v", "bytes \xff\xc3"));
    assert_line("warn  m v=\"bytes \\xff\\xc3\"");
    log_warn("m", LOG_STR("v", "gr\u00fc\u00df \u65e5"));
    assert_line("warn  m v=\"gr\u00fc\u00df \u65e5\"");
    /* U+009B begins a control sequence in one character */
    log_warn("m", LOG_STR("v", "\xc2\x9b"
                               "2J\xc2\xa0"));
    assert_line("warn  m v=\"\\xc2\\x9b2J\xc2\xa0\"");
}

static void test_levels(void **state)
{
    (void)state;
    enum log_level level = LOG_LEVEL_INFO;
    log_debug("unseen");
    size_t len = 1;
    free(written(&len));
    assert_int_equal(len, 0);
    assert_int_equal(log_level_parse("debug", &level), 0);
    assert_int_equal(level, LOG_LEVEL_DEBUG);
    assert_int_equal(log_level_parse("DEBUG", &level), -1);
    assert_int_equal(log_level_parse("", &level), -1);
    log_set_level(LOG_LEVEL_DEBUG);
    assert_true(log_enabled(LOG_LEVEL_DEBUG));
    log_debug("seen");
    assert_line("debug seen");
    log_set_level(LOG_LEVEL_ERROR);
    log_warn("unseen");
    free(written(&len));
    assert_int_equal(len, 0);
}

static void test_long_lines_are_cut_and_end(void **state)
{
    (void)state;
    auto_free char *big = xcalloc(200001, 1);
    memset(big, 'x', 200000);
    log_error(big, LOG_STR("k", big));
    size_t len = 0;
    auto_free char *text = written(&len);
    assert_true(len > 60000 && len <= 65536);
    assert_int_equal(text[len - 1], '\n');
    assert_int_equal(text[len - 2], 'x');
}

static void *talk(void *arg)
{
    for (int i = 0; i < 200; i++)
        log_info("thread", LOG_INT("n", (intptr_t)arg), LOG_STR("text", "one line is one write"));
    return NULL;
}

static void test_lines_of_threads_stay_whole(void **state)
{
    (void)state;
    pthread_t t[4];
    for (intptr_t i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&t[i], NULL, talk, (void *)i), 0);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(pthread_join(t[i], NULL), 0);
    auto_free char *text = written(NULL);
    int lines = 0;
    char *save = NULL;
    for (char *l = strtok_r(text, "\n", &save); l != NULL; l = strtok_r(NULL, "\n", &save)) {
        assert_true(str_starts(l + 24, " info  thread n="));
        assert_true(str_ends(l, "text=\"one line is one write\""));
        lines++;
    }
    assert_int_equal(lines, 800);
}

#define CAPTURED(f) cmocka_unit_test_setup_teardown(f, capture, release)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CAPTURED(test_fields),
        CAPTURED(test_hostile_values),
        CAPTURED(test_levels),
        CAPTURED(test_long_lines_are_cut_and_end),
        CAPTURED(test_lines_of_threads_stay_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
