/*
 * qmp - client of QEMU's machine protocol on a connected unix socket.
 *
 * The only place that knows QMP's framing. All reading and writing happens on the loop; qmp_call()
 * blocks a worker thread until its reply comes. Commands go out one at a time, in the order called
 * (QEMU runs them one after the other anyway, and a passed descriptor belongs to the next command
 * it reads). The peer is treated as hostile, since a guest may have taken QEMU over: lines are
 * bounded by LIMIT_QMP_LINE, and anything that is no well-formed message ends the connection.
 *
 * Threads: qmp_call(), qmp_expect*() and qmp_wait_ready() from any thread but the loop's; callbacks
 * on the loop's thread; they must not block. Memory: reference counted; JSON values returned are
 * the caller's.
 */
#ifndef ASPIS_SANDBOX_QMP_H
#define ASPIS_SANDBOX_QMP_H

#include <jansson.h>
#include <stddef.h>

#include "base/cancel.h"
#include "base/err.h"
#include "base/loop.h"

struct qmp;
struct qmp_expect;

struct qmp_callbacks {
    /* data is borrowed; NULL when the event has none. */
    void (*on_event)(void *arg, const char *event, const json_t *data);
    /* The connection ended, not by qmp_close(). Once. */
    void (*on_closed)(void *arg, const char *reason);
    void *arg;
};

/* Takes fd (also on failure), which may be connected to a socket nobody serves yet. */
struct qmp *qmp_new(struct loop *loop, int fd, const struct qmp_callbacks *cb, struct err *err);
/* Ends the connection; calls in progress fail with `reason`, no callback follows once this has
 * returned. Idempotent. */
void qmp_close(struct qmp *q, const char *reason);
/* Says that nothing more will be written: the peer closes the connection, and on_closed comes. */
void qmp_finish(struct qmp *q);
struct qmp *qmp_ref(struct qmp *q);
void qmp_unref(
    struct qmp *q); /* NULL is fine. Does not close: an open connection refers to itself */

/* Until the greeting came and qmp_capabilities was accepted. */
int qmp_wait_ready(struct qmp *q, struct cancel *cancel, struct err *err);

/* Runs a command and returns what is in "return" (the caller's, never NULL on success). args is
 * stolen, NULL for none. pass_fd is sent along when >= 0 (borrowed). A call given up through
 * `cancel` may still be carried out by QEMU. An error reply comes back as ERR_INTERNAL, or
 * NOT_FOUND for QMP's DeviceNotFound. */
json_t *qmp_call(struct qmp *q, const char *command, json_t *args, int pass_fd,
                 struct cancel *cancel, struct err *err);
/* The same where the value does not matter. */
int qmp_run(struct qmp *q, const char *command, json_t *args, int pass_fd, struct cancel *cancel,
            struct err *err);

/* Waiting for an event that a command will cause: register first, run the command, then wait.
 * Matches the event whose data has the string `value` at `key`. */
struct qmp_expect *qmp_expect(struct qmp *q, const char *event, const char *key, const char *value,
                              struct err *err);
int qmp_expect_wait(struct qmp_expect *e, struct cancel *cancel, struct err *err);
void qmp_expect_free(struct qmp_expect *e);

/* One line from the peer, classified. `value` is the whole message and owns what the rest points
 * at. */
struct qmp_message {
    enum { QMP_GREETING, QMP_RETURN, QMP_ERROR, QMP_EVENT } kind;
    json_t *value;
    json_int_t id;     /* of RETURN and ERROR; 0: none */
    const char *text;  /* EVENT: its name; ERROR: desc */
    const char *class; /* ERROR */
    json_t *data;      /* RETURN: the value; EVENT: data or NULL */
};
int qmp_parse(const char *line, size_t len, struct qmp_message *out, struct err *err);
void qmp_message_clear(struct qmp_message *m);

DEFINE_AUTO(struct qmp *, qmp_unref);
DEFINE_AUTO(struct qmp_expect *, qmp_expect_free);
#define auto_qmp_expect __attribute__((cleanup(qmp_expect_freep)))

#endif
