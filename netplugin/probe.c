#include "netplugin/probe.h"

#include <jansson.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/cancel.h"
#include "base/fs.h"
#include "base/str.h"
#include "netplugin/chain.h"
#include "netplugin/json.h"
#include "netplugin/version.h"

/* kubelet asks for Status every few seconds; an answer older than this is renewed, while the old
 * one is given. */
#define FRESH_NS (10 * 1000000000LL)

struct probe {
    char *conf_dir;
    const char *const *bin_dirs; /* the owner's, outlives us */
    int64_t timeout_ns;
    struct cancel *stop;
    pthread_t thread;
    bool started;

    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t wake;
    bool want_load, want_check, stopping;
    struct cni_conf *conf; /* NULL: none */
    char *load_error;      /* why conf is NULL, else NULL */
    char *problem;         /* a broken file that was passed over, or NULL */
    bool known;            /* the plugins of conf have answered at least once */
    char *not_ready;       /* what they said against it, or NULL */
    json_t *plugins;       /* of chain_versions(), or NULL */
    int64_t checked_ns;
};

/* Reads the directory and publishes what it holds; true when the network is another one than
 * before. */
static bool load(struct probe *p)
{
    auto_err struct err why = ERR_INIT;
    char *problem = NULL;
    struct cni_conf *conf = cni_conf_load(p->conf_dir, &problem, &why), *old;
    bool changed;

    (void)pthread_mutex_lock(&p->lock);
    old = p->conf;
    changed =
        (old == NULL) != (conf == NULL) || (conf != NULL && strcmp(old->text, conf->text) != 0);
    p->conf = conf;
    free(p->load_error);
    p->load_error = conf == NULL ? xstrdup(err_msg(&why)) : NULL;
    free(p->problem);
    p->problem = problem;
    if (changed) {
        p->known = false;
        free(p->not_ready);
        p->not_ready = NULL;
        json_decref(p->plugins);
        p->plugins = NULL;
    }
    (void)pthread_mutex_unlock(&p->lock);
    cni_conf_unref(old);
    return changed;
}

/* Asks the plugins; takes as long as they do. */
static void check(struct probe *p)
{
    auto_err struct err why = ERR_INIT;
    auto_cni_conf struct cni_conf *conf = NULL;
    json_t *plugins = NULL, *old = NULL;
    struct chain c = {.bin_dirs = p->bin_dirs, .timeout_ns = p->timeout_ns};

    (void)pthread_mutex_lock(&p->lock);
    conf = cni_conf_ref(p->conf);
    (void)pthread_mutex_unlock(&p->lock);
    if (conf != NULL) {
        c.conf = conf;
        if (chain_versions(&c, &plugins, p->stop, &why) == 0)
            (void)chain_status(&c, p->stop, &why);
    }
    (void)pthread_mutex_lock(&p->lock);
    p->checked_ns = mono_ns();
    if (conf != NULL && conf == p->conf && !p->stopping) {
        p->known = true;
        free(p->not_ready);
        p->not_ready = why.code == ERR_OK ? NULL : xstrdup(err_msg(&why));
        old = p->plugins;
        p->plugins = plugins;
        plugins = NULL;
    }
    (void)pthread_mutex_unlock(&p->lock);
    json_decref(old);
    json_decref(plugins);
}

static void *work(void *arg)
{
    struct probe *p = arg;

    for (;;) {
        bool want_load;

        (void)pthread_mutex_lock(&p->lock);
        while (!p->stopping && !p->want_load && !p->want_check)
            (void)pthread_cond_wait(&p->wake, &p->lock);
        want_load = p->want_load;
        p->want_load = p->want_check = false;
        if (p->stopping) {
            (void)pthread_mutex_unlock(&p->lock);
            return NULL;
        }
        (void)pthread_mutex_unlock(&p->lock);
        if (want_load)
            (void)load(p);
        check(p);
    }
}

struct probe *probe_new(const char *conf_dir, const char *const *bin_dirs, int64_t timeout_ns,
                        struct err *err)
{
    struct probe *p = xcalloc(1, sizeof(*p));
    sigset_t all, old;
    int rc = 0;

