#include "cri/sandbox_ops.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>

#include "base/failpoint.h"
#include "base/fs.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "cri/container_ops.h"
#include "cri/spec.h"
#include "netplugin/cni.h"
#include "netplugin/netns.h"

#define POD_IFNAME "eth0"
/* What undoing may take: longer than a CNI plugin's own timeout, shorter than a client's patience.
 */
#define UNDO_NS (150LL * 1000000000)
#define SHM_BYTES (64ULL << 20)

/* --- CNI --- */

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

/* Replaces an owned string under the lock. */
static void set_text(struct sandbox *s, char **field, char *owned)
{
    (void)pthread_mutex_lock(&s->rt->lock);
    free(*field);
    *field = owned;
    (void)pthread_mutex_unlock(&s->rt->lock);
}

/* The namespace with a tap in it, which is the caller's. */
static int namespace_up(struct sandbox *s, int *tap, struct err *err)
{
    char name[4 + 32 + 1] = "cni-";
    fs_random_hex(name + 4, 32);
    /* the path is recorded before it exists, so that a killed daemon's successor can take it away
     */
    set_text(s, &s->rec.netns, fs_format("/run/netns/%s", name));
    auto_free char *dir = sandbox_run_dir(s);
    auto_free char *note = fs_format("%s/" SANDBOX_NETNS_FILE, dir);
    if (sandbox_save(s, err) < 0 || fs_mkdir_p(dir, 0700, err) < 0 ||
        fs_write_atomic(note, s->rec.netns, strlen(s->rec.netns), 0600, false, err) < 0 ||
        FAILPOINT("sandbox.netns", err) < 0)
        return -1;
    auto_free char *path = NULL;
    if (netns_create(name, &path, err) < 0)
        return err_wrap(err, "create network namespace");
    set_text(s, &s->rec.netns, take(path));
    if (FAILPOINT("sandbox.tap", err) < 0)
        return -1;
    *tap = netns_make_tap(s->rec.netns, SANDBOX_TAP_NAME, err);
    return *tap < 0 ? err_wrap(err, "make the VM's tap") : 0;
}

/* ADD, and the tap joined to what that made. */
static int network_up(struct sandbox *s, struct timeline *t, struct cancel *cancel, struct err *err)
{
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
    if (netns_join_tap(s->rec.netns, POD_IFNAME, SANDBOX_TAP_NAME, &net, err) < 0)
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
static int network_down(struct sandbox *s, struct cancel *cancel, struct err *err)
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
    set_text(s, &s->rec.netns, xstrdup(""));
    return sandbox_save(s, err);
}

/* --- machine --- */

static struct machine_spec spec_of(const Runtime__V1__PodSandboxConfig *config)
{
    struct machine_spec spec = {.cgroup_parent = "", .tap_fd = -1};
    const Runtime__V1__LinuxPodSandboxConfig *l = config->linux;
    if (l != NULL) {
        spec.cgroup_parent = l->cgroup_parent;
        if (l->resources != NULL) {
            if (l->resources->memory_limit_in_bytes > 0)
                spec.memory_limit_bytes = (uint64_t)l->resources->memory_limit_in_bytes;
            spec.cpu_quota = l->resources->cpu_quota;
            if (l->resources->cpu_period > 0)
                spec.cpu_period = (uint64_t)l->resources->cpu_period;
        }
    }
    return spec;
}

struct machine_spec sandbox_machine_spec(const struct sandbox *s)
{
    struct machine_spec spec = spec_of(s->config);
    spec.sandbox_id = s->rec.id;
    return spec;
}

static void on_machine_event(void *arg, const Aspis__Agent__V1__Event *event)
{
    container_on_event(arg, event);
}

struct death {
    struct sandbox *s;
    char *reason;
};

