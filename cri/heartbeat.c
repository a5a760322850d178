#include "cri/heartbeat.h"

#include <inttypes.h>
#include <stdlib.h>

#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"
#include "cri/events.h"
#include "cri/model.h"

struct heartbeat {
    struct runtime *rt;
    struct loop *loop;
    struct loop_source *timer;
    int64_t silence_ns;
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
        else if (s->unheard < HEARTBEAT_BEATS)
            s->unheard++;
        if (s->unheard == HEARTBEAT_BEATS && s->silence == NULL)
            fell_silent(h, s);
        else if (s->unheard == 0 && s->silence != NULL)
            answers_again(s);
    }
    (void)pthread_mutex_unlock(&rt->lock);
    (void)loop_set_timer(src, h->silence_ns / HEARTBEAT_BEATS);
}

struct heartbeat *heartbeat_new(struct runtime *rt, struct loop *control, int64_t silence_ns,
                                struct err *err)
{
    struct heartbeat *h = xcalloc(1, sizeof(*h));
    h->rt = rt;
    h->loop = control;
    h->silence_ns = silence_ns;
    if (silence_ns > 0)
        h->timer = loop_add_timer(control, silence_ns / HEARTBEAT_BEATS, beat, h, err);
    if (silence_ns > 0 && h->timer == NULL) {
        free(h);
        return NULL;
    }
    return h;
}

static void stop(void *arg)
{
    struct heartbeat *h = arg;
    loop_remove(take(h->timer));
}

void heartbeat_free(struct heartbeat *h)
{
    if (h == NULL)
        return;
    loop_call(h->loop, stop, h);
    free(h);
}
