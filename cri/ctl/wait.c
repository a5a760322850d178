#include "cri/ctl/wait.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>

#include "base/limits.h"
#include "base/str.h"
#include "cri/ctl/ctl.h"
#include "proto/admin.pb-c.h"

struct wait {
    struct gclient *client;
    char *id;
    int ended; /* eventfd */
    pthread_t thread;
    bool running;
    /* Written by the thread before `ended`. */
    int rc;
    int32_t exit_code;
    struct err err;
};

static void *wait_thread(void *arg)
{
    struct wait *w = arg;
    auto_arena struct arena *arena = arena_new(MiB(1));
    Aspis__V1__WaitContainerRequest r = ASPIS__V1__WAIT_CONTAINER_REQUEST__INIT;
    r.container_id = w->id;
    const Aspis__V1__WaitContainerResponse *out =
        (const Aspis__V1__WaitContainerResponse *)gclient_call(
            w->client, ADMIN_SERVICE "WaitContainer", &r.base,
            &aspis__v1__wait_container_response__descriptor, arena, 0, &w->err);
    w->rc = out != NULL ? 0 : -1;
    if (out != NULL)
        w->exit_code = out->exit_code;
    (void)eventfd_write(w->ended, 1);
    return NULL;
}

struct wait *wait_start(const char *socket, const char *container_id, struct err *err)
{
    auto_wait struct wait *w = xcalloc(1, sizeof(*w));
    w->ended = -1;
    w->client = gclient_open(socket, err);
    if (w->client == NULL)
        return NULL;
    w->id = xstrdup(container_id);
    w->ended = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (w->ended < 0) {
        (void)err_sys(err, errno, "eventfd");
        return NULL;
    }
    int rc = pthread_create(&w->thread, NULL, wait_thread, w);
    if (rc != 0) {
        (void)err_sys(err, rc, "start a thread");
        return NULL;
    }
    w->running = true;
    return take(w);
}

int wait_fd(const struct wait *w)
{
    return w->ended;
}

int wait_result(const struct wait *w, int32_t *exit_code, struct err *err)
{
    if (w->rc < 0)
        return err_set(err, w->err.code, "%s", err_msg(&w->err));
    *exit_code = w->exit_code;
    return 0;
}

void wait_free(struct wait *w)
{
    if (w == NULL)
        return;
    if (w->running) {
        gclient_cancel(w->client);
        (void)pthread_join(w->thread, NULL);
    }
    gclient_close(w->client);
    cleanup_closep(&w->ended);
    err_clear(&w->err);
    free(w->id);
    free(w);
}

int wait_following(struct wait *w, struct follow *f, const struct wait_signals *signals,
                   struct err *err)
{
    struct pollfd fds[] = {
        {.fd = wait_fd(w), .events = POLLIN},
        {.fd = follow_fd(f), .events = POLLIN},
        {.fd = signals != NULL ? signals->fd : -1, .events = POLLIN},
    };
    unsigned n_signals = 0;
    for (;;) {
        if (follow_read(f, err) < 0)
            return -1;
        if (fds[0].revents != 0)
            break; /* the log was complete before the end was told */
        if (poll(fds, ARRAY_LEN(fds), -1) < 0 && errno != EINTR)
            return err_sys(err, errno, "poll");
        eventfd_t one;
        if ((fds[2].revents & POLLIN) != 0 && eventfd_read(signals->fd, &one) == 0 &&
            signals->on_signal(signals->arg, ++n_signals, err) < 0)
            return -1;
    }
    int32_t code = 0;
    return wait_result(w, &code, err) < 0 ? -1 : code;
}
