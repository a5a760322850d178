/*
 * The agent's table of containers with everything below it replaced: libcrun's part is played by
 * plain processes, the pod by a directory, the link by calls that remember their answer. Forks,
 * reaping, the trace pipe, streams and timers are the real ones. Over a thousand lines, because all
 * cases need these stand-ins, which are half of it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/container_cgroup.h"
#include "agent/container_jobs.h"
#include "agent/container_stats.h"
#include "agent/containers.h"
#include "agent/crun.h"
#include "agent/identity.h"
#include "base/cancel.h"
#include "base/cleanup.h"
#include "base/fs.h"
#include "base/log.h"
#include "base/str.h"

static char dir[] = "/tmp/test_containers.XXXXXX";
static struct loop *loop;
static struct stdio *io;
static struct containers *table;

/* --- calls ------------------------------------------------------------------------------------ */

struct rpc_call {
    bool answered;
    enum err_code code;
    char text[256];
    uint32_t pid;
    uint32_t stdout_id;
    size_t n_listed;
    int first_state; /* of ListState's first row */
    char first_error[64];
    size_t n_layers; /* of Stats */
    /* events */
    size_t n_events;
    struct {
        char container[32];
        char exec[32];
        uint32_t code;
        char start_error[64];
    } event[64];
};

void rpc_reply(struct rpc_call *call, const ProtobufCMessage *reply)
{
    assert_false(call->answered);
    call->answered = true;
    call->code = ERR_OK;
    if (reply->descriptor == &aspis__agent__v1__create_container_response__descriptor) {
        const Aspis__Agent__V1__CreateContainerResponse *r =
            (const Aspis__Agent__V1__CreateContainerResponse *)reply;
        call->pid = r->pid;
        call->stdout_id = r->streams->stdout_id;
    } else if (reply->descriptor == &aspis__agent__v1__exec_response__descriptor) {
        call->pid = ((const Aspis__Agent__V1__ExecResponse *)reply)->pid;
    } else if (reply->descriptor == &aspis__agent__v1__list_state_response__descriptor) {
        const Aspis__Agent__V1__ListStateResponse *r =
            (const Aspis__Agent__V1__ListStateResponse *)reply;
        call->n_listed = r->n_processes;
        if (r->n_processes > 0) {
            const Aspis__Agent__V1__Exit *e = r->processes[0]->exit;
            call->first_state = (int)r->processes[0]->state;
            (void)snprintf(call->first_error, sizeof(call->first_error), "%s",
                           e != NULL ? e->start_error : "");
        }
    } else if (reply->descriptor == &aspis__agent__v1__stats_response__descriptor) {
        const Aspis__Agent__V1__StatsResponse *r = (const Aspis__Agent__V1__StatsResponse *)reply;
        call->n_listed = r->n_containers;
        call->n_layers = 0;
        for (size_t i = 0; i < r->n_containers; i++)
            call->n_layers += r->containers[i]->has_layer;
        assert_true(r->at_ns > 0 && r->guest->memory_total > 0 && r->pod != NULL);
    }
}

void rpc_fail(struct rpc_call *call, const struct err *err)
{
    assert_false(call->answered);
    call->answered = true;
    call->code = err->code;
    (void)snprintf(call->text, sizeof(call->text), "%s", err_msg(err));
}

int rpc_stream_send(struct rpc_call *call, const ProtobufCMessage *message)
{
    const Aspis__Agent__V1__Event *e = (const Aspis__Agent__V1__Event *)message;
    if (e->exit != NULL && call->n_events < ARRAY_LEN(call->event)) {
        (void)snprintf(call->event[call->n_events].container, 32, "%s", e->exit->container_id);
        (void)snprintf(call->event[call->n_events].exec, 32, "%s", e->exit->exec_id);
        (void)snprintf(call->event[call->n_events].start_error, 64, "%s", e->exit->start_error);
        call->event[call->n_events++].code = e->exit->exit_code;
    }
    return 0;
}

void rpc_call_notify(struct rpc_call *call, void (*gone)(void *arg), void (*writable)(void *arg),
                     void *arg)
{
    (void)call;
    (void)gone;
    (void)writable;
    (void)arg;
}

static struct rpc_call events;

static void invoke(struct rpc_call *call, const char *method, const void *request)
{
    const struct rpc_method *m = containers_methods(table);
    while (m->name != NULL && strcmp(m->name, method) != 0)
        m++;
    assert_non_null(m->name);
    memset(call, 0, sizeof(*call));
    m->handler(call, request, m->arg);
}

/* --- the pod ---------------------------------------------------------------------------------- */