/* On the worker loop: it writes records. */
static void bury_machine(void *arg)
{
    struct death *d = arg;
    struct sandbox *s = d->s;
    (void)pthread_mutex_lock(&s->rt->lock);
    bool expected = s->stopping || s->rec.phase != SANDBOX_READY;
    (void)pthread_mutex_unlock(&s->rt->lock);
    if (!expected) {
        auto_err struct err err = ERR_INIT;
        log_error("machine of sandbox died", LOG_STR("sandbox", s->rec.id),
                  LOG_STR("reason", d->reason));
        if (sandbox_set_phase(s, SANDBOX_NOTREADY, d->reason, &err) < 0)
            log_error("cannot record dead sandbox", LOG_STR("sandbox", s->rec.id),
                      LOG_STR("error", err_msg(&err)));
    }
    containers_lost(s, d->reason);
    sandbox_unref(s);
    free(d->reason);
    free(d);
}

static void on_machine_dead(void *arg, const char *reason)
{
    struct death *d = xcalloc(1, sizeof(*d));
    d->s = sandbox_ref(arg);
    d->reason = xstrdup(reason);
    loop_post(d->s->rt->worker, bury_machine, d);
}

const struct machine_callbacks sandbox_machine_callbacks = {
    .on_event = on_machine_event,
    .on_dead = on_machine_dead,
};

static void set_machine(struct sandbox *s, struct machine *m)
{
    struct machine_record record = {0};
    machine_get_record(m, &record);
    char *text = machine_record_encode(&record);
    machine_record_clear(&record);
    (void)pthread_mutex_lock(&s->rt->lock);
    s->machine = m;
    free(s->rec.machine);
    s->rec.machine = text;
    (void)pthread_mutex_unlock(&s->rt->lock);
}

static int machine_up(struct sandbox *s, int tap, struct timeline *t, struct cancel *cancel,
                      struct err *err)
{
    struct machine_spec spec = sandbox_machine_spec(s);
    spec.tap_fd = tap;
    spec.timeline = t;
    struct machine_callbacks cb = sandbox_machine_callbacks;
    cb.arg = s;
    if (FAILPOINT("sandbox.machine", err) < 0)
        return -1;
    struct machine *m = machine_start(s->rt->deps.factory, &spec, &cb, cancel, err);
    if (m == NULL)
        return -1;
    set_machine(s, m);
    return sandbox_save(s, err);
}

/* A spare VM, with its namespace, becomes the sandbox's, whose id it has; not claimed yet. */
static int adopt_spare(struct sandbox *s, struct spare *sp, struct err *err)
{
    set_text(s, &s->rec.netns, take(sp->netns));
    set_machine(s, take(sp->machine));
    return sandbox_save(s, err);
}

static int claim_machine(struct sandbox *s, struct timeline *t, struct cancel *cancel,
                         struct err *err)
{
    struct machine_spec spec = sandbox_machine_spec(s);
    struct machine_callbacks cb = sandbox_machine_callbacks;
    cb.arg = s;
    if (machine_claim(s->machine, &spec, &cb, cancel, err) < 0)
        return -1;
    set_machine(s, s->machine); /* its record has another cgroup now */
    timeline_mark(t, "spare claimed");
    return 0;
}

/* The VM starts, or is claimed, on a thread of its own while the plugins run. */
struct machine_job {
    struct sandbox *s;
    bool claim; /* it is a spare that the sandbox has already */
    int tap;
    struct timeline *timeline;
    struct cancel *both; /* fired by whichever side fails first */
    struct err err;
    int64_t failed_at;
    int ret;
};

static void *machine_thread(void *arg)
{
    struct machine_job *j = arg;
    j->ret = j->claim ? claim_machine(j->s, j->timeline, j->both, &j->err)
                      : machine_up(j->s, j->tap, j->timeline, j->both, &j->err);
    if (j->ret < 0) {
        j->failed_at = mono_ns();
        cancel_fire(j->both);
    }
    return NULL;
}

/* VM and network at the same time. What one of them has made when the other fails is the caller's
 * to undo; *machines_fault tells which it was. */
