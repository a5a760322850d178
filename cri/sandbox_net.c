#include "cri/sandbox_net.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/fs.h"
#include "base/idmap.h"
#include "base/str.h"
#include "cri/sandbox_ops.h"
#include "cri/userns.h"
#include "netplugin/cni.h"
#include "netplugin/netns.h"
#include "netplugin/netns_note.h"

#define POD_IFNAME "eth0"

/* The attachment's arrays, alive as long as it. */
struct attachment {
    struct cni_attachment a;
    struct cni_port_mapping *ports;
    const char **annotations;
    struct strv servers, searches, options;
};

static void attachment_clear(struct attachment *x)
{
    free(x->ports);
    free(x->annotations);
    strv_clear(&x->servers);
    strv_clear(&x->searches);
    strv_clear(&x->options);
}
#define auto_attachment __attribute__((cleanup(attachment_clear)))

static const char *protocol_name(Runtime__V1__Protocol p)
{
    switch (p) {
    case RUNTIME__V1__PROTOCOL__UDP:
        return "udp";
    case RUNTIME__V1__PROTOCOL__SCTP:
        return "sctp";
    case RUNTIME__V1__PROTOCOL__TCP:
    case _RUNTIME__V1__PROTOCOL_IS_INT_SIZE:
    default:
        return "tcp";
    }
}

/* "10M" as kubernetes.io/ingress-bandwidth says it: a resource quantity in bits per second. */
static uint64_t bandwidth(const char *text)
{
    static const struct {
        const char *suffix;
        uint64_t factor;
    } units[] = {{"", 1},           {"k", 1000},        {"M", 1000000},
                 {"G", 1000000000}, {"Ki", 1ULL << 10}, {"Mi", 1ULL << 20},
                 {"Gi", 1ULL << 30}};
    char *end = NULL;
    unsigned long long v = strtoull(text, &end, 10);
    for (size_t i = 0; i < ARRAY_LEN(units); i++) {
        if (end != text && strcmp(end, units[i].suffix) == 0 && v <= UINT64_MAX / units[i].factor)
            return v * units[i].factor;
    }
    return 0;
}

static void fill_strings(struct strv *out, char **from, size_t n)
{
    for (size_t i = 0; i < n; i++)
        strv_add(out, from[i]);
}

static void attachment_fill(struct attachment *x, const struct sandbox *s)
{
    const Runtime__V1__PodSandboxConfig *c = s->config;
    *x = (struct attachment){.a = {.sandbox_id = s->rec.id,
                                   .netns = s->rec.netns,
                                   .ifname = POD_IFNAME,
                                   .pod_name = c->metadata->name,
                                   .pod_namespace = c->metadata->namespace_,
                                   .pod_uid = c->metadata->uid,
                                   .cgroup_path = c->linux != NULL ? c->linux->cgroup_parent : ""}};
    x->ports = xcalloc(c->n_port_mappings, sizeof(*x->ports));
    for (size_t i = 0; i < c->n_port_mappings; i++) {
        const Runtime__V1__PortMapping *p = c->port_mappings[i];
        if (p->host_port <= 0)
            continue;
        x->ports[x->a.n_ports++] = (struct cni_port_mapping){.protocol = protocol_name(p->protocol),
                                                             .container_port = p->container_port,
                                                             .host_port = p->host_port,
                                                             .host_ip = p->host_ip};
    }
    x->a.ports = x->ports;
    x->annotations = xcalloc(2 * c->n_annotations + 1, sizeof(*x->annotations));
    for (size_t i = 0; i < c->n_annotations; i++) {
        const char *key = c->annotations[i]->key;
        x->annotations[2 * i] = key;
        x->annotations[2 * i + 1] = c->annotations[i]->value;
        if (strcmp(key, "kubernetes.io/ingress-bandwidth") == 0)
            x->a.ingress_bps = bandwidth(c->annotations[i]->value);
        else if (strcmp(key, "kubernetes.io/egress-bandwidth") == 0)
            x->a.egress_bps = bandwidth(c->annotations[i]->value);
    }
    x->a.annotations = x->annotations;
    if (c->dns_config != NULL) {
        fill_strings(&x->servers, c->dns_config->servers, c->dns_config->n_servers);
        fill_strings(&x->searches, c->dns_config->searches, c->dns_config->n_searches);
        fill_strings(&x->options, c->dns_config->options, c->dns_config->n_options);
        x->a.dns_servers = (const char *const *)x->servers.v;
        x->a.dns_searches = (const char *const *)x->searches.v;
        x->a.dns_options = (const char *const *)x->options.v;
    }
}

/* On the host a user namespace of the pod owns its network namespace, as with other runtimes; it
 * lives as long as that. In a VM the pod's namespaces are the guest's. */
