#include "sandbox/qmp.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/queue.h>
#include <sys/socket.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/limits.h"
#include "base/str.h"

struct call {
    json_int_t id;
    char *line; /* with its newline */
    int fd;     /* our duplicate of the one to pass, or -1 */
    int done;   /* eventfd */
    bool finished;
    bool abandoned; /* the caller has gone: free when the reply comes */
    json_t *result;
    struct err err;
    TAILQ_ENTRY(call) link;
};

struct qmp_expect {
    struct qmp *q;
    char *event, *key, *value;
    int seen; /* eventfd */
    TAILQ_ENTRY(qmp_expect) link;
};

struct qmp {
    atomic_int refs;
    struct loop *loop;
    struct qmp_callbacks cb;
    /* loop thread only */
    int fd;
    struct loop_source *src;
    struct buf in;
    bool greeted;
    size_t sent; /* of the first call's line */
    /* under lock */
    pthread_mutex_t lock;
    TAILQ_HEAD(, call) calls; /* the first one is on the wire or about to be */
    TAILQ_HEAD(, qmp_expect) expects;
    json_int_t next_id;
    bool ready;
    bool closed;
    char *reason; /* why closed */
};

/* --- messages --- */

void qmp_message_clear(struct qmp_message *m)
{
    json_decref(m->value);
    *m = (struct qmp_message){0};
}

int qmp_parse(const char *line, size_t len, struct qmp_message *out, struct err *err)
{
    json_error_t je;
    *out = (struct qmp_message){0};
    json_t *v = json_loadb(line, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &je);
    if (v == NULL)
        return err_set(err, ERR_INTERNAL, "no JSON: %s", je.text);
    out->value = v;
    json_t *id = json_object_get(v, "id");
    json_t *e = json_object_get(v, "error");
    json_t *event = json_object_get(v, "event");
    out->id = json_is_integer(id) ? json_integer_value(id) : 0;
    if ((out->data = json_object_get(v, "return")) != NULL) {
        out->kind = QMP_RETURN;
    } else if (e != NULL) {
        out->kind = QMP_ERROR;
        out->class = json_string_value(json_object_get(e, "class"));
        out->text = json_string_value(json_object_get(e, "desc"));
    } else if (event != NULL) {
        out->kind = QMP_EVENT;
        out->text = json_string_value(event);
        out->data = json_object_get(v, "data");
        if (out->data != NULL && !json_is_object(out->data))
            out->text = NULL;
    } else if (json_is_object(json_object_get(v, "QMP"))) {
        out->kind = QMP_GREETING;
        return 0;
    }
    if (out->kind == QMP_GREETING || (out->kind != QMP_RETURN && out->text == NULL) ||
        (out->kind == QMP_ERROR && out->class == NULL)) {
        qmp_message_clear(out);
        return err_set(err, ERR_INTERNAL, "no QMP message");
    }
    return 0;
}

/* --- calls --- */

static void free_call(struct call *c)
{
    json_decref(c->result);
    err_clear(&c->err);
    free(c->line);
    cleanup_closep(&c->fd);
    cleanup_closep(&c->done);
    free(c);
}

/* Under lock. Takes the call off the list; whoever waits for it frees it. */
static void finish_call(struct qmp *q, struct call *c)
{
    TAILQ_REMOVE(&q->calls, c, link);
    c->finished = true;
    if (c->abandoned)
        free_call(c);
    else
        (void)eventfd_write(c->done, 1);
}

static void close_now(struct qmp *q, const char *reason)
{
    (void)pthread_mutex_lock(&q->lock);
    bool was = q->closed;
    if (!was) {
        q->closed = true;
        q->reason = xstrdup(reason);
        struct call *c;
        while ((c = TAILQ_FIRST(&q->calls)) != NULL) {
            (void)err_set(&c->err, ERR_UNAVAILABLE, "%s", reason);
            finish_call(q, c);
        }
        struct qmp_expect *e;
        TAILQ_FOREACH(e, &q->expects, link)
        (void)eventfd_write(e->seen, 1);
    }
    (void)pthread_mutex_unlock(&q->lock);
    if (was)
        return;
    loop_remove(q->src);
    q->src = NULL;
    cleanup_closep(&q->fd);
    qmp_unref(q); /* the source's; the caller holds another */
}

/* The peer ended it. */
static void die(struct qmp *q, const char *reason)
{
    close_now(q, reason);
    if (q->cb.on_closed != NULL)
        q->cb.on_closed(q->cb.arg, reason);
}