static int network_and_machine_up(struct sandbox *s, int tap, bool claim, struct timeline *t,
                                  bool *machines_fault, struct cancel *cancel, struct err *err)
{
    auto_cancel struct cancel *both = cancel_child(cancel, 0, err);
    if (both == NULL)
        return -1;
    struct machine_job j = {.s = s, .claim = claim, .tap = tap, .timeline = t, .both = both};
    pthread_t thread;
    int rc = pthread_create(&thread, NULL, machine_thread, &j);
    if (rc != 0)
        return err_sys(err, rc, "start a thread");
    auto_err struct err net_err = ERR_INIT;
    int ret = network_up(s, t, both, &net_err);
    int64_t failed_at = mono_ns();
    if (ret < 0)
        cancel_fire(both);
    (void)pthread_join(thread, NULL);
    *machines_fault = j.ret < 0 && (ret == 0 || j.failed_at < failed_at);
    if (*machines_fault)
        (void)err_move(err, &j.err); /* the first failure is the reason, a later one its echo */
    else if (ret < 0)
        (void)err_move(err, &net_err);
    err_clear(&j.err);
    return ret < 0 || j.ret < 0 ? -1 : 0;
}

static int machine_down(struct sandbox *s, struct cancel *cancel, struct err *err)
{
    if (s->machine != NULL) {
        if (machine_destroy(s->machine, cancel, err) < 0)
            return err_wrap(err, "stop machine");
        sandbox_drop_machine(s);
    } else if (s->rec.machine[0] != '\0') {
        struct machine_record record = {0};
        int rc = machine_record_decode(s->rec.machine, &record, err);
        if (rc == 0)
            rc = machine_destroy_record(s->rt->deps.factory, s->rec.id, &record, cancel, err);
        machine_record_clear(&record);
        if (rc < 0)
            return err_wrap(err, "stop machine");
    } else if (s->rec.phase == SANDBOX_CREATING &&
               machine_destroy_record(s->rt->deps.factory, s->rec.id, NULL, cancel, err) < 0) {
        /* a daemon may have died between starting the VM and recording it */
        return err_wrap(err, "stop machine");
    }
    set_text(s, &s->rec.machine, xstrdup(""));
    return sandbox_save(s, err);
}

/* --- ConfigurePod --- */

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

static int put_sysctls(Aspis__Agent__V1__ConfigurePodRequest *req,
                       const Runtime__V1__LinuxPodSandboxConfig *l, struct arena *a,
                       struct err *err)
{
    if (l == NULL || l->n_sysctls == 0)
        return 0;
    req->sysctls = arena_alloc(a, l->n_sysctls * sizeof(void *));
    for (size_t i = 0; req->sysctls != NULL && i < l->n_sysctls; i++) {
        Aspis__Agent__V1__KeyValue *kv = arena_alloc(a, sizeof(*kv));
        if (kv == NULL)
            break;
        aspis__agent__v1__key_value__init(kv);
        kv->key = l->sysctls[i]->key;
        kv->value = l->sysctls[i]->value;
        req->sysctls[req->n_sysctls++] = kv;
    }
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
    auto_free char *scratch = xstrdup(machine_scratch_serial(m));
    req.scratch_disk = text_or_empty(scratch);
    if (put_network(&req, &s->net, machine_guest_mac(m), a, err) < 0 ||
        put_sysctls(&req, s->config->linux, a, err) < 0)
        return -1;
    req.wall_clock_ns = (uint64_t)wall_ns();
    if (link_call(machine_link(m), "ConfigurePod", &req.base, &aspis__agent__v1__empty__descriptor,
                  a, cancel, err) == NULL)
        return err_wrap(err, "configure pod");
    explicit_bzero(seed, sizeof(seed));
    return 0;
}

/* --- run --- */

struct network_job {
    struct sandbox *s;
    struct timeline *timeline;
    struct cancel *cancel;
    struct err err;
    int ret;
};

