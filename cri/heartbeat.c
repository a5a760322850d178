#include "cri/heartbeat.h"

#include <inttypes.h>
#include <stdlib.h>

#include "base/clock_watch.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"
#include "cri/events.h"
#include "cri/model.h"

/* Guests' clocks are compared at least so often. */
#define CLOCK_NS (60LL * 1000000000)

struct heartbeat {
    struct runtime *rt;
    struct loop *loop;
    struct loop_source *timer;
    struct clock_watch *clock;
    int64_t silence_ns;  /* 0: no guest is called silent */
    int64_t interval_ns; /* between beats */
    unsigned beats;      /* without an answer, until a guest is called silent */
};

/* Under the lock. */
static void fell_silent(const struct heartbeat *h, struct sandbox *s)
{
    s->silence = fs_format("the guest has not answered for %" PRId64 " s (its qemu process is %s)",
                           h->silence_ns / 1000000000, machine_process_state(s->machine));
    log_error("guest is silent; its sandbox is shown as not ready", LOG_STR("sandbox", s->rec.id),
              LOG_STR("pod", s->name_key), LOG_STR("reason", s->silence));
    events_sandbox(s, RUNTIME__V1__CONTAINER_EVENT_TYPE__CONTAINER_STOPPED_EVENT);
}

/* Under the lock. */
static void answers_again(struct sandbox *s)
{
    free(take(s->silence));
    log_warn("silent guest answers again", LOG_STR("sandbox", s->rec.id),
             LOG_STR("pod", s->name_key));
    events_sandbox(s, RUNTIME__V1__CONTAINER_EVENT_TYPE__CONTAINER_STARTED_EVENT);
}

static void beat(struct loop_source *src, void *arg)
{
    struct heartbeat *h = arg;
    struct runtime *rt = h->rt;
    (void)pthread_mutex_lock(&rt->lock);
    for (struct sandbox *s = rt->sandboxes; s != NULL; s = s->hh.next) {
        if (s->rec.phase != SANDBOX_READY || s->stopping || s->machine == NULL)
            continue;
        /* the probe only queues a frame; the machine cannot go while we hold the lock */
        if (link_probe(machine_link(s->machine)))
            s->unheard = 0;
        else if (s->unheard < h->beats)
            s->unheard++;
        if (h->silence_ns > 0 && s->unheard == h->beats && s->silence == NULL)
            fell_silent(h, s);
        else if (s->unheard == 0 && s->silence != NULL)
            answers_again(s);
    }
    (void)pthread_mutex_unlock(&rt->lock);
    (void)loop_set_timer(src, h->interval_ns);
}

static void clock_was_set(void *arg)
{
    const struct heartbeat *h = arg;
    struct runtime *rt = h->rt;
    log_info("the clock was set; the guests' follow");
    (void)pthread_mutex_lock(&rt->lock);
    for (struct sandbox *s = rt->sandboxes; s != NULL; s = s->hh.next) {
        if (s->rec.phase == SANDBOX_READY && !s->stopping && s->machine != NULL)
            link_clock_changed(machine_link(s->machine));
    }
    (void)pthread_mutex_unlock(&rt->lock);
}

struct heartbeat *heartbeat_new(struct runtime *rt, struct loop *control, int64_t silence_ns,
                                struct err *err)
{
    struct heartbeat *h = xcalloc(1, sizeof(*h));
    h->rt = rt;
    h->loop = control;
    h->silence_ns = silence_ns;
    h->interval_ns = silence_ns / HEARTBEAT_BEATS;
    if (h->interval_ns == 0 || h->interval_ns > CLOCK_NS)
        h->interval_ns = CLOCK_NS;
    h->beats = (unsigned)((silence_ns + h->interval_ns - 1) / h->interval_ns);
    h->timer = loop_add_timer(control, h->interval_ns, beat, h, err);
    if (h->timer != NULL)
        h->clock = clock_watch_new(control, clock_was_set, h, err);
    if (h->clock == NULL) {
        loop_remove(h->timer);
        free(h);
        return NULL;
    }
    return h;
}

static void stop(void *arg)
{
    struct heartbeat *h = arg;
    loop_remove(take(h->timer));
    clock_watch_free(take(h->clock));
}

void heartbeat_free(struct heartbeat *h)
{
    if (h == NULL)
        return;
    loop_call(h->loop, stop, h);
    free(h);
}