static int image_refs;
static uint64_t clock_set;
static pod_image_fn image_waiter;
static void *image_waiter_arg;
static bool image_late;

const char *pod_id(const struct pod *p)
{
    (void)p;
    return "pod";
}
int pod_become(struct pod *p, const char *from, const char *id, struct err *err)
{
    (void)p;
    (void)id;
    return strcmp(from, "pod") == 0 ? 0 : err_set(err, ERR_PRECONDITION, "another pod");
}
int identity_set_clock(uint64_t wall_clock_ns, struct err *err)
{
    (void)err;
    clock_set = wall_clock_ns;
    return 0;
}
const char *pod_file(const struct pod *p, const char *name)
{
    (void)p;
    (void)name;
    return NULL;
}
bool pod_has_host_network(const struct pod *p)
{
    (void)p;
    return false;
}

const char *pod_scratch_dir(const struct pod *p)
{
    (void)p;
    return dir;
}
void pod_image_acquire(struct pod *p, const char *serial, pod_image_fn done, void *arg)
{
    auto_err struct err err = ERR_INIT;
    (void)p;
    if (image_late) {
        image_waiter = done;
        image_waiter_arg = arg;
    } else if (strcmp(serial, "missing") == 0) {
        err_set(&err, ERR_NOT_FOUND, "no such disk");
        done(arg, NULL, &err);
    } else {
        image_refs++;
        done(arg, "/image", NULL);
    }
}
void pod_image_give_up(struct pod *p, const void *arg)
{
    auto_err struct err err = ERR_INIT;
    pod_image_fn done = image_waiter;
    (void)p;
    assert_ptr_equal(arg, image_waiter_arg);
    image_waiter = NULL;
    err_set(&err, ERR_ABORTED, "given up");
    done(image_waiter_arg, NULL, &err);
}
void pod_image_release(struct pod *p, const char *serial)
{
    (void)p;
    (void)serial;
    image_refs--;
}
const char *const *pod_images(const struct pod *p)
{
    static const char *const none[] = {NULL};
    (void)p;
    return none;
}
const char *pod_shared_pidns(struct pod *p, struct err *err)
{
    (void)p;
    err_set(err, ERR_INTERNAL, "no namespace");
    return NULL;
}

/* --- libcrun and cgroups: a "cgroup" is a process group that the init leads ----------------------
 */

static char *fifo_of(const char *id)
{
    return fs_format("%s/%s.fifo", dir, id);
}

static char *group_of(const char *id)
{
    return fs_format("%s/%s.group", dir, id);
}

int create_job_run(void *arg, struct op_result *res, int *fd_out, struct err *err)
{
    const struct create_job *job = arg;
    auto_free char *cmd = xstrndup((const char *)job->req->oci_spec.data, job->req->oci_spec.len);
    auto_free char *fifo = fifo_of(job->at.id);
    auto_free char *group = group_of(job->at.id);
    char byte;

    (void)fd_out;
    if (strcmp(cmd, "refuse") == 0)
        return err_set(err, ERR_NOT_FOUND, "refused");
    if (strcmp(cmd, "hang") == 0)
        for (;;)
            (void)pause();
    if (mkfifo(fifo, 0600) < 0)
        return err_sys(err, errno, "%s", fifo);
    int fd = open(fifo, O_RDWR | O_CLOEXEC);
    pid_t pid = fork();
    if (pid == 0) {
        (void)setpgid(0, 0);
        if (strcmp(cmd, "die") == 0)
            _exit(9);
        if (read(fd, &byte, 1) != 1)
            _exit(1);
        if (strcmp(cmd, "unexecutable") == 0) {
            (void)fprintf(stderr, "cannot execute\n");
            _exit(1);
        }
        (void)execl("/bin/sh", "sh", "-c", cmd, (char *)NULL);
        _exit(1);
    }
    (void)setpgid(pid, pid);
    auto_free char *text = fs_format("%d", (int)pid);
    res->pid = pid;
    return fs_write_atomic(group, text, strlen(text), 0600, false, err);
}

int exec_job_run(void *arg, struct op_result *res, int *fd_out, struct err *err)
{
    const struct exec_job *job = arg;
    auto_free char *group = group_of(job->at.id);
    auto_free char *text = fs_read(group, 32, NULL, err);
    const char *cmd = job->req->args[0];

    (void)fd_out;
    if (strcmp(cmd, "refuse") == 0) {
        (void)fprintf(stderr, "executable file not found in $PATH\n");
        return err_set(err, ERR_INTERNAL, "exec failed");
    }
    if (strcmp(cmd, "hang") == 0)
        for (;;)
            (void)pause();
    pid_t pid = fork();
    if (pid == 0) {
        (void)setpgid(0, (pid_t)strtol(text, NULL, 10));
        if (strcmp(cmd, "unexecutable") == 0) {
            (void)fprintf(stderr, "exec: Permission denied\n");
            _exit(1);
        }
        (void)execl("/bin/sh", "sh", "-c", cmd, (char *)NULL);
        _exit(1);
    }
    res->pid = pid;
    siginfo_t info;
    if (strcmp(cmd, "exit 11") == 0) /* it ends before its operation does */
        (void)waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT);
    return 0;
}