static void *network_thread(void *arg)
{
    struct network_job *j = arg;
    j->ret = network_down(j->s, j->cancel, &j->err);
    timeline_mark(j->timeline, "network");
    return NULL;
}

/* VM and network at the same time, each as far as it goes. */
static int machine_and_network_down(struct sandbox *s, struct timeline *t, struct cancel *cancel,
                                    struct err *err)
{
    struct network_job j = {.s = s, .timeline = t, .cancel = cancel};
    pthread_t thread;
    int rc = pthread_create(&thread, NULL, network_thread, &j);
    int ret = machine_down(s, cancel, err);
    timeline_mark(t, "machine");
    if (rc == 0)
        (void)pthread_join(thread, NULL);
    else
        (void)network_thread(&j);
    if (ret == 0 && j.ret < 0)
        (void)err_move(err, &j.err);
    err_clear(&j.err);
    return ret < 0 || j.ret < 0 ? -1 : 0;
}

int sandbox_teardown(struct sandbox *s, struct cancel *cancel, struct err *err)
{
    auto_free char *run_dir = sandbox_run_dir(s);
    if (machine_and_network_down(s, NULL, cancel, err) < 0)
        return -1;
    return fs_rm_rf(run_dir, err);
}

/* Undoes a failed run with a deadline of its own. What cannot be undone stays as a NOTREADY
 * sandbox, which kubelet will stop and remove again. */
static void undo_run(struct sandbox *s, const struct err *cause)
{
    auto_err struct err err = ERR_INIT;
    auto_cancel struct cancel *own = cancel_new(mono_ns() + UNDO_NS, NULL);
    if (sandbox_teardown(s, own, &err) == 0 && sandbox_delete(s, &err) == 0) {
        model_remove_sandbox(s->rt, s);
        return;
    }
    log_error("cannot undo failed sandbox; it stays as not ready", LOG_STR("sandbox", s->rec.id),
              LOG_STR("error", err_msg(&err)));
    (void)sandbox_set_phase(s, SANDBOX_NOTREADY, err_msg(cause), NULL);
}

static int build_new(struct sandbox *s, struct timeline *t, struct cancel *cancel, struct err *err)
{
    auto_close int tap = -1;
    bool ignored;
    if (namespace_up(s, &tap, err) < 0)
        return -1;
    timeline_mark(t, "namespace and tap");
    return network_and_machine_up(s, tap, false, t, &ignored, cancel, err);
}

/* 1: done; 0: the spare was no good and is gone, with its namespace. */
static int build_on_spare(struct sandbox *s, struct spare *sp, struct timeline *t,
                          struct cancel *cancel, struct err *err)
{
    auto_err struct err why = ERR_INIT;
    bool machines_fault = false;
    if (adopt_spare(s, sp, err) < 0)
        return -1;
    timeline_mark(t, "spare taken");
    if (network_and_machine_up(s, -1, true, t, &machines_fault, cancel, &why) == 0)
        return 1;
    if (!machines_fault || cancel_check(cancel, NULL) < 0)
        return err_move(err, &why);
    log_warn("a spare vm is unusable", LOG_STR("sandbox", s->rec.id),
             LOG_STR("error", err_msg(&why)));
    return sandbox_teardown(s, cancel, err) < 0 ? -1 : 0;
}

static int build(struct sandbox *s, struct spare *sp, struct timeline *t, struct cancel *cancel,
                 struct err *err)
{
    if (sandbox_save(s, err) < 0 || FAILPOINT("sandbox.record", err) < 0)
        return -1;
    timeline_mark(t, "record");
    int rc = sp != NULL ? build_on_spare(s, sp, t, cancel, err) : 0;
    if (rc < 0 || (rc == 0 && build_new(s, t, cancel, err) < 0))
        return -1;
    if (FAILPOINT("sandbox.configure", err) < 0 ||
        sandbox_configure_pod(s, s->machine, cancel, err) < 0)
        return -1;
    timeline_mark(t, "pod configured");
    if (FAILPOINT("sandbox.ready", err) < 0)
        return -1;
    if (sandbox_set_phase(s, SANDBOX_READY, "", err) < 0)
        return -1;
    /* a death reported before it was READY changed nothing (bury_machine) */
    if (!machine_alive(s->machine))
        return err_set(err, ERR_UNAVAILABLE, "the machine died while it was set up");
    return 0;
}

