/*
 * link_fixture - both ends of a link in one test program: the real guest side on a loop of its own,
 * the real host side on two more, and a relay between them that can cut the wire as a virtio-serial
 * port does.
 */
#ifndef ASPIS_TEST_LINK_FIXTURE_H
#define ASPIS_TEST_LINK_FIXTURE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "agent/channels.h"
#include "base/loop.h"
#include "sandbox/link.h"

/* A loop on its own thread. */
struct runner {
    struct loop *loop;
    pthread_t thread;
};
void runner_start(struct runner *r);
void runner_stop(struct runner *r);

#define FIX_EVENTS 6000

struct guest {
    struct runner run;
    struct rpc_server *rpc;
    struct stdio *io;
    struct volumes *volumes;
    struct channels *channels;
    char dir[64];

    /* guest loop */
    uint64_t n_events; /* events 1..n exist */
    uint64_t acked;
    uint64_t streamed;
    struct rpc_call *events;

    atomic_int slow; /* calls kept and not answered */
    atomic_int gone; /* of those, told that their caller is gone */
    atomic_int pings;

    /* set before the host starts */
    uint32_t minor; /* said in Hello */
    bool liar;      /* Clock: any time, and another each time */

    atomic_llong clock_off; /* of its clock from the host's */
    atomic_llong adjusted;  /* all that it was told */
    atomic_int clocks;      /* Clock calls */
};
/* Methods of this guest: Ping; Clock moves clock_off; Exec answers pid = number in exec_id, some of
 * them late; StartContainer fails with NOT_FOUND; SignalContainer is kept for ever; ListState
 * answers 6 MB; ConfigurePod takes anything; Hello, Events and AckEvents as the real agent does. */
void guest_start(struct guest *g);
void guest_stop(struct guest *g);
void guest_add_events(struct guest *g, uint64_t n);
uint32_t guest_output(struct guest *g, int fd, atomic_int *eofs);
uint32_t guest_input(struct guest *g, int fd);
void guest_finish(struct guest *g, uint32_t id);
void guest_remove(struct guest *g, uint32_t id);

struct host {
    struct runner control;
    struct runner io;
    struct link *link;
    atomic_int ups;
    atomic_int broken;
    char reason[256];     /* valid once broken is set */
    pthread_mutex_t lock; /* guards the rest */
    uint64_t first_event;
    uint64_t last_event;
    uint64_t n_events;
    bool disorder;
};
/* Connects to <dir>/rpc.sock and <dir>/io.sock. */
void host_start(struct host *h, const char *dir);
void host_stop(struct host *h);
uint64_t host_events(struct host *h); /* the last one that came */
/* Waits (at most 20 s) until cond(arg). */
bool eventually(bool (*cond)(void *arg), void *arg);
bool eventually_int(atomic_int *v, int at_least);

/* Forwards <dir>/rpc.sock and io.sock to the guest's, which stay connected while the host side
 * comes and goes. */
struct relay;
struct relay *relay_start(const char *dir, const char *guest_dir);
/* From now on cuts the host's connection of a channel n times, each after a random number of bytes.
 */
void relay_cut(struct relay *r, int channel, int n, unsigned max_gap);
int relay_cuts_left(struct relay *r, int channel);
void relay_stop(struct relay *r);

/* The byte at an offset of the test pattern; seed tells streams apart. */
static inline uint8_t pattern(uint32_t seed, uint64_t offset)
{
    uint64_t x = (offset >> 3) * 0x9e3779b97f4a7c15U + seed;

    return (uint8_t)(x >> (8 * (offset & 7)));
}
/* Writes the pattern to fd and closes it, on a thread. */
struct writer {
    int fd;
    uint32_t seed;
    uint64_t len;
    pthread_t thread;
};
void writer_start(struct writer *w, int fd, uint32_t seed, uint64_t len);
void writer_join(struct writer *w);

/* A reader of one output stream that checks what comes. */
struct sink {
    struct stream *stream;
    uint32_t seed;
    bool never_ack;
    pthread_mutex_t
        lock; /* also held while the stream is opened, since callbacks may come before */
    uint64_t received;
    uint64_t total; /* at EOF */
    atomic_int bad;
    atomic_int eof;
    atomic_int reset;
};
void sink_open(struct sink *s, struct link *l, uint32_t id, uint32_t seed, uint64_t offset);
void sink_close(struct sink *s);
uint64_t sink_received(struct sink *s);

#endif
