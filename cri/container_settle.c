#include "cri/container_settle.h"

#include <string.h>

#include "base/limits.h"
#include "base/log.h"
#include "cri/agent_call.h"
#include "cri/container_end.h"
#include "cri/events.h"

/* The caller's own time is up already. */
#define SETTLE_NS (5LL * 1000000000)

void container_take_state(struct container *c, const Aspis__Agent__V1__ProcessState *p)
{
    bool started = false;
    (void)pthread_mutex_lock(&c->rt->lock);
    c->start_unsure = false;
    if (c->rec.phase == CONTAINER_CREATED &&
        p->state != ASPIS__AGENT__V1__PROCESS_STATE__STATE__CREATED) {
        int64_t now = wall_ns();
        c->starting = true;
        c->rec.started_at = p->started_at_ns == 0 || p->started_at_ns > (uint64_t)now
                                ? now
                                : (int64_t)p->started_at_ns;
        c->rec.phase = CONTAINER_RUNNING;
        /* of one that has ended already the end tells whether it ever ran */
        if (p->state == ASPIS__AGENT__V1__PROCESS_STATE__STATE__RUNNING)
            events_container(c, RUNTIME__V1__CONTAINER_EVENT_TYPE__CONTAINER_STARTED_EVENT);
        started = true;
    }
    (void)pthread_mutex_unlock(&c->rt->lock);
    if (started) {
        log_info("a start that was cut had reached the guest", LOG_STR("container", c->rec.id));
        (void)container_save(c, NULL);
    }
    if (p->state == ASPIS__AGENT__V1__PROCESS_STATE__STATE__EXITED && p->exit != NULL)
        container_end_listed(c, p->exit);
}

static int ask(struct container *c, struct cancel *limit, struct err *err)
{
    auto_arena struct arena *a = arena_new(LIMIT_CALL_ARENA);
    Aspis__Agent__V1__Empty empty;
    aspis__agent__v1__empty__init(&empty);
    const ProtobufCMessage *reply =
        a == NULL ? NULL
                  : agent_ask(c->sandbox, "ListState", &empty.base,
                              &aspis__agent__v1__list_state_response__descriptor, a, limit, err);
    if (reply == NULL)
        return -1;
    const Aspis__Agent__V1__ListStateResponse *state =
        (const Aspis__Agent__V1__ListStateResponse *)reply;
    for (size_t i = 0; i < state->n_processes; i++) {
        const Aspis__Agent__V1__ProcessState *p = state->processes[i];
        if (p->exec_id[0] == '\0' && strcmp(p->container_id, c->rec.id) == 0) {
            container_take_state(c, p);
            return 0;
        }
    }
    return err_set(err, ERR_NOT_FOUND, "the guest does not know this container");
}

int container_settle(struct container *c, struct err *err)
{
    (void)pthread_mutex_lock(&c->rt->lock);
    c->start_unsure = c->rec.phase == CONTAINER_CREATED;
    bool needed = c->start_unsure;
    (void)pthread_mutex_unlock(&c->rt->lock);
    if (!needed)
        return 0;
    auto_cancel struct cancel *limit = cancel_new(mono_ns() + SETTLE_NS, err);
    if (limit == NULL || ask(c, limit, err) < 0)
        return err_wrap(err, "whether it was started is not known");
    return 0;
}
