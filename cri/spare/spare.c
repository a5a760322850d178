#include "cri/spare/spare.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"
#include "cri/spare/warm.h"
#include "netplugin/netns.h"
#include "netplugin/netns_note.h"

/* No pod is worked on for so long before one is made; but at the latest after PATIENCE. */
#define QUIET_NS (200LL * 1000000)
#define PATIENCE_NS (10LL * 1000000000)
/* For making one, with next to no processor time; and until the next try after a failure. */
#define MAKE_NS (120LL * 1000000000)
#define RETRY_NS (10LL * 1000000000)
#define RETRY_MAX_NS (300LL * 1000000000)
#define DESTROY_NS (30LL * 1000000000)

/* What the callbacks need; lives as long as its spare. */
struct spare_state {
    struct spares *pool;
    struct warm_watch watch;
    bool dead; /* under the pool's lock */
    STAILQ_ENTRY(spare_state) link;
    struct spare *spare;
};

struct spares {
    struct machine_factory *factory;
    char *notes, *tap_name;
    uint32_t want;
    struct disk_part image;
    struct cancel *stop;
    pthread_t thread;
    bool runs; /* the thread; fixed after start */

    pthread_mutex_t lock;
    pthread_cond_t wake;
    STAILQ_HEAD(, spare_state) ready; /* oldest first */
    STAILQ_HEAD(, spare_state) unfit; /* to be destroyed */
    uint32_t n;                       /* in ready */
    struct spare *zygote;             /* frozen, for others to be copied from; the thread's */
    bool zygote_bad;                  /* it is to be replaced */
    bool template;                    /* there is one, as far as we know */
    bool stopping;
    int64_t missing_since; /* CLOCK_MONOTONIC ns, as all below; 0: none is missing */
    int64_t busy_at;       /* when a pod was worked on last */
    int64_t not_before;
    int64_t retry; /* how long after a failure */
    int64_t zygote_not_before;
    int64_t zygote_retry;
};

/* --- callbacks, on the control loop --- */

static void on_event(void *arg, const Aspis__Agent__V1__Event *event)
{
    warm_event(&((struct spare_state *)arg)->watch, event);
}

static void on_dead(void *arg, const char *reason)
{
    struct spare_state *x = arg;
    struct spares *p = x->pool;
    log_warn("a spare vm died", LOG_STR("reason", reason));
    (void)pthread_mutex_lock(&p->lock);
    x->dead = true;
    if (p->zygote == x->spare)
        p->zygote_bad = true;
    (void)pthread_cond_signal(&p->wake);
    (void)pthread_mutex_unlock(&p->lock);
}

/* Any thread. */
static void on_bad_zygote(void *arg)
{
    struct spares *p = arg;
    (void)pthread_mutex_lock(&p->lock);
    p->zygote_bad = true;
    (void)pthread_cond_signal(&p->wake);
    (void)pthread_mutex_unlock(&p->lock);
}

static void on_template(void *arg)
{
    struct spares *p = arg;
    (void)pthread_mutex_lock(&p->lock);
    p->template = true;
    p->zygote_bad = true; /* of another template, if there is one */
    (void)pthread_cond_signal(&p->wake);
    (void)pthread_mutex_unlock(&p->lock);
}

/* --- one spare --- */

void spare_free(struct spare *s)
{
    if (s == NULL)
        return;
    warm_watch_destroy(&s->state->watch);
    free(s->state);
    free(s->id);
    free(s->netns);
    free(s);
}

/* With all that is its own. What cannot be removed is left to the next daemon. */
static void destroy(struct spares *p, struct spare *s)
{
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *limit = cancel_new(mono_ns() + DESTROY_NS, NULL);
    if (s->machine != NULL && machine_destroy(s->machine, limit, &err) < 0)
        log_error("cannot remove a spare vm", LOG_STR("sandbox", s->id),
                  LOG_STR("error", err_msg(&err)));
    machine_free(s->machine);
    if (!str_empty(s->netns) && netns_remove(s->netns, &err) < 0)
        log_error("cannot remove a spare vm's network", LOG_STR("sandbox", s->id),
                  LOG_STR("error", err_msg(&err)));
    else
        netns_note_drop(p->notes, s->id);
    spare_free(s);
}

