#include "netplugin/cni.h"

#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>

#include "base/failpoint.h"
#include "base/limits.h"
#include "base/str.h"
#include "netplugin/attachment.h"
#include "netplugin/cache.h"
#include "netplugin/chain.h"
#include "netplugin/conf.h"
#include "netplugin/gate.h"
#include "netplugin/json.h"
#include "netplugin/probe.h"
#include "netplugin/result.h"
#include "netplugin/running.h"
#include "netplugin/watch.h"

/* Undoing is given this many plugin timeouts, whatever became of the call that failed. */
#define UNDO_TIMEOUTS 2

struct cni {
    char *cache_dir;
    struct strv bin_dirs;
    int64_t timeout_ns;
    struct gate *gate;
    struct running *running;
    struct probe *probe;
    struct watch *watch;
};

static void on_change(void *arg)
{
    probe_reload(arg);
}

struct cni *cni_new(const struct cni_options *opts, struct loop *loop, struct err *err)
{
    struct cni *c = xcalloc(1, sizeof(*c));

    c->cache_dir = xstrdup(opts->cache_dir);
    c->timeout_ns = opts->timeout_ns;
    for (size_t i = 0; opts->bin_dirs != NULL && opts->bin_dirs[i] != NULL; i++)
        strv_add(&c->bin_dirs, opts->bin_dirs[i]);
    c->gate = gate_new(LIMIT_CNI_AT_ONCE);
    c->running = running_new(c->cache_dir);
    c->probe = probe_new(opts->conf_dir, (const char *const *)c->bin_dirs.v, c->timeout_ns, err);
    /* files that changed after the first load and before the watch: load once more */
    if (c->probe != NULL)
        c->watch = watch_new(opts->conf_dir, loop, on_change, c->probe, err);
    if (c->watch == NULL) {
        cni_free(c);
        err_wrap(err, "CNI");
        return NULL;
    }
    probe_reload(c->probe);
    return c;
}

void cni_free(struct cni *c)
{
    if (c == NULL)
        return;
    watch_free(c->watch);
    probe_free(c->probe);
    gate_free(c->gate);
    running_free(c->running);
    strv_clear(&c->bin_dirs);
    free(c->cache_dir);
    free(c);
}

bool cni_ready(struct cni *c, char **reason, char **message, char **network)
{
    return probe_ready(c->probe, reason, message, network);
}

char *cni_info(struct cni *c)
{
    return probe_info(c->probe);
}

static struct chain chain_of(const struct cni *c, const struct cni_conf *conf,
                             const struct cni_attachment *a)
{
    return (struct chain){
        .conf = conf,
        .container_id = a->sandbox_id,
        .netns = a->netns != NULL ? a->netns : "",
        .ifname = a->ifname,
        .bin_dirs = (const char *const *)c->bin_dirs.v,
        .timeout_ns = c->timeout_ns,
        .keep_fd = running_fd(c->running),
    };
}

/* ---- ADD ---- */

/* Takes an ADD's work back. Its own deadline: the call's token may be what made the ADD fail. */
static void undo_add(const struct cni *c, const struct chain *ch, const struct cache_entry *e,
                     size_t n_done, struct err *err)
{
    auto_err struct err why = ERR_INIT;
    auto_cancel struct cancel *deadline =
        cancel_new(c->timeout_ns > 0 ? mono_ns() + c->timeout_ns * UNDO_TIMEOUTS : 0, &why);

    if (deadline == NULL || chain_undo(ch, n_done, deadline, &why) < 0)
        err_append(err, "; undoing it failed: %s", err_msg(&why));
    else
        (void)cache_forget(c->cache_dir, e, NULL);
}

static int add(struct cni *c, const struct chain *ch, struct cache_entry *e, struct netinfo *out,
               size_t *n_done, struct cancel *cancel, struct err *err)
{
    auto_cni_result struct cni_result r = {0};
    auto_netinfo struct netinfo info = {0};

    /* the DEL of an ADD that came to nothing, or whose daemon was killed, must be with this
     * configuration, whatever has become of the network's file */
    if (cache_write(c->cache_dir, e, err) < 0)
        return -1;
    if (FAILPOINT("netplugin.add", err) < 0 || chain_add(ch, &e->result, n_done, cancel, err) < 0 ||
        FAILPOINT("netplugin.added", err) < 0 ||
        cni_result_parse(e->result, e->conf->version, &r, err) < 0)
        return -1;
    cni_result_pod_ips(&r, e->ifname, &info);
    if (info.n_ips == 0)
        return err_set(err, ERR_UNAVAILABLE, "the result has no address for %s", e->ifname);
    if (cache_write(c->cache_dir, e, err) < 0)
        return -1;
    netinfo_clear(out);
    *out = info;
    info = (struct netinfo){0};
    return 0;
}

int cni_add(struct cni *c, const struct cni_attachment *a, struct netinfo *out,
            struct cancel *cancel, struct err *err)
{
    auto_gate_pass struct gate_pass *pass = NULL;
    auto_cache_entry struct cache_entry e = {0};
    size_t n_done = 0;
    struct chain ch;

