#include "netplugin/result.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/str.h"
#include "netplugin/json.h"
#include "netplugin/netaddr.h"
#include "netplugin/version.h"

void cni_result_clear(struct cni_result *r)
{
    for (size_t i = 0; i < r->n_ifaces; i++) {
        struct cni_result_iface *f = &r->ifaces[i];

        free(f->name);
        free(f->mac);
        free(f->sandbox);
        free(f->socket_path);
        free(f->pci_id);
    }
    free(r->ifaces);
    for (size_t i = 0; i < r->n_ips; i++) {
        free(r->ips[i].address);
        free(r->ips[i].gateway);
    }
    free(r->ips);
    for (size_t i = 0; i < r->n_routes; i++) {
        free(r->routes[i].dst);
        free(r->routes[i].gateway);
    }
    free(r->routes);
    json_decref(r->dns);
    *r = (struct cni_result){0};
}

/* ---- parse ---- */

/* Go's decoder takes null for an absent member. */
static const json_t *member(const json_t *o, const char *key)
{
    const json_t *v = json_object_get(o, key);

    return json_is_null(v) ? NULL : v;
}

static int get_array(const json_t *o, const char *key, size_t max, const json_t **out,
                     struct err *err)
{
    *out = member(o, key);
    return *out != NULL ? json_check_array(*out, key, max, err) : 0;
}

/* An optional, non-empty string of at most LIMIT_PATH bytes. */
static int get_text(const json_t *o, const char *key, char **out, struct err *err)
{
    const json_t *v = member(o, key);
    const char *s = json_string_value(v);

    if (v == NULL || (s != NULL && *s == '\0'))
        return 0;
    if (s == NULL || strlen(s) > LIMIT_PATH)
        return err_set(err, ERR_INVALID, "%s: not a short string", key);
    *out = xstrdup(s);
    return 0;
}

static int get_number(const json_t *o, const char *key, int64_t *out, struct err *err)
{
    const json_t *v = member(o, key);
    uint32_t n;

    *out = -1;
    if (v == NULL)
        return 0;
    if (json_check_u32(v, key, &n, err) < 0)
        return -1;
    *out = n;
    return 0;
}

static int get_ip(const json_t *o, const char *key, char **out, struct err *err)
{
    auto_free char *text = NULL;
    char ip[NETADDR_IP_LEN];

    if (get_text(o, key, &text, err) < 0)
        return -1;
    if (text == NULL)
        return 0;
    if (netaddr_ip(text, ip, NULL) < 0)
        return err_set(err, ERR_INVALID, "%s: not an address", key);
    *out = xstrdup(ip);
    return 0;
}

static int parse_iface(const json_t *o, struct cni_result_iface *f, struct err *err)
{
    auto_free char *mac = NULL;
    int64_t mtu;

    if (!json_is_object(o))
        return err_set(err, ERR_INVALID, "not an object");
    if (get_text(o, "name", &f->name, err) < 0 || get_text(o, "mac", &mac, err) < 0 ||
        get_text(o, "sandbox", &f->sandbox, err) < 0 ||
        get_text(o, "socketPath", &f->socket_path, err) < 0 ||
        get_text(o, "pciID", &f->pci_id, err) < 0 || get_number(o, "mtu", &mtu, err) < 0)
        return -1;
    f->mtu = mtu < 0 ? 0 : (uint32_t)mtu;
    if (f->name != NULL && !netaddr_ifname_ok(f->name))
        return err_set(err, ERR_INVALID, "name: not an interface name");
    if (mac != NULL) {
        char hw[NETADDR_HWADDR_LEN];

        if (netaddr_hwaddr(mac, hw) < 0)
            return err_set(err, ERR_INVALID, "mac: not a hardware address");
        f->mac = xstrdup(hw);
    }
    return 0;
}

static int parse_ip(const json_t *o, const char *address_key, struct cni_result_ip *ip, int *family,
                    struct err *err)
{
    char cidr[NETADDR_CIDR_LEN], *slash;

    if (!json_is_object(o))
        return err_set(err, ERR_INVALID, "not an object");
    if (netaddr_cidr(json_get_string(o, address_key), false, cidr, family) < 0)
        return err_set(err, ERR_INVALID, "%s: not address/length", address_key);
    ip->address = xstrdup(cidr);
    slash = strchr(cidr, '/');
    *slash = '\0';
    if (!netaddr_is_host(cidr))
        return err_set(err, ERR_INVALID, "%s: %s is no address for a pod", address_key, cidr);
    return get_ip(o, "gateway", &ip->gateway, err);
}