/* Another call is making this sandbox, or has made it. 1: it failed and is gone, try as the first.
 */
static int join(struct sandbox *holder, struct cancel *cancel, struct err *err)
{
    if (cancel_poll(cancel, holder->settled_fd, POLLIN, -1, err) < 0)
        return -1;
    (void)pthread_mutex_lock(&holder->rt->lock);
    enum sandbox_phase phase = holder->rec.phase;
    struct sandbox *listed = NULL;
    HASH_FIND(hh, holder->rt->sandboxes, holder->rec.id, strlen(holder->rec.id), listed);
    bool gone = listed != holder;
    (void)pthread_mutex_unlock(&holder->rt->lock);
    if (phase == SANDBOX_READY && !gone)
        return 0;
    if (phase == SANDBOX_CREATING || gone)
        return 1;
    return err_set(err, ERR_EXISTS, "sandbox %s exists as %.12s and is not ready; remove it first",
                   holder->name_key, holder->rec.id);
}

/* Takes a spare, whose id the sandbox gets, if one fits; id is 65 bytes. */
static struct spare *choose_id(struct runtime *rt, const Runtime__V1__PodSandboxConfig *config,
                               char *id)
{
    struct machine_spec spec = spec_of(config);
    struct spare *sp = spares_take(rt->spares, &spec);
    if (sp != NULL)
        memcpy(id, sp->id, 65);
    else
        fs_random_hex(id, 64);
    return sp;
}

/* What is left of a spare once its sandbox is built, or not. */
static void settle_spare(struct runtime *rt, struct spare *sp)
{
    if (sp != NULL && sp->machine != NULL)
        spares_put_back(rt->spares, sp);
    else
        spare_free(sp);
    spares_yield(rt->spares);
}

struct sandbox *sandbox_run(struct runtime *rt, const Runtime__V1__PodSandboxConfig *config,
                            const char *handler, struct cancel *cancel, struct err *err)
{
    char title[200];
    for (;;) {
        char id[65];
        struct spare *sp = choose_id(rt, config, id);
        auto_sandbox struct sandbox *s = sandbox_new(rt, id, config, handler, err);
        auto_sandbox struct sandbox *holder = s != NULL ? model_add_sandbox(rt, s) : NULL;
        if (s == NULL || holder != NULL)
            settle_spare(rt, sp);
        if (s == NULL)
            return NULL;
        if (holder != NULL) {
            int rc = join(holder, cancel, err);
            if (rc == 0)
                return take(holder);
            if (rc < 0)
                return NULL;
            continue;
        }
        int64_t begin = mono_ns();
        struct timeline timeline;
        timeline_begin(&timeline);
        int rc = build(s, sp, &timeline, cancel, err);
        timeline_mark(&timeline, "ready");
        set_text(s, &s->timeline, timeline_text(&timeline));
        timeline_end(&timeline);
        if (rc < 0) {
            (void)err_wrap(err, "%s", sandbox_title(s, title));
            undo_run(s, err);
        } else {
            log_info("sandbox runs", LOG_STR("sandbox", s->rec.id), LOG_STR("pod", s->name_key),
                     LOG_INT("ms", (mono_ns() - begin) / 1000000));
            log_debug("timeline", LOG_STR("sandbox", s->rec.id), LOG_STR("ms", s->timeline));
        }
        settle_spare(rt, sp);
        (void)eventfd_write(s->settled_fd, 1);
        return rc < 0 ? NULL : take(s);
    }
}

/* --- stop and remove --- */

