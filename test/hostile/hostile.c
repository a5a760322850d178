/*
 * hostile - an agent whose guest was taken over: the real one, linked with --wrap, until an exec of
 * "attack HOW [CONTAINER-ID...]" makes it turn against its daemon. Built in failpoint builds only;
 * test/integration/test_hostile_guest.py says what must come of each attack.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "agent/peer.h"
#include "agent/rpc.h"
#include "base/cleanup.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/str.h"
#include "proto/agent.pb-c.h"

#define MAX_METHODS 64
#define BURST 64
#define PERIOD_NS 1000000
#define FIRST_SEQ (UINT64_C(1) << 40)

struct attack {
    const char *name;
    void (*burst)(void); /* every millisecond, for ever */
};

static struct {
    struct loop *loop;
    struct loop_source *timer;
    struct peer *peer[LINK_CHANNELS];
    int fd[LINK_CHANNELS];
    struct rpc_method methods[MAX_METHODS];
    rpc_handler exec, events;
    struct rpc_call *events_call;
    const struct attack *attack;
    char *ids[8]; /* of containers */
    size_t n_ids;
    uint64_t seq;
    uint8_t noise[KiB(64)];
} g = {.fd = {-1, -1, -1}, .seq = FIRST_SEQ};

static uint32_t any(void)
{
    uint32_t v = 0;
    (void)!getrandom(&v, sizeof(v), GRND_INSECURE);
    return v;
}

/* --- attacks --- */

static void raw(enum link_channel ch)
{
    (void)!write(g.fd[ch], g.noise, sizeof(g.noise));
}

static void garbage(void)
{
    raw(LINK_RPC);
}

static void garbage_io(void)
{
    raw(LINK_IO);
}

static void garbage_fs(void)
{
    raw(LINK_FS);
}

static void answers(void)
{
    for (int i = 0; i < BURST; i++)
        (void)peer_send(g.peer[LINK_RPC], any() | 1, FRAME_RESPONSE, 0, g.noise, 1000);
    peer_flush(g.peer[LINK_RPC]);
}

/* Answers to calls that were asked, but not these: small odd numbers are theirs. */
static void wrong_answers(void)
{
    for (uint32_t i = 1; i < 2 * BURST; i += 2)
        (void)peer_send(g.peer[LINK_RPC], i, FRAME_RESPONSE, 0, g.noise, sizeof(g.noise));
    peer_flush(g.peer[LINK_RPC]);
}

static void streams(void)
{
    for (uint32_t i = 0; i < BURST; i++)
        (void)peer_send_io(g.peer[LINK_IO], i, 0, any(), g.noise, 4096, NULL, 0);
    peer_flush(g.peer[LINK_IO]);
}

static void volumes(void)
{
    for (int i = 0; i < BURST; i++)
        (void)peer_send(g.peer[LINK_FS], any() % 8, FRAME_FS_DATA, FRAME_FLAG_END, g.noise, 256);
    peer_flush(g.peer[LINK_FS]);
}

static bool say_exit(char *container, char *exec)
{
    Aspis__Agent__V1__Event ev;
    Aspis__Agent__V1__Exit exit;

    aspis__agent__v1__event__init(&ev);
    aspis__agent__v1__exit__init(&exit);
    exit.container_id = container;
    exit.exec_id = exec;
    exit.exit_code = 77;
    exit.exited_at_ns = UINT64_MAX;
    ev.seq = g.seq;
    ev.what_case = ASPIS__AGENT__V1__EVENT__WHAT_EXIT;
    ev.exit = &exit;
    if (g.events_call == NULL || rpc_stream_send(g.events_call, &ev.base) < 0)
        return false;
    g.seq++;
    return true;
}

static void events(void)
{
    char nobody[] = "../../../../etc/passwd";

    for (int i = 0; i < 100 * BURST && say_exit(nobody, nobody); i++)
        ;
}

