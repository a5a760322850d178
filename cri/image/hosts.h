/*
 * hosts - where a registry's images are fetched: the registry itself and its mirrors.
 *
 * Read anew for each pull from containerd's layout below one directory (containerd docs/hosts.md):
 *     HOST_PORT_/ or HOST:PORT/ or HOST/, else _default/
 *         hosts.toml          server, [host."URL"] in file order, each with capabilities, ca,
 * client, skip_verify, override_path, dial_timeout and [host."URL".header]
 *         *.crt, *.cert+.key  Docker's layout, when there is no hosts.toml
 * Without any of these: https://HOST, and http://HOST for loopback. docker.io is
 * registry-1.docker.io. Keys we do not know are ignored.
 *
 * Memory: the list owns everything. Threads: read-only after hosts_load().
 */
#ifndef ASPIS_CRI_IMAGE_HOSTS_H
#define ASPIS_CRI_IMAGE_HOSTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/str.h"

struct registry_host {
    char *url;     /* "https://mirror:5000/path/v2", no slash at the end */
    char *host;    /* "mirror:5000" */
    bool upstream; /* the registry itself, not a mirror: gets the credentials */
    bool add_ns;   /* requests say ?ns=<registry> */
    bool can_pull, can_resolve;
    bool skip_verify;
    int64_t dial_timeout_ms;
    char *ca;            /* PEM text of extra CAs, or NULL */
    struct strv client;  /* files: certificate, key, certificate, key, ... */
    struct strv headers; /* "Name: value" */
};

struct registry_hosts {
    struct registry_host *v; /* in the order to try */
    size_t n;
};

/* dir may be NULL. ERR_INVALID names the file and line that is wrong. */
int hosts_load(const char *dir, const char *registry, struct registry_hosts *out, struct err *err);
void hosts_clear(struct registry_hosts *h);
#define auto_hosts __attribute__((cleanup(hosts_clear)))

/* The same from a text, for tests: files are looked up in `dir`. */
int hosts_parse(const char *text, size_t len, const char *dir, const char *registry,
                struct registry_hosts *out, struct err *err);

#endif