static bool remove_fails;

int remove_job_run(void *arg, struct op_result *res, int *fd_out, struct err *err)
{
    const struct job_paths *at = arg;
    auto_free char *fifo = fifo_of(at->id);
    auto_free char *group = group_of(at->id);
    (void)res;
    (void)fd_out;
    if (remove_fails)
        return err_set(err, ERR_INTERNAL, "busy");
    (void)unlink(fifo);
    (void)unlink(group);
    return 0;
}

char *job_volume_path(const char *state_dir, const char *container_id, uint32_t id)
{
    return fs_format("%s/.volumes/%s/%u", state_dir, container_id, id);
}

char *job_state_root(const char *state_dir)
{
    return xstrdup(state_dir);
}

int crun_release(const char *state_root, const char *id, struct err *err)
{
    auto_free char *fifo = fifo_of(id);
    (void)state_root;
    auto_close int fd = open(fifo, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return err_set(err, ERR_PRECONDITION, "nobody waits");
    return write(fd, "", 1) == 1 ? 0 : -1;
}

int cgroup_signal(const char *id, int sig, struct err *err)
{
    auto_free char *group = group_of(id);
    auto_free char *text = fs_read(group, 32, NULL, NULL);
    (void)err;
    if (text != NULL)
        (void)kill(-(pid_t)strtol(text, NULL, 10), sig);
    return 0;
}
int cgroup_kill(const char *id, struct err *err)
{
    return cgroup_signal(id, SIGKILL, err);
}
uint64_t cgroup_oom_kills(const char *id)
{
    (void)id;
    return 0;
}
char *cgroup_memory_events(const char *id)
{
    (void)id;
    return xstrdup("/nowhere");
}
char *cgroup_file(const char *id, const char *name)
{
    return fs_format("%s/cgroup-%s/%s", dir, id, name);
}
bool cgroup_is_v1(void)
{
    return false;
}

char *cgroup_v1_dir(const char *hierarchy, const char *id)
{
    return fs_format("/%s/%s", hierarchy, id);
}

char *cgroup_spec_path(const char *id)
{
    return xstrdup(id);
}
void cgroup_remove(const char *id)
{
    (void)id;
}

/* --- helpers ---------------------------------------------------------------------------------- */

static void reap(void)
{
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
        containers_reaped(table, pid, status);
}

#define WAIT(cond)                                                                                 \
    do {                                                                                           \
        int64_t until_ = mono_ns() + INT64_C(20000000000);                                         \
        while (!(cond) && mono_ns() < until_) {                                                    \
            loop_turn(loop, 5);                                                                    \
            reap();                                                                                \
        }                                                                                          \
        assert_true(cond);                                                                         \
    } while (0)

static Aspis__Agent__V1__CreateContainerRequest create_req;
static char id_buf[32];

static void begin_create_with(struct rpc_call *call, const char *id, const char *cmd,
                              char **volume_disks, size_t n)
{
    static uint8_t spec[256];
    static char disk[16];
    aspis__agent__v1__create_container_request__init(&create_req);
    (void)snprintf(id_buf, sizeof(id_buf), "%s", id);
    (void)snprintf((char *)spec, sizeof(spec), "%s", cmd);
    (void)snprintf(disk, sizeof(disk), "%s", strcmp(cmd, "noimage") == 0 ? "missing" : "img");
    create_req.container_id = id_buf;
    create_req.oci_spec.data = spec;
    create_req.oci_spec.len = strlen(cmd);
    create_req.image_disk = disk;
    create_req.shared_pid = strcmp(cmd, "shared") == 0;
    create_req.volume_disks = volume_disks;
    create_req.n_volume_disks = n;
    invoke(call, "CreateContainer", &create_req);
}

static void begin_create(struct rpc_call *call, const char *id, const char *cmd)
{
    begin_create_with(call, id, cmd, NULL, 0);
}

static void create(struct rpc_call *call, const char *id, const char *cmd)
{
    begin_create(call, id, cmd);
    WAIT(call->answered);
}

static void named(struct rpc_call *call, const char *method, const char *id)
{
    /* Start and Remove requests look alike. */
    static char name[32];
    static Aspis__Agent__V1__StartContainerRequest start;
    static Aspis__Agent__V1__RemoveContainerRequest rem;
    (void)snprintf(name, sizeof(name), "%s", id);
    aspis__agent__v1__start_container_request__init(&start);
    aspis__agent__v1__remove_container_request__init(&rem);
    start.container_id = rem.container_id = name;
    if (strcmp(method, "StartContainer") == 0)
        invoke(call, method, &start);
    else
        invoke(call, method, &rem);
}

static void start(const char *id)
{
    struct rpc_call call;
    named(&call, "StartContainer", id);
    WAIT(call.answered);
    assert_int_equal(call.code, ERR_OK);
}

static void remove_container(const char *id)
{
    struct rpc_call call;
    named(&call, "RemoveContainer", id);
    WAIT(call.answered);
    assert_int_equal(call.code, ERR_OK);
}

static struct {
    Aspis__Agent__V1__ExecRequest req;
    char id[32];
    char exec_id[32];
    char cmd[64];
    char *args[1];
} ex;

static void begin_exec(struct rpc_call *call, const char *id, const char *exec_id, const char *cmd)
{
    aspis__agent__v1__exec_request__init(&ex.req);
    (void)snprintf(ex.id, sizeof(ex.id), "%s", id);
    (void)snprintf(ex.exec_id, sizeof(ex.exec_id), "%s", exec_id);
    (void)snprintf(ex.cmd, sizeof(ex.cmd), "%s", cmd);
    ex.args[0] = ex.cmd;
    ex.req.container_id = ex.id;
    ex.req.exec_id = ex.exec_id;
    ex.req.args = ex.args;
    ex.req.n_args = 1;
    invoke(call, "Exec", &ex.req);
}

static void exec(struct rpc_call *call, const char *id, const char *exec_id, const char *cmd)
{
    begin_exec(call, id, exec_id, cmd);
    WAIT(call->answered);
}

static void begin_remove_process(struct rpc_call *call, const char *id, const char *exec_id)
{
    static char c[32];
    static char e[32];
    static Aspis__Agent__V1__RemoveProcessRequest r;
    (void)snprintf(c, sizeof(c), "%s", id);
    (void)snprintf(e, sizeof(e), "%s", exec_id);
    aspis__agent__v1__remove_process_request__init(&r);
    r.container_id = c;
    r.exec_id = e;
    invoke(call, "RemoveProcess", &r);
}

static int find_event(const char *id, const char *exec_id)
{
    for (size_t i = 0; i < events.n_events; i++)
        if (strcmp(events.event[i].container, id) == 0 &&
            strcmp(events.event[i].exec, exec_id) == 0)
            return (int)events.event[i].code;
    return -1;
}

static struct rpc_call list(void)
{
    struct rpc_call call;
    Aspis__Agent__V1__Empty empty;
    aspis__agent__v1__empty__init(&empty);
    invoke(&call, "ListState", &empty);
    assert_true(call.answered);
    return call;
}

static size_t listed(void)
{
    return list().n_listed;
}

static int set_up(void **state)
{
    auto_err struct err err = ERR_INIT;
    Aspis__Agent__V1__EventsRequest req;
    (void)state;
    (void)prctl(PR_SET_CHILD_SUBREAPER, 1);
    log_set_level(LOG_LEVEL_ERROR);
    loop = loop_new(&err);
    io = stdio_new(loop, &err);
    auto_free char *state_dir = fs_format("%s/state", dir);
    table = containers_new(loop, NULL, io, state_dir, &err);
    assert_non_null(table);
    aspis__agent__v1__events_request__init(&req);
    invoke(&events, "Events", &req);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    assert_int_equal(listed(), 0);
    assert_int_equal(image_refs, 0);
    containers_free(table);
    stdio_free(io);
    loop_free(loop);
    return 0;
}

/* --- tests ------------------------------------------------------------------------------------ */

static void test_life(void **state)
{
    (void)state;
    struct rpc_call call;
    create(&call, "a", "exit 7");
    assert_int_equal(call.code, ERR_OK);
    assert_true(call.pid > 0 && call.stdout_id > 0);
    assert_int_equal(listed(), 1);
    start("a");
    WAIT(find_event("a", "") >= 0);
    assert_int_equal(find_event("a", ""), 7);
    named(&call, "StartContainer", "a");
    assert_int_equal(call.code, ERR_PRECONDITION);
    remove_container("a");
    remove_container("a");
    assert_int_equal(listed(), 0);
}

static void test_failed_creates(void **state)
{
    static const char *const cmd[] = {"refuse", "noimage", "shared"};
    struct rpc_call call;
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cmd); i++) {
        create(&call, "a", cmd[i]);
        assert_int_not_equal(call.code, ERR_OK);
        assert_int_equal(listed(), 0);
    }
    create(&call, "a/b", "true");
    assert_int_equal(call.code, ERR_INVALID);
    create(&call, ".a", "true");
    assert_int_equal(call.code, ERR_INVALID);
    /* the id is free again */
    create(&call, "a", "exit 0");
    assert_int_equal(call.code, ERR_OK);
    struct rpc_call second;
    create(&second, "a", "exit 0");
    assert_int_equal(second.code, ERR_EXISTS);
    remove_container("a");
}

