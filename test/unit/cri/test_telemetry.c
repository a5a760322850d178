/* cri/telemetry: counts, and text that Prometheus reads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cri/telemetry.h"

static void has(const struct buf *b, const char *line)
{
    if (strstr(buf_str(b), line) == NULL)
        fail_msg("no line \"%s\" in:\n%s", line, buf_str(b));
}

static void test_text(void **state)
{
    (void)state;
    telemetry_call("Version", ERR_OK, 2000000);
    telemetry_call("Version", ERR_OK, 2000000000);
    telemetry_call("Version", ERR_NOT_FOUND, 70000000000);
    telemetry_call("Other", (enum err_code)99, 0);
    telemetry_machine_start(TELEMETRY_CLONED, 60000000);
    telemetry_machine_start(TELEMETRY_BOOTED, 900000000);
    telemetry_machine_start(TELEMETRY_SPARE, 5000000);
    telemetry_machine_start(TELEMETRY_FAILED, 0);
    telemetry_machine_death();
    telemetry_pull(true, 1000000, 12345);
    telemetry_pull(false, 1000000, 0);
    auto_buf struct buf b = BUF_INIT(1 << 20);
    telemetry_write(&b);
    telemetry_line(&b, "aspis_x", "gauge", "Help.", "a=\"b\"", 0.5);
    assert_true(buf_ok(&b));
    has(&b, "# TYPE aspis_calls_total counter\n");
    has(&b, "aspis_calls_total{method=\"Version\",code=\"OK\"} 2\n");
    has(&b, "aspis_calls_total{method=\"Version\",code=\"NOT_FOUND\"} 1\n");
    has(&b, "aspis_calls_total{method=\"Other\",code=\"UNKNOWN\"} 1\n");
    has(&b, "# TYPE aspis_call_seconds histogram\n");
    has(&b, "aspis_call_seconds_bucket{method=\"Version\",le=\"0.001\"} 0\n");
    has(&b, "aspis_call_seconds_bucket{method=\"Version\",le=\"0.005\"} 1\n");
    has(&b, "aspis_call_seconds_bucket{method=\"Version\",le=\"5\"} 2\n");
    has(&b, "aspis_call_seconds_bucket{method=\"Version\",le=\"60\"} 2\n");
    has(&b, "aspis_call_seconds_bucket{method=\"Version\",le=\"+Inf\"} 3\n");
    has(&b, "aspis_call_seconds_count{method=\"Version\"} 3\n");
    has(&b, "aspis_call_seconds_sum{method=\"Version\"} 72.002\n");
    has(&b, "aspis_machine_starts_total{how=\"cloned\"} 1\n");
    has(&b, "aspis_machine_starts_total{how=\"spare\"} 1\n");
    has(&b, "aspis_machine_start_seconds_bucket{how=\"booted\",le=\"1\"} 1\n");
    has(&b, "aspis_machine_start_failures_total 1\n");
    has(&b, "aspis_machine_deaths_total 1\n");
    has(&b, "aspis_image_pulls_total{result=\"ok\"} 1\n");
    has(&b, "aspis_image_pulls_total{result=\"failed\"} 1\n");
    has(&b, "aspis_image_pulled_bytes_total 12345\n");
    has(&b, "aspis_image_pull_seconds_count 1\n");
    has(&b, "# HELP aspis_x Help.\n# TYPE aspis_x gauge\naspis_x{a=\"b\"} 0.5\n");
}

/* More methods than there is room for are not counted, and harm nothing. */
static void test_many_methods(void **state)
{
    (void)state;
    static char names[200][24];
    for (int i = 0; i < 200; i++) {
        (void)snprintf(names[i], sizeof(names[i]), "Method%d", i);
        telemetry_call(names[i], ERR_OK, 1);
    }
    auto_buf struct buf b = BUF_INIT(1 << 20);
    telemetry_write(&b);
    assert_true(buf_ok(&b));
    has(&b, "method=\"Method50\"");
    assert_null(strstr(buf_str(&b), "method=\"Method199\""));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_many_methods),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
