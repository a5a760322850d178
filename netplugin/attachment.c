#include "netplugin/attachment.h"

#include <string.h>

#include "base/buf.h"
#include "base/limits.h"
#include "base/str.h"
#include "netplugin/conf.h"
#include "netplugin/json.h"
#include "netplugin/netaddr.h"

/* What containerd sends for a rate that has no burst of its own: as much as the field holds. */
#define BURST_BITS 4294967295LL

int attachment_check(const struct cni_attachment *a, bool netns_optional, struct err *err)
{
    const char *const values[] = {a->pod_name, a->pod_namespace, a->pod_uid};

    if (!cni_name_ok(a->sandbox_id))
        return err_set(err, ERR_INVALID, "sandbox id is no CNI container id");
    if (!netaddr_ifname_ok(a->ifname))
        return err_set(err, ERR_INVALID, "not an interface name");
    if (str_empty(a->netns) ? !netns_optional : *a->netns != '/' || strlen(a->netns) >= LIMIT_PATH)
        return err_set(err, ERR_INVALID, "netns is no absolute path");
    /* a ';' would start another argument */
    for (size_t i = 0; i < ARRAY_LEN(values); i++) {
        if (values[i] != NULL && (strlen(values[i]) > LIMIT_NAME || strpbrk(values[i], ";\n") ||
                                  !str_is_utf8(values[i], strlen(values[i]))))
            return err_set(err, ERR_INVALID, "pod name, namespace or uid unfit for CNI_ARGS");
    }
    return 0;
}

char *attachment_args(const struct cni_attachment *a)
{
    auto_buf struct buf b = BUF_INIT(LIMIT_STRING);

    /* without it, plugins refuse the keys that they do not know */
    (void)buf_puts(&b, "IgnoreUnknown=1");
    (void)buf_printf(&b, ";K8S_POD_NAMESPACE=%s", a->pod_namespace ? a->pod_namespace : "");
    (void)buf_printf(&b, ";K8S_POD_NAME=%s", a->pod_name ? a->pod_name : "");
    (void)buf_printf(&b, ";K8S_POD_INFRA_CONTAINER_ID=%s", a->sandbox_id);
    (void)buf_printf(&b, ";K8S_POD_UID=%s", a->pod_uid ? a->pod_uid : "");
    return xstrdup(buf_str(&b));
}

/* In the lower case that portmap wants; NULL when unknown. */
static const char *protocol(const char *name)
{
    static const char *const known[] = {"tcp", "udp", "sctp"};

    for (size_t i = 0; i < ARRAY_LEN(known); i++) {
        if (name != NULL && strcasecmp(name, known[i]) == 0)
            return known[i];
    }
    return NULL;
}

static json_t *ports(const struct cni_attachment *a, struct err *err)
{
    json_t *list = json_array();

    for (size_t i = 0; i < a->n_ports; i++) {
        const struct cni_port_mapping *m = &a->ports[i];
        const char *proto = protocol(m->protocol);
        char ip[NETADDR_IP_LEN] = "";

        if (m->host_port <= 0)
            continue;
        if (proto == NULL || m->host_port > 65535 || m->container_port < 1 ||
            m->container_port > 65535 ||
            (!str_empty(m->host_ip) && netaddr_ip(m->host_ip, ip, NULL) < 0)) {
            json_decref(list);
            err_set(err, ERR_INVALID, "port mapping %zu: bad protocol, port or address", i);
            return NULL;
        }
        json_array_append_new(list, json_pack("{s:i, s:i, s:s, s:s}", "hostPort", m->host_port,
                                              "containerPort", m->container_port, "protocol", proto,
                                              "hostIP", ip));
    }
    return list;
}

/* A list of strings, NULL when one is not UTF-8. */
static json_t *strings(const char *const *v)
{
    json_t *list = json_array();

    for (; v != NULL && *v != NULL; v++) {
        if (json_array_append_new(list, json_string(*v)) < 0) {
            json_decref(list);
            return NULL;
        }
    }
    return list;
}

static json_int_t rate(uint64_t bps)
{
    return bps > INT64_MAX ? INT64_MAX : (json_int_t)bps;
}

static void add_bandwidth(json_t *caps, const struct cni_attachment *a)
{
    json_t *o;

    if (a->ingress_bps == 0 && a->egress_bps == 0)
        return;
    o = json_object();
    if (a->ingress_bps != 0) {
        json_object_set_new(o, "ingressRate", json_integer(rate(a->ingress_bps)));
        json_object_set_new(o, "ingressBurst", json_integer(BURST_BITS));
    }
    if (a->egress_bps != 0) {
        json_object_set_new(o, "egressRate", json_integer(rate(a->egress_bps)));
        json_object_set_new(o, "egressBurst", json_integer(BURST_BITS));
    }
    json_object_set_new(caps, "bandwidth", o);
}

json_t *attachment_caps(const struct cni_attachment *a, struct err *err)
{
    auto_json json_t *caps = json_object();
    json_t *list = ports(a, err);
    int bad = 0;

    if (list == NULL)
        return NULL;
    if (json_array_size(list) > 0)
        json_object_set(caps, "portMappings", list);
    json_decref(list);
    add_bandwidth(caps, a);
    if (a->dns_servers != NULL || a->dns_searches != NULL || a->dns_options != NULL) {
        json_t *dns = json_object();

        bad |= json_object_set_new(dns, "servers", strings(a->dns_servers));
        bad |= json_object_set_new(dns, "searches", strings(a->dns_searches));
        bad |= json_object_set_new(dns, "options", strings(a->dns_options));
        json_object_set_new(caps, "dns", dns);
    }
    if (!str_empty(a->cgroup_path))
        bad |= json_object_set_new(caps, "cgroupPath", json_string(a->cgroup_path));
    if (a->annotations != NULL && a->annotations[0] != NULL) {
        json_t *o = json_object();

        for (size_t i = 0; a->annotations[i] != NULL && a->annotations[i + 1] != NULL; i += 2)
            bad |= json_object_set_new(o, a->annotations[i], json_string(a->annotations[i + 1]));
        json_object_set_new(caps, "io.kubernetes.cri.pod-annotations", o);
    }
    if (bad != 0) {
        err_set(err, ERR_INVALID, "dns, cgroup or annotation text is not UTF-8");
        return NULL;
    }
    return take(caps);
}
