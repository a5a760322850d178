#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "agent/events.h"
#include "base/limits.h"
#include "base/log.h"

/* A server with one slot: what was sent, and how much more fits. */
struct rpc_call {
    uint64_t sent[16];
    size_t n;
    size_t room;
    bool ended;
    void (*gone)(void *arg);
    void (*writable)(void *arg);
    void *arg;
};

static char last_container[64];

void rpc_reply(struct rpc_call *call, const ProtobufCMessage *reply)
{
    (void)reply;
    call->ended = true;
}

int rpc_stream_send(struct rpc_call *call, const ProtobufCMessage *message)
{
    const Aspis__Agent__V1__Event *e = (const Aspis__Agent__V1__Event *)message;
    assert_false(call->ended);
    if (call->n >= call->room)
        return -1;
    if (call->n < 16)
        call->sent[call->n] = e->seq;
    call->n++;
    (void)strncpy(last_container, e->exit != NULL ? e->exit->container_id : "", 63);
    return 0;
}

void rpc_call_notify(struct rpc_call *call, void (*gone)(void *arg), void (*writable)(void *arg),
                     void *arg)
{
    call->gone = gone;
    call->writable = writable;
    call->arg = arg;
}

static uint64_t add_exit(struct events *e, const char *name)
{
    Aspis__Agent__V1__Exit ev;
    char id[32];
    char none[] = "";
    aspis__agent__v1__exit__init(&ev);
    (void)strncpy(id, name, sizeof(id) - 1);
    id[sizeof(id) - 1] = '\0';
    ev.container_id = id;
    ev.exec_id = none;
    ev.exit_code = 3;
    return events_exit(e, &ev);
}

static void test_replay_and_ack(void **state)
{
    (void)state;
    struct events *e = events_new();
    struct rpc_call a = {.room = 100};
    struct rpc_call b = {.room = 100};

    assert_int_equal(add_exit(e, "one"), 1);
    assert_int_equal(events_oom(e, "two"), 2);
    events_subscribe(e, &a, 0);
    assert_int_equal(a.n, 2);
    assert_int_equal(add_exit(e, "three"), 3);
    assert_int_equal(a.n, 3);
    assert_string_equal(last_container, "three");

    /* a second reader ends the first, and starts after what it says it has */
    events_subscribe(e, &b, 1);
    assert_true(a.ended);
    assert_int_equal(b.n, 2);
    assert_int_equal(b.sent[0], 2);
    assert_int_equal(b.sent[1], 3);

    events_ack(e, 2);
    struct rpc_call c = {.room = 100};
    events_subscribe(e, &c, 0);
    assert_int_equal(c.n, 1);
    assert_int_equal(c.sent[0], 3);
    assert_int_equal(events_last_seq(e), 3);
    events_ack(e, UINT64_MAX);
    assert_int_equal(add_exit(e, "four"), 4);
    assert_int_equal(c.sent[1], 4);
    events_free(e);
}

static void test_full_output(void **state)
{
    (void)state;
    struct events *e = events_new();
    struct rpc_call a = {.room = 2};

    events_subscribe(e, &a, 0);
    for (int i = 0; i < 5; i++)
        add_exit(e, "x");
    assert_int_equal(a.n, 2);
    a.room = 100;
    a.writable(a.arg);
    assert_int_equal(a.n, 5);
    for (size_t i = 0; i < 5; i++)
        assert_int_equal(a.sent[i], i + 1);
    a.gone(a.arg);
    assert_true(a.ended);
    add_exit(e, "kept");
    struct rpc_call b = {.room = 100};
    events_subscribe(e, &b, 5);
    assert_int_equal(b.n, 1);
    assert_int_equal(b.sent[0], 6);
    events_free(e);
}

static void test_future_position(void **state)
{
    (void)state;
    struct events *e = events_new();
    struct rpc_call a = {.room = 100};
    add_exit(e, "x");
    events_subscribe(e, &a, 1000); /* of another life of this machine */
    assert_int_equal(a.n, 0);
    add_exit(e, "y");
    assert_int_equal(a.n, 1);
    events_free(e);
}

static void test_bound(void **state)
{
    (void)state;
    struct events *e = events_new();
    log_set_level(LOG_LEVEL_ERROR);
    for (int i = 0; i < LIMIT_AGENT_EVENTS + 10; i++)
        add_exit(e, "x");
    struct rpc_call a = {.room = 100000};
    events_subscribe(e, &a, 0);
    assert_int_equal(a.n, LIMIT_AGENT_EVENTS);
    assert_int_equal(a.sent[0], 11);
    events_free(e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replay_and_ack),
        cmocka_unit_test(test_full_output),
        cmocka_unit_test(test_future_position),
        cmocka_unit_test(test_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