/* Containers of other pods have ended, says this one. */
static void exits(void)
{
    char none[] = "";

    for (size_t i = 0; i < g.n_ids && g.seq < FIRST_SEQ + 100; i++)
        (void)say_exit(g.ids[i], none);
}

static void silence(void)
{
    for (;;)
        (void)pause();
}

static const struct attack attacks[] = {
    {"garbage", garbage},
    {"garbage-io", garbage_io},
    {"garbage-fs", garbage_fs},
    {"answers", answers},
    {"wrong-answers", wrong_answers},
    {"streams", streams},
    {"volumes", volumes},
    {"events", events},
    {"exits", exits},
    {"silence", silence},
};

/* --- how they begin --- */

static void on_timer(struct loop_source *src, void *arg)
{
    (void)arg;
    (void)loop_set_timer(src, PERIOD_NS);
    g.attack->burst();
}

static void exec(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    const Aspis__Agent__V1__ExecRequest *req =
        (const Aspis__Agent__V1__ExecRequest *)(const void *)request;

    if (req->n_args < 2 || strcmp(req->args[0], "attack") != 0) {
        g.exec(call, request, arg);
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(attacks); i++)
        if (strcmp(attacks[i].name, req->args[1]) == 0)
            g.attack = &attacks[i];
    for (size_t i = 2; i < req->n_args && g.n_ids < ARRAY_LEN(g.ids); i++)
        g.ids[g.n_ids++] = xstrdup(req->args[i]);
    memset(g.noise, 0xee, sizeof(g.noise));
    if (g.attack != NULL && g.timer == NULL)
        g.timer = loop_add_timer(g.loop, 0, on_timer, NULL, NULL);
    log_info("attack", LOG_STR("how", g.timer != NULL ? g.attack->name : "none"));
    /* this call is never answered */
}

static void events_asked(struct rpc_call *call, const ProtobufCMessage *request, void *arg)
{
    g.events_call = call;
    g.events(call, request, arg);
}

struct peer *__real_peer_new(struct loop *loop, enum link_channel ch, size_t max_payload,
                             size_t max_queue, const struct peer_user *user);
struct peer *__wrap_peer_new(struct loop *loop, enum link_channel ch, size_t max_payload,
                             size_t max_queue, const struct peer_user *user);
struct peer *__wrap_peer_new(struct loop *loop, enum link_channel ch, size_t max_payload,
                             size_t max_queue, const struct peer_user *user)
{
    g.loop = loop;
    g.peer[ch] = __real_peer_new(loop, ch, max_payload, max_queue, user);
    return g.peer[ch];
}

int __real_peer_attach(struct peer *p, int fd, bool port, struct err *err);
int __wrap_peer_attach(struct peer *p, int fd, bool port, struct err *err);
int __wrap_peer_attach(struct peer *p, int fd, bool port, struct err *err)
{
    for (int i = 0; i < LINK_CHANNELS; i++)
        if (g.peer[i] == p)
            g.fd[i] = fd;
    return __real_peer_attach(p, fd, port, err);
}

struct rpc_server *__real_rpc_server_new(struct loop *loop, const struct rpc_method *methods,
                                         struct err *err);
struct rpc_server *__wrap_rpc_server_new(struct loop *loop, const struct rpc_method *methods,
                                         struct err *err);
struct rpc_server *__wrap_rpc_server_new(struct loop *loop, const struct rpc_method *methods,
                                         struct err *err)
{
    for (size_t i = 0; i + 1 < MAX_METHODS && methods[i].name != NULL; i++) {
        struct rpc_method *m = &g.methods[i];

        *m = methods[i];
        if (strcmp(m->name, "Exec") == 0) {
            g.exec = m->handler;
            m->handler = exec;
        } else if (strcmp(m->name, "Events") == 0) {
            g.events = m->handler;
            m->handler = events_asked;
        }
    }
    return __real_rpc_server_new(loop, g.methods, err);
}
