#include "cri/telemetry.h"

#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"

#define METHODS_MAX 96
#define CODES 17

static const double bounds[] = {0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60};
#define BUCKETS (sizeof(bounds) / sizeof(bounds[0]) + 1)

struct histogram {
    uint64_t buckets[BUCKETS]; /* not cumulated */
    uint64_t count;
    double sum;
};

struct method_row {
    const char *name;
    uint64_t codes[CODES];
    struct histogram time;
};

static struct {
    pthread_mutex_t lock;
    struct method_row methods[METHODS_MAX];
    size_t n_methods;
    struct histogram starts[TELEMETRY_FAILED];
    uint64_t start_failures, deaths;
    uint64_t pulls[2]; /* failed, done */
    struct histogram pull_time;
    uint64_t pulled_bytes;
} t = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void observe(struct histogram *h, int64_t ns)
{
    double seconds = (double)ns / 1e9;
    size_t i = 0;
    while (i < ARRAY_LEN(bounds) && seconds > bounds[i])
        i++;
    h->buckets[i]++;
    h->count++;
    h->sum += seconds;
}

void telemetry_call(const char *method, enum err_code code, int64_t ns)
{
    (void)pthread_mutex_lock(&t.lock);
    size_t i = 0;
    while (i < t.n_methods && strcmp(t.methods[i].name, method) != 0)
        i++;
    if (i == t.n_methods && i < METHODS_MAX)
        t.methods[t.n_methods++].name = method;
    if (i < t.n_methods) {
        t.methods[i].codes[(unsigned)code < CODES ? (unsigned)code : ERR_UNKNOWN]++;
        observe(&t.methods[i].time, ns);
    }
    (void)pthread_mutex_unlock(&t.lock);
}

void telemetry_machine_start(enum telemetry_start how, int64_t ns)
{
    (void)pthread_mutex_lock(&t.lock);
    if (how == TELEMETRY_FAILED)
        t.start_failures++;
    else
        observe(&t.starts[how], ns);
    (void)pthread_mutex_unlock(&t.lock);
}

void telemetry_machine_death(void)
{
    (void)pthread_mutex_lock(&t.lock);
    t.deaths++;
    (void)pthread_mutex_unlock(&t.lock);
}

void telemetry_pull(bool ok, int64_t ns, uint64_t bytes)
{
    (void)pthread_mutex_lock(&t.lock);
    t.pulls[ok]++;
    t.pulled_bytes += bytes;
    if (ok)
        observe(&t.pull_time, ns);
    (void)pthread_mutex_unlock(&t.lock);
}

/* --- text --- */

static void head(struct buf *out, const char *name, const char *type, const char *help)
{
    (void)buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

void telemetry_line(struct buf *out, const char *name, const char *type, const char *help,
                    const char *labels, double value)
{
    if (help != NULL)
        head(out, name, type, help);
    if (labels != NULL)
        (void)buf_printf(out, "%s{%s} %.15g\n", name, labels, value);
    else
        (void)buf_printf(out, "%s %.15g\n", name, value);
}

/* labels: as above, or NULL. */
static void write_histogram(struct buf *out, const char *name, const char *labels,
                            const struct histogram *h)
{
    const char *comma = labels != NULL ? "," : "";
    const char *inner = labels != NULL ? labels : "";
    uint64_t sum = 0;
    for (size_t i = 0; i < BUCKETS; i++) {
        char le[16] = "+Inf";
        if (i < ARRAY_LEN(bounds))
            (void)snprintf(le, sizeof(le), "%g", bounds[i]);
        sum += h->buckets[i];
        (void)buf_printf(out, "%s_bucket{%s%sle=\"%s\"} %llu\n", name, inner, comma, le,
                         (unsigned long long)sum);
    }
    const char *open = labels != NULL ? "{" : "";
    const char *close = labels != NULL ? "}" : "";
    (void)buf_printf(out, "%s_sum%s%s%s %.9g\n%s_count%s%s%s %llu\n", name, open, inner, close,
                     h->sum, name, open, inner, close, (unsigned long long)h->count);
}

static void write_calls(struct buf *out)
{
    char labels[128];
    head(out, "aspis_calls_total", "counter", "Calls of clients by method and gRPC code.");
    for (size_t i = 0; i < t.n_methods; i++) {
        for (unsigned c = 0; c < CODES; c++) {
            if (t.methods[i].codes[c] == 0)
                continue;
            (void)snprintf(labels, sizeof(labels), "method=\"%.60s\",code=\"%s\"",
                           t.methods[i].name, err_code_name((enum err_code)c));
            telemetry_line(out, "aspis_calls_total", NULL, NULL, labels,
                           (double)t.methods[i].codes[c]);
        }
    }
    head(out, "aspis_call_seconds", "histogram", "How long calls took.");
    for (size_t i = 0; i < t.n_methods; i++) {
        (void)snprintf(labels, sizeof(labels), "method=\"%.60s\"", t.methods[i].name);
        write_histogram(out, "aspis_call_seconds", labels, &t.methods[i].time);
    }
}

static void write_machines(struct buf *out)
{
    static const char name[] = "aspis_machine_starts_total";
    telemetry_line(out, name, "counter", "VMs started, by the way it was done.", "how=\"booted\"",
                   (double)t.starts[0].count);
    telemetry_line(out, name, NULL, NULL, "how=\"cloned\"", (double)t.starts[1].count);
    telemetry_line(out, name, NULL, NULL, "how=\"spare\"", (double)t.starts[2].count);
    telemetry_line(out, "aspis_machine_start_failures_total", "counter", "VMs that did not start.",
                   NULL, (double)t.start_failures);
    telemetry_line(out, "aspis_machine_deaths_total", "counter",
                   "VMs that ended without having been asked to.", NULL, (double)t.deaths);
    head(out, "aspis_machine_start_seconds", "histogram", "From QEMU to the agent's answer.");
    write_histogram(out, "aspis_machine_start_seconds", "how=\"booted\"", &t.starts[0]);
    write_histogram(out, "aspis_machine_start_seconds", "how=\"cloned\"", &t.starts[1]);
    write_histogram(out, "aspis_machine_start_seconds", "how=\"spare\"", &t.starts[2]);
}

static void write_pulls(struct buf *out)
{
    static const char name[] = "aspis_image_pulls_total";
    telemetry_line(out, name, "counter", "Images pulled.", "result=\"ok\"", (double)t.pulls[1]);
    telemetry_line(out, name, NULL, NULL, "result=\"failed\"", (double)t.pulls[0]);
    telemetry_line(out, "aspis_image_pulled_bytes_total", "counter",
                   "Compressed size of the images that pulls brought.", NULL,
                   (double)t.pulled_bytes);
    head(out, "aspis_image_pull_seconds", "histogram", "How long successful pulls took.");
    write_histogram(out, "aspis_image_pull_seconds", NULL, &t.pull_time);
}

void telemetry_write(struct buf *out)
{
    (void)pthread_mutex_lock(&t.lock);
    write_calls(out);
    write_machines(out);
    write_pulls(out);
    (void)pthread_mutex_unlock(&t.lock);
}