static int parse_route(const json_t *o, struct cni_result_route *r, struct err *err)
{
    char dst[NETADDR_CIDR_LEN];

    if (!json_is_object(o))
        return err_set(err, ERR_INVALID, "not an object");
    if (netaddr_cidr(json_get_string(o, "dst"), true, dst, NULL) < 0)
        return err_set(err, ERR_INVALID, "dst: not a prefix");
    r->dst = xstrdup(dst);
    if (get_ip(o, "gw", &r->gateway, err) < 0 || get_number(o, "mtu", &r->mtu, err) < 0 ||
        get_number(o, "advmss", &r->advmss, err) < 0 ||
        get_number(o, "priority", &r->priority, err) < 0 ||
        get_number(o, "table", &r->table, err) < 0 || get_number(o, "scope", &r->scope, err) < 0)
        return -1;
    if (r->scope > 255)
        return err_set(err, ERR_INVALID, "scope: out of range");
    return 0;
}

/* Appends; r->routes grows by the array's size. */
static int parse_routes(const json_t *o, struct cni_result *r, struct err *err)
{
    const json_t *a, *e;
    size_t i;

    if (get_array(o, "routes", LIMIT_POD_ROUTES - r->n_routes, &a, err) < 0)
        return -1;
    r->routes = xrealloc(r->routes, r->n_routes + json_array_size(a) + 1, sizeof(*r->routes));
    json_array_foreach(a, i, e)
    {
        struct cni_result_route *route = &r->routes[r->n_routes++];

        *route = (struct cni_result_route){0};
        if (parse_route(e, route, err) < 0)
            return err_wrap(err, "routes[%zu]", i);
    }
    return 0;
}

/* 0.1 and 0.2: at most one address per family, each with its routes. */
static int parse_old(const json_t *o, struct cni_result *r, struct err *err)
{
    static const struct {
        const char *key;
        int family;
    } sides[] = {{"ip4", AF_INET}, {"ip6", AF_INET6}};

    r->ips = xcalloc(ARRAY_LEN(sides), sizeof(*r->ips));
    for (size_t i = 0; i < ARRAY_LEN(sides); i++) {
        const json_t *side = member(o, sides[i].key);
        int family = 0;

        if (side == NULL)
            continue;
        r->ips[r->n_ips].iface = -1;
        if (parse_ip(side, "ip", &r->ips[r->n_ips++], &family, err) < 0)
            return err_wrap(err, "%s", sides[i].key);
        if (family != sides[i].family)
            return err_set(err, ERR_INVALID, "%s: address of the other family", sides[i].key);
        if (parse_routes(side, r, err) < 0)
            return err_wrap(err, "%s", sides[i].key);
    }
    return 0;
}

static int parse_new(const json_t *o, struct cni_result *r, struct err *err)
{
    const json_t *a, *e;
    size_t i;

    if (get_array(o, "interfaces", LIMIT_CNI_INTERFACES, &a, err) < 0)
        return -1;
    r->ifaces = xcalloc(json_array_size(a) + 1, sizeof(*r->ifaces));
    json_array_foreach(a, i, e)
    {
        if (parse_iface(e, &r->ifaces[r->n_ifaces++], err) < 0)
            return err_wrap(err, "interfaces[%zu]", i);
    }
    if (get_array(o, "ips", LIMIT_POD_ADDRESSES, &a, err) < 0)
        return -1;
    r->ips = xcalloc(json_array_size(a) + 1, sizeof(*r->ips));
    json_array_foreach(a, i, e)
    {
        struct cni_result_ip *ip = &r->ips[r->n_ips++];
        int64_t index;

        if (parse_ip(e, "address", ip, NULL, err) < 0 ||
            get_number(e, "interface", &index, err) < 0)
            return err_wrap(err, "ips[%zu]", i);
        if (index >= (int64_t)r->n_ifaces)
            return err_set(err, ERR_INVALID, "ips[%zu]: interface %lld does not exist", i,
                           (long long)index);
        ip->iface = (int)index;
    }
    return parse_routes(o, r, err);
}

int cni_result_parse(const json_t *o, const char *version, struct cni_result *out, struct err *err)
{
    auto_cni_result struct cni_result r = {0};
    const json_t *v = member(o, "cniVersion"), *dns;
    int ret;

    if (!json_is_object(o))
        return err_set(err, ERR_INVALID, "result: not a JSON object");
    if (v != NULL && !json_is_string(v))
        return err_set(err, ERR_INVALID, "result: cniVersion: not a string");
    if (v != NULL && *json_string_value(v) != '\0') {
        version = cni_version_known(json_string_value(v));
        if (version == NULL)
            return err_set(err, ERR_INVALID, "result: unknown cniVersion %.32s",
                           json_string_value(v));
    }
    ret = cni_version_at_least(version, "0.3.0") ? parse_new(o, &r, err) : parse_old(o, &r, err);
    if (ret < 0)
        return err_wrap(err, "result");
    dns = member(o, "dns");
    if (dns != NULL && !json_is_object(dns))
        return err_set(err, ERR_INVALID, "result: dns: not an object");
    if (dns != NULL)
        r.dns = json_deep_copy(dns);
    *out = r;
    r = (struct cni_result){0};
    return 0;
}

/* ---- encode ---- */

static void put_text(json_t *o, const char *key, const char *s)
{
    if (s != NULL)
        json_object_set_new(o, key, json_string(s));
}

