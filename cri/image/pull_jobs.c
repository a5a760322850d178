/*
 * image_pull(): identical pulls join. One job per reference and credentials runs on its own thread;
 * callers wait for it, each with its own cancel token. The last caller to give up stops the job and
 * waits until it has cleaned up.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/fs.h"
#include "cri/image/pull.h"
#include "cri/image/store_internal.h"

struct listener {
    image_progress_fn fn;
    void *arg;
    LIST_ENTRY(listener) link;
};

/* The list, refs, waiters and done are guarded by the store's pulls_lock; the listeners by their
 * own. */
struct pull_job {
    struct image_store *store;
    char *key; /* reference and a hash of the credentials */
    struct reference ref;
    struct registry *registry;
    struct cancel *cancel;
    int done_fd; /* readable for ever once the job has ended */
    unsigned refs, waiters;
    bool listed;
    char *id; /* the result; written before done_fd */
    struct err err;
    pthread_mutex_t listeners_lock;
    LIST_HEAD(, listener) listeners;
    LIST_ENTRY(pull_job) link;
};

static void job_free(struct pull_job *j)
{
    free(j->key);
    reference_clear(&j->ref);
    registry_free(j->registry);
    cancel_unref(j->cancel);
    if (j->done_fd >= 0)
        (void)close(j->done_fd);
    free(j->id);
    err_clear(&j->err);
    (void)pthread_mutex_destroy(&j->listeners_lock);
    free(j);
}

static void unlist_locked(struct pull_job *j)
{
    if (j->listed)
        LIST_REMOVE(j, link);
    j->listed = false;
}

/* True when that was the last reference: the job is the caller's to free, without the lock. */
static bool unref_locked(struct pull_job *j)
{
    if (--j->refs > 0)
        return false;
    unlist_locked(j);
    return true;
}

static void job_unref(struct pull_job *j)
{
    struct image_store *s = j->store;
    bool last;

    pthread_mutex_lock(&s->pulls_lock);
    last = unref_locked(j);
    pthread_mutex_unlock(&s->pulls_lock);
    if (last)
        job_free(j);
}

static void on_progress(void *arg, const struct image_progress *p)
{
    struct pull_job *j = arg;
    struct listener *l;

    pthread_mutex_lock(&j->listeners_lock);
    LIST_FOREACH(l, &j->listeners, link)
    l->fn(l->arg, p);
    pthread_mutex_unlock(&j->listeners_lock);
}

static void *job_main(void *arg)
{
    struct pull_job *j = arg;
    struct image_store *s = j->store;
    bool last;

    (void)pull_image(s, j->registry, &j->ref, on_progress, j, j->cancel, &j->id, &j->err);
    pthread_mutex_lock(&s->pulls_lock);
    unlist_locked(j);
    (void)eventfd_write(j->done_fd, 1);
    last = unref_locked(j);
    if (--s->pull_threads == 0)
        (void)pthread_cond_broadcast(&s->pulls_idle);
    pthread_mutex_unlock(&s->pulls_lock); /* the store may be gone from here on */
    if (last)
        job_free(j);
    return NULL;
}

/* A text that is equal when reference and credentials are; holds no secret. */
static char *job_key(const struct reference *ref, const struct image_auth *a, struct err *err)
{
    const char *parts[] = {a ? a->username : NULL,       a ? a->password : NULL,
                           a ? a->auth : NULL,           a ? a->server_address : NULL,
                           a ? a->identity_token : NULL, a ? a->registry_token : NULL};
    auto_free char *name = reference_string(ref);
    struct digest_ctx c;
    char hash[DIGEST_MAX];

    if (digest_init(&c, "sha256", err) < 0)
        return NULL;
    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        const char *s = parts[i] != NULL ? parts[i] : "";

        if (digest_update(&c, s, strlen(s) + 1, err) < 0) {
            digest_clear(&c);
            return NULL;
        }
    }
    if (digest_final(&c, hash, err) < 0)
        return NULL;
    return fs_format("%s %s", name, hash);
}

static struct pull_job *job_new(struct image_store *s, const char *reference, const char *key,
                                const struct image_auth *auth, struct err *err)
{
    struct pull_job *j = xcalloc(1, sizeof(*j));

    j->store = s;
    j->key = xstrdup(key);
    j->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    (void)pthread_mutex_init(&j->listeners_lock, NULL);
    LIST_INIT(&j->listeners);
    if (j->done_fd < 0)
        (void)err_sys(err, errno, "eventfd");
    else if (reference_parse(reference, &j->ref, err) == 0 &&
             (j->cancel = cancel_new(0, err)) != NULL &&
             (j->registry = registry_new(&s->opts, s->tokens, &j->ref, auth, err)) != NULL)
        return j;
    job_free(j);
    return NULL;
}