    p->conf_dir = xstrdup(conf_dir);
    p->bin_dirs = bin_dirs;
    p->timeout_ns = timeout_ns;
    (void)pthread_mutex_init(&p->lock, NULL);
    (void)pthread_cond_init(&p->wake, NULL);
    p->stop = cancel_new(0, err);
    if (p->stop == NULL) {
        probe_free(p);
        return NULL;
    }
    (void)load(p);
    p->want_check = true;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &old);
    rc = pthread_create(&p->thread, NULL, work, p);
    (void)pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (rc != 0) {
        err_sys(err, rc, "start the CNI probe thread");
        probe_free(p);
        return NULL;
    }
    p->started = true;
    return p;
}

void probe_free(struct probe *p)
{
    if (p == NULL)
        return;
    (void)pthread_mutex_lock(&p->lock);
    p->stopping = true;
    (void)pthread_cond_signal(&p->wake);
    (void)pthread_mutex_unlock(&p->lock);
    if (p->stop != NULL)
        cancel_fire(p->stop);
    if (p->started)
        (void)pthread_join(p->thread, NULL);
    cancel_unref(p->stop);
    cni_conf_unref(p->conf);
    free(p->load_error);
    free(p->problem);
    free(p->not_ready);
    json_decref(p->plugins);
    (void)pthread_mutex_destroy(&p->lock);
    (void)pthread_cond_destroy(&p->wake);
    free(p->conf_dir);
    free(p);
}

void probe_reload(struct probe *p)
{
    (void)pthread_mutex_lock(&p->lock);
    p->want_load = true;
    (void)pthread_cond_signal(&p->wake);
    (void)pthread_mutex_unlock(&p->lock);
}

struct cni_conf *probe_conf(struct probe *p, struct err *err)
{
    struct cni_conf *c;

    (void)pthread_mutex_lock(&p->lock);
    c = cni_conf_ref(p->conf);
    if (c == NULL)
        err_set(err, ERR_UNAVAILABLE, "cni plugin not initialized: %s", p->load_error);
    (void)pthread_mutex_unlock(&p->lock);
    return c;
}

/* Called with the lock held. Before the first answer a list without STATUS counts as ready: nothing
 * speaks against it, and its ADD will tell. */
static char *objection(const struct probe *p)
{
    if (p->conf == NULL)
        return xstrdup(p->load_error);
    if (p->known)
        return xstrdup(p->not_ready);
    if (cni_version_at_least(p->conf->version, "1.1.0"))
        return xstrdup("its plugins have not answered STATUS yet");
    return NULL;
}

bool probe_ready(struct probe *p, char **reason, char **message, char **network)
{
    auto_free char *against = NULL;

    *reason = *message = *network = NULL;
    (void)pthread_mutex_lock(&p->lock);
    against = objection(p);
    if (p->conf != NULL)
        *network = xstrdup(p->conf->name);
    if (p->known && mono_ns() - p->checked_ns > FRESH_NS && !p->want_check) {
        p->want_check = true;
        (void)pthread_cond_signal(&p->wake);
    }
    (void)pthread_mutex_unlock(&p->lock);
    if (against == NULL)
        return true;
    *reason = xstrdup("NetworkPluginNotReady");
    if (*network == NULL) {
        *message =
            fs_format("Network plugin returns error: cni plugin not initialized: %s", against);
    } else {
        *message = fs_format("Network plugin returns error: network %s: %s", *network, against);
    }
    return false;
}

static void put(json_t *o, const char *key, const char *s)
{
    if (s != NULL)
        json_object_set_new(o, key, json_string(s));
}

char *probe_info(struct probe *p)
{
    auto_json json_t *o = json_object();
    auto_free char *against = NULL;

    put(o, "confDir", p->conf_dir);
    (void)pthread_mutex_lock(&p->lock);
    against = objection(p);
    if (p->conf != NULL) {
        put(o, "network", p->conf->name);
        put(o, "cniVersion", p->conf->version);
        put(o, "file", p->conf->file);
    }
    put(o, "lastLoadError", p->conf == NULL ? p->load_error : p->problem);
    if (p->plugins != NULL)
        json_object_set_new(o, "plugins", json_deep_copy(p->plugins));
    (void)pthread_mutex_unlock(&p->lock);
    json_object_set_new(o, "ready", json_boolean(against == NULL));
    put(o, "message", against);
    return json_dumps(o, JSON_COMPACT);
}