static int make_netns(struct spares *p, struct spare *s, int *tap, struct err *err)
{
    char name[4 + 32 + 1] = "cni-";
    fs_random_hex(name + 4, 32);
    s->netns = fs_format("/run/netns/%s", name);
    auto_free char *path = NULL;
    if (netns_note_write(p->notes, s->id, s->netns, err) < 0 || netns_create(name, &path, err) < 0)
        return err_wrap(err, "network namespace");
    *tap = netns_make_tap(s->netns, p->tap_name, err);
    return *tap < 0 ? -1 : 0;
}

static int make_steps(struct spares *p, struct spare *s, bool zygote, struct cancel *cancel,
                      struct err *err)
{
    auto_close int tap = -1;
    if (FAILPOINT("spare.make", err) < 0 || make_netns(p, s, &tap, err) < 0)
        return -1;
    struct machine_spec spec = {
        .sandbox_id = s->id, .cgroup_parent = "", .tap_fd = tap, .spare = true, .zygote = zygote};
    struct machine_callbacks cb = {.on_event = on_event, .on_dead = on_dead, .arg = s->state};
    s->machine = machine_start(p->factory, &spec, &cb, cancel, err);
    if (s->machine == NULL)
        return -1;
    /* a copy of one that was warmed up too: what it writes to is then its own, not the zygote's */
    if (warm_up(s->machine, s->id, &p->image, &s->state->watch, cancel, err) < 0)
        return -1;
    return zygote ? machine_freeze(s->machine, cancel, err) : 0;
}

static struct spare *make(struct spares *p, bool zygote, struct err *err)
{
    char id[65];
    fs_random_hex(id, 64);
    auto_cancel struct cancel *cancel = cancel_child(p->stop, mono_ns() + MAKE_NS, err);
    struct spare *s = xcalloc(1, sizeof(*s));
    s->id = xstrdup(id);
    s->state = xcalloc(1, sizeof(*s->state));
    s->state->pool = p;
    s->state->spare = s;
    if (warm_watch_init(&s->state->watch, err) == 0 && cancel != NULL &&
        make_steps(p, s, zygote, cancel, err) == 0)
        return s;
    destroy(p, s);
    return NULL;
}

/* --- the thread --- */

/* Under lock. */
static void sort_out_dead(struct spares *p)
{
    struct spare_state *x;
    struct spare_state *next;
    for (x = STAILQ_FIRST(&p->ready); x != NULL; x = next) {
        next = STAILQ_NEXT(x, link);
        if (!x->dead)
            continue;
        STAILQ_REMOVE(&p->ready, x, spare_state, link);
        STAILQ_INSERT_TAIL(&p->unfit, x, link);
        p->n--;
    }
}

/* Under lock. When one may be made; INT64_MAX: not before somebody signals. */
static int64_t due(struct spares *p)
{
    if (p->n >= p->want) {
        p->missing_since = 0;
        return INT64_MAX;
    }
    if (p->missing_since == 0)
        p->missing_since = mono_ns();
    if (!p->template)
        return INT64_MAX;
    int64_t quiet = p->busy_at + QUIET_NS;
    int64_t latest = p->missing_since + PATIENCE_NS;
    int64_t at = quiet < latest ? quiet : latest;
    return at > p->not_before ? at : p->not_before;
}

