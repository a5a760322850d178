#include "sandbox/link.h"

#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/limits.h"
#include "base/str.h"
#include "sandbox/link_impl.h"

struct link *link_alloc(const struct link_transport *t, struct loop *control, struct loop *io,
                        const struct link_callbacks *cb, struct err *err)
{
    struct link *l;

    if (t->kind != LINK_VSOCK && (t->path[LINK_RPC] == NULL || t->path[LINK_IO] == NULL)) {
        (void)err_set(err, ERR_INVALID, "link without socket paths");
        return NULL;
    }
    l = xcalloc(1, sizeof(*l));
    l->transport = *t;
    for (int i = 0; i < LINK_CHANNELS; i++)
        l->transport.path[i] = xstrdup(t->path[i]);
    if (cb != NULL)
        l->cb = *cb;
    atomic_init(&l->users, 1);
    atomic_init(&l->refs, 1);
    (void)pthread_mutex_init(&l->end_lock, NULL);
    link_rpc_init(l, control);
    link_stream_init(l, io);
    return l;
}

void link_mem_ref(struct link *l)
{
    atomic_fetch_add(&l->refs, 1);
}

void link_mem_unref(struct link *l)
{
    if (atomic_fetch_sub(&l->refs, 1) != 1)
        return;
    link_rpc_clear(l);
    link_stream_clear(l);
    for (int i = 0; i < LINK_CHANNELS; i++)
        free(l->transport.path[i]);
    (void)pthread_mutex_destroy(&l->end_lock);
    free(l->reason);
    free(l);
}

static void start_rpc(void *arg)
{
    struct link *l = arg;

    if (!atomic_load(&l->ended))
        link_rpc_start(l);
    link_mem_unref(l);
}

static void start_io(void *arg)
{
    struct link *l = arg;

    if (!atomic_load(&l->ended))
        link_chan_start(&l->io);
    link_mem_unref(l);
}

struct link *link_new(const struct link_transport *t, struct loop *control, struct loop *io,
                      const struct link_callbacks *cb, struct err *err)
{
    struct link *l = link_alloc(t, control, io, cb, err);

    if (l == NULL)
        return NULL;
    link_mem_ref(l);
    loop_post(control, start_rpc, l);
    link_mem_ref(l);
    loop_post(io, start_io, l);
    return l;
}

struct link *link_ref(struct link *l)
{
    atomic_fetch_add(&l->users, 1);
    return l;
}

/* False when the link has a reason already. */
static bool set_reason(struct link *l, const char *reason)
{
    bool first;

    (void)pthread_mutex_lock(&l->end_lock);
    first = l->reason == NULL;
    if (first) {
        l->reason = xstrdup(reason);
        atomic_store(&l->ended, true);
    }
    (void)pthread_mutex_unlock(&l->end_lock);
    return first;
}

static void end_rpc(void *arg)
{
    link_rpc_end(arg);
}

static void end_io(void *arg)
{
    link_stream_end(arg);
}

static void break_rpc(void *arg)
{
    struct link *l = arg;

    link_rpc_end(l);
    if (!atomic_load(&l->closed) && l->cb.on_broken != NULL)
        l->cb.on_broken(l->cb.arg, l->reason);
    link_mem_unref(l);
}

static void break_io(void *arg)
{
    struct link *l = arg;

    link_stream_end(l);
    link_mem_unref(l);
}

void link_broken(struct link *l, const char *reason)
{
    if (!set_reason(l, reason))
        return;
    /* Posted even to the own loop: a frame of this channel may be in work. */
    link_mem_ref(l);
    loop_post(l->rpc.loop, break_rpc, l);
    link_mem_ref(l);
    loop_post(l->io.loop, break_io, l);
}

void link_close(struct link *l, const char *reason)
{
    if (atomic_exchange(&l->closed, true))
        return;
    (void)set_reason(l, reason != NULL ? reason : "closed");
    loop_call(l->rpc.loop, end_rpc, l);
    loop_call(l->io.loop, end_io, l);
}

void link_unref(struct link *l)
{
    if (l == NULL || atomic_fetch_sub(&l->users, 1) != 1)
        return;
    link_close(l, "released");
    link_mem_unref(l);
}

char *link_guest_text(const void *text, size_t len)
{
    const char *from = text;
    char *out;

    if (len > LIMIT_GUEST_ERROR)
        len = LIMIT_GUEST_ERROR;
    out = xstrndup(from, len);
    bool utf8 = str_is_utf8(out, strlen(out));
    for (char *p = out; *p != '\0'; p++) {
        unsigned char b = (unsigned char)*p;

        if (b < 0x20 || b == 0x7f || (b >= 0x80 && !utf8))
            *p = '?';
    }
    return out;
}
