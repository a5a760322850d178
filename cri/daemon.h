/*
 * daemon - the parts of a running aspisd, as handlers find them in call->daemon.
 *
 * Made by main.c before serving and constant from then on; everything in it is safe to use from any
 * thread (see each part's header). Owned by main.c.
 */
#ifndef ASPIS_CRI_DAEMON_H
#define ASPIS_CRI_DAEMON_H

#include <stdbool.h>
#include <stdint.h>

struct config;
struct loop;
struct machine_factory;
struct cni;
struct image_store;
struct runtime;
struct stream_server;

struct daemon {
    const struct config *config; /* cri/config.h */
    struct loop *control;        /* sandbox events, rpc, timers */
    struct loop *io;             /* container stdio */
    struct machine_factory *factory;
    struct cni *cni;
    struct image_store *images;
    struct runtime *runtime;       /* cri/runtime.h */
    struct stream_server *streams; /* cri/streaming/server.h */
    /* Does a container use this image? Called with `runtime`. */
    bool (*image_in_use)(void *runtime, const char *image_id);
    int64_t started_ns; /* wall clock */
};

#endif