/* Under lock, which is let go of meanwhile. */
static void make_one(struct spares *p)
{
    auto_err struct err err = ERR_INIT;
    p->template = false; /* unless it turns out that there still is */
    (void)pthread_mutex_unlock(&p->lock);
    int64_t begin = mono_ns();
    struct spare *s = make(p, false, &err);
    bool none = s == NULL && err.code == ERR_UNAVAILABLE;
    if (s != NULL)
        log_info("spare vm ready", LOG_STR("sandbox", s->id),
                 LOG_INT("ms", (mono_ns() - begin) / 1000000));
    else if (!cancel_fired(p->stop) && !none)
        log_warn("no spare vm", LOG_STR("error", err_msg(&err)));
    (void)pthread_mutex_lock(&p->lock);
    if (!none)
        p->template = true;
    if (s != NULL) {
        STAILQ_INSERT_TAIL(&p->ready, s->state, link);
        p->n++;
        p->retry = RETRY_NS;
        if (machine_is_copy(s->machine)) {
            p->zygote_retry = RETRY_NS;
            p->zygote_not_before = 0;
        }
        return;
    }
    p->not_before = mono_ns() + p->retry;
    p->retry = 2 * p->retry < RETRY_MAX_NS ? 2 * p->retry : RETRY_MAX_NS;
}

/* Under lock, which is let go of meanwhile. */
static void drop_zygote(struct spares *p)
{
    struct spare *s = take(p->zygote);
    p->zygote_bad = false;
    (void)pthread_mutex_unlock(&p->lock);
    machine_set_zygote(p->factory, NULL, NULL, NULL);
    if (s != NULL)
        destroy(p, s);
    (void)pthread_mutex_lock(&p->lock);
}

/* Under lock. When a zygote may be made; INT64_MAX: none is wanted or there is one. */
static int64_t zygote_due(struct spares *p)
{
    return p->zygote == NULL && p->template && machine_can_fork(p->factory) ? p->zygote_not_before
                                                                            : INT64_MAX;
}

/* Under lock, which is let go of meanwhile. */
static void make_zygote(struct spares *p)
{
    auto_err struct err err = ERR_INIT;
    (void)pthread_mutex_unlock(&p->lock);
    int64_t begin = mono_ns();
    struct spare *s = make(p, true, &err);
    if (s != NULL) {
        log_info("zygote ready", LOG_STR("sandbox", s->id),
                 LOG_INT("ms", (mono_ns() - begin) / 1000000));
        machine_set_zygote(p->factory, s->machine, on_bad_zygote, p);
    } else if (!cancel_fired(p->stop)) {
        log_warn("no zygote: vms are cloned", LOG_STR("error", err_msg(&err)));
    }
    (void)pthread_mutex_lock(&p->lock);
    p->zygote = s;
    p->zygote_bad = s != NULL && s->state->dead;
    /* until a copy of it is a spare */
    p->zygote_not_before = mono_ns() + p->zygote_retry;
    p->zygote_retry = 2 * p->zygote_retry < RETRY_MAX_NS ? 2 * p->zygote_retry : RETRY_MAX_NS;
}

/* Under lock. */
static void wait_until(struct spares *p, int64_t at)
{
    if (at == INT64_MAX) {
        (void)pthread_cond_wait(&p->wake, &p->lock);
        return;
    }
    struct timespec ts = {.tv_sec = at / 1000000000, .tv_nsec = at % 1000000000};
    (void)pthread_cond_timedwait(&p->wake, &p->lock, &ts);
}

static void *pool_thread(void *arg)
{
    struct spares *p = arg;
    (void)pthread_mutex_lock(&p->lock);
    while (!p->stopping) {
        sort_out_dead(p);
        struct spare_state *x = STAILQ_FIRST(&p->unfit);
        int64_t at = due(p);
        if (x != NULL) {
            STAILQ_REMOVE_HEAD(&p->unfit, link);
            (void)pthread_mutex_unlock(&p->lock);
            destroy(p, x->spare);
            (void)pthread_mutex_lock(&p->lock);
        } else if (p->zygote_bad) {
            drop_zygote(p);
        } else if (zygote_due(p) <= mono_ns()) {
            make_zygote(p);
        } else if (at <= mono_ns()) {
            make_one(p);
        } else {
            int64_t other = zygote_due(p);
            wait_until(p, at < other ? at : other);
        }
    }
    (void)pthread_mutex_unlock(&p->lock);
    return NULL;
}

/* --- the pool --- */

