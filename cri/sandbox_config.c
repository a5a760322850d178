#include "cri/sandbox_ops.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "cri/userns.h"

#define SHM_BYTES (64ULL << 20)

static void put_lines(struct buf *b, const char *key, char **v, size_t n, bool one_line)
{
    if (n == 0)
        return;
    for (size_t i = 0; i < n; i++) {
        if (i == 0 || !one_line)
            (void)buf_puts(b, key);
        (void)buf_printf(b, " %s%s", v[i], one_line && i + 1 < n ? "" : "\n");
    }
}

static void make_resolv_conf(const struct sandbox *s, struct buf *b)
{
    const Runtime__V1__DNSConfig *d = s->config->dns_config;
    if (d != NULL && (d->n_servers > 0 || d->n_searches > 0 || d->n_options > 0)) {
        put_lines(b, "search", d->searches, d->n_searches, true);
        put_lines(b, "nameserver", d->servers, d->n_servers, false);
        put_lines(b, "options", d->options, d->n_options, true);
        return;
    }
    /* nothing asked for: the host's own, as other runtimes do */
    auto_free char *host = fs_read("/etc/resolv.conf", KiB(64), NULL, NULL);
    if (host != NULL)
        (void)buf_puts(b, host);
}

static void make_hosts(const struct sandbox *s, struct buf *b)
{
    auto_free char *host =
        backend_host_network(s->config) ? fs_read("/etc/hosts", KiB(64), NULL, NULL) : NULL;
    if (host != NULL) {
        (void)buf_puts(b, host);
        return;
    }
    (void)buf_puts(b, "127.0.0.1\tlocalhost\n"
                      "::1\tlocalhost ip6-localhost ip6-loopback\n"
                      "fe00::\tip6-localnet\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n");
    if (s->config->hostname[0] == '\0')
        return;
    for (size_t i = 0; i < s->net.n_ips; i++)
        (void)buf_printf(b, "%s\t%s\n", s->net.ips[i], s->config->hostname);
}

static char *text_or_empty(char *s)
{
    static char empty[] = "";
    return s != NULL ? s : empty;
}

static void put_iface(Aspis__Agent__V1__ConfigurePodRequest *req, const struct net_iface *n,
                      const char *guest_mac, struct arena *a)
{
    Aspis__Agent__V1__Interface *i = arena_alloc(a, sizeof(*i));
    if (i == NULL)
        return;
    aspis__agent__v1__interface__init(i);
    i->name = n->name;
    i->mac = n->mac;
    i->guest_mac = __extension__(char *)(uintptr_t)(guest_mac != NULL ? guest_mac : n->mac);
    i->mtu = n->mtu;
    i->addresses = n->addresses;
    i->n_addresses = n->n_addresses;
    req->interfaces[req->n_interfaces++] = i;
    for (size_t k = 0; k < n->n_routes; k++) {
        const struct net_route *from = &n->routes[k];
        Aspis__Agent__V1__Route *r = arena_alloc(a, sizeof(*r));
        if (r == NULL)
            return;
        aspis__agent__v1__route__init(r);
        r->dst = text_or_empty(from->dst);
        r->gateway = text_or_empty(from->gateway);
        r->dev = n->name;
        r->src = text_or_empty(from->src);
        r->mtu = from->mtu;
        r->advmss = from->advmss;
        r->metric = from->metric;
        r->scope = from->scope;
        r->table = from->table;
        r->onlink = from->onlink;
        req->routes[req->n_routes++] = r;
    }
    for (size_t k = 0; k < n->n_neighbours; k++) {
        Aspis__Agent__V1__Neighbour *nb = arena_alloc(a, sizeof(*nb));
        if (nb == NULL)
            return;
        aspis__agent__v1__neighbour__init(nb);
        nb->ip = n->neighbours[k].ip;
        nb->mac = n->neighbours[k].mac;
        nb->dev = n->name;
        nb->state = n->neighbours[k].state;
        req->neighbours[req->n_neighbours++] = nb;
    }
}

static int put_network(Aspis__Agent__V1__ConfigurePodRequest *req, const struct netinfo *net,
                       const char *guest_mac, struct arena *a, struct err *err)
{
    size_t routes = 0;
    size_t neighbours = 0;
    for (size_t i = 0; i < net->n_ifaces; i++) {
        routes += net->ifaces[i].n_routes;
        neighbours += net->ifaces[i].n_neighbours;
    }
    req->interfaces = arena_alloc(a, (net->n_ifaces + 1) * sizeof(void *));
    req->routes = arena_alloc(a, (routes + 1) * sizeof(void *));
    req->neighbours = arena_alloc(a, (neighbours + 1) * sizeof(void *));
    if (req->interfaces == NULL || req->routes == NULL || req->neighbours == NULL)
        return err_sys(err, ENOMEM, "network of the pod");
    for (size_t i = 0; i < net->n_ifaces; i++)
        put_iface(req, &net->ifaces[i], i == 0 ? guest_mac : NULL, a);
    return arena_exhausted(a) ? err_sys(err, ENOMEM, "network of the pod") : 0;
}