static void test_start_fails(void **state)
{
    (void)state;
    struct rpc_call call;
    create(&call, "a", "unexecutable");
    named(&call, "StartContainer", "a");
    WAIT(call.answered);
    assert_int_equal(call.code, ERR_UNKNOWN);
    assert_string_equal(call.text, "cannot execute");
    remove_container("a");
    assert_int_equal(find_event("a", ""), -1);
}

#define STATE(name) ASPIS__AGENT__V1__PROCESS_STATE__STATE__##name

/* A daemon that was killed in StartContainer asks before the guest knows what comes of it: from
 * then on the container runs, and if it cannot, that is an end like any other. */
static void test_list_in_the_middle_of_a_start(void **state)
{
    (void)state;
    struct rpc_call call;
    create(&call, "a", "exit 7");
    assert_int_equal(list().first_state, STATE(CREATED));
    named(&call, "StartContainer", "a");
    assert_false(call.answered);
    assert_int_equal(list().first_state, STATE(RUNNING));
    WAIT(find_event("a", "") >= 0);
    assert_int_equal(find_event("a", ""), 7);
    assert_string_equal(events.event[0].start_error, "");
    assert_int_equal(list().first_state, STATE(EXITED));
    remove_container("a");

    create(&call, "b", "unexecutable");
    named(&call, "StartContainer", "b");
    assert_false(call.answered);
    assert_int_equal(list().first_state, STATE(RUNNING));
    WAIT(find_event("b", "") >= 0);
    assert_int_equal(call.code, ERR_UNKNOWN);
    assert_int_equal(find_event("b", ""), 128);
    assert_string_equal(events.event[1].start_error, "cannot execute");
    remove_container("b");
}

