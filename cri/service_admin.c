#include "cri/service_admin.h"

#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

#include "base/limits.h"
#include "base/str.h"
#include "cri/daemon.h"
#include "cri/image/image.h"
#include "cri/model.h"
#include "proto/admin.pb-c.h"

/* --- transfers with progress --- */

/* The newest report about one layer in one phase. */
struct report {
    char digest[160];
    char phase[24];
    uint64_t done, total;
    bool fresh; /* not sent yet */
};

/* A transfer runs on a thread of its own and reports from any thread; the handler's thread sends
 * the newest reports a few times a second. Nothing waits for the client. */
struct transfer {
    const struct daemon *daemon;
    struct cancel *cancel;
    const char *name; /* pull: reference; import: name */
    const char *path; /* import */
    const struct image_auth *auth;
    struct strv ids; /* the result */
    struct err err;
    int rc;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct report reports[2 * LIMIT_IMAGE_LAYERS + 8]; /* under lock, like all below */
    size_t n_reports;
    bool any_fresh, ended;
};

/* How often a client hears of progress. */
#define REPORT_NS 100000000

static void on_progress(void *arg, const struct image_progress *p)
{
    struct transfer *t = arg;
    const char *digest = p->digest != NULL ? p->digest : "";
    (void)pthread_mutex_lock(&t->lock);
    struct report *r = NULL;
    for (size_t i = 0; r == NULL && i < t->n_reports; i++)
        if (strcmp(t->reports[i].digest, digest) == 0 && strcmp(t->reports[i].phase, p->phase) == 0)
            r = &t->reports[i];
    if (r == NULL && t->n_reports < ARRAY_LEN(t->reports) && strlen(digest) < sizeof(r->digest) &&
        strlen(p->phase) < sizeof(r->phase)) {
        r = &t->reports[t->n_reports++];
        *r = (struct report){0};
        memcpy(r->digest, digest, strlen(digest));
        memcpy(r->phase, p->phase, strlen(p->phase));
        r->fresh = true;
    }
    if (r != NULL && (r->fresh || p->done > r->done || p->total != r->total)) {
        r->done = p->done > r->done ? p->done : r->done;
        r->total = p->total;
        r->fresh = t->any_fresh = true;
        (void)pthread_cond_signal(&t->changed);
    }
    (void)pthread_mutex_unlock(&t->lock);
}

static void *transfer_thread(void *arg)
{
    struct transfer *t = arg;
    if (t->path != NULL) {
        t->rc = image_import(t->daemon->images, t->path, str_empty(t->name) ? NULL : t->name,
                             on_progress, t, t->cancel, &t->ids, &t->err);
    } else {
        auto_free char *id = NULL;
        t->rc = image_pull(t->daemon->images, t->name, t->auth, on_progress, t, t->cancel, &id,
                           &t->err);
        if (t->rc == 0)
            strv_add(&t->ids, id);
    }
    (void)pthread_mutex_lock(&t->lock);
    t->ended = true;
    (void)pthread_cond_signal(&t->changed);
    (void)pthread_mutex_unlock(&t->lock);
    return NULL;
}

/* Of secrets. The request is unpacked into memory of this call; nobody else sees the change. */
static void wipe(const char *s)
{
    if (!str_empty(s))
        explicit_bzero((char *)(uintptr_t)s, strlen(s));
}

typedef int (*send_fn)(struct call *call, Aspis__V1__Progress *progress, struct err *err);

/* Sends what is fresh. The lock is held, but not while sending. */
static int send_fresh(struct transfer *t, struct call *call, send_fn send, struct err *err)
{
    t->any_fresh = false;
    for (size_t i = 0; i < t->n_reports; i++) {
        if (!t->reports[i].fresh)
            continue;
        t->reports[i].fresh = false;
        struct report r = t->reports[i];
        (void)pthread_mutex_unlock(&t->lock);
        Aspis__V1__Progress p = ASPIS__V1__PROGRESS__INIT;
        p.digest = r.digest;
        p.phase = r.phase;
        p.done = r.done;
        p.total = r.total;
        int rc = send(call, &p, err);
        (void)pthread_mutex_lock(&t->lock);
        if (rc < 0)
            return -1;
    }
    return 0;
}

/* Waits for the end while sending reports; a client that is gone or asleep ends the transfer. */
static void follow(struct transfer *t, struct call *call, send_fn send, struct err *err)
{
    bool silent = false;
    (void)pthread_mutex_lock(&t->lock);
    for (;;) {
        while (!t->ended && (silent || !t->any_fresh))
            (void)pthread_cond_wait(&t->changed, &t->lock);
        if (!silent && t->any_fresh && send_fresh(t, call, send, err) < 0) {
            silent = true;
            cancel_fire(t->cancel);
        }
        if (t->ended && (silent || !t->any_fresh))
            break;
        /* Reports gather meanwhile; the end cuts the wait short. */
        int64_t until = mono_ns() + REPORT_NS;
        struct timespec at = {.tv_sec = (time_t)(until / 1000000000),
                              .tv_nsec = (long)(until % 1000000000)};
        while (!t->ended && pthread_cond_timedwait(&t->changed, &t->lock, &at) == 0)
            ;
    }
    (void)pthread_mutex_unlock(&t->lock);
}

