/* aspisctl's streams: what the status says, which keys detach, how ports are written. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/cleanup.h"
#include "cri/ctl/forward.h"
#include "cri/ctl/stream.h"
#include "cri/ctl/terminal.h"

static int status(const char *json, int *code, struct err *err)
{
    return stream_status(json, strlen(json), code, err);
}

static void status_gives_the_exit_code(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    int code = -1;
    assert_int_equal(status("{\"metadata\":{},\"status\":\"Success\"}", &code, &err),
                     STREAM_SUCCESS);
    assert_int_equal(code, -1);
    assert_int_equal(
        status("{\"status\":\"Failure\",\"reason\":\"NonZeroExitCode\",\"message\":\"m\","
               "\"details\":{\"causes\":[{\"message\":\"x\"},{\"reason\":\"ExitCode\","
               "\"message\":\"137\"}]}}",
               &code, &err),
        STREAM_EXITED);
    assert_int_equal(code, 137);
}

static void other_statuses_are_errors(void **state)
{
    (void)state;
    static const struct {
        const char *json, *text;
    } bad[] = {
        {"", "without a status"},
        {"{", "without a status"},
        {"[]", "without a status"},
        {"{\"status\":7}", "without a status"},
        {"{\"status\":\"Failure\"}", "unexplained"},
        {"{\"status\":\"Failure\",\"message\":\"no such file\"}", "no such file"},
        {"{\"status\":\"Failure\",\"reason\":\"NonZeroExitCode\",\"message\":\"odd\"}", "odd"},
        {"{\"status\":\"Failure\",\"reason\":\"NonZeroExitCode\",\"message\":\"odd\",\"details\":"
         "{\"causes\":[{\"reason\":\"ExitCode\",\"message\":\"256\"},7,null]}}",
         "odd"},
    };
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        auto_err struct err err = ERR_INIT;
        int code = -1;
        assert_int_equal(status(bad[i].json, &code, &err), -1);
        assert_non_null(strstr(err_msg(&err), bad[i].text));
    }
}

static void ctrl_p_ctrl_q_detaches(void **state)
{
    (void)state;
    static const struct {
        const char *typed, *passed;
        bool detached, held;
    } cases[] = {
        {"ls\n", "ls\n", false, false},
        {"a\x10", "a", false, true},
        {"\x10\x11", "", true, false},
        {"a\x10\x11zz", "a", true, false},
        {"\x10x\x11", "\x10x\x11", false, false},
        {"\x10\x10\x11", "\x10", true, false},
        {"\x11\x10\x10", "\x11\x10", false, true},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        size_t len = strlen(cases[i].typed);
        /* all at once, and byte by byte */
        for (size_t step = len; step > 0; step = step > 1 ? 1 : 0) {
            struct detach d = {0};
            char out[32];
            size_t n = 0;
            bool detached = false;
            for (size_t at = 0; at < len && !detached; at += step)
                n += detach_filter(&d, cases[i].typed + at, step, out + n, &detached);
            assert_int_equal(detached, cases[i].detached);
            assert_int_equal(n, strlen(cases[i].passed));
            assert_memory_equal(out, cases[i].passed, n);
            if (!detached)
                assert_int_equal(d.held, cases[i].held);
        }
    }
}

static void ports_are_read(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        uint16_t local, remote;
    } good[] = {{"8080:80", 8080, 80},
                {"80", 80, 80},
                {":80", 0, 80},
                {"0:80", 0, 80},
                {"65535:1", 65535, 1}};
    static const char *const bad[] = {"",      ":",       "0",     "80:",  "80:0", "x",
                                      "65536", "1:65536", "1:2:3", "-1:2", " 1:2", "1 : 2"};
    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        struct forward_ports p;
        assert_int_equal(forward_parse(good[i].text, &p, NULL), 0);
        assert_int_equal(p.local, good[i].local);
        assert_int_equal(p.remote, good[i].remote);
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct forward_ports p;
        assert_int_equal(forward_parse(bad[i], &p, NULL), -1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(status_gives_the_exit_code),
        cmocka_unit_test(other_statuses_are_errors),
        cmocka_unit_test(ctrl_p_ctrl_q_detaches),
        cmocka_unit_test(ports_are_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