static void put_number(json_t *o, const char *key, int64_t v)
{
    if (v >= 0)
        json_object_set_new(o, key, json_integer(v));
}

static json_t *encode_route(const struct cni_result_route *r, bool v11)
{
    json_t *o = json_object();

    put_text(o, "dst", r->dst);
    put_text(o, "gw", r->gateway);
    if (v11) {
        put_number(o, "mtu", r->mtu);
        put_number(o, "advmss", r->advmss);
        put_number(o, "priority", r->priority);
        put_number(o, "table", r->table);
        put_number(o, "scope", r->scope);
    }
    return o;
}

static bool is_v6(const char *s)
{
    return strchr(s, ':') != NULL;
}

/* The first address of each family, with the routes of that family. */
static void encode_old(const struct cni_result *r, json_t *o)
{
    for (int six = 0; six < 2; six++) {
        json_t *side, *routes;
        size_t i = 0;

        while (i < r->n_ips && is_v6(r->ips[i].address) != (six == 1))
            i++;
        if (i == r->n_ips)
            continue;
        side = json_object();
        put_text(side, "ip", r->ips[i].address);
        put_text(side, "gateway", r->ips[i].gateway);
        routes = json_array();
        for (i = 0; i < r->n_routes; i++) {
            if (is_v6(r->routes[i].dst) == (six == 1))
                json_array_append_new(routes, encode_route(&r->routes[i], false));
        }
        json_object_set_new(side, "routes", routes);
        json_object_set_new(o, six ? "ip6" : "ip4", side);
    }
}

static void encode_new(const struct cni_result *r, const char *version, json_t *o)
{
    bool v11 = cni_version_at_least(version, "1.1.0");
    json_t *ifaces = json_array(), *ips = json_array(), *routes = json_array();

    for (size_t i = 0; i < r->n_ifaces; i++) {
        const struct cni_result_iface *f = &r->ifaces[i];
        json_t *e = json_object();

        put_text(e, "name", f->name != NULL ? f->name : "");
        put_text(e, "mac", f->mac);
        put_text(e, "sandbox", f->sandbox);
        if (v11) {
            put_text(e, "socketPath", f->socket_path);
            put_text(e, "pciID", f->pci_id);
            if (f->mtu != 0)
                put_number(e, "mtu", f->mtu);
        }
        json_array_append_new(ifaces, e);
    }
    for (size_t i = 0; i < r->n_ips; i++) {
        const struct cni_result_ip *ip = &r->ips[i];
        json_t *e = json_object();

        if (!cni_version_at_least(version, "1.0.0"))
            put_text(e, "version", is_v6(ip->address) ? "6" : "4");
        put_number(e, "interface", ip->iface);
        put_text(e, "address", ip->address);
        put_text(e, "gateway", ip->gateway);
        json_array_append_new(ips, e);
    }
    for (size_t i = 0; i < r->n_routes; i++)
        json_array_append_new(routes, encode_route(&r->routes[i], v11));
    json_object_set_new(o, "interfaces", ifaces);
    json_object_set_new(o, "ips", ips);
    json_object_set_new(o, "routes", routes);
}

json_t *cni_result_encode(const struct cni_result *r, const char *version)
{
    json_t *o = json_object();

    put_text(o, "cniVersion", version);
    if (cni_version_at_least(version, "0.3.0"))
        encode_new(r, version, o);
    else
        encode_old(r, o);
    if (r->dns != NULL)
        json_object_set_new(o, "dns", json_deep_copy(r->dns));
    return o;
}

json_t *cni_result_convert(const json_t *o, const char *version, struct err *err)
{
    auto_cni_result struct cni_result r = {0};
    const char *own = json_get_string(o, "cniVersion");

    if (cni_result_parse(o, version, &r, err) < 0)
        return NULL;
    if (str_empty(own) || strcmp(own, version) == 0) {
        json_t *copy = json_deep_copy(o);

        put_text(copy, "cniVersion", version);
        return copy;
    }
    return cni_result_encode(&r, version);
}

void cni_result_pod_ips(const struct cni_result *r, const char *ifname, struct netinfo *out)
{
    for (size_t i = 0; i < out->n_ips; i++)
        free(out->ips[i]);
    free(out->ips);
    out->ips = xcalloc(r->n_ips + 1, sizeof(*out->ips));
    out->n_ips = 0;
    for (int six = 0; six < 2; six++) {
        for (size_t i = 0; i < r->n_ips; i++) {
            const struct cni_result_ip *ip = &r->ips[i];
            const struct cni_result_iface *f = ip->iface >= 0 ? &r->ifaces[ip->iface] : NULL;

            if (is_v6(ip->address) != (six == 1))
                continue;
            if (f != NULL &&
                (f->sandbox == NULL || f->name == NULL || strcmp(f->name, ifname) != 0))
                continue;
            out->ips[out->n_ips++] =
                xstrndup(ip->address, (size_t)(strchr(ip->address, '/') - ip->address));
        }
    }
}