static int run_transfer(struct transfer *t, struct call *call, send_fn send, struct err *err)
{
    t->daemon = call->daemon;
    t->cancel = cancel_child(call->cancel, 0, err);
    if (t->cancel == NULL)
        return -1;
    pthread_condattr_t attr;
    (void)pthread_condattr_init(&attr);
    (void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    (void)pthread_cond_init(&t->changed, &attr);
    (void)pthread_condattr_destroy(&attr);
    (void)pthread_mutex_init(&t->lock, NULL);
    pthread_t thread;
    int rc = pthread_create(&thread, NULL, transfer_thread, t);
    if (rc == 0) {
        auto_err struct err lost = ERR_INIT;
        follow(t, call, send, &lost);
        (void)pthread_join(thread, NULL);
        rc = t->rc;
        if (lost.code != ERR_OK)
            rc = err_move(err, &lost);
        else if (rc < 0)
            (void)err_move(err, &t->err);
    } else {
        rc = err_sys(err, rc, "start a thread");
    }
    (void)pthread_mutex_destroy(&t->lock);
    (void)pthread_cond_destroy(&t->changed);
    cancel_unref(t->cancel);
    err_clear(&t->err);
    return rc;
}

static int send_import(struct call *call, Aspis__V1__Progress *p, struct err *err)
{
    Aspis__V1__ImportImageEvent e = ASPIS__V1__IMPORT_IMAGE_EVENT__INIT;
    e.progress = p;
    return call_send(call, &e.base, err);
}

static int send_pull(struct call *call, Aspis__V1__Progress *p, struct err *err)
{
    Aspis__V1__PullImageEvent e = ASPIS__V1__PULL_IMAGE_EVENT__INIT;
    e.progress = p;
    return call_send(call, &e.base, err);
}

int admin_import_image(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                       struct err *err)
{
    (void)reply;
    const Aspis__V1__ImportImageRequest *r = (const Aspis__V1__ImportImageRequest *)req;
    if (r->path[0] != '/')
        return err_set(err, ERR_INVALID, "import `%s`: the path must be absolute", r->path);
    auto_free struct transfer *t = xcalloc(1, sizeof(*t));
    t->path = r->path;
    t->name = r->name;
    int rc = run_transfer(t, call, send_import, err);
    if (rc == 0) {
        Aspis__V1__ImportImageEvent e = ASPIS__V1__IMPORT_IMAGE_EVENT__INIT;
        e.image_ids = t->ids.v;
        e.n_image_ids = t->ids.n;
        rc = call_send(call, &e.base, err);
    }
    strv_clear(&t->ids);
    return rc;
}

int admin_pull_image(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                     struct err *err)
{
    (void)reply;
    const Aspis__V1__PullImageRequest *r = (const Aspis__V1__PullImageRequest *)req;
    if (r->image[0] == '\0')
        return err_set(err, ERR_INVALID, "the request names no image");
    struct image_auth auth = {0};
    auto_free struct transfer *t = xcalloc(1, sizeof(*t));
    t->name = r->image;
    const Aspis__V1__Auth *a = r->auth;
    if (a != NULL) {
        auth = (struct image_auth){a->username,       a->password,       a->auth,
                                   a->server_address, a->identity_token, a->registry_token};
        t->auth = &auth;
    }
    int rc = run_transfer(t, call, send_pull, err);
    if (a != NULL) {
        wipe(a->password);
        wipe(a->auth);
        wipe(a->identity_token);
        wipe(a->registry_token);
    }
    if (rc == 0) {
        Aspis__V1__PullImageEvent e = ASPIS__V1__PULL_IMAGE_EVENT__INIT;
        e.image_ref = t->ids.v[0];
        rc = call_send(call, &e.base, err);
    }
    strv_clear(&t->ids);
    return rc;
}

/* --- waiting --- */

int admin_wait_container(struct call *call, const ProtobufCMessage *req, ProtobufCMessage **reply,
                         struct err *err)
{
    const struct daemon *d = call->daemon;
    const Aspis__V1__WaitContainerRequest *r = (const Aspis__V1__WaitContainerRequest *)req;
    auto_container struct container *c = model_find_container(d->runtime, r->container_id, err);
    if (c == NULL || cancel_poll(call->cancel, c->exited_fd, POLLIN, -1, err) < 0)
        return -1;
    Aspis__V1__WaitContainerResponse *out =
        call_message(call, &aspis__v1__wait_container_response__descriptor, err);
    if (out == NULL)
        return -1;
    (void)pthread_mutex_lock(&d->runtime->lock);
    out->exit_code = (int32_t)c->rec.exit_code;
    out->reason = call_string(call, c->rec.reason, err);
    (void)pthread_mutex_unlock(&d->runtime->lock);
    *reply = &out->base;
    return out->reason == NULL ? -1 : 0;
}
