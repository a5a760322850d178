#include "cri/stats.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/cancel.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "cri/model.h"
#include "cri/stats_check.h"
#include "cri/workers.h"

/* A guest may answer late: what it says still counts for the next caller. */
#define ANSWER_NS (10LL * 1000000000)
#define IDLE_NS (5LL * 1000000000)
/* A sandbox keeps two samples. One container takes about 2 KiB. */
#define SAMPLE_ARENA MiB(2)

struct stats {
    struct runtime *rt;
    struct workers *workers;
    struct cancel *stop;
    pthread_cond_t answered; /* with the runtime's lock */
};

struct question {
    struct stats *stats;
    struct sandbox *sandbox;
    bool processes;
};

/* --- samples --- */

static struct stats_sample *sample_ref(struct stats_sample *s)
{
    if (s != NULL)
        atomic_fetch_add(&s->refs, 1);
    return s;
}

static void sample_unref(struct stats_sample *s)
{
    if (s == NULL || atomic_fetch_sub(&s->refs, 1) != 1)
        return;
    arena_free(s->arena);
    free(s);
}
DEFINE_AUTO(struct stats_sample *, sample_unref);
#define auto_sample __attribute__((cleanup(sample_unrefp)))

void stats_cache_clear(struct stats_cache *c)
{
    sample_unref(take(c->last));
    sample_unref(take(c->base));
}

struct stats_view stats_view(struct sandbox *s)
{
    (void)pthread_mutex_lock(&s->rt->lock);
    struct stats_view v = {sample_ref(s->stats.last), sample_ref(s->stats.base)};
    (void)pthread_mutex_unlock(&s->rt->lock);
    return v;
}

void stats_view_clear(struct stats_view *v)
{
    sample_unref(take(v->last));
    sample_unref(take(v->base));
}

const Aspis__Agent__V1__GroupStats *stats_group(const struct stats_sample *s, const char *id)
{
    for (size_t i = 0; s != NULL && i < s->guest->n_containers; i++)
        if (strcmp(s->guest->containers[i]->container_id, id) == 0)
            return s->guest->containers[i];
    return NULL;
}

/* --- asking --- */

static struct stats_sample *ask_guest(struct machine *m, bool processes, struct cancel *cancel,
                                      struct err *err)
{
    auto_sample struct stats_sample *s = xcalloc(1, sizeof(*s));
    Aspis__Agent__V1__StatsRequest req;
    aspis__agent__v1__stats_request__init(&req);
    req.processes = processes;
    atomic_init(&s->refs, 1);
    s->arena = arena_new(SAMPLE_ARENA);
    if (s->arena == NULL) {
        (void)err_set(err, ERR_EXHAUSTED, "out of memory");
        return NULL;
    }
    const ProtobufCMessage *reply =
        link_call(machine_link(m), "Stats", &req.base,
                  &aspis__agent__v1__stats_response__descriptor, s->arena, cancel, err);
    if (reply == NULL)
        return NULL;
    /* nobody else knows it yet */
    Aspis__Agent__V1__StatsResponse *guest =
        (Aspis__Agent__V1__StatsResponse *)(uintptr_t)(const void *)reply;
    stats_check(guest);
    s->guest = guest;
    s->processes = processes;
    s->mono = mono_ns();
    s->wall = wall_ns();
    auto_err struct err why = ERR_INIT;
    if (machine_usage(m, &s->vm, &why) < 0)
        log_debug("no numbers of the host's cgroup", LOG_STR("error", err_msg(&why)));
    return take(s);
}

/* Under the lock. */
static void keep(struct stats_cache *c, struct stats_sample *s)
{
    if (c->last != NULL && s->mono - c->last->mono >= STATS_RATE_NS) {
        sample_unref(c->base);
        c->base = take(c->last);
    }
    sample_unref(c->last);
    c->last = s;
}

/* On a worker. */
static void answer(void *arg)
{
    struct question *q = arg;
    struct sandbox *s = q->sandbox;
    struct stats *st = q->stats;
    struct stats_sample *got = NULL;
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *limit = cancel_child(st->stop, mono_ns() + ANSWER_NS, &err);
    struct machine *m = limit != NULL ? sandbox_use_machine(s, &err) : NULL;
    if (m != NULL) {
        got = ask_guest(m, q->processes, limit, &err);
        sandbox_release_machine(s);
    }
    if (got == NULL)
        log_debug("no stats", LOG_STR("sandbox", s->rec.id), LOG_STR("error", err_msg(&err)));
    (void)pthread_mutex_lock(&st->rt->lock);
    s->stats.asking = false;
    s->stats.slow = got == NULL;
    if (got != NULL)
        keep(&s->stats, got);
    (void)pthread_cond_broadcast(&st->answered);
    (void)pthread_mutex_unlock(&st->rt->lock);
    sandbox_unref(s);
    free(q);
}

