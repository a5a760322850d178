#include "agent/events.h"

#include <stdbool.h>
#include <stdlib.h>
#include <sys/queue.h>

#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"

struct event {
    TAILQ_ENTRY(event) link;
    uint64_t seq;
    enum { EVENT_EXIT, EVENT_OOM, EVENT_MEMORY_LOW } kind;
    char *container_id;
    char *exec_id;
    char *start_error;
    Aspis__Agent__V1__Exit exit; /* its strings are the three above */
    uint64_t total_bytes, available_bytes;
};

struct events {
    TAILQ_HEAD(, event) list; /* ascending seq */
    size_t n;
    uint64_t last_seq;
    struct rpc_call *reader;
    uint64_t sent; /* to the reader */
};

struct events *events_new(void)
{
    struct events *e = xcalloc(1, sizeof(*e));
    TAILQ_INIT(&e->list);
    return e;
}

static void drop_first(struct events *e)
{
    struct event *ev = TAILQ_FIRST(&e->list);

    TAILQ_REMOVE(&e->list, ev, link);
    e->n--;
    free(ev->container_id);
    free(ev->exec_id);
    free(ev->start_error);
    free(ev);
}

static void end_reader(struct events *e)
{
    struct rpc_call *call = e->reader;

    if (call == NULL)
        return;
    Aspis__Agent__V1__Empty empty;
    aspis__agent__v1__empty__init(&empty);
    e->reader = NULL;
    rpc_call_notify(call, NULL, NULL, NULL);
    rpc_reply(call, &empty.base);
}

void events_free(struct events *e)
{
    if (e == NULL)
        return;
    while (e->n > 0)
        drop_first(e);
    free(e);
}

static int send_event(struct rpc_call *call, const struct event *ev)
{
    Aspis__Agent__V1__Event msg;
    aspis__agent__v1__event__init(&msg);
    Aspis__Agent__V1__Exit exit_msg = ev->exit;
    Aspis__Agent__V1__Oom oom;
    aspis__agent__v1__oom__init(&oom);

    Aspis__Agent__V1__MemoryLow low;
    aspis__agent__v1__memory_low__init(&low);
    msg.seq = ev->seq;
    switch (ev->kind) {
    case EVENT_OOM:
        oom.container_id = ev->container_id;
        msg.what_case = ASPIS__AGENT__V1__EVENT__WHAT_OOM;
        msg.oom = &oom;
        break;
    case EVENT_MEMORY_LOW:
        low.total_bytes = ev->total_bytes;
        low.available_bytes = ev->available_bytes;
        msg.what_case = ASPIS__AGENT__V1__EVENT__WHAT_MEMORY_LOW;
        msg.memory_low = &low;
        break;
    case EVENT_EXIT:
        msg.what_case = ASPIS__AGENT__V1__EVENT__WHAT_EXIT;
        msg.exit = &exit_msg;
        break;
    }
    return rpc_stream_send(call, &msg.base);
}

static void pump(void *arg)
{
    struct events *e = arg;
    struct event *ev;

    TAILQ_FOREACH(ev, &e->list, link)
    {
        if (e->reader == NULL)
            return;
        if (ev->seq <= e->sent)
            continue;
        if (send_event(e->reader, ev) < 0)
            return; /* full, then this runs again; or gone */
        e->sent = ev->seq;
    }
}

static void reader_gone(void *arg)
{
    /* The daemon went away or no longer wants the stream: the call is answered to be freed. */
    end_reader(arg);
}

static uint64_t add(struct events *e, struct event *ev)
{
    if (e->n == LIMIT_AGENT_EVENTS) {
        log_warn("too many unacknowledged events, the oldest is dropped",
                 LOG_INT("seq", TAILQ_FIRST(&e->list)->seq));
        drop_first(e);
    }
    ev->seq = ++e->last_seq;
    TAILQ_INSERT_TAIL(&e->list, ev, link);
    e->n++;
    uint64_t seq = ev->seq;
    pump(e);
    return seq;
}

uint64_t events_exit(struct events *e, const Aspis__Agent__V1__Exit *exit_msg)
{
    struct event *ev = xcalloc(1, sizeof(*ev));

    ev->container_id = xstrdup(exit_msg->container_id);
    ev->exec_id = xstrdup(exit_msg->exec_id);
    ev->start_error = xstrdup(exit_msg->start_error);
    ev->exit = *exit_msg;
    ev->exit.container_id = ev->container_id;
    ev->exit.exec_id = ev->exec_id;
    ev->exit.start_error = ev->start_error;
    return add(e, ev);
}

uint64_t events_oom(struct events *e, const char *container_id)
{
    struct event *ev = xcalloc(1, sizeof(*ev));

    ev->kind = EVENT_OOM;
    ev->container_id = xstrdup(container_id);
    return add(e, ev);
}

uint64_t events_memory_low(struct events *e, uint64_t total_bytes, uint64_t available_bytes)
{
    struct event *ev = xcalloc(1, sizeof(*ev));

    ev->kind = EVENT_MEMORY_LOW;
    ev->total_bytes = total_bytes;
    ev->available_bytes = available_bytes;
    return add(e, ev);
}

void events_subscribe(struct events *e, struct rpc_call *call, uint64_t after_seq)
{
    end_reader(e);
    e->reader = call;
    e->sent = after_seq < e->last_seq ? after_seq : e->last_seq;
    rpc_call_notify(call, reader_gone, pump, e);
    pump(e);
}

void events_ack(struct events *e, uint64_t seq)
{
    while (e->n > 0 && TAILQ_FIRST(&e->list)->seq <= seq)
        drop_first(e);
}

uint64_t events_last_seq(const struct events *e)
{
    return e->last_seq;
}
