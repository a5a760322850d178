#include "cri/seccomp.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <openssl/evp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>

#include "base/cleanup.h"
#include "base/fs.h"
#include "base/limits.h"
#include "cri/seccomp_compile.h"
#include "cri/seccomp_default.h"

/* What went into a filter: the profile's text (the built-in one's is its name) and the facts. */
struct key {
    uint8_t text[32]; /* SHA-256 */
    struct seccomp_facts facts;
};

struct entry {
    struct key key;
    struct seccomp_filter filter;
    uint64_t used; /* 0: free */
};

static struct {
    pthread_mutex_t lock;
    uint64_t clock;
    struct entry entries[LIMIT_SECCOMP_FILTERS];
} cache = {.lock = PTHREAD_MUTEX_INITIALIZER};

void seccomp_filter_clear(struct seccomp_filter *f)
{
    free(f->program);
    strv_clear(&f->flags);
    *f = (struct seccomp_filter){0};
}

static void copy_filter(struct seccomp_filter *to, const struct seccomp_filter *from)
{
    to->program = xcalloc(1, from->len);
    memcpy(to->program, from->program, from->len);
    to->len = from->len;
    for (size_t i = 0; i < from->flags.n; i++)
        strv_add(&to->flags, from->flags.v[i]);
}

static bool same_key(const struct key *a, const struct key *b)
{
    return memcmp(a->text, b->text, sizeof(a->text)) == 0 && a->facts.caps == b->facts.caps &&
           a->facts.kernel == b->facts.kernel && a->facts.patch == b->facts.patch;
}

static bool find(const struct key *key, struct seccomp_filter *f)
{
    bool found = false;
    (void)pthread_mutex_lock(&cache.lock);
    for (size_t i = 0; !found && i < ARRAY_LEN(cache.entries); i++) {
        struct entry *e = &cache.entries[i];
        found = e->used != 0 && same_key(&e->key, key);
        if (found) {
            e->used = ++cache.clock;
            copy_filter(f, &e->filter);
        }
    }
    (void)pthread_mutex_unlock(&cache.lock);
    return found;
}

/* In the place of the one that was not used for longest. Two threads may keep the same filter twice
 * for a while, which does no harm. */
static void keep(const struct key *key, const struct seccomp_filter *f)
{
    (void)pthread_mutex_lock(&cache.lock);
    struct entry *oldest = &cache.entries[0];
    for (size_t i = 1; i < ARRAY_LEN(cache.entries); i++) {
        if (cache.entries[i].used < oldest->used)
            oldest = &cache.entries[i];
    }
    seccomp_filter_clear(&oldest->filter);
    oldest->key = *key;
    oldest->used = ++cache.clock;
    copy_filter(&oldest->filter, f);
    (void)pthread_mutex_unlock(&cache.lock);
}

void seccomp_forget(void)
{
    (void)pthread_mutex_lock(&cache.lock);
    for (size_t i = 0; i < ARRAY_LEN(cache.entries); i++) {
        seccomp_filter_clear(&cache.entries[i].filter);
        cache.entries[i].used = 0;
    }
    (void)pthread_mutex_unlock(&cache.lock);
}

void seccomp_set_kernel(struct seccomp_facts *facts, const char *release)
{
    struct utsname uts;
    if (release == NULL && uname(&uts) == 0)
        release = uts.release;
    facts->kernel = facts->patch = 0;
    if (release == NULL || sscanf(release, "%4u.%4u", &facts->kernel, &facts->patch) != 2)
        facts->kernel = facts->patch = 0;
}

/* Takes the flags out of the profile. */
static int compile(struct seccomp_profile *p, struct seccomp_filter *f, struct err *err)
{
    auto_free struct sock_filter *program = NULL;
    size_t n = 0;
    if (seccomp_compile(p, &program, &n, err) < 0)
        return -1;
    f->len = n * sizeof(*program);
    f->program = (uint8_t *)take(program);
    f->flags = p->flags;
    p->flags = (struct strv){0};
    return 0;
}