/* Sends what is left of one line, with the descriptor beside its first byte. -1: the socket is
 * dead. */
static ssize_t send_some(int sock, const char *data, size_t len, int pass_fd)
{
    struct iovec iov = {.iov_base = __extension__(void *)(uintptr_t) data, .iov_len = len};
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    if (pass_fd >= 0) {
        msg.msg_control = control.buf;
        msg.msg_controllen = sizeof(control.buf);
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(c), &pass_fd, sizeof(int));
    }
    return sendmsg(sock, &msg, MSG_DONTWAIT | MSG_NOSIGNAL);
}

/* Loop thread. Puts the first call on the wire if it is not there yet. */
static void push(struct qmp *q)
{
    bool dead = false;
    (void)pthread_mutex_lock(&q->lock);
    struct call *c = TAILQ_FIRST(&q->calls);
    if (c != NULL && q->greeted && !q->closed) {
        size_t len = strlen(c->line);
        while (q->sent < len) {
            ssize_t n =
                send_some(q->fd, c->line + q->sent, len - q->sent, q->sent == 0 ? c->fd : -1);
            if (n < 0 && errno == EINTR)
                continue;
            if (n < 0) {
                dead = errno != EAGAIN;
                break;
            }
            q->sent += (size_t)n;
        }
        (void)loop_set_events(q->src, q->sent < len ? EPOLLIN | EPOLLOUT : EPOLLIN);
    }
    (void)pthread_mutex_unlock(&q->lock);
    if (dead)
        die(q, "qmp: connection lost");
}

static void take_reply(struct qmp *q, struct qmp_message *m)
{
    (void)pthread_mutex_lock(&q->lock);
    struct call *c = TAILQ_FIRST(&q->calls);
    bool wrong = c == NULL || m->id != c->id;
    if (!wrong) {
        if (m->kind == QMP_RETURN) {
            c->result = json_incref(take(m->data));
            (void)json_object_del(m->value, "return"); /* the caller's alone now */
        } else {
            (void)err_set(&c->err,
                          strcmp(m->class, "DeviceNotFound") == 0 ? ERR_NOT_FOUND : ERR_INTERNAL,
                          "%.*s", (int)LIMIT_GUEST_ERROR, m->text);
        }
        finish_call(q, c);
        q->sent = 0;
    }
    (void)pthread_mutex_unlock(&q->lock);
    if (wrong)
        die(q, "qmp: a reply to nothing asked");
    else
        push(q);
}

static void take_event(struct qmp *q, const struct qmp_message *m)
{
    (void)pthread_mutex_lock(&q->lock);
    struct qmp_expect *e;
    TAILQ_FOREACH(e, &q->expects, link)
    {
        const char *v = json_string_value(json_object_get(m->data, e->key));
        if (strcmp(m->text, e->event) == 0 && v != NULL && strcmp(v, e->value) == 0)
            (void)eventfd_write(e->seen, 1);
    }
    (void)pthread_mutex_unlock(&q->lock);
    if (q->cb.on_event != NULL)
        q->cb.on_event(q->cb.arg, m->text, m->data);
}

static void take_greeting(struct qmp *q)
{
    if (q->greeted) {
        die(q, "qmp: greeted twice");
        return;
    }
    q->greeted = true; /* qmp_capabilities is waiting as the first call */
    push(q);
}

static void take_line(struct qmp *q, const char *line, size_t len)
{
    auto_err struct err err = ERR_INIT;
    struct qmp_message m;
    if (qmp_parse(line, len, &m, &err) < 0) {
        (void)err_wrap(&err, "qmp: malformed message");
        die(q, err_msg(&err));
        return;
    }
    switch (m.kind) {
    case QMP_GREETING:
        take_greeting(q);
        break;
    case QMP_RETURN:
    case QMP_ERROR:
        take_reply(q, &m);
        break;
    case QMP_EVENT:
        take_event(q, &m);
        break;
    }
    qmp_message_clear(&m);
}

/* A callback may close the connection: q->src is NULL then. */
static void take_lines(struct qmp *q)
{
    size_t start = 0;
    const char *nl;
    while (q->src != NULL && start < q->in.len &&
           (nl = memchr(q->in.data + start, '\n', q->in.len - start)) != NULL) {
        size_t end = (size_t)(nl - q->in.data);
        if (end > start && !(end == start + 1 && q->in.data[start] == '\r'))
            take_line(q, q->in.data + start, end - start);
        start = end + 1;
    }
    buf_consume(&q->in, start);
}

