#include "netplugin/redirect.h"

#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <linux/pkt_sched.h>
#include <linux/tc_act/tc_mirred.h>
#include <netlink/route/act/mirred.h>
#include <netlink/route/action.h>
#include <netlink/route/classifier.h>
#include <netlink/route/cls/matchall.h>
#include <netlink/route/cls/u32.h>
#include <netlink/route/qdisc.h>
#include <netlink/route/tc.h>
#include <stdbool.h>

#include "netplugin/rtnl.h"

/* Late, so that filters of CNI plugins come first, and odd, so that it is recognised as ours. */
#define FILTER_PRIO 0xC0DE

DEFINE_AUTO(struct rtnl_cls *, rtnl_cls_put);
DEFINE_AUTO(struct rtnl_qdisc *, rtnl_qdisc_put);
#define auto_cls __attribute__((cleanup(rtnl_cls_putp)))
#define auto_qdisc __attribute__((cleanup(rtnl_qdisc_putp)))

/* A clsact qdisc, which may be there already, takes the same handle and serves as well. */
static int add_ingress(struct nl_sock *sk, int ifindex, struct err *err)
{
    auto_qdisc struct rtnl_qdisc *q = rtnl_qdisc_alloc();
    int e;

    if (q == NULL)
        return rtnl_err(err, -NLE_NOMEM, "ingress qdisc");
    rtnl_tc_set_ifindex(TC_CAST(q), ifindex);
    rtnl_tc_set_parent(TC_CAST(q), TC_H_INGRESS);
    rtnl_tc_set_handle(TC_CAST(q), TC_HANDLE(0xffffU, 0));
    e = rtnl_tc_set_kind(TC_CAST(q), "ingress");
    if (e == 0)
        e = rtnl_qdisc_add(sk, q, NLM_F_CREATE | NLM_F_EXCL);
    if (e < 0 && e != -NLE_EXIST)
        return rtnl_err(err, e, "add ingress qdisc to link %d", ifindex);
    return 0;
}

static struct rtnl_cls *filter(int ifindex, const char *kind)
{
    struct rtnl_cls *c = rtnl_cls_alloc();

    if (c == NULL)
        return NULL;
    rtnl_tc_set_ifindex(TC_CAST(c), ifindex);
    rtnl_tc_set_parent(TC_CAST(c), TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS));
    rtnl_cls_set_prio(c, FILTER_PRIO);
    rtnl_cls_set_protocol(c, ETH_P_ALL);
    if (kind != NULL && rtnl_tc_set_kind(TC_CAST(c), kind) < 0) {
        rtnl_cls_put(c);
        return NULL;
    }
    return c;
}

static struct rtnl_act *redirect_to(int ifindex)
{
    struct rtnl_act *a = rtnl_act_alloc();

    if (a == NULL)
        return NULL;
    if (rtnl_tc_set_kind(TC_CAST(a), "mirred") < 0 ||
        rtnl_mirred_set_action(a, TCA_EGRESS_REDIR) < 0 ||
        rtnl_mirred_set_policy(a, TC_ACT_STOLEN) < 0 ||
        rtnl_mirred_set_ifindex(a, (uint32_t)ifindex) < 0) {
        rtnl_act_put(a);
        return NULL;
    }
    return a;
}

static int add_filter(struct nl_sock *sk, int from, int to, bool matchall)
{
    auto_cls struct rtnl_cls *c = filter(from, matchall ? "matchall" : "u32");
    struct rtnl_act *a = redirect_to(to);
    int e = -NLE_NOMEM;

    if (c != NULL && a != NULL) {
        if (matchall) {
            e = rtnl_mall_append_action(c, a);
        } else {
            e = rtnl_u32_add_key(c, 0, 0, 0, 0);
            if (e == 0)
                e = rtnl_u32_add_action(c, a);
            if (e == 0)
                e = rtnl_u32_set_cls_terminal(c);
        }
        if (e == 0)
            e = rtnl_cls_add(sk, c, NLM_F_CREATE | NLM_F_EXCL);
    }
    /* the filter holds its own reference */
    if (a != NULL)
        rtnl_act_put(a);
    return e;
}

static int one_way(struct nl_sock *sk, int from, int to, struct err *err)
{
    auto_cls struct rtnl_cls *old = filter(from, NULL);
    int e;

    if (add_ingress(sk, from, err) < 0)
        return -1;
    if (old != NULL)
        (void)rtnl_cls_delete(sk, old, 0); /* mostly there is none */
    e = add_filter(sk, from, to, false);
    if (e < 0)
        e = add_filter(sk, from, to, true);
    if (e < 0)
        return rtnl_err(err, e, "redirect from link %d to link %d", from, to);
    return 0;
}

int redirect_join(int ifindex_a, int ifindex_b, struct err *err)
{
    auto_nl_sock struct nl_sock *sk = rtnl_open(err);

    if (sk == NULL || one_way(sk, ifindex_a, ifindex_b, err) < 0)
        return -1;
    return one_way(sk, ifindex_b, ifindex_a, err);
}
