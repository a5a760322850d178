/*
 * oplock - a lock that a cancelled call stops waiting for.
 *
 * Serialises long operations on one object (a pthread mutex cannot be abandoned at a deadline). An
 * eventfd semaphore of one: taking it is a poll together with the call's cancellation token. Not
 * recursive.
 */
#ifndef ASPIS_CRI_OPLOCK_H
#define ASPIS_CRI_OPLOCK_H

#include <errno.h>
#include <poll.h>
#include <sys/eventfd.h>

#include "base/cancel.h"
#include "base/err.h"

struct oplock {
    int fd;
};

static inline int oplock_init(struct oplock *l, struct err *err)
{
    l->fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE);
    return l->fd < 0 ? err_sys(err, errno, "make lock") : 0;
}

static inline int oplock_take(struct oplock *l, struct cancel *cancel, struct err *err)
{
    for (;;) {
        eventfd_t one;
        if (eventfd_read(l->fd, &one) == 0)
            return 0;
        if (cancel_poll(cancel, l->fd, POLLIN, -1, err) < 0)
            return -1;
    }
}

static inline void oplock_release(struct oplock *l)
{
    (void)eventfd_write(l->fd, 1);
}

static inline void oplock_destroy(struct oplock *l)
{
    cleanup_closep(&l->fd);
}

/* For a scope: `auto_oplock struct oplock *held = &c->op;` after a successful take. */
static inline void oplock_releasep(struct oplock **l)
{
    if (*l != NULL)
        oplock_release(*l);
}
#define auto_oplock __attribute__((cleanup(oplock_releasep), unused))

#endif
