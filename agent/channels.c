#include "agent/channels.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

#include "agent/peer.h"
#include "agent/vport.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/str.h"
#include "proto/frame.h"
#include "proto/host_agent.h"

#define N_CHANNELS LINK_CHANNELS
#define RETRY_FIRST_NS 5000000
#define RETRY_MAX_NS 200000000

struct channel {
    struct channels *owner;
    enum link_channel ch;
    struct peer *peer;
    int listener; /* -1: none */
    struct loop_source *src;
    char *path; /* of a unix listener, to be unlinked */
};

struct channels {
    struct loop *loop;
    enum channel_kind kind;
    struct channel ch[N_CHANNELS];
    /* A port that exists but cannot be opened yet sends no event when it can: this timer tries
     * again. */
    struct loop_source *retry;
    int64_t retry_ns;
};

static void on_accept(struct loop_source *src, uint32_t events, void *arg)
{
    struct channel *ch = arg;
    auto_err struct err err = ERR_INIT;
    struct sockaddr_storage from;
    socklen_t len = sizeof(from);
    const struct sockaddr_vm *vm = (const struct sockaddr_vm *)&from;
    auto_close int fd =
        accept4(ch->listener, (struct sockaddr *)&from, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);

    (void)src;
    (void)events;
    if (fd < 0)
        return;
    /* A container could otherwise call the agent of its own guest. */
    if (from.ss_family == AF_VSOCK && vm->svm_cid != VMADDR_CID_HOST) {
        log_warn("link refused: not from the host", LOG_INT("cid", vm->svm_cid));
        return;
    }
    /* The newest connection counts: an older one's daemon is gone. */
    if (peer_attach(ch->peer, take_fd(&fd), false, &err) < 0)
        log_error("link connection lost", LOG_STR("error", err_msg(&err)));
}

static int serve_listener(struct channel *ch, int fd, struct err *err)
{
    auto_close int owned = fd;

    ch->src = loop_add_fd(ch->owner->loop, owned, EPOLLIN, on_accept, ch, err);
    if (ch->src == NULL)
        return -1;
    ch->listener = take_fd(&owned);
    return 0;
}

static int serve(struct channel *ch, int fd, const struct sockaddr *addr, socklen_t len,
                 struct err *err)
{
    auto_close int owned = fd;

    if (bind(owned, addr, len) < 0 || listen(owned, 4) < 0)
        return err_sys(err, errno, "listen for channel %s", link_port_name(ch->ch));
    return serve_listener(ch, take_fd(&owned), err);
}

static int serve_given(struct channel *ch, struct err *err)
{
    int fd = HOST_FD_CHANNEL + (int)ch->ch;

    if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0 || fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
        return err_sys(err, errno, "socket of channel %s", link_port_name(ch->ch));
    return serve_listener(ch, fd, err);
}

static int serve_unix(struct channel *ch, const char *dir, struct err *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    static const char *const names[N_CHANNELS] = {"rpc.sock", "io.sock", "fs.sock"};
    const char *name = names[ch->ch];
    int n = snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/%s", dir, name);
    int fd;

    if (n < 0 || (size_t)n >= sizeof(addr.sun_path))
        return err_set(err, ERR_INVALID, "socket path %s/%s is too long", dir, name);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return err_sys(err, errno, "make socket %s", addr.sun_path);
    (void)unlink(addr.sun_path);
    if (serve(ch, fd, (const struct sockaddr *)&addr, sizeof(addr), err) < 0)
        return -1;
    ch->path = xstrdup(addr.sun_path);
    if (chmod(ch->path, 0600) < 0)
        return err_sys(err, errno, "protect %s", ch->path);
    return 0;
}

static int serve_vsock(struct channel *ch, struct err *err)
{
    struct sockaddr_vm addr = {.svm_family = AF_VSOCK,
                               .svm_cid = VMADDR_CID_ANY,
                               .svm_port = LINK_VSOCK_PORT + (unsigned)ch->ch};
    int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return err_sys(err, errno, "make vsock socket");
    return serve(ch, fd, (const struct sockaddr *)&addr, sizeof(addr), err);
}