/* One that failed before anybody asked has no event, but can be asked for. */
static void test_list_after_a_failed_start(void **state)
{
    (void)state;
    struct rpc_call call;
    create(&call, "a", "unexecutable");
    named(&call, "StartContainer", "a");
    WAIT(call.answered && list().first_state == STATE(EXITED));
    assert_string_equal(list().first_error, "cannot execute");
    remove_container("a");
}

static void test_dies_before_start(void **state)
{
    (void)state;
    struct rpc_call call;
    create(&call, "a", "die");
    WAIT(find_event("a", "") >= 0);
    assert_int_equal(find_event("a", ""), 9);
    named(&call, "StartContainer", "a");
    assert_int_equal(call.code, ERR_PRECONDITION);
    remove_container("a");
}

static void test_remove_running(void **state)
{
    (void)state;
    struct rpc_call call;
    struct rpc_call again;
    struct rpc_call late;
    create(&call, "a", "sleep 100 & sleep 100");
    start("a");
    exec(&call, "a", "x", "sleep 100");
    assert_int_equal(call.code, ERR_OK);
    named(&call, "RemoveContainer", "a");
    named(&again, "RemoveContainer", "a");
    begin_exec(&late, "a", "y", "true");
    assert_int_equal(late.code, ERR_PRECONDITION);
    WAIT(call.answered && again.answered);
    assert_int_equal(find_event("a", ""), 137);
    assert_int_equal(find_event("a", "x"), 137);
    assert_int_equal(listed(), 0);
}

static void test_remove_while_creating(void **state)
{
    (void)state;
    struct rpc_call made;
    struct rpc_call gone;
    begin_create(&made, "a", "sleep 100");
    named(&gone, "RemoveContainer", "a");
    WAIT(made.answered && gone.answered);
    assert_int_equal(made.code, ERR_ABORTED);
    assert_int_equal(gone.code, ERR_OK);

    /* while it waits for its disk, which may never come */
    image_late = true;
    begin_create(&made, "a", "sleep 100");
    named(&gone, "RemoveContainer", "a");
    image_late = false;
    assert_null(image_waiter);
    WAIT(made.answered && gone.answered);
    assert_int_equal(made.code, ERR_ABORTED);
    assert_int_equal(gone.code, ERR_OK);
    assert_int_equal(image_refs, 0);
}