static int stop_locked(struct sandbox *s, struct timeline *t, struct cancel *cancel,
                       struct err *err)
{
    (void)pthread_mutex_lock(&s->rt->lock);
    s->stopping = true;
    bool notready = s->rec.phase == SANDBOX_NOTREADY;
    (void)pthread_mutex_unlock(&s->rt->lock);
    auto_free char *run_dir = sandbox_run_dir(s);
    int rc = machine_and_network_down(s, t, cancel, err);
    if (s->rec.machine[0] == '\0') { /* it is gone, whatever became of the network */
        containers_lost(s, "");
        if (!notready &&
            sandbox_set_phase(s, SANDBOX_NOTREADY, "stopped", rc == 0 ? err : NULL) < 0)
            return -1;
    }
    return rc < 0 ? -1 : fs_rm_rf(run_dir, err);
}

int sandbox_stop(struct sandbox *s, struct cancel *cancel, struct err *err)
{
    char title[200];
    if (oplock_take(&s->op, cancel, err) < 0)
        return err_wrap(err, "stop %s", sandbox_title(s, title));
    auto_oplock struct oplock *held = &s->op;
    /* running containers get their end recorded as killed, with their output complete */
    struct timeline timeline;
    timeline_begin(&timeline);
    containers_kill_all(s, cancel);
    timeline_mark(&timeline, "containers");
    int rc = stop_locked(s, &timeline, cancel, err);
    timeline_mark(&timeline, "stopped");
    auto_free char *steps = timeline_text(&timeline);
    timeline_end(&timeline);
    log_debug("timeline of stop", LOG_STR("sandbox", s->rec.id), LOG_STR("ms", steps));
    return rc < 0 ? err_wrap(err, "stop %s", sandbox_title(s, title)) : 0;
}

int sandbox_remove(struct sandbox *s, struct cancel *cancel, struct err *err)
{
    char title[200];
    if (oplock_take(&s->op, cancel, err) < 0)
        return err_wrap(err, "remove %s", sandbox_title(s, title));
    auto_oplock struct oplock *held = &s->op;
    (void)pthread_mutex_lock(&s->save);
    bool gone = s->deleted;
    (void)pthread_mutex_unlock(&s->save);
    if (gone)
        return 0;
    containers_kill_all(s, cancel);
    if (stop_locked(s, NULL, cancel, err) < 0 ||
        sandbox_set_phase(s, SANDBOX_REMOVING, "being removed", err) < 0 ||
        FAILPOINT("sandbox.remove", err) < 0)
        return err_wrap(err, "remove %s", sandbox_title(s, title));
    size_t n = 0;
    struct container **list = model_containers_of(s, &n);
    int rc = 0;
    for (size_t i = 0; i < n; i++) {
        if (rc == 0)
            rc = container_remove(list[i], cancel, err);
        container_unref(list[i]);
    }
    free(list);
    if (rc < 0 || sandbox_delete(s, err) < 0)
        return err_wrap(err, "remove %s", sandbox_title(s, title));
    model_remove_sandbox(s->rt, s);
    log_info("sandbox removed", LOG_STR("sandbox", s->rec.id), LOG_STR("pod", s->name_key));
    return 0;
}

void sandbox_ack_events(struct sandbox *s)
{
    uint64_t upto = 0;
    struct container *c;
    (void)pthread_mutex_lock(&s->rt->lock);
    upto = s->last_seq;
    TAILQ_FOREACH(c, &s->containers, link)
    {
        /* its exit is not on disk yet */
        if (c->exit_seq != 0 && c->exit_seq <= upto)
            upto = c->exit_seq - 1;
    }
    struct machine *m = s->machine;
    if (m != NULL)
        s->machine_users++;
    (void)pthread_mutex_unlock(&s->rt->lock);
    if (m == NULL)
        return;
    if (upto > 0)
        link_ack_events(machine_link(m), upto);
    sandbox_release_machine(s);
}