static void put_sysctl(Aspis__Agent__V1__ConfigurePodRequest *req, const char *key,
                       const char *value, struct arena *a)
{
    Aspis__Agent__V1__KeyValue *kv = arena_alloc(a, sizeof(*kv));
    if (kv == NULL || req->sysctls == NULL)
        return;
    aspis__agent__v1__key_value__init(kv);
    kv->key = arena_strdup(a, key);
    kv->value = arena_strdup(a, value);
    req->sysctls[req->n_sysctls++] = kv;
}

/* The root of a user namespace has no power over a guest's network, which is all the pod's:
 * low ports and pings are for everybody then. The pod's own sysctls come after these. */
static void put_userns_sysctls(Aspis__Agent__V1__ConfigurePodRequest *req, struct arena *a)
{
    put_sysctl(req, "net.ipv4.ip_unprivileged_port_start", "0", a);
    put_sysctl(req, "net.ipv4.ping_group_range", "0 2147483647", a);
}

static int put_sysctls(Aspis__Agent__V1__ConfigurePodRequest *req,
                       const Runtime__V1__LinuxPodSandboxConfig *l, enum backend backend,
                       struct arena *a, struct err *err)
{
    if (l == NULL)
        return 0;
    req->sysctls = arena_alloc(a, (l->n_sysctls + 2) * sizeof(void *));
    if (backend == BACKEND_VM &&
        userns_wanted(l->security_context != NULL ? l->security_context->namespace_options : NULL))
        put_userns_sysctls(req, a);
    for (size_t i = 0; i < l->n_sysctls; i++)
        put_sysctl(req, l->sysctls[i]->key, l->sysctls[i]->value, a);
    return arena_exhausted(a) ? err_sys(err, ENOMEM, "sysctls of the pod") : 0;
}

int sandbox_configure_pod(struct sandbox *s, struct machine *m, struct cancel *cancel,
                          struct err *err)
{
    auto_arena struct arena *a = arena_new(LIMIT_CALL_ARENA);
    if (a == NULL)
        return err_sys(err, ENOMEM, "configure pod");
    Aspis__Agent__V1__ConfigurePodRequest req;
    aspis__agent__v1__configure_pod_request__init(&req);
    auto_buf struct buf resolv = BUF_INIT(KiB(256));
    auto_buf struct buf hosts = BUF_INIT(KiB(256));
    make_resolv_conf(s, &resolv);
    make_hosts(s, &hosts);
    uint8_t seed[64];
    uint8_t machine_id[16];
    if (getrandom(seed, sizeof(seed), 0) != (ssize_t)sizeof(seed) ||
        getrandom(machine_id, sizeof(machine_id), 0) != (ssize_t)sizeof(machine_id))
        return err_sys(err, errno, "entropy for the guest");
    req.sandbox_id = s->rec.id;
    req.hostname = s->config->hostname;
    req.entropy = (ProtobufCBinaryData){sizeof(seed), seed};
    req.machine_id = (ProtobufCBinaryData){sizeof(machine_id), machine_id};
    req.resolv_conf = (ProtobufCBinaryData){resolv.len, (uint8_t *)resolv.data};
    req.hosts = (ProtobufCBinaryData){hosts.len, (uint8_t *)hosts.data};
    req.shm_bytes = SHM_BYTES;
    bool vm = s->backend.backend == BACKEND_VM;
    auto_free char *scratch = vm ? xstrdup(machine_scratch_serial(m)) : NULL;
    req.scratch_disk = text_or_empty(scratch);
    /* on the host the network is as CNI made it */
    if ((vm && put_network(&req, &s->net, machine_guest_mac(m), a, err) < 0) ||
        put_sysctls(&req, s->config->linux, s->backend.backend, a, err) < 0)
        return -1;
    req.wall_clock_ns = (uint64_t)wall_ns();
    if (link_call(machine_link(m), "ConfigurePod", &req.base, &aspis__agent__v1__empty__descriptor,
                  a, cancel, err) == NULL)
        return err_wrap(err, "configure pod");
    explicit_bzero(seed, sizeof(seed));
    return 0;
}