static int make_netns(const struct sandbox *s, const char *name, char **path, struct err *err)
{
    const Runtime__V1__NamespaceOption *n = backend_namespaces(s->config);
    if (s->backend.backend != BACKEND_HOST || !userns_wanted(n))
        return netns_create(name, path, err);
    const Runtime__V1__IDMapping *u = n->userns_options->uids[0];
    const Runtime__V1__IDMapping *g = n->userns_options->gids[0];
    const struct idmap_range uids = {u->container_id, u->host_id, u->length};
    const struct idmap_range gids = {g->container_id, g->host_id, g->length};
    if (machine_host_userns(s->rt->deps.factory, err) < 0)
        return -1;
    auto_close int userns = idmap_userns(&uids, 1, &gids, 1, err);
    return userns < 0 ? -1 : netns_create_in(name, userns, path, err);
}

/* The namespace with a tap in it, which is the caller's. */
int sandbox_namespace_up(struct sandbox *s, int *tap, struct err *err)
{
    if (backend_host_network(s->config))
        return 0;
    char name[4 + 32 + 1] = "cni-";
    fs_random_hex(name + 4, 32);
    /* the path is recorded before it exists, so that a killed daemon's successor can take it away
     */
    sandbox_set_text(s, &s->rec.netns, fs_format("/run/netns/%s", name));
    auto_free char *notes = netns_notes_dir(s->rt);
    if (sandbox_save(s, err) < 0 || netns_note_write(notes, s->rec.id, s->rec.netns, err) < 0 ||
        FAILPOINT("sandbox.netns", err) < 0)
        return -1;
    auto_free char *path = NULL;
    if (make_netns(s, name, &path, err) < 0)
        return err_wrap(err, "create network namespace");
    sandbox_set_text(s, &s->rec.netns, take(path));
    if (s->backend.backend == BACKEND_HOST)
        return 0; /* containers live in it themselves */
    if (FAILPOINT("sandbox.tap", err) < 0)
        return -1;
    *tap = netns_make_tap(s->rec.netns, SANDBOX_TAP_NAME, err);
    return *tap < 0 ? err_wrap(err, "make the VM's tap") : 0;
}

/* ADD, and the tap joined to what that made. */
int sandbox_network_up(struct sandbox *s, struct timeline *t, struct cancel *cancel,
                       struct err *err)
{
    if (backend_host_network(s->config))
        return 0;
    (void)pthread_mutex_lock(&s->rt->lock);
    s->rec.net_up = true;
    (void)pthread_mutex_unlock(&s->rt->lock);
    if (sandbox_save(s, err) < 0 || FAILPOINT("sandbox.cni", err) < 0)
        return -1;
    auto_attachment struct attachment x;
    attachment_fill(&x, s);
    auto_netinfo struct netinfo net = {0};
    if (cni_add(s->rt->deps.cni, &x.a, &net, cancel, err) < 0)
        return err_wrap(err, "set up pod network");
    timeline_mark(t, "cni add");
    if (net.n_ips == 0)
        return err_set(err, ERR_INTERNAL, "set up pod network: CNI gave the pod no address");
    if (s->backend.backend == BACKEND_VM &&
        netns_join_tap(s->rec.netns, POD_IFNAME, SANDBOX_TAP_NAME, &net, err) < 0)
        return err_wrap(err, "connect the VM to %s", POD_IFNAME);
    char *text = netinfo_encode(&net);
    (void)pthread_mutex_lock(&s->rt->lock);
    free(s->rec.net);
    s->rec.net = text;
    netinfo_clear(&s->net);
    s->net = net;
    net = (struct netinfo){0};
    (void)pthread_mutex_unlock(&s->rt->lock);
    timeline_mark(t, "tap joined");
    return sandbox_save(s, err);
}

/* DEL and the namespace; may be repeated. */
int sandbox_network_down(struct sandbox *s, struct cancel *cancel, struct err *err)
{
    (void)pthread_mutex_lock(&s->rt->lock);
    bool up = s->rec.net_up;
    (void)pthread_mutex_unlock(&s->rt->lock);
    if (up) {
        auto_attachment struct attachment x;
        attachment_fill(&x, s);
        if (!fs_exists(s->rec.netns))
            x.a.netns = "";
        if (FAILPOINT("sandbox.del", err) < 0 || cni_del(s->rt->deps.cni, &x.a, cancel, err) < 0)
            return err_wrap(err, "tear down pod network");
        (void)pthread_mutex_lock(&s->rt->lock);
        s->rec.net_up = false;
        (void)pthread_mutex_unlock(&s->rt->lock);
    }
    if (s->rec.netns[0] == '\0')
        return 0;
    if (netns_remove(s->rec.netns, err) < 0)
        return err_wrap(err, "remove network namespace");
    auto_free char *notes = netns_notes_dir(s->rt);
    netns_note_drop(notes, s->rec.id);
    sandbox_set_text(s, &s->rec.netns, xstrdup(""));
    return sandbox_save(s, err);
}
