#include "netplugin/rtnl.h"

#include <netlink/handlers.h>
#include <netlink/msg.h>
#include <netlink/route/rtnl.h>
#include <stdarg.h>
#include <stdio.h>

#include "base/limits.h"

/* Times that a dump may be upset by changes before we give up. */
#define DUMP_TRIES 8

int rtnl_err(struct err *err, int nle, const char *fmt, ...)
{
    char text[256];
    va_list ap;

    va_start(ap, fmt);
    (void)vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    return err_set(err, ERR_INTERNAL, "%s: %s", text, nl_geterror(nle));
}

struct nl_sock *rtnl_open(struct err *err)
{
    auto_nl_sock struct nl_sock *sk = nl_socket_alloc();
    int e = sk != NULL ? nl_connect(sk, NETLINK_ROUTE) : -NLE_NOMEM;

    if (e < 0) {
        rtnl_err(err, e, "open netlink socket");
        return NULL;
    }
    return take(sk);
}

struct walk {
    const struct rtnl_dump *d;
    struct err *err;
    size_t seen;
    bool failed;
};

static void on_object(struct nl_object *obj, void *arg)
{
    struct walk *w = arg;

    if (!w->failed && w->d->fn(obj, w->d->arg, w->err) < 0)
        w->failed = true;
}

/* After a failure the rest of the dump is read and dropped, so that the socket stays in step. */
static int on_message(struct nl_msg *msg, void *arg)
{
    struct walk *w = arg;
    int e;

    if (w->failed)
        return NL_SKIP;
    if (++w->seen > LIMIT_NETLINK_OBJECTS) {
        err_set(w->err, ERR_EXHAUSTED, "more than %d netlink objects in the namespace",
                LIMIT_NETLINK_OBJECTS);
        w->failed = true;
        return NL_SKIP;
    }
    e = nl_msg_parse(msg, on_object, w);
    /* kinds of objects that libnl does not know are none of ours */
    if (e < 0 && e != -NLE_OPNOTSUPP && e != -NLE_MSGTYPE_NOSUPPORT) {
        rtnl_err(w->err, e, "read netlink object");
        w->failed = true;
    }
    return NL_OK;
}

int rtnl_dump(struct nl_sock *sk, int type, int family, const struct rtnl_dump *d, struct err *err)
{
    struct nl_cb *cb = nl_cb_alloc(NL_CB_DEFAULT);
    int e = -NLE_NOMEM;

    for (int i = 0; cb != NULL && i < DUMP_TRIES; i++) {
        struct walk w = {.d = d, .err = err};

        if (d->begin != NULL)
            d->begin(d->arg);
        (void)nl_cb_set(cb, NL_CB_VALID, NL_CB_CUSTOM, on_message, &w);
        e = nl_rtgen_request(sk, type, family, NLM_F_DUMP);
        if (e >= 0)
            e = nl_recvmsgs(sk, cb);
        if (w.failed) {
            nl_cb_put(cb);
            return -1;
        }
        if (e != -NLE_DUMP_INTR)
            break;
    }
    nl_cb_put(cb);
    return e < 0 ? rtnl_err(err, e, "netlink dump") : 0;
}
