/*
 * hub - a container's output for those attached to it: each gets the bytes from when it began to
 * listen. The log is written beside it and waits for nobody.
 *
 * Listeners are called with the hub's lock held, on the io loop or the thread that ends the log:
 * they must not block nor call the hub. After hub_unlisten() returned, one is called no more.
 */
#ifndef ASPIS_CRI_HUB_H
#define ASPIS_CRI_HUB_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/queue.h>

struct hub_listener {
    /* stream: 0 stdout, 1 stderr */
    void (*on_data)(void *arg, unsigned stream, const void *data, size_t len);
    void (*on_end)(void *arg, unsigned stream);
    void *arg;
    TAILQ_ENTRY(hub_listener) link;
};

struct hub {
    pthread_mutex_t lock;
    bool ended[2];
    TAILQ_HEAD(, hub_listener) listeners;
};

static inline void hub_init(struct hub *h)
{
    (void)pthread_mutex_init(&h->lock, NULL);
    TAILQ_INIT(&h->listeners);
}

static inline void hub_destroy(struct hub *h)
{
    (void)pthread_mutex_destroy(&h->lock);
}

static inline void hub_data(struct hub *h, unsigned stream, const void *data, size_t len)
{
    struct hub_listener *l;
    (void)pthread_mutex_lock(&h->lock);
    TAILQ_FOREACH(l, &h->listeners, link)
    l->on_data(l->arg, stream, data, len);
    (void)pthread_mutex_unlock(&h->lock);
}

/* Once per stream; later calls do nothing. */
static inline void hub_end(struct hub *h, unsigned stream)
{
    struct hub_listener *l;
    (void)pthread_mutex_lock(&h->lock);
    if (!h->ended[stream]) {
        h->ended[stream] = true;
        TAILQ_FOREACH(l, &h->listeners, link)
        l->on_end(l->arg, stream);
    }
    (void)pthread_mutex_unlock(&h->lock);
}

/* What has ended already is told at once. */
static inline void hub_listen(struct hub *h, struct hub_listener *l)
{
    (void)pthread_mutex_lock(&h->lock);
    TAILQ_INSERT_TAIL(&h->listeners, l, link);
    for (unsigned i = 0; i < 2; i++) {
        if (h->ended[i])
            l->on_end(l->arg, i);
    }
    (void)pthread_mutex_unlock(&h->lock);
}

static inline void hub_unlisten(struct hub *h, struct hub_listener *l)
{
    (void)pthread_mutex_lock(&h->lock);
    TAILQ_REMOVE(&h->listeners, l, link);
    (void)pthread_mutex_unlock(&h->lock);
}

#endif