/* Under the lock: is there a running container that began after the sample was taken? */
static bool lacks_container(const struct sandbox *s)
{
    const struct container *c;
    TAILQ_FOREACH(c, &s->containers, link)
    {
        if ((c->rec.phase == CONTAINER_RUNNING || c->rec.phase == CONTAINER_CREATED) &&
            stats_group(s->stats.last, c->rec.id) == NULL &&
            (c->rec.started_at > s->stats.last->wall || c->rec.created_at > s->stats.last->wall))
            return true;
    }
    return false;
}

/* Under the lock. */
static bool old(const struct sandbox *s, bool processes)
{
    const struct stats_sample *last = s->stats.last;
    return last == NULL || (processes && !last->processes) ||
           mono_ns() - last->mono > STATS_FRESH_NS || lacks_container(s);
}

/* Asks one sandbox if need be. Returns whether its answer is worth waiting for. */
static bool ask(struct stats *st, struct sandbox *s, bool processes)
{
    (void)pthread_mutex_lock(&st->rt->lock);
    bool can =
        s->machine != NULL && s->rec.phase == SANDBOX_READY && !s->stopping && s->silence == NULL;
    bool needed = can && old(s, processes);
    bool wait = needed && !s->stats.slow;
    bool start = needed && !s->stats.asking;
    if (start)
        s->stats.asking = true;
    (void)pthread_mutex_unlock(&st->rt->lock);
    if (!start)
        return wait;
    struct question *q = xcalloc(1, sizeof(*q));
    *q = (struct question){.stats = st, .sandbox = sandbox_ref(s), .processes = processes};
    if (workers_run(st->workers, answer, q) == 0)
        return wait;
    (void)pthread_mutex_lock(&st->rt->lock);
    s->stats.asking = false;
    (void)pthread_mutex_unlock(&st->rt->lock);
    sandbox_unref(s);
    free(q);
    return false; /* what is known has to do */
}

static bool round_of(struct stats *st, struct sandbox *const *list, size_t n, bool processes,
                     const struct timespec *until)
{
    auto_free bool *wait = xcalloc(n + 1, sizeof(*wait));
    bool asked = false;
    for (size_t i = 0; i < n; i++) {
        wait[i] = ask(st, list[i], processes);
        asked = asked || wait[i];
    }
    (void)pthread_mutex_lock(&st->rt->lock);
    int rc = 0;
    for (size_t i = 0; i < n; i++) {
        while (wait[i] && list[i]->stats.asking && rc == 0)
            rc = pthread_cond_timedwait(&st->answered, &st->rt->lock, until);
        if (wait[i] && list[i]->stats.asking)
            list[i]->stats.slow = true; /* the next caller will not wait for it */
    }
    (void)pthread_mutex_unlock(&st->rt->lock);
    return asked && rc == 0;
}

void stats_refresh(struct stats *st, struct sandbox *const *list, size_t n, bool processes)
{
    struct timespec until;
    (void)clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += STATS_PATIENCE_NS / 1000000000;
    /* a question that was under way may have been for less than we want, and there may be more
     * sandboxes than workers */
    size_t rounds = 2 + n / LIMIT_STATS_AT_ONCE;
    while (rounds > 0 && round_of(st, list, n, processes, &until))
        rounds--;
}

struct stats *stats_new(struct runtime *rt, struct err *err)
{
    struct stats *s = xcalloc(1, sizeof(*s));
    pthread_condattr_t attr;
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&s->answered, &attr);
    (void)pthread_condattr_destroy(&attr);
    s->rt = rt;
    s->stop = cancel_new(0, err);
    s->workers = s->stop != NULL ? workers_new(LIMIT_STATS_AT_ONCE, IDLE_NS, err) : NULL;
    if (s->workers == NULL) {
        stats_free(s);
        return NULL;
    }
    return s;
}

void stats_free(struct stats *s)
{
    if (s == NULL)
        return;
    if (s->stop != NULL)
        cancel_fire(s->stop);
    workers_free(s->workers);
    cancel_unref(s->stop);
    (void)pthread_cond_destroy(&s->answered);
    free(s);
}