/* Every image of a container is held until the container is gone, or given back when one is not to
 * be had. */
static void test_image_volumes(void **state)
{
    (void)state;
    struct rpc_call call;
    static char *good[] = {(char *)(uintptr_t) "one", (char *)(uintptr_t) "two"};
    static char *bad[] = {(char *)(uintptr_t) "one", (char *)(uintptr_t) "missing"};
    static char *many[LIMIT_IMAGE_VOLUMES + 1];

    begin_create_with(&call, "a", "exit 0", good, 2);
    WAIT(call.answered);
    assert_int_equal(call.code, ERR_OK);
    assert_int_equal(image_refs, 3);
    remove_container("a");
    assert_int_equal(image_refs, 0);
    begin_create_with(&call, "a", "exit 0", bad, 2);
    WAIT(call.answered);
    assert_int_equal(call.code, ERR_NOT_FOUND);
    assert_int_equal(image_refs, 0);
    for (size_t i = 0; i < ARRAY_LEN(many); i++)
        many[i] = good[0];
    begin_create_with(&call, "a", "exit 0", many, ARRAY_LEN(many));
    WAIT(call.answered);
    assert_int_equal(call.code, ERR_INVALID);
    assert_int_equal(image_refs, 0);
}

static void test_hanging_operations(void **state)
{
    (void)state;
    struct rpc_call made;
    struct rpc_call other;
    struct rpc_call gone;
    struct rpc_call gone_too;
    int64_t before = mono_ns();
    begin_create(&made, "a", "hang");
    create(&other, "b", "sleep 100");
    start("b");
    begin_exec(&other, "b", "x", "hang");
    named(&gone, "RemoveContainer", "a");
    named(&gone_too, "RemoveContainer", "b");
    WAIT(made.answered && gone.answered && other.answered && gone_too.answered);
    assert_true(mono_ns() - before >= INT64_C(4900000000));
    assert_int_equal(gone.code, ERR_OK);
    assert_int_equal(gone_too.code, ERR_OK);
    assert_int_equal(made.code, ERR_ABORTED);
    assert_int_not_equal(other.code, ERR_OK);
}

static void test_remove_fails(void **state)
{
    (void)state;
    struct rpc_call call;
    create(&call, "a", "exit 0");
    remove_fails = true;
    named(&call, "RemoveContainer", "a");
    WAIT(call.answered);
    assert_int_equal(call.code, ERR_INTERNAL);
    remove_fails = false;
    remove_container("a");
}

static void test_exec(void **state)
{
    (void)state;
    struct rpc_call call;
    struct rpc_call rm;
    create(&call, "a", "sleep 100");
    exec(&call, "a", "early", "true");
    assert_int_equal(call.code, ERR_PRECONDITION);
    start("a");
    exec(&call, "a", "e5", "exit 5");
    assert_int_equal(call.code, ERR_OK);
    WAIT(find_event("a", "e5") >= 0);
    assert_int_equal(find_event("a", "e5"), 5);
    exec(&call, "a", "e11", "exit 11");
    assert_int_equal(call.code, ERR_OK);
    WAIT(find_event("a", "e11") == 11);
    exec(&call, "a", "e5", "true");
    assert_int_equal(call.code, ERR_EXISTS);
    begin_remove_process(&rm, "a", "e5");
    assert_true(rm.answered);
    begin_remove_process(&rm, "a", "e5");
    assert_true(rm.answered);
    exec(&call, "a", "e5", "exit 0");
    assert_int_equal(call.code, ERR_OK);

    exec(&call, "a", "no", "refuse");
    assert_int_equal(call.code, ERR_NOT_FOUND);
    assert_non_null(strstr(call.text, "exec \"refuse\": executable file not found"));
    exec(&call, "a", "no", "unexecutable");
    assert_int_equal(call.code, ERR_DENIED);
    WAIT(listed() == 3); /* the init, e5, e11 */
    assert_int_equal(find_event("a", "no"), -1);

    /* removal kills a running one, also one that is being made */
    exec(&call, "a", "long", "sleep 100");
    begin_remove_process(&rm, "a", "long");
    assert_false(rm.answered);
    WAIT(rm.answered);
    assert_int_equal(find_event("a", "long"), 137);
    begin_exec(&call, "a", "young", "sleep 100");
    begin_remove_process(&rm, "a", "young");
    WAIT(call.answered && rm.answered);
    remove_container("a");
}

