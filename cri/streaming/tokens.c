#include "cri/streaming/tokens.h"

#include <pthread.h>
#include <string.h>
#include <sys/queue.h>

#include "base/fs.h"
#include "base/limits.h"

struct waiting {
    char token[TOKEN_LENGTH + 1];
    struct stream_request *request;
    int64_t expires;
    TAILQ_ENTRY(waiting) link;
};

struct tokens {
    pthread_mutex_t lock;
    int64_t (*clock)(void);
    TAILQ_HEAD(, waiting) list; /* oldest first */
    size_t n;
};

void stream_request_free(struct stream_request *r)
{
    if (r == NULL)
        return;
    free(r->id);
    strv_clear(&r->cmd);
    free(r->ports);
    free(r);
}

struct tokens *tokens_new(int64_t (*clock)(void))
{
    struct tokens *t = xcalloc(1, sizeof(*t));
    (void)pthread_mutex_init(&t->lock, NULL);
    TAILQ_INIT(&t->list);
    t->clock = clock;
    return t;
}

/* Under the lock. */
static struct stream_request *unlink_waiting(struct tokens *t, struct waiting *w)
{
    struct stream_request *r = w->request;
    TAILQ_REMOVE(&t->list, w, link);
    t->n--;
    free(w);
    return r;
}

void tokens_free(struct tokens *t)
{
    struct waiting *w;
    if (t == NULL)
        return;
    while ((w = TAILQ_FIRST(&t->list)) != NULL)
        stream_request_free(unlink_waiting(t, w));
    (void)pthread_mutex_destroy(&t->lock);
    free(t);
}

/* Under the lock. All live equally long, so the expired ones are in front. */
static void expire(struct tokens *t)
{
    struct waiting *w;
    int64_t now = t->clock();
    while ((w = TAILQ_FIRST(&t->list)) != NULL && w->expires <= now)
        stream_request_free(unlink_waiting(t, w));
}

int tokens_put(struct tokens *t, struct stream_request *r, char token[TOKEN_LENGTH + 1],
               struct err *err)
{
    int rc = 0;
    (void)pthread_mutex_lock(&t->lock);
    expire(t);
    if (t->n >= LIMIT_STREAM_TOKENS) {
        rc = err_set(err, ERR_EXHAUSTED, "%d streaming requests wait for their clients already",
                     LIMIT_STREAM_TOKENS);
        stream_request_free(r);
    } else {
        struct waiting *w = xcalloc(1, sizeof(*w));
        fs_random_hex(w->token, TOKEN_LENGTH);
        memcpy(token, w->token, sizeof(w->token));
        w->request = r;
        w->expires = t->clock() + LIMIT_STREAM_TOKEN_NS;
        TAILQ_INSERT_TAIL(&t->list, w, link);
        t->n++;
    }
    (void)pthread_mutex_unlock(&t->lock);
    return rc;
}

/* Takes as long whatever differs. */
static bool same(const char *a, const char *b)
{
    unsigned diff = 0;
    if (strlen(b) != TOKEN_LENGTH)
        return false;
    for (size_t i = 0; i < TOKEN_LENGTH; i++)
        diff |= (unsigned)(a[i] ^ b[i]);
    return diff == 0;
}

struct stream_request *tokens_take(struct tokens *t, enum request_kind kind, const char *token)
{
    struct stream_request *r = NULL;
    struct waiting *w;
    (void)pthread_mutex_lock(&t->lock);
    expire(t);
    TAILQ_FOREACH(w, &t->list, link)
    {
        if (same(w->token, token) && w->request->kind == kind) {
            r = unlink_waiting(t, w);
            break;
        }
    }
    (void)pthread_mutex_unlock(&t->lock);
    return r;
}
