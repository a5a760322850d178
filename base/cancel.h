/*
 * cancel - one token per call that says "stop": fired by hand, or by its deadline.
 *
 * Blocking work takes a `struct cancel *` (NULL: never cancelled) and includes cancel_fd() in its
 * poll set; the fd becomes readable when the token fires and stays so. A token made with a deadline
 * fires by itself then (a timerfd inside the same epoll fd). Memory: reference counted.
 * Threads: any.
 */
#ifndef ASPIS_BASE_CANCEL_H
#define ASPIS_BASE_CANCEL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/cleanup.h"
#include "base/err.h"

struct cancel;

/* deadline_ns: CLOCK_MONOTONIC nanoseconds, 0 for none. */
struct cancel *cancel_new(int64_t deadline_ns, struct err *err);
/* A token of its own deadline that also fires when parent does (parent may be NULL). */
struct cancel *cancel_child(struct cancel *parent, int64_t deadline_ns, struct err *err);
struct cancel *cancel_ref(struct cancel *c);
void cancel_unref(struct cancel *c);
void cancel_fire(struct cancel *c);
bool cancel_fired(struct cancel *c);
int cancel_fd(struct cancel *c);                 /* -1 for NULL */
int64_t cancel_deadline(const struct cancel *c); /* 0: none */
/* 0 while the call may go on, else -1 with CANCELLED or DEADLINE in *err. */
int cancel_check(struct cancel *c, struct err *err);
/* Waits until fd has `events` (poll bits), the token fires, or timeout_ms passes (-1: none).
 * Returns the revents, 0 at the timeout, -1 with *err when cancelled or poll failed. */
int cancel_poll(struct cancel *c, int fd, short events, int timeout_ms, struct err *err);

int64_t mono_ns(void);
int64_t wall_ns(void);

DEFINE_AUTO(struct cancel *, cancel_unref);
#define auto_cancel __attribute__((cleanup(cancel_unrefp)))

#endif
