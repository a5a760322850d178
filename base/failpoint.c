#include "base/failpoint.h"

#ifdef ASPIS_FAILPOINTS

#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"

/* How often each "N*action" has fired. */
struct counted {
    char *spec;
    unsigned long hits;
};
static struct counted counts[64];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* true while the first n hits of this very specification are not used up */
static bool count_left(const char *spec, unsigned long n)
{
    bool left = false;
    (void)pthread_mutex_lock(&lock);
    for (size_t i = 0; i < ARRAY_LEN(counts); i++) {
        if (counts[i].spec == NULL)
            counts[i].spec = xstrdup(spec);
        if (strcmp(counts[i].spec, spec) == 0) {
            left = counts[i].hits++ < n;
            break;
        }
    }
    (void)pthread_mutex_unlock(&lock);
    return left;
}

static int act(const char *spec, const char *name, const char *action, struct err *err)
{
    char *star = NULL;
    unsigned long n = strtoul(action, &star, 10);
    if (star != action && *star == '*') {
        if (!count_left(spec, n))
            return 0;
        action = star + 1;
    }
    if (strcmp(action, "crash") == 0) {
        (void)kill(getpid(), SIGKILL);
    } else if (str_starts(action, "delay:")) {
        unsigned long ms = strtoul(action + 6, NULL, 10);
        struct timespec ts = {.tv_sec = (time_t)(ms / 1000),
                              .tv_nsec = (long)(ms % 1000) * 1000000};
        (void)clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL); /* the one wait that is the point */
    } else if (strcmp(action, "error") == 0) {
        return err_set(err, ERR_INTERNAL, "failpoint %s", name);
    }
    return 0;
}

int failpoint_hit(const char *name, struct err *err)
{
    auto_free char *text = NULL;
    const char *file = getenv("ASPIS_FAILPOINTS_FILE");
    if (file != NULL)
        text = fs_read(file, KiB(64), NULL, NULL);
    else
        text = xstrdup(getenv("ASPIS_FAILPOINTS"));
    if (text == NULL)
        return 0;
    char *save = NULL;
    size_t len = strlen(name);
    for (char *spec = strtok_r(text, ";\n", &save); spec != NULL;
         spec = strtok_r(NULL, ";\n", &save)) {
        if (strncmp(spec, name, len) == 0 && spec[len] == '=')
            return act(spec, name, spec + len + 1, err);
    }
    return 0;
}

#else
/* An empty translation unit is not C. */
extern int failpoints_are_off;
#endif
