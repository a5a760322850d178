#include "cri/container_end.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "cri/container_ops.h"
#include "cri/events.h"
#include "cri/sandbox_ops.h"

/* A full disk may keep a log from completing for ever; the end is shown after this. The rest of the
 * log is written when there is room. */
#define LOG_PATIENCE_NS (10LL * 1000000000)

/* Under the lock: makes c EXITED unless it is already. */
static bool mark_exited(struct container *c, uint32_t code, const char *reason, const char *message,
                        int64_t at)
{
    if (c->rec.phase == CONTAINER_EXITED || c->rec.phase == CONTAINER_REMOVING)
        return false;
    c->rec.phase = CONTAINER_EXITED;
    c->start_unsure = false;
    c->rec.exit_code = code;
    int64_t now = wall_ns();
    c->rec.finished_at = at <= 0 || at > now ? now : at;
    if (c->rec.finished_at < c->rec.started_at)
        c->rec.finished_at = c->rec.started_at;
    free(c->rec.reason);
    free(c->rec.message);
    c->rec.reason = xstrdup(reason);
    c->rec.message = xstrdup(message);
    /* one that ended before StartContainer's answer came back did start */
    if (c->starting && c->exit_seen && c->start_error == NULL)
        events_container(c, RUNTIME__V1__CONTAINER_EVENT_TYPE__CONTAINER_STARTED_EVENT);
    events_container(c, RUNTIME__V1__CONTAINER_EVENT_TYPE__CONTAINER_STOPPED_EVENT);
    return true;
}

/* Under the lock: the same with what its Exit said. */
static bool mark_ended(struct container *c)
{
    const char *reason = c->start_error != NULL ? START_ERROR
                         : c->oom_killed        ? "OOMKilled"
                         : c->exit_code == 0    ? "Completed"
                                                : "Error";
    return mark_exited(c, c->exit_code, reason, c->start_error != NULL ? c->start_error : "",
                       c->exited_at);
}

/* Record, show, acknowledge. On any thread that may write records. */
static void publish(struct container *c)
{
    auto_err struct err err = ERR_INIT;
    if (container_save(c, &err) < 0) {
        /* not acknowledged: the agent keeps the exit and a later daemon gets it again */
        log_error("cannot record end of container", LOG_STR("container", c->rec.id),
                  LOG_STR("error", err_msg(&err)));
    } else {
        (void)pthread_mutex_lock(&c->rt->lock);
        c->exit_seq = 0;
        (void)pthread_mutex_unlock(&c->rt->lock);
    }
    (void)eventfd_write(c->exited_fd, 1);
    sandbox_ack_events(c->sandbox);
}

static void finish(void *arg)
{
    struct container *c = arg;
    (void)pthread_mutex_lock(&c->rt->lock);
    struct loop_source *late = c->late;
    c->late = NULL;
    bool fresh = mark_ended(c);
    (void)pthread_mutex_unlock(&c->rt->lock);
    if (late != NULL) {
        loop_remove(late);
        container_unref(c);
    }
    publish(c);
    if (fresh)
        log_info("container exited", LOG_STR("container", c->rec.id),
                 LOG_INT("code", c->rec.exit_code), LOG_STR("reason", c->rec.reason));
    container_unref(c);
}

/* Under the lock: true when the caller is to post finish() with a reference. */
static bool ready_to_finish(struct container *c, bool impatient)
{
    if (!c->exit_seen || c->finishing || (!c->log_done && !impatient))
        return false;
    c->finishing = true;
    (void)container_ref(c);
    return true;
}

static void on_late(struct loop_source *src, void *arg)
{
    (void)src;
    struct container *c = arg;
    (void)pthread_mutex_lock(&c->rt->lock);
    bool go = ready_to_finish(c, true);
    (void)pthread_mutex_unlock(&c->rt->lock);
    if (go) {
        log_warn("container ended but its log cannot be completed", LOG_STR("container", c->rec.id),
                 LOG_STR("path", c->rec.log_path));
        finish(c);
    }
}

/* On the worker loop, with a reference that the timer keeps. */
static void be_patient(void *arg)
{
    struct container *c = arg;
    (void)pthread_mutex_lock(&c->rt->lock);
    bool needed = !c->finishing && c->late == NULL;
    if (needed)
        c->late = loop_add_timer(c->rt->worker, LOG_PATIENCE_NS, on_late, c, NULL);
    needed = needed && c->late != NULL;
    (void)pthread_mutex_unlock(&c->rt->lock);
    if (!needed)
        container_unref(c);
}

void container_log_is_done(struct container *c)
{
    (void)pthread_mutex_lock(&c->rt->lock);
    c->log_done = true;
    bool go = ready_to_finish(c, false);
    (void)pthread_mutex_unlock(&c->rt->lock);
    if (go)
        loop_post(c->rt->worker, finish, c);
}

/* The guest chose the ids and numbers in here: only what we know counts, and only in range. seq 0:
 * not from an event. */
