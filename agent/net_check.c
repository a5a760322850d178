#include "agent/net_check.h"

#include <arpa/inet.h>
#include <linux/if.h>
#include <linux/neighbour.h>
#include <linux/rtnetlink.h>
#include <string.h>

#include "base/limits.h"
#include "base/str.h"

typedef Aspis__Agent__V1__ConfigurePodRequest request;
typedef Aspis__Agent__V1__Interface interface;
typedef Aspis__Agent__V1__Route route;
typedef Aspis__Agent__V1__Neighbour neighbour;

#define MTU_MIN 68 /* RFC 791 */
#define MTU_MAX 65535

/* --- text to numbers ---------------------------------------------------------------------- */

int net_parse_mac(const char *text, uint8_t mac[NET_MAC_SIZE])
{
    if (text == NULL || strlen(text) != 3 * NET_MAC_SIZE - 1)
        return -1;
    for (size_t i = 0; i < NET_MAC_SIZE; i++) {
        int high = str_hex_digit(text[3 * i]);
        int low = str_hex_digit(text[3 * i + 1]);
        if (high < 0 || low < 0 || (i + 1 < NET_MAC_SIZE && text[3 * i + 2] != ':'))
            return -1;
        mac[i] = (uint8_t)(high << 4 | low);
    }
    return 0;
}

int net_parse_addr(const char *text, bool need_prefix, struct net_addr *out)
{
    char ip[INET6_ADDRSTRLEN];
    *out = (struct net_addr){0};
    if (text == NULL)
        return -1;
    size_t n = strcspn(text, "/");
    if (n == 0 || n >= sizeof(ip) || (text[n] == '/') != need_prefix)
        return -1;
    memcpy(ip, text, n);
    ip[n] = '\0';
    if (inet_pton(AF_INET, ip, out->bytes) == 1) {
        out->family = AF_INET;
        out->size = 4;
    } else if (inet_pton(AF_INET6, ip, out->bytes) == 1) {
        out->family = AF_INET6;
        out->size = 16;
    } else {
        return -1;
    }
    out->prefix = out->size * 8;
    if (need_prefix) {
        uint64_t prefix = 0;
        if (str_to_u64(text + n + 1, &prefix) < 0 || prefix > out->size * 8)
            return -1;
        out->prefix = (unsigned)prefix;
    }
    return 0;
}

/* What dev_valid_name() of the kernel takes. */
static bool name_valid(const char *name)
{
    size_t n = strlen(name);
    return n > 0 && n < IFNAMSIZ && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 &&
           strpbrk(name, "/: \t\n\v\f\r") == NULL && strcmp(name, "lo") != 0;
}

/* --- checks ------------------------------------------------------------------------------- */

static bool has_interface(const request *req, const char *name)
{
    for (size_t i = 0; i < req->n_interfaces; i++) {
        if (strcmp(req->interfaces[i]->name, name) == 0)
            return true;
    }
    return false;
}

static int check_interface(const request *req, size_t index, struct err *err)
{
    const interface *f = req->interfaces[index];
    uint8_t mac[NET_MAC_SIZE];
    struct net_addr addr;
    if (!name_valid(f->name))
        return err_set(err, ERR_INVALID, "interface %zu: \"%.40s\" is not an interface's name",
                       index, f->name);
    for (size_t i = 0; i < index; i++) {
        if (strcmp(req->interfaces[i]->name, f->name) == 0)
            return err_set(err, ERR_INVALID, "interface %s: named twice", f->name);
    }
    if (net_parse_mac(f->mac, mac) < 0 || (mac[0] & 1))
        return err_set(err, ERR_INVALID, "interface %s: \"%.40s\" is not a station's MAC", f->name,
                       f->mac);
    if (net_parse_mac(f->guest_mac, mac) < 0)
        return err_set(err, ERR_INVALID, "interface %s: guest_mac \"%.40s\" is not a MAC", f->name,
                       f->guest_mac);
    if (f->mtu != 0 && (f->mtu < MTU_MIN || f->mtu > MTU_MAX))
        return err_set(err, ERR_INVALID, "interface %s: MTU %u", f->name, f->mtu);
    if (f->n_addresses > LIMIT_POD_ADDRESSES)
        return err_set(err, ERR_INVALID, "interface %s: %zu addresses", f->name, f->n_addresses);
    for (size_t i = 0; i < f->n_addresses; i++) {
        if (net_parse_addr(f->addresses[i], true, &addr) < 0)
            return err_set(err, ERR_INVALID, "interface %s: address \"%.60s\"", f->name,
                           f->addresses[i]);
    }
    return 0;
}

static int check_route(const request *req, const route *r, struct err *err)
{
    struct net_addr dst, other;
    if (net_parse_addr(r->dst, true, &dst) < 0)
        return err_set(err, ERR_INVALID, "route: destination \"%.60s\"", r->dst);
    if (!has_interface(req, r->dev))
        return err_set(err, ERR_INVALID, "route to %s: no interface \"%.40s\"", r->dst, r->dev);
    /* An IPv4 route may go through an IPv6 gateway (RTA_VIA), not the other way round. */
    if (*r->gateway && (net_parse_addr(r->gateway, false, &other) < 0 ||
                        (dst.family == AF_INET6 && other.family != AF_INET6)))
        return err_set(err, ERR_INVALID, "route to %s: gateway \"%.60s\"", r->dst, r->gateway);
    if (*r->src && (net_parse_addr(r->src, false, &other) < 0 || other.family != dst.family))
        return err_set(err, ERR_INVALID, "route to %s: source \"%.60s\"", r->dst, r->src);
    if (r->scope > RT_SCOPE_NOWHERE)
        return err_set(err, ERR_INVALID, "route to %s: scope %u", r->dst, r->scope);
    return 0;
}

static int check_neighbour(const request *req, const neighbour *n, struct err *err)
{
    struct net_addr addr;
    uint8_t mac[NET_MAC_SIZE];
    if (net_parse_addr(n->ip, false, &addr) < 0)
        return err_set(err, ERR_INVALID, "neighbour: address \"%.60s\"", n->ip);
    if (!has_interface(req, n->dev))
        return err_set(err, ERR_INVALID, "neighbour %s: no interface \"%.40s\"", n->ip, n->dev);
    if (n->state != NUD_PERMANENT && n->state != NUD_NOARP)
        return err_set(err, ERR_INVALID, "neighbour %s: state 0x%x", n->ip, n->state);
    if (net_parse_mac(n->mac, mac) < 0 && !(n->state == NUD_NOARP && *n->mac == '\0'))
        return err_set(err, ERR_INVALID, "neighbour %s: MAC \"%.40s\"", n->ip, n->mac);
    return 0;
}

int net_check(const request *req, struct err *err)
{
    if (req->n_interfaces > LIMIT_POD_INTERFACES || req->n_routes > LIMIT_POD_ROUTES ||
        req->n_neighbours > LIMIT_POD_NEIGHBOURS)
        return err_set(err, ERR_INVALID, "network: %zu interfaces, %zu routes, %zu neighbours",
                       req->n_interfaces, req->n_routes, req->n_neighbours);
    for (size_t i = 0; i < req->n_interfaces; i++) {
        if (check_interface(req, i, err) < 0)
            return -1;
    }
    for (size_t i = 0; i < req->n_routes; i++) {
        if (check_route(req, req->routes[i], err) < 0)
            return -1;
    }
    for (size_t i = 0; i < req->n_neighbours; i++) {
        if (check_neighbour(req, req->neighbours[i], err) < 0)
            return -1;
    }
    return 0;
}