static void on_socket(struct loop_source *src, uint32_t events, void *arg)
{
    struct qmp *q = qmp_ref(arg);
    (void)src;
    if ((events & EPOLLOUT) != 0)
        push(q);
    if (q->src != NULL && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) {
        void *room = buf_reserve(&q->in, 16384);
        ssize_t n = room != NULL ? recv(q->fd, room, 16384, MSG_DONTWAIT) : 0;
        if (room == NULL) {
            die(q, "qmp: message longer than allowed");
        } else if (n > 0) {
            buf_commit(&q->in, (size_t)n);
            take_lines(q);
        } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
            die(q, "qmp: connection closed by qemu");
        }
    }
    qmp_unref(q);
}

static void push_work(void *arg)
{
    push(arg);
    qmp_unref(arg);
}

static void finish_work(void *arg)
{
    struct qmp *q = arg;
    if (q->src != NULL)
        (void)shutdown(q->fd, SHUT_WR);
}

void qmp_finish(struct qmp *q)
{
    loop_call(q->loop, finish_work, q);
}

/* Queues a command; NULL with *err when the connection is down. */
static struct call *enqueue(struct qmp *q, const char *command, json_t *args, int pass_fd,
                            struct err *err)
{
    struct call *c = xcalloc(1, sizeof(*c));
    c->fd = -1;
    c->done = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    json_auto_t *m = json_pack("{s:s}", "execute", command);
    if (c->done < 0 || m == NULL) {
        json_decref(args);
        (void)err_sys(err, errno, "prepare");
        free_call(c);
        return NULL;
    }
    if (args != NULL)
        (void)json_object_set_new(m, "arguments", args);
    if (pass_fd >= 0 && (c->fd = fcntl(pass_fd, F_DUPFD_CLOEXEC, 3)) < 0) {
        (void)err_sys(err, errno, "duplicate descriptor");
        free_call(c);
        return NULL;
    }
    (void)pthread_mutex_lock(&q->lock);
    c->id = ++q->next_id;
    (void)json_object_set_new(m, "id", json_integer(c->id));
    char *text = json_dumps(m, JSON_COMPACT);
    auto_buf struct buf line = BUF_INIT(LIMIT_QMP_LINE);
    bool ok = text != NULL && buf_puts(&line, text) == 0 && buf_putc(&line, '\n') == 0;
    free(text);
    if (q->closed || !ok) {
        if (q->closed)
            (void)err_set(err, ERR_UNAVAILABLE, "%s", q->reason);
        else
            (void)err_set(err, ERR_INVALID, "arguments cannot be sent");
        (void)pthread_mutex_unlock(&q->lock);
        free_call(c);
        return NULL;
    }
    c->line = buf_take(&line);
    TAILQ_INSERT_TAIL(&q->calls, c, link);
    (void)pthread_mutex_unlock(&q->lock);
    loop_post(q->loop, push_work, qmp_ref(q));
    return c;
}

/* The caller stops waiting. A call not yet on the wire is taken back. */
static void give_up(struct qmp *q, struct call *c)
{
    (void)pthread_mutex_lock(&q->lock);
    if (c->finished) {
        free_call(c);
    } else if (c != TAILQ_FIRST(&q->calls)) {
        TAILQ_REMOVE(&q->calls, c, link);
        free_call(c);
    } else {
        c->abandoned = true;
    }
    (void)pthread_mutex_unlock(&q->lock);
}

json_t *qmp_call(struct qmp *q, const char *command, json_t *args, int pass_fd,
                 struct cancel *cancel, struct err *err)
{
    struct call *c = enqueue(q, command, args, pass_fd, err);
    if (c == NULL) {
        (void)err_wrap(err, "qmp %s", command);
        return NULL;
    }
    if (cancel_poll(cancel, c->done, POLLIN, -1, err) < 0) {
        give_up(q, c);
        (void)err_wrap(err, "qmp %s", command);
        return NULL;
    }
    (void)pthread_mutex_lock(&q->lock); /* pairs with finish_call() */
    json_t *result = take(c->result);
    if (result == NULL) {
        (void)err_move(err, &c->err);
        (void)err_wrap(err, "qmp %s", command);
    }
    free_call(c);
    (void)pthread_mutex_unlock(&q->lock);
    return result;
}

int qmp_run(struct qmp *q, const char *command, json_t *args, int pass_fd, struct cancel *cancel,
            struct err *err)
{
    json_auto_t *r = qmp_call(q, command, args, pass_fd, cancel, err);
    return r != NULL ? 0 : -1;
}

/* --- events waited for --- */

