#include "netplugin/netinfo.h"

#include <jansson.h>
#include <linux/neighbour.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/limits.h"
#include "base/str.h"
#include "netplugin/json.h"
#include "netplugin/netaddr.h"

static void strings_free(char **v, size_t n)
{
    for (size_t i = 0; v != NULL && i < n; i++)
        free(v[i]);
    free(v);
}

void net_iface_clear(struct net_iface *f)
{
    free(f->name);
    free(f->mac);
    strings_free(f->addresses, f->n_addresses);
    for (size_t i = 0; i < f->n_routes; i++) {
        free(f->routes[i].dst);
        free(f->routes[i].gateway);
        free(f->routes[i].src);
    }
    free(f->routes);
    for (size_t i = 0; i < f->n_neighbours; i++) {
        free(f->neighbours[i].ip);
        free(f->neighbours[i].mac);
    }
    free(f->neighbours);
    *f = (struct net_iface){0};
}

void netinfo_clear(struct netinfo *n)
{
    strings_free(n->ips, n->n_ips);
    for (size_t i = 0; i < n->n_ifaces; i++)
        net_iface_clear(&n->ifaces[i]);
    free(n->ifaces);
    *n = (struct netinfo){0};
}

void netinfo_set_iface(struct netinfo *n, struct net_iface *iface)
{
    if (n->n_ifaces == 0) {
        n->ifaces = xrealloc(n->ifaces, 1, sizeof(*n->ifaces));
        n->n_ifaces = 1;
    } else {
        net_iface_clear(&n->ifaces[0]);
    }
    n->ifaces[0] = *iface;
    *iface = (struct net_iface){0};
}

/* ---- encode ---- */

static json_t *encode_strings(char *const *v, size_t n)
{
    json_t *a = json_array();

    for (size_t i = 0; i < n; i++)
        json_array_append_new(a, json_string(v[i]));
    return a;
}

static void put_u32(json_t *o, const char *key, uint32_t v)
{
    if (v != 0)
        json_object_set_new(o, key, json_integer(v));
}

static json_t *encode_iface(const struct net_iface *f)
{
    json_t *o = json_object(), *routes = json_array(), *neighbours = json_array();

    json_object_set_new(o, "name", json_string(f->name));
    json_object_set_new(o, "mac", json_string(f->mac));
    put_u32(o, "mtu", f->mtu);
    json_object_set_new(o, "addresses", encode_strings(f->addresses, f->n_addresses));
    for (size_t i = 0; i < f->n_routes; i++) {
        const struct net_route *r = &f->routes[i];
        json_t *e = json_object();

        json_object_set_new(e, "dst", json_string(r->dst));
        if (r->gateway != NULL)
            json_object_set_new(e, "gateway", json_string(r->gateway));
        if (r->src != NULL)
            json_object_set_new(e, "src", json_string(r->src));
        put_u32(e, "mtu", r->mtu);
        put_u32(e, "advmss", r->advmss);
        put_u32(e, "metric", r->metric);
        put_u32(e, "scope", r->scope);
        put_u32(e, "table", r->table);
        if (r->onlink)
            json_object_set_new(e, "onlink", json_true());
        json_array_append_new(routes, e);
    }
    json_object_set_new(o, "routes", routes);
    for (size_t i = 0; i < f->n_neighbours; i++) {
        const struct net_neighbour *nb = &f->neighbours[i];

        json_array_append_new(neighbours, json_pack("{s:s, s:s, s:I}", "ip", nb->ip, "mac", nb->mac,
                                                    "state", (json_int_t)nb->state));
    }
    json_object_set_new(o, "neighbours", neighbours);
    return o;
}

char *netinfo_encode(const struct netinfo *n)
{
    auto_json json_t *o = json_object();
    json_t *ifaces = json_array();

    json_object_set_new(o, "ips", encode_strings(n->ips, n->n_ips));
    for (size_t i = 0; i < n->n_ifaces; i++)
        json_array_append_new(ifaces, encode_iface(&n->ifaces[i]));
    json_object_set_new(o, "ifaces", ifaces);
    return json_dumps(o, JSON_COMPACT);
}

/* ---- decode ---- */

/* An array member of `o`, at most max long; absent is an empty one (NULL). */
static int get_array(const json_t *o, const char *key, size_t max, json_t **out, struct err *err)
{
    *out = json_object_get(o, key);
    return *out != NULL ? json_check_array(*out, key, max, err) : 0;
}

static int get_u32(const json_t *o, const char *key, uint32_t *out, struct err *err)
{
    const json_t *v = json_object_get(o, key);

    *out = 0;
    return v != NULL ? json_check_u32(v, key, out, err) : 0;
}

/* An optional address member. */
static int get_ip(const json_t *o, const char *key, char **out, struct err *err)
{
    const json_t *v = json_object_get(o, key);
    char ip[NETADDR_IP_LEN];

    if (v == NULL)
        return 0;
    if (netaddr_ip(json_string_value(v), ip, NULL) < 0)
        return err_set(err, ERR_INVALID, "%s: not an address", key);
    *out = xstrdup(ip);
    return 0;
}

