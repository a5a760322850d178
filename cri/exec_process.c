#include "cri/exec_process.h"

#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/fs.h"
#include "base/limits.h"
#include "base/str.h"
#include "cri/agent_call.h"

#define REMOVE_NS (5LL * 1000000000)

/* Whoever executes something soon does so again: a probe. */
static void keep_warm(struct sandbox *s)
{
    struct machine *m = sandbox_use_machine(s, NULL);
    if (m == NULL)
        return;
    machine_used(m);
    sandbox_release_machine(s);
}

int exec_start(struct exec_process *p, struct container *c, const struct strv *cmd, bool tty,
               bool with_stdin, struct cancel *cancel, struct err *err)
{
    struct sandbox *s = c->sandbox;
    char id[17];
    fs_random_hex(id, 16);
    p->c = c;
    p->x.container_id = xstrdup(c->rec.id);
    p->x.exec_id = xstrdup(id);
    p->x.ended_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (p->x.ended_fd < 0)
        return err_sys(err, errno, "exec");
    (void)pthread_mutex_lock(&s->rt->lock);
    TAILQ_INSERT_TAIL(&s->execs, &p->x, link);
    (void)pthread_mutex_unlock(&s->rt->lock);
    if (container_phase(c) != CONTAINER_RUNNING)
        return err_set(err, ERR_PRECONDITION, "the container is not running");
    auto_arena struct arena *a = arena_new(LIMIT_CALL_ARENA);
    if (a == NULL)
        return err_set(err, ERR_EXHAUSTED, "no memory");
    Aspis__Agent__V1__ExecRequest req;
    aspis__agent__v1__exec_request__init(&req);
    req.container_id = p->x.container_id;
    req.exec_id = p->x.exec_id;
    req.n_args = cmd->n;
    req.args = cmd->v;
    req.tty = tty;
    req.stdin = with_stdin;
    keep_warm(s);
    p->started = true; /* even a failed call may have started something */
    const Aspis__Agent__V1__ExecResponse *r = (const Aspis__Agent__V1__ExecResponse *)agent_ask(
        s, "Exec", &req.base, &aspis__agent__v1__exec_response__descriptor, a, cancel, err);
    if (r == NULL)
        return -1;
    if (r->streams != NULL) {
        p->stdin_id = r->streams->stdin_id;
        p->stdout_id = r->streams->stdout_id;
        p->stderr_id = r->streams->stderr_id;
    }
    return 0;
}

int exec_over(struct exec_process *p, uint32_t *code)
{
    (void)pthread_mutex_lock(&p->c->rt->lock);
    int rc = p->x.lost ? -1 : p->x.ended ? 1 : 0;
    *code = p->x.exit_code;
    (void)pthread_mutex_unlock(&p->c->rt->lock);
    return rc;
}

int exec_resize(struct container *c, const char *exec_id, uint32_t cols, uint32_t rows,
                struct cancel *cancel, struct err *err)
{
    auto_free char *exec = xstrdup(exec_id);
    Aspis__Agent__V1__ResizeTtyRequest req;
    aspis__agent__v1__resize_tty_request__init(&req);
    req.container_id = c->rec.id;
    req.exec_id = exec;
    req.rows = rows;
    req.cols = cols;
    return agent_tell(c->sandbox, "ResizeTty", &req.base, 0, cancel, err);
}

int exec_kill(struct exec_process *p, struct cancel *cancel, struct err *err)
{
    Aspis__Agent__V1__SignalProcessRequest req;
    aspis__agent__v1__signal_process_request__init(&req);
    req.container_id = p->x.container_id;
    req.exec_id = p->x.exec_id;
    req.signal = SIGKILL;
    return agent_tell(p->c->sandbox, "SignalProcess", &req.base, 0, cancel, err);
}

void exec_end(struct exec_process *p)
{
    if (p->started) {
        Aspis__Agent__V1__RemoveProcessRequest req;
        aspis__agent__v1__remove_process_request__init(&req);
        req.container_id = p->x.container_id;
        req.exec_id = p->x.exec_id;
        (void)agent_tell(p->c->sandbox, "RemoveProcess", &req.base, REMOVE_NS, NULL, NULL);
    }
    if (p->x.ended_fd >= 0) {
        (void)pthread_mutex_lock(&p->c->rt->lock);
        TAILQ_REMOVE(&p->c->sandbox->execs, &p->x, link);
        (void)pthread_mutex_unlock(&p->c->rt->lock);
    }
    cleanup_closep(&p->x.ended_fd);
    free(p->x.container_id);
    free(p->x.exec_id);
    *p = (struct exec_process)EXEC_PROCESS_INIT;
}