/* NULL as text: the built-in profile. */
static int get(const char *text, size_t len, const struct seccomp_facts *facts,
               struct seccomp_filter *f, struct err *err)
{
    static const char builtin[] = "runtime/default";
    struct key key = {.facts = *facts};
    auto_seccomp_profile struct seccomp_profile p = {0};
    if (EVP_Digest(text != NULL ? text : builtin, text != NULL ? len : sizeof(builtin), key.text,
                   NULL, EVP_sha256(), NULL) != 1)
        return err_set(err, ERR_INTERNAL, "SHA-256 is not available");
    if (find(&key, f))
        return 0;
    int rc = text != NULL ? seccomp_profile_parse(text, len, facts, &p, err)
                          : seccomp_default_make(facts, &p, err);
    if (rc < 0 || compile(&p, f, err) < 0)
        return -1;
    keep(&key, f);
    return 0;
}

/* Never waits for a FIFO, and reads nothing but a regular file. */
static char *read_profile(const char *path, size_t *len, struct err *err)
{
    struct stat st;
    if (path[0] != '/') {
        (void)err_set(err, ERR_INVALID, "its path is not absolute");
        return NULL;
    }
    auto_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 || fstat(fd, &st) < 0) {
        (void)err_sys(err, errno, "open");
        return NULL;
    }
    if (!S_ISREG(st.st_mode)) {
        (void)err_set(err, ERR_INVALID, "it is no regular file");
        return NULL;
    }
    return fs_read_fd(fd, LIMIT_SECCOMP_PROFILE, len, err);
}

static int get_file(const char *path, const struct seccomp_facts *facts, struct seccomp_filter *f,
                    struct err *err)
{
    size_t len = 0;
    auto_free char *text = read_profile(path, &len, err);
    if (text == NULL || get(text, len, facts, f, err) < 0)
        return err_wrap(err, "seccomp profile %.4096s", path);
    return 0;
}

static int get_old(const char *path, const struct seccomp_facts *facts, struct seccomp_filter *f,
                   struct err *err)
{
    if (str_empty(path) || strcmp(path, "unconfined") == 0)
        return 0;
    if (strcmp(path, "runtime/default") == 0 || strcmp(path, "docker/default") == 0)
        return get(NULL, 0, facts, f, err);
    if (str_starts(path, "localhost/"))
        return get_file(path + strlen("localhost/"), facts, f, err);
    return err_set(err, ERR_INVALID,
                   "seccomp_profile_path \"%.200s\" is none of unconfined, "
                   "runtime/default and localhost/<path>",
                   path);
}

int seccomp_filter_load(const Runtime__V1__SecurityProfile *profile, const char *path,
                        const struct seccomp_facts *facts, struct seccomp_filter *f,
                        struct err *err)
{
    *f = (struct seccomp_filter){0};
    if (profile == NULL)
        return get_old(path, facts, f, err);
    switch (profile->profile_type) {
    case RUNTIME__V1__SECURITY_PROFILE__PROFILE_TYPE__RuntimeDefault:
        return get(NULL, 0, facts, f, err);
    case RUNTIME__V1__SECURITY_PROFILE__PROFILE_TYPE__Unconfined:
        return 0;
    case RUNTIME__V1__SECURITY_PROFILE__PROFILE_TYPE__Localhost: {
        /* some clients send the older field's prefix here too */
        const char *ref = profile->localhost_ref;
        if (str_starts(ref, "localhost/"))
            ref += strlen("localhost/");
        return get_file(ref, facts, f, err);
    }
    case _RUNTIME__V1__SECURITY_PROFILE__PROFILE_TYPE_IS_INT_SIZE:
    default:
        return err_set(err, ERR_INVALID, "seccomp profile type %d is unknown",
                       (int)profile->profile_type);
    }
}