struct qmp_expect *qmp_expect(struct qmp *q, const char *event, const char *key, const char *value,
                              struct err *err)
{
    struct qmp_expect *e = xcalloc(1, sizeof(*e));
    e->seen = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (e->seen < 0) {
        (void)err_sys(err, errno, "qmp: wait for %s", event);
        free(e);
        return NULL;
    }
    e->q = qmp_ref(q);
    e->event = xstrdup(event);
    e->key = xstrdup(key);
    e->value = xstrdup(value);
    (void)pthread_mutex_lock(&q->lock);
    TAILQ_INSERT_TAIL(&q->expects, e, link);
    if (q->closed)
        (void)eventfd_write(e->seen, 1);
    (void)pthread_mutex_unlock(&q->lock);
    return e;
}

int qmp_expect_wait(struct qmp_expect *e, struct cancel *cancel, struct err *err)
{
    struct qmp *q = e->q;
    if (cancel_poll(cancel, e->seen, POLLIN, -1, err) < 0)
        return err_wrap(err, "wait for %s of %s", e->event, e->value);
    (void)pthread_mutex_lock(&q->lock);
    int ret = 0;
    if (q->closed)
        ret = err_set(err, ERR_UNAVAILABLE, "wait for %s of %s: %s", e->event, e->value, q->reason);
    (void)pthread_mutex_unlock(&q->lock);
    return ret;
}

void qmp_expect_free(struct qmp_expect *e)
{
    if (e == NULL)
        return;
    (void)pthread_mutex_lock(&e->q->lock);
    TAILQ_REMOVE(&e->q->expects, e, link);
    (void)pthread_mutex_unlock(&e->q->lock);
    qmp_unref(e->q);
    cleanup_closep(&e->seen);
    free(e->event);
    free(e->key);
    free(e->value);
    free(e);
}

/* --- life --- */

int qmp_wait_ready(struct qmp *q, struct cancel *cancel, struct err *err)
{
    /* the first command; it goes out when the greeting has come */
    (void)pthread_mutex_lock(&q->lock);
    bool ready = q->ready;
    (void)pthread_mutex_unlock(&q->lock);
    if (ready)
        return 0;
    if (qmp_run(q, "qmp_capabilities", NULL, -1, cancel, err) < 0)
        return -1;
    (void)pthread_mutex_lock(&q->lock);
    q->ready = true;
    (void)pthread_mutex_unlock(&q->lock);
    return 0;
}

struct open_args {
    struct qmp *q;
    struct err *err;
    bool ok; /* the peer may hang up before the caller looks at q->src */
};

/* The source refers to the client until close_now(). */
static void open_work(void *arg)
{
    struct open_args *a = arg;
    a->q->src = loop_add_fd(a->q->loop, a->q->fd, EPOLLIN, on_socket, a->q, a->err);
    a->ok = a->q->src != NULL;
    if (a->ok)
        (void)qmp_ref(a->q);
}

struct qmp *qmp_new(struct loop *loop, int fd, const struct qmp_callbacks *cb, struct err *err)
{
    struct qmp *q = xcalloc(1, sizeof(*q));
    atomic_init(&q->refs, 1);
    q->loop = loop;
    q->cb = *cb;
    q->fd = fd;
    q->in = (struct buf)BUF_INIT(LIMIT_QMP_LINE + 16384);
    TAILQ_INIT(&q->calls);
    TAILQ_INIT(&q->expects);
    (void)pthread_mutex_init(&q->lock, NULL);
    struct open_args a = {.q = q, .err = err};
    loop_call(loop, open_work, &a);
    if (!a.ok) {
        qmp_unref(q);
        return NULL;
    }
    return q;
}

struct qmp *qmp_ref(struct qmp *q)
{
    (void)atomic_fetch_add(&q->refs, 1);
    return q;
}

struct close_args {
    struct qmp *q;
    const char *reason;
};

static void close_work(void *arg)
{
    struct close_args *a = arg;
    close_now(a->q, a->reason);
}

void qmp_close(struct qmp *q, const char *reason)
{
    if (q == NULL)
        return;
    struct close_args a = {qmp_ref(q), reason};
    loop_call(q->loop, close_work, &a);
    qmp_unref(q);
}

void qmp_unref(struct qmp *q)
{
    if (q == NULL || atomic_fetch_sub(&q->refs, 1) != 1)
        return;
    cleanup_closep(&q->fd);
    buf_clear(&q->in);
    (void)pthread_mutex_destroy(&q->lock);
    free(q->reason);
    free(q);
}
