#include "sandbox/qemu_zygote.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "base/cleanup.h"
#include "base/failpoint.h"
#include "base/fs.h"
#include "base/str.h"
#include "sandbox/lock.h"
#include "sandbox/qemu_fork.h"

/* Until a copy has said that its threads run: milliseconds on an idle host. */
#define FORK_NS INT64_C(10000000000)

/* --- messages --- */

static int send_request(int sock, const struct fork_request *r, const int *fds, size_t n,
                        struct err *err)
{
    struct iovec iov = {.iov_base = __extension__(void *)(uintptr_t) r, .iov_len = sizeof(*r)};
    union {
        char buf[CMSG_SPACE(sizeof(int) * FORK_MAX_FDS)];
        struct cmsghdr align;
    } control = {{0}};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    if (n > 0) {
        msg.msg_control = control.buf;
        msg.msg_controllen = CMSG_SPACE(sizeof(int) * n);
        struct cmsghdr *c = &control.align;
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN(sizeof(int) * n);
        memcpy(CMSG_DATA(c), fds, sizeof(int) * n);
    }
    return sendmsg(sock, &msg, MSG_NOSIGNAL) == (ssize_t)sizeof(*r)
               ? 0
               : err_sys(err, errno, "ask the zygote");
}

static int take_reply(int sock, struct spawn_proc *proc, struct cancel *cancel, struct err *err)
{
    struct fork_reply r;
    struct iovec iov = {.iov_base = &r, .iov_len = sizeof(r)};
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {{0}};
    struct msghdr msg = {.msg_iov = &iov,
                         .msg_iovlen = 1,
                         .msg_control = control.buf,
                         .msg_controllen = sizeof(control.buf)};
    if (cancel_poll(cancel, sock, POLLIN, -1, err) < 0)
        return -1;
    ssize_t n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n < 0)
        return err_sys(err, errno, "hear from the zygote");
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    if (c != NULL && c->cmsg_type == SCM_RIGHTS)
        memcpy(&proc->pidfd, CMSG_DATA(c), sizeof(int));
    if (n != (ssize_t)sizeof(r))
        return err_set(err, ERR_UNAVAILABLE, "the zygote is gone");
    if (r.error != 0)
        return err_sys(err, r.error, "the zygote");
    proc->pid = r.pid;
    return 0;
}

static int take_word(int sock, struct cancel *cancel, struct err *err)
{
    struct fork_word w;
    if (cancel_poll(cancel, sock, POLLIN, -1, err) < 0)
        return -1;
    ssize_t n = recv(sock, &w, sizeof(w), MSG_DONTWAIT);
    if (n != (ssize_t)sizeof(w))
        return err_set(err, ERR_UNAVAILABLE, "the copy ended without a word");
    w.what[sizeof(w.what) - 1] = '\0';
    return w.error == 0 ? 0 : err_sys(err, w.error, "the copy could not %s", w.what);
}

/* --- the zygote --- */

/* QEMU closes its end when it sees that ours is no more written to. */
static int hang_up(struct hv *hv, struct cancel *cancel, struct err *err)
{
    eventfd_t ignored;
    (void)eventfd_read(hv->migrated, &ignored);
    qmp_finish(hv->qmp);
    return cancel_poll(cancel, hv->migrated, POLLIN, -1, err);
}

int qemu_freeze(struct hv *hv, struct cancel *cancel, struct err *err)
{
    struct fork_request park = {.n_targets = 0};
    struct spawn_proc none = SPAWN_PROC_INIT;
    if (hv->fork_fd < 0)
        return err_set(err, ERR_PRECONDITION, "this vm was not made to be copied");
    atomic_store(&hv->saving, true);
    if (FAILPOINT("zygote.freeze", err) < 0 || qmp_run(hv->qmp, "stop", NULL, -1, cancel, err) < 0)
        return err_wrap(err, "freeze");
    console_free(take(hv->console));
    /* what QEMU's main loop had to close is closed when it has answered twice */
    for (int i = 0; i < 2; i++) {
        if (qmp_run(hv->qmp, "query-status", NULL, -1, cancel, err) < 0)
            return err_wrap(err, "freeze");
    }
    atomic_store(&hv->frozen, true);
    if (hang_up(hv, cancel, err) < 0 || send_request(hv->fork_fd, &park, NULL, 0, err) < 0 ||
        take_reply(hv->fork_fd, &none, cancel, err) < 0 || FAILPOINT("zygote.parked", err) < 0)
        return err_wrap(err, "freeze");
    return 0;
}

/* --- copies --- */

static int join_cgroups(const char *const *dirs, pid_t pid, struct err *err)
{
    auto_free char *text = fs_format("%d", pid);
    for (size_t i = 0; dirs != NULL && dirs[i] != NULL; i++) {
        auto_free char *procs = fs_format("%s/cgroup.procs", dirs[i]);
        if (fs_write_str(procs, text, err) < 0)
            return err_wrap(err, "join cgroup");
    }
    return 0;
}

static int exchange(const struct hv_spec *spec, const struct fork_request *r, const int *all,
                    size_t n, int word, struct cancel *cancel, struct spawn_proc *proc,
                    struct err *err)
{
    int sock = spec->fork_of->fork_fd;
    if (send_request(sock, r, all, n, err) < 0)
        return -1;
    /* not given up: the answer would be the next one's */
    auto_cancel struct cancel *limit = cancel_new(mono_ns() + FORK_NS, err);
    if (limit == NULL || take_reply(sock, proc, limit, err) < 0) {
        (void)shutdown(sock, SHUT_RDWR); /* an answer that comes late is nobody's */
        return -1;
    }
    return join_cgroups(spec->cgroups, proc->pid, err) < 0 ||
                   (send(word, "g", 1, MSG_NOSIGNAL) != 1 && err_sys(err, errno, "start it") < 0)
               ? -1
               : take_word(word, cancel, err);
}

int qemu_fork(const struct hv_spec *spec, const struct spawn_fd *fds, size_t n_fds,
              struct cancel *cancel, struct spawn_proc *proc, struct err *err)
{
    struct fork_request r = {.uid = spec->uid};
    int all[FORK_MAX_FDS];
    size_t n = 0;
    int word[2];
    *proc = (struct spawn_proc)SPAWN_PROC_INIT;
    if (n_fds + 2 > FORK_MAX_FDS || strlen(spec->name) >= sizeof(r.name))
        return err_set(err, ERR_INVALID, "too much for a copy");
    (void)strncpy(r.name, spec->name, sizeof(r.name) - 1);
    if (FAILPOINT("zygote.fork", err) < 0)
        return -1;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, word) < 0)
        return err_sys(err, errno, "make socket pair");
    for (size_t i = 0; i < n_fds; i++) {
        if (fds[i].child == 2) /* the same file as 1 */
            continue;
        bool scratch = fds[i].child == QEMU_FD_SCRATCH; /* QEMU has it under other numbers */
        r.targets[r.n_targets++] = scratch ? -1 : fds[i].child;
        all[n++] = fds[i].here;
        if (scratch)
            all[n++] = spec->fork_scratch_fd;
    }
    all[n++] = word[1];
    int ret = lock_within(&spec->fork_of->forking, cancel, "another copy", err);
    if (ret == 0) {
        ret = exchange(spec, &r, all, n, word[0], cancel, proc, err);
        (void)pthread_mutex_unlock(&spec->fork_of->forking);
    }
    cleanup_closep(&word[0]);
    cleanup_closep(&word[1]);
    if (ret == 0)
        return 0;
    spawn_clear(proc);
    return err_wrap(err, "copy the zygote");
}