/* Opens the channel's port if it is there; true when it is there but has to be tried again. */
static bool take_port(struct channel *ch)
{
    auto_err struct err err = ERR_INIT;
    int fd = vport_open("/sys/class/virtio-ports", "/dev", link_port_name(ch->ch), &err);

    if (fd < 0) {
        if (err.code == ERR_NOT_FOUND)
            return false;
        log_debug("port not ready", LOG_STR("error", err_msg(&err)));
        return true;
    }
    if (peer_attach(ch->peer, fd, true, &err) < 0) {
        log_error("port unusable", LOG_STR("error", err_msg(&err)));
        return true;
    }
    log_info("link channel open", LOG_STR("port", link_port_name(ch->ch)));
    return false;
}

void channels_rescan(struct channels *c)
{
    bool again = false;

    if (c->kind == CHANNELS_UNIX || c->kind == CHANNELS_GIVEN)
        return;
    for (int i = 0; i < N_CHANNELS; i++) {
        struct channel *ch = &c->ch[i];

        if (c->kind != CHANNELS_VSOCK && !peer_attached(ch->peer))
            again |= take_port(ch);
        /* also beside a port: a clone may be reached by another way than its template was */
        if (c->kind != CHANNELS_VIRTIO_SERIAL && ch->listener < 0) {
            auto_err struct err err = ERR_INIT;

            if (serve_vsock(ch, &err) < 0)
                log_debug("no vsock", LOG_STR("error", err_msg(&err)));
        }
    }
    if (again) {
        (void)loop_set_timer(c->retry, c->retry_ns);
        c->retry_ns = c->retry_ns * 2 > RETRY_MAX_NS ? RETRY_MAX_NS : c->retry_ns * 2;
    } else {
        c->retry_ns = RETRY_FIRST_NS;
    }
}

static void on_retry(struct loop_source *src, void *arg)
{
    (void)src;
    channels_rescan(arg);
}

static void on_lost(void *arg)
{
    struct channel *ch = arg;

    log_warn("link port lost", LOG_STR("port", link_port_name(ch->ch)));
    channels_rescan(ch->owner);
}

struct channels *channels_new(struct loop *loop, enum channel_kind kind, const char *dir,
                              struct rpc_server *rpc, struct stdio *io, struct volumes *volumes,
                              struct err *err)
{
    struct channels *c = xcalloc(1, sizeof(*c));

    c->loop = loop;
    c->kind = kind;
    c->retry_ns = RETRY_FIRST_NS;
    c->ch[0] = (struct channel){.owner = c, .ch = LINK_RPC, .peer = rpc_server_peer(rpc)};
    c->ch[1] = (struct channel){.owner = c, .ch = LINK_IO, .peer = stdio_peer(io)};
    c->ch[2] = (struct channel){.owner = c, .ch = LINK_FS, .peer = volumes_peer(volumes)};
    for (int i = 0; i < N_CHANNELS; i++) {
        c->ch[i].listener = -1;
        peer_on_lost(c->ch[i].peer, on_lost, &c->ch[i]);
    }
    c->retry = loop_add_timer(loop, -1, on_retry, c, err);
    if (c->retry == NULL) {
        channels_free(c);
        return NULL;
    }
    for (int i = 0; kind == CHANNELS_UNIX && i < N_CHANNELS; i++) {
        if (serve_unix(&c->ch[i], dir, err) < 0) {
            channels_free(c);
            return NULL;
        }
    }
    for (int i = 0; kind == CHANNELS_GIVEN && i < N_CHANNELS; i++) {
        if (serve_given(&c->ch[i], err) < 0) {
            channels_free(c);
            return NULL;
        }
    }
    channels_rescan(c);
    return c;
}

void channels_free(struct channels *c)
{
    if (c == NULL)
        return;
    loop_remove(c->retry);
    for (int i = 0; i < N_CHANNELS; i++) {
        struct channel *ch = &c->ch[i];

        peer_on_lost(ch->peer, NULL, NULL);
        loop_remove(ch->src);
        cleanup_closep(&ch->listener);
        if (ch->path != NULL)
            (void)unlink(ch->path);
        free(ch->path);
    }
    free(c);
}