/* Starts the thread, with the caller as the first waiter. Under pulls_lock. */
static int job_start_locked(struct pull_job *j, struct err *err)
{
    pthread_attr_t attr;
    pthread_t thread;
    int rc;

    j->refs = 2; /* the thread's and the caller's */
    j->waiters = 1;
    LIST_INSERT_HEAD(&j->store->pulls, j, link);
    j->listed = true;
    (void)pthread_attr_init(&attr);
    (void)pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    rc = pthread_create(&thread, &attr, job_main, j);
    (void)pthread_attr_destroy(&attr);
    if (rc == 0) {
        j->store->pull_threads++;
        return 0;
    }
    unlist_locked(j);
    return err_sys(err, rc, "start a pull");
}

/* A running job to join, or a new one. The caller gets a reference and is a waiter. */
static struct pull_job *job_get(struct image_store *s, const char *reference, const char *key,
                                const struct image_auth *auth, struct err *err)
{
    struct pull_job *j, *fresh = job_new(s, reference, key, auth, err);

    if (fresh == NULL)
        return NULL;
    pthread_mutex_lock(&s->pulls_lock);
    LIST_FOREACH(j, &s->pulls, link)
    if (strcmp(j->key, key) == 0)
        break;
    if (j != NULL) {
        j->refs++;
        j->waiters++;
    } else if (job_start_locked(fresh, err) == 0) {
        j = take(fresh);
    }
    pthread_mutex_unlock(&s->pulls_lock);
    if (fresh != NULL)
        job_free(fresh);
    return j;
}

/* This caller no longer wants the result; the last one stops the job and sees it end. */
static void leave(struct pull_job *j)
{
    struct image_store *s = j->store;
    bool last;

    pthread_mutex_lock(&s->pulls_lock);
    last = --j->waiters == 0;
    if (last)
        unlist_locked(j); /* a new caller starts afresh */
    pthread_mutex_unlock(&s->pulls_lock);
    if (last) {
        cancel_fire(j->cancel);
        (void)cancel_poll(NULL, j->done_fd, POLLIN, -1, NULL);
    }
}

static int take_result(struct pull_job *j, char **id, struct err *err)
{
    int ret = 0;

    /* An eventfd orders memory for the kernel, not for the language: the lock does. */
    pthread_mutex_lock(&j->store->pulls_lock);
    if (j->id == NULL)
        ret = err_set(err, j->err.code != ERR_OK ? j->err.code : ERR_INTERNAL, "%s",
                      err_msg(&j->err));
    else
        *id = xstrdup(j->id);
    pthread_mutex_unlock(&j->store->pulls_lock);
    return ret;
}

static int wait_for(struct pull_job *j, image_progress_fn progress, void *arg,
                    struct cancel *cancel, char **id, struct err *err)
{
    struct listener l = {.fn = progress, .arg = arg};
    int ret;

    if (progress != NULL) {
        pthread_mutex_lock(&j->listeners_lock);
        LIST_INSERT_HEAD(&j->listeners, &l, link);
        pthread_mutex_unlock(&j->listeners_lock);
    }
    ret = cancel_poll(cancel, j->done_fd, POLLIN, -1, err);
    if (ret < 0)
        leave(j);
    else
        ret = take_result(j, id, err);
    if (progress != NULL) {
        pthread_mutex_lock(&j->listeners_lock);
        LIST_REMOVE(&l, link);
        pthread_mutex_unlock(&j->listeners_lock);
    }
    return ret;
}

int image_pull(struct image_store *s, const char *reference, const struct image_auth *auth,
               image_progress_fn progress, void *arg, struct cancel *cancel, char **id,
               struct err *err)
{
    auto_reference struct reference ref = {0};
    auto_free char *key = NULL, *name = NULL;
    struct pull_job *j;
    int ret;

    if (reference_parse(reference, &ref, err) < 0 || cancel_check(cancel, err) < 0)
        return -1;
    name = reference_string(&ref);
    key = job_key(&ref, auth, err);
    if (key == NULL)
        return -1;
    j = job_get(s, reference, key, auth, err);
    if (j == NULL)
        return err_wrap(err, "pull %s", name);
    ret = wait_for(j, progress, arg, cancel, id, err);
    job_unref(j);
    if (ret == 0)
        return 0;
    (void)err_wrap(err, "pull %s", name);
    /* kubelet looks for this word at the start of the message (CRI's error conventions for pulls).
     */
    if (err != NULL && err->code == ERR_UNAVAILABLE)
        (void)err_wrap(err, "RegistryUnavailable");
    return -1;
}
