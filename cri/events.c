#include "cri/events.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "cri/daemon.h"
#include "cri/dispatch.h"
#include "cri/message.h"
#include "cri/service_runtime.h"

/* A packed event, shared by the queues. */
struct packed {
    atomic_uint refs;
    size_t len;
    uint8_t *data;
};

struct item {
    struct packed *event;
    STAILQ_ENTRY(item) link;
};

struct subscriber {
    int ready; /* eventfd */
    STAILQ_HEAD(, item) queue;
    size_t bytes;
    bool lost; /* it was too slow */
    TAILQ_ENTRY(subscriber) link;
};

struct events {
    pthread_mutex_t lock; /* inside the runtime's */
    TAILQ_HEAD(, subscriber) subscribers;
    size_t n;
};

struct events *events_new(void)
{
    struct events *e = xcalloc(1, sizeof(*e));
    (void)pthread_mutex_init(&e->lock, NULL);
    TAILQ_INIT(&e->subscribers);
    return e;
}

void events_free(struct events *e)
{
    if (e == NULL)
        return;
    (void)pthread_mutex_destroy(&e->lock);
    free(e);
}

static void packed_unref(struct packed *p)
{
    if (p == NULL || atomic_fetch_sub(&p->refs, 1) != 1)
        return;
    free(p->data);
    free(p);
}
DEFINE_AUTO(struct packed *, packed_unref);
#define auto_packed __attribute__((cleanup(packed_unrefp)))

/* --- making --- */

static struct packed *pack(struct sandbox *s, const char *id, Runtime__V1__ContainerEventType type,
                           struct err *err)
{
    auto_arena struct arena *arena = arena_new(LIMIT_CALL_ARENA);
    struct call part = {.arena = arena, .method = &(const struct method){.name = "event"}};
    if (arena == NULL) {
        (void)err_set(err, ERR_EXHAUSTED, "out of memory");
        return NULL;
    }
    Runtime__V1__ContainerEventResponse *r =
        call_message(&part, &runtime__v1__container_event_response__descriptor, err);
    if (r == NULL)
        return NULL;
    r->container_id = call_string(&part, id, err);
    r->container_event_type = type;
    r->created_at = wall_ns();
    r->pod_sandbox_status = cri_sandbox_status(&part, s, err);
    r->containers_statuses = cri_container_statuses(&part, s, &r->n_containers_statuses, err);
    if (err->code != ERR_OK)
        return NULL;
    auto_packed struct packed *p = xcalloc(1, sizeof(*p));
    atomic_init(&p->refs, 1);
    p->data = message_pack(&r->base, LIMIT_GRPC_MESSAGE, arena, &p->len, err);
    return p->data != NULL ? take(p) : NULL;
}

/* The events' lock is held. */
static void drop_queue(struct subscriber *u)
{
    struct item *i;
    while ((i = STAILQ_FIRST(&u->queue)) != NULL) {
        STAILQ_REMOVE_HEAD(&u->queue, link);
        packed_unref(i->event);
        free(i);
    }
    u->bytes = 0;
}

/* p NULL: the event could not be made, which nobody may mistake for silence. */
static void deliver(struct events *e, struct packed *p)
{
    struct subscriber *u;
    (void)pthread_mutex_lock(&e->lock);
    TAILQ_FOREACH(u, &e->subscribers, link)
    {
        if (u->lost)
            continue;
        if (p == NULL || u->bytes + p->len > LIMIT_EVENT_QUEUE) {
            u->lost = true;
            drop_queue(u);
        } else {
            struct item *i = xcalloc(1, sizeof(*i));
            atomic_fetch_add(&p->refs, 1);
            i->event = p;
            u->bytes += p->len;
            STAILQ_INSERT_TAIL(&u->queue, i, link);
        }
        (void)eventfd_write(u->ready, 1);
    }
    (void)pthread_mutex_unlock(&e->lock);
}