static void test_background_child(void **state)
{
    (void)state;
    struct rpc_call call;
    create(&call, "a", "sleep 100");
    start("a");
    int64_t before = mono_ns();
    exec(&call, "a", "bg", "sleep 100 & exit 4");
    WAIT(find_event("a", "bg") == 4);
    int64_t took = mono_ns() - before;
    assert_true(took > INT64_C(1500000000) && took < INT64_C(6000000000));
    remove_container("a");
}

static void test_many(void **state)
{
    struct rpc_call call[20];
    char id[16];
    (void)state;
    for (int i = 0; i < 20; i++) {
        (void)snprintf(id, sizeof(id), "c%d", i);
        create(&call[i], id, i % 3 ? "sleep 100" : "exit 1");
        if (i % 4)
            start(id);
    }
    for (int i = 0; i < 20; i++) {
        (void)snprintf(id, sizeof(id), "c%d", i);
        named(&call[i], "RemoveContainer", id);
    }
    for (int i = 0; i < 20; i++)
        WAIT(call[i].answered);
}

static void ask_stats(struct container_stats *s, struct rpc_call *call)
{
    const struct rpc_method *m = container_stats_methods(s);
    Aspis__Agent__V1__StatsRequest req = ASPIS__AGENT__V1__STATS_REQUEST__INIT;
    req.processes = true;
    memset(call, 0, sizeof(*call));
    assert_string_equal(m->name, "Stats");
    m->handler(call, &req.base, m->arg);
}

/* The first call waits for the layers to be counted, later ones do not; a second container makes
 * one wait again. */
static void test_stats(void **state)
{
    struct rpc_call call;
    struct rpc_call both[2];
    (void)state;
    struct container_stats *s = container_stats_new(loop, table, NULL, NULL);
    ask_stats(s, &call);
    assert_true(call.answered);
    assert_int_equal(call.n_listed, 0);
    create(&call, "s1", "sleep 100");
    start("s1");
    ask_stats(s, &both[0]);
    ask_stats(s, &both[1]);
    assert_false(both[0].answered);
    WAIT(both[0].answered && both[1].answered);
    assert_int_equal(both[0].n_listed, 1);
    assert_int_equal(both[1].n_layers, 1);
    ask_stats(s, &call);
    assert_true(call.answered);
    create(&call, "s2", "sleep 100");
    ask_stats(s, &both[0]);
    assert_false(both[0].answered);
    WAIT(both[0].answered);
    assert_int_equal(both[0].n_layers, 2);
    for (int i = 0; i < 2; i++) {
        named(&both[i], "RemoveContainer", i == 0 ? "s1" : "s2");
        WAIT(both[i].answered);
    }
    ask_stats(s, &call);
    assert_int_equal(call.n_listed, 0);
    create(&call, "s3", "sleep 100");
    ask_stats(s, &both[0]); /* freed with a call that waits */
    container_stats_free(s);
    named(&both[1], "RemoveContainer", "s3");
    WAIT(both[1].answered);
}

/* --- freezing --- */

