#include "cri/image/import_layer.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>

#include "base/limits.h"
#include "cri/image/digest.h"
#include "cri/image/layer.h"

/* The thread that hands a layer's bytes to the converter. It ends when they are all written, or
 * when nobody reads any more, which is what a cancelled conversion comes to. */
struct feeder {
    struct bundle_file from;
    int to;
    bool reader_gone;
    const char *digest;
    struct err err;
};

static int write_all(struct feeder *f, const char *data, size_t len)
{
    while (len > 0) {
        ssize_t n = write(f->to, data, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            f->reader_gone = errno == EPIPE;
            return err_sys(&f->err, errno, "hand bytes to the unpacker");
        }
        data += n;
        len -= (size_t)n;
    }
    return 0;
}

static int feed_all(struct feeder *f, char *buf, size_t size, struct digest_ctx *hash)
{
    uint64_t at = f->from.offset;
    uint64_t end = at + f->from.size;
    while (at < end) {
        size_t want = end - at < size ? (size_t)(end - at) : size;
        ssize_t n = pread(f->from.fd, buf, want, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? err_sys(&f->err, errno, "read the archive")
                         : err_set(&f->err, ERR_INVALID, "the archive is cut short");
        if (digest_update(hash, buf, (size_t)n, &f->err) < 0 || write_all(f, buf, (size_t)n) < 0)
            return -1;
        at += (uint64_t)n;
    }
    char is[DIGEST_MAX];
    if (digest_final(hash, is, &f->err) < 0)
        return -1;
    if (f->digest[0] != '\0' && strcmp(is, f->digest) != 0)
        return err_set(&f->err, ERR_DATA_LOSS, "the file has the digest %s", is);
    return 0;
}

static void *feeder_main(void *arg)
{
    struct feeder *f = arg;
    sigset_t pipe_only;
    struct digest_ctx hash = {0};
    char *buf = malloc(KiB(256));

    (void)sigemptyset(&pipe_only);
    (void)sigaddset(&pipe_only, SIGPIPE);
    (void)pthread_sigmask(SIG_BLOCK, &pipe_only, NULL);
    if (buf == NULL)
        (void)err_set(&f->err, ERR_EXHAUSTED, "out of memory");
    else if (digest_init(&hash, f->digest[0] != '\0' ? f->digest : "sha256", &f->err) == 0)
        (void)feed_all(f, buf, KiB(256), &hash);
    digest_clear(&hash);
    free(buf);
    cleanup_closep(&f->to);
    return NULL;
}

/* f->from is open. */
static int convert(struct image_store *s, struct feeder *f, const char *diff_id, const char *tmp,
                   struct cancel *cancel, struct err *err)
{
    int fds[2];
    pthread_t thread;
    struct layer_result res;
    if (pipe2(fds, O_CLOEXEC) < 0)
        return err_sys(err, errno, "make a pipe");
    f->to = fds[1];
    int rc = pthread_create(&thread, NULL, feeder_main, f);
    if (rc != 0) {
        (void)close(fds[0]);
        (void)close(fds[1]);
        return err_sys(err, rc, "start a thread");
    }
    rc = layer_convert(store_options(s), fds[0], tmp, &res, cancel, err);
    (void)pthread_join(thread, NULL);
    bool made = rc == 0;
    if (f->err.code != ERR_OK && (made || !f->reader_gone))
        rc = err_move(err, &f->err);
    else if (made && strcmp(res.diff_id, diff_id) != 0)
        rc = err_set(err, ERR_DATA_LOSS, "it unpacks to %s, but the image config says %s",
                     res.diff_id, diff_id);
    if (made && rc < 0)
        (void)unlink(tmp);
    return rc;
}

int import_layer(struct image_store *s, struct store_lease *lease, const struct bundle *b,
                 const char *name, const char *digest, const char *diff_id, struct cancel *cancel,
                 struct err *err)
{
    enum store_claim claim;
    if (store_layer_claim(lease, diff_id, cancel, &claim, err) < 0)
        return -1;
    if (claim == STORE_LAYER_READY)
        return 0;
    auto_free char *tmp = store_tmp_path(s);
    struct feeder f = {.from = {.fd = -1}, .to = -1, .digest = digest, .err = ERR_INIT};
    int rc = bundle_file(b, name, &f.from, err);
    if (rc == 0)
        rc = convert(s, &f, diff_id, tmp, cancel, err);
    cleanup_closep(&f.from.fd);
    err_clear(&f.err);
    if (rc < 0) {
        store_layer_abandon(lease, diff_id);
        return err_wrap(err, "layer %s", name);
    }
    return store_layer_done(lease, diff_id, tmp, err);
}