static void publish(struct sandbox *s, const char *id, Runtime__V1__ContainerEventType type)
{
    struct events *e = s->rt->events;
    if (e == NULL)
        return;
    (void)pthread_mutex_lock(&e->lock);
    bool wanted = e->n > 0;
    (void)pthread_mutex_unlock(&e->lock);
    if (!wanted)
        return;
    auto_err struct err err = ERR_INIT;
    auto_packed struct packed *p = pack(s, id, type, &err);
    if (p == NULL)
        log_error("cannot make an event", LOG_STR("id", id), LOG_STR("error", err_msg(&err)));
    deliver(e, p);
}

void events_sandbox(struct sandbox *s, Runtime__V1__ContainerEventType type)
{
    publish(s, s->rec.id, type);
}

void events_container(struct container *c, Runtime__V1__ContainerEventType type)
{
    if (type == RUNTIME__V1__CONTAINER_EVENT_TYPE__CONTAINER_STARTED_EVENT) {
        if (c->told_started)
            return;
        c->told_started = true;
    }
    publish(c->sandbox, c->rec.id, type);
}

/* --- GetContainerEvents --- */

static int subscribe(struct events *e, struct subscriber *u, struct err *err)
{
    *u = (struct subscriber){.ready = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    STAILQ_INIT(&u->queue);
    if (u->ready < 0)
        return err_sys(err, errno, "make eventfd");
    int rc = 0;
    (void)pthread_mutex_lock(&e->lock);
    if (e->n >= LIMIT_EVENT_SUBSCRIBERS) {
        rc = err_set(err, ERR_EXHAUSTED, "%d clients listen to events already",
                     LIMIT_EVENT_SUBSCRIBERS);
    } else {
        TAILQ_INSERT_TAIL(&e->subscribers, u, link);
        e->n++;
    }
    (void)pthread_mutex_unlock(&e->lock);
    if (rc < 0)
        cleanup_closep(&u->ready);
    return rc;
}

static void unsubscribe(struct events *e, struct subscriber *u)
{
    (void)pthread_mutex_lock(&e->lock);
    TAILQ_REMOVE(&e->subscribers, u, link);
    e->n--;
    drop_queue(u);
    (void)pthread_mutex_unlock(&e->lock);
    cleanup_closep(&u->ready);
}

/* The next event, the caller's; NULL without *err: there is none at the moment. */
static struct packed *next(struct events *e, struct subscriber *u, struct err *err)
{
    struct packed *p = NULL;
    (void)pthread_mutex_lock(&e->lock);
    struct item *i = STAILQ_FIRST(&u->queue);
    if (i != NULL) {
        STAILQ_REMOVE_HEAD(&u->queue, link);
        p = i->event;
        u->bytes -= p->len;
        free(i);
    } else if (u->lost) {
        (void)err_set(err, ERR_EXHAUSTED,
                      "this client reads events too slowly and has missed some; list and listen "
                      "again");
    }
    (void)pthread_mutex_unlock(&e->lock);
    return p;
}

static int pass_on(struct call *call, struct events *e, struct subscriber *u, struct err *err)
{
    for (;;) {
        auto_packed struct packed *p = next(e, u, err);
        if (p != NULL) {
            if (call->send(call, p->data, p->len, err) < 0)
                return -1;
            continue;
        }
        eventfd_t ignored;
        if (err->code != ERR_OK || cancel_poll(call->cancel, u->ready, POLLIN, -1, err) < 0)
            return -1;
        (void)eventfd_read(u->ready, &ignored);
    }
}

int cri_get_container_events(struct call *call, const ProtobufCMessage *req,
                             ProtobufCMessage **reply, struct err *err)
{
    (void)req;
    (void)reply;
    struct events *e = ((const struct daemon *)call->daemon)->runtime->events;
    struct subscriber u;
    if (subscribe(e, &u, err) < 0)
        return -1;
    int rc = pass_on(call, e, &u, err);
    unsubscribe(e, &u);
    return rc;
}