static void put(const char *group, const char *name, const char *text)
{
    auto_free char *parent = fs_format("%s/cgroup-%s", dir, group);
    auto_free char *path = cgroup_file(group, name);
    assert_int_equal(fs_mkdir_p(parent, 0700, NULL), 0);
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    assert_true(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
    (void)close(fd);
}

static void frozen_is(const char *group, const char *want)
{
    auto_free char *path = cgroup_file(group, "cgroup.freeze");
    auto_free char *text = fs_read(path, 16, NULL, NULL);
    assert_non_null(text);
    assert_string_equal(text, want);
}

static void freeze(struct rpc_call *call, uint32_t limit_ms)
{
    Aspis__Agent__V1__FreezePodRequest req;
    aspis__agent__v1__freeze_pod_request__init(&req);
    req.limit_ms = limit_ms;
    put("", "cgroup.events", "populated 1\nfrozen 0\n");
    put("", "cgroup.freeze", "0");
    invoke(call, "FreezePod", &req);
}

static void thaw(struct rpc_call *call)
{
    Aspis__Agent__V1__ThawPodRequest req;
    aspis__agent__v1__thaw_pod_request__init(&req);
    req.wall_clock_ns = 77;
    invoke(call, "ThawPod", &req);
}

static void become(struct rpc_call *call, const char *from, char *key, char *value)
{
    static char new_id[] = "other";
    static char from_id[16];
    static Aspis__Agent__V1__KeyValue kv;
    static Aspis__Agent__V1__KeyValue *list[] = {&kv};
    static Aspis__Agent__V1__BecomePodRequest req;
    aspis__agent__v1__become_pod_request__init(&req);
    aspis__agent__v1__key_value__init(&kv);
    (void)snprintf(from_id, sizeof(from_id), "%s", from);
    kv.key = key;
    kv.value = value;
    req.from_id = from_id;
    req.sandbox_id = new_id;
    req.containers = list;
    req.n_containers = 1;
    invoke(call, "BecomePod", &req);
}

static void test_freeze_and_thaw(void **state)
{
    struct rpc_call call;
    struct rpc_call other;
    (void)state;
    freeze(&call, 0);
    assert_int_equal(call.code, ERR_INVALID);
    begin_create(&other, "f0", "hang"); /* half a process cannot be saved */
    freeze(&call, 10000);
    assert_int_equal(call.code, ERR_UNAVAILABLE);
    remove_container("f0");
    create(&call, "f1", "sleep 100");
    start("f1");
    freeze(&call, 10000);
    assert_false(call.answered);
    frozen_is("", "1");
    exec(&other, "f1", "e", "true");
    assert_int_equal(other.code, ERR_UNAVAILABLE);
    begin_create(&other, "f2", "sleep 100");
    assert_int_equal(other.code, ERR_UNAVAILABLE);
    put("", "cgroup.events", "populated 1\nfrozen 1\n");
    WAIT(call.answered);
    assert_int_equal(call.code, ERR_OK);
    clock_set = 0;
    thaw(&call);
    assert_int_equal(call.code, ERR_OK);
    frozen_is("", "0");
    assert_int_equal(clock_set, 77);
    clock_set = 0;
    thaw(&call); /* nothing to do: the clock is left alone */
    assert_int_equal(call.code, ERR_OK);
    assert_int_equal(clock_set, 0);
    freeze(&call, 50); /* nobody comes back */
    WAIT(call.answered);
    assert_int_equal(call.code, ERR_DEADLINE);
    frozen_is("", "0");
    exec(&other, "f1", "e", "true");
    assert_int_equal(other.code, ERR_OK);
    remove_container("f1");
}

static void test_become(void **state)
{
    static char b1[] = "b1";
    static char gone[] = "gone";
    static char copy[] = "copy1";
    static char bad[] = "../x";
    struct rpc_call call;
    (void)state;
    create(&call, "b1", "sleep 100");
    start("b1");
    become(&call, "pod", b1, copy);
    assert_int_equal(call.code, ERR_PRECONDITION);
    put("b1", "cgroup.freeze", "0");
    freeze(&call, 10000);
    put("", "cgroup.events", "populated 1\nfrozen 1\n");
    WAIT(call.answered);
    become(&call, "pod", gone, copy);
    assert_int_equal(call.code, ERR_NOT_FOUND);
    become(&call, "pod", b1, bad);
    assert_int_equal(call.code, ERR_INVALID);
    become(&call, "pod", b1, copy);
    assert_int_equal(call.code, ERR_OK);
    frozen_is("b1", "1");
    frozen_is("", "0");
    exec(&call, "copy1", "e", "true");
    assert_int_equal(call.code, ERR_PRECONDITION);
    named(&call, "StartContainer", "b1");
    assert_int_equal(call.code, ERR_NOT_FOUND);
    start("copy1");
    frozen_is("b1", "0");
    exec(&call, "copy1", "e", "true");
    assert_int_equal(call.code, ERR_OK);
    (void)cgroup_kill("b1", NULL);
    WAIT(find_event("copy1", "") >= 0); /* before or after that of "e" */
    remove_container("copy1");
}

/* The agent's end with work under way: for leak checkers. */
static void test_freed_in_the_middle(void **state)
{
    (void)state;
    auto_err struct err err = ERR_INIT;
    struct rpc_call call;
    struct rpc_call busy;
    auto_free char *state_dir = fs_format("%s/state2", dir);
    struct containers *main_table = table;
    table = containers_new(loop, NULL, io, state_dir, &err);
    create(&call, "z", "sleep 100");
    start("z");
    begin_exec(&busy, "z", "x", "sleep 1");
    begin_remove_process(&call, "z", "x");
    (void)cgroup_kill("z", NULL);
    containers_free(table);
    table = main_table;
    image_refs = 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_life, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_failed_creates, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_start_fails, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_list_in_the_middle_of_a_start, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_list_after_a_failed_start, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_dies_before_start, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_remove_running, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_remove_while_creating, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_image_volumes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_hanging_operations, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_remove_fails, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_exec, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_background_child, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_many, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_freeze_and_thaw, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_become, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_stats, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_freed_in_the_middle, set_up, tear_down),
    };
    assert_non_null(mkdtemp(dir));
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    (void)fs_rm_rf(dir, NULL);
    return failed;
}
