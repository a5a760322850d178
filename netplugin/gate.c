#include "netplugin/gate.h"

#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/queue.h>

#include "base/str.h"

struct gate_pass {
    TAILQ_ENTRY(gate_pass) link; /* in order of arrival */
    struct gate *gate;
    char *key;    /* NULL: alone */
    int wake;     /* eventfd, written once when granted */
    bool granted; /* under gate->lock */
};

struct gate {
    pthread_mutex_t lock;
    TAILQ_HEAD(, gate_pass) passes; /* under lock */
    size_t max;
};

struct gate *gate_new(size_t max)
{
    struct gate *g = xcalloc(1, sizeof(*g));

    (void)pthread_mutex_init(&g->lock, NULL);
    TAILQ_INIT(&g->passes);
    g->max = max;
    return g;
}

void gate_free(struct gate *g)
{
    if (g == NULL)
        return;
    (void)pthread_mutex_destroy(&g->lock);
    free(g);
}

static bool conflict(const struct gate_pass *a, const struct gate_pass *b)
{
    return a->key == NULL || b->key == NULL || strcmp(a->key, b->key) == 0;
}

/* Grants every pass that no earlier one stands in the way of. Called with the lock held. */
static void grant(struct gate *g)
{
    struct gate_pass *p, *before;
    size_t inside = 0;

    TAILQ_FOREACH(p, &g->passes, link)
    inside += p->granted;
    TAILQ_FOREACH(p, &g->passes, link)
    {
        bool free_way = !p->granted && inside < g->max;

        for (before = TAILQ_FIRST(&g->passes); free_way && before != p;
             before = TAILQ_NEXT(before, link))
            free_way = !conflict(before, p);
        if (free_way) {
            p->granted = true;
            inside++;
            (void)eventfd_write(p->wake, 1);
        }
    }
}

struct gate_pass *gate_enter(struct gate *g, const char *key, struct cancel *cancel,
                             struct err *err)
{
    struct gate_pass *p;
    int wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    if (wake < 0) {
        err_sys(err, errno, "eventfd");
        return NULL;
    }
    p = xcalloc(1, sizeof(*p));
    p->gate = g;
    p->key = xstrdup(key);
    p->wake = wake;
    (void)pthread_mutex_lock(&g->lock);
    TAILQ_INSERT_TAIL(&g->passes, p, link);
    grant(g);
    (void)pthread_mutex_unlock(&g->lock);
    if (cancel_poll(cancel, wake, POLLIN, -1, err) < 0) {
        gate_leave(p);
        err_wrap(err, "wait for an earlier CNI operation");
        return NULL;
    }
    return p;
}

void gate_leave(struct gate_pass *p)
{
    struct gate *g;

    if (p == NULL)
        return;
    g = p->gate;
    (void)pthread_mutex_lock(&g->lock);
    TAILQ_REMOVE(&g->passes, p, link);
    grant(g);
    (void)pthread_mutex_unlock(&g->lock);
    (void)close(p->wake);
    free(p->key);
    free(p);
}
