/*
 * loop - an epoll event loop: file descriptors, timers, signals by fd, and work posted from other
 * threads.
 *
 * One thread runs loop_run(). Sources are added from any thread; their callbacks run on the loop's
 * thread only and must not block. A source is freed with loop_remove(), which, called on the loop's
 * thread (also from within its own callback), is final: no callback comes after it. From another
 * thread use loop_call() to run the removal on the loop and wait for it.
 *
 * Memory: the loop owns its sources until they are removed; it never closes a watched fd.
 */
#ifndef ASPIS_BASE_LOOP_H
#define ASPIS_BASE_LOOP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

#include "base/err.h"

struct loop;
struct loop_source;

typedef void (*loop_fd_fn)(struct loop_source *src, uint32_t events, void *arg);
typedef void (*loop_timer_fn)(struct loop_source *src, void *arg);
typedef void (*loop_work_fn)(void *arg);

struct loop *loop_new(struct err *err);
/* Runs pending posted work, then frees; the loop must not be running. */
void loop_free(struct loop *loop);
/* Runs until loop_stop(). */
void loop_run(struct loop *loop);
/* One turn: waits at most timeout_ms (-1: for ever) and dispatches. For tests and the agent. */
void loop_turn(struct loop *loop, int timeout_ms);
void loop_stop(struct loop *loop);
bool loop_is_current(const struct loop *loop); /* are we on the loop's thread? */

/* events: EPOLLIN, EPOLLOUT, ... level-triggered. */
struct loop_source *loop_add_fd(struct loop *loop, int fd, uint32_t events, loop_fd_fn fn,
                                void *arg, struct err *err);
int loop_set_events(struct loop_source *src, uint32_t events);
/* One-shot timer in delay_ns from now; re-arm with loop_set_timer() (delay 0 fires at once, a
 * negative one disarms). */
struct loop_source *loop_add_timer(struct loop *loop, int64_t delay_ns, loop_timer_fn fn, void *arg,
                                   struct err *err);
int loop_set_timer(struct loop_source *src, int64_t delay_ns);
void loop_remove(struct loop_source *src); /* NULL is fine */

/* Runs fn(arg) on the loop's thread, in the order posted; thread safe; never fails but for memory
 * (then it aborts the process: nothing sensible can follow). */
void loop_post(struct loop *loop, loop_work_fn fn, void *arg);
/* Like loop_post() but returns when fn has run; on the loop's own thread runs it directly. */
void loop_call(struct loop *loop, loop_work_fn fn, void *arg);

#endif
