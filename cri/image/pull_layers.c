#include "cri/image/pull_layers.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/limits.h"
#include "cri/image/layer.h"

#define PROGRESS_STEP MiB(1)
#define PIPE_SIZE MiB(1)

/* What the workers of one image share. */
struct work {
    struct image_store *store;
    struct store_lease *lease;
    struct registry *registry;
    const struct manifest *m;
    const struct strv *diff_ids;
    image_progress_fn progress;
    void *progress_arg;
    struct cancel *cancel; /* fires on the first failure, too */
    atomic_size_t next;
    pthread_mutex_t lock; /* guards failed */
    struct err failed;
};

/* The thread that feeds one layer's bytes into the converter's pipe. */
struct feeder {
    struct work *w;
    struct http_client *http;
    const struct descriptor *layer;
    int fd;
    uint64_t done, shown;
    bool reader_gone; /* the converter stopped reading: its error counts */
    struct err err;
    bool failed;
};

static void tell(struct work *w, const char *phase, const struct descriptor *layer, uint64_t done)
{
    struct image_progress p = {
        .phase = phase, .digest = layer->digest, .done = done, .total = layer->size};

    if (w->progress != NULL)
        w->progress(w->progress_arg, &p);
}

static int feed(void *arg, const void *data, size_t len, struct err *err)
{
    struct feeder *f = arg;
    const char *p = data;

    while (len > 0) {
        ssize_t n = write(f->fd, p, len);

        if (n > 0) {
            p += n;
            len -= (size_t)n;
            f->done += (uint64_t)n;
        } else if (errno == EAGAIN) {
            if (cancel_poll(f->w->cancel, f->fd, POLLOUT, -1, err) < 0)
                return -1;
        } else if (errno != EINTR) {
            f->reader_gone = errno == EPIPE;
            return err_sys(err, errno, "hand bytes to the unpacker");
        }
    }
    if (f->done - f->shown >= PROGRESS_STEP) {
        f->shown = f->done;
        tell(f->w, "downloading", f->layer, f->done);
    }
    return 0;
}

static void *feeder_main(void *arg)
{
    struct feeder *f = arg;
    sigset_t pipe_only;

    /* A write to a pipe that nobody reads raises SIGPIPE for this thread alone. */
    (void)sigemptyset(&pipe_only);
    (void)sigaddset(&pipe_only, SIGPIPE);
    (void)pthread_sigmask(SIG_BLOCK, &pipe_only, NULL);
    f->failed = registry_blob(f->w->registry, f->http, f->layer->digest, f->layer->size, feed, f,
                              f->w->cancel, &f->err) < 0;
    (void)close(f->fd);
    f->fd = -1;
    store_download_end(f->w->store);
    return NULL;
}

static int check_result(const struct work *w, size_t i, const struct layer_result *res,
                        struct err *err)
{
    if (strcmp(res->diff_id, w->diff_ids->v[i]) != 0)
        return err_set(err, ERR_DATA_LOSS, "layer %s unpacks to %s, but the image config says %s",
                       w->m->entries[i].digest, res->diff_id, w->diff_ids->v[i]);
    return 0;
}

/* Runs the feeder beside the converter. The download's place is given back by the feeder. */
static int stream_layer(struct work *w, struct http_client *http, size_t i, const char *tmp,
                        struct err *err)
{
    struct feeder f = {.w = w, .http = http, .layer = &w->m->entries[i], .err = ERR_INIT};
    struct layer_result res = {0};
    pthread_t thread;
    int fds[2], ret, rc;

    if (pipe2(fds, O_CLOEXEC) < 0) {
        store_download_end(w->store);
        return err_sys(err, errno, "pipe");
    }
    f.fd = fds[1];
    (void)fcntl(fds[1], F_SETPIPE_SZ, (int)PIPE_SIZE);
    rc = fcntl(fds[1], F_SETFL, O_NONBLOCK) < 0 ? errno
                                                : pthread_create(&thread, NULL, feeder_main, &f);
    if (rc != 0) {
        (void)close(fds[0]);
        (void)close(fds[1]);
        store_download_end(w->store);
        return err_sys(err, rc, "start a download");
    }
    tell(w, "downloading", f.layer, 0);
    ret = layer_convert(store_options(w->store), fds[0], tmp, &res, w->cancel, err);
    (void)pthread_join(thread, NULL);
    if (f.failed && !f.reader_gone) {
        if (ret == 0)
            (void)unlink(tmp);
        ret = err_move(err, &f.err);
    } else if (ret == 0 && f.failed) {
        (void)unlink(tmp);
        ret = err_set(err, ERR_INTERNAL, "the unpacker did not read the whole layer");
    } else if (ret == 0 && check_result(w, i, &res, err) < 0) {
        (void)unlink(tmp);
        ret = -1;
    }
    err_clear(&f.err);
    return ret;
}