static void container_ended(struct sandbox *s, uint64_t seq, const Aspis__Agent__V1__Exit *e)
{
    struct container *c = NULL;
    bool go = false;
    bool wait = false;
    (void)pthread_mutex_lock(&s->rt->lock);
    TAILQ_FOREACH(c, &s->containers, link)
    {
        if (strcmp(c->rec.id, e->container_id) == 0)
            break;
    }
    /* an end that is on record already only wants its acknowledgement */
    bool open = c != NULL && c->rec.phase != CONTAINER_EXITED && c->rec.phase != CONTAINER_REMOVING;
    if (open && c->exit_seen && c->exit_seq == 0)
        c->exit_seq = seq;
    if (open && !c->exit_seen) {
        c->exit_seen = true;
        c->exit_seq = seq;
        if (!str_empty(e->start_error)) {
            auto_free char *text = link_guest_text(e->start_error, strlen(e->start_error));
            c->start_error = fs_format("agent: %s", text);
        }
        c->exit_code = e->exit_code & 0xff;
        c->oom_killed = e->oom_killed;
        c->exited_at = e->exited_at_ns > INT64_MAX ? 0 : (int64_t)e->exited_at_ns;
        go = ready_to_finish(c, false);
        wait = !go;
        if (wait)
            (void)container_ref(c);
    }
    (void)pthread_mutex_unlock(&s->rt->lock);
    if (go)
        loop_post(s->rt->worker, finish, c);
    else if (wait)
        loop_post(s->rt->worker, be_patient, c);
}

void container_end_listed(struct container *c, const Aspis__Agent__V1__Exit *e)
{
    if (strcmp(e->container_id, c->rec.id) == 0)
        container_ended(c->sandbox, 0, e);
}

static void on_exec_exit(struct sandbox *s, const Aspis__Agent__V1__Exit *e)
{
    struct exec *x;
    (void)pthread_mutex_lock(&s->rt->lock);
    TAILQ_FOREACH(x, &s->execs, link)
    {
        if (strcmp(x->container_id, e->container_id) != 0 || strcmp(x->exec_id, e->exec_id) != 0)
            continue;
        x->ended = true;
        x->exit_code = e->exit_code & 0xff;
        (void)eventfd_write(x->ended_fd, 1);
    }
    (void)pthread_mutex_unlock(&s->rt->lock);
}

void container_on_event(struct sandbox *s, const Aspis__Agent__V1__Event *event)
{
    (void)pthread_mutex_lock(&s->rt->lock);
    if (event->seq > s->last_seq)
        s->last_seq = event->seq;
    (void)pthread_mutex_unlock(&s->rt->lock);
    if (event->what_case == ASPIS__AGENT__V1__EVENT__WHAT_EXIT && event->exit != NULL) {
        if (event->exit->exec_id[0] == '\0')
            container_ended(s, event->seq, event->exit);
        else
            on_exec_exit(s, event->exit);
    }
    sandbox_ack_events(s);
}

void containers_lost(struct sandbox *s, const char *reason)
{
    struct exec *x;
    (void)pthread_mutex_lock(&s->rt->lock);
    TAILQ_FOREACH(x, &s->execs, link)
    {
        x->lost = true;
        (void)eventfd_write(x->ended_fd, 1);
    }
    (void)pthread_mutex_unlock(&s->rt->lock);
    size_t n = 0;
    struct container **list = model_containers_of(s, &n);
    for (size_t i = 0; i < n; i++) {
        struct container *c = list[i];
        (void)pthread_mutex_lock(&s->rt->lock);
        struct container_log *log = c->rec.phase == CONTAINER_EXITED ? NULL : c->log;
        (void)pthread_mutex_unlock(&s->rt->lock);
        /* the log lives until the container is removed, which needs the sandbox's or the
         * container's op lock */
        if (log != NULL)
            container_log_flush(log);
        (void)pthread_mutex_lock(&s->rt->lock);
        bool changed = false;
        if (c->rec.phase == CONTAINER_CREATING)
            ;
        else if (c->exit_seen)
            changed = mark_ended(c);
        else if (*reason == '\0')
            changed = mark_exited(c, 137, "Error", "killed when its sandbox was stopped", 0);
        else
            changed = mark_exited(c, 255, "Unknown", reason, 0);
        (void)pthread_mutex_unlock(&s->rt->lock);
        if (changed)
            publish(c);
        container_unref(c);
    }
    free(list);
}

static void remove_source(void *arg)
{
    loop_remove(arg);
}

void container_end_forget(struct container *c)
{
    (void)pthread_mutex_lock(&c->rt->lock);
    c->finishing = true;
    struct loop_source *late = take(c->late);
    (void)pthread_mutex_unlock(&c->rt->lock);
    if (late == NULL)
        return;
    loop_call(c->rt->worker, remove_source, late);
    container_unref(c);
}

static void finish_now(struct container *c, uint32_t code, const char *reason, const char *message)
{
    (void)pthread_mutex_lock(&c->rt->lock);
    bool changed = mark_exited(c, code, reason, message, 0);
    (void)pthread_mutex_unlock(&c->rt->lock);
    if (changed)
        publish(c);
}

void container_finish_start_error(struct container *c, const char *message)
{
    finish_now(c, 128, START_ERROR, message);
}

void container_finish_lost(struct container *c, const char *message)
{
    finish_now(c, 255, "Unknown", message);
}