static int begin(struct spares *p, struct err *err)
{
    pthread_condattr_t attr;
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&p->wake, &attr);
    (void)pthread_condattr_destroy(&attr);
    p->stop = cancel_new(0, err);
    if (p->stop == NULL || warm_image(&p->image, err) < 0)
        return -1;
    int rc = pthread_create(&p->thread, NULL, pool_thread, p);
    if (rc != 0)
        return err_sys(err, rc, "start the thread of the spare machines");
    p->runs = true;
    machine_on_template(p->factory, on_template, p);
    return 0;
}

struct spares *spares_new(struct machine_factory *f, const char *netns_notes, uint32_t count,
                          const char *tap_name, struct err *err)
{
    struct spares *p = xcalloc(1, sizeof(*p));
    p->factory = f;
    p->notes = xstrdup(netns_notes);
    p->tap_name = xstrdup(tap_name);
    p->want = count;
    p->image.fd = -1;
    p->retry = p->zygote_retry = RETRY_NS;
    STAILQ_INIT(&p->ready);
    STAILQ_INIT(&p->unfit);
    (void)pthread_mutex_init(&p->lock, NULL);
    if (begin(p, err) == 0)
        return p;
    spares_free(p);
    return NULL;
}

void spares_free(struct spares *p)
{
    if (p == NULL)
        return;
    machine_on_template(p->factory, NULL, NULL);
    if (p->runs) {
        cancel_fire(p->stop);
        (void)pthread_mutex_lock(&p->lock);
        p->stopping = true;
        (void)pthread_cond_signal(&p->wake);
        (void)pthread_mutex_unlock(&p->lock);
        (void)pthread_join(p->thread, NULL);
    }
    machine_set_zygote(p->factory, NULL, NULL, NULL);
    if (p->zygote != NULL)
        destroy(p, p->zygote);
    STAILQ_CONCAT(&p->unfit, &p->ready);
    struct spare_state *x;
    while ((x = STAILQ_FIRST(&p->unfit)) != NULL) {
        STAILQ_REMOVE_HEAD(&p->unfit, link);
        destroy(p, x->spare);
    }
    cancel_unref(p->stop);
    cleanup_closep(&p->image.fd);
    (void)pthread_cond_destroy(&p->wake);
    (void)pthread_mutex_destroy(&p->lock);
    free(p->notes);
    free(p->tap_name);
    free(p);
}

struct spare *spares_take(struct spares *p)
{
    if (p == NULL)
        return NULL;
    (void)pthread_mutex_lock(&p->lock);
    sort_out_dead(p);
    struct spare_state *x = STAILQ_FIRST(&p->ready);
    if (x != NULL) {
        STAILQ_REMOVE_HEAD(&p->ready, link);
        p->n--;
    }
    p->busy_at = mono_ns();
    (void)pthread_cond_signal(&p->wake);
    (void)pthread_mutex_unlock(&p->lock);
    if (x == NULL || machine_is_current(x->spare->machine))
        return x != NULL ? x->spare : NULL;
    /* of a template that is no longer right */
    (void)pthread_mutex_lock(&p->lock);
    STAILQ_INSERT_TAIL(&p->unfit, x, link);
    (void)pthread_cond_signal(&p->wake);
    (void)pthread_mutex_unlock(&p->lock);
    return NULL;
}

void spares_put_back(struct spares *p, struct spare *s)
{
    if (s == NULL)
        return;
    (void)pthread_mutex_lock(&p->lock);
    STAILQ_INSERT_HEAD(&p->ready, s->state, link);
    p->n++;
    (void)pthread_cond_signal(&p->wake);
    (void)pthread_mutex_unlock(&p->lock);
}

void spares_yield(struct spares *p)
{
    if (p == NULL)
        return;
    (void)pthread_mutex_lock(&p->lock);
    p->busy_at = mono_ns();
    (void)pthread_mutex_unlock(&p->lock);
}

uint32_t spares_count(struct spares *p)
{
    if (p == NULL)
        return 0;
    (void)pthread_mutex_lock(&p->lock);
    uint32_t n = p->n;
    (void)pthread_mutex_unlock(&p->lock);
    return n;
}