static int decode_route(const json_t *o, struct net_route *r, struct err *err)
{
    char dst[NETADDR_CIDR_LEN];
    const json_t *onlink = json_object_get(o, "onlink");

    if (netaddr_cidr(json_string_value(json_object_get(o, "dst")), true, dst, NULL) < 0)
        return err_set(err, ERR_INVALID, "dst: not a prefix");
    r->dst = xstrdup(dst);
    if (get_ip(o, "gateway", &r->gateway, err) < 0 || get_ip(o, "src", &r->src, err) < 0 ||
        get_u32(o, "mtu", &r->mtu, err) < 0 || get_u32(o, "advmss", &r->advmss, err) < 0 ||
        get_u32(o, "metric", &r->metric, err) < 0 || get_u32(o, "scope", &r->scope, err) < 0 ||
        get_u32(o, "table", &r->table, err) < 0)
        return -1;
    if (r->scope > 255)
        return err_set(err, ERR_INVALID, "scope: out of range");
    if (onlink != NULL && !json_is_boolean(onlink))
        return err_set(err, ERR_INVALID, "onlink: not a boolean");
    r->onlink = json_is_true(onlink);
    return 0;
}

static int decode_neighbour(const json_t *o, struct net_neighbour *n, struct err *err)
{
    char mac[NETADDR_MAC_LEN];

    if (get_ip(o, "ip", &n->ip, err) < 0)
        return -1;
    if (n->ip == NULL)
        return err_set(err, ERR_INVALID, "ip: missing");
    if (netaddr_mac(json_string_value(json_object_get(o, "mac")), mac) < 0)
        return err_set(err, ERR_INVALID, "mac: not a MAC address");
    n->mac = xstrdup(mac);
    if (get_u32(o, "state", &n->state, err) < 0)
        return -1;
    if (n->state != NUD_PERMANENT && n->state != NUD_NOARP)
        return err_set(err, ERR_INVALID, "state: neither permanent nor noarp");
    return 0;
}

static int decode_iface(const json_t *o, struct net_iface *f, struct err *err)
{
    const char *name = json_string_value(json_object_get(o, "name"));
    char mac[NETADDR_MAC_LEN];
    json_t *a, *e;
    size_t i;

    if (!netaddr_ifname_ok(name))
        return err_set(err, ERR_INVALID, "name: not an interface name");
    f->name = xstrdup(name);
    if (netaddr_mac(json_string_value(json_object_get(o, "mac")), mac) < 0)
        return err_set(err, ERR_INVALID, "mac: not a MAC address");
    f->mac = xstrdup(mac);
    if (get_u32(o, "mtu", &f->mtu, err) < 0 ||
        get_array(o, "addresses", LIMIT_POD_ADDRESSES, &a, err) < 0)
        return -1;
    f->addresses = xcalloc(json_array_size(a) + 1, sizeof(*f->addresses));
    json_array_foreach(a, i, e)
    {
        char cidr[NETADDR_CIDR_LEN];

        if (netaddr_cidr(json_string_value(e), false, cidr, NULL) < 0)
            return err_set(err, ERR_INVALID, "addresses[%zu]: not address/length", i);
        f->addresses[f->n_addresses++] = xstrdup(cidr);
    }
    if (get_array(o, "routes", LIMIT_POD_ROUTES, &a, err) < 0)
        return -1;
    f->routes = xcalloc(json_array_size(a) + 1, sizeof(*f->routes));
    json_array_foreach(a, i, e)
    {
        if (decode_route(e, &f->routes[f->n_routes++], err) < 0)
            return err_wrap(err, "routes[%zu]", i);
    }
    if (get_array(o, "neighbours", LIMIT_POD_NEIGHBOURS, &a, err) < 0)
        return -1;
    f->neighbours = xcalloc(json_array_size(a) + 1, sizeof(*f->neighbours));
    json_array_foreach(a, i, e)
    {
        if (decode_neighbour(e, &f->neighbours[f->n_neighbours++], err) < 0)
            return err_wrap(err, "neighbours[%zu]", i);
    }
    return 0;
}

int netinfo_decode(const char *text, struct netinfo *out, struct err *err)
{
    auto_netinfo struct netinfo n = {0};
    auto_json json_t *root = NULL;
    json_t *a, *e;
    size_t i;

    root = json_parse(text, strnlen(text, LIMIT_NETINFO_TEXT + 1), LIMIT_NETINFO_TEXT, err);
    if (root == NULL)
        return err_wrap(err, "network record");
    if (get_array(root, "ips", LIMIT_POD_ADDRESSES, &a, err) < 0)
        return err_wrap(err, "network record");
    n.ips = xcalloc(json_array_size(a) + 1, sizeof(*n.ips));
    json_array_foreach(a, i, e)
    {
        char ip[NETADDR_IP_LEN];

        if (netaddr_ip(json_string_value(e), ip, NULL) < 0)
            return err_set(err, ERR_INVALID, "network record: ips[%zu]: not an address", i);
        n.ips[n.n_ips++] = xstrdup(ip);
    }
    if (get_array(root, "ifaces", LIMIT_POD_INTERFACES, &a, err) < 0)
        return err_wrap(err, "network record");
    n.ifaces = xcalloc(json_array_size(a) + 1, sizeof(*n.ifaces));
    json_array_foreach(a, i, e)
    {
        if (decode_iface(e, &n.ifaces[n.n_ifaces++], err) < 0)
            return err_wrap(err, "network record: ifaces[%zu]", i);
    }
    netinfo_clear(out);
    *out = n;
    memset(&n, 0, sizeof(n));
    return 0;
}