static int make_layer(struct work *w, struct http_client **http, size_t i, const char *tmp,
                      struct err *err)
{
    if (*http == NULL && (*http = http_new(err)) == NULL)
        return -1;
    if (store_unpack_begin(w->store, w->cancel, err) < 0)
        return -1;
    int ret = store_download_begin(w->store, w->cancel, err);
    if (ret == 0)
        ret = stream_layer(w, *http, i, tmp, err);
    store_unpack_end(w->store);
    if (ret < 0)
        return -1;
    tell(w, "unpacking", &w->m->entries[i], w->m->entries[i].size);
    return 0;
}

static int one_layer(struct work *w, struct http_client **http, size_t i, struct err *err)
{
    const char *diff_id = w->diff_ids->v[i];
    auto_free char *tmp = NULL;
    enum store_claim claim;

    if (store_layer_claim(w->lease, diff_id, w->cancel, &claim, err) < 0)
        return -1;
    if (claim == STORE_LAYER_READY) {
        tell(w, "unpacking", &w->m->entries[i], w->m->entries[i].size);
        return 0;
    }
    tmp = store_tmp_path(w->store);
    if (make_layer(w, http, i, tmp, err) < 0) {
        store_layer_abandon(w->lease, diff_id);
        /* Where it is said to be is anybody's choice of a URL to have us ask. */
        if (err->code == ERR_NOT_FOUND && w->m->entries[i].foreign)
            (void)err_append(err, " (a foreign layer: one that is kept outside of registries; none "
                                  "is fetched from there)");
        return err_wrap(err, "layer %s", w->m->entries[i].digest);
    }
    return store_layer_done(w->lease, diff_id, tmp, err);
}

static void *worker_main(void *arg)
{
    struct work *w = arg;
    auto_http struct http_client *http = NULL;

    for (;;) {
        auto_err struct err e = ERR_INIT;
        size_t i = atomic_fetch_add(&w->next, 1);

        if (i >= w->m->n_entries)
            return NULL;
        if (cancel_check(w->cancel, &e) == 0 && one_layer(w, &http, i, &e) == 0)
            continue;
        pthread_mutex_lock(&w->lock);
        if (w->failed.code == ERR_OK)
            (void)err_move(&w->failed, &e);
        pthread_mutex_unlock(&w->lock);
        cancel_fire(w->cancel);
        return NULL;
    }
}

int pull_layers(struct image_store *s, struct store_lease *lease, struct registry *registry,
                const struct manifest *m, const struct strv *diff_ids, image_progress_fn progress,
                void *arg, struct cancel *cancel, struct err *err)
{
    auto_cancel struct cancel *stop = cancel_child(cancel, 0, err);
    size_t n = m->n_entries < store_options(s)->max_downloads ? m->n_entries
                                                              : store_options(s)->max_downloads;
    struct work w = {
        .store = s,
        .lease = lease,
        .registry = registry,
        .m = m,
        .diff_ids = diff_ids,
        .progress = progress,
        .progress_arg = arg,
        .cancel = stop,
        .failed = ERR_INIT,
    };
    pthread_t threads[16];
    size_t started = 0;

    if (stop == NULL)
        return -1;
    (void)pthread_mutex_init(&w.lock, NULL);
    if (n > ARRAY_LEN(threads))
        n = ARRAY_LEN(threads);
    /* This thread is a worker too, so that one layer needs no other. */
    while (started + 1 < n && pthread_create(&threads[started], NULL, worker_main, &w) == 0)
        started++;
    (void)worker_main(&w);
    for (size_t i = 0; i < started; i++)
        (void)pthread_join(threads[i], NULL);
    (void)pthread_mutex_destroy(&w.lock);
    if (w.failed.code != ERR_OK)
        return err_move(err, &w.failed);
    return 0;
}
