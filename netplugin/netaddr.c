#include "netplugin/netaddr.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <net/if.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"

static int parse_ip(const char *text, unsigned char bytes[16], int *family)
{
    if (text == NULL)
        return -1;
    if (inet_pton(AF_INET, text, bytes) == 1)
        *family = AF_INET;
    else if (inet_pton(AF_INET6, text, bytes) == 1)
        *family = AF_INET6;
    else
        return -1;
    return 0;
}

int netaddr_ip(const char *text, char out[NETADDR_IP_LEN], int *family)
{
    unsigned char bytes[16];
    int fam;

    if (parse_ip(text, bytes, &fam) < 0 || inet_ntop(fam, bytes, out, NETADDR_IP_LEN) == NULL)
        return -1;
    if (family != NULL)
        *family = fam;
    return 0;
}

int netaddr_format(int family, const void *bytes, unsigned prefix, char out[NETADDR_CIDR_LEN])
{
    char ip[NETADDR_IP_LEN];
    int n;

    if ((family != AF_INET && family != AF_INET6) || prefix > (family == AF_INET ? 32U : 128U))
        return -1;
    if (inet_ntop(family, bytes, ip, sizeof(ip)) == NULL)
        return -1;
    n = snprintf(out, NETADDR_CIDR_LEN, "%s/%u", ip, prefix);
    return n > 0 && n < NETADDR_CIDR_LEN ? 0 : -1;
}

int netaddr_cidr(const char *text, bool mask_host, char out[NETADDR_CIDR_LEN], int *family)
{
    unsigned char bytes[16];
    char ip[NETADDR_IP_LEN];
    const char *slash = text != NULL ? strchr(text, '/') : NULL;
    uint64_t prefix;
    int fam;

    if (slash == NULL || (size_t)(slash - text) >= sizeof(ip))
        return -1;
    memcpy(ip, text, (size_t)(slash - text));
    ip[slash - text] = '\0';
    if (parse_ip(ip, bytes, &fam) < 0 || str_to_u64(slash + 1, &prefix) < 0 ||
        prefix > (fam == AF_INET ? 32U : 128U))
        return -1;
    if (mask_host) {
        for (unsigned bit = (unsigned)prefix; bit < (fam == AF_INET ? 32U : 128U); bit++)
            bytes[bit / 8] &= (unsigned char)~(0x80U >> (bit % 8));
    }
    if (family != NULL)
        *family = fam;
    return netaddr_format(fam, bytes, (unsigned)prefix, out);
}

/* Pairs of hex digits joined by ':' or '-'; returns how many, -1 when malformed. */
static int parse_hwaddr(const char *text, unsigned char *bytes, int max)
{
    int n = 0;

    if (text == NULL)
        return -1;
    for (;;) {
        unsigned v = 0;

        if (n == max)
            return -1;
        for (int i = 0; i < 2; i++, text++) {
            if (!isxdigit((unsigned char)*text))
                return -1;
            v = v * 16 + (unsigned)(isdigit((unsigned char)*text)
                                        ? *text - '0'
                                        : tolower((unsigned char)*text) - 'a' + 10);
        }
        bytes[n++] = (unsigned char)v;
        if (*text == '\0')
            return n;
        if (*text != ':' && *text != '-')
            return -1;
        text++;
    }
}

static void format_hwaddr(const unsigned char *bytes, int n, char *out)
{
    for (int i = 0; i < n; i++) {
        static const char hex[] = "0123456789abcdef";

        *out++ = hex[bytes[i] >> 4];
        *out++ = hex[bytes[i] & 15];
        *out++ = i == n - 1 ? '\0' : ':';
    }
}

int netaddr_hwaddr(const char *text, char out[NETADDR_HWADDR_LEN])
{
    unsigned char bytes[20];
    int n = parse_hwaddr(text, bytes, (int)sizeof(bytes));

    if (n != 6 && n != 8 && n != 20)
        return -1;
    format_hwaddr(bytes, n, out);
    return 0;
}

int netaddr_mac(const char *text, char out[NETADDR_MAC_LEN])
{
    static const unsigned char zero[6];
    unsigned char bytes[6];

    if (parse_hwaddr(text, bytes, 6) != 6 || (bytes[0] & 1) != 0 || memcmp(bytes, zero, 6) == 0)
        return -1;
    format_hwaddr(bytes, 6, out);
    return 0;
}

bool netaddr_ifname_ok(const char *name)
{
    size_t len = name != NULL ? strnlen(name, IFNAMSIZ) : 0;

    if (len == 0 || len >= IFNAMSIZ || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
        return false;
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)name[i];

        if (c <= ' ' || c >= 0x7f || c == '/' || c == ':')
            return false;
    }
    return true;
}

bool netaddr_is_host(const char *ip)
{
    static const unsigned char zero[16];
    unsigned char b[16];
    int fam;

    if (parse_ip(ip, b, &fam) < 0)
        return false;
    if (fam == AF_INET)
        return memcmp(b, zero, 4) != 0 && b[0] < 224;
    return memcmp(b, zero, 16) != 0 && b[0] != 0xff;
}
