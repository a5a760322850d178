#include "cri/image/login_tokens.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "base/limits.h"
#include "base/str.h"

struct token {
    TAILQ_ENTRY(token) link;
    char key[DIGEST_MAX];
    char *authorization;
    int64_t until;
};

struct login_tokens {
    pthread_mutex_t lock;
    TAILQ_HEAD(token_list, token) list; /* the latest first */
    size_t n;
};

struct login_tokens *login_tokens_new(void)
{
    struct login_tokens *t = xcalloc(1, sizeof(*t));

    (void)pthread_mutex_init(&t->lock, NULL);
    TAILQ_INIT(&t->list);
    return t;
}

static void forget_locked(struct login_tokens *t, struct token *k)
{
    TAILQ_REMOVE(&t->list, k, link);
    t->n--;
    auth_wipe(k->authorization);
    free(k);
}

void login_tokens_free(struct login_tokens *t)
{
    struct token *k;

    if (t == NULL)
        return;
    while ((k = TAILQ_FIRST(&t->list)) != NULL)
        forget_locked(t, k);
    (void)pthread_mutex_destroy(&t->lock);
    free(t);
}

static struct token *find_locked(struct login_tokens *t, const char *key)
{
    struct token *k;

    TAILQ_FOREACH(k, &t->list, link)
    if (strcmp(k->key, key) == 0)
        return k;
    return NULL;
}

static void drop_expired_locked(struct login_tokens *t, int64_t now)
{
    struct token *k, *next;

    for (k = TAILQ_FIRST(&t->list); k != NULL; k = next) {
        next = TAILQ_NEXT(k, link);
        if (k->until <= now)
            forget_locked(t, k);
    }
}

int login_tokens_key(const char *host_url, const char *repository,
                     const struct auth_credentials *creds, char key[DIGEST_MAX], struct err *err)
{
    const char *parts[] = {host_url,
                           repository,
                           creds->username,
                           creds->password,
                           creds->identity_token,
                           creds->registry_token};
    struct digest_ctx c;

    if (digest_init(&c, "sha256", err) < 0)
        return -1;
    for (size_t i = 0; i < ARRAY_LEN(parts); i++) {
        /* a field that is missing is not one that is empty */
        const char *mark = parts[i] != NULL ? "+" : "-";
        const char *s = parts[i] != NULL ? parts[i] : "";

        if (digest_update(&c, mark, 1, err) < 0 || digest_update(&c, s, strlen(s) + 1, err) < 0) {
            digest_clear(&c);
            return -1;
        }
    }
    return digest_final(&c, key, err);
}

char *login_tokens_get(struct login_tokens *t, const char *key, int64_t now)
{
    const struct token *k;
    char *copy = NULL;

    pthread_mutex_lock(&t->lock);
    drop_expired_locked(t, now);
    k = find_locked(t, key);
    if (k != NULL)
        copy = xstrdup(k->authorization);
    pthread_mutex_unlock(&t->lock);
    return copy;
}

void login_tokens_put(struct login_tokens *t, const char *key, const char *authorization,
                      int64_t until)
{
    struct token *fresh = xcalloc(1, sizeof(*fresh)), *old;

    (void)strncpy(fresh->key, key, sizeof(fresh->key) - 1);
    fresh->authorization = xstrdup(authorization);
    fresh->until = until;
    pthread_mutex_lock(&t->lock);
    old = find_locked(t, key);
    if (old != NULL)
        forget_locked(t, old);
    while (t->n >= LIMIT_TOKENS)
        forget_locked(t, TAILQ_LAST(&t->list, token_list));
    TAILQ_INSERT_HEAD(&t->list, fresh, link);
    t->n++;
    pthread_mutex_unlock(&t->lock);
}

void login_tokens_drop(struct login_tokens *t, const char *key)
{
    struct token *k;

    pthread_mutex_lock(&t->lock);
    k = find_locked(t, key);
    if (k != NULL)
        forget_locked(t, k);
    pthread_mutex_unlock(&t->lock);
}