    if (attachment_check(a, false, err) < 0 ||
        running_settle(c->running, c->timeout_ns, cancel, err) < 0)
        return err_wrap(err, "CNI ADD");
    pass = gate_enter(c->gate, a->sandbox_id, cancel, err);
    if (pass == NULL)
        return err_wrap(err, "CNI ADD");
    e.conf = probe_conf(c->probe, err);
    e.caps = e.conf != NULL ? attachment_caps(a, err) : NULL;
    if (e.caps == NULL)
        return err_wrap(err, "CNI ADD");
    e.container_id = xstrdup(a->sandbox_id);
    e.ifname = xstrdup(a->ifname);
    e.netns = xstrdup(a->netns);
    e.network = xstrdup(e.conf->name);
    e.args = attachment_args(a);
    ch = chain_of(c, e.conf, a);
    ch.args = e.args;
    ch.caps = e.caps;
    if (add(c, &ch, &e, out, &n_done, cancel, err) < 0) {
        undo_add(c, &ch, &e, n_done, err);
        return err_wrap(err, "CNI network %s", e.network);
    }
    return 0;
}

/* ---- DEL, CHECK ---- */

/* The path while it is a namespace. Plugins take an empty one for "gone" but stumble over a plain
 * file, which is what a reboot or a crash in the middle can leave. */
static const char *live_netns(const char *path)
{
    struct statfs fs;

    return !str_empty(path) && statfs(path, &fs) == 0 && fs.f_type == NSFS_MAGIC ? path : "";
}

/* The result as the cached list's version words it; what cannot be read is left out, since plugins
 * can DEL without. */
static json_t *prev_result(const struct cache_entry *e)
{
    return e->result != NULL ? cni_result_convert(e->result, e->conf->version, NULL) : NULL;
}

static int del_entry(struct cni *c, const struct cache_entry *e, const char *netns,
                     struct cancel *cancel, struct err *err)
{
    auto_json json_t *prev = prev_result(e);
    struct cni_attachment a = {
        .sandbox_id = e->container_id, .ifname = e->ifname, .netns = live_netns(netns)};
    struct chain ch = chain_of(c, e->conf, &a);

    ch.args = e->args;
    ch.caps = e->caps;
    if (chain_del(&ch, prev, cancel, err) < 0)
        return err_wrap(err, "CNI network %s", e->network);
    return cache_remove(e->file, err);
}

struct del {
    struct cni *cni;
    const struct cni_attachment *a;
    struct cancel *cancel;
    bool done; /* something was cached and is deleted */
};

static bool is_of(const struct cache_entry *e, const struct cni_attachment *a)
{
    return strcmp(e->container_id, a->sandbox_id) == 0 && strcmp(e->ifname, a->ifname) == 0;
}

static int del_cached(const char *file, void *arg, struct err *err)
{
    struct del *d = arg;
    auto_cache_entry struct cache_entry e = {0};

    /* unreadable: drop it; the DEL goes on with the current configuration and no result */
    if (cache_read(file, &e, NULL) < 0)
        return cache_remove(file, err);
    if (!is_of(&e, d->a))
        return 0;
    if (del_entry(d->cni, &e, d->a->netns, d->cancel, err) < 0)
        return -1;
    d->done = true;
    return 0;
}

int cni_del(struct cni *c, const struct cni_attachment *a, struct cancel *cancel, struct err *err)
{
    auto_gate_pass struct gate_pass *pass = NULL;
    auto_cni_conf struct cni_conf *conf = NULL;
    auto_json json_t *caps = NULL;
    auto_free char *args = NULL;
    struct del d = {.cni = c, .a = a, .cancel = cancel};
    struct chain ch;

    if (attachment_check(a, true, err) < 0 ||
        running_settle(c->running, c->timeout_ns, cancel, err) < 0)
        return err_wrap(err, "CNI DEL");
    pass = gate_enter(c->gate, a->sandbox_id, cancel, err);
    if (pass == NULL)
        return err_wrap(err, "CNI DEL");
    if (FAILPOINT("netplugin.del", err) < 0 ||
        cache_each(c->cache_dir, a->sandbox_id, a->ifname, del_cached, &d, err) < 0 ||
        cache_remove_unfinished(c->cache_dir, a->sandbox_id, a->ifname, err) < 0)
        return -1;
    if (d.done)
        return 0;
    conf = probe_conf(c->probe, NULL);
    if (conf == NULL)
        return 0;
    args = attachment_args(a);
    caps = attachment_caps(a, err);
    if (caps == NULL)
        return err_wrap(err, "CNI DEL");
    ch = chain_of(c, conf, a);
    ch.netns = live_netns(a->netns);
    ch.args = args;
    ch.caps = caps;
    if (chain_del(&ch, NULL, cancel, err) < 0)
        return err_wrap(err, "CNI network %s", conf->name);
    return 0;
}

