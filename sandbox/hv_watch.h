/*
 * hv_watch - the part that every driver has of a struct hv: its process, started by this daemon or
 * found again, and the notice of its end by pidfd.
 *
 * Threads: init to clear block and may be called from any thread but the loops' own; on_exit comes
 * on the control loop, at most once, after the process was reaped. Memory: the struct is part of
 * the driver's; clear does not touch a running process. Private to the drivers.
 */
#ifndef ASPIS_SANDBOX_HV_WATCH_H
#define ASPIS_SANDBOX_HV_WATCH_H

#include <pthread.h>
#include <stdbool.h>

#include "base/spawn.h"
#include "sandbox/hypervisor.h"

struct hv_watch {
    struct loop *control;
    void (*on_exit)(void *arg);
    void *arg;

    struct loop_source *exit_src; /* loop thread only */

    pthread_mutex_t lock;   /* guards the rest */
    struct spawn_proc proc; /* fixed once launched or adopted; pidfd -1: there is none */
    uint64_t start_time;
    bool child; /* ours to reap */
    bool watched;
    bool exited;
    int status; /* wait status when exited and child */
    bool quiet; /* quit() or free(): no on_dead any more */
    int gone;   /* eventfd: exited */
};

/* Whatever it returns, hv_watch_clear() is to follow. */
int hv_watch_init(struct hv_watch *w, struct loop *control, void (*on_exit)(void *arg), void *arg,
                  struct err *err);

/* Takes over a process that was just started. */
void hv_watch_launched(struct hv_watch *w, const struct spawn_proc *proc);
/* Takes over the process of an earlier daemon. NOT_FOUND: it is gone (or the pid is another's). */
int hv_watch_adopted(struct hv_watch *w, const struct hv_process *process, const char *binary,
                     struct err *err);
/* From here on on_exit may come. When it fails, a child is killed and reaped: nobody else would. */
int hv_watch_begin(struct hv_watch *w, struct err *err);

/* No on_dead any more: the driver asks hv_watch_silenced() before it calls that. */
void hv_watch_silence(struct hv_watch *w);
bool hv_watch_silenced(struct hv_watch *w);
bool hv_watch_exited(struct hv_watch *w);
void hv_watch_kill(struct hv_watch *w);
/* Until on_exit's process is gone; at once when there is none. */
int hv_watch_wait(struct hv_watch *w, struct cancel *cancel, struct err *err);
struct hv_process hv_watch_process(const struct hv_watch *w);

/* Silences it; on_exit is not under way and does not come once this has returned. */
void hv_watch_stop(struct hv_watch *w);
/* After hv_watch_stop(). A running process goes on. */
void hv_watch_clear(struct hv_watch *w);

#endif