struct find {
    const struct cni_attachment *a;
    struct cache_entry e;
};

static int find_cached(const char *file, void *arg, struct err *err)
{
    struct find *f = arg;
    auto_cache_entry struct cache_entry e = {0};

    (void)err;
    if (cache_read(file, &e, NULL) < 0 || !is_of(&e, f->a))
        return 0;
    f->e = e;
    e = (struct cache_entry){0};
    return 1;
}

int cni_check(struct cni *c, const struct cni_attachment *a, struct cancel *cancel, struct err *err)
{
    auto_gate_pass struct gate_pass *pass = NULL;
    auto_cache_entry struct cache_entry e = {0};
    auto_json json_t *prev = NULL;
    struct find f = {.a = a};
    struct chain ch;
    int found;

    if (attachment_check(a, false, err) < 0)
        return err_wrap(err, "CNI CHECK");
    pass = gate_enter(c->gate, a->sandbox_id, cancel, err);
    if (pass == NULL)
        return err_wrap(err, "CNI CHECK");
    found = cache_each(c->cache_dir, a->sandbox_id, a->ifname, find_cached, &f, err);
    e = f.e;
    if (found < 0)
        return err_wrap(err, "CNI CHECK");
    if (found == 0)
        return err_set(err, ERR_NOT_FOUND, "CNI CHECK: nothing is known of an ADD");
    prev = prev_result(&e);
    ch = chain_of(c, e.conf, a);
    ch.args = e.args;
    ch.caps = e.caps;
    if (chain_check(&ch, prev, cancel, err) < 0)
        return err_wrap(err, "CNI network %s", e.network);
    return 0;
}

/* ---- GC ---- */

struct gc {
    struct cni *cni;
    const char *network;
    const char *const *ids;
    size_t n_ids;
    bool *cached; /* ids[i] has a cache file */
    json_t *valid;
    struct cancel *cancel;
    struct err first;
};

static void add_valid(json_t *valid, const char *id, const char *ifname)
{
    json_array_append_new(valid, json_pack("{s:s, s:s}", "containerID", id, "ifname", ifname));
}

static int gc_file(const char *file, void *arg, struct err *err)
{
    struct gc *g = arg;
    auto_cache_entry struct cache_entry e = {0};
    auto_err struct err why = ERR_INIT;

    (void)err;
    /* another runtime's file may be in the making; what is broken for good goes at its DEL */
    if (cache_read(file, &e, NULL) < 0 || strcmp(e.network, g->network) != 0)
        return 0;
    for (size_t i = 0; i < g->n_ids; i++) {
        if (strcmp(g->ids[i], e.container_id) == 0) {
            g->cached[i] = true;
            add_valid(g->valid, e.container_id, e.ifname);
            return 0;
        }
    }
    if (!e.ours) {
        add_valid(g->valid, e.container_id, e.ifname);
        return 0;
    }
    if (del_entry(g->cni, &e, e.netns, g->cancel, &why) < 0 && g->first.code == ERR_OK) {
        err_wrap(&why, "attachment of unknown sandbox %s", e.container_id);
        err_move(&g->first, &why);
    }
    return cancel_check(g->cancel, NULL);
}

int cni_gc(struct cni *c, const char *const *ids, size_t n_ids, struct cancel *cancel,
           struct err *err)
{
    auto_gate_pass struct gate_pass *pass = gate_enter(c->gate, NULL, cancel, err);
    auto_cni_conf struct cni_conf *conf = NULL;
    auto_json json_t *valid = json_array();
    auto_free bool *cached = xcalloc(n_ids + 1, sizeof(*cached));
    struct gc g = {.cni = c,
                   .ids = ids,
                   .n_ids = n_ids,
                   .cached = cached,
                   .valid = valid,
                   .cancel = cancel,
                   .first = ERR_INIT};
    struct cni_attachment none = {0};
    auto_err struct err why = ERR_INIT;
    struct chain ch;

    if (pass == NULL || running_settle(c->running, c->timeout_ns, cancel, err) < 0)
        return err_wrap(err, "CNI GC");
    conf = probe_conf(c->probe, NULL);
    if (conf == NULL)
        return 0;
    g.network = conf->name;
    if (cache_each(c->cache_dir, NULL, NULL, gc_file, &g, &g.first) == 0) {
        for (size_t i = 0; i < n_ids; i++) {
            if (!cached[i])
                add_valid(valid, ids[i], "eth0");
        }
        ch = chain_of(c, conf, &none);
        ch.netns = NULL;
        if (chain_gc(&ch, valid, cancel, &why) < 0 && g.first.code == ERR_OK)
            err_move(&g.first, &why);
    } else if (g.first.code == ERR_OK) {
        (void)cancel_check(cancel, &g.first);
    }
    if (g.first.code == ERR_OK)
        return 0;
    err_move(err, &g.first);
    return err_wrap(err, "CNI GC: network %s", conf->name);
}
